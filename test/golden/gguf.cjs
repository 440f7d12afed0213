// Files of llama.cpp: what their numbers are, the logits that follow, and their tokenizers.
const { mkdtempSync, rmSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { readTensors } = require('./safetensors.cjs');

const CAUSAL = ['llama', 'qwen2', 'qwen3'];

/** Names in a file to those in a checkpoint of the Hugging Face layout. */
const LLADA = {
  attn_q: 'q_proj',
  attn_k: 'k_proj',
  attn_v: 'v_proj',
  attn_output: 'attn_out',
  attn_norm: 'attn_norm',
  ffn_norm: 'ff_norm',
  ffn_gate: 'ff_proj',
  ffn_up: 'up_proj',
  ffn_down: 'ff_out',
};
const DECODER = {
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  attn_norm: 'input_layernorm',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  ffn_gate_inp: 'mlp.gate',
  ffn_gate_exps: 'mlp.experts.0.gate_proj',
  ffn_up_exps: 'mlp.experts.0.up_proj',
  ffn_down_exps: 'mlp.experts.0.down_proj',
};
const OUTSIDE = {
  token_embd: ['model.transformer.wte', 'model.embed_tokens'],
  output: ['model.transformer.ff_out', 'lm_head'],
  output_norm: ['model.transformer.ln_f', 'model.norm'],
};

function savedName(architecture, tensor) {
  const isLlada = architecture === 'llada';
  const [, layer, module, kind] = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(tensor) ?? [];
  if (module === undefined) return `${OUTSIDE[tensor.replace('.weight', '')][isLlada ? 0 : 1]}.weight`;
  return isLlada
    ? `model.transformer.blocks.${layer}.${LLADA[module]}.${kind}`
    : `model.layers.${layer}.${DECODER[module]}.${kind}`;
}

/** The row of the Hugging Face order that stands at a row of the file, where pairs lie side by side. */
function interleavedRow(row, headDim) {
  const inHead = row % headDim;
  return row - inHead + (inHead % 2) * (headDim / 2) + Math.floor(inHead / 2);
}

function compareRows(check, what, actual, wanted, rowOf = (row) => row) {
  const [rows, width] = wanted.shape;
  check.exact(`${what} width`, actual.shape.at(-1), width);
  for (let row = 0; row < rows; row++)
    for (let i = 0; i < width; i++)
      check.exact(`${what} [${row}, ${i}]`, actual.data[rowOf(row) * width + i], wanted.data[row * width + i]);
}

async function ggufCase(dultra, { description, folder, load, expected }, check) {
  const { architecture, config } = description;
  const file = path.join(folder, description.file);
  const open = CAUSAL.includes(architecture) ? dultra.loadCausalModel : dultra.loadModel;
  const model = await open(file, load);
  const temporary = mkdtempSync(path.join(os.tmpdir(), 'dultra-golden-'));
  try {
    const { headDim } = model.config;
    const names = { d_model: 'dModel', n_heads: 'nHeads', n_kv_heads: 'nKvHeads', n_layers: 'nLayers' };
    Object.assign(names, {
      vocab_size: 'vocabSize',
      rope_theta: 'ropeTheta',
      max_sequence_length: 'maxSequenceLength',
    });
    if (architecture !== 'llada-moe') names.mlp_hidden_size = 'mlpHiddenSize';
    if (!CAUSAL.includes(architecture)) names.mask_token_id = 'maskTokenId';
    for (const [key, name] of Object.entries(names)) check.exact(key, model.config[name], config[key]);
    if (!CAUSAL.includes(architecture))
      check.exact('shift_logits', model.config.shiftLogits ?? false, config.shift_logits);
    const ids = Array.from(expected.ids.data, Number);
    const { logits } = await model.forward({ ids, rowOffsets: [0, ids.length] });
    const wanted = expected.logits_dequantised.data;
    check.exact('logits size', logits.length, wanted.length);
    for (let i = 0; i < wanted.length; i++) check.close('logits', `[${i}]`, logits[i], wanted[i], 1e-4);
    if (model.save) {
      await model.save(temporary);
      const saved = readTensors(path.join(temporary, 'model.safetensors'));
      for (const [name, tensor] of Object.entries(expected)) {
        if (name.startsWith('dequantised.')) {
          const own = name.slice('dequantised.'.length);
          const isReordered = ['llada', 'llama'].includes(architecture) && /attn_[qk]\.weight$/.test(own);
          const rowOf = isReordered ? (row) => interleavedRow(row, headDim) : undefined;
          compareRows(check, own, saved[savedName(architecture, own)], tensor, rowOf);
        } else if (name.startsWith('hf_order.')) {
          const own = `blk.0.${name === 'hf_order.q_proj' ? 'attn_q' : 'attn_k'}.weight`;
          compareRows(check, name, saved[savedName(architecture, own)], tensor);
        }
      }
    }
    for (const { text, ids: tokens } of description.tokenizer?.encode_without_specials ?? [])
      check.exact(
        `ids of ${JSON.stringify(text)}`,
        String(model.tokenizer.encode(text, { addSpecialTokens: false })),
        String(tokens),
      );
  } finally {
    model.dispose();
    rmSync(temporary, { recursive: true, force: true });
  }
}

module.exports = { ggufCase };
