// Finds the final answer in the text of a completion.

/** Index after the group in braces that opens at `begin`; -1 if it does not close. */
function groupEnd(text: string, begin: number): number {
  let depth = 0;
  for (let i = begin; i < text.length; i++) {
    if (text[i] === '\\') i++;
    else if (text[i] === '{') depth++;
    else if (text[i] === '}' && --depth === 0) return i + 1;
  }
  return -1;
}

/** The final answer of a completion: the last box, answer tag or "####", else the last number; null if none. */
export function extractAnswer(completion: string): string | null {
  // The mark whose content ends last holds the answer.
  const found: { end: number; text: string }[] = [];
  for (const match of completion.matchAll(/\\(?:boxed|fbox)\s*/g)) {
    const begin = match.index + match[0].length;
    const end = completion[begin] === '{' ? groupEnd(completion, begin) : -1;
    if (end > 0) found.push({ end, text: completion.slice(begin + 1, end - 1) });
    else if (completion[begin] !== '{') {
      const bare = completion.slice(begin).match(/^[^\s$.,;<\\]+/);
      if (bare) found.push({ end: begin + bare[0].length, text: bare[0] });
    }
    // A box that the end of the completion cuts off counts as no answer.
    else if (begin > (found.at(-1)?.end ?? -1)) found.push({ end: completion.length + 1, text: '' });
  }
  const tag = completion.lastIndexOf('<answer>');
  if (tag >= 0) {
    const begin = tag + '<answer>'.length;
    const close = completion.indexOf('</answer>', begin);
    found.push({
      end: close < 0 ? completion.length : close,
      text: completion.slice(begin, close < 0 ? undefined : close),
    });
  }
  const hash = completion.lastIndexOf('####');
  if (hash >= 0) {
    const line = completion.slice(hash + 4).split('\n', 1)[0];
    found.push({ end: hash + 4 + line.length, text: line });
  }
  if (found.length > 0) {
    const { text } = found.reduce((best, mark) => (mark.end >= best.end ? mark : best));
    if (text === '') return null;
    // A box inside an answer tag or inside another box.
    const inner = /\\(?:boxed|fbox)|####/.test(text) ? extractAnswer(text) : null;
    return (inner ?? text).trim();
  }
  const numbers = completion.match(/-?\$?\d[\d,]*(?:\.\d+)?%?/g);
  return numbers ? numbers[numbers.length - 1].replace(/,$/, '') : null;
}
