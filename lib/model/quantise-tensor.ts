// Tensors of a file, read and quantised a piece at a time.
import type { FileHandle } from 'node:fs/promises';
import { isDUltraError } from '../errors';
import { BLOCKS, type WrittenBlockType } from '../files/blocks';
import { badFile } from '../files/json';
import type { TensorEntry } from '../files/safetensors';
import { type NativeStoredType, native } from '../native';
import { GROUP } from './quantised-folder';

/** Bytes of a tensor that are read at a time. */
const PIECE_BYTES = 64 * 2 ** 20;

/** Bytes `begin` to `end` of a file. */
export async function readRange(handle: FileHandle, begin: number, end: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(end - begin);
  for (let done = 0; done < bytes.length; ) {
    const { bytesRead } = await handle.read(bytes, done, bytes.length - done, begin + done);
    if (bytesRead === 0) throw new Error('the file became shorter while it was read');
    done += bytesRead;
  }
  return bytes;
}

/**
 * A tensor in blocks: whole ones, or their codes and scales apart where `split`.
 * @throws DUltraError BAD_CHECKPOINT for numbers that are not finite
 */
export async function quantiseTensor(
  handle: FileHandle,
  name: string,
  entry: TensorEntry,
  to: WrittenBlockType,
  split: boolean,
  signal?: AbortSignal,
): Promise<{ blocks?: Uint8Array; codes?: Uint8Array; scales?: Uint8Array }> {
  const cols = entry.shape.at(-1)!;
  const rows = entry.shape.slice(0, -1).reduce((product, n) => product * n, 1);
  const rowBytes = (entry.end - entry.begin) / rows;
  const { bytes: blockBytes } = BLOCKS[to];
  const ofRows = (bytes: number) => new Uint8Array(((rows * cols) / GROUP) * bytes);
  const out = split ? { codes: ofRows(blockBytes - 2), scales: ofRows(2) } : { blocks: ofRows(blockBytes) };
  const each = Math.max(1, Math.floor(PIECE_BYTES / rowBytes));
  for (let row = 0; row < rows; row += each) {
    signal?.throwIfAborted();
    const count = Math.min(each, rows - row);
    const begin = entry.begin + row * rowBytes;
    const bytes = await readRange(handle, begin, begin + count * rowBytes);
    try {
      const part = await native().quantiseRows({ bytes, dtype: entry.dtype as NativeStoredType, to, cols, split });
      for (const [key, whole] of Object.entries(out))
        whole.set(part[key as keyof typeof part]!, (row * whole.length) / rows);
    } catch (error) {
      if (!isDUltraError(error, 'NON_FINITE')) throw error;
      throw badFile(entry.path, `tensor ${name} holds NaN or infinity`, error);
    }
  }
  return out;
}
