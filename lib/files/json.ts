// JSON files of a checkpoint, read with suspicion.
import { readFile, stat } from 'node:fs/promises';
import { DUltraError } from '../errors';

/** Far above every tokenizer, and small enough to parse. */
const MAX_BYTES = 128 * 2 ** 20;

/** A whole number from 0 on. */
export const isIndex = (value: unknown): value is number =>
  typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;

const MAX_SHOWN = 80;

/** A hostile value for a message: neither long, nor so deep that JSON.stringify overflows the stack. */
export function show(value: unknown): string {
  const isFlat =
    Array.isArray(value) && value.length <= 8 && value.every((item) => typeof item !== 'object' || item === null);
  if (typeof value === 'object' && value !== null && !isFlat)
    return Array.isArray(value) ? `an array of ${value.length}` : 'an object';
  const text = JSON.stringify(value) ?? String(value);
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
}

/**
 * Reads a file as UTF-8 text. @throws DUltraError BAD_CHECKPOINT naming it where it is missing, no file, or too large.
 */
export async function readTextFile(file: string): Promise<string> {
  try {
    const info = await stat(file);
    // Opening a pipe would wait for its writer.
    if (!info.isFile()) throw new Error('expected a file');
    if (info.size > MAX_BYTES) throw new Error(`expected at most ${MAX_BYTES} bytes, got ${info.size}`);
    return await readFile(file, 'utf8');
  } catch (cause) {
    throw new DUltraError('BAD_CHECKPOINT', `${file}: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause,
    });
  }
}

/** Reads a file as JSON. @throws DUltraError BAD_CHECKPOINT naming it */
export async function readJsonFile(file: string): Promise<unknown> {
  const text = await readTextFile(file);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${file}: not JSON (${cause instanceof Error ? cause.message : String(cause)})`,
      { cause },
    );
  }
}
