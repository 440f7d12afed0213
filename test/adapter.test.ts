// Adapters of PEFT: every setting of adapter_config.json is applied as a merge by hand does it, or refused by its name.
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel } from '../lib';
import { encode, random, type StorageType } from './checkpoints';
import { type FixtureTensor, modelFolder, readTensors, temporaryFolder, variant, writeTensors } from './helpers';

type Json = Record<string, unknown>;

const MODEL = 'gqa';
const PREFIX = 'base_model.model.';
const base = readTensors(path.join(modelFolder(MODEL), 'model.safetensors'));
const ids = [5, 17, 3, 40, 61, 2];
const PROJECTIONS = ['q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out'];
const LAYERS = [0, 1, 2];
const moduleOf = (layer: number, projection: string) => `model.transformer.blocks.${layer}.${projection}`;
const modulesOf = (projections: readonly string[], layers = LAYERS) =>
  layers.flatMap((layer) => projections.map((projection) => moduleOf(layer, projection)));

/** Adapters of a module: A [rank, inputs], B [outputs, rank]; eighths, which every storage type holds exactly. */
interface Matrices {
  rank: number;
  A: Float64Array;
  B: Float64Array;
}

/** Random adapters of modules, with a rank for each. */
function matricesOf(modules: readonly string[], rankOf: (module: string) => number): Map<string, Matrices> {
  const next = random(11);
  const draw = (length: number) => Float64Array.from({ length }, () => (Math.floor(next() * 9) - 4) / 8);
  return new Map(
    modules.map((module) => {
      const [outputs, inputs] = base[`${module}.weight`].shape;
      const rank = rankOf(module);
      return [module, { rank, A: draw(rank * inputs), B: draw(outputs * rank) }];
    }),
  );
}

/** The base model with `scale` · B · A added to its weights, in double precision. */
function mergedByHand(matrices: ReadonlyMap<string, Matrices>, scaleOf: (module: string) => number): string {
  return variant(MODEL, {
    tensors: (tensors) => {
      for (const [module, { rank, A, B }] of matrices) {
        const { shape, data } = tensors[`${module}.weight`];
        const [outputs, inputs] = shape;
        const sum = Float32Array.from(data as Float32Array, (weight, at) => {
          const [o, i] = [Math.floor(at / inputs), at % inputs];
          let product = 0;
          for (let k = 0; k < rank; k++) product += B[o * rank + k] * A[k * inputs + i];
          return weight + scaleOf(module) * product;
        });
        expect(sum).toHaveLength(outputs * inputs);
        tensors[`${module}.weight`] = { dtype: 'F32', shape, data: sum, raw: Buffer.from(sum.buffer) };
      }
    },
  });
}

/** adapter_config.json as PEFT 0.17 writes it. */
const CONFIG: Json = {
  alpha_pattern: {},
  auto_mapping: null,
  base_model_name_or_path: 'org/model',
  bias: 'none',
  corda_config: null,
  eva_config: null,
  exclude_modules: null,
  fan_in_fan_out: false,
  inference_mode: true,
  init_lora_weights: true,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: null,
  loftq_config: {},
  lora_alpha: 3,
  lora_bias: false,
  lora_dropout: 0.05,
  megatron_config: null,
  megatron_core: 'megatron.core',
  modules_to_save: null,
  peft_type: 'LORA',
  qalora_group_size: 16,
  r: 2,
  rank_pattern: {},
  revision: null,
  target_modules: ['q_proj', 'v_proj'],
  target_parameters: null,
  task_type: 'CAUSAL_LM',
  trainable_token_indices: null,
  use_dora: false,
  use_qalora: false,
  use_rslora: false,
};

/** Writes an adapter folder. @param change of its tensors, before they are written */
function writeAdapter(
  config: Json,
  matrices: ReadonlyMap<string, Matrices>,
  { dtype = 'F32', change }: { dtype?: StorageType; change?: (tensors: Record<string, FixtureTensor>) => void } = {},
): string {
  const folder = temporaryFolder();
  const tensors: Record<string, FixtureTensor> = {};
  const put = (name: string, shape: number[], data: Float64Array) => {
    tensors[PREFIX + name] = { dtype, shape, data, raw: encode(data, dtype) };
  };
  for (const [module, { rank, A, B }] of matrices) {
    put(`${module}.lora_A.weight`, [rank, A.length / rank], A);
    put(`${module}.lora_B.weight`, [B.length / rank, rank], B);
  }
  change?.(tensors);
  writeFileSync(path.join(folder, 'adapter_config.json'), JSON.stringify({ ...CONFIG, ...config }));
  writeTensors(path.join(folder, 'adapter_model.safetensors'), tensors);
  return folder;
}

async function logitsWith(folder: string, adapter?: string): Promise<Float32Array> {
  await using model = await loadModel(folder, { threads: 1 });
  if (adapter !== undefined) (await model.loadAdapter(adapter)).dispose();
  return (await model.forward({ ids })).logits!;
}

const distance = (a: Float32Array, b: Float32Array) => a.reduce((max, x, i) => Math.max(max, Math.abs(x - b[i])), 0);
let plain: Float32Array;
beforeAll(async () => {
  plain = await logitsWith(modelFolder(MODEL));
});

interface Applied {
  config?: Json;
  modules?: string[];
  rankOf?: (module: string) => number;
  scaleOf?: (module: string) => number;
  dtype?: StorageType;
}

describe('applied as a merge by hand', () => {
  const both = modulesOf(['q_proj', 'v_proj']);
  const isQ = (module: string) => module.endsWith('q_proj');
  const applied: [string, Applied][] = [
    ['the usual', {}],
    ['stored as bf16', { dtype: 'BF16' }],
    ['stored as fp16', { dtype: 'F16' }],
    ['every projection', { config: { target_modules: PROJECTIONS }, modules: modulesOf(PROJECTIONS) }],
    [
      'names of PEFT with more of the path',
      {
        config: { target_modules: ['blocks.0.q_proj', 'v_proj'] },
        modules: [moduleOf(0, 'q_proj'), ...modulesOf(['v_proj'])],
      },
    ],
    ['full names', { config: { target_modules: [moduleOf(1, 'k_proj')] }, modules: [moduleOf(1, 'k_proj')] }],
    ['a regular expression', { config: { target_modules: String.raw`.*\.blocks\.\d+\.(q_proj|v_proj)` } }],
    [
      'one with groups that do not capture',
      {
        config: { target_modules: String.raw`(?:.*?(?:blocks|layers).*?(?:q_proj|ff_out))|(?:\bnothing\.[\d]{1,}\.x)` },
        modules: modulesOf(['q_proj', 'ff_out']),
      },
    ],
    ['rank-stabilised', { config: { use_rslora: true }, scaleOf: () => 3 / Math.sqrt(2) }],
    ['alpha_pattern', { config: { alpha_pattern: { q_proj: 16 } }, scaleOf: (m) => (isQ(m) ? 16 : 3) / 2 }],
    [
      'alpha_pattern of one layer',
      {
        config: { alpha_pattern: { 'blocks.1.v_proj': 5 } },
        scaleOf: (m) => (m === moduleOf(1, 'v_proj') ? 5 : 3) / 2,
      },
    ],
    [
      'alpha_pattern as a regular expression, of which the first counts',
      {
        config: {
          alpha_pattern: { 'blocks\\.[0-2]\\.q_proj': 8, q_proj: 16, [`^${moduleOf(0, 'v_proj')}`]: 7 },
        },
        scaleOf: (m) => (isQ(m) ? 8 : m === moduleOf(0, 'v_proj') ? 7 : 3) / 2,
      },
    ],
    [
      'alpha_pattern of another module, and of a part of a name',
      { config: { alpha_pattern: { up_proj: 9, proj: 9, 'locks.0.q_proj': 9 } } },
    ],
    [
      'rank_pattern',
      {
        config: { rank_pattern: { v_proj: 5 } },
        rankOf: (m) => (isQ(m) ? 2 : 5),
        scaleOf: (m) => 3 / (isQ(m) ? 2 : 5),
      },
    ],
    [
      'rank_pattern below r',
      {
        config: { r: 4, rank_pattern: { [moduleOf(0, 'q_proj')]: 1 } },
        rankOf: (m) => (m === moduleOf(0, 'q_proj') ? 1 : 4),
        scaleOf: (m) => 3 / (m === moduleOf(0, 'q_proj') ? 1 : 4),
      },
    ],
    [
      'rank_pattern and alpha_pattern, rank-stabilised, bf16',
      {
        config: { use_rslora: true, rank_pattern: { q_proj: 4 }, alpha_pattern: { q_proj: 6, 'blocks.0.v_proj': 1 } },
        rankOf: (m) => (isQ(m) ? 4 : 2),
        scaleOf: (m) => (isQ(m) ? 6 / 2 : (m === moduleOf(0, 'v_proj') ? 1 : 3) / Math.sqrt(2)),
        dtype: 'BF16',
      },
    ],
    [
      'layers_to_transform: a list',
      { config: { layers_to_transform: [1, 2] }, modules: modulesOf(['q_proj', 'v_proj'], [1, 2]) },
    ],
    [
      'layers_to_transform: a layer',
      { config: { layers_to_transform: 0 }, modules: modulesOf(['q_proj', 'v_proj'], [0]) },
    ],
    ['layers_to_transform: none named', { config: { layers_to_transform: [] } }],
    [
      'layers_pattern',
      {
        config: { layers_to_transform: [0], layers_pattern: ['layers', 'blocks'] },
        modules: modulesOf(['q_proj', 'v_proj'], [0]),
      },
    ],
    ['exclude_modules', { config: { exclude_modules: ['v_proj'] }, modules: modulesOf(['q_proj']) }],
    [
      'exclude_modules as a regular expression',
      { config: { exclude_modules: String.raw`.*\.blocks\.0\..*` }, modules: modulesOf(['q_proj', 'v_proj'], [1, 2]) },
    ],
    [
      'a module of one layer beside one of all',
      {
        config: { exclude_modules: ['blocks.1.q_proj'] },
        modules: [...modulesOf(['v_proj']), ...modulesOf(['q_proj'], [0, 2])],
      },
    ],
    ...['gaussian', 'eva', 'orthogonal', false].map((init): [string, Applied] => [
      `init_lora_weights ${init}`,
      { config: { init_lora_weights: init } },
    ]),
    [
      'settings that say nothing',
      {
        config: {
          modules_to_save: [],
          trainable_token_indices: {},
          target_parameters: [],
          new_setting: null,
          other: false,
        },
      },
    ],
    [
      'bookkeeping',
      {
        config: {
          peft_version: '0.18.0',
          eva_config: { rho: 2 },
          auto_mapping: { base_model_class: 'LLaDAModelLM' },
          lora_dropout: 0.1,
          task_type: null,
        },
      },
    ],
  ];
  test.each(applied)('%s', async (_name, { config = {}, modules = both, rankOf, scaleOf, dtype }) => {
    const matrices = matricesOf(modules, rankOf ?? (() => (config.r as number) ?? 2));
    const scale = scaleOf ?? (() => 3 / ((config.r as number) ?? 2));
    const wanted = await logitsWith(mergedByHand(matrices, scale));
    expect(distance(wanted, plain)).toBeGreaterThan(1e-2);
    const got = await logitsWith(modelFolder(MODEL), writeAdapter(config, matrices, { dtype }));
    expect(distance(got, wanted)).toBeLessThan(2e-5 * Math.max(1, ...wanted.map(Math.abs)));
  });

  test('it is taken out and put back; the handle says what was merged', async () => {
    const matrices = matricesOf(both, (m) => (isQ(m) ? 2 : 5));
    await using model = await loadModel(modelFolder(MODEL), { threads: 1 });
    const adapter = await model.loadAdapter(writeAdapter({ rank_pattern: { v_proj: 5 } }, matrices));
    expect(adapter.lora).toEqual({ rank: 5, alpha: 5, targets: ['q_proj', 'v_proj'] });
    const merged = (await model.forward({ ids })).logits!;
    await adapter.unmerge();
    expect((await model.forward({ ids })).logits).toEqual(plain);
    await adapter.merge();
    expect((await model.forward({ ids })).logits).toEqual(merged);
    adapter.dispose();
  });
});

describe('refused by name', () => {
  const both = modulesOf(['q_proj', 'v_proj']);
  const usual = () => matricesOf(both, () => 2);
  const failure = async (adapter: string) => {
    await using model = await loadModel(modelFolder(MODEL), { threads: 1 });
    const error = await model.loadAdapter(adapter).then(
      () => {
        throw new Error('it loaded');
      },
      (reason) => reason,
    );
    expect(error).toMatchObject({ name: 'DUltraError', code: 'BAD_CHECKPOINT' });
    // The model is as it was.
    expect((await model.forward({ ids })).logits).toEqual(plain);
    return error.message as string;
  };

  const settings: [string, unknown, string][] = [
    ['peft_type', 'LOHA', 'expected "LORA", got "LOHA"'],
    ['peft_type', undefined, 'expected "LORA", got undefined'],
    ['use_dora', true, 'expected false or null, got true'],
    ['fan_in_fan_out', true, 'expected false or null, got true'],
    ['bias', 'all', 'expected "none" or null, got "all"'],
    ['bias', 'lora_only', 'expected "none" or null, got "lora_only"'],
    ['lora_bias', true, 'expected false or null, got true'],
    ['trainable_token_indices', [1, 2], 'expected null, got [1,2]'],
    ['trainable_token_indices', { wte: [1] }, 'expected null, got an object'],
    ['target_parameters', ['experts.weight'], 'expected null, got ["experts.weight"]'],
    ['layer_replication', [[0, 2]], 'expected null, got '],
    ['use_qalora', true, 'expected false or null, got true'],
    ['alora_invocation_tokens', [5], 'expected null, got [5]'],
    ['arrow_config', { top_k: 2 }, 'expected null, got an object'],
    ['ensure_weight_tying', true, 'expected false or null, got true'],
    ['megatron_config', { x: 1 }, 'expected null, got an object'],
    ['init_lora_weights', 'pissa', 'expected true or false or "gaussian"'],
    ['init_lora_weights', 'pissa_niter_4', 'expected true or false or "gaussian"'],
    ['init_lora_weights', 'olora', 'expected true or false or "gaussian"'],
    ['init_lora_weights', 'loftq', 'expected true or false or "gaussian"'],
    ['init_lora_weights', 'corda', 'expected true or false or "gaussian"'],
    ['init_lora_weights', 'lora_ga', 'expected true or false or "gaussian"'],
    ['loftq_config', { loftq_bits: 4 }, 'expected null, got an object'],
    ['use_future_trick', true, 'a key that is not known here and may change the results'],
    ['future_config', { strength: 2 }, 'a key that is not known here and may change the results'],
    ['r', 0, 'expected a positive integer, got 0'],
    ['r', 2.5, 'expected a positive integer, got 2.5'],
    ['lora_alpha', -1, 'expected a positive number up to 1000000, got -1'],
    ['lora_alpha', '3', 'expected a positive number up to 1000000, got "3"'],
    ['use_rslora', 'yes', 'expected true or false, got "yes"'],
    ['alpha_pattern', { q_proj: '8' }, '"q_proj": expected a positive number, got "8"'],
    ['alpha_pattern', { q_proj: 0 }, '"q_proj": expected a positive number, got 0'],
    ['alpha_pattern', [8], 'expected an object of names to numbers, got [8]'],
    ['alpha_pattern', { '(?P<n>q_proj)': 8 }, 'expected names, or a regular expression that Python and JavaScript'],
    ['rank_pattern', { q_proj: 1.5 }, '"q_proj": expected a positive number, got 1.5'],
    ['rank_pattern', { '(q_proj': 3 }, 'expected names, or a regular expression that Python and JavaScript'],
    ['target_modules', null, 'expected a list of projections, got null'],
    ['target_modules', [], 'expected a list of projections, got []'],
    ['target_modules', ['q_proj', 'o_proj'], 'expected "q_proj" or "k_proj"'],
    ['target_modules', ['q_proj', 5], 'or "ff_out", got 5'],
    ['target_modules', 'all-linear', 'got none of them by "all-linear"'],
    ['target_modules', 'q_proj', 'got none of them by "q_proj"'],
    ['target_modules', '(?<n>.*q_proj)', 'expected names, or a regular expression that Python and JavaScript'],
    ['target_modules', '(?i).*Q_PROJ', 'expected names, or a regular expression that Python and JavaScript'],
    ['exclude_modules', ['q_proj', 'v_proj'], 'got none of them by ["q_proj","v_proj"]'],
    ['layers_to_transform', [7], 'got none of them by'],
    ['layers_to_transform', ['0'], 'layers_to_transform: expected a layer or a list of layers, got ["0"]'],
    ['layers_pattern', 'blocks', 'expected layers_to_transform beside it, got null'],
    ['modules_to_save', 'ff_out', 'expected a list of names, got "ff_out"'],
    ['modules_to_save', ['ff_out'], 'expected tensors of "ff_out", which modules_to_save names, got none'],
  ];
  test.each(settings)('%s = %j', async (key, value, message) => {
    const said = await failure(writeAdapter({ [key]: value }, usual()));
    expect(said).toContain(message);
    // What is left out leaves none of the targets.
    expect(said).toContain(message.startsWith('got none of them') ? 'target_modules: ' : key);
  });

  const unfit: [string, Json, (tensors: Record<string, FixtureTensor>) => void, RegExp][] = [
    [
      'settings that leave out a layer whose tensors are there',
      { layers_to_transform: [0] },
      () => {},
      /blocks\.1\.q_proj\.lora_A\.weight": expected adapters of the modules/,
    ],
    [
      'settings that leave out a projection whose tensors are there',
      { exclude_modules: ['v_proj'] },
      () => {},
      /blocks\.0\.v_proj\.lora_A\.weight": expected adapters/,
    ],
    [
      'a rank that the tensors do not have',
      { rank_pattern: { q_proj: 3 } },
      () => {},
      /blocks\.0\.q_proj\.lora_A\.weight: expected \[3, inputs\] for rank 3, got \[2, \d+\]/,
    ],
    [
      'r that the tensors do not have',
      { r: 4 },
      () => {},
      /lora_A\.weight: expected \[4, inputs\] for rank 4, got \[2, \d+\]/,
    ],
    [
      'a module without tensors',
      { target_modules: ['q_proj', 'v_proj', 'up_proj'] },
      () => {},
      /blocks\.0\.up_proj\.lora_A\.weight is missing/,
    ],
    [
      'half an adapter',
      {},
      (tensors) => {
        delete tensors[`${PREFIX}${moduleOf(1, 'v_proj')}.lora_B.weight`];
      },
      /blocks\.1\.v_proj\.lora_B\.weight is missing/,
    ],
    ...['lora_magnitude_vector', 'lora_A.bias', 'lora_B.bias', 'bias', 'lora_embedding_A'].map(
      (part): [string, Json, (tensors: Record<string, FixtureTensor>) => void, RegExp] => [
        `a tensor ${part}`,
        {},
        (tensors) => {
          const data = new Float64Array(4);
          tensors[`${PREFIX}${moduleOf(0, 'q_proj')}.${part}`] = {
            dtype: 'F32',
            shape: [4],
            data,
            raw: encode(data, 'F32'),
          };
        },
        new RegExp(`q_proj\\.${part}": expected adapters of the modules, and the modules_to_save`),
      ],
    ),
    [
      'a whole module that is not one of the model',
      { modules_to_save: ['lm_head'] },
      (tensors) => {
        const data = new Float64Array(4);
        tensors[`${PREFIX}lm_head.weight`] = { dtype: 'F32', shape: [2, 2], data, raw: encode(data, 'F32') };
      },
      /tensor "lm_head\.weight": expected a name of this model, got \[2, 2\]/,
    ],
    [
      'another type',
      {},
      (tensors) => {
        const name = `${PREFIX}${moduleOf(0, 'q_proj')}.lora_A.weight`;
        tensors[name] = { ...tensors[name], dtype: 'I32' };
      },
      /q_proj\.lora_A\.weight": expected F32, BF16 or F16, got I32/,
    ],
    [
      'a type without elements of whole bytes',
      {},
      (tensors) => {
        const data = new Float64Array(0);
        tensors.extra = { dtype: 'F4', shape: [4], data, raw: Buffer.alloc(2) };
      },
      /tensor "extra": expected a dtype such as F32, got "F4"/,
    ],
  ];
  test.each(unfit)('%s', async (_name, config, change, message) => {
    expect(await failure(writeAdapter(config, usual(), { change }))).toMatch(message);
  });

  test('an expression that would take for ever', async () => {
    const source = `(?:.*?.*?)*(?:\\w*\\w*)*${'(?:.*\\w*)*'.repeat(8)}never`;
    expect(await failure(writeAdapter({ target_modules: source }, usual()))).toMatch(
      /target_modules: expected names, or/,
    );
  }, 60_000);

  test('pointers of Git LFS in the place of its files', async () => {
    const pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n';
    for (const name of ['adapter_config.json', 'adapter_model.safetensors']) {
      const folder = writeAdapter({}, usual());
      writeFileSync(path.join(folder, name), pointer);
      expect(await failure(folder)).toMatch(new RegExp(`${name}: a Git LFS pointer, not the file itself`));
    }
    const empty = path.join(temporaryFolder(), 'empty');
    mkdirSync(empty);
    expect(await failure(empty)).toMatch(/adapter_config\.json: ENOENT/);
  });
});
