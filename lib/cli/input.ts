// What commands read: stdin, and files of text.
import { createReadStream, fstatSync } from 'node:fs';
import { addAbortSignal, type Readable } from 'node:stream';
import { decodeText } from '../index';
import { interruptSignal, UsageError } from './errors';
import { printMessage } from './output';

/** Bytes of a prompt, of messages, or of a configuration: far more than the longest row of any model. */
const MAX_BYTES = 8 * 2 ** 20;

/**
 * All text of a stream. What is no text, or too much, ends it as soon as it comes.
 * @param name for errors
 */
async function readAll(stream: Readable, name: string): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  try {
    for await (const chunk of addAbortSignal(interruptSignal, stream) as AsyncIterable<Buffer>) {
      chunks.push(chunk);
      length += chunk.length;
      if (chunk.includes(0)) break;
      if (length > MAX_BYTES)
        throw new UsageError(`${name}: expected at most ${MAX_BYTES >> 20} MiB of text, got more`);
    }
  } catch (error) {
    interruptSignal.throwIfAborted();
    throw error;
  }
  try {
    return decodeText(Buffer.concat(chunks), name);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** The text of a file. @throws UsageError where it is no text; what the system says */
export const readTextFile = (file: string): Promise<string> => readAll(createReadStream(file), file);

/** What is piped or typed in, without the newline at its end, which is the shell's. */
export async function readStdin(): Promise<string> {
  if (process.stdin.isTTY) printMessage('reading from the terminal; Ctrl-D on an empty line ends it');
  return (await readAll(process.stdin, 'stdin')).replace(/\r?\n$/, '');
}

/** Whether a shell has put a pipe or a file in place of the terminal; reading it ends. */
export function isPiped(): boolean {
  try {
    const stdin = fstatSync(0);
    return stdin.isFIFO() || stdin.isFile();
  } catch {
    return false;
  }
}
