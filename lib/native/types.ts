// What the native addon exports and takes, as TypeScript sees it. native/addon reads and makes these.
/** Storage types of checkpoint tensors that the native core reads. */
export type NativeDType = 'F32' | 'BF16' | 'F16';

/** How a file holds the numbers of a tensor: plainly, or in blocks (native/ops/blocks.h). */
export type NativeStoredType = NativeDType | import('../files/blocks').BlockType;

/** See transformers' modeling_rope_utils: "linear" divides every frequency, "llama3" the low ones. */
export type NativeRopeScaling =
  | { type: 'linear'; factor: number }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      originalMaxPositionEmbeddings: number;
    };

/** Blocks whose MLP is a mixture of experts: a router chooses some MLPs for each token and weighs their outputs. */
export interface NativeExperts {
  /** Experts of a block, and how many of them a token takes. */
  count: number;
  perToken: number;
  /** Width of an expert, and of the MLP beside them that every token takes (0: none). */
  hiddenSize: number;
  sharedHiddenSize: number;
  /** What the router's numbers become: their softmax over all experts, or the sigmoid of each. */
  scores: 'softmax' | 'sigmoid';
  /** Weights of the chosen experts are divided by their sum. */
  normalize: boolean;
  /** All weights are multiplied with it. */
  scale: number;
  /** A bias is added to the scores for the choice alone, or counts in the weights too. null: there is none. */
  bias: 'choice' | 'weight' | null;
  /** Groups of consecutive experts, and of how many of them a token's experts come. 1: no groups. */
  groups: number;
  groupsPerToken: number;
  /** (nLayers) Blocks that have experts; the others have an MLP of `mlpHiddenSize`. */
  layers: boolean[];
}

/** The part of a model's config.json that decides shapes and arithmetic. */
export interface NativeModelConfig {
  /** Hidden width C. */
  dModel: number;
  nHeads: number;
  nKvHeads: number;
  nLayers: number;
  mlpHiddenSize: number;
  /** Blocks that have experts in place of their MLP. Default null: none. */
  experts?: NativeExperts | null;
  /** Queries, keys and values are clamped to this magnitude before the rotary embedding. Default: not. */
  clipQkv?: number;
  /** How a block's MLP is made. Default "swiglu": down(silu(gate(x)) * up(x)). */
  mlp?: 'swiglu';
  /** Rows of the embedding table and of the output head. */
  embeddingSize: number;
  maxSequenceLength: number;
  ropeTheta: number;
  /** Numbers of a head that the rotary embedding turns: the first ones. Default: headDim. */
  ropeDim?: number;
  /** How the rotary embedding is stretched over longer texts. Default null: not at all. */
  ropeScaling?: NativeRopeScaling | null;
  rmsNormEps: number;
  weightTying: boolean;
  /** q_proj, k_proj and v_proj have biases. */
  qkvBias?: boolean;
  /** attn_out has a bias. Default false, as for all of these. */
  attnOutBias?: boolean;
  /** ff_proj, up_proj and ff_out have biases. */
  mlpBias?: boolean;
  /** The output head has a bias. */
  headBias?: boolean;
  /** Each head of queries and keys is normalised (RMS norm) before the rotary embedding. Default false. */
  qkNorm?: boolean;
  /** Size D of a head. Default: dModel / nHeads. */
  headDim?: number;
  /**
   * Which keys a position sees. "bidirectional" (default): all; "causal": itself and what stands before it, an
   * autoregressive model; "block-causal": everything up to the end of its block of `blockLength`.
   */
  mask?: 'bidirectional' | 'causal' | 'block-causal';
  /** Length of a block, counted from the row's start or behind a shorter first one. Of mask "block-causal". */
  blockLength?: number;
  /**
   * The head's numbers of position i are those of the token at i + 1, as in the autoregressive model that this one was
   * made of. Default false.
   */
  shiftLogits?: boolean;
  /** -1 for a causal model. */
  maskTokenId: number;
  /** null: the checkpoint has no unmasking planner head. */
  planner: { numLayers: number; useAdaln: boolean; useMaskEmbeddings: boolean } | null;
}

/** Where a matrix that GPTQ has quantised has all but its codes (native/model/gptq.h). */
export interface NativeGptq {
  bits: 4 | 8;
  groups: number;
  /** What stored zero points lack. */
  zeroOffset: 0 | 1;
  zeros: { file: number; begin: number; end: number };
  scales: { file: number; begin: number; end: number };
  /** The group of each input. */
  group: { file: number; begin: number; end: number };
}

/** Location of one tensor: bytes `begin` to `end` of file number `file`. */
export interface NativeTensorRef {
  name: string;
  file: number;
  dtype: NativeStoredType;
  shape: number[];
  begin: number;
  end: number;
  /**
   * Heads whose rows the file has with the two halves of a rotated pair side by side, as GGUF files of Llama and LLaDA;
   * 0 (default): rows are as they are computed with.
   */
  heads?: number;
  /** Where the scales of blocks are whose codes alone lie at `begin`; -1 (default): blocks are whole. */
  scalesFile?: number;
  scalesBegin?: number;
  scalesEnd?: number;
  /** The bytes are packed codes, which become `dtype`: F32, Q4_0, Q5_0 or Q8_0. */
  gptq?: NativeGptq;
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
  compute: 'float32' | 'bfloat16' | 'int8';
  /** Quantised tensors stay so, or become plain numbers; or plain matrices are quantised. */
  blocks: 'keep' | 'decode' | import('../files/blocks').WrittenBlockType;
}

/** Device and size of a model. */
export interface NativeModelInfo {
  device: string;
  isa: string;
  threads: number;
  parameters: number;
  /** Of them those that a token passes: in a mixture of experts without the experts that it does not take. */
  activeParameters: number;
  plannerParameters: number;
  weightBytes: number;
}

/**
 * One forward pass that returns its tensors, for inspection and tests. Packed rows: sequence b is
 * offsets[b]..offsets[b+1].
 */
export interface NativeForwardRequest {
  ids: Int32Array;
  offsets: Int32Array;
  /** Also return logits. Default false. */
  logits?: boolean;
  /** Also run the planner head: timestep (B); maskIndex (N), 0 or 1. */
  planner?: { timestep: Float32Array; maskIndex: Uint8Array } | null;
  /** With a cache, ids are those at `positions` (N, in-row) alone, and row b is row b of the cache. */
  cache?: NativeCache | null;
  positions?: Int32Array | null;
  /** (B) length of each row's first block, of a model that attends by blocks. Default: whole ones. A cache has its own. */
  firstBlocks?: Int32Array | undefined;
}

/** Contents of a cache of keys and values. */
export interface NativeCacheOptions {
  /** Of keys and values: 'F32' or 'BF16'. */
  dtype: NativeDType;
  /**
   * Of the planner head: nothing; keys and values of its blocks; or the states that it reads, for blocks that see whole
   * rows in every pass.
   */
  planner: 'none' | 'blocks' | 'hidden';
  /** (B) length of each row's first block, of a model that attends by blocks. Default: whole ones. */
  firstBlocks?: Int32Array | undefined;
}

/** Keys and values of rows, and what is computed on them; one user at a time. */
export interface NativeCache {
  /** Bytes held. */
  bytes(): number;
  /** Keys and values (length, 2, Hk, D) of a row; layers are the base model's, then the planner's. */
  read(layer: number, row: number): Promise<Float32Array>;
  /** Releases it; work under way keeps it alive. */
  dispose(): void;
}

/** Positions of several rows: row r has positions[offsets[r]] to positions[offsets[r + 1]], in-row and ascending. */
export interface NativePositions {
  offsets: Int32Array;
  positions: Int32Array;
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
export type NativeRule =
  | 'none'
  | 'plannerBernoulli'
  | 'plannerTopK'
  | 'plannerRound'
  | 'plannerThreshold'
  | 'threshold'
  | 'factor'
  | 'entropy'
  | 'entropySum'
  | 'fixed'
  | 'dynamic'
  | 'random'
  | 'leftToRight'
  | 'coin';

/** Native `SampleScores`: untempered, or at the sampling temperature, of all tokens or of those that may be drawn. */
export type NativeScores = 'untempered' | 'tempered' | 'filtered';

/** How a step draws and chooses the tokens of rows. */
export interface NativeStepRule {
  /** Token temperature; 0 (default): argmax. */
  temperature?: number;
  /** Tokens that may be drawn: the `topK` most probable (absent: all), and of these the most probable `topP` (1: all). */
  topK?: number;
  topP?: number;
  /** `topP` is a share of all tokens rather than of those that `topK` keeps. Default false. */
  topPFirst?: boolean;
  /** Which distribution confidences and entropies are of. Default "untempered". */
  scores?: NativeScores;
  /** Log-probabilities at `temperature`. Default false: at temperature 1. */
  temperedLogProb?: boolean;
  /**
   * The mask token is not a legal prediction. Default true; false with compat "reference" and a sampler other than the
   * planner's.
   */
  excludeMask?: boolean;
  /** Run the planner head; implied by the planner rules. Default false. */
  planner?: boolean;
  rule: NativeRule;
  /** For the planner rules. Default 1 each. */
  plannerTemperature?: number;
  probabilityScale?: number;
  /**
   * For "threshold" and "dynamic" (confidence), "entropy", "entropySum" (nats) and "plannerThreshold" (probability).
   * Default 0.
   */
  threshold?: number;
  /** For "factor". Default 0. */
  factor?: number;
  /** "factor" lets a first failure at the last candidate pass. Default false. */
  factorLastPair?: boolean;
  /** 'fixed' takes the lowest entropies in place of the highest confidences. Default false. */
  byEntropy?: boolean;
  /** The rule reads margins, which the result has then, in place of confidences. Default false. */
  byMargin?: boolean;
  /** 'entropySum' stays below the threshold with the whole sum. Default false. */
  sumWithLast?: boolean;
  /** 'fixed' draws its positions by softmax(score / it), without replacement. Default 0: the best ones. */
  selectionTemperature?: number;
  /** A row may select nothing. Default false. */
  mayRest?: boolean;
  /** See `forcedStep` of GenerateOptions. Default false: "exact". */
  referenceLikelihood?: boolean;
  /** With rule "none": rows that have tokens scored (`scores`) in place of drawn ones. Default false. */
  scored?: boolean;
}

/** One step of some rows, none of which depends on the others. */
export interface NativeStepRequest {
  /** The rows that take part, laid end to end: ids (N), offsets (R + 1). */
  ids: Int32Array;
  offsets: Int32Array;
  /** Rule g is that of rows ruleOffsets[g] to ruleOffsets[g + 1]; the only one is that of all rows. */
  rules: NativeStepRule[];
  ruleOffsets?: Int32Array;
  /** (R) candidates are the masked positions before it. */
  windowEnds: Int32Array;
  /** Candidates in place of those. */
  candidates?: NativePositions | null;
  /**
   * The positions that are computed, the rest of each row being taken from a cache, in which row r lies from begins[r]
   * on; `begins` (R) ascend. `fresh` (R): 1 where nothing in the row's range is its own yet. Default: all positions are
   * computed.
   */
  cached?: (NativePositions & { cache: NativeCache; begins: Int32Array; fresh?: Uint8Array }) | null;
  /** (R) length of each row's first block, of a model that attends by blocks. Default: whole ones. */
  firstBlocks?: Int32Array | undefined;
  /** (R) random coordinates of each row. */
  seeds: BigUint64Array;
  rowKeys: Uint32Array;
  steps: Uint32Array;
  /** (R) for 'fixed', 'random' and 'leftToRight', and the most that 'threshold' takes. */
  counts?: Int32Array | null;
  /** (R) for 'coin': the probability of each position. */
  chances?: Float64Array | null;
  /**
   * With a rule that is `scored`: offsets (M + 1) over the candidates of all rows, and for each of a scored row at least
   * one token whose log-probability is wanted, for others none.
   */
  scores?: { offsets: Int32Array; tokens: Int32Array } | null;
  /**
   * (M, in candidate order) Which of the sets says what the candidate may become, -1: any token. Sets of ceil(V / 32)
   * words lie end to end: token v is in one where bit v % 32 of its word v / 32 is 1. Default: any token everywhere.
   */
  allowed?: { index: Int32Array; sets: Uint32Array } | null;
  /** A candidate whose position before is not computed is scored from its own. Default false: an error. */
  shiftInside?: boolean;
  /** The result is what was selected alone (`SelectedResult`). Default false. */
  selectedOnly?: boolean;
  /** Recorded uniforms instead of Philox (fixtures): token (M, embeddingSize), position (M), in candidate order. */
  uniforms?: { token: Float64Array | null; position: Float64Array | null } | null;
}

export interface NativeCancelToken {
  cancel(): void;
  /**
   * Progress of `loadModel` with this token, in bytes of the checkpoint's tensors; both are 0 before it begins.
   */
  progress(): { loadedBytes: number; totalBytes: number };
}

/** What of a model trains, and how. */
export interface NativeTrainerOptions {
  freezeBase: boolean;
  freezePlanner: boolean;
  /** Recompute each layer's activations in the backward pass instead of keeping them. */
  checkpointing: boolean;
  /**
   * Low-rank adapters on these projections of every base block (q_proj, k_proj, v_proj, attn_out, ff_proj, up_proj,
   * ff_out); null: none.
   */
  lora: { rank: number; alpha: number; targets: string[] } | null;
  /** How AdamW's moments are stored. */
  moments: 'float32' | 'bfloat16';
  /** How gradients of micro-batches and processes are added: in fp32, or in fixed point, whatever their order. */
  reduction: 'sum' | 'exact';
  /** 1: masters and moments are split over the processes of the job; 2: reduced gradients, too. */
  zeroStage: 0 | 1 | 2;
  /** Seed of adapters' first values, and of the rounding of bfloat16 moments. */
  seed: bigint;
}

/** A model, how it is stored, and how it will be trained. */
export interface NativeMemoryRequest {
  config: NativeModelConfig;
  /** What each tensor is held as, in the order of `tensors(config)`. */
  storage: NativeStoredType[];
  /** The model is on a GPU. */
  onDevice: boolean;
  compute: 'float32' | 'bfloat16';
  trainer: NativeTrainerOptions;
  /** Processes that train together, and share the optimiser's state with `trainer.zeroStage`. */
  ranks: number;
  /** Tokens of a forward and backward pass. */
  tokens: number;
}

/** Numbers of parameters, and bytes of everything else. */
export interface NativeMemoryPlan {
  parameters: number;
  /** That a token passes. */
  active: number;
  trainable: number;
  weights: number;
  masters: number;
  gradients: number;
  moments: number;
  /** Gradients in fixed point, and those on their way between processes. */
  fixedPoint: number;
  underWay: number;
  /** What backward reads. */
  activations: number;
  /** With split state: tensors on their way into the model. */
  exchange: number;
  /** Of one block forward and backward, and of logits. */
  scratch: number;
}

/**
 * A packed micro-batch of B rows (N tokens in all) and what is wanted of it. Offsets start with 0 and have one entry
 * more than rows.
 */
export interface NativeScoreRequest {
  /** (N) token ids of all rows, laid end to end. */
  ids: Int32Array;
  /** (B + 1) Row b is offsets[b] to offsets[b + 1]. */
  offsets: Int32Array;
  /** (B) length of each row's first block, of a model that attends by blocks. Default: whole ones. A cache has its own. */
  firstBlocks?: Int32Array | undefined;
  /** (N, C) hidden states in place of the base model's; `ids` then only give the shape. */
  hidden?: Float32Array | null | undefined;
  /** (M) candidates of all rows: in-row positions, ascending in each row. */
  positions: Int32Array;
  /** (B + 1) Row b's candidates are candidateOffsets[b] to candidateOffsets[b + 1]. May be left out with one row. */
  candidateOffsets?: Int32Array | undefined;
  /**
   * (M) tokens whose log-probability is wanted. Without them, and without `confidences`, the output head is skipped.
   */
  tokens?: Int32Array | null | undefined;
  /** Log-probabilities at this token temperature; 0 (default): untempered. */
  temperature?: number | undefined;
  /** A token whose logit counts as -inf; -1 (default): none. */
  excludedToken?: number | undefined;
  /** Also return the argmax of each candidate and its softmax probability. Default false. */
  confidences?: boolean | undefined;
  /**
   * Also return the entropy of softmax(logits / it) of each candidate, in nats. Default 0: none. A row without tokens
   * can have it.
   */
  entropyTemperature?: number | undefined;
  /** Also return logits (M, V). Default false. */
  logits?: boolean | undefined;
  /** Run the planner head: timestep (B); maskIndex (N), 0 or 1. */
  planner?: { timestep: Float32Array; maskIndex: Uint8Array } | null | undefined;
  /**
   * Score decisions of the planner's policy (needs `planner` and `tokens`): selected (M) 1 where the candidate was
   * unmasked, forced (B) 1 where the row selected none and one was unmasked nevertheless. `referenceLikelihood` is
   * `forcedStep: "reference"` of GenerateOptions. Defaults: plannerTemperature 1, probabilityScale 1,
   * referenceLikelihood false.
   */
  policy?:
    | {
        selected: Uint8Array;
        forced: Uint8Array;
        plannerTemperature?: number | undefined;
        probabilityScale?: number | undefined;
        referenceLikelihood?: boolean | undefined;
      }
    | null
    | undefined;
  /**
   * A pass over some positions of some rows of a cache (fp32): ids, offsets and maskIndex are those of `positions`
   * alone, `rows` (B) are the cache's. What the cache holds is a constant to `backward`, which must come before the
   * cache's next pass. Without it: whole rows.
   * @internal
   */
  cached?: { cache: NativeCache; rows: Int32Array; positions: Int32Array } | null | undefined;
  /** Keep the activations for `backward`. Default false. */
  keep?: boolean | undefined;
}

/** Arrays are (M) unless said otherwise; null where not asked for. */
export interface NativeScoreResult {
  logProbs: Float32Array | null;
  plannerLogits: Float32Array | null;
  logLikelihoods: Float32Array | null;
  /** Argmax tokens and their probabilities. */
  argmax: Int32Array | null;
  confidences: Float32Array | null;
  /** Entropies at `entropyTemperature`, in nats. */
  entropies: Float32Array | null;
  /** (M, V) */
  logits: Float32Array | null;
}

/** dL/d of the outputs of the last `score` with `keep`: (M) each, (M, V) for logits. Those that are left out are 0. */
export interface NativeBackwardRequest {
  dLogProbs?: Float32Array | null | undefined;
  dPlannerLogits?: Float32Array | null | undefined;
  dLogLikelihoods?: Float32Array | null | undefined;
  dEntropies?: Float32Array | null | undefined;
  dLogits?: Float32Array | null | undefined;
  /**
   * The last one of an update: `step` is next. Processes begin to exchange gradients while the pass goes on, and each
   * of them says so of a pass of its own, or of one that it joins. Default false: `step` exchanges all.
   */
  last?: boolean | undefined;
}

/** AdamW with global-norm clipping over every gradient that has been accumulated. */
export interface NativeOptimizerStep {
  /** Learning rates of the base (adapters included) and of the planner. */
  baseLr: number;
  plannerLr: number;
  /** Default 0.9. */
  beta1?: number | undefined;
  /** Default 0.99. */
  beta2?: number | undefined;
  /** Default 1e-8. */
  eps?: number | undefined;
  /** Default 0. */
  weightDecay?: number | undefined;
  /** Gradients are scaled down to this global L2 norm; 0 (default): no clipping. */
  maxGradNorm?: number | undefined;
}

/** A named tensor, row-major fp32. */
export interface NativeNamedTensor {
  name: string;
  shape: number[];
  data: Float32Array;
}

/** fp32 masters, gradients and optimiser state of one model. One call at a time. */
export interface NativeTrainer {
  /** Names and sizes of what trains; Hugging Face names, adapters as "<module>.lora_A.weight" / ".lora_B.weight". */
  parameters(): { name: string; shape: number[]; group: 'base' | 'planner' }[];
  /** A forward pass over packed rows; `keep: true` keeps what `backward` needs. */
  score(request: NativeScoreRequest): Promise<NativeScoreResult>;
  /** Adds gradients; consumes the kept activations. dHidden (N, C) where `score` was given hidden states. */
  backward(request: NativeBackwardRequest): Promise<{ dHidden: Float32Array | null }>;
  /**
   * Connects the GPUs of a job's processes, before gradients are exchanged: by NCCL of the version that it gives, where
   * the models of all of them are on GPUs of their own; else "", and the reason, which is "" on CPUs and in a process
   * alone. Without it, as with "", all goes through the host's memory, by MPI. Every process calls it.
   * @throws DUltraError DEVICE_UNAVAILABLE where NCCL is there, and fails.
   */
  connect(): Promise<{ version: string; reason: string }>;
  /**
   * In place of `backward` in a process that has no micro-batch for it: with `zeroStage: 2` all processes make equally
   * many of both. Default of `last` false.
   */
  joinBackward(request: { last?: boolean | undefined }): Promise<void>;
  /** Clears the gradients. After a pass with `last`, it waits until every process has made one. */
  zeroGrad(): Promise<void>;
  /**
   * Global L2 norm of the gradients accumulated since the last step, of this process alone. NaN or infinity is returned,
   * not thrown.
   * @throws RangeError after a pass with `last`, of several processes, and with `zeroStage: 2`
   */
  gradNorm(): Promise<number>;
  /**
   * One update; clears the gradients. The model's weights change between two of its passes.
   * @throws DUltraError NON_FINITE if the norm of the gradients is not finite; nothing is changed then.
   */
  step(request: NativeOptimizerStep): Promise<{ gradNorm: number; step: number }>;
  /** Gradients accumulated since the last step. @throws as `gradNorm` */
  gradients(): Promise<NativeNamedTensor[]>;
  /** Parameters as "<name>", moments as "exp_avg.<name>" and "exp_avg_sq.<name>", and the number of updates. */
  state(): Promise<{ step: number; tensors: NativeNamedTensor[] }>;
  /**
   * Restores what `state` returned.
   * @throws RangeError for missing tensors or wrong shapes; nothing is changed then.
   */
  loadState(state: { step: number; tensors: NativeNamedTensor[] }): Promise<void>;
  /**
   * "on" (as after `createTrainer`) merges the adapters into the model's weights; "off" restores the base model's
   * weights, with the same bits.
   * @throws RangeError for a trainer without adapters.
   */
  setAdapters(mode: 'on' | 'off'): Promise<void>;
  /** Frees masters, gradients and moments; the model keeps its current weights. */
  dispose(): void;
}

export interface NativeModel {
  /**
   * Allocates masters, gradients and moments for what trains. One live trainer per model; one in which everything is
   * frozen only scores, and does not count.
   */
  createTrainer(options: NativeTrainerOptions): Promise<NativeTrainer>;
  /** Current weights (adapters merged), in fp32, under their Hugging Face names: all, or those named. */
  weights(names: string[] | null): Promise<NativeNamedTensor[]>;
  info(): NativeModelInfo;
  forward(request: NativeForwardRequest, cancelToken?: NativeCancelToken | null): Promise<NativeForwardResult>;
  /**
   * One denoising step: proposes a token for each candidate, and decides by the rule which to unmask. Of a causal model
   * a candidate is a position whose next token is wanted. Stateless: the caller writes what was selected. `StepResult`
   * or `SelectedResult` reads the buffer.
   */
  step(request: NativeStepRequest, cancelToken?: NativeCancelToken | null): Promise<ArrayBuffer>;
  /** Another handle of the same model, which lives until each of them is disposed. */
  share(): NativeModel;
  /** Allocates a cache for rows of the lengths that offsets (B + 1) give. */
  createCache(offsets: Int32Array, options: NativeCacheOptions): Promise<NativeCache>;
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
  /** 0: all. */
  topK: number;
  /** 1: all. */
  topP: number;
  scores: NativeScores;
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

export interface NativeAdamWRequest {
  parameter: Float32Array;
  gradient: Float32Array;
  expAvg: Float32Array;
  expAvgSq: Float32Array;
  /** From 1. */
  step: number;
  lr: number;
  beta1: number;
  beta2: number;
  eps: number;
  weightDecay: number;
  gradientScale: number;
}

export interface NativeAddon {
  version: string;
  /** Instruction sets compiled in that this CPU runs, worst first. */
  cpuIsas(): string[];
  /** Every tensor that a model of this shape has, by its name in LLaDA and LLaDOU checkpoints. */
  tensors(config: NativeModelConfig): { name: string; shape: number[]; group: 'base' | 'planner' }[];
  /** What training a model takes, before anything is allocated. */
  planMemory(request: NativeMemoryRequest): NativeMemoryPlan;
  /** Bytes of a cache of `tokens` positions, over all its rows. */
  cacheBytes(config: NativeModelConfig, tokens: number, options: NativeCacheOptions): number;
  CancelToken: new () => NativeCancelToken;
  /**
   * Opens the first of these libraries that is an MPI that can be used, without starting it; `file` is empty where none
   * is, and `reason` says why. What has been opened stays.
   */
  openMpi(files: readonly string[]): { file: string; version: string; abi: string; reason: string };
  /**
   * Opens the NCCL that is installed here, or that DULTRA_NCCL names; `file` is empty where none can be used, and
   * `reason` says why. What has been opened stays.
   */
  openNccl(): { file: string; version: string; reason: string };
  /** Starts the MPI that is open, once. @throws DUltraError DISTRIBUTED */
  startMpi(): void;
  /** This process's rank, and the number of processes; 0 of 1 where MPI is not running. */
  group(): { rank: number; size: number };
  /** The bytes of every rank, by rank. Every rank calls it, and no other exchange meanwhile. */
  gatherBytes(bytes: Uint8Array): Promise<Uint8Array[]>;
  /** Resolves when every rank has called it. */
  barrier(): Promise<void>;
  /**
   * Parts the job by color: what ranks exchange is from here on exchanged among those of this one's color, which it
   * returns. Every rank of the job calls it.
   */
  split(color: number): Promise<{ rank: number; size: number }>;
  /** This process works among all of the job again. */
  join(): { rank: number; size: number };
  /** A message for one rank of the whole job, which `poll` sends. */
  post(to: number, bytes: Uint8Array): void;
  /**
   * Moves messages on; the next that has arrived, and by which rank of the whole job (-1: none), and how many are not
   * sent yet. Waits for nothing.
   */
  poll(): { from: number; bytes: Uint8Array; unsent: number };
  /** Ends MPI, and waits for all ranks to do so. */
  finalizeMpi(): void;
  /** Ends every process of the job, this one included. */
  abortMpi(exitCode: number): void;
  /** A line for each CUDA device; without any, `reason` says what is missing. `built`: the plugin is there. */
  cudaDevices(): { names: string[]; memory: number[]; built: boolean; reason: string };
  /** Rejects with code ABORTED when the token is cancelled on the way. */
  loadModel(request: NativeLoadRequest, cancelToken?: NativeCancelToken | null): Promise<NativeModel>;
  maskedAttention(request: NativeAttentionRequest): Promise<Float32Array>;
  sample(request: NativeSampleRequest): Promise<NativeSampleResult>;
  plannerScore(request: NativePlannerScoreRequest): Promise<Float32Array>;
  unmask(request: NativeUnmaskRequest): Promise<NativeUnmaskResult>;
  /**
   * Rows of `cols` numbers of a file, of any type, as blocks: codes and fp16 scales apart where `split`, else whole
   * blocks. Codes are int8 of Q8_0, or two of 4 bits in a byte. Rejects with NON_FINITE.
   */
  quantiseRows(request: {
    bytes: Uint8Array;
    dtype: NativeStoredType;
    to: import('../files/blocks').WrittenBlockType;
    cols: number;
    split?: boolean;
  }): Promise<{ codes?: Uint8Array; scales?: Uint8Array; blocks?: Uint8Array }>;
  /** One AdamW step on plain arrays; returns new ones. */
  adamw(
    request: NativeAdamWRequest,
  ): Promise<{ parameter: Float32Array; expAvg: Float32Array; expAvgSq: Float32Array }>;
}
