// Text and JSON files of a checkpoint. Their content is untrusted: sizes are bounded, errors name file, field and value.
import { randomUUID } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import type { z } from 'zod';
import { DUltraError } from '../errors';
import { decodeText, reasonOf, show } from '../text';
import { lfsPointerReason } from './lfs';

/** Larger than any tokenizer, and small enough to parse. */
const MAX_BYTES = 128 * 2 ** 20;

/** Whether a value is an integer of at least 0. */
export const isIndex = (value: unknown): value is number =>
  typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;

/** An error about a file of a checkpoint. */
export const badFile = (file: string, message: string, cause?: unknown): DUltraError =>
  new DUltraError('BAD_CHECKPOINT', `${file}: ${message}`, { cause });

/**
 * Reads a file as UTF-8 text, without a byte order mark. @throws DUltraError BAD_CHECKPOINT naming it where it is
 * missing, no file, too large, not UTF-8, or a Git LFS pointer.
 */
export async function readTextFile(file: string): Promise<string> {
  let bytes: Buffer;
  try {
    const info = await stat(file);
    // Opening a pipe would block until it has a writer.
    if (!info.isFile()) throw new Error('expected a file');
    if (info.size > MAX_BYTES) throw new Error(`expected at most ${MAX_BYTES} bytes, got ${info.size}`);
    bytes = await readFile(file);
    const pointer = lfsPointerReason(bytes);
    if (pointer) throw new Error(pointer);
  } catch (cause) {
    throw badFile(file, reasonOf(cause), cause);
  }
  try {
    return decodeText(bytes, file);
  } catch (cause) {
    throw new DUltraError('BAD_CHECKPOINT', reasonOf(cause), { cause });
  }
}

/** A string of JSON, or a number that Python writes and JSON lacks, where a value can stand. */
const STRING_OR_NON_FINITE = /"(?:[^"\\]|\\.)*"|(?<![\w.+-])(?:-?Infinity|NaN)(?![\w.]|\s*:)/g;

/**
 * Parses JSON as Python's json module writes it: NaN, Infinity and -Infinity are numbers. Comments are refused:
 * transformers does not read them either, so that a file with comments was never one of its checkpoints.
 * @throws Error saying what is wrong
 */
export function parsePythonJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    if (/NaN|Infinity/.test(text)) {
      // 1e999 is infinite to JSON.parse; NaN has no such form and travels as a text that occurs nowhere else.
      const mark = randomUUID();
      const replaced = text.replace(STRING_OR_NON_FINITE, (token) =>
        token[0] === '"' ? token : token === 'NaN' ? `"${mark}"` : token.replace('Infinity', '1e999'),
      );
      try {
        return JSON.parse(replaced, (_key, value) => (value === mark ? Number.NaN : value));
      } catch {
        // The message about the file's own text is the one to show.
      }
    }
    const isCommented = /\/\/|\/\*|^\s*#/m.test(text.replace(STRING_OR_NON_FINITE, ''));
    const hint = isCommented ? '; JSON has no comments: remove them' : '';
    throw new Error(`not JSON (${reasonOf(cause)})${hint}`, { cause });
  }
}

/** Reads a file as a JSON object, as {@link parsePythonJson}. @throws DUltraError BAD_CHECKPOINT naming it */
export async function readJsonObject(file: string): Promise<Record<string, unknown>> {
  const text = await readTextFile(file);
  let json: unknown;
  try {
    json = parsePythonJson(text);
  } catch (cause) {
    throw badFile(file, reasonOf(cause), cause);
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw badFile(file, `expected a JSON object, got ${show(json)}`);
  return json as Record<string, unknown>;
}

/** Checks a file's JSON object. @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came */
export function checkFields<T>(schema: z.ZodType<T>, json: Record<string, unknown>, file: string): T {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const [{ path, message }] = parsed.error.issues;
  const value = path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], json);
  // zod says what came, too, but only its type.
  const expected = message.replace(/^Invalid (input|option): /, '').replace(/, received \w+$/, '');
  throw badFile(file, `${path.join('.')}: ${expected}, got ${show(value)}`);
}
