// JSON of bodies, which anybody may have written.
import { ApiError } from './errors';

/** Levels of objects and lists in a body, and how many of these and of members it has. */
const DEEPEST = 64;
const MOST_PARTS = 20_000;

/** Refuses JSON that takes long to read for its length: what has many parts, or parts deep within each other. */
function checkShape(json: string): void {
  let depth = 0;
  let parts = 0;
  for (let at = 0; at < json.length; at++) {
    const code = json.charCodeAt(at);
    if (code === 0x22) at = endOfString(json, at);
    else if (code === 0x3a) parts++;
    else if (code === 0x5d || code === 0x7d) depth--;
    else if (code === 0x5b || code === 0x7b) {
      parts++;
      depth++;
    }
    if (depth > DEEPEST) throw new ApiError(400, 'invalid_json', `expected JSON of at most ${DEEPEST} levels`);
    if (parts > MOST_PARTS)
      throw new ApiError(400, 'invalid_json', `expected at most ${MOST_PARTS} lists, objects and members`);
  }
}

/** The quote behind an even number of backslashes that ends a string of JSON. */
function endOfString(json: string, begin: number): number {
  for (let end = json.indexOf('"', begin + 1); end >= 0; end = json.indexOf('"', end + 1)) {
    let slashes = 0;
    while (json.charCodeAt(end - 1 - slashes) === 0x5c) slashes++;
    if (slashes % 2 === 0) return end;
  }
  return json.length;
}

/** @throws ApiError invalid_json */
export function readJson(text: string): unknown {
  checkShape(text);
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(400, 'invalid_json', 'the body is not JSON');
  }
}
