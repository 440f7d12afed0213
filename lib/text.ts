// Text: out of bytes, values as parts of messages, and indentation.
import { isUtf8 } from 'node:buffer';

/** The message of what was thrown. */
export function reasonOf(error: unknown): string {
  const { message } = (error ?? {}) as { message?: unknown };
  return typeof message === 'string' ? message : String(error);
}

/** A text with single spaces alone: what is compared where white space does not matter. */
export const normaliseSpace = (text: string): string => text.trim().replace(/\s+/g, ' ');

/** A number of bytes, as in "1.5 GiB". */
export const formatGiB = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

const MAX_SHOWN = 80;

const cut = (text: string): string => (text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text);

/** A hostile value for a message: never long, and no nested object, which could overflow the stack. */
export function show(value: unknown): string {
  if (Array.isArray(value)) {
    const isFlat = value.length <= 8 && value.every((item) => typeof item !== 'object' || item === null);
    return isFlat ? cut(`[${value.map(show).join(',')}]`) : `an array of ${value.length}`;
  }
  if (typeof value === 'object' && value !== null) return 'an object';
  return cut(typeof value === 'string' ? JSON.stringify(value) : String(value));
}

/** Digits that a number in JSON may have and still be what was written. */
const EXACT_DIGITS = 15;

/** The text of a number of JSON. @throws Error where it may not be the number that the file has, since JSON's are not exact */
export function numberText(value: number): string {
  const text = String(value);
  const digits = text.replace(/e.*/, '').replace(/\D/g, '').replace(/^0+/, '').length;
  if (Number.isSafeInteger(value) || (digits <= EXACT_DIGITS && Number.isFinite(value))) return text;
  throw new Error(`expected text for a number of more than ${EXACT_DIGITS} digits`);
}

/** Parses JSON. @throws Error with the engine's reason, without its line, which callers know better. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Error(`expected JSON, got ${reasonOf(cause).replace(/ \(line \d+ column \d+\)$/, '')}`, { cause });
  }
}

/** What bytes are that are no UTF-8 text, and where; null for text. */
function faultOf(bytes: Buffer): { at: number; got: string } | null {
  const [first, second] = bytes;
  if ((first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff)) return { at: 0, got: 'UTF-16' };
  const nul = bytes.indexOf(0);
  if (nul >= 0) {
    // Every second byte of Western text in UTF-16 is 0, and none of the others.
    const head = bytes.subarray(nul & ~1, (nul & ~1) + 64);
    const zeros = [0, 0];
    head.forEach((byte, i) => {
      if (byte === 0) zeros[i & 1]++;
    });
    const isWide = Math.min(...zeros) === 0 && Math.max(...zeros) >= Math.max(2, head.length / 6);
    return { at: nul, got: isWide ? 'UTF-16, or binary data' : 'binary data (a byte 0)' };
  }
  if (isUtf8(bytes)) return null;
  const text = bytes.toString('utf8');
  for (let i = text.indexOf('\ufffd'); i >= 0; i = text.indexOf('\ufffd', i + 1)) {
    const at = Buffer.byteLength(text.slice(0, i));
    // The character itself may stand in a text.
    if (bytes.indexOf('\ufffd', at) === at) continue;
    return { at, got: `the byte 0x${bytes[at].toString(16).toUpperCase()} (Latin-1 or Windows-1252?)` };
  }
  return null;
}

/**
 * UTF-8 bytes as text, without a byte order mark. Nothing is replaced: what is no UTF-8 is an error.
 * @param name of the file, for errors @param firstLine number of the first line
 * @throws Error "name, line 3: expected UTF-8 text, got …"
 */
export function decodeText(bytes: Uint8Array, name: string, firstLine = 1): string {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const fault = faultOf(buffer);
  if (fault) {
    const line = firstLine + buffer.subarray(0, fault.at).filter((byte) => byte === 10).length;
    const column = fault.at - (fault.at > 0 ? buffer.lastIndexOf(10, fault.at - 1) : -1);
    throw new Error(`${name}, line ${line}: expected UTF-8 text, got ${fault.got} at byte ${column}`);
  }
  const hasMark = buffer[0] === 0xef && buffer[1] === 0xbb && buffer[2] === 0xbf;
  return buffer.toString('utf8', hasMark ? 3 : 0);
}

/**
 * Removes the white space that all lines begin with, as Python's textwrap.dedent; lines of white space alone become
 * empty.
 */
export function dedent(text: string): string {
  const lines = text.split('\n').map((line) => (/^[ \t]+$/.test(line) ? '' : line));
  let margin: string | null = null;
  for (const line of lines) {
    if (line === '') continue;
    const indent = line.match(/^[ \t]*/)![0];
    if (margin === null) margin = indent;
    else {
      let common = 0;
      while (common < margin.length && margin[common] === indent[common]) common++;
      margin = margin.slice(0, common);
    }
  }
  return margin
    ? lines.map((line) => (line.startsWith(margin) ? line.slice(margin.length) : line)).join('\n')
    : lines.join('\n');
}
