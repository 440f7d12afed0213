// Types of quantised numbers as GGUF names them: blocks of `values` consecutive numbers of a row in `bytes` bytes. What
// is in a block is in native/ops/blocks.inl.

/** A type of quantised numbers. */
export type BlockType =
  | 'Q8_0'
  | 'Q4_0'
  | 'Q4_1'
  | 'Q5_0'
  | 'Q5_1'
  | 'IQ4_NL'
  | 'Q2_K'
  | 'Q3_K'
  | 'Q4_K'
  | 'Q5_K'
  | 'Q6_K';

/** Those that are written here: a block of 32 is a scale and then its codes. */
export type WrittenBlockType = 'Q8_0' | 'Q4_0' | 'IQ4_NL';

/** Numbers and bytes of a block. */
export const BLOCKS: Readonly<Record<BlockType, { values: number; bytes: number }>> = {
  Q8_0: { values: 32, bytes: 34 },
  Q4_0: { values: 32, bytes: 18 },
  Q4_1: { values: 32, bytes: 20 },
  Q5_0: { values: 32, bytes: 22 },
  Q5_1: { values: 32, bytes: 24 },
  IQ4_NL: { values: 32, bytes: 18 },
  Q2_K: { values: 256, bytes: 84 },
  Q3_K: { values: 256, bytes: 110 },
  Q4_K: { values: 256, bytes: 144 },
  Q5_K: { values: 256, bytes: 176 },
  Q6_K: { values: 256, bytes: 210 },
};

/** Whether a tensor's type is one of blocks. */
export const isBlockType = (dtype: string): dtype is BlockType => Object.hasOwn(BLOCKS, dtype);
