// The output of a batch: JSON lines that are appended to, and from which a batch goes on.
import { createReadStream, type Stats } from 'node:fs';
import { type FileHandle, open, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { UsageError } from './errors';
import { readLines } from './lines';
import { printData } from './output';

/** A line of the output. */
export type BatchRecord = { line: number; id?: unknown; key: string } & (
  | { seed?: number | string; text?: string; ids?: number[]; [figure: string]: unknown }
  | { error: string }
);

/** The file that completions are appended to: whole lines alone, which are on the disk before the next ones begin. */
export class BatchOutput {
  readonly #file: string | undefined;
  #handle: FileHandle | null = null;
  #unlock: (() => Promise<void>) | null = null;
  /** Lines that failed. */
  failed = 0;
  /** What the file has: "line seed", or "line" for an error and where there are no seeds, to the key. */
  readonly #done = new Map<string, string>();

  constructor(file: string | undefined) {
    this.#file = file;
  }

  /** Reads what is there, and removes the line that a killed process has left unfinished. */
  async open(): Promise<void> {
    const file = this.#file;
    if (file === undefined) return;
    const info = await statOf(file);
    if (info && !info.isFile()) throw new UsageError(`--out: expected a file, got ${file}`);
    this.#unlock = await lock(file);
    try {
      const size = (await statOf(file))?.size ?? 0;
      const whole = size > 0 ? await wholeLines(file, size) : 0;
      if (whole > 0) await this.#read(createReadStream(file, { end: whole - 1 }), file);
      if (whole < size) {
        await this.#checkUnfinished(file, whole);
        await truncate(file, whole);
      }
      this.#handle = await open(file, 'a');
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  async #read(stream: Readable, file: string): Promise<void> {
    for await (const line of readLines(stream, file)) {
      const record = 'text' in line ? parseRecord(line.text) : null;
      if (!record) throw new UsageError(`--out: ${file}, line ${line.number}: expected what --batch has written`);
      this.#remember(record);
    }
  }

  /** @throws UsageError where the last line, which has no end, is not the beginning of a record */
  async #checkUnfinished(file: string, at: number): Promise<void> {
    const begin = '{"line":';
    const handle = await open(file, 'r');
    try {
      const { buffer, bytesRead } = await handle.read(Buffer.alloc(begin.length), 0, begin.length, at);
      if (!begin.startsWith(buffer.toString('latin1', 0, bytesRead)))
        throw new UsageError(`--out: ${file}: expected what --batch has written, or no file`);
    } finally {
      await handle.close();
    }
  }

  #remember(record: BatchRecord): void {
    const isError = 'error' in record;
    if (isError) this.failed++;
    const isWhole = 'error' in record || record.seed === undefined;
    this.#done.set(isWhole ? `${record.line}` : `${record.line} ${record.seed}`, record.key);
  }

  /** Whether the file has a completion. @throws UsageError where it has another one in its place */
  has(line: number, seed: bigint | number, key: string): boolean {
    const found = this.#done.get(`${line}`) ?? this.#done.get(`${line} ${seed}`);
    if (found !== undefined && found !== key)
      throw new UsageError(
        `--out: ${this.#file} has a completion of another line ${line}, or of other options; expected the command that ` +
          'began it, or another file',
      );
    return found !== undefined;
  }

  /** Records of the file. */
  get size(): number {
    return this.#done.size;
  }

  /** Appends records. */
  async write(records: readonly BatchRecord[]): Promise<void> {
    for (const record of records) this.#remember(record);
    const lines = records.map((record) => JSON.stringify(record));
    if (!this.#handle) for (const line of lines) printData(line);
    else if (lines.length > 0) {
      await this.#handle.appendFile(`${lines.join('\n')}\n`);
      await this.#handle.datasync();
    }
  }

  async close(): Promise<void> {
    await this.#handle?.close();
    await this.#unlock?.();
  }
}

async function statOf(file: string): Promise<Stats | null> {
  return stat(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
    return null;
  });
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/**
 * Keeps other batches from appending to a file; what a killed process has left counts for nothing.
 * @returns what gives it back @throws UsageError where another process writes the file
 */
async function lock(file: string): Promise<() => Promise<void>> {
  const name = `${file}.lock`;
  for (let attempt = 0; ; attempt++) {
    try {
      await writeFile(name, String(process.pid), { flag: 'wx' });
      return () => rm(name, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const holder = Number(await readFile(name, 'utf8').catch(() => ''));
    if (attempt > 2 || (holder > 0 && isAlive(holder)))
      throw new UsageError(
        `--out: ${file} is being written by process ${holder}; end it first, or remove ${name} if it is none of dultra's`,
      );
    await rm(name, { force: true });
  }
}

/** Bytes of a file up to the end of its last whole line. */
async function wholeLines(file: string, size: number): Promise<number> {
  const handle = await open(file, 'r');
  try {
    const buffer = Buffer.alloc(2 ** 16);
    for (let end = size; end > 0; ) {
      const begin = Math.max(0, end - buffer.length);
      const { bytesRead } = await handle.read(buffer, 0, end - begin, begin);
      const at = buffer.subarray(0, bytesRead).lastIndexOf(10);
      if (at >= 0) return begin + at + 1;
      end = begin;
    }
    return 0;
  } finally {
    await handle.close();
  }
}

function parseRecord(text: string): BatchRecord | null {
  try {
    const record = JSON.parse(text) as BatchRecord | null;
    const { line, key } = record ?? {};
    return Number.isInteger(line) && typeof key === 'string' ? record : null;
  } catch {
    return null;
  }
}
