// Storage types of weights, as options name them and as files and the native core do.
import type { BlockType } from './files/blocks';
import type { NativeDType } from './native';

/** Names of the API to those of safetensors. */
export const DTYPES = { float32: 'F32', bfloat16: 'BF16', float16: 'F16' } as const;

/** The type that the weights of a checkpoint have in its files; that of quantised ones as GGUF names it; "mixed" where they have several. */
export type StoredDType = keyof typeof DTYPES | 'mixed' | BlockType;

/** Bytes of an element. */
export const DTYPE_BYTES: Readonly<Record<NativeDType, number>> = { F32: 4, BF16: 2, F16: 2 };
