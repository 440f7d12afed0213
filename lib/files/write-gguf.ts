// Writes GGUF files, one tensor in memory at a time.
import { optionError } from '../errors';
import { writeAtomically } from './atomic';
import { GGUF_ALIGNMENT, type GgufType, ggufBytes, ggufTypeId } from './gguf';

/** A key of a GGUF file with its type and value. */
export type GgufKey = readonly [key: string, ...value: GgufTyped];
type GgufTyped =
  | readonly [type: 'u32' | 'i32' | 'f32', value: number]
  | readonly [type: 'bool', value: boolean]
  | readonly [type: 'string', value: string]
  | readonly [type: 'strings', value: readonly string[]]
  | readonly [type: 'i32s', value: readonly number[]];

/** Name, type and shape of a tensor that is to be written. */
export interface GgufTensorHeader {
  name: string;
  dtype: GgufType;
  /** Outermost first. */
  shape: readonly number[];
}

const VERSION = 3;

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
const u64 = (value: number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};
const f32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
};
function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}

/** A value's type and bytes. */
function typed([type, value]: GgufTyped): Buffer {
  switch (type) {
    case 'u32':
      return Buffer.concat([u32(4), u32(value)]);
    case 'i32':
      return Buffer.concat([u32(5), u32(value >>> 0)]);
    case 'f32':
      return Buffer.concat([u32(6), f32(value)]);
    case 'bool':
      return Buffer.concat([u32(7), Buffer.from([value ? 1 : 0])]);
    case 'string':
      return Buffer.concat([u32(8), text(value)]);
    case 'strings':
      return Buffer.concat([u32(9), u32(8), u64(value.length), ...value.map(text)]);
    case 'i32s':
      return Buffer.concat([u32(9), u32(5), u64(value.length), ...value.map((item) => u32(item >>> 0))]);
  }
}

const padded = (bytes: number): number => Math.ceil(bytes / GGUF_ALIGNMENT) * GGUF_ALIGNMENT;

/**
 * Writes a GGUF file atomically. @param produce the bytes of a tensor, asked for in turn
 * @throws RangeError for rows that are not whole blocks, and for bytes that are not a tensor's
 */
export async function writeGguf(
  file: string,
  keys: readonly GgufKey[],
  tensors: readonly GgufTensorHeader[],
  produce: (name: string) => Promise<Uint8Array>,
): Promise<void> {
  const sizes = tensors.map(({ name, dtype, shape }) => {
    const bytes = ggufBytes(dtype, shape);
    if (bytes === null) throw optionError(RangeError, name, `expected rows of whole blocks of ${dtype}`);
    return bytes;
  });
  let at = 0;
  const infos = tensors.map(({ name, dtype, shape }, i) => {
    const offset = at;
    at += padded(sizes[i]);
    return Buffer.concat([
      text(name),
      u32(shape.length),
      ...[...shape].reverse().map(u64),
      u32(ggufTypeId(dtype)),
      u64(offset),
    ]);
  });
  const header = Buffer.concat([
    Buffer.from('GGUF'),
    u32(VERSION),
    u64(tensors.length),
    u64(keys.length),
    ...keys.map(([key, ...value]) => Buffer.concat([text(key), typed(value as GgufTyped)])),
    ...infos,
  ]);
  await writeAtomically(file, async (handle) => {
    await handle.writeFile(Buffer.concat([header, Buffer.alloc(padded(header.length) - header.length)]));
    for (let i = 0; i < tensors.length; i++) {
      const bytes = await produce(tensors[i].name);
      if (bytes.length !== sizes[i])
        throw optionError(RangeError, tensors[i].name, `expected ${sizes[i]} bytes, got ${bytes.length}`);
      await handle.writeFile(bytes);
      await handle.writeFile(Buffer.alloc(padded(bytes.length) - bytes.length));
    }
  });
}
