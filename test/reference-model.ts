// The model and its samplers once more, in double precision and plain loops, written from their description (algorithm
// of LLaDA and of the LLaDOU / dUltra planner head) and not from native/: what the tests of the real ones compare with.
// Slow, for tiny models.

/** Names as in config.json. */
export interface ReferenceConfig {
  d_model: number;
  n_heads: number;
  n_kv_heads: number;
  n_layers: number;
  mlp_hidden_size: number;
  vocab_size: number;
  embedding_size: number;
  max_sequence_length: number;
  rope_theta: number;
  rms_norm_eps: number;
  weight_tying: boolean;
  mask_token_id: number;
  eos_token_id: number | null;
  use_adaln: boolean;
  use_mask_embeddings: boolean;
  num_head_layers: number;
  include_bias?: boolean;
  include_qkv_bias?: boolean;
  /** What other families have: heads of another size than d_model / n_heads, normed queries and keys, … */
  head_dim?: number;
  qk_norm?: boolean;
  /** … blocks that a position sees up to the end of its own, and a head that is a position ahead. */
  block_length?: number;
  shift_logits?: boolean;
}

/** Tensors by their Hugging Face names, row-major. A planner head is present where `mask_linear.weight` is. */
export type ReferenceWeights = Map<string, { shape: number[]; data: Float64Array }>;

/** One vector per position. */
type Rows = Float64Array[];

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const silu = (x: number) => x * sigmoid(x);

const headDimOf = ({ head_dim, d_model, n_heads }: ReferenceConfig) => head_dim ?? d_model / n_heads;

/** Every tensor of a model with its shape. */
export function tensorShapes(config: ReferenceConfig, planner: boolean): [name: string, shape: number[]][] {
  const { d_model: C, mlp_hidden_size: F, embedding_size: V } = config;
  const headDim = headDimOf(config);
  const kv = headDim * config.n_kv_heads;
  const q = headDim * config.n_heads;
  const block = (at: string): [string, number[]][] => [
    [`${at}.attn_norm.weight`, [C]],
    [`${at}.q_proj.weight`, [q, C]],
    [`${at}.k_proj.weight`, [kv, C]],
    [`${at}.v_proj.weight`, [kv, C]],
    [`${at}.attn_out.weight`, [C, q]],
    [`${at}.ff_norm.weight`, [C]],
    [`${at}.ff_proj.weight`, [F, C]],
    [`${at}.up_proj.weight`, [F, C]],
    [`${at}.ff_out.weight`, [C, F]],
    ...(config.qk_norm
      ? ([
          [`${at}.q_norm.weight`, [headDim]],
          [`${at}.k_norm.weight`, [headDim]],
        ] as [string, number[]][])
      : []),
    ...(config.include_bias || config.include_qkv_bias
      ? ([
          [`${at}.q_proj.bias`, [q]],
          [`${at}.k_proj.bias`, [kv]],
          [`${at}.v_proj.bias`, [kv]],
        ] as [string, number[]][])
      : []),
    ...(config.include_bias
      ? ([
          [`${at}.attn_out.bias`, [C]],
          [`${at}.ff_proj.bias`, [F]],
          [`${at}.up_proj.bias`, [F]],
          [`${at}.ff_out.bias`, [C]],
        ] as [string, number[]][])
      : []),
  ];
  const blocks = (count: number, at: string) => Array.from({ length: count }, (_, i) => block(`${at}.${i}`)).flat();
  const shapes: [string, number[]][] = [
    ['model.transformer.wte.weight', [V, C]],
    ...blocks(config.n_layers, 'model.transformer.blocks'),
    ['model.transformer.ln_f.weight', [C]],
  ];
  if (!config.weight_tying) shapes.push(['model.transformer.ff_out.weight', [V, C]]);
  if (!config.weight_tying && config.include_bias) shapes.push(['model.transformer.ff_out.bias', [V]]);
  if (!planner) return shapes;
  shapes.push(...blocks(config.num_head_layers, 'mask_head'));
  if (config.use_adaln) {
    shapes.push(['time_embedding.mlp.0.weight', [C, 256]], ['time_embedding.mlp.0.bias', [C]]);
    shapes.push(['time_embedding.mlp.2.weight', [C, C]], ['time_embedding.mlp.2.bias', [C]]);
    if (config.use_mask_embeddings) shapes.push(['mask_embedding.weight', [2, C]]);
    for (const norm of ['norm_out_1', 'norm_out_2'])
      shapes.push([`${norm}.modulation.weight`, [2 * C, C]], [`${norm}.modulation.bias`, [2 * C]]);
  } else {
    shapes.push(['norm_out_2.weight', [C]], ['norm_out_2.bias', [C]]);
  }
  shapes.push(['mask_linear.weight', [1, C]], ['mask_linear.bias', [1]]);
  return shapes;
}

function tensor(weights: ReferenceWeights, name: string): Float64Array {
  const found = weights.get(name);
  if (!found) throw new Error(`no tensor ${name}`);
  return found.data;
}

/** W x (+ b): W is (outputs, inputs); b is the weight's own bias where there is one. */
function linear(weights: ReferenceWeights, name: string, x: Float64Array, bias?: string): Float64Array {
  const matrix = tensor(weights, name);
  const outputs = matrix.length / x.length;
  const b = bias === undefined ? (weights.get(name.replace(/weight$/, 'bias'))?.data ?? null) : tensor(weights, bias);
  const out = new Float64Array(outputs);
  for (let o = 0; o < outputs; o++) {
    let sum = b ? b[o] : 0;
    for (let i = 0; i < x.length; i++) sum += matrix[o * x.length + i] * x[i];
    out[o] = sum;
  }
  return out;
}

function rmsNorm(x: Float64Array, weight: Float64Array, eps: number): Float64Array {
  let squares = 0;
  for (const value of x) squares += value * value;
  const scale = 1 / Math.sqrt(squares / x.length + eps);
  return x.map((value, i) => value * scale * weight[i]);
}

/** Normed to mean 0 and variance 1, then times `mul` plus `add`. */
function layerNorm(x: Float64Array, mul: Float64Array, add: Float64Array): Float64Array {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  return x.map((value, i) => ((value - mean) / Math.sqrt(variance + 1e-4)) * mul[i] + add[i]);
}

/** Rotates each head's pairs (j, j + D/2) by position · theta^(−2j/D). */
function rope(x: Float64Array, position: number, headDim: number, theta: number): Float64Array {
  const out = new Float64Array(x.length);
  const half = headDim / 2;
  for (let head = 0; head < x.length; head += headDim)
    for (let j = 0; j < half; j++) {
      const angle = position * theta ** ((-2 * j) / headDim);
      const a = x[head + j];
      const b = x[head + j + half];
      out[head + j] = a * Math.cos(angle) - b * Math.sin(angle);
      out[head + j + half] = b * Math.cos(angle) + a * Math.sin(angle);
    }
  return out;
}

/** Keys (rotated) and values of every position of a row, per block; a pass over some positions overwrites theirs. */
export interface ReferenceCache {
  base: { keys: Rows; values: Rows }[];
  planner: { keys: Rows; values: Rows }[];
}

export const emptyReferenceCache = (config: ReferenceConfig): ReferenceCache => ({
  base: Array.from({ length: config.n_layers }, () => ({ keys: [], values: [] })),
  planner: Array.from({ length: config.num_head_layers }, () => ({ keys: [], values: [] })),
});

/** What a pass computes, and what holds the rest. */
export interface ReferencePass {
  positions: readonly number[];
  cache: ReferenceCache;
}

/** One transformer block over a whole row, or with `pass` over some positions of it. */
function block(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  at: string,
  x: Rows,
  pass?: { positions: readonly number[]; layer: { keys: Rows; values: Rows } },
): Rows {
  const { n_heads: heads, n_kv_heads: kvHeads, rope_theta: theta, rms_norm_eps: eps } = config;
  const headDim = headDimOf(config);
  const seen = config.block_length ?? Number.POSITIVE_INFINITY;
  /** Each head of a projection, normed where the family norms them. */
  const headsOf = (row: Float64Array, projection: 'q' | 'k') => {
    const out = linear(weights, `${at}.${projection}_proj.weight`, row);
    if (!config.qk_norm) return out;
    const weight = tensor(weights, `${at}.${projection}_norm.weight`);
    for (let head = 0; head < out.length; head += headDim)
      out.set(rmsNorm(out.slice(head, head + headDim), weight, eps), head);
    return out;
  };
  const normed = x.map((row) => rmsNorm(row, tensor(weights, `${at}.attn_norm.weight`), eps));
  const place = (i: number) => (pass ? pass.positions[i] : i);
  const q = normed.map((row, i) => rope(headsOf(row, 'q'), place(i), headDim, theta));
  let k = normed.map((row, i) => rope(headsOf(row, 'k'), place(i), headDim, theta));
  let v = normed.map((row) => linear(weights, `${at}.v_proj.weight`, row));
  if (pass) {
    for (let i = 0; i < x.length; i++) {
      pass.layer.keys[place(i)] = k[i];
      pass.layer.values[place(i)] = v[i];
    }
    k = pass.layer.keys;
    v = pass.layer.values;
  }
  return x.map((row, i) => {
    const attended = new Float64Array(heads * headDim);
    for (let h = 0; h < heads; h++) {
      const kv = Math.floor(h / (heads / kvHeads)) * headDim;
      const scores = k.map((key, j) => {
        if (Math.floor(j / seen) > Math.floor(place(i) / seen)) return Number.NEGATIVE_INFINITY;
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += q[i][h * headDim + d] * key[kv + d];
        return dot / Math.sqrt(headDim);
      });
      const most = Math.max(...scores);
      const parts = scores.map((score) => Math.exp(score - most));
      const total = parts.reduce((sum, part) => sum + part, 0);
      for (let j = 0; j < parts.length; j++)
        for (let d = 0; d < headDim; d++) attended[h * headDim + d] += (parts[j] / total) * v[j][kv + d];
    }
    const out = linear(weights, `${at}.attn_out.weight`, attended);
    const h = row.map((value, c) => value + out[c]);
    const inner = rmsNorm(h, tensor(weights, `${at}.ff_norm.weight`), eps);
    const gate = linear(weights, `${at}.ff_proj.weight`, inner);
    const up = linear(weights, `${at}.up_proj.weight`, inner);
    const mlp = linear(
      weights,
      `${at}.ff_out.weight`,
      gate.map((value, f) => silu(value) * up[f]),
    );
    return h.map((value, c) => value + mlp[c]);
  });
}

/** Hidden states of one row after the final norm; with `pass`, `ids` and states are those of its positions. */
export function referenceHidden(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  ids: ArrayLike<number>,
  pass?: ReferencePass,
): Rows {
  const C = config.d_model;
  const table = tensor(weights, 'model.transformer.wte.weight');
  let x: Rows = Array.from(ids, (id) => table.slice(id * C, (id + 1) * C));
  for (let i = 0; i < config.n_layers; i++)
    x = block(
      config,
      weights,
      `model.transformer.blocks.${i}`,
      x,
      pass && { positions: pass.positions, layer: pass.cache.base[i] },
    );
  return x.map((row) => rmsNorm(row, tensor(weights, 'model.transformer.ln_f.weight'), config.rms_norm_eps));
}

/** Logits (embedding_size) of hidden states. */
export function referenceLogits(config: ReferenceConfig, weights: ReferenceWeights, hidden: Rows): Rows {
  const head = config.weight_tying ? 'model.transformer.wte.weight' : 'model.transformer.ff_out.weight';
  return hidden.map((row) => linear(weights, head, row));
}

/**
 * Planner logits of one row, or of a pass's positions. @param candidate whether each position is a mask inside the
 * window
 */
export function referencePlanner(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  hidden: Rows,
  timestep: number,
  candidate: ArrayLike<number | boolean>,
  pass?: ReferencePass,
): Float64Array {
  const C = config.d_model;
  let conditions: [number: Float64Array, yes: Float64Array] | null = null;
  const modulate = (norm: string, row: Float64Array, isCandidate: number | boolean) => {
    const both = linear(
      weights,
      `${norm}.modulation.weight`,
      conditions![isCandidate ? 1 : 0],
      `${norm}.modulation.bias`,
    );
    return layerNorm(
      row,
      both.slice(0, C).map((scale) => 1 + scale),
      both.slice(C),
    );
  };
  let x = hidden;
  if (config.use_adaln) {
    const sinusoid = new Float64Array(256);
    for (let k = 0; k < 128; k++) {
      const angle = timestep * 10000 ** (-k / 128);
      sinusoid[k] = Math.cos(angle);
      sinusoid[128 + k] = Math.sin(angle);
    }
    const inner = linear(weights, 'time_embedding.mlp.0.weight', sinusoid, 'time_embedding.mlp.0.bias').map(silu);
    const time = linear(weights, 'time_embedding.mlp.2.weight', inner, 'time_embedding.mlp.2.bias');
    const marks = config.use_mask_embeddings ? tensor(weights, 'mask_embedding.weight') : new Float64Array(2 * C);
    conditions = [time.map((value, c) => value + marks[c]), time.map((value, c) => value + marks[C + c])];
    x = x.map((row, i) => modulate('norm_out_1', row, candidate[i]));
  }
  for (let i = 0; i < config.num_head_layers; i++)
    x = block(
      config,
      weights,
      `mask_head.${i}`,
      x,
      pass && { positions: pass.positions, layer: pass.cache.planner[i] },
    );
  return Float64Array.from(x, (row, i) => {
    const normed = config.use_adaln
      ? modulate('norm_out_2', row, candidate[i])
      : layerNorm(row, tensor(weights, 'norm_out_2.weight'), tensor(weights, 'norm_out_2.bias'));
    return linear(weights, 'mask_linear.weight', normed, 'mask_linear.bias')[0];
  });
}

// ---- random numbers -----------------------------------------------------------------------------

/** Both 32-bit halves of a product of two 32-bit numbers. */
function product(a: number, b: number): [high: number, low: number] {
  const low = (a & 0xffff) * b; // below 2^48
  const sum = (a >>> 16) * b + Math.floor(low / 65536); // below 2^48 + 2^32
  return [Math.floor(sum / 65536), Math.imul(a, b) >>> 0];
}

/** Philox4x32 with 10 rounds. */
export function philox(counter: readonly number[], seed: bigint): number[] {
  let [a, b, c, d] = counter;
  let k0 = Number(seed & 0xffffffffn);
  let k1 = Number(seed >> 32n);
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = product(a, 0xd2511f53);
    const [high1, low1] = product(c, 0xcd9e8d57);
    [a, b, c, d] = [(high1 ^ b ^ k0) >>> 0, low1, (high0 ^ d ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [a, b, c, d];
}

/** 52 bits of two words, in the middle of their interval: never 0 or 1. */
const uniformOf = (high: number, low: number) => (high * 2 ** 20 + (low >>> 12) + 0.5) * 2 ** -52;

/** Where a draw belongs. */
export interface DrawAt {
  seed: bigint;
  row: number;
  step: number;
  position: number;
}

/** The uniform behind a token's Gumbel noise. */
export function tokenUniform(at: DrawAt, token: number): number {
  const words = philox([token >> 1, at.position, at.row, at.step], at.seed);
  return token % 2 === 0 ? uniformOf(words[0], words[1]) : uniformOf(words[2], words[3]);
}

/** The uniform of a position: lane 0 for Bernoulli unmasking, lane 1 for a random order. */
export function positionUniform(at: DrawAt, lane: number): number {
  const words = philox([0x80000000 + lane, at.position, at.row, at.step], at.seed);
  return uniformOf(words[0], words[1]);
}

// ---- sampling -----------------------------------------------------------------------------------

/** A drawn token and what is said of it; `margin` is how far the choice was from another one. */
export interface ReferenceToken {
  token: number;
  logProb: number;
  confidence: number;
  entropy: number;
  margin: number;
}

/**
 * Draws a token. @param uniforms one per token; unused at temperature 0 @param excluded a token of probability 0, or -1
 */
export function referenceToken(
  logits: Float64Array,
  temperature: number,
  excluded: number,
  uniforms: ((token: number) => number) | null,
  tempered: boolean,
): ReferenceToken {
  const allowed = Array.from(logits, (x, token) => ({ x, token })).filter(({ token }) => token !== excluded);
  const draws = temperature >= 1e-4 && uniforms !== null;
  const scored = allowed.map(({ x, token }) => ({
    x,
    token,
    score: draws ? x - temperature * Math.log(-Math.log(uniforms(token))) : x,
  }));
  scored.sort((a, b) => b.score - a.score || a.token - b.token);
  const most = Math.max(...allowed.map(({ x }) => x));
  const logSum = (scale: number) => Math.log(allowed.reduce((sum, { x }) => sum + Math.exp((x - most) * scale), 0));
  const logNorm = logSum(1);
  const { token, x } = scored[0];
  const plain = x - most - logNorm;
  let entropy = 0;
  for (const other of allowed) {
    const logP = other.x - most - logNorm;
    entropy -= Math.exp(logP) * logP;
  }
  return {
    token,
    logProb: tempered && draws ? (x - most) / temperature - logSum(1 / temperature) : plain,
    confidence: Math.exp(plain),
    entropy,
    margin: scored.length > 1 ? scored[0].score - scored[1].score : Infinity,
  };
}

/** A rule of unmasking, with its numbers. */
export type ReferenceRule =
  | { type: 'topk' | 'round' | 'bernoulli'; scale: number; temperature: number }
  | { type: 'cut'; cut: number; scale: number; temperature: number }
  | { type: 'threshold'; threshold: number }
  | { type: 'factor'; factor: number; lastPair: boolean }
  | { type: 'entropy'; threshold: number }
  | { type: 'entropySum'; gamma: number }
  | { type: 'fixed' | 'random' | 'leftToRight'; count: number };

/** What a rule sees of each candidate, in ascending position. */
export interface ReferenceCandidate {
  position: number;
  plannerLogit: number;
  confidence: number;
  entropy: number;
  logProb: number;
  /** The position's uniform for the rule at hand. */
  uniform: number;
}

/** What a rule decides; `margin` is how far the nearest decision was from turning out otherwise. */
export interface ReferenceSelection {
  selected: Set<number>;
  forced: boolean;
  probabilities: number[];
  logLikelihoods: number[];
  margin: number;
}

/** Applies a rule to one row's candidates. */
export function referenceSelect(
  rule: ReferenceRule,
  candidates: ReferenceCandidate[],
  reference: boolean,
): ReferenceSelection {
  const selected = new Set<number>();
  const probabilities = candidates.map(() => 0);
  const logLikelihoods = candidates.map(() => 0);
  let margin = Infinity;
  // Probabilities are as wide as their scale.
  const unit = rule.type === 'topk' || rule.type === 'bernoulli' ? Math.min(1, rule.scale) : 1;
  const near = (distance: number) => {
    margin = Math.min(margin, Math.abs(distance));
  };
  /**
   * Candidates of equal inputs tie truly, and the position decides. (Probabilities may be equal here and not in fp32,
   * or the reverse.)
   */
  const nearUnlessSame = (i: number, j: number, keys: number[]) => {
    const [a, b] = [candidates[i], candidates[j]];
    if (a.plannerLogit !== b.plannerLogit || a.confidence !== b.confidence || a.entropy !== b.entropy)
      near((keys[i] - keys[j]) / unit);
  };
  /**
   * Candidates by falling key, ties to the lower position. Neighbours' distances count where one is taken and the other
   * is not.
   */
  const order = (key: (c: ReferenceCandidate) => number) => {
    const keys = candidates.map(key);
    return { keys, sorted: candidates.map((_, i) => i).sort((a, b) => keys[b] - keys[a] || a - b) };
  };
  const takeBest = (count: number, key: (c: ReferenceCandidate) => number) => {
    const { keys, sorted } = order(key);
    for (const i of sorted.slice(0, count)) selected.add(i);
    for (const taken of sorted.slice(0, count))
      for (const left of sorted.slice(count)) nearUnlessSame(taken, left, keys);
  };
  switch (rule.type) {
    case 'topk':
    case 'round':
    case 'cut':
    case 'bernoulli': {
      const probability = (c: ReferenceCandidate) => sigmoid(c.plannerLogit / rule.temperature) * rule.scale;
      candidates.forEach((c, i) => {
        probabilities[i] = probability(c);
      });
      if (rule.type === 'topk' || rule.type === 'round') {
        const sum = probabilities.reduce((a, p) => a + p, rule.type === 'round' ? 0.5 : 0);
        if (Math.round(sum) > 0) near(sum - Math.round(sum));
        takeBest(Math.min(candidates.length, Math.floor(sum)), probability);
      } else if (rule.type === 'cut') {
        probabilities.forEach((p, i) => {
          near(p - rule.cut);
          if (p > rule.cut) selected.add(i);
        });
      } else {
        candidates.forEach((c, i) => {
          near((c.uniform - probabilities[i]) / unit);
          if (c.uniform < probabilities[i]) selected.add(i);
        });
      }
      const forced = selected.size === 0;
      if (forced) takeBest(1, probability);
      const { keys, sorted } = order(probability);
      const best = sorted[0];
      // Which one is the best matters where it may be the only one.
      if (selected.size === 1 && sorted.length > 1) nearUnlessSame(best, sorted[1], keys);
      const isBestAlone = selected.size === 1 && selected.has(best);
      candidates.forEach((c, i) => {
        const p = Math.min(1, probabilities[i]);
        if (!selected.has(i)) logLikelihoods[i] = Math.log1p(-p);
        // {best} alone comes out whether it was drawn or forced: together those have probability Π (1 − p_j) over the
        // others.
        else logLikelihoods[i] = c.logProb + (isBestAlone && !reference ? 0 : Math.log(p));
      });
      return { selected, forced, probabilities, logLikelihoods, margin };
    }
    case 'threshold':
    case 'entropy': {
      const key =
        rule.type === 'threshold' ? (c: ReferenceCandidate) => c.confidence : (c: ReferenceCandidate) => -c.entropy;
      const bar = rule.type === 'threshold' ? rule.threshold : -rule.threshold;
      candidates.forEach((c, i) => {
        near(key(c) - bar);
        if (key(c) >= bar) selected.add(i);
      });
      const forced = selected.size === 0;
      if (forced) takeBest(1, key);
      return { selected, forced, probabilities, logLikelihoods, margin };
    }
    case 'factor': {
      const { keys, sorted } = order((c) => c.confidence);
      let taken = 1;
      for (; taken < sorted.length; taken++) {
        const bar = 1 - rule.factor / (taken + 2);
        near(keys[sorted[taken]] - bar);
        if (keys[sorted[taken]] < bar) break;
      }
      if (rule.lastPair && taken === sorted.length - 1) taken++;
      takeBest(taken, (c) => c.confidence);
      return { selected, forced: false, probabilities, logLikelihoods, margin };
    }
    case 'entropySum': {
      const { sorted } = order((c) => -c.entropy);
      let taken = 0;
      for (let n = 1; n <= sorted.length; n++) {
        const entropies = sorted.slice(0, n).map((i) => candidates[i].entropy);
        const excess = entropies.reduce((a, h) => a + h, 0) - Math.max(...entropies);
        if (n > 1) near(excess - rule.gamma);
        if (excess <= rule.gamma) taken = n;
      }
      takeBest(taken, (c) => -c.entropy);
      return { selected, forced: false, probabilities, logLikelihoods, margin };
    }
    case 'fixed':
    case 'leftToRight':
    case 'random': {
      const keys = { fixed: (c: ReferenceCandidate) => c.confidence, random: (c: ReferenceCandidate) => -c.uniform };
      const key = rule.type === 'leftToRight' ? (c: ReferenceCandidate) => -c.position : keys[rule.type];
      takeBest(Math.min(rule.count, candidates.length), key);
      const forced = selected.size === 0;
      if (forced) takeBest(1, key);
      return { selected, forced, probabilities, logLikelihoods, margin };
    }
  }
}
