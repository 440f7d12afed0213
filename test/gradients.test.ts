// Gradients of the whole model and planner against central differences in double precision, taken on the independent
// reference model.
import path from 'node:path';
import { loadModel, type MaskedDiffusionModel, type ModelTrainerOptions } from '../lib';
import { readSafetensors } from '../lib/files/safetensors';
import { type CheckpointOptions, type MadeCheckpoint, makeCheckpoint, random } from './checkpoints';
import { temporaryFolder } from './helpers';
import {
  type ReferenceConfig,
  type ReferenceWeights,
  referenceHidden,
  referenceLogits,
  referencePlanner,
} from './reference-model';

/** Rows with decisions of the planner's policy, and weights of everything that comes out. */
interface Problem {
  rows: { ids: number[]; end: number; timestep: number; selected: boolean[]; tokens: number[] }[];
  temperature: number;
  plannerTemperature: number;
  probabilityScale: number;
  /** Upstream gradients per candidate: of log-likelihoods, log-probabilities, planner logits. */
  upstream: [number, number, number][];
}

const candidatesOf = ({ ids, end }: Problem['rows'][number], mask: number) =>
  ids.flatMap((id, position) => (id === mask && position < end ? [position] : []));

function makeProblem(config: ReferenceConfig, seed: number): Problem {
  const next = random(seed);
  const token = () => Math.floor(next() * (config.vocab_size - 2));
  const rows = [9, 6, 13].map((length) => {
    const ids = Array.from({ length }, (_, i) => (i > 1 && next() < 0.6 ? config.mask_token_id : token()));
    ids[3] = ids[4] = config.mask_token_id;
    const end = length - 2;
    const candidates = candidatesOf({ ids, end } as Problem['rows'][number], config.mask_token_id);
    return {
      ids,
      end,
      timestep: Math.fround(1 - ids.filter((id) => id === config.mask_token_id).length / length),
      selected: candidates.map(() => next() < 0.4),
      tokens: candidates.map(token),
    };
  });
  // A row always selects something, and the last one no more than one.
  for (const row of rows) row.selected[1 % row.selected.length] = true;
  rows[2].selected.fill(false, 2);
  rows[2].selected[0] = false;
  const count = rows.reduce((sum, row) => sum + row.tokens.length, 0);
  return {
    rows,
    temperature: 0.7,
    plannerTemperature: 1.3,
    probabilityScale: 0.8,
    upstream: Array.from({ length: count }, () => [next() - 0.5, next() - 0.5, next() - 0.5]),
  };
}

const logSigmoid = (z: number) => Math.min(z, 0) - Math.log1p(Math.exp(-Math.abs(z)));

/** Σ upstream · output in double precision. */
function objective(config: ReferenceConfig, weights: ReferenceWeights, problem: Problem): number {
  let total = 0;
  let at = 0;
  for (const row of problem.rows) {
    const hidden = referenceHidden(config, weights, row.ids);
    const candidates = candidatesOf(row, config.mask_token_id);
    const isCandidate = row.ids.map((_, i) => candidates.includes(i));
    const planner = referencePlanner(config, weights, hidden, row.timestep, isCandidate);
    const ahead = config.shift_logits ? 1 : 0;
    const logits = referenceLogits(
      config,
      weights,
      candidates.map((position) => hidden[Math.max(0, position - ahead)]),
    );
    const top = candidates.reduce((best, position, i) => (planner[position] > planner[candidates[best]] ? i : best), 0);
    // {top} alone comes out of two draws, it or nothing at all: its own probability drops out.
    const onlyTop = row.selected[top] && row.selected.filter(Boolean).length === 1;
    candidates.forEach((position, i) => {
      const [dLikelihood, dLogProb, dPlanner] = problem.upstream[at++];
      const z = planner[position];
      total += dPlanner * z;
      const scaled = Array.from(logits[i], (x, id) =>
        id === config.mask_token_id ? -Infinity : x / problem.temperature,
      );
      const largest = Math.max(...scaled);
      const logProb =
        scaled[row.tokens[i]] - largest - Math.log(scaled.reduce((sum, x) => sum + Math.exp(x - largest), 0));
      if (row.selected[i]) total += dLogProb * logProb;
      const logP = Math.log(problem.probabilityScale) + logSigmoid(z / problem.plannerTemperature);
      total += dLikelihood * (row.selected[i] ? (onlyTop ? 0 : logP) + logProb : Math.log1p(-Math.exp(logP)));
    });
  }
  return total;
}

/** Gradients by the native trainer. */
async function gradients(
  model: MaskedDiffusionModel,
  problem: Problem,
  options: ModelTrainerOptions,
  prepare?: TrainerSetup,
) {
  const trainer = await model.createTrainer(options);
  try {
    await prepare?.(trainer);
    const mask = model.config.maskTokenId;
    const offsets = [0];
    const candidateOffsets = [0];
    const positions = problem.rows.flatMap((row) => {
      const candidates = candidatesOf(row, mask);
      offsets.push(offsets.at(-1)! + row.ids.length);
      candidateOffsets.push(candidateOffsets.at(-1)! + candidates.length);
      return candidates;
    });
    const ids = problem.rows.flatMap((row) => row.ids);
    await trainer.score({
      ids: Int32Array.from(ids),
      offsets: Int32Array.from(offsets),
      candidateOffsets: Int32Array.from(candidateOffsets),
      positions: Int32Array.from(positions),
      tokens: Int32Array.from(problem.rows.flatMap((row) => row.tokens)),
      temperature: problem.temperature,
      excludedToken: mask,
      planner: {
        timestep: Float32Array.from(problem.rows, (row) => row.timestep),
        maskIndex: Uint8Array.from(
          problem.rows.flatMap((row) => row.ids.map((id, i) => (id === mask && i < row.end ? 1 : 0))),
        ),
      },
      policy: {
        selected: Uint8Array.from(problem.rows.flatMap((row) => row.selected.map(Number))),
        forced: new Uint8Array(problem.rows.length),
        plannerTemperature: problem.plannerTemperature,
        probabilityScale: problem.probabilityScale,
      },
      keep: true,
    });
    const selected = problem.rows.flatMap((row) => row.selected);
    await trainer.backward({
      dLogLikelihoods: Float32Array.from(problem.upstream, ([x]) => x),
      dLogProbs: Float32Array.from(problem.upstream, ([, x], i) => (selected[i] ? x : 0)),
      dPlannerLogits: Float32Array.from(problem.upstream, ([, , x]) => x),
    });
    return new Map((await trainer.gradients()).map(({ name, data }) => [name, data]));
  } finally {
    trainer.dispose();
  }
}
type TrainerSetup = (trainer: Awaited<ReturnType<MaskedDiffusionModel['createTrainer']>>) => Promise<void>;

const variants: [string, CheckpointOptions][] = [
  ['grouped heads, two planner layers', { config: { num_head_layers: 2 } }],
  ['tied weights, one key/value head', { config: { weight_tying: true, n_kv_heads: 1, rope_theta: 100 } }],
  ['no AdaLN', { config: { use_adaln: false } }],
  [
    'no mask embedding, full heads, large eps',
    { config: { use_mask_embeddings: false, n_kv_heads: 6, rms_norm_eps: 1e-2 } },
  ],
  ['dream: biases, a position ahead', { family: 'dream', config: { include_qkv_bias: true, shift_logits: true } }],
  [
    'sdar: normed heads of another size, blocks of 4',
    { family: 'sdar', config: { qk_norm: true, head_dim: 6, block_length: 4, weight_tying: true } },
  ],
  [
    'fast-dllm-v2: biases, blocks of 4, a position ahead',
    { family: 'fast-dllm-v2', config: { include_qkv_bias: true, block_length: 4, shift_logits: true } },
  ],
  ['a2d-qwen3: normed heads', { family: 'a2d-qwen3', config: { qk_norm: true, head_dim: 8 } }],
  ['a2d-qwen2: biases', { family: 'a2d-qwen2', config: { include_qkv_bias: true, weight_tying: true } }],
  ['no layers at all', { config: { n_layers: 0, num_head_layers: 0 } }],
];
const ENTRIES = 2; // differentiated per tensor
const STEP = 1e-5;

describe.each(variants)('%s', (_name, options) => {
  let made: MadeCheckpoint;
  let model: MaskedDiffusionModel;
  beforeAll(async () => {
    made = makeCheckpoint({ ...options, seed: 5 });
    model = await loadModel(made.folder);
  });
  afterAll(() => model.dispose());

  test('every tensor against central differences in double', async () => {
    const { config, weights } = made;
    const problem = makeProblem(config, 9);
    const found = await gradients(model, problem, {});
    expect([...found.keys()].sort()).toEqual([...weights.keys()].sort());
    const next = random(3);
    for (const [name, { data }] of weights) {
      const gradient = found.get(name)!;
      const largest = gradient.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      expect(largest).toBeGreaterThan(0);
      const norm = Math.sqrt(gradient.reduce((sum, x) => sum + x * x, 0));
      // The largest entry, and some at random.
      const entries = [gradient.findIndex((x) => Math.abs(x) === largest)];
      while (entries.length < Math.min(ENTRIES, data.length)) entries.push(Math.floor(next() * data.length));
      for (const entry of entries) {
        const value = data[entry];
        data[entry] = value + STEP;
        const above = objective(config, weights, problem);
        data[entry] = value - STEP;
        const below = objective(config, weights, problem);
        data[entry] = value;
        const expected = (above - below) / (2 * STEP);
        // fp32 chains: errors scale with the tensor's gradient, not with the entry.
        const error = Math.abs(gradient[entry] - expected) / (1e-4 * Math.max(norm, 1e-3));
        if (!(error < 1))
          throw new Error(`${name}[${entry}]: expected ${expected}, got ${gradient[entry]} (norm ${norm})`);
      }
    }
  });

  test('recomputed activations give the same bits; freezing leaves the other gradients as they are', async () => {
    const problem = makeProblem(made.config, 10);
    const all = await gradients(model, problem, {});
    expect(await gradients(model, problem, { activationCheckpointing: true })).toEqual(all);
    for (const frozen of ['freezeBase', 'freezePlanner'] as const) {
      const some = await gradients(model, problem, { [frozen]: true });
      const isBase = (name: string) => name.startsWith('model.');
      expect([...some.keys()].every((name) => isBase(name) === (frozen === 'freezePlanner'))).toBe(true);
      expect(some.size).toBeGreaterThan(0);
      for (const [name, gradient] of some) expect(gradient).toEqual(all.get(name));
    }
  });
});

test('adapters: gradients are the weight gradient seen through the product, on every projection', async () => {
  const made = makeCheckpoint({ seed: 6 });
  const model = await loadModel(made.folder);
  const problem = makeProblem(made.config, 11);
  const rank = 3;
  const alpha = 6;
  const targets = ['q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out'] as const;
  const adapters = new Map<string, Float32Array>();
  const next = random(8);
  const low = await gradients(model, problem, { lora: { rank, alpha, targets } }, async (trainer) => {
    const state = await trainer.state();
    for (const tensor of state.tensors) {
      if (tensor.name.startsWith('exp_avg')) continue;
      // B begins as zero, which would hide A's gradient.
      if (tensor.name.endsWith('lora_B.weight')) tensor.data = tensor.data.map(() => (next() - 0.5) * 0.1);
      adapters.set(tensor.name, tensor.data);
    }
    await trainer.loadState(state);
  });
  // The trainer is gone, the model keeps the merged weights: train those in full.
  const full = await gradients(model, problem, { freezePlanner: true });
  let compared = 0;
  for (const [name, dA] of low) {
    if (!name.endsWith('lora_A.weight')) continue;
    const module = name.replace('.lora_A.weight', '');
    const [a, b, dB, dW] = [
      adapters.get(name)!,
      adapters.get(`${module}.lora_B.weight`)!,
      low.get(`${module}.lora_B.weight`)!,
      full.get(`${module}.weight`)!,
    ];
    const k = a.length / rank;
    const n = b.length / rank;
    const check = (found: Float32Array, expected: (i: number) => number) => {
      const values = Float64Array.from(found, (_, i) => expected(i));
      const norm = Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
      found.forEach((x, i) => expect(Math.abs(x - values[i])).toBeLessThan(1e-4 * norm));
    };
    const scale = alpha / rank;
    check(dA, (at) => {
      const [r, column] = [Math.floor(at / k), at % k];
      let sum = 0;
      for (let i = 0; i < n; i++) sum += b[i * rank + r] * dW[i * k + column];
      return scale * sum;
    });
    check(dB, (at) => {
      const [row, r] = [Math.floor(at / rank), at % rank];
      let sum = 0;
      for (let j = 0; j < k; j++) sum += dW[row * k + j] * a[r * k + j];
      return scale * sum;
    });
    compared++;
  }
  expect(compared).toBe(targets.length * made.config.n_layers);
  model.dispose();
});

test.each(['q8', 'q4'] as const)(
  'adapters and planner over a base in %s, against central differences',
  async (quantize) => {
    const made = makeCheckpoint({
      seed: 7,
      config: { d_model: 32, n_heads: 4, n_kv_heads: 2, mlp_hidden_size: 64, n_layers: 1, num_head_layers: 1 },
    });
    const { config, weights } = made;
    const problem = makeProblem(config, 12);
    await using model = await loadModel(made.folder, { quantize });
    // The numbers that the quantised model computes with.
    const exact = temporaryFolder();
    await model.save(exact);
    for (const [name, { data }] of await readSafetensors(path.join(exact, 'model.safetensors')))
      weights.get(name)!.data.set(data as Float32Array);
    const rank = 2;
    const scale = 1.5;
    const targets = ['q_proj', 'v_proj', 'attn_out', 'up_proj', 'ff_out'] as const;
    const parameters = new Map<string, Float64Array>();
    const next = random(9);
    const bytes = model.info.weightBytes;
    const found = await gradients(model, problem, { lora: { rank, alpha: scale * rank, targets } }, async (trainer) => {
      const state = await trainer.state();
      for (const tensor of state.tensors) {
        if (tensor.name.startsWith('exp_avg')) continue;
        // B begins as zero, which would hide A's gradient.
        if (tensor.name.endsWith('lora_B.weight')) tensor.data = tensor.data.map(() => (next() - 0.5) * 0.2);
        parameters.set(tensor.name, Float64Array.from(tensor.data));
      }
      await trainer.loadState(state);
    });
    expect(model.info.weightBytes).toBe(bytes);
    const base = new Map([...weights].map(([name, { data }]) => [name, data.slice()]));
    /** The objective with scale * B A added to the base, all in double. */
    const total = () => {
      for (const [name, values] of parameters) {
        const module = /^(.*)\.lora_A\.weight$/.exec(name)?.[1];
        if (module === undefined) {
          if (!name.endsWith('lora_B.weight')) weights.get(name)!.data.set(values);
          continue;
        }
        const b = parameters.get(`${module}.lora_B.weight`)!;
        const columns = values.length / rank;
        const { data } = weights.get(`${module}.weight`)!;
        base.get(`${module}.weight`)!.forEach((w, at) => {
          const [row, column] = [Math.floor(at / columns), at % columns];
          data[at] = w;
          for (let r = 0; r < rank; r++) data[at] += scale * b[row * rank + r] * values[r * columns + column];
        });
      }
      return objective(config, weights, problem);
    };
    expect([...found.keys()].filter((name) => name.includes('.lora_'))).toHaveLength(2 * targets.length);
    expect(found.has('mask_linear.weight')).toBe(true);
    for (const [name, gradient] of found) {
      const largest = gradient.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      expect(largest).toBeGreaterThan(0);
      const norm = Math.sqrt(gradient.reduce((sum, x) => sum + x * x, 0));
      const data = parameters.get(name)!;
      for (const entry of [gradient.findIndex((x) => Math.abs(x) === largest), Math.floor(next() * data.length)]) {
        const value = data[entry];
        data[entry] = value + STEP;
        const above = total();
        data[entry] = value - STEP;
        const below = total();
        data[entry] = value;
        const expected = (above - below) / (2 * STEP);
        expect(Math.abs(gradient[entry] - expected) / (1e-4 * Math.max(norm, 1e-3))).toBeLessThan(1);
      }
    }
  },
);
