// GGUF files, the format of llama.cpp: keys and values, then tensors. Their content is untrusted: every number of a
// header is checked before use. (Parsers of npm take a header that is cut short, and check no tensor against the file.)
import { type FileHandle, open, stat } from 'node:fs/promises';
import { reasonOf, show } from '../text';
import { BLOCKS, type BlockType, isBlockType } from './blocks';
import { badFile } from './json';
import { LFS_PREFIX_BYTES, lfsPointerReason } from './lfs';

/** A value of a key. Integers beyond 2^53 are refused; a list holds values of one kind. */
export type GgufValue = string | number | boolean | GgufValue[];

/** Types that tensors may have here. */
export type GgufType = 'F32' | 'F16' | 'BF16' | BlockType;

/** One tensor of a file. */
export interface GgufTensor {
  dtype: GgufType;
  /** Outermost first, as in safetensors. */
  shape: number[];
  /** Bytes of the file. */
  begin: number;
  end: number;
}

/** A file's header. */
export interface GgufHeader {
  metadata: ReadonlyMap<string, GgufValue>;
  tensors: ReadonlyMap<string, GgufTensor>;
}

/** Types of tensors by their numbers in files. */
const TYPES: ReadonlyMap<number, string> = new Map(
  Object.entries({
    F32: 0,
    F16: 1,
    Q4_0: 2,
    Q4_1: 3,
    Q5_0: 6,
    Q5_1: 7,
    Q8_0: 8,
    Q8_1: 9,
    Q2_K: 10,
    Q3_K: 11,
    Q4_K: 12,
    Q5_K: 13,
    Q6_K: 14,
    Q8_K: 15,
    IQ2_XXS: 16,
    IQ2_XS: 17,
    IQ3_XXS: 18,
    IQ1_S: 19,
    IQ4_NL: 20,
    IQ3_S: 21,
    IQ2_S: 22,
    IQ4_XS: 23,
    I8: 24,
    I16: 25,
    I32: 26,
    I64: 27,
    F64: 28,
    IQ1_M: 29,
    BF16: 30,
    TQ1_0: 34,
    TQ2_0: 35,
    MXFP4: 39,
    NVFP4: 40,
  }).map(([name, id]) => [id, name]),
);
const PLAIN_BYTES: Readonly<Record<string, number>> = { F32: 4, F16: 2, BF16: 2 };

/** The type of tensors with this number; null where they are not computed with. @param id as in a file */
const typeOf = (id: number): GgufType | null => {
  const name = TYPES.get(id) ?? '';
  return isBlockType(name) || Object.hasOwn(PLAIN_BYTES, name) ? (name as GgufType) : null;
};

/** The number of a type in files. */
export const ggufTypeId = (type: GgufType): number => [...TYPES].find(([, name]) => name === type)![0];

/** More than any vocabulary needs, and small enough to hold. */
const MAX_HEADER_BYTES = 512 * 2 ** 20;
const FIRST_BYTES = 2 ** 20;
const MAX_DIMENSIONS = 4;
/** Where a file does not say otherwise: tensors begin at multiples of so many bytes. */
export const GGUF_ALIGNMENT = 32;
const MAGIC = 0x46554747;

/** The header needs more bytes than were read. */
class NeedMore extends Error {}

/** Reads a header from the start of a file. */
class Reader {
  at = 0;
  constructor(
    readonly bytes: Buffer,
    readonly fail: (message: string) => Error,
  ) {}

  take(count: number): number {
    const from = this.at;
    if (count > this.bytes.length - from) throw new NeedMore();
    this.at += count;
    return from;
  }
  u32(): number {
    return this.bytes.readUInt32LE(this.take(4));
  }
  /** An integer of 64 bits that is a safe one. */
  index(what: string): number {
    const value = this.bytes.readBigUInt64LE(this.take(8));
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw this.fail(`${what}: expected at most 2^53, got ${value}`);
    return Number(value);
  }
  text(what: string): string {
    const length = this.index(`${what}: length`);
    if (length > MAX_HEADER_BYTES) throw this.fail(`${what}: its length is ${length}`);
    const from = this.take(length);
    // Texts that are not UTF-8 occur as tokens: their bytes count for nothing but the tokens' ids.
    return this.bytes.toString('utf8', from, from + length);
  }
  value(type: number, key: string, isInside = false): GgufValue {
    const { bytes } = this;
    switch (type) {
      case 0:
        return bytes.readUInt8(this.take(1));
      case 1:
        return bytes.readInt8(this.take(1));
      case 2:
        return bytes.readUInt16LE(this.take(2));
      case 3:
        return bytes.readInt16LE(this.take(2));
      case 4:
        return bytes.readUInt32LE(this.take(4));
      case 5:
        return bytes.readInt32LE(this.take(4));
      case 6:
        return bytes.readFloatLE(this.take(4));
      case 7: {
        const value = bytes.readUInt8(this.take(1));
        if (value > 1) throw this.fail(`${key}: expected true or false, got ${value}`);
        return value === 1;
      }
      case 8:
        return this.text(key);
      case 10:
        return this.index(key);
      case 11: {
        const value = bytes.readBigInt64LE(this.take(8));
        if (value > BigInt(Number.MAX_SAFE_INTEGER) || value < -BigInt(Number.MAX_SAFE_INTEGER))
          throw this.fail(`${key}: expected at most 2^53, got ${value}`);
        return Number(value);
      }
      case 12:
        return bytes.readDoubleLE(this.take(8));
      case 9: {
        if (isInside) throw this.fail(`${key}: expected no lists in a list`);
        const item = this.u32();
        const count = this.index(`${key}: length`);
        if (count > MAX_HEADER_BYTES) throw this.fail(`${key}: its length is ${count}`);
        const list: GgufValue[] = [];
        for (let i = 0; i < count; i++) list.push(this.value(item, key, true));
        return list;
      }
      default:
        throw this.fail(`${key}: expected a type of values from 0 to 12, got ${type}`);
    }
  }
}

/** Bytes of a tensor; null where rows are not whole blocks. */
export function ggufBytes(dtype: GgufType, shape: readonly number[]): number | null {
  const count = shape.reduce((product, n) => product * n, 1);
  if (!isBlockType(dtype)) return count * PLAIN_BYTES[dtype];
  const { values, bytes } = BLOCKS[dtype];
  return shape.at(-1)! % values === 0 ? (count / values) * bytes : null;
}

/** Keys, values and tensors out of the bytes that a file begins with. @throws NeedMore where the header is longer */
function parse(bytes: Buffer, fileBytes: number, fail: (message: string) => Error): GgufHeader {
  const reader = new Reader(bytes, fail);
  if (reader.u32() !== MAGIC) throw fail('expected a GGUF file, got other bytes at its start');
  const version = reader.u32();
  if (version !== 2 && version !== 3) {
    const swapped = version > 0xffff;
    throw fail(`expected version 2 or 3 of GGUF, got ${swapped ? 'a file of big-endian numbers' : version}`);
  }
  const tensorCount = reader.index('the number of tensors');
  const keyCount = reader.index('the number of keys');
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < keyCount; i++) {
    const key = reader.text('a key');
    if (metadata.has(key)) throw fail(`${show(key)}: the key is there twice`);
    metadata.set(key, reader.value(reader.u32(), show(key)));
  }
  const alignment = metadata.get('general.alignment') ?? GGUF_ALIGNMENT;
  if (
    typeof alignment !== 'number' ||
    !(alignment >= 1 && alignment <= 2 ** 20 && Number.isInteger(Math.log2(alignment)))
  )
    throw fail(`general.alignment: expected a power of two, got ${show(alignment)}`);
  const tensors = new Map<string, GgufTensor>();
  const offsets: [name: string, offset: number][] = [];
  for (let i = 0; i < tensorCount; i++) {
    const name = reader.text('the name of a tensor');
    const at = `tensor ${show(name)}`;
    if (tensors.has(name)) throw fail(`${at} is there twice`);
    const dimensions = reader.u32();
    if (dimensions < 1 || dimensions > MAX_DIMENSIONS)
      throw fail(`${at}: expected 1 to ${MAX_DIMENSIONS} dimensions, got ${dimensions}`);
    const shape = Array.from({ length: dimensions }, () => reader.index(`${at}: its shape`)).reverse();
    const id = reader.u32();
    const offset = reader.index(`${at}: its offset`);
    const dtype = typeOf(id);
    if (dtype === null)
      throw fail(
        `${at}: expected F32, F16, BF16, ${Object.keys(BLOCKS).join(', ')}, got ${TYPES.get(id) ?? `type ${id}`}`,
      );
    if (shape.includes(0)) throw fail(`${at}: expected numbers, got the shape ${show(shape)}`);
    const size = ggufBytes(dtype, shape);
    if (size === null)
      throw fail(
        `${at}: expected rows of a multiple of ${BLOCKS[dtype as BlockType].values} numbers, got ${show(shape)}`,
      );
    if (offset % alignment !== 0) throw fail(`${at}: expected an offset of a multiple of ${alignment}, got ${offset}`);
    offsets.push([name, offset]);
    tensors.set(name, { dtype, shape, begin: offset, end: offset + size });
  }
  const dataStart = Math.ceil(reader.at / alignment) * alignment;
  for (const [name, tensor] of tensors) {
    tensor.begin += dataStart;
    tensor.end += dataStart;
    // A sum beyond 2^53 is rounded, and still beyond any file.
    if (!(tensor.end <= fileBytes))
      throw fail(
        `tensor ${show(name)}: ends at byte ${tensor.end} of ${fileBytes}: the file is truncated or its header is wrong`,
      );
  }
  offsets.sort(([, a], [, b]) => a - b);
  for (let i = 1; i < offsets.length; i++) {
    const [before, name] = [offsets[i - 1][0], offsets[i][0]];
    if (tensors.get(name)!.begin < tensors.get(before)!.end)
      throw fail(`tensors ${show(before)} and ${show(name)} overlap`);
  }
  return { metadata, tensors };
}

async function readFully(handle: FileHandle, target: Uint8Array, from: number): Promise<number> {
  let done = from;
  while (done < target.length) {
    const { bytesRead } = await handle.read(target, done, target.length - done, done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}

/** Reads the header of a GGUF file. @throws DUltraError BAD_CHECKPOINT naming what was expected and what came */
export async function readGguf(file: string): Promise<GgufHeader> {
  const fail = (message: string) => badFile(file, message);
  let handle: FileHandle;
  try {
    // Opening a pipe would block until it has a writer.
    if (!(await stat(file)).isFile()) throw new Error('expected a file');
    handle = await open(file, 'r');
  } catch (cause) {
    throw badFile(file, reasonOf(cause), cause);
  }
  try {
    const { size } = await handle.stat();
    let bytes = Buffer.alloc(0);
    for (let wanted = FIRST_BYTES; ; wanted *= 4) {
      const longer = Buffer.alloc(Math.min(wanted, size, MAX_HEADER_BYTES));
      bytes.copy(longer);
      if ((await readFully(handle, longer, bytes.length)) !== longer.length)
        throw fail('the file became shorter while it was read');
      bytes = longer;
      const pointer = lfsPointerReason(bytes.subarray(0, LFS_PREFIX_BYTES));
      if (pointer) throw fail(pointer);
      try {
        return parse(bytes, size, fail);
      } catch (error) {
        if (!(error instanceof NeedMore)) throw error;
        if (bytes.length === size) throw fail(`its header is longer than the file of ${size} bytes: truncated?`);
        if (bytes.length === MAX_HEADER_BYTES) throw fail(`its header is longer than ${MAX_HEADER_BYTES} bytes`);
      }
    }
  } finally {
    await handle.close();
  }
}
