// The vocabulary of the public API.

/** Which planner-selected positions are unmasked in a step. */
export interface PlannerSampler {
  type: 'planner';
  /**
   * "topk" (default): the k = ⌊Σ p⌋ most probable positions (the reference's mode "inference"). "round": k = ⌊Σ p + ½⌋,
   * which does not lose a step where Σ p is just below a whole number. "threshold": every position with p above `cut`.
   * "bernoulli": each position with its own probability p (the reference's mode "training", the policy that GRPO
   * trains). All but the first and the last are ours.
   */
  select?: 'topk' | 'round' | 'threshold' | 'bernoulli';
  /** The bar of select "threshold", 0..1; not allowed with the others. Default 0.5. */
  cut?: number;
  /** Multiplies every unmasking probability; > 1 unmasks faster. Default 1. (The reference calls it `factor`.) */
  probabilityScale?: number;
  /** Divides the planner's logits before the sigmoid. Default 1. */
  plannerTemperature?: number;
}

/** Fast-dLLM's threshold rule: every position whose confidence reaches `threshold`, and at least the most confident. */
export interface ConfidenceSampler {
  type: 'confidence';
  /** Softmax probability of the predicted token, 0..1. Default 0.9. */
  threshold?: number;
}

/**
 * Fast-dLLM's factor rule: of the candidates sorted by confidence, the j-th (j ≥ 2) passes while c_j ≥ 1 − factor / (j
 * + 1).
 */
export interface FactorSampler {
  type: 'factor';
  /** Default 1. */
  factor?: number;
  /** The reference's quirk: a first failure at the very last candidate passes too. Default false. */
  lastPair?: boolean;
}

/** dParallel's rule: every position whose predictive entropy (nats) is below `threshold`, and at least the lowest. */
export interface EntropySampler {
  type: 'entropy';
  /** Default 0.45. */
  threshold?: number;
}

/**
 * Entropy-bounded unmasking (the EB sampler, arXiv 2505.24857): candidates by ascending entropy, as many as keep the
 * sum of their entropies minus the largest of them at or below `gamma`. That difference bounds the error of predicting
 * them independently; the first always passes.
 */
export interface EntropySumSampler {
  type: 'entropy-sum';
  /** Nats. 0 takes one token per step (and everything that is certain). Default 0.1. */
  gamma?: number;
}

/**
 * A fixed share of what is left: each step unmasks max(1, ⌊phi · masks of the block + ½⌋) positions, so their number
 * falls geometrically.
 */
export interface GeometricSampler {
  type: 'geometric';
  /** 0..1. Default 0.5. */
  phi?: number;
  /** Which positions go first. Default "confidence". */
  order?: 'confidence' | 'random' | 'left_to_right';
}

/** LLaDA's fixed schedule: the masks of a block are spread evenly over its steps. */
export interface FixedSampler {
  type: 'fixed';
  /** Steps for the whole generation, divided evenly among the blocks. Default: one token per step. */
  steps?: number;
  /**
   * Which positions go first: the most confident (default), random ones, or those of lowest entropy (dParallel's cached
   * decoders).
   */
  remasking?: 'low_confidence' | 'random' | 'low_entropy';
}

/**
 * d3LLM's decoding: several blocks in flight. In every pass each open block unmasks the positions whose entropy is at
 * or below `threshold`, and the lowest of all; the first block that is due for progress unmasks at least one. A block
 * opens when the one before it has come far enough. With `stopAtEos` everything right of the first end-of-sequence
 * token is filled with that token.
 */
export interface D3llmSampler {
  type: 'd3llm';
  /** Nats. Default 0.45. */
  threshold?: number;
  /**
   * Share of the last open block that is decided when the next one opens; above 1: when it is finished. Default 0.1.
   */
  blockAddThreshold?: number;
  /**
   * Share of a block that is decided when the next one must make progress in every pass; above 1: never. Default 0.95.
   */
  decodedTokenThreshold?: number;
}

/** What every cache can be told. */
export interface CacheStorage {
  /**
   * How keys and values are held. Default "float32": as they are computed (on a GPU in bf16, that is in bf16);
   * "bfloat16" needs half of fp32 and rounds them.
   */
  dtype?: 'float32' | 'bfloat16';
  /**
   * What a planner sees of positions that a pass does not compute. "fresh": its own blocks run over the whole row in
   * every pass, on the states that the base model last gave each position, with the current timestep. "cached": its
   * blocks' keys and values are kept too, as of the pass that computed them. Default "cached".
   */
  planner?: 'fresh' | 'cached';
}

/** No cache: every pass computes the whole row. Exact. */
export interface NoCache {
  type: 'none';
}

/**
 * Fast-dLLM's prefix cache: a pass over the whole row when a block begins; the block's further passes compute
 * everything from the block on and take what is left of it as of that pass.
 */
export interface PrefixCache extends CacheStorage {
  type: 'prefix';
  /**
   * The reference's quirk: after a block's first pass one more is made even when the block is finished. Default false;
   * with compat "reference" true, but for the factor rule, whose reference does not make it.
   */
  emptyPass?: boolean;
}

/**
 * Fast-dLLM's dual cache: as "prefix", but a block's further passes compute the block alone and take both sides as of
 * its first pass.
 */
export interface DualCache extends CacheStorage {
  type: 'dual';
  /** As for "prefix". */
  emptyPass?: boolean;
}

/**
 * Everything is recomputed every `every` passes, or when many tokens have changed; between, a pass computes the masks
 * of the current block and the tokens that have changed since they were last computed, and takes the rest as it is.
 * Block ends do not matter.
 */
export interface RefreshCache extends CacheStorage {
  type: 'refresh';
  /**
   * Passes from one full pass to the next; 1 recomputes everything always, which is exact. Default null: no full pass
   * for that reason.
   */
  every?: number | null;
  /**
   * A full pass when more than this share of the row has changed since the last one, 0..1. Default null: no full pass
   * for that reason.
   */
  changed?: number | null;
}

/**
 * d3LLM's cache: finished blocks are cached from the left, each `delay` passes after it was first seen finished; a pass
 * computes everything right of what is cached.
 */
export interface DelayedCache extends CacheStorage {
  type: 'delayed';
  /** Passes that a finished block waits; passes are full while one waits. Default 1. */
  delay?: number;
  /** A full pass whenever the row's pass number is a multiple of it. Default null: never. */
  every?: number | null;
}

/** Which keys and values a pass takes from earlier passes instead of computing them; plain JSON, like samplers. */
export type CachePolicy = NoCache | PrefixCache | DualCache | RefreshCache | DelayedCache;

/**
 * What a custom sampler sees of one row at one step. Arrays are parallel, one entry per candidate, in ascending
 * position.
 */
export interface SamplerCandidates {
  /** Index of the row in the batch. */
  row: number;
  /** Denoising steps this row has taken before this one. */
  step: number;
  /** In-row indices of the masked positions before the end of the current block. */
  positions: Int32Array;
  /** Token that each position would be given. */
  tokens: Int32Array;
  /** Softmax probability of that token. */
  confidences: Float32Array;
  /** Entropy of the prediction, nats. */
  entropies: Float32Array;
  /** Log-probability of that token. */
  logProbs: Float32Array;
  /** Planner logits, null for a checkpoint without a planner. */
  plannerLogits: Float32Array | null;
  /** The row's ids as they stand, masks included. */
  ids: Int32Array;
}

/**
 * A sampler of your own: returns the positions (a subset of `candidates.positions`) to unmask now. Returning none lets
 * the most confident one through, so that every step makes progress.
 */
export type CustomSampler = (candidates: SamplerCandidates) => ArrayLike<number> | Promise<ArrayLike<number>>;

/** A built-in sampler: plain JSON, written unchanged into reports. */
export type SamplerObject =
  | PlannerSampler
  | ConfidenceSampler
  | FactorSampler
  | EntropySampler
  | EntropySumSampler
  | GeometricSampler
  | FixedSampler
  | D3llmSampler;

/** How positions to unmask are chosen. */
export type Sampler = SamplerObject | CustomSampler;

/** A chat message, rendered through the checkpoint's chat template. */
export interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | (string & {});
  content: string;
}

/**
 * What to continue: text as it stands, chat messages, token ids, or a template whose mask tokens are to be filled in
 * place (text that contains the tokenizer's mask token, or ids that contain the mask id).
 */
export type Prompt =
  | string
  | ChatMessage[]
  | { promptIds: ArrayLike<number> }
  | { template: string | ArrayLike<number> };

/** Options of `generate`, `generateBatch`, `generateStream` and `denoise`. */
export interface GenerateOptions {
  /**
   * How positions are chosen. Default: the checkpoint's (generation_config.json), else `{ type: "planner" }` where it
   * has a planner, else `{ type: "confidence" }`.
   */
  sampler?: Sampler;
  /**
   * Keys and values kept between passes: faster, and but for "none" (default) an approximation. Its memory is taken up
   * front.
   */
  cache?: CachePolicy;
  /**
   * Tokens to generate after the prompt. Default: the checkpoint's (generation_config.json), else 128, or half of the
   * model's maximum where that is less. Not allowed with a template.
   */
  genLength?: number;
  /**
   * Tokens per block; blocks are finished left to right. genLength must be a multiple. Default: min(32, genLength);
   * templates: the whole row.
   */
  blockLength?: number;
  /** Token temperature; 0 takes the most probable token. Default 0. */
  temperature?: number;
  /** Seed of every random choice, a non-negative integer or bigint below 2^64. Default 0. */
  seed?: number | bigint;
  /** Index of the first row in the random stream: row i of a batch draws as row `firstRow + i`. Default 0. */
  firstRow?: number;
  /**
   * Finish a row when everything before its first end-of-sequence token is decided. Default true; false for templates.
   */
  stopAtEos?: boolean;
  /** Log-probabilities of drawn tokens at temperature 1 ("untempered", default) or at the sampling temperature. */
  tokenLogProb?: 'untempered' | 'tempered';
  /**
   * Log-likelihood of a planner step that selected nothing and let the most probable position through: "exact"
   * (default) is what happened, every other position kept; "reference" adds log p of the position let through, as the
   * reference implementation does.
   */
  forcedStep?: 'exact' | 'reference';
  /**
   * "reference" reproduces the reference implementations where they differ: rows of a batch advance through blocks
   * together, no stop at end-of-sequence (d3llm stops where `stopAtEos` is given as true), the mask token is a legal
   * prediction of the rival samplers, the factor rule's last pair, the reference's step log-likelihood, and with a
   * cache the empty pass of a finished block; d3llm's candidates are noted before what follows an end of sequence is
   * filled, and so may overwrite it.
   */
  compat?: 'reference';
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal;
}

/** Why a row ended: nothing left to unmask, or decided up to its end-of-sequence token. */
export type FinishReason = 'length' | 'eos';

/** One generated row. */
export interface GenerateResult {
  /**
   * Decoded completion up to the first end-of-sequence token, special tokens skipped; "" without a tokenizer.
   * Templates: the whole row.
   */
  text: string;
  /**
   * Ids of the completion: all genLength of them (positions after an end-of-sequence stop may still be masked).
   * Templates: the whole row.
   */
  ids: Int32Array;
  /** Prompt ids as the model saw them. */
  promptIds: Int32Array;
  /** Forward passes in which this row unmasked something. */
  nfe: number;
  /** Passes weighted by the share of the row that they computed: what the row cost, in passes without a cache. */
  fullForwards: number;
  /** Tokens of the completion up to and including the first end-of-sequence token. */
  tokens: number;
  /** tokens / nfe. */
  tokensPerForward: number;
  /** Why the row ended. */
  finishReason: FinishReason;
  /**
   * In-step order: `unmaskedAt[i]` is the step (from 1) that decided completion position i, 0 where it was given or
   * never decided.
   */
  unmaskedAt: Int32Array;
  /** Sum of the step log-likelihoods (planner samplers; 0 otherwise). */
  logLikelihood: number;
}

/** What one row did in one step. Arrays are per candidate, in ascending position. */
export interface DenoiseRow {
  /** Index of the row in the batch. */
  row: number;
  /** Current block, from 0. */
  block: number;
  /** 1 − masks / row length before the step: the planner's timestep. */
  timestep: number;
  /** In-row positions that the pass computed; all of them without a cache. */
  computed: Int32Array;
  /** In-row indices of the candidates. */
  positions: Int32Array;
  /** Token that each would be given. */
  tokens: Int32Array;
  /** Log-probability of that token. */
  logProbs: Float32Array;
  /** Softmax probability of that token. */
  confidences: Float32Array;
  /** Entropy of the prediction, nats. */
  entropies: Float32Array;
  /** Raw planner logits; null where no planner ran. */
  plannerLogits: Float32Array | null;
  /** Unmasking probabilities of the planner samplers (above 1 where `probabilityScale` takes them there), else 0. */
  probabilities: Float32Array;
  /** Each candidate's part of the step's log-likelihood (planner samplers), else 0. */
  logLikelihoods: Float32Array;
  /** 1 where the candidate was unmasked. */
  selected: Uint8Array;
  /**
   * The sampler selected nothing (d3llm: nothing in the first block that must progress) and one position was let
   * through.
   */
  forced: boolean;
  /** That position, or -1. */
  forcedPosition: number;
  /** The row's ids after the step. */
  ids: Int32Array;
  /** The row is finished after this step. */
  finished: boolean;
}

/** One forward pass of the batch. */
export interface DenoiseStep {
  /** From 0. */
  step: number;
  /** Rows that took part, ascending. */
  rows: DenoiseRow[];
}

/** One event of `generateStream`. */
export interface StreamEvent {
  /** From 0. */
  step: number;
  /**
   * What this step decided, in ascending position; `position` counts from the start of the completion (templates: of
   * the row).
   */
  unmasked: { position: number; token: number; text: string; probability: number }[];
  /** Ids of the completion as they stand (templates: of the row). */
  ids: Int32Array;
  /** Masked positions left before the row ends. */
  remaining: number;
  /** Set on the last event. */
  result: GenerateResult | null;
}
