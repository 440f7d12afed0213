// The one door to the native addon: its types, and the conversion of its errors.
import path from 'node:path';
import { DUltraError, ERROR_CODES, type ErrorCode } from './errors';

/** Storage types of checkpoint tensors that the native core reads. */
export type NativeDType = 'F32' | 'BF16' | 'F16';

/** The part of a model's config.json that decides shapes and arithmetic. */
export interface NativeModelConfig {
  dModel: number;
  nHeads: number;
  nKvHeads: number;
  nLayers: number;
  mlpHiddenSize: number;
  /** Rows of the embedding table and of the output head. */
  embeddingSize: number;
  maxSequenceLength: number;
  ropeTheta: number;
  rmsNormEps: number;
  weightTying: boolean;
  maskTokenId: number;
  /** null: the checkpoint has no unmasking planner head. */
  planner: { numLayers: number; useAdaln: boolean; useMaskEmbeddings: boolean } | null;
}

/** Where one tensor lies: bytes `begin` to `end` of file number `file`. */
export interface NativeTensorRef {
  name: string;
  file: number;
  dtype: NativeDType;
  shape: number[];
  begin: number;
  end: number;
}

export interface NativeLoadRequest {
  config: NativeModelConfig;
  files: string[];
  tensors: NativeTensorRef[];
  device: string;
  threads: number;
  /** '' lets the CPU decide. */
  isa: string;
  storage: NativeDType | 'auto';
  compute: 'float32' | 'bfloat16';
}

export interface NativeModelInfo {
  device: string;
  isa: string;
  threads: number;
  parameters: number;
  plannerParameters: number;
  weightBytes: number;
}

/** One whole forward pass with everything handed out, for inspection and tests. Packed rows: sequence b is offsets[b]..offsets[b+1]. */
export interface NativeForwardRequest {
  ids: Int32Array;
  offsets: Int32Array;
  logits: boolean;
  /** timestep (B); maskIndex (N), 0 or 1. */
  planner: { timestep: Float32Array; maskIndex: Uint8Array } | null;
}

export interface NativeForwardResult {
  /** (N, C), after the final norm. */
  hidden: Float32Array;
  /** (N, embeddingSize) or null. */
  logits: Float32Array | null;
  /** (N) or null. */
  plannerLogits: Float32Array | null;
}

/** Native rule of one step; see native/ops/backend.h `UnmaskRule`. 'none' only proposes. */
export type NativeRule = 'none' | 'plannerBernoulli' | 'plannerTopK' | 'threshold' | 'factor' | 'entropy' | 'fixed' | 'random';

export interface NativeStepRequest {
  /** Indices (R) of the session's rows that take part, ascending. */
  rows: Int32Array;
  /** (R) candidates are the masked positions before it. */
  windowEnds: Int32Array;
  /** (R) random coordinates of each row. */
  rowKeys: Uint32Array;
  steps: Uint32Array;
  seed: bigint;
  temperature: number;
  temperedLogProb: boolean;
  /** The mask token is not a legal prediction (always so but in compat: "reference" for the rival samplers). */
  excludeMask: boolean;
  /** Run the planner head; implied by the planner rules. */
  planner: boolean;
  rule: NativeRule;
  plannerTemperature: number;
  probabilityScale: number;
  threshold: number;
  factor: number;
  factorLastPair: boolean;
  /** (R) for 'fixed' and 'random', else null. */
  counts: Int32Array | null;
  referenceLikelihood: boolean;
  /** Recorded uniforms instead of Philox (fixtures): token (M, embeddingSize), position (M), in candidate order. */
  uniforms: { token: Float64Array | null; position: Float64Array | null } | null;
}

/** Per candidate (M, packed by `offsets` over the R rows of the request, ascending positions). Selected tokens are already written. */
export interface NativeStepResult {
  offsets: Int32Array;
  positions: Int32Array;
  tokens: Int32Array;
  logProbs: Float32Array;
  confidences: Float32Array;
  entropies: Float32Array;
  plannerLogits: Float32Array | null;
  probabilities: Float32Array;
  logLikelihoods: Float32Array;
  selected: Uint8Array;
  /** (R) */
  forced: Uint8Array;
  /** (R) 1 - masks / row length, before the step. */
  timesteps: Float32Array;
}

export interface NativeSession {
  step(request: NativeStepRequest): Promise<NativeStepResult>;
  /** Writes tokens into a row (custom samplers). */
  write(row: number, positions: Int32Array, tokens: Int32Array): void;
  /** Makes the step under way reject with code ABORTED as soon as it can. */
  cancel(): void;
  dispose(): void;
}

export interface NativeCancelToken {
  cancel(): void;
}

export interface NativeModel {
  info(): NativeModelInfo;
  forward(request: NativeForwardRequest, cancelToken?: NativeCancelToken | null): Promise<NativeForwardResult>;
  /** ids of all rows packed by offsets (B + 1). */
  createSession(ids: Int32Array, offsets: Int32Array): NativeSession;
  dispose(): void;
}

export interface NativeAttentionRequest {
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  heads: number;
  kvHeads: number;
  headDim: number;
  qOffsets: Int32Array;
  kOffsets: Int32Array;
  qPositions: Int32Array | null;
  mask: 'bidirectional' | 'causal' | 'block-causal';
  block: number;
  keyBegin: Int32Array | null;
  keyEnd: Int32Array | null;
  scale: number;
  threads: number;
}

export interface NativeSampleRequest {
  logits: Float32Array;
  vocabSize: number;
  temperature: number;
  temperedLogProb: boolean;
  excludedToken: number;
  seed: bigint;
  rows: Uint32Array;
  steps: Uint32Array;
  positions: Uint32Array;
  threads: number;
}

export interface NativeSampleResult {
  tokens: Int32Array;
  logProbs: Float32Array;
  confidences: Float32Array;
  maxProbs: Float32Array;
  entropies: Float32Array;
}

export interface NativePlannerScoreRequest {
  /** (M, C) */
  hidden: Float32Array;
  /** (G, C) each */
  scale: Float32Array;
  shift: Float32Array;
  /** (M) */
  condition: Int32Array;
  /** (C) */
  weight: Float32Array;
  bias: number;
  eps: number;
  threads: number;
}

export interface NativeUnmaskRequest {
  rule: Exclude<NativeRule, 'none'>;
  /** (B + 1) */
  offsets: Int32Array;
  plannerLogits: Float32Array | null;
  confidences: Float32Array | null;
  entropies: Float32Array | null;
  tokenLogProbs: Float32Array | null;
  plannerTemperature: number;
  probabilityScale: number;
  threshold: number;
  factor: number;
  factorLastPair: boolean;
  counts: Int32Array | null;
  referenceLikelihood: boolean;
  seed: bigint;
  /** (B) */
  rowKeys: Uint32Array;
  steps: Uint32Array;
  /** (M) */
  positions: Uint32Array;
  threads: number;
}

export interface NativeUnmaskResult {
  selected: Uint8Array;
  forced: Uint8Array;
  probabilities: Float32Array;
  logLikelihoods: Float32Array;
}

export interface NativeAddon {
  version: string;
  /** Instruction sets compiled in that this CPU runs, worst first. */
  cpuIsas(): string[];
  CancelToken: new () => NativeCancelToken;
  /** Rejects with code ABORTED when the token is cancelled on the way. */
  loadModel(request: NativeLoadRequest, cancelToken?: NativeCancelToken | null): Promise<NativeModel>;
  maskedAttention(request: NativeAttentionRequest): Promise<Float32Array>;
  sample(request: NativeSampleRequest): Promise<NativeSampleResult>;
  plannerScore(request: NativePlannerScoreRequest): Promise<Float32Array>;
  unmask(request: NativeUnmaskRequest): Promise<NativeUnmaskResult>;
}

let loaded: NativeAddon | undefined;

/** Opens the addon on first use: build/Release of this package, else prebuilds/<platform>. */
export function native(): NativeAddon {
  if (loaded) return loaded;
  const root = path.join(__dirname, '..');
  let addon: NativeAddon;
  try {
    const load = require('node-gyp-build') as (dir: string) => unknown;
    addon = load(root) as NativeAddon;
  } catch (cause) {
    throw new DUltraError(
      'NATIVE_NOT_FOUND',
      `dultra's native addon could not be loaded for ${process.platform}-${process.arch}, Node ${process.version}: ` +
        `${cause instanceof Error ? cause.message : String(cause)}\n` +
        'Looked in build/Release and prebuilds/ of the package. To build it (needs CMake and a C++17 compiler), run ' +
        '"npm run build:native" in a clone, "npm explore dultra -- npm run build:native" where dultra is installed.',
      { cause },
    );
  }
  const { version } = require('../package.json') as { version: string };
  if (addon.version !== version) {
    throw new DUltraError(
      'NATIVE_NOT_FOUND',
      `dultra ${version} found a native addon of version ${addon.version}. In a clone, run "npm run build:native"; else reinstall the package.`,
    );
  }
  loaded = addon;
  return addon;
}

/** Awaits native work and turns its errors into what the public API promises, keeping the caller's stack. */
export async function fromNative<T>(work: Promise<T> | (() => Promise<T> | T), signal?: AbortSignal): Promise<T> {
  try {
    return await (typeof work === 'function' ? work() : work);
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw convertNativeError(error);
  }
}

/** A native error as the class that the public API promises for its code. */
export function convertNativeError(error: unknown): unknown {
  const code = (error as { code?: unknown } | null)?.code;
  if (!(error instanceof Error) || typeof code !== 'string') return error;
  if (code === 'INVALID_ARGUMENT') return new RangeError(error.message, { cause: error });
  if ((ERROR_CODES as readonly string[]).includes(code)) return new DUltraError(code as ErrorCode, error.message, { cause: error });
  return error;
}
