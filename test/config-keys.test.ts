// The keys of config.json: real ones of the hub pass, and what would change the results is read or refused by its name.
import { loadModel } from '../lib';
import { type CausalConfig, type ModelConfig, storedDtype } from '../lib/model/config';
import { parseCausalCheckpoint, parseDiffusionCheckpoint } from '../lib/model/families';
import { variant } from './helpers';

type Json = Record<string, unknown>;

/** As LLaDA 8B's, written by its own code with transformers 4.46. */
const LLADA: Json = {
  activation_type: 'silu',
  alibi: false,
  alibi_bias_max: 8.0,
  architectures: ['LLaDAModelLM'],
  attention_dropout: 0.0,
  attention_layer_norm: false,
  attention_layer_norm_with_affine: true,
  auto_map: {
    AutoConfig: 'configuration_llada.LLaDAConfig',
    AutoModelForCausalLM: 'modeling_llada.LLaDAModelLM',
    AutoModel: 'modeling_llada.LLaDAModelLM',
  },
  bias_for_layer_norm: false,
  block_group_size: 1,
  block_type: 'llama',
  d_model: 4096,
  embedding_dropout: 0.0,
  embedding_size: 126464,
  eos_token_id: 126081,
  flash_attention: false,
  include_bias: false,
  include_qkv_bias: false,
  init_cutoff_factor: null,
  init_device: 'meta',
  init_fn: 'mitchell',
  init_std: 0.02,
  input_emb_norm: false,
  layer_norm_type: 'rms',
  layer_norm_with_affine: true,
  mask_token_id: 126336,
  max_sequence_length: 4096,
  mlp_hidden_size: 12288,
  mlp_ratio: 4,
  model_type: 'llada',
  multi_query_attention: null,
  n_heads: 32,
  n_kv_heads: 32,
  n_layers: 32,
  pad_token_id: 126081,
  precision: 'amp_bf16',
  residual_dropout: 0.0,
  rms_norm_eps: 1e-5,
  rope: true,
  rope_full_precision: true,
  rope_theta: 500000.0,
  scale_logits: false,
  transformers_version: '4.46.3',
  use_cache: false,
  vocab_size: 126464,
  weight_tying: false,
};

/** As those of Llama 2 7B, with what later versions of transformers add. */
const LLAMA: Json = {
  _name_or_path: 'meta-llama/Llama-2-7b-hf',
  architectures: ['LlamaForCausalLM'],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 1,
  eos_token_id: 2,
  hidden_act: 'silu',
  hidden_size: 4096,
  initializer_range: 0.02,
  intermediate_size: 11008,
  max_position_embeddings: 4096,
  mlp_bias: false,
  model_type: 'llama',
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 32,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 10000.0,
  tie_word_embeddings: false,
  torch_dtype: 'float16',
  transformers_version: '4.44.0',
  use_cache: true,
  vocab_size: 32000,
};

/** As that of Qwen2.5 0.5B Instruct. */
const QWEN: Json = {
  architectures: ['Qwen2ForCausalLM'],
  attention_dropout: 0.0,
  bos_token_id: 151643,
  eos_token_id: 151645,
  hidden_act: 'silu',
  hidden_size: 896,
  initializer_range: 0.02,
  intermediate_size: 4864,
  max_position_embeddings: 32768,
  max_window_layers: 21,
  model_type: 'qwen2',
  num_attention_heads: 14,
  num_hidden_layers: 24,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 1000000.0,
  sliding_window: 32768,
  tie_word_embeddings: true,
  torch_dtype: 'bfloat16',
  transformers_version: '4.43.1',
  use_cache: true,
  use_mrope: false,
  use_sliding_window: false,
  vocab_size: 151936,
};

const without = (json: Json, ...keys: string[]): Json =>
  Object.fromEntries(Object.entries(json).filter(([key]) => !keys.includes(key)));

const llada = (json: Json, has = () => false): ModelConfig =>
  parseDiffusionCheckpoint(json, 'config.json', { has }).config;
const causal = (json: Json): CausalConfig => parseCausalCheckpoint(json, 'config.json', { has: () => true }).config;
const parse = (json: Json): ModelConfig | CausalConfig => (json.model_type === 'llada' ? llada(json) : causal(json));

/** As transformers 5 writes a config. */
const asVersion5 = (json: Json): Json => ({
  ...without(json, 'rope_theta', 'rope_scaling', 'torch_dtype', 'use_mrope'),
  dtype: 'bfloat16',
  rope_parameters: { rope_theta: json.rope_theta, rope_type: 'default' },
  transformers_version: '5.0.0',
});

describe('configs of the hub', () => {
  const real: [string, Json, Partial<ModelConfig>][] = [
    ['LLaDA 8B Base', LLADA, { dModel: 4096, ropeTheta: 500000, eosTokenIds: [126081], mlpHiddenSize: 12288 }],
    ['LLaDA 8B Instruct', { ...LLADA, torch_dtype: 'bfloat16' }, { maskTokenId: 126336, padTokenId: 126081 }],
    [
      'LLaDA 1.5',
      { ...LLADA, _name_or_path: 'GSAI-ML/LLaDA-8B-Instruct', torch_dtype: 'bfloat16', transformers_version: '4.49.0' },
      { family: 'llada', weightTying: false },
    ],
    ['LLaDA as transformers 5 saves it', asVersion5(LLADA), { ropeTheta: 500000 }],
    [
      'LLaDA with the names of transformers beside its own',
      {
        ...LLADA,
        hidden_size: 4096,
        num_attention_heads: 32,
        num_key_value_heads: 32,
        num_hidden_layers: 32,
        intermediate_size: 12288,
        max_position_embeddings: 4096,
        head_dim: 128,
        tie_word_embeddings: false,
        hidden_act: 'silu',
      },
      { headDim: 128 },
    ],
    ['Llama 2 7B', LLAMA, { ropeTheta: 10000, rmsNormEps: 1e-5 }],
    [
      'Llama 2 7B Chat of 2023',
      {
        ...without(LLAMA, 'attention_bias', 'attention_dropout', 'mlp_bias', 'rope_theta'),
        max_length: 4096,
        pad_token_id: 0,
        transformers_version: '4.32.0.dev0',
      },
      { ropeTheta: 10000 },
    ],
    [
      'Llama 3 8B Instruct',
      {
        ...LLAMA,
        bos_token_id: 128000,
        eos_token_id: 128009,
        intermediate_size: 14336,
        max_position_embeddings: 8192,
        num_key_value_heads: 8,
        rope_theta: 500000.0,
        torch_dtype: 'bfloat16',
        vocab_size: 128256,
      },
      { ropeTheta: 500000, nKvHeads: 8, eosTokenIds: [128009] },
    ],
    [
      'a Llama fine-tuned with unsloth, with null in every old field',
      {
        ...LLAMA,
        unsloth_fixed: true,
        unsloth_version: '2024.9.post4',
        _attn_implementation_autoset: true,
        pad_token_id: -1,
        eos_token_id: [2, -1, 7],
        suppress_tokens: null,
        bad_words_ids: null,
        task_specific_params: null,
        quantization_config: null,
        pruned_heads: {},
        chunk_size_feed_forward: 0,
        is_encoder_decoder: false,
        add_cross_attention: false,
        cross_attention_hidden_size: null,
        tie_encoder_decoder: false,
        id2label: { 0: 'LABEL_0', 1: 'LABEL_1' },
        repetition_penalty: 1.0,
        top_k: 50,
        do_sample: false,
      },
      { eosTokenIds: [2, 7] },
    ],
    ['Qwen2.5 0.5B Instruct', QWEN, { ropeTheta: 1000000, weightTying: true, qkvBias: true }],
    ['Qwen2 7B', { ...QWEN, max_window_layers: 28, sliding_window: 131072 }, { family: 'qwen2' }],
    [
      'Qwen2.5 as transformers 5 saves it',
      { ...asVersion5(QWEN), layer_types: new Array(24).fill('full_attention'), sliding_window: null },
      { ropeTheta: 1000000 },
    ],
    ['Llama as transformers 5 saves it', { ...asVersion5(LLAMA), head_dim: 128 }, { ropeTheta: 10000 }],
  ];
  test.each(real)('%s', (_name, json, expected) => {
    expect(parse(json)).toMatchObject(expected);
    // The order of keys says nothing.
    expect(parse(Object.fromEntries(Object.entries(json).reverse()))).toEqual(parse(json));
  });

  test('LLaDOU and dUltra: the settings of the planner', () => {
    const json = {
      ...LLADA,
      architectures: ['LLaDOUModelLM'],
      num_head_layers: 1,
      use_adaln: true,
      use_mask_embeddings: true,
    };
    expect(llada({ ...json, use_block_embeddings: false }, () => true).planner).toEqual({
      numLayers: 1,
      useAdaln: true,
      useMaskEmbeddings: true,
    });
  });

  test('a planner that sees blocks is refused, though its config is silent', () => {
    for (const value of [undefined, null, true])
      expect(() => llada({ ...LLADA, use_block_embeddings: value }, () => true)).toThrow(
        /use_block_embeddings: expected false/,
      );
    expect(llada({ ...LLADA, use_block_embeddings: false }, () => true).planner).not.toBeNull();
    expect(llada(LLADA).planner).toBeNull();
  });

  test('the scaling of Llama 3.1 and 3.2 is read', () => {
    const scaling = {
      factor: 8.0,
      high_freq_factor: 4.0,
      low_freq_factor: 1.0,
      original_max_position_embeddings: 8192,
    };
    const json = { ...LLAMA, max_position_embeddings: 131072, rope_theta: 500000.0 };
    const expected = {
      ropeTheta: 500000,
      ropeScaling: {
        type: 'llama3',
        factor: 8,
        lowFreqFactor: 1,
        highFreqFactor: 4,
        originalMaxPositionEmbeddings: 8192,
      },
    };
    expect(causal({ ...json, rope_scaling: { ...scaling, rope_type: 'llama3' } })).toMatchObject(expected);
    const version5 = {
      ...asVersion5(json),
      rope_parameters: { ...scaling, rope_theta: 500000.0, rope_type: 'llama3' },
    };
    expect(causal(version5)).toMatchObject(expected);
    const lacking = { ...scaling, rope_type: 'llama3', low_freq_factor: undefined };
    expect(() => causal({ ...json, rope_scaling: lacking })).toThrow('config.json: rope_scaling: low_freq_factor: ');
    const crossed = { ...scaling, rope_type: 'llama3', low_freq_factor: 4 };
    expect(() => causal({ ...json, rope_scaling: crossed })).toThrow(
      'rope_scaling: high_freq_factor: expected more than low_freq_factor (4), got 4',
    );
    expect(() => causal({ ...json, rope_scaling: { ...scaling, rope_type: 'linear' } })).toThrow(
      'rope_scaling.high_freq_factor: a key that is not known here',
    );
  });
});

describe('the rotary embedding', () => {
  const bases: [string, Json][] = [
    ['llada', without(LLADA, 'rope_theta')],
    ['llama', without(LLAMA, 'rope_theta', 'rope_scaling')],
    ['qwen2', without(QWEN, 'rope_theta')],
  ];

  describe.each(bases)('%s', (family, base) => {
    const scaled = family === 'llada' ? [] : ['linear', 'llama3'];
    const types = ['default', ...scaled].map((type) => JSON.stringify(type)).join(' or ');
    const read: [string, Json, number][] = [
      ['nothing', {}, 10000],
      ['rope_theta', { rope_theta: 5e5 }, 5e5],
      ['rope_parameters alone', { rope_parameters: { rope_type: 'default', rope_theta: 2e6 } }, 2e6],
      ['rope_parameters without a type', { rope_parameters: { rope_theta: 2e6 } }, 2e6],
      ['rope_parameters with type', { rope_parameters: { type: 'default', rope_theta: 2e6 } }, 2e6],
      ['rope_parameters of nothing', { rope_theta: 5e5, rope_parameters: {} }, 5e5],
      ['rope_parameters null', { rope_theta: 5e5, rope_parameters: null }, 5e5],
      ['both places, the same', { rope_theta: 5e5, rope_parameters: { rope_type: 'default', rope_theta: 5e5 } }, 5e5],
      ['a type alone beside rope_theta', { rope_theta: 5e5, rope_parameters: { rope_type: 'default' } }, 5e5],
      ['rope_scaling of type default', { rope_theta: 5e5, rope_scaling: { type: 'default' } }, 5e5],
      ['rope_scaling with both names of the type', { rope_scaling: { type: 'default', rope_type: 'default' } }, 10000],
      [
        'rope_scaling as the other name of rope_parameters',
        { rope_scaling: { rope_type: 'default', rope_theta: 3e4 } },
        3e4,
      ],
      ['factors of 1', { rope_parameters: { rope_theta: 7, factor: 1.0, partial_rotary_factor: 1.0 } }, 7],
      ['a type of layers', { rope_parameters: { full_attention: { rope_type: 'default', rope_theta: 4e5 } } }, 4e5],
      [
        'two types of layers with the same',
        {
          rope_parameters: {
            full_attention: { rope_type: 'default', rope_theta: 4e5 },
            sliding_attention: { rope_type: 'default', rope_theta: 4e5 },
          },
        },
        4e5,
      ],
    ];
    test.each(read)('%s is read', (_name, change, theta) => {
      expect(parse({ ...base, ...change }).ropeTheta).toBe(theta);
    });

    const refused: [string, Json, string][] = [
      ...['linear', 'dynamic', 'llama3', 'yarn', 'longrope', 'su', 'mrope', 'proportional']
        .filter((type) => !scaled.includes(type))
        .flatMap((type): [string, Json, string][] => [
          [
            `${type} in rope_parameters`,
            { rope_parameters: { rope_type: type, factor: 4, rope_theta: 1e4 } },
            `rope_parameters.rope_type: expected ${types} or null, got "${type}"`,
          ],
          [
            `${type} in rope_scaling`,
            { rope_theta: 1e4, rope_scaling: { type, factor: 4 } },
            `rope_scaling.type: expected ${types} or null, got "${type}"`,
          ],
        ]),
      [
        'two types that differ',
        { rope_scaling: { type: 'linear', rope_type: 'default', factor: 2 } },
        family === 'llada'
          ? 'rope_scaling.type: expected "default" or null, got "linear"'
          : 'rope_scaling.type: expected "default" as in rope_scaling.rope_type, got "linear"',
      ],
      ['a factor without a type', { rope_scaling: { factor: 2 } }, 'rope_scaling.factor: expected 1 or null, got 2'],
      [
        'a factor beside default',
        { rope_parameters: { rope_type: 'default', factor: 8 } },
        'rope_parameters.factor: expected 1 or null, got 8',
      ],
      [
        'a part of the head',
        { rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.5 } },
        'rope_parameters.partial_rotary_factor: expected 1 or null, got 0.5',
      ],
      [
        'sections of several axes',
        { rope_scaling: { rope_type: 'default', mrope_section: [16, 24, 24] } },
        'rope_scaling.mrope_section: a key that is not known here',
      ],
      [
        'two bases',
        { rope_theta: 1e4, rope_parameters: { rope_type: 'default', rope_theta: 5e5 } },
        'rope_parameters.rope_theta: expected 10000 as in rope_theta, got 500000',
      ],
      [
        'a base for each type of layers',
        { rope_parameters: { full_attention: { rope_theta: 1e6 }, sliding_attention: { rope_theta: 1e4 } } },
        'rope_parameters.sliding_attention.rope_theta: expected 1000000 as in rope_parameters.full_attention.rope_theta',
      ],
      [
        'scaling of one type of layers',
        { rope_parameters: { full_attention: { rope_type: 'yarn', factor: 2, rope_theta: 1e4 } } },
        `rope_parameters.full_attention.rope_type: expected ${types} or null, got "yarn"`,
      ],
      ['a text', { rope_parameters: 'default' }, 'rope_parameters: expected an object or null, got "default"'],
      ['a list', { rope_scaling: [{ type: 'linear' }] }, 'rope_scaling: expected an object or null, got an array of 1'],
      ['a base of text', { rope_parameters: { rope_theta: '5e5' } }, 'rope_parameters.rope_theta: expected a number'],
      [
        'a base of 0',
        { rope_parameters: { rope_theta: 0 } },
        'rope_parameters.rope_theta: expected a number from 1e-6',
      ],
      ['an infinite base', { rope_theta: Infinity }, 'rope_theta: expected a number from 1e-6 to 1e12'],
      ['NaN', { rope_theta: Number.NaN }, 'rope_theta: expected a number from 1e-6 to 1e12'],
      [
        'a part of the head at the top',
        { partial_rotary_factor: 0.25 },
        'partial_rotary_factor: expected 1 or null, got 0.25',
      ],
      ['the percentage of GPT-NeoX', { rotary_pct: 0.25 }, 'rotary_pct: expected 1 or null, got 0.25'],
      ['another key of a base', { rope_local_base_freq: 10000 }, 'rope_local_base_freq: a key that is not known here'],
    ];
    test.each(refused)('%s is refused', (_name, change, message) => {
      expect(() => parse({ ...base, ...change })).toThrow(`config.json: ${message}`);
    });
  });

  test('the logits are those of the base, wherever it stands', async () => {
    const ids = [5, 17, 3, 96, 96, 2];
    const logits = async (change: (config: Json) => void) => {
      await using model = await loadModel(variant('base', { config: change }), { threads: 1 });
      return (await model.forward({ ids })).logits;
    };
    const old = await logits(() => {});
    const moved = await logits((config) => {
      config.rope_parameters = { rope_type: 'default', rope_theta: config.rope_theta };
      delete config.rope_theta;
    });
    expect(moved).toEqual(old);
    const lost = await logits((config) => {
      config.rope_theta = 10 * (config.rope_theta as number);
    });
    expect(lost).not.toEqual(old);
  });
});

describe('other keys', () => {
  const notes: Json = {
    my_note: 'fine-tuned on our data',
    license: 'mit',
    tags: ['diffusion', 'text'],
    training_run: { seed: 3, epochs: 2 },
    seed: 42,
    is_finetuned: true,
    base_model: 'GSAI-ML/LLaDA-8B-Base',
    properties: { owner: 'us', places: ['here', 'there'] },
    wandb_run: 17,
    train_batch_size: 64,
    created: 20260101,
    vllm_version: '0.9',
    'transformers.js_config': { dtype: 'q4' },
    _commit_hash: 'abc',
    attn_implementation: 'eager',
    _attn_implementation: 'flash_attention_2',
    use_flash_attn: true,
    hidden_dropout_prob: 0.1,
    attention_probs_dropout_prob: 0.1,
    initializer_cutoff_factor: 2,
    image_token_id: 7,
    gradient_checkpointing: true,
    // Off, whatever it would be.
    use_qk_norm: false,
    attn_output_gate: false,
    router_aux_loss: null,
    no_rope_layers: [],
    quantization: {},
  };
  test.each([LLADA, LLAMA, QWEN])('notes and what is off pass', (json) => {
    for (const [key, value] of Object.entries(notes)) expect(parse({ ...json, [key]: value })).toEqual(parse(json));
    expect(parse({ ...json, ...notes })).toEqual(parse(json));
  });

  const settings: Json = {
    final_logit_softcapping: 30,
    attn_logit_softcapping: 50,
    logit_softcap: 15,
    logits_scaling: 8,
    logit_scale: 0.0625,
    embedding_multiplier: 12,
    residual_multiplier: 0.22,
    attention_multiplier: 0.0078125,
    scale_emb: 12,
    scale_depth: 1.4,
    query_pre_attn_scalar: 256,
    num_experts: 8,
    num_local_experts: 8,
    moe_layer_freq: 1,
    use_qk_norm: true,
    qk_layernorm: true,
    norm_eps: 1e-3,
    layer_norm_epsilon: 1e-3,
    norm_type: 'layernorm',
    use_parallel_residual: true,
    parallel_attn: true,
    attention_sink_size: 4,
    attn_temperature_tuning: true,
    attention_chunk_size: 8192,
    no_rope_layers: [1, 1, 1, 0],
    nope_layer_interval: 4,
    is_bidirectional: true,
    architecture_version: 2,
    time_mix: 3,
    alibi_slopes: [0.5],
    block_size: 32,
    bd_size: 32,
    quantization: { bits: 4, group_size: 64 },
    load_in_8bit: true,
    compression_config: { format: 'int-quantized' },
    sparsity_config: { format: 'x', layers: 1 },
    lora_rank: 8,
    kv_lora_rank: 512,
    q_bias: true,
    lm_head_bias: true,
    mlp_gated: true,
    hiddenAct: 'gelu',
    ffn_dim_multiplier: 1.3,
    n_inner: 1024,
    tieEmbeddings: true,
    ssm_state: 16,
    encoder_layers: 2,
    vision_config: { hidden_size: 8 },
    local_window: 128,
    mup_width: 256,
    time_embedding_dim: 64,
    depth: 3,
    num_position_tables: 2,
    qkv_clip: 8,
    attention_softmax_scale: 0.1,
    mask_schedule_layers: 3,
    // Of names that say nothing, by their values.
    n_ctx: 1024,
    gamma_offset: 1,
    use_dynamic_ntk: true,
    zero_centered_gamma: true,
    hyper_connections: 4,
    intermediate_sizes: [11008, 5504],
    engram: { tables: 2 },
    num_loops: 2,
    register_tokens: 4,
    pe_type: 'alibi',
    weight_dtype: 'int8',
    nonlinearity: 'gelu',
  };
  test.each([LLADA, LLAMA, QWEN])('a setting that is not known is refused by its name', (json) => {
    for (const [key, value] of Object.entries(settings))
      expect(() => parse({ ...json, [key]: value })).toThrow(
        `config.json: ${key}: a key that is not known here and may change the results: expected none, null or false, got `,
      );
  });

  const valued: [string, unknown, string, (typeof LLADA)[]][] = [
    ['quantization_config', { quant_method: 'gptq', bits: 4 }, 'expected null, got an object', [LLADA, LLAMA, QWEN]],
    ['text_config', { hidden_size: 8 }, 'expected null, got an object', [LLADA, LLAMA, QWEN]],
    ['use_sliding_window', true, 'expected false or null, got true', [LLADA, LLAMA, QWEN]],
    ['is_encoder_decoder', true, 'expected false or null, got true', [LLADA, LLAMA, QWEN]],
    ['hidden_act', 'gelu_pytorch_tanh', 'expected "silu" or null', [LLADA, LLAMA, QWEN]],
    ['use_rope', false, 'expected true or null, got false', [LLADA, LLAMA, QWEN]],
    ['sliding_window', 4096, 'expected null, got 4096', [LLAMA]],
    ['is_causal', false, 'expected true or null, got false', [LLAMA, QWEN]],
    ['bidirectional', false, 'expected true or null, got false', [LLADA]],
    ['pre_norm', false, 'expected true or null, got false', [LLADA, LLAMA, QWEN]],
    ['is_causal', true, 'expected false or null, got true', [LLADA]],
    ['tie_word_embeddings', true, 'expected false as in weight_tying, got true', [LLADA]],
    ['hidden_size', 2048, 'expected 4096 as in d_model, got 2048', [LLADA]],
    ['num_key_value_heads', 8, 'expected 32 as in n_kv_heads, got 8', [LLADA]],
    ['head_dim', 64, 'expected 128, got 64', [LLADA]],
    ['layer_norm_with_affine', false, 'expected true or null, got false', [LLADA]],
  ];
  test.each(valued)('%s = %j is refused', (key, value, message, configs) => {
    for (const json of configs)
      expect(() => parse({ ...json, [key]: value })).toThrow(`config.json: ${key}: ${message}`);
  });

  test('a layer of another type is named', () => {
    const types = ['full_attention', 'sliding_attention'];
    for (const json of [LLAMA, QWEN])
      expect(() => parse({ ...json, layer_types: types })).toThrow(
        /layer_types\.1: .*"full_attention".*got "sliding_attention"/,
      );
  });

  test('hostile names are shown safely', () => {
    const key = `norm\u001b[2J${'x'.repeat(5000)}`;
    expect(() => parse({ ...LLADA, [key]: 1 })).toThrow(/^config\.json: "norm\\u001b\[2Jx+…: a key/);
    for (const name of ['__proto__', 'constructor', 'toString', 'hasOwnProperty'])
      expect(parse(JSON.parse(`{"${name}": {"a": "b"}, ${JSON.stringify(LLAMA).slice(1)}`))).toEqual(parse(LLAMA));
  });
});

test('the stored type: the name of transformers 5 comes first', () => {
  expect(storedDtype({ dtype: 'float32', torch_dtype: 'bfloat16' })).toBe('float32');
  expect(storedDtype({ torch_dtype: 'torch.bfloat16' })).toBe('bfloat16');
  for (const json of [{}, { dtype: null }, { dtype: { text: 'float32' } }]) expect(storedDtype(json)).toBeUndefined();
});

describe('ids', () => {
  test.each<[unknown, number[]]>([
    [126081, [126081]],
    [
      [126081, 126348],
      [126081, 126348],
    ],
    [
      [126348, 126081, 126348],
      [126348, 126081],
    ],
    [[], []],
    [-1, []],
    [[-1], []],
    [null, []],
    [0, [0]],
  ])('eos_token_id %j', (eos, ids) => {
    expect(llada({ ...LLADA, eos_token_id: eos })).toMatchObject({ eosTokenIds: ids, eosTokenId: ids[0] ?? null });
    expect(causal({ ...QWEN, eos_token_id: eos }).eosTokenIds).toEqual(ids);
  });

  test('pad_token_id -1 is none', () => {
    expect(llada({ ...LLADA, pad_token_id: -1 }).padTokenId).toBeNull();
    expect(causal({ ...LLAMA, pad_token_id: -1 })).toEqual(causal(LLAMA));
  });

  test.each([151936, 1.5, '2', [2, 'x'], -7, { id: 2 }, true])('eos_token_id %j is refused', (eos) => {
    expect(() => causal({ ...QWEN, eos_token_id: eos })).toThrow(
      'eos_token_id: expected an id below 151936, a list of such ids, or -1 for none, got ',
    );
  });
});
