// Caches of keys and values: options, memory, and the public handle.
import { DUltraError, optionError } from '../errors';
import { type NativeCache, type NativeCacheOptions, type NativeModel, native } from '../native';
import { checkChoice, checkInteger, checkKeys, checkList } from '../options';
import { formatGiB } from '../text';
import { attendedBlock } from './blocks';
import type { CausalConfig, ModelConfig } from './config';
import { availableMemory } from './memory';

/** Options common to all caches. */
export interface CacheStorage {
  /**
   * Storage type of keys and values. "float32" (default) stores them as computed, which is bf16 on a GPU that computes
   * in bf16; "bfloat16" rounds them and takes half the memory of fp32.
   */
  dtype?: 'float32' | 'bfloat16' | undefined;
  /**
   * What a planner sees of positions that a pass does not compute. "fresh": the planner's blocks run over the whole row
   * in every pass, on the hidden states that the base model last computed for each position, with the current timestep.
   * "cached": the keys and values of the planner's blocks are cached too. Default "cached".
   */
  planner?: 'fresh' | 'cached' | undefined;
}

/** Options of `model.createCache` and `model.cacheBytes`. */
export interface KvCacheOptions extends Pick<CacheStorage, 'dtype'> {
  /**
   * What is kept for a planner head: nothing ("none", default), keys and values of its blocks ("cached"), or the hidden
   * states that they read ("fresh"); see {@link CacheStorage}.
   */
  planner?: 'none' | 'cached' | 'fresh' | undefined;
  /**
   * Of a model that attends by blocks: the length of each row's first block, 1 to that of its blocks. Default: whole
   * ones. A model that counts blocks from the completion (`config.blocksFrom`) decodes rows whose first is the rest of
   * the prompt's length.
   */
  firstBlocks?: ArrayLike<number> | undefined;
}

/** Checks lengths of first blocks. @throws TypeError, RangeError naming the option, what was expected and what came. */
export function checkFirstBlocks(
  given: ArrayLike<number> | undefined,
  rows: number,
  config: ModelConfig,
): Int32Array | undefined {
  if (given === undefined) return undefined;
  const length = attendedBlock(config);
  if (length === null)
    throw optionError(TypeError, 'firstBlocks', 'expected none: in this model every position sees all');
  const list = checkList('firstBlocks', given, (name, value) => {
    checkInteger(name, value, { min: 1, max: length });
    return value;
  });
  if (list.length !== rows)
    throw optionError(RangeError, 'firstBlocks', `expected one per row (${rows}), got ${list.length}`);
  return Int32Array.from(list);
}

const STORED = { none: 'none', cached: 'blocks', fresh: 'hidden' } as const;

/** @throws TypeError, RangeError naming the option; DUltraError NO_PLANNER. */
export function resolveCacheOptions(options: KvCacheOptions, config: ModelConfig): NativeCacheOptions {
  checkKeys('options', options, ['dtype', 'planner', 'firstBlocks']);
  const { dtype = 'float32', planner = 'none' } = options;
  checkChoice('dtype', dtype, ['float32', 'bfloat16'] as const);
  checkChoice('planner', planner, ['none', 'cached', 'fresh'] as const);
  if (planner !== 'none' && !config.planner)
    throw new DUltraError('NO_PLANNER', 'planner: this checkpoint has no planner head');
  return { dtype: dtype === 'bfloat16' ? 'BF16' : 'F32', planner: STORED[planner] };
}

/**
 * Allocates a cache after comparing what it needs with what is free.
 * @throws DUltraError OUT_OF_MEMORY stating both.
 */
export async function allocateCache(
  model: NativeModel,
  config: ModelConfig | CausalConfig,
  offsets: Int32Array,
  options: NativeCacheOptions,
): Promise<NativeCache> {
  const tokens = offsets[offsets.length - 1];
  const needed = native().cacheBytes(config, tokens, options);
  const available = availableMemory();
  if (needed > available) {
    const rows = offsets.length === 2 ? '1 row' : `${offsets.length - 1} rows`;
    const hint = options.dtype === 'F32' ? '; dtype: "bfloat16" needs half of what fp32 keys and values do' : '';
    throw new DUltraError(
      'OUT_OF_MEMORY',
      `cache: keys and values of ${rows}, ${tokens} tokens in all, need ${formatGiB(needed)}, ${formatGiB(available)} are free${hint}`,
    );
  }
  return model.createCache(offsets, options);
}

/**
 * Keys and values of some rows, for `model.forward`. Made by `model.createCache`; free it with `dispose()` or
 * `using`.
 */
export class KvCache {
  readonly #native: NativeCache;
  readonly #config: ModelConfig;
  /** Positions of each row. */
  readonly rowLengths: readonly number[];
  /** Allocated bytes. */
  readonly bytes: number;

  /** @internal */
  constructor(cache: NativeCache, config: ModelConfig, rowLengths: readonly number[]) {
    this.#native = cache;
    this.#config = config;
    this.rowLengths = rowLengths;
    this.bytes = cache.bytes();
  }

  /** @internal */
  get native(): NativeCache {
    return this.#native;
  }

  /**
   * Cached keys (after the rotary embedding) and values of a layer and row, (length, nKvHeads, headDim) each. Layers
   * are the base model's, then those of the planner's blocks. Positions that no pass has computed are undefined.
   * @throws RangeError for a layer or row that does not exist; DUltraError DISPOSED.
   */
  async read(layer: number, row = 0): Promise<{ keys: Float32Array; values: Float32Array }> {
    const both = await this.#native.read(layer, row);
    const width = this.#config.nKvHeads * this.#config.headDim;
    const length = both.length / (2 * width);
    const keys = new Float32Array(length * width);
    const values = new Float32Array(length * width);
    for (let i = 0; i < length; i++) {
      keys.set(both.subarray(2 * i * width, (2 * i + 1) * width), i * width);
      values.set(both.subarray((2 * i + 1) * width, (2 * i + 2) * width), i * width);
    }
    return { keys, values };
  }

  /** Frees the memory; work under way finishes first. */
  dispose(): void {
    this.#native.dispose();
  }

  /** `dispose()` at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** `dispose()` at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }
}
