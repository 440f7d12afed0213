// JSON files of a checkpoint. Their content is untrusted: sizes are bounded, errors name file, field and value.
import { readFile, stat } from 'node:fs/promises';
import type { z } from 'zod';
import { DUltraError } from '../errors';
import { reasonOf, show } from '../text';

/** Larger than any tokenizer, and small enough to parse. */
const MAX_BYTES = 128 * 2 ** 20;

/** Whether a value is an integer of at least 0. */
export const isIndex = (value: unknown): value is number =>
  typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;

/** An error about a file of a checkpoint. */
export const badFile = (file: string, message: string, cause?: unknown): DUltraError =>
  new DUltraError('BAD_CHECKPOINT', `${file}: ${message}`, { cause });

/**
 * Reads a file as UTF-8 text. @throws DUltraError BAD_CHECKPOINT naming it where it is missing, no file, or too large.
 */
export async function readTextFile(file: string): Promise<string> {
  try {
    const info = await stat(file);
    // Opening a pipe would block until it has a writer.
    if (!info.isFile()) throw new Error('expected a file');
    if (info.size > MAX_BYTES) throw new Error(`expected at most ${MAX_BYTES} bytes, got ${info.size}`);
    return await readFile(file, 'utf8');
  } catch (cause) {
    throw badFile(file, reasonOf(cause), cause);
  }
}

/** Reads a file as a JSON object. @throws DUltraError BAD_CHECKPOINT naming it */
export async function readJsonObject(file: string): Promise<Record<string, unknown>> {
  const text = await readTextFile(file);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw badFile(file, `not JSON (${reasonOf(cause)})`, cause);
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
  throw badFile(file, `${path.join('.')}: ${message}, got ${show(json[String(path[0])])}`);
}
