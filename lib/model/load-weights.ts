// From a folder or a hub id to weights in memory.
import os from 'node:os';
import path from 'node:path';
import { DTYPES, type StoredDType } from '../dtypes';
import { DUltraError, isDUltraError, optionError } from '../errors';
import { BLOCKS, isBlockType } from '../files/blocks';
import type { TensorEntry } from '../files/safetensors';
import {
  cancellable,
  type NativeDType,
  type NativeLoadRequest,
  type NativeModel,
  type NativeModelConfig,
  type NativeStoredType,
  type NativeTensorRef,
  native,
} from '../native';
import { checkChoice, checkInteger, checkKeys, checkSignal } from '../options';
import { formatGiB, show } from '../text';
import { readConfigJson } from './config';
import { hintsOf } from './config-hints';
import type { ConfigHints, ParsedCheckpoint } from './families';
import { type GenerationFile, readGenerationFile, type TextEnds, withEndsOf } from './generation-file';
import { gptqConfigOf } from './gptq';
import type { TokenizerSource } from './load-tokenizer';
import { availableMemory } from './memory';
import { openCheckpoint } from './open-checkpoint';
import { readPlannerHead } from './planner-head';
import { isQuantised, QUANTISE, withoutQuantisation } from './quantised-folder';
import { resolveSource } from './source';
import { EMBEDDING, isHeldWide, matchTensors, storedBytes } from './tensors';

/** Progress of {@link loadModel}. */
export interface LoadProgress {
  /**
   * "download": a file of a hub id arrives. "weights": tensors go from their files into the memory that the model
   * computes in.
   */
  stage: 'download' | 'weights';
  /** "download": the file's name in the repository. */
  file?: string | undefined;
  /** Bytes loaded so far: of the file (including an earlier, interrupted download), or of all tensors. */
  loadedBytes: number;
  /** Bytes of the file, or of all tensors. */
  totalBytes: number;
}

/** Options of {@link loadModel}. */
export interface LoadModelOptions {
  /**
   * "auto" (default), "cpu", "cuda" (the first) or "cuda:N". "auto" takes the first CUDA device, else the CPU; where
   * there is an NVIDIA driver but no device that can be used, or the model does not fit, one process warning says why.
   */
  device?: string | undefined;
  /**
   * How weights are held: as the file has them ("auto", default), or converted. Of quantised weights "auto" keeps the
   * blocks of the file, mapped, on the CPU; a GPU holds their exact numbers, in bfloat16 where it computes in it.
   */
  dtype?: 'auto' | 'float32' | 'bfloat16' | 'float16' | undefined;
  /**
   * Arithmetic of matrix products: "float32", or "bfloat16" with fp32 accumulation (CUDA, CPUs with AVX-512 BF16),
   * which implies bf16 weights; or "int8" (CPU), which rounds what quantised weights are multiplied with to 8 bits, with
   * a scale for every 32 numbers, and is "float32" elsewhere. Default: "float32"; on CUDA "bfloat16" where all weights
   * are held as bf16 or are quantised.
   */
  compute?: 'float32' | 'bfloat16' | 'int8' | undefined;
  /**
   * Quantises the matrices as they are loaded: "q8" to 8 bits (Q8_0 of GGUF, 8.5 bits with the scales of 32
   * numbers), "q4" to 4 bits (IQ4_NL, 4.5 bits) with the embedding table and the output head in 8. The planner head,
   * norms, biases and routers of experts stay as they are, and so do tensors that the file has quantised and matrices
   * whose rows are no multiple of 32 numbers. Default: none.
   */
  quantize?: 'q8' | 'q4' | undefined;
  /** CPU threads. Default: all cores. Results do not depend on it. */
  threads?: number | undefined;
  /** CPU instruction set, out of `systemInfo().cpuIsas`; for tests and measurements. Default: the best. */
  isa?: string | undefined;
  /** Branch, tag or commit of a hub id. Default "main". */
  revision?: string | undefined;
  /** The id of the mask token, where neither config.json nor the model's family names it. Default: the tokenizer's. */
  maskTokenId?: number | undefined;
  /**
   * Positions of a block that a block diffusion model attends by, where its config.json does not name them or the
   * checkpoint is of another length. Default: config.json's, else the family's.
   */
  blockLength?: number | undefined;
  /**
   * Folder of a planner head that the checkpoint lacks, as `createPlanner` and `model.savePlanner` write it. Default:
   * the checkpoint's own, if it has one.
   */
  planner?: string | undefined;
  /** Stops downloading and loading. */
  signal?: AbortSignal | undefined;
  /**
   * Called as a hub id's files arrive (when one begins, about ten times a second, and when it is complete), and then as
   * the weights are loaded: at most ten times a second, and at last with all of them. An error thrown here stops the
   * call and rejects it.
   */
  onProgress?: ((progress: LoadProgress) => void) | undefined;
}

const PROGRESS_INTERVAL_MS = 100;
/** Weights plus packing and a first workspace, over the weights alone. */
const MEMORY_FACTOR = 1.1;

/** What a tensor of the native table is held as on the CPU: as its file has it, converted, or in blocks. */
export function heldType(
  { name, shape, dtype }: Pick<NativeTensorRef, 'name' | 'shape' | 'dtype'>,
  storage: NativeDType | 'auto',
  blocks: NativeLoadRequest['blocks'],
): NativeStoredType {
  if (isBlockType(dtype)) return blocks === 'decode' ? (storage === 'auto' ? 'F32' : storage) : dtype;
  const isQuantised =
    blocks !== 'keep' &&
    blocks !== 'decode' &&
    // The planner head is not.
    name.startsWith('model.') &&
    !isHeldWide({ name, shape }) &&
    shape[1] % BLOCKS[blocks].values === 0;
  // The table and the head have eight bits in any case.
  if (isQuantised) return name.includes('.blocks.') ? blocks : 'Q8_0';
  return storage === 'auto' ? dtype : storage;
}

/** @throws DUltraError OUT_OF_MEMORY where the weights would not fit into what is free. */
function checkMemory(
  tensors: readonly NativeTensorRef[],
  storage: NativeDType | 'auto',
  blocks: NativeLoadRequest['blocks'],
  isTied: boolean,
  source: string,
): void {
  let bytes = 0;
  for (const tensor of tensors) {
    const { name, dtype, shape, scalesFile = -1, gptq } = tensor;
    const numbers = shape.reduce((product, n) => product * n, 1);
    const held = heldType(tensor, storage, blocks);
    // Whole blocks stay in their file, whose pages the system can take back.
    if (isBlockType(dtype) && held === dtype && scalesFile < 0 && !gptq) continue;
    const size = storedBytes(held, numbers);
    // A tied table is held twice: as rows to look up, and packed as the output head.
    bytes += isTied && name === EMBEDDING ? 2 * size : size;
  }
  const isNarrow =
    storage === 'BF16' || storage === 'F16' || (storage === 'auto' && tensors.every(({ dtype }) => dtype !== 'F32'));
  checkFree(bytes, source, '', isNarrow ? '' : '; dtype: "bfloat16" needs half of what fp32 weights do');
}

/** @throws DUltraError OUT_OF_MEMORY where weights of so many bytes do not fit into what is free */
function checkFree(bytes: number, source: string, least: string, hint: string): void {
  const needed = bytes * MEMORY_FACTOR;
  const available = availableMemory();
  if (needed > available)
    throw new DUltraError(
      'OUT_OF_MEMORY',
      `${source}: loading needs ${least}${formatGiB(needed)}, ${formatGiB(available)} are free${hint}`,
    );
}

let warned = false;

/** Says once per process that "auto" computes on the CPU although the CUDA backend is there. */
function warnOfCpu(reason: string): void {
  if (!warned)
    process.emitWarning(`computing on the CPU: ${reason}`, { type: 'DultraWarning', code: 'DULTRA_NO_CUDA' });
  warned = true;
}

/** The device of a name from {@link LoadModelOptions}. A CPU instruction set asks for the CPU. */
function chooseDevice(device: string, isa: string): string {
  if (device === 'cuda') return 'cuda:0';
  if (device !== 'auto') return device;
  if (isa !== '') return 'cpu';
  const { names, built, reason } = native().cudaDevices();
  if (names.length > 0) return 'cuda:0';
  // Warn only where there is a driver; without one the CPU is no surprise.
  if (built && !reason.startsWith('no NVIDIA driver')) warnOfCpu(reason);
  return 'cpu';
}

/** Loads weights. Progress is polled, so that the native job never waits for JavaScript. */
async function loadReporting(
  request: NativeLoadRequest,
  signal: AbortSignal | undefined,
  onProgress: LoadModelOptions['onProgress'],
): Promise<NativeModel> {
  const token = new (native().CancelToken)();
  let failure: { error: unknown } | null = null;
  let reported = -1;
  const report = () => {
    const { loadedBytes, totalBytes } = token.progress();
    if (!onProgress || failure || totalBytes === 0 || loadedBytes === reported) return;
    reported = loadedBytes;
    try {
      onProgress({ stage: 'weights', loadedBytes, totalBytes });
    } catch (error) {
      failure = { error };
      token.cancel();
    }
  };
  const timer = onProgress && setInterval(report, PROGRESS_INTERVAL_MS);
  try {
    const loaded = await cancellable(
      signal,
      () => token.cancel(),
      () => native().loadModel(request, token),
    );
    report();
    if (failure) loaded.dispose();
    else return loaded;
  } catch (error) {
    if (!failure) throw error;
  } finally {
    clearInterval(timer);
  }
  throw (failure as { error: unknown }).error;
}

/** {@link LoadModelOptions} checked, with defaults. */
function resolveOptions(options: LoadModelOptions) {
  checkKeys('options', options, [
    'device',
    'dtype',
    'compute',
    'quantize',
    'threads',
    'isa',
    'revision',
    'maskTokenId',
    'blockLength',
    'planner',
    'signal',
    'onProgress',
  ]);
  const { device = 'auto', dtype = 'auto', compute, threads = os.availableParallelism(), isa = '' } = options;
  if (typeof device !== 'string' || !/^(auto|cpu|cuda(:\d+)?)$/.test(device))
    throw optionError(
      RangeError,
      'device',
      `expected "auto", "cpu", "cuda" or "cuda:N", got ${JSON.stringify(device)}`,
    );
  checkChoice('dtype', dtype, ['auto', 'float32', 'bfloat16', 'float16'] as const);
  if (compute !== undefined) checkChoice('compute', compute, ['float32', 'bfloat16', 'int8'] as const);
  const { quantize } = options;
  if (quantize !== undefined) checkChoice('quantize', quantize, ['q8', 'q4'] as const);
  if (quantize !== undefined && dtype !== 'auto')
    throw optionError(RangeError, 'dtype', `expected "auto" with quantize: ${show(quantize)}, got ${show(dtype)}`);
  if (compute === 'int8' && device.startsWith('cuda'))
    throw optionError(
      RangeError,
      'compute',
      `expected none on ${show(device)}, got ${show(compute)}, which the CPU computes`,
    );
  checkInteger('threads', threads, { min: 1, max: 1024 });
  const { maskTokenId, blockLength } = options;
  if (maskTokenId !== undefined) checkInteger('maskTokenId', maskTokenId, { min: 0, max: 2 ** 30 });
  if (blockLength !== undefined) checkInteger('blockLength', blockLength, { min: 1, max: 2 ** 20 });
  if (typeof isa !== 'string') throw optionError(TypeError, 'isa', `expected a string, got ${show(isa)}`);
  const { revision, planner, onProgress, signal } = options;
  if (planner !== undefined && typeof planner !== 'string')
    throw optionError(TypeError, 'planner', `expected the folder of a planner head, got ${show(planner)}`);
  if (revision !== undefined && typeof revision !== 'string')
    throw optionError(TypeError, 'revision', `expected a string, got ${show(revision)}`);
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw optionError(TypeError, 'onProgress', `expected a function, got ${show(onProgress)}`);
  checkSignal(signal);
  const storage: NativeDType | 'auto' = compute === 'bfloat16' ? 'BF16' : dtype === 'auto' ? 'auto' : DTYPES[dtype];
  const blocks = quantize !== undefined ? QUANTISE[quantize] : dtype === 'auto' ? 'keep' : 'decode';
  // What only the CPU computes asks for it.
  const on = device === 'auto' && compute === 'int8' ? 'cpu' : device;
  return { device: on, storage, compute, blocks, threads, isa, signal, onProgress } as const;
}

/** Tries the chosen device; "auto" falls back to the CPU where a GPU has too little memory or cannot be used. */
async function loadOn(
  { device, isa }: { device: string; isa: string },
  load: (on: string) => Promise<NativeModel>,
): Promise<NativeModel> {
  const chosen = chooseDevice(device, isa);
  try {
    return await load(chosen);
  } catch (error) {
    const isLacking = isDUltraError(error, 'OUT_OF_MEMORY') || isDUltraError(error, 'DEVICE_UNAVAILABLE');
    if (device !== 'auto' || chosen === 'cpu' || !isLacking) throw error;
    warnOfCpu(error.message);
    return load('cpu');
  }
}

/** A kind of models: how their checkpoints are read. */
export interface ModelKind<Config, Files> {
  /** The config, and the names of tensors. */
  parse(
    json: Record<string, unknown>,
    file: string,
    tensors: Map<string, TensorEntry>,
    hints: ConfigHints,
  ): ParsedCheckpoint<Config>;
  /** Reads the files beside the weights, such as the tokenizer. */
  readFiles(tokenizer: TokenizerSource, config: Config, generation: GenerationFile): Promise<Files>;
}

/** The type that a checkpoint's weights have in their files; vectors beside quantised matrices do not count. */
function storedDtypeOf(tensors: readonly NativeTensorRef[]): StoredDType {
  const blocks = new Set(tensors.map(({ dtype }) => dtype).filter(isBlockType));
  if (blocks.size > 0) {
    const [only] = blocks;
    const isOnly = blocks.size === 1 && tensors.every((it) => it.dtype === only || isHeldWide(it));
    return isOnly ? only : 'mixed';
  }
  const types = new Set(tensors.map(({ dtype }) => dtype as NativeDType));
  const names = Object.entries(DTYPES).filter(([, type]) => types.has(type));
  return names.length === 1 ? (names[0][0] as StoredDType) : 'mixed';
}

/** A checkpoint whose weights are loaded. */
export interface LoadedCheckpoint<Config, Files> {
  folder: string;
  storedDtype: StoredDType;
  json: Record<string, unknown>;
  config: Config;
  files: Files;
  native: NativeModel;
}

/**
 * Whether a model of the hub can be run, by its files without the weights. @param name of the model, for messages
 * @throws DUltraError BAD_CHECKPOINT
 */
export async function checkRunnable<Config extends TextEnds, Files>(
  { parse, readFiles }: ModelKind<Config, Files>,
  folder: string,
  name: string,
  options: Pick<LoadModelOptions, 'maskTokenId' | 'blockLength'> = {},
): Promise<void> {
  try {
    const { file, json: written } = await readConfigJson(folder);
    const isRead = isQuantised(written) || (await gptqConfigOf(folder, written, file)) !== null;
    const json = isRead ? withoutQuantisation(written) : written;
    // Whether there is a planner is not known yet.
    const { config } = parse(json, file, new Map(), await hintsOf(folder, json, options));
    const generation = await readGenerationFile(folder, { file, json });
    await readFiles(folder, withEndsOf(config, generation), generation);
  } catch (error) {
    if (!isDUltraError(error, 'BAD_CHECKPOINT')) throw error;
    // The user knows nothing of folders in the cache.
    const message = error.message.replaceAll(`${folder}${path.sep}`, `${name}: `);
    throw new DUltraError('BAD_CHECKPOINT', message, { cause: error });
  }
}

/** Puts a planner head on a checkpoint: its file and tensors are added to those of the base. */
async function withPlanner<Config extends NativeModelConfig>(
  parsed: ParsedCheckpoint<Config>,
  { weights, entries, folder }: { weights: string[]; entries: Map<string, TensorEntry>; folder: string },
  plannerFolder: string | undefined,
): Promise<ParsedCheckpoint<Config>> {
  if (plannerFolder === undefined) return parsed;
  if (parsed.config.mask === 'causal')
    throw optionError(RangeError, 'planner', 'expected none for an autoregressive model, which unmasks nothing');
  if (parsed.config.planner)
    throw optionError(RangeError, 'planner', `expected none for ${folder}, which has a planner head of its own`);
  const head = await readPlannerHead(plannerFolder, weights.length);
  weights.push(head.file);
  for (const [name, entry] of head.entries) entries.set(name, entry);
  return { ...parsed, config: { ...parsed.config, planner: head.planner } };
}

/** Checks options, finds the folder, reads config, headers and the files beside them, and loads the weights. */
export async function loadWeights<Config extends NativeModelConfig & TextEnds, Files>(
  source: string | undefined,
  options: LoadModelOptions,
  kind: ModelKind<Config, Files>,
): Promise<LoadedCheckpoint<Config, Files>> {
  const { device, storage, compute, blocks, threads, isa, signal, onProgress } = resolveOptions(options);
  signal?.throwIfAborted();
  const from = await resolveSource(source, options, {
    canRun: (snapshot, name) => checkRunnable(kind, snapshot, name, options),
    fits: (bytes, name) => {
      // Weights of a narrow type take what they do in their files; others may become narrow.
      const least = storage === 'BF16' || storage === 'F16' ? bytes / 2 : bytes;
      if (chooseDevice(device, isa) === 'cpu') checkFree(least, name, 'at least ', '; nothing was downloaded');
    },
  });
  const opened = await openCheckpoint(from, options);
  const { folder, file, json, weights, entries } = opened;
  const {
    config: parsed,
    checkpointName,
    placesOf,
  } = await withPlanner(opened.named(kind.parse(json, file, entries, opened.hints)), opened, options.planner);
  const generation = await opened.generation();
  const config = withEndsOf(parsed, generation);
  const tensors = matchTensors(config, entries, folder, checkpointName, placesOf);
  // Before the weights, which take longer.
  const files = await kind.readFiles(opened.tokenizer(), config, generation);
  const isNarrow =
    storage === 'BF16' ||
    (storage === 'auto' &&
      tensors.every((tensor) => isHeldWide(tensor) || tensor.dtype === 'BF16' || isBlockType(tensor.dtype)));
  const native = await loadOn({ device, isa }, (on) => {
    if (on === 'cpu') checkMemory(tensors, storage, blocks, config.weightTying, folder);
    const arithmetic = compute ?? (on !== 'cpu' && isNarrow ? 'bfloat16' : 'float32');
    const request = { config, files: weights, tensors, device: on, threads, isa, storage, blocks, compute: arithmetic };
    return loadReporting(request, signal, onProgress);
  });
  return { folder, storedDtype: storedDtypeOf(tensors), json, config, files, native };
}
