// Checkpoints of random weights of every family, as wide as models of half a billion parameters to one and of four layers,
// written once into build/bench-models: layers are alike, so that the time of a whole model is that of its layers. The
// vocabulary is 4096, as in models.cjs: the head of a real one would be most of the time.
const { closeSync, existsSync, mkdirSync, openSync, renameSync, writeFileSync, writeSync } = require('node:fs');
const path = require('node:path');
const { root } = require('../../scripts/setup.cjs');

const VOCABULARY = 4096;
const LENGTH = 1024;
const LAYERS = 4;

/** Of Qwen2.5-0.5B (24 layers), and of Qwen3-0.6B (28). */
const HALF = { hidden: 896, layers: LAYERS, heads: 14, kvHeads: 2, headDim: 64, mlp: 4864 };
const SIX = { hidden: 1024, layers: LAYERS, heads: 16, kvHeads: 8, headDim: 128, mlp: 3072 };
const BIASES = { ...HALF, qkvBias: true };
/** Of LLaDA-MoE-7B-A1B and of LLaDA2.0-mini, narrower and with fewer experts. */
const EXPERTS = { hidden: 1024, layers: LAYERS, heads: 16, headDim: 64, experts: 32, taken: 8, mlp: 512 };

/** Family to its shape, what its config.json says beside it, and the length of the blocks that it attends by. */
const FAMILIES = {
  llada: { shape: HALF },
  illada: { shape: HALF, config: { model_type: 'illada', rms_norm_eps: 1e-5 } },
  dream: { shape: BIASES, config: { model_type: 'Dream' } },
  'fast-dllm-v2': { shape: BIASES, config: { model_type: 'Fast_dLLM_Qwen', bd_size: 32 }, block: 32 },
  'a2d-qwen2': { shape: BIASES, config: { model_type: 'a2d-qwen2' } },
  'a2d-qwen3': { shape: { ...SIX, qkNorm: true }, config: { model_type: 'a2d-qwen3' } },
  sdar: { shape: { ...SIX, qkNorm: true }, config: { model_type: 'sdar', block_size: 32 }, block: 32 },
  'llada-moe': {
    shape: { ...EXPERTS, kvHeads: 16, qkNorm: true },
    config: {
      model_type: 'lladamoe',
      expert_intermediate_size: EXPERTS.mlp,
      dense_intermediate_size: 4096,
      moe_layer_freq: new Array(EXPERTS.layers).fill(1),
      moe_router_enable_expert_bias: false,
      moe_router_score_function: 'softmax',
      qk_layernorm: true,
      partial_rotary_factor: 1,
      num_experts: EXPERTS.experts,
      num_experts_per_tok: EXPERTS.taken,
      shared_expert_intermediate_size: null,
      clip_qkv: null,
      routed_scaling_factor: 1,
      rms_norm_eps: 1e-5,
    },
  },
  llada2: {
    shape: { ...EXPERTS, kvHeads: 4, qkNorm: true, shared: true },
    config: {
      model_type: 'llada2_moe',
      moe_intermediate_size: EXPERTS.mlp,
      intermediate_size: 4096,
      first_k_dense_replace: 0,
      num_experts: EXPERTS.experts,
      num_experts_per_tok: EXPERTS.taken,
      num_shared_experts: 1,
      n_group: 8,
      topk_group: 4,
      routed_scaling_factor: 2.5,
      use_qkv_bias: false,
      use_bias: false,
      use_qk_norm: true,
      partial_rotary_factor: 0.5,
      norm_topk_prob: true,
      score_function: 'sigmoid',
      moe_router_enable_expert_bias: true,
      block_size: 32,
    },
    block: 32,
  },
};
const ROPE_THETA = 1e6;

/** Names and shapes of LLaDA's checkpoint. */
function lladaTensors({ hidden: c, layers, heads, kvHeads, headDim, mlp }) {
  const shapes = new Map([['model.transformer.wte.weight', [VOCABULARY, c]]]);
  for (let i = 0; i < layers; i++) {
    const add = (name, shape) => shapes.set(`model.transformer.blocks.${i}.${name}.weight`, shape);
    add('q_proj', [heads * headDim, c]);
    add('k_proj', [kvHeads * headDim, c]);
    add('v_proj', [kvHeads * headDim, c]);
    add('attn_out', [c, heads * headDim]);
    add('ff_proj', [mlp, c]);
    add('up_proj', [mlp, c]);
    add('ff_out', [c, mlp]);
    add('attn_norm', [c]);
    add('ff_norm', [c]);
  }
  return shapes.set('model.transformer.ln_f.weight', [c]).set('model.transformer.ff_out.weight', [VOCABULARY, c]);
}

/** Names and shapes of the checkpoints that name tensors as Hugging Face's decoders do. */
function decoderTensors(shape, isLlada2) {
  const { hidden: c, layers, heads, kvHeads, headDim, mlp, experts } = shape;
  const shapes = new Map([[isLlada2 ? 'model.word_embeddings.weight' : 'model.embed_tokens.weight', [VOCABULARY, c]]]);
  for (let i = 0; i < layers; i++) {
    const add = (name, size) => shapes.set(`model.layers.${i}.${name}`, size);
    const gated = (prefix, width) => {
      add(`${prefix}.gate_proj.weight`, [width, c]);
      add(`${prefix}.up_proj.weight`, [width, c]);
      add(`${prefix}.down_proj.weight`, [c, width]);
    };
    const [q, kv] = [heads * headDim, kvHeads * headDim];
    if (isLlada2) {
      add('attention.query_key_value.weight', [q + 2 * kv, c]);
      add('attention.dense.weight', [c, q]);
      add('attention.query_layernorm.weight', [headDim]);
      add('attention.key_layernorm.weight', [headDim]);
    } else {
      for (const [name, rows] of Object.entries({ q_proj: q, k_proj: kv, v_proj: kv })) {
        add(`self_attn.${name}.weight`, [rows, c]);
        if (shape.qkvBias) add(`self_attn.${name}.bias`, [rows]);
      }
      add('self_attn.o_proj.weight', [c, q]);
      if (shape.qkNorm) for (const name of ['q_norm', 'k_norm']) add(`self_attn.${name}.weight`, [headDim]);
    }
    if (experts) {
      add('mlp.gate.weight', [experts, c]);
      if (isLlada2) add('mlp.gate.expert_bias', [experts]);
      for (let e = 0; e < experts; e++) gated(`mlp.experts.${e}`, mlp);
      if (shape.shared) gated('mlp.shared_experts', mlp);
    } else {
      gated('mlp', mlp);
    }
    for (const name of ['input_layernorm', 'post_attention_layernorm']) add(`${name}.weight`, [c]);
  }
  return shapes.set('model.norm.weight', [c]).set('lm_head.weight', [VOCABULARY, c]);
}

function configOf({ shape, config }) {
  const { hidden, layers, heads, kvHeads, headDim, mlp } = shape;
  const common = { vocab_size: VOCABULARY, rope_theta: ROPE_THETA, mask_token_id: VOCABULARY - 1, eos_token_id: 0 };
  if (!config)
    return {
      ...common,
      model_type: 'llada',
      d_model: hidden,
      n_heads: heads,
      n_kv_heads: kvHeads,
      n_layers: layers,
      mlp_hidden_size: mlp,
      max_sequence_length: LENGTH,
      rms_norm_eps: 1e-6,
    };
  return {
    ...common,
    hidden_act: 'silu',
    hidden_size: hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    // The other families' heads share the hidden states evenly.
    ...(heads * headDim !== hidden && { head_dim: headDim }),
    intermediate_size: mlp,
    max_position_embeddings: LENGTH,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: false,
    ...config,
  };
}

/** Numbers of variance 1, near enough, that are taken again and again: what they are does not change the time. */
function noise(count) {
  let state = 1;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state * 2 ** -32;
  };
  return Float32Array.from({ length: count }, () => (uniform() + uniform() + uniform() + uniform() - 2) * Math.sqrt(3));
}

/** The folder of a family's checkpoint, written if it is not there: matrices of variance 1 / columns, norms around 1. */
function makeFamilyModel(family) {
  const { shape, config } = FAMILIES[family];
  const folder = path.join(root, 'build', 'bench-models', `family-${family}`);
  const file = path.join(folder, 'model.safetensors');
  if (existsSync(file)) return folder;
  mkdirSync(folder, { recursive: true });
  const tensors = config ? decoderTensors(shape, family === 'llada2') : lladaTensors(shape);
  const header = {};
  let end = 0;
  for (const [name, dims] of tensors) {
    const begin = end;
    end += 4 * dims.reduce((a, b) => a * b);
    header[name] = { dtype: 'F32', shape: dims, data_offsets: [begin, end] };
  }
  let json = JSON.stringify(header);
  json += ' '.repeat((8 - (json.length % 8)) % 8);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(json.length));
  const out = openSync(`${file}.part`, 'w');
  writeSync(out, Buffer.concat([size, Buffer.from(json)]));
  const numbers = noise(1 << 20);
  let at = 0;
  for (const dims of tensors.values()) {
    const isMatrix = dims.length === 2;
    const scale = isMatrix ? 1 / Math.sqrt(dims[1]) : 0.1;
    const values = new Float32Array(dims.reduce((a, b) => a * b));
    for (let i = 0; i < values.length; i++, at++) values[i] = (isMatrix ? 0 : 1) + scale * numbers[at & 0xfffff];
    writeSync(out, Buffer.from(values.buffer));
    // Another place to begin at, so that matrices differ.
    at += 104_729;
  }
  closeSync(out);
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(configOf(FAMILIES[family])));
  renameSync(`${file}.part`, file);
  return folder;
}

module.exports = { FAMILIES, ROPE_THETA, VOCABULARY, makeFamilyModel };
