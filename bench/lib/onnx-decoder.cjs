// A family's dense transformer as an ONNX file, for onnxruntime-node: grouped heads, biases, norms of queries and keys, and
// attention by blocks, with the fused operators that onnx.cjs has. Names are those of Hugging Face's decoders or LLaDA's.
const { closeSync, openSync, readSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const {
  FLOAT,
  INT64,
  bytes,
  externalTensor,
  inlineTensor,
  integer,
  message,
  node,
  rotaryTable,
  valueInfo,
} = require('./onnx.cjs');
const { ROPE_THETA, VOCABULARY } = require('./family-models.cjs');

/** LLaDA's names of what a layer holds, by those of the others. */
const LLADA = {
  'self_attn.q_proj': 'q_proj',
  'self_attn.k_proj': 'k_proj',
  'self_attn.v_proj': 'v_proj',
  'self_attn.o_proj': 'attn_out',
  'mlp.gate_proj': 'ff_proj',
  'mlp.up_proj': 'up_proj',
  'mlp.down_proj': 'ff_out',
  input_layernorm: 'attn_norm',
  post_attention_layernorm: 'ff_norm',
};

function readHeader(file) {
  const descriptor = openSync(file, 'r');
  const size = Buffer.alloc(8);
  readSync(descriptor, size, 0, 8, 0);
  const json = Buffer.alloc(Number(size.readBigUInt64LE(0)));
  readSync(descriptor, json, 0, json.length, 8);
  closeSync(descriptor);
  return { header: JSON.parse(json.toString()), begin: 8 + json.length };
}

/** Writes `<folder>/t<length>.onnx`: ids (T, int64) to logits (T, V). Returns its path. */
function exportDecoder(folder, { shape, config = {}, block = 0 }, length) {
  const { layers, heads, kvHeads, headDim, qkvBias, qkNorm } = shape;
  const isLlada = config.model_type === undefined;
  const epsilon = { float: config.rms_norm_eps ?? 1e-6 };
  const weights = path.join(folder, 'model.safetensors');
  const { header, begin } = readHeader(weights);
  const graph = [];
  const constants = [];
  const op = (type, inputs, outputs, attributes) => graph.push(node('', type, inputs, outputs, attributes));
  const fused = (type, inputs, outputs, attributes) =>
    graph.push(node('com.microsoft', type, inputs, outputs, attributes));
  const numbers = (name, values) => {
    constants.push(inlineTensor(name, INT64, [values.length], BigInt64Array.from(values, BigInt)));
    return name;
  };
  const norm = (input, weight, output) =>
    op('SimplifiedLayerNormalization', [input, weight], [output], { axis: -1, epsilon, stash_type: 1 });
  const addNorm = (x, delta, weight, output) => {
    fused('SkipSimplifiedLayerNormalization', [x, delta, weight], [output, '', '', `${output}.sum`], { epsilon });
    return `${output}.sum`;
  };
  numbers('rows', [length, heads * headDim]);
  numbers('sequence.q', [1, length, heads * headDim]);
  numbers('sequence.kv', [1, length, kvHeads * headDim]);
  numbers('heads.q', [length * heads, headDim]);
  numbers('heads.kv', [length * kvHeads, headDim]);
  numbers('group', [1, length, kvHeads, 1, headDim]);
  numbers('repeated', [1, length, kvHeads, heads / kvHeads, headDim]);

  op('Gather', [isLlada ? 'model.transformer.wte.weight' : 'model.embed_tokens.weight', 'ids'], ['x']);
  let residual = 'x';
  let delta = null;
  for (let i = 0; i < layers; i++) {
    const w = (name, kind = 'weight') =>
      isLlada ? `model.transformer.blocks.${i}.${LLADA[name]}.${kind}` : `model.layers.${i}.${name}.${kind}`;
    const at = (name) => `${i}.${name}`;
    const linear = (input, name, output, bias = false) =>
      op('Gemm', bias ? [input, w(name), w(name, 'bias')] : [input, w(name)], [output], { transB: 1 });
    if (delta) residual = addNorm(residual, delta, w('input_layernorm'), at('n1'));
    else norm(residual, w('input_layernorm'), at('n1'));
    for (const name of ['q', 'k', 'v']) {
      const kind = name === 'q' ? 'q' : 'kv';
      linear(at('n1'), `self_attn.${name}_proj`, at(name), qkvBias);
      let plain = at(name);
      if (qkNorm && name !== 'v') {
        op('Reshape', [plain, `heads.${kind}`], [at(`${name}h`)]);
        norm(at(`${name}h`), w(`self_attn.${name}_norm`), at(`${name}n`));
        plain = at(`${name}n`);
      }
      op('Reshape', [plain, `sequence.${kind}`], [at(`${name}3`)]);
      let last = at(`${name}3`);
      if (name !== 'v') {
        fused('RotaryEmbedding', [last, 'positions', 'cosine', 'sine'], [at(`${name}r`)], {
          interleaved: 0,
          num_heads: name === 'q' ? heads : kvHeads,
        });
        last = at(`${name}r`);
      }
      // Keys and values of a group once for each of its heads.
      if (name !== 'q' && kvHeads < heads) {
        op('Reshape', [last, 'group'], [at(`${name}5`)]);
        op('Expand', [at(`${name}5`), 'repeated'], [at(`${name}e`)]);
        op('Reshape', [at(`${name}e`), 'sequence.q'], [at(`${name}a`)]);
        last = at(`${name}a`);
      }
      graph.push(node('', 'Identity', [last], [at(`${name}.in`)]));
    }
    const inputs = [at('q.in'), at('k.in'), at('v.in')];
    fused('MultiHeadAttention', block > 0 ? [...inputs, '', '', 'hidden'] : inputs, [at('a3')], { num_heads: heads });
    op('Reshape', [at('a3'), 'rows'], [at('a')]);
    linear(at('a'), 'self_attn.o_proj', at('o'));
    residual = addNorm(residual, at('o'), w('post_attention_layernorm'), at('n2'));
    linear(at('n2'), 'mlp.gate_proj', at('gate'));
    linear(at('n2'), 'mlp.up_proj', at('up'));
    fused('QuickGelu', [at('gate')], [at('silu')], { alpha: { float: 1 } }); // x * sigmoid(x)
    op('Mul', [at('silu'), at('up')], [at('h')]);
    linear(at('h'), 'mlp.down_proj', at('f'));
    delta = at('f');
  }
  addNorm(residual, delta, isLlada ? 'model.transformer.ln_f.weight' : 'model.norm.weight', 'z');
  op('Gemm', ['z', isLlada ? 'model.transformer.ff_out.weight' : 'lm_head.weight'], ['logits'], { transB: 1 });

  const { cosine, sine } = rotaryTable(length, headDim, ROPE_THETA);
  if (block > 0) {
    const hidden = Float32Array.from({ length: length * length }, (_, i) =>
      Math.floor((i % length) / block) <= Math.floor(Math.floor(i / length) / block) ? 0 : -1e30,
    );
    constants.push(inlineTensor('hidden', FLOAT, [1, 1, length, length], hidden));
  }
  const positions = BigInt64Array.from({ length }, (_, i) => BigInt(i));
  const model = Buffer.concat([
    integer(1, 8), // ir_version
    message(
      7,
      ...graph,
      bytes(2, 'decoder'),
      ...Object.entries(header).map(
        ([
          name,
          {
            shape: dims,
            data_offsets: [from, to],
          },
        ]) => externalTensor(name, dims, path.basename(weights), begin + from, to - from),
      ),
      ...constants,
      inlineTensor('cosine', FLOAT, [length, headDim / 2], cosine),
      inlineTensor('sine', FLOAT, [length, headDim / 2], sine),
      inlineTensor('positions', INT64, [1, length], positions),
      valueInfo(11, 'ids', INT64, [length]),
      valueInfo(12, 'logits', FLOAT, [length, VOCABULARY]),
    ),
    message(8, bytes(1, ''), integer(2, 17)),
    message(8, bytes(1, 'com.microsoft'), integer(2, 1)),
  ]);
  const out = path.join(folder, `t${length}.onnx`);
  writeFileSync(out, model);
  return out;
}

module.exports = { exportDecoder };
