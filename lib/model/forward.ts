// One forward pass with its tensors, for inspection and research.

import { DUltraError, optionError } from '../errors';
import { cancellable, type NativeModel, native } from '../native';
import { checkInteger, checkKeys, checkList, checkNumber, checkSignal } from '../options';
import { show } from '../text';
import type { ModelConfig } from './config';
import { checkFirstBlocks, KvCache, type KvCacheOptions } from './kv-cache';
import { checkIds } from './prompt';

/** Input of `model.forward`. */
export interface ForwardRequest {
  /** Token ids of all rows, laid end to end (N). With a cache: of those positions that are computed. */
  ids: ArrayLike<number>;
  /** Row b is `rowOffsets[b]` to `rowOffsets[b + 1]` (B + 1). Default: one row. */
  rowOffsets?: ArrayLike<number> | undefined;
  /** Also return logits, (N, embeddingSize). Default true. */
  logits?: boolean | undefined;
  /** Also run the planner head: a timestep in 0..1 per row (B), and per position (N) whether it is a candidate. */
  planner?: { timestep: ArrayLike<number>; maskIndex: ArrayLike<number | boolean> } | undefined;
  /**
   * Keys and values are stored in it, and those of positions that are not computed are taken from it. Row b of the ids
   * is row b of the cache; a row may be empty. A planner needs one made with planner "cached".
   */
  cache?: KvCache | undefined;
  /** With a cache: the in-row position of each id (N), ascending in each row. Default: whole rows. */
  positions?: ArrayLike<number> | undefined;
  /** Without a cache: see {@link KvCacheOptions.firstBlocks}. */
  firstBlocks?: ArrayLike<number> | undefined;
  /** Stops the work. */
  signal?: AbortSignal | undefined;
}

/** Output of `model.forward`; row-major. */
export interface ForwardOutput {
  /** (N, C): hidden states after the final norm, the planner's input. */
  hidden: Float32Array;
  /** (N, embeddingSize), or null. */
  logits: Float32Array | null;
  /** (N) raw planner logits, or null. */
  plannerLogits: Float32Array | null;
}

function checkPlannerRequest(planner: NonNullable<ForwardRequest['planner']>): {
  timestep: Float32Array;
  maskIndex: Uint8Array;
} {
  checkKeys('planner', planner, ['timestep', 'maskIndex']);
  const timestep = checkList('planner.timestep', planner.timestep, (name, value) => {
    checkNumber(name, value, { min: 0, max: 1 });
    return value;
  });
  const maskIndex = checkList('planner.maskIndex', planner.maskIndex, (name, value) => {
    if (typeof value !== 'boolean') checkInteger(name, value, { min: 0, max: 1 });
    return Number(value);
  });
  return { timestep: Float32Array.from(timestep), maskIndex: Uint8Array.from(maskIndex) };
}

/** In-row positions of the ids of a pass with a cache. */
function cachedPositions(
  { rowLengths }: KvCache,
  given: ForwardRequest['positions'],
  ids: Int32Array,
  offsets: Int32Array,
): Int32Array {
  if (offsets.length !== rowLengths.length + 1)
    throw optionError(
      RangeError,
      'rowOffsets',
      `expected ${rowLengths.length + 1} numbers, as many rows as the cache has, got ${offsets.length}`,
    );
  if (given === undefined) {
    if (!rowLengths.every((length, row) => offsets[row + 1] - offsets[row] === length))
      throw optionError(
        RangeError,
        'ids',
        `expected rows of ${rowLengths.join(', ')} tokens, as the cache has, without positions`,
      );
    return Int32Array.from(rowLengths.flatMap((length) => Array.from({ length }, (_, i) => i)));
  }
  const max = Math.max(...rowLengths) - 1;
  const positions = checkList('positions', given, (name, value) => {
    checkInteger(name, value, { min: 0, max });
    return value;
  });
  if (positions.length !== ids.length)
    throw optionError(RangeError, 'positions', `expected one per id (${ids.length}), got ${positions.length}`);
  return Int32Array.from(positions);
}

/** Checks the request and runs the pass. @throws as `model.forward`. */
export async function runForward(
  model: { native: NativeModel; config: ModelConfig; source: string },
  request: ForwardRequest,
): Promise<ForwardOutput> {
  checkKeys('request', request, [
    'ids',
    'rowOffsets',
    'logits',
    'planner',
    'cache',
    'positions',
    'firstBlocks',
    'signal',
  ]);
  const { signal, planner, cache, logits = true } = request;
  if (cache !== undefined && !(cache instanceof KvCache))
    throw optionError(TypeError, 'cache', `expected what model.createCache made, got ${show(cache)}`);
  if (cache === undefined && request.positions !== undefined)
    throw optionError(TypeError, 'positions', 'expected together with a cache');
  if (cache !== undefined && request.firstBlocks !== undefined)
    throw optionError(TypeError, 'firstBlocks', 'expected none with a cache, which has its own');
  checkSignal(signal);
  signal?.throwIfAborted();
  const ids = checkIds('ids', request.ids, model.config.embeddingSize);
  const offset = (name: string, value: unknown) => {
    checkInteger(name, value, { min: 0, max: ids.length });
    return value;
  };
  const offsets = Int32Array.from(
    request.rowOffsets === undefined ? [0, ids.length] : checkList('rowOffsets', request.rowOffsets, offset),
  );
  if (planner && model.config.planner === null)
    throw new DUltraError('NO_PLANNER', `${model.source} has no planner head`);
  const nativeRequest = {
    ids,
    offsets,
    logits,
    planner: planner && checkPlannerRequest(planner),
    cache: cache?.native,
    positions: cache && cachedPositions(cache, request.positions, ids, offsets),
    firstBlocks: checkFirstBlocks(request.firstBlocks, offsets.length - 1, model.config),
  };
  const token = new (native().CancelToken)();
  return cancellable(
    signal,
    () => token.cancel(),
    () => model.native.forward(nativeRequest, token),
  );
}
