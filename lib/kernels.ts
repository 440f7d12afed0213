/**
 * The kernels by themselves, on typed arrays.
 * @module
 */

import os from 'node:os';
import { optionError } from './errors';
import { type NativeRule, native } from './native';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSeed, checkTokenFilter } from './options';

/**
 * Input of {@link maskedAttention}. Sequences are packed: sequence b is rows `rowOffsets[b]` to `rowOffsets[b + 1]`.
 */
export interface MaskedAttentionOptions {
  /** Query heads H. Default 1. */
  heads?: number | undefined;
  /** Key/value heads; query head h reads head h / (heads / kvHeads). Default: heads. */
  kvHeads?: number | undefined;
  /** (B + 1) Default: one sequence. */
  rowOffsets?: ArrayLike<number> | undefined;
  /** (B + 1) where queries are only some of a sequence's positions. Default: rowOffsets. */
  queryOffsets?: ArrayLike<number> | undefined;
  /** Position of each query inside its sequence. Default: query i is position i. */
  queryPositions?: ArrayLike<number> | undefined;
  /**
   * Which keys a query sees: all ("bidirectional", default), those up to its own position, or those up to the end of
   * its block.
   */
  mask?: 'bidirectional' | 'causal' | 'block-causal' | undefined;
  /** Positions per block of mask "block-causal". Default 32. */
  blockLength?: number | undefined;
  /** (B) First key of each sequence that is visible, as a position in the sequence. Default 0. */
  keyBegin?: ArrayLike<number> | undefined;
  /** (B) Position behind the last visible key of each sequence. Default: its length. */
  keyEnd?: ArrayLike<number> | undefined;
  /** Factor on the scores. Default 1 / √headDim. */
  scale?: number | undefined;
  /** Default: all cores. */
  threads?: number | undefined;
}

const allThreads = () => os.availableParallelism();
const int32 = (values: ArrayLike<number> | undefined) => (values === undefined ? null : Int32Array.from(values));
const rowsOf = (length: number, value: ArrayLike<number> | undefined) =>
  Uint32Array.from(value ?? new Uint32Array(length));

function checkFloat32(name: string, value: unknown): asserts value is Float32Array {
  if (!(value instanceof Float32Array))
    throw optionError(TypeError, name, `expected a Float32Array, got ${Object.prototype.toString.call(value)}`);
}

/**
 * Fused attention; never holds a T × T matrix.
 * @param q (queries, heads, headDim) @param k (keys, kvHeads, headDim) @param v as k
 * @returns (queries, heads, headDim); a query that sees no key gives zeros.
 * @throws RangeError for shapes that do not fit.
 */
export async function maskedAttention(
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
  options: MaskedAttentionOptions & { headDim: number },
): Promise<Float32Array> {
  const allowed = [
    'headDim',
    'heads',
    'kvHeads',
    'rowOffsets',
    'queryOffsets',
    'queryPositions',
    'mask',
    'blockLength',
    'keyBegin',
    'keyEnd',
    'scale',
    'threads',
  ];
  checkKeys('options', options, allowed);
  checkFloat32('q', q);
  checkFloat32('k', k);
  checkFloat32('v', v);
  const { heads = 1, headDim, mask = 'bidirectional', blockLength = 32, threads = allThreads() } = options;
  const kvHeads = options.kvHeads ?? heads;
  checkInteger('headDim', headDim, { min: 1, max: 65536 });
  checkInteger('heads', heads, { min: 1, max: 65536 });
  checkInteger('kvHeads', kvHeads, { min: 1, max: 65536 });
  checkInteger('blockLength', blockLength, { min: 1, max: 2 ** 30 });
  checkInteger('threads', threads, { min: 1, max: 1024 });
  checkChoice('mask', mask, ['bidirectional', 'causal', 'block-causal'] as const);
  const { scale = 1 / Math.sqrt(headDim) } = options;
  checkNumber('scale', scale, {});
  const kOffsets = int32(options.rowOffsets) ?? Int32Array.of(0, k.length / (kvHeads * headDim));
  const qOffsets =
    int32(options.queryOffsets) ?? (options.rowOffsets ? kOffsets : Int32Array.of(0, q.length / (heads * headDim)));
  return native().maskedAttention({
    q,
    k,
    v,
    heads,
    kvHeads,
    headDim,
    qOffsets,
    kOffsets,
    qPositions: int32(options.queryPositions),
    mask,
    block: blockLength,
    keyBegin: int32(options.keyBegin),
    keyEnd: int32(options.keyEnd),
    scale,
    threads,
  });
}

/** Input of {@link sample}. */
export interface SampleOptions {
  /** V; `logits` is (M, V). */
  vocabSize: number;
  /** 0 (default) is argmax, ties to the lowest id. */
  temperature?: number | undefined;
  /** Draw among the `topK` most probable tokens; those that equal the last of them stay too. Default: all. */
  topK?: number | undefined;
  /**
   * Then among the most probable tokens whose probabilities, at `temperature`, first sum up to more than it, above 0 to
   * 1. Default 1: all.
   */
  topP?: number | undefined;
  /**
   * Confidences, largest probabilities and entropies at temperature 1 ("untempered", default), at `temperature`, or
   * ("filtered") at `temperature` and of the tokens that topK and topP keep.
   */
  confidence?: 'untempered' | 'tempered' | 'filtered' | undefined;
  /** Log-probabilities, of all tokens, at temperature 1 ("untempered", default) or at `temperature`. */
  tokenLogProb?: 'untempered' | 'tempered' | undefined;
  /** An id whose logit counts as −∞ (the mask token). */
  excludedToken?: number | undefined;
  /** Default 0. */
  seed?: number | bigint | undefined;
  /** (M) random coordinates of each row of logits. Default: row 0, step 0, position = index. */
  rows?: ArrayLike<number> | undefined;
  steps?: ArrayLike<number> | undefined;
  positions?: ArrayLike<number> | undefined;
  /** Default: all cores. */
  threads?: number | undefined;
}

/** What {@link sample} finds per row of logits. */
export interface SampleOutput {
  tokens: Int32Array;
  /** log softmax(logits)[token]. */
  logProbs: Float32Array;
  /** Softmax probability of the token; see {@link SampleOptions.confidence}. */
  confidences: Float32Array;
  /** Largest softmax probability, likewise. */
  maxProbs: Float32Array;
  /** Entropy, nats, likewise. */
  entropies: Float32Array;
}

/**
 * Draws a token per row of logits by exact Gumbel-max, with its probability and the prediction's entropy, in one pass.
 * @param logits (M, V) @throws RangeError for shapes; DUltraError NON_FINITE for NaN or +∞.
 */
export async function sample(logits: Float32Array, options: SampleOptions): Promise<SampleOutput> {
  checkKeys('options', options, [
    'vocabSize',
    'temperature',
    'topK',
    'topP',
    'confidence',
    'tokenLogProb',
    'excludedToken',
    'seed',
    'rows',
    'steps',
    'positions',
    'threads',
  ]);
  checkFloat32('logits', logits);
  const {
    vocabSize,
    temperature = 0,
    topK,
    topP,
    confidence = 'untempered',
    tokenLogProb = 'untempered',
    excludedToken = -1,
    seed = 0,
    threads = allThreads(),
  } = options;
  checkInteger('vocabSize', vocabSize, { min: 1, max: 2 ** 31 - 1 });
  checkNumber('temperature', temperature, { min: 0, max: 1e6 });
  checkTokenFilter(topK, topP);
  checkChoice('confidence', confidence, ['untempered', 'tempered', 'filtered'] as const);
  checkChoice('tokenLogProb', tokenLogProb, ['untempered', 'tempered'] as const);
  checkInteger('threads', threads, { min: 1, max: 1024 });
  const m = Math.floor(logits.length / vocabSize);
  return native().sample({
    logits,
    vocabSize,
    temperature,
    topK: topK ?? 0,
    topP: topP ?? 1,
    scores: confidence,
    temperedLogProb: tokenLogProb === 'tempered',
    excludedToken,
    seed: checkSeed('seed', seed),
    rows: rowsOf(m, options.rows),
    steps: rowsOf(m, options.steps),
    positions: options.positions ? Uint32Array.from(options.positions) : Uint32Array.from({ length: m }, (_, i) => i),
    threads,
  });
}

/** Input of {@link plannerScore}: the planner's last AdaLN and its linear. */
export interface PlannerScoreOptions {
  /** (G, C) AdaLN scale of each condition. */
  scale: Float32Array;
  /** (G, C) AdaLN shift of each condition. */
  shift: Float32Array;
  /** (M) Condition of each row, an index into `scale` and `shift`. */
  condition: ArrayLike<number>;
  /** (C) Weight of the linear layer. */
  weight: Float32Array;
  /** Bias of the linear layer. Default 0. */
  bias?: number | undefined;
  /** Epsilon of the layer norm. Default 1e-4. */
  eps?: number | undefined;
  /** Default: all cores. */
  threads?: number | undefined;
}

/**
 * Unmasking logits of hidden rows: layernorm(x) · (1 + scale) + shift, dot weight, + bias, without storing the normed
 * rows.
 * @param hidden (M, C) @returns (M) @throws RangeError for shapes that do not fit.
 */
export async function plannerScore(hidden: Float32Array, options: PlannerScoreOptions): Promise<Float32Array> {
  checkKeys('options', options, ['scale', 'shift', 'condition', 'weight', 'bias', 'eps', 'threads']);
  checkFloat32('hidden', hidden);
  const { scale, shift, weight, bias = 0, eps = 1e-4, threads = allThreads() } = options;
  checkFloat32('scale', scale);
  checkFloat32('shift', shift);
  checkFloat32('weight', weight);
  checkNumber('bias', bias, {});
  checkNumber('eps', eps, { min: 0 });
  checkInteger('threads', threads, { min: 1, max: 1024 });
  const condition = Int32Array.from(options.condition);
  return native().plannerScore({ hidden, scale, shift, condition, weight, bias, eps, threads });
}

const UNMASK_RULES = [
  'plannerBernoulli',
  'plannerTopK',
  'plannerRound',
  'plannerThreshold',
  'threshold',
  'factor',
  'entropy',
  'entropySum',
  'fixed',
  'dynamic',
  'random',
  'leftToRight',
] as const satisfies readonly NativeRule[];

/** Input of {@link unmask}. Candidates of row b are `rowOffsets[b]` to `rowOffsets[b + 1]`. */
export interface UnmaskOptions {
  /**
   * The planner's four rules, confidence threshold, factor, entropy threshold, entropy sum, a fixed number by confidence
   * ("dynamic": and all above the threshold), at random or left to right.
   */
  rule: Exclude<NativeRule, 'none'>;
  /** (B + 1) Default: one row. */
  rowOffsets?: ArrayLike<number> | undefined;
  /** (M) for the planner rules. */
  plannerLogits?: Float32Array | undefined;
  /** (M) for "threshold", "factor", "fixed" and "dynamic". */
  confidences?: Float32Array | undefined;
  /** (M) for "entropy" and "entropySum". */
  entropies?: Float32Array | undefined;
  /** (M) log-probability of each candidate's token, part of the log-likelihood. Default 0. */
  tokenLogProbs?: Float32Array | undefined;
  /** Default 1. */
  plannerTemperature?: number | undefined;
  /** Default 1. */
  probabilityScale?: number | undefined;
  /** For "threshold" (confidence), "entropy", "entropySum" (nats) and "plannerThreshold" (probability). */
  threshold?: number | undefined;
  /** For "factor". Default 1. */
  factor?: number | undefined;
  /** "factor" unmasks the last candidate too if only that one fails the test, as the reference does. Default false. */
  lastPair?: boolean | undefined;
  /** (B) Number of candidates to unmask in each row, for "fixed", "dynamic", "random" and "leftToRight". */
  counts?: ArrayLike<number> | undefined;
  /** Default 0. */
  seed?: number | bigint | undefined;
  /** (B) random coordinates. Default: row index; step 0. */
  rows?: ArrayLike<number> | undefined;
  steps?: ArrayLike<number> | undefined;
  /** (M) in-row positions. Default: index inside the row's candidates. */
  positions?: ArrayLike<number> | undefined;
  /** Default: all cores. */
  threads?: number | undefined;
}

/** What {@link unmask} decides. */
export interface UnmaskOutput {
  /** (M) 1: unmask now. */
  selected: Uint8Array;
  /** (B) 1: the rule selected nothing and one candidate was unmasked nevertheless. */
  forced: Uint8Array;
  /** (M) unmasking probabilities of the planner rules, else 0. */
  probabilities: Float32Array;
  /** (M) parts of the step's log-likelihood (planner rules), else 0. */
  logLikelihoods: Float32Array;
}

/**
 * Chooses which candidates to unmask, by a rule of the planner or of another sampler.
 * @throws RangeError for shapes.
 */
export async function unmask(options: UnmaskOptions): Promise<UnmaskOutput> {
  const allowed = [
    'rule',
    'rowOffsets',
    'plannerLogits',
    'confidences',
    'entropies',
    'tokenLogProbs',
    'plannerTemperature',
    'probabilityScale',
    'threshold',
  ];
  checkKeys('options', options, [
    ...allowed,
    'factor',
    'lastPair',
    'counts',
    'seed',
    'rows',
    'steps',
    'positions',
    'threads',
  ]);
  const {
    rule,
    plannerTemperature = 1,
    probabilityScale = 1,
    threshold = 0,
    factor = 1,
    lastPair = false,
    seed = 0,
    threads = allThreads(),
  } = options;
  checkChoice('rule', rule, UNMASK_RULES);
  checkNumber('plannerTemperature', plannerTemperature, { minExclusive: 0 });
  checkNumber('probabilityScale', probabilityScale, { minExclusive: 0 });
  checkNumber('threshold', threshold, {});
  checkNumber('factor', factor, { min: 0 });
  checkInteger('threads', threads, { min: 1, max: 1024 });
  const inputs = ['plannerLogits', 'confidences', 'entropies', 'tokenLogProbs'] as const;
  for (const name of inputs) if (options[name] !== undefined) checkFloat32(name, options[name]);
  const m =
    inputs.map((name) => options[name]?.length).find((length) => length !== undefined) ??
    options.positions?.length ??
    0;
  const offsets = int32(options.rowOffsets) ?? Int32Array.of(0, m);
  const b = offsets.length - 1;
  const positions = new Uint32Array(m);
  for (let row = 0; row < b; row++)
    for (let i = offsets[row]; i < offsets[row + 1] && i < m; i++) positions[i] = i - offsets[row];
  return native().unmask({
    rule,
    offsets,
    plannerLogits: options.plannerLogits ?? null,
    confidences: options.confidences ?? null,
    entropies: options.entropies ?? null,
    tokenLogProbs: options.tokenLogProbs ?? null,
    plannerTemperature,
    probabilityScale,
    threshold,
    factor,
    factorLastPair: lastPair,
    counts: int32(options.counts),
    referenceLikelihood: false,
    seed: checkSeed('seed', seed),
    rowKeys: options.rows ? Uint32Array.from(options.rows) : Uint32Array.from({ length: b }, (_, i) => i),
    steps: rowsOf(b, options.steps),
    positions: options.positions ? Uint32Array.from(options.positions) : positions,
    threads,
  });
}

/** What AdamW keeps for one parameter tensor. */
export interface AdamWState {
  parameter: Float32Array;
  /** First moment; zeros before step 1. */
  expAvg: Float32Array;
  /** Second moment; zeros before step 1. */
  expAvgSq: Float32Array;
}

/**
 * One AdamW step with decoupled weight decay: p ← p (1 − lr·weightDecay) − lr·m̂ / (√v̂ + eps).
 * @param options `step` counts from 1; `gradientScale` (default 1) multiplies the gradient, as global-norm clipping
 * does.
 * @returns new arrays @throws RangeError, TypeError for shapes and options.
 */
export async function adamw(
  input: AdamWState & { gradient: Float32Array },
  options: {
    step: number;
    lr: number;
    beta1?: number;
    beta2?: number;
    eps?: number;
    weightDecay?: number;
    gradientScale?: number;
  },
): Promise<AdamWState> {
  checkKeys('input', input, ['parameter', 'gradient', 'expAvg', 'expAvgSq']);
  checkKeys('options', options, ['step', 'lr', 'beta1', 'beta2', 'eps', 'weightDecay', 'gradientScale']);
  const { parameter, gradient, expAvg, expAvgSq } = input;
  const { step, lr, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, weightDecay = 0, gradientScale = 1 } = options;
  checkFloat32('parameter', parameter);
  for (const [name, value] of Object.entries({ gradient, expAvg, expAvgSq })) {
    checkFloat32(name, value);
    if (value.length !== parameter.length)
      throw optionError(RangeError, name, `expected ${parameter.length} numbers, got ${value.length}`);
  }
  checkInteger('step', step, { min: 1, max: Number.MAX_SAFE_INTEGER });
  for (const [name, value] of Object.entries({ lr, eps, weightDecay, gradientScale }))
    checkNumber(name, value, { min: 0 });
  for (const [name, value] of Object.entries({ beta1, beta2 })) checkNumber(name, value, { min: 0, max: 1 });
  return native().adamw({
    parameter,
    gradient,
    expAvg,
    expAvgSq,
    step,
    lr,
    beta1,
    beta2,
    eps,
    weightDecay,
    gradientScale,
  });
}
