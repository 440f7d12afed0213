// White space beside a place in a text; patterns that end in "$" would look through a long run again at each character.
const SPACE = /^\p{White_Space}$/u;

/** Where the white space ends that begins at a place. */
export function spaceEnd(text: string, start: number): number {
  let end = start;
  while (end < text.length && SPACE.test(text[end])) end++;
  return end;
}
/** Where the white space begins that ends at a place, not before `from`. */
export function spaceStart(text: string, end: number, from = 0): number {
  let start = end;
  while (start > from && SPACE.test(text[start - 1])) start--;
  return start;
}
