// Mixtures of experts: LLaDA-MoE and LLaDA2. That their numbers are the reference's, test/golden.test.ts says.
import path from 'node:path';
import { createPlanner, loadModel, training } from '../lib';
import { parseDiffusionCheckpoint } from '../lib/model/families';
import { expectedTensors } from '../lib/model/tensors';
import { type FixtureTensor, modelFolder, temporaryFolder, variant } from './helpers';

const IDS = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const request = { ids: IDS, rowOffsets: [0, IDS.length] };
const load = { threads: 1, maskTokenId: 77 };

/** As published, as far as it decides anything. */
const lladaMoe = {
  architectures: ['LLaDAMoEModelLM'],
  attention_bias: false,
  attention_dropout: 0.0,
  clip_qkv: null,
  dense_intermediate_size: 8192,
  eos_token_id: 156892,
  expert_intermediate_size: 1024,
  hidden_act: 'silu',
  hidden_size: 2048,
  initializer_range: 0.02,
  max_position_embeddings: 8192,
  model_type: 'lladamoe',
  moe_layer_freq: new Array(16).fill(1),
  moe_router_enable_expert_bias: false,
  moe_router_score_function: 'softmax',
  norm_topk_prob: null,
  num_attention_heads: 16,
  num_experts: 64,
  num_experts_per_tok: 8,
  num_hidden_layers: 16,
  num_key_value_heads: 16,
  output_router_logits: false,
  pad_token_id: 156892,
  partial_rotary_factor: 1,
  qk_layernorm: true,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 50000,
  routed_scaling_factor: 1,
  router_aux_loss_coef: 0.01,
  router_num_group: null,
  router_topk_group: null,
  shared_expert_intermediate_size: null,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
  use_cache: false,
  vocab_size: 157184,
};
const llada2 = {
  architectures: ['LLaDA2MoeModelLM'],
  attention_dropout: 0.0,
  embedding_dropout: 0.0,
  first_k_dense_replace: 1,
  head_dim: 128,
  hidden_act: 'silu',
  hidden_size: 2048,
  initializer_range: 0.02,
  intermediate_size: 5120,
  max_position_embeddings: 8192,
  max_window_layers: 28,
  model_type: 'llada2_moe',
  moe_intermediate_size: 512,
  moe_router_enable_expert_bias: true,
  n_group: 8,
  norm_head: false,
  norm_softmax: false,
  norm_topk_prob: true,
  num_attention_heads: 16,
  num_experts: 256,
  num_experts_per_tok: 8,
  num_hidden_layers: 20,
  num_key_value_heads: 4,
  num_shared_experts: 1,
  output_dropout: 0.0,
  output_router_logits: false,
  pad_token_id: 156892,
  partial_rotary_factor: 0.5,
  rms_norm_eps: 1e-6,
  rope_scaling: null,
  rope_theta: 600000,
  rotary_dim: 64,
  routed_scaling_factor: 2.5,
  router_dtype: 'fp32',
  score_function: 'sigmoid',
  tie_word_embeddings: false,
  topk_group: 4,
  torch_dtype: 'bfloat16',
  use_bias: false,
  use_cache: true,
  use_qkv_bias: false,
  use_rmsnorm: true,
  use_sliding_window: false,
  using_split_qkv_in_self_attention: false,
  vocab_size: 157184,
};
const parse = (json: Record<string, unknown>, has = (name: string) => !/mask_linear|block_embedding/.test(name)) =>
  parseDiffusionCheckpoint(json, 'config.json', { has });
const parametersOf = (json: Record<string, unknown>) => {
  const { config } = parse(json);
  const all = [...expectedTensors(config).values()].map((shape) => shape.reduce((product, n) => product * n, 1));
  return { config, parameters: all.reduce((sum, n) => sum + n, 0) };
};

describe('published configs', () => {
  test('inclusionAI/LLaDA-MoE-7B-A1B-Instruct', () => {
    const { config, parameters } = parametersOf(lladaMoe);
    expect(config).toMatchObject({
      family: 'llada-moe',
      mask: 'bidirectional',
      maskTokenId: 156895,
      headDim: 128,
      ropeDim: 128,
      qkNorm: true,
      experts: { count: 64, perToken: 8, hiddenSize: 1024, scores: 'softmax', normalize: false, bias: null, groups: 1 },
    });
    // 7B.
    expect(parameters / 1e9).toBeCloseTo(7.36, 1);
  });

  test('inclusionAI/LLaDA2.0-mini', () => {
    const { config, parameters } = parametersOf(llada2);
    expect(config).toMatchObject({
      family: 'llada2',
      mask: 'block-causal',
      blockLength: 32,
      maskTokenId: 156895,
      ropeDim: 64,
      qkvBias: false,
      attnOutBias: false,
      experts: {
        count: 256,
        perToken: 8,
        sharedHiddenSize: 512,
        scale: 2.5,
        bias: 'choice',
        groups: 8,
        groupsPerToken: 4,
      },
    });
    expect(config.experts!.layers.map(Number).join('')).toBe(`0${'1'.repeat(19)}`);
    // 16B.
    expect(parameters / 1e9).toBeCloseTo(16.26, 1);
  });

  test('no key-value heads are as many as heads, and biases are on where nothing is said', () => {
    const { use_bias: _, ...json } = { ...llada2, num_key_value_heads: 0 };
    expect(parse(json).config).toMatchObject({ nKvHeads: 16, attnOutBias: true });
  });

  test.each<[Record<string, unknown>, string]>([
    [{ ...llada2, n_group: 7 }, 'n_group: expected num_experts (256) to divide into groups of at least two, got 7'],
    [{ ...llada2, n_group: 256 }, 'n_group: expected num_experts (256) to divide into groups of at least two, got 256'],
    [{ ...llada2, topk_group: 9 }, 'topk_group: expected at most n_group (8), got 9'],
    [
      { ...llada2, num_experts_per_tok: 40, topk_group: 1 },
      'num_experts_per_tok: expected at most the 32 experts of topk_group (1) groups, got 40',
    ],
    [{ ...lladaMoe, num_experts_per_tok: 65 }, 'num_experts_per_tok: expected at most num_experts (64), got 65'],
    [{ ...lladaMoe, num_attention_heads: 12 }, 'hidden_size / num_attention_heads: expected an even head size'],
    [{ ...lladaMoe, num_key_value_heads: 5 }, 'num_attention_heads: expected a multiple of num_key_value_heads (5)'],
    [{ ...lladaMoe, moe_layer_freq: [1, 1] }, 'moe_layer_freq: expected an entry for each of 16 layers'],
    [{ ...lladaMoe, moe_layer_freq: 2 }, 'moe_layer_freq: '],
    [
      { ...lladaMoe, dense_intermediate_size: null, moe_layer_freq: [0, ...new Array(15).fill(1)] },
      'dense_intermediate_size: expected the width of the layers without experts, got none',
    ],
    [{ ...lladaMoe, partial_rotary_factor: 0.01 }, 'partial_rotary_factor: expected an even part of the head size'],
    [{ ...llada2, rotary_dim: 128 }, 'rotary_dim: expected partial_rotary_factor times the head size (64), got 128'],
    [{ ...lladaMoe, num_experts: 5000 }, 'num_experts: '],
    [{ ...lladaMoe, norm_topk_prob: true }, 'norm_topk_prob: expected false or null, got true'],
    [{ ...lladaMoe, routed_scaling_factor: 2 }, 'routed_scaling_factor: expected 1 or null, got 2'],
    [{ ...lladaMoe, moe_router_score_function: 'sigmoid' }, 'moe_router_score_function: expected "softmax"'],
    [{ ...llada2, score_function: 'softmax' }, 'score_function: expected "sigmoid"'],
    [{ ...llada2, norm_topk_prob: false }, 'norm_topk_prob: expected true or null, got false'],
    [{ ...llada2, use_qk_norm: false }, 'use_qk_norm: expected true or null, got false'],
    [{ ...llada2, expert_capacity: 4 }, 'expert_capacity: a key that is not known here'],
  ])('%#: refused by name', (json, message) => {
    expect(() => parse(json)).toThrow(message);
  });
});

/** The experts of a layer's projection as one tensor, as merged checkpoints have them. */
function merge(tensors: Record<string, FixtureTensor>, suffix: string): void {
  for (let layer = 0; layer < 3; layer++)
    for (const projection of ['gate_proj', 'up_proj', 'down_proj']) {
      const names = Object.keys(tensors).filter((name) =>
        new RegExp(`layers\\.${layer}\\.mlp\\.experts\\.\\d+\\.${projection}\\.weight$`).test(name),
      );
      if (names.length === 0) continue;
      const ordered = names.map(
        (_, expert) => tensors[`model.layers.${layer}.mlp.experts.${expert}.${projection}.weight`],
      );
      tensors[`model.layers.${layer}.mlp.experts.${projection}${suffix}`] = {
        ...ordered[0],
        shape: [names.length, ...ordered[0].shape],
        raw: Buffer.concat(ordered.map(({ raw }) => raw)),
      };
      for (const name of names) delete tensors[name];
    }
}

describe('files', () => {
  test.each(['', '.weight'])(
    'experts that are stacked in one tensor (…proj%s) give the same numbers',
    async (suffix) => {
      await using plain = await loadModel(modelFolder('llada2'), load);
      await using merged = await loadModel(variant('llada2', { tensors: (all) => merge(all, suffix) }), load);
      expect(await merged.forward(request)).toEqual(await plain.forward(request));
    },
  );

  test.each(['llada2', 'llada2_b', 'lladamoe', 'lladamoe_b'])('%s: what is saved loads again', async (name) => {
    await using model = await loadModel(modelFolder(name), load);
    const folder = path.join(temporaryFolder(), 'saved');
    await model.save(folder);
    await using again = await loadModel(folder, { threads: 1 });
    expect(again.config).toEqual(model.config);
    expect(await again.forward(request)).toEqual(await model.forward(request));
  });

  const refused = (name: string, change: Parameters<typeof variant>[1], message: string | RegExp) =>
    expect(loadModel(variant(name, change), load)).rejects.toMatchObject({
      code: 'BAD_CHECKPOINT',
      message: expect.stringMatching(message),
    });
  const without = (...names: string[]) => ({
    tensors: (tensors: Record<string, FixtureTensor>) => {
      for (const name of names) delete tensors[name];
    },
  });

  test('a missing expert, router or bias is named', async () => {
    const expert = 'model.layers.1.mlp.experts.6.up_proj.weight';
    await refused('llada2', without(expert), `missing tensors ${expert}$`);
    await refused(
      'lladamoe',
      without('model.layers.0.mlp.gate.weight'),
      'missing tensors model.layers.0.mlp.gate.weight$',
    );
    const bias = 'model.layers.2.mlp.gate.expert_bias';
    await refused('llada2', without(bias), `missing tensors ${bias}$`);
    const fused = 'model.layers.0.attention.query_key_value.weight';
    await refused('llada2', without(fused), `missing tensors ${fused}$`);
  });

  test('a router of another width, heads that do not divide, and no mask token', async () => {
    const gate = 'model.layers.0.mlp.gate.weight';
    await refused(
      'lladamoe',
      { tensors: (all) => Object.assign(all[gate], { shape: [16, 16] }) },
      `tensor ${gate}: expected shape \\[8, 32\\], got \\[16, 16\\]`,
    );
    const config = (changes: object) => ({ config: (json: object) => Object.assign(json, changes) });
    for (const name of ['lladamoe', 'llada2']) {
      await refused(name, config({ num_attention_heads: 5, head_dim: null }), 'expected an even head size, got 6.4');
      await refused(
        name,
        config({ num_key_value_heads: 3 }),
        'expected a multiple of num_key_value_heads \\(3\\), got 4',
      );
      await expect(loadModel(modelFolder(name), { threads: 1 })).rejects.toThrow(
        'mask_token_id: expected the id of the mask token, got none, and the tokenizer names none either',
      );
    }
  });

  test('more or fewer experts than the router has are refused by the router', async () => {
    for (const [experts, shape] of [
      [10, '[10, 32], got [8, 32]'],
      [6, '[6, 32], got [8, 32]'],
    ] as const)
      await refused(
        'lladamoe',
        { config: (config) => Object.assign(config, { num_experts: experts }) },
        `tensor model.layers.0.mlp.gate.weight: expected shape ${shape.replace(/[[\]]/g, '\\$&')}`,
      );
  });

  test('a tensor of stacked experts, or of queries, keys and values, of another size is refused by name', async () => {
    await refused(
      'llada2',
      {
        tensors: (all) => {
          merge(all, '');
          const stacked = all['model.layers.1.mlp.experts.up_proj'];
          stacked.shape = [4, 40, 32];
        },
      },
      /tensor model\.layers\.1\.mlp\.experts\.up_proj: expected shape \[8, 20, 32\], got \[4, 40, 32\]/,
    );
    await refused(
      'llada2',
      { config: (config) => Object.assign(config, { num_key_value_heads: 4 }) },
      /query_key_value\.weight: expected shape \[192, 32\], got \[128, 32\]/,
    );
  });

  test("one family's config with another's weights", async () => {
    const folder = variant('llada2', {
      config: (config) => {
        for (const key of Object.keys(config)) delete config[key];
        Object.assign(config, lladaMoe, { hidden_size: 32, num_hidden_layers: 3, moe_layer_freq: [1, 1, 1] });
        Object.assign(config, { vocab_size: 100, eos_token_id: 94, pad_token_id: 94, num_experts: 8 });
      },
    });
    await expect(loadModel(folder, load)).rejects.toThrow(
      /missing tensors model\.embed_tokens\.weight and others.*; the files hold .*: of another family\?$/,
    );
  });
});

describe('training', () => {
  test('experts and routers do not train; a planner and adapters of attention do', async () => {
    const source = modelFolder('llada2');
    const head = path.join(temporaryFolder(), 'planner');
    await createPlanner(source, head, { maskTokenId: 77, seed: 3 });
    await using model = await loadModel(source, { ...load, planner: head });
    await expect(model.createTrainer()).rejects.toThrow(
      'freezeBase: expected true, or adapters (lora) of attention, on a mixture of experts',
    );
    await expect(model.createTrainer({ lora: { rank: 2, targets: ['up_proj'] } })).rejects.toThrow(
      'lora.targets: expected projections of attention',
    );
    await expect(model.createTrainer({ lora: { rank: 2 } })).rejects.toThrow(
      'lora.targets: expected others than q_proj, k_proj, v_proj, which the checkpoints of llada2 hold in one tensor',
    );
    await using whole = await loadModel(modelFolder('lladamoe'), load);
    (await whole.createTrainer({ lora: { rank: 2 } })).dispose();
    for (const options of [{ freezeBase: true }, { lora: { rank: 2, targets: ['attn_out'] as const } }]) {
      const trainer = await model.createTrainer(options);
      expect(trainer.parameters().some(({ name }) => /experts|router/.test(name))).toBe(false);
      trainer.dispose();
    }
    await using clipped = await loadModel(modelFolder('lladamoe_b'), load);
    await expect(clipped.createTrainer({ lora: { rank: 2 } })).rejects.toThrow('a model with clip_qkv');
  });

  test('the memory plan counts all experts, and those that are active', async () => {
    await using model = await loadModel(modelFolder('llada2'), load);
    const { parameters, activeParameters } = model.info;
    // Two layers; each token leaves six experts aside, of three matrices of 20 by 32.
    expect(parameters - activeParameters).toBe(2 * 6 * 3 * 20 * 32);
    const folder = variant('llada2', { config: (config) => Object.assign(config, { mask_token_id: 77 }) });
    const plan = await training.planMemory('planner', { model: folder, freezeBase: true }, { device: 'cpu' });
    expect(plan).toMatchObject({ parameters, activeParameters });
    expect(plan.items[0].detail).toContain(`${activeParameters.toLocaleString('en')} of them active`);
  });
});
