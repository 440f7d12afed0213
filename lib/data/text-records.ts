// Records of a text file as they come from the disk: JSON lines, or the entries of a JSON array. Memory holds one record
// at a time, so that a file may be larger than any string.
import { createReadStream } from 'node:fs';
import path from 'node:path';
import { pipeline, Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { lfsPointerReason } from '../files/lfs';
import { decodeText, parseJson, reasonOf } from '../text';

/** A record and its place, for messages: "gsm8k.jsonl, line 3". */
export interface SourcedRecord {
  value: unknown;
  where: string;
}

/** Bytes of one record; JavaScript has no string above 512 MiB. */
const MAX_RECORD = 2 ** 28;

/** Formats that are none of text, by their first bytes. */
const FOREIGN: readonly (readonly [name: string, head: readonly number[]])[] = [
  ['a zip archive', [0x50, 0x4b, 0x03, 0x04]],
  ['a file packed by zstd', [0x28, 0xb5, 0x2f, 0xfd]],
  ['a file packed by xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a]],
  ['a file packed by bzip2', [0x42, 0x5a, 0x68]],
  ['Parquet, whose name ends in .parquet', [0x50, 0x41, 0x52, 0x31]],
];

const startsWith = (bytes: Buffer, head: readonly number[]): boolean => head.every((byte, i) => bytes[i] === byte);

/** The bytes of a file, unpacked where they are gzip, whatever its name. @throws Error naming the file */
async function* readBytes(file: string, name: string): AsyncGenerator<Buffer, void, void> {
  const raw: AsyncIterator<Buffer> = createReadStream(file, { highWaterMark: 1 << 18 })[Symbol.asyncIterator]();
  const first = await raw.next();
  if (first.done) return;
  const pointer = lfsPointerReason(first.value);
  if (pointer !== null) {
    await raw.return?.();
    throw new Error(`${name}: ${pointer}`);
  }
  const [foreign] = FOREIGN.find(([, head]) => startsWith(first.value, head)) ?? [];
  async function* all(): AsyncGenerator<Buffer, void, void> {
    try {
      for (let next: IteratorResult<Buffer> = first; !next.done; next = await raw.next()) yield next.value;
    } finally {
      await raw.return?.();
    }
  }
  if (foreign !== undefined) {
    await raw.return?.();
    throw new Error(`${name}: expected JSON lines, a JSON array or gzip of them, got ${foreign}`);
  }
  if (!startsWith(first.value, [0x1f, 0x8b])) {
    yield* all();
    return;
  }
  try {
    yield* pipeline(Readable.from(all()), createGunzip(), () => {}) as unknown as AsyncIterable<Buffer>;
  } catch (cause) {
    throw new Error(`${name}: expected a whole gzip file, got a damaged or incomplete one (${reasonOf(cause)})`, {
      cause,
    });
  }
}

/** A part of a file with the number of the line that it begins in. */
interface Piece {
  bytes: Buffer;
  line: number;
}

/** Collects the pieces of a record that reaches over several chunks. */
class Collected {
  #parts: Buffer[] = [];
  #length = 0;

  add(part: Buffer, where: string): void {
    this.#length += part.length;
    if (this.#length > MAX_RECORD)
      throw new Error(`${where}: expected at most ${MAX_RECORD} bytes in a record, got more`);
    this.#parts.push(part);
  }

  take(): Buffer {
    const whole = this.#parts.length === 1 ? this.#parts[0] : Buffer.concat(this.#parts);
    this.#parts = [];
    this.#length = 0;
    return whole;
  }
}

/** The lines of a file, without their newlines; the last is what stands behind the last newline. */
export async function* readLines(chunks: AsyncIterable<Buffer>, name: string): AsyncGenerator<Piece, void, void> {
  const collected = new Collected();
  let line = 1;
  for await (const chunk of chunks) {
    let from = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      collected.add(chunk.subarray(from, end), `${name}, line ${line}`);
      yield { bytes: collected.take(), line };
      from = end + 1;
      line++;
    }
    collected.add(chunk.subarray(from), `${name}, line ${line}`);
  }
  yield { bytes: collected.take(), line };
}

const [OPEN, CLOSE, COMMA, QUOTE, BACKSLASH] = Buffer.from('[],"\\');
const [BRACE, END_BRACE] = Buffer.from('{}');
const isSpace = (byte: number): boolean => byte === 32 || (byte >= 9 && byte <= 13);

/** Cuts a JSON array at the commas between its entries. Only they are looked for: entries are parsed afterwards. */
class ArrayCutter {
  readonly #name: string;
  readonly #collected = new Collected();
  #line = 1;
  #entryLine = 1;
  #entries = 0;
  /** Brackets that are open; 0 before the array. */
  #depth = 0;
  #isText = false;
  #isEscaped = false;
  /** Nothing of the entry has come yet. */
  #isEmpty = true;
  #isOver = false;

  constructor(name: string) {
    this.#name = name;
  }

  /** The entries that end in a chunk. */
  push(chunk: Buffer): Piece[] {
    const pieces: Piece[] = [];
    let from = 0;
    for (let i = 0; i < chunk.length; i++) {
      if (this.#isText) {
        i = this.#skipText(chunk, i);
        continue;
      }
      const byte = chunk[i];
      if (byte === 10) this.#line++;
      if (this.#isEmpty) this.#entryLine = this.#line;
      if (isSpace(byte)) continue;
      if (this.#isOver)
        throw new Error(`${this.#name}, line ${this.#line}: expected nothing behind the array, got more`);
      if (this.#depth === 0) {
        // What else comes before is a byte order mark.
        if (byte === OPEN) this.#depth = 1;
        continue;
      }
      if (this.#depth === 1 && (byte === COMMA || byte === CLOSE || byte === END_BRACE)) {
        if (byte === END_BRACE)
          throw new Error(`${this.#name}, line ${this.#line}: expected "]" at the end of the array, got "}"`);
        this.#isOver = byte === CLOSE;
        // "[]" has no entry; one that is missing before or behind a comma is for JSON.parse to refuse.
        const isNone = this.#isOver && this.#isEmpty && this.#entries === 0;
        if (!isNone) pieces.push(this.#end(chunk.subarray(from, i)));
        continue;
      }
      if (this.#isEmpty) from = i;
      this.#isEmpty = false;
      if (byte === QUOTE) this.#isText = true;
      else if (byte === OPEN || byte === BRACE) this.#depth++;
      else if (byte === CLOSE || byte === END_BRACE) this.#depth--;
    }
    if (!this.#isEmpty) this.#collected.add(chunk.subarray(from), this.#place);
    return pieces;
  }

  /** @throws Error where the array has not ended */
  finish(): void {
    if (!this.#isOver)
      throw new Error(
        `${this.#name}, line ${this.#line}: expected "]" at the end of the array, got the end of the file`,
      );
  }

  get #place(): string {
    return `${this.#name}, entry ${this.#entries + 1}`;
  }

  #end(rest: Buffer): Piece {
    if (!this.#isEmpty) this.#collected.add(rest, this.#place);
    this.#entries++;
    this.#isEmpty = true;
    return { bytes: this.#collected.take(), line: this.#entryLine };
  }

  /** The index of the last byte, from `i` on, that belongs to a string. */
  #skipText(chunk: Buffer, i: number): number {
    let at = i;
    let isEscaped = this.#isEscaped;
    for (; at < chunk.length; at++) {
      const byte = chunk[at];
      if (isEscaped) isEscaped = false;
      else if (byte === BACKSLASH) isEscaped = true;
      else if (byte === QUOTE) break;
      if (byte === 10) this.#line++;
    }
    this.#isEscaped = isEscaped;
    this.#isText = at === chunk.length;
    return at;
  }
}

async function* readEntries(chunks: AsyncIterable<Buffer>, name: string): AsyncGenerator<Piece, void, void> {
  const cutter = new ArrayCutter(name);
  for await (const chunk of chunks) yield* cutter.push(chunk);
  cutter.finish();
}

/** Whether a file begins with "[", byte order mark and white space aside; the chunks with what was looked at again. */
async function beginsArray(chunks: AsyncIterator<Buffer, void>): Promise<[boolean, AsyncGenerator<Buffer>]> {
  const seen: Buffer[] = [];
  let isArray = false;
  for (let next = await chunks.next(); !next.done; next = await chunks.next()) {
    seen.push(next.value);
    const mark = seen.length === 1 && startsWith(next.value, [0xef, 0xbb, 0xbf]) ? 3 : 0;
    const first = next.value.subarray(mark).find((byte) => !isSpace(byte));
    isArray = first === OPEN;
    if (first !== undefined) break;
  }
  async function* again(): AsyncGenerator<Buffer> {
    try {
      yield* seen.splice(0);
      for (let next = await chunks.next(); !next.done; next = await chunks.next()) yield next.value;
    } finally {
      await chunks.return?.();
    }
  }
  return [isArray, again()];
}

/** Refuses what is no text as soon as it comes, and not at the end of a line that may never come. */
async function* checked(chunks: AsyncIterable<Buffer>, name: string): AsyncGenerator<Buffer, void, void> {
  let line = 1;
  let isFirst = true;
  for await (const chunk of chunks) {
    const isMarked = isFirst && (chunk[0] === 0xff || chunk[0] === 0xfe);
    if (isMarked || chunk.includes(0)) decodeText(chunk, name, line);
    isFirst = false;
    yield chunk;
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, at + 1)) line++;
  }
}

/**
 * All records of a text file: of JSON lines, or of a JSON array where the file begins with "[" and its name does not say
 * JSON lines.
 * @throws Error naming file and line
 */
export async function* readTextRecords(file: string): AsyncGenerator<SourcedRecord, void, void> {
  const name = path.basename(file);
  const [isArray, chunks] = await beginsArray(checked(readBytes(file, name), name));
  if (isArray && !/\.(jsonl|ndjson)(\.gz)?$/i.test(file)) {
    let index = 0;
    for await (const { bytes, line } of readEntries(chunks, name)) {
      const where = `${name}, entry ${++index} (line ${line})`;
      yield { value: parseAt(decodeText(bytes, name, line), where), where };
    }
    return;
  }
  for await (const { bytes, line } of readLines(chunks, name)) {
    const where = `${name}, line ${line}`;
    const text = decodeText(bytes, name, line);
    if (text.trim() !== '') yield { value: parseAt(text, where), where };
  }
}

function parseAt(text: string, where: string): unknown {
  try {
    return parseJson(text);
  } catch (cause) {
    const isCut = /^[[{]$/.test(text.trim());
    const hint = isCut ? ' (a record is one line; an array of records goes in a file named .json)' : '';
    throw new Error(`${where}: ${reasonOf(cause)}${hint}`, { cause });
  }
}
