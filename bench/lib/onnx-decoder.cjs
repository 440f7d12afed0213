// A family's transformer as an ONNX file, for onnxruntime-node: grouped heads, biases, norms of queries and keys, attention
// by blocks, and mixtures of experts, with the fused operators that onnx.cjs has. Names are those of Hugging Face's
// decoders, LLaDA's or LLaDA2's.
const { closeSync, existsSync, openSync, readSync, renameSync, writeFileSync, writeSync } = require('node:fs');
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

/** LLaDA2's, where they are others; its queries, keys and values are one product. */
const LLADA2 = {
  'self_attn.q_norm': 'attention.query_layernorm',
  'self_attn.k_norm': 'attention.key_layernorm',
  'self_attn.o_proj': 'attention.dense',
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

/**
 * Writes experts.bin, where it is not there, with every layer's experts as the MoE operator has them: (E, 2 M, C) rows of
 * gate and up projection in turns, and (E, C, M) of the down projection. Returns name to tensor of it.
 */
function packExperts(folder, { layers, experts, mlp, hidden }) {
  const out = path.join(folder, 'experts.bin');
  const sizes = { fc1: 2 * mlp * hidden, fc2: mlp * hidden };
  const tensors = [];
  let end = 0;
  for (let i = 0; i < layers; i++)
    for (const [name, dims] of Object.entries({ fc1: [experts, 2 * mlp, hidden], fc2: [experts, hidden, mlp] })) {
      const length = 4 * experts * sizes[name];
      tensors.push(externalTensor(`${i}.${name}`, dims, path.basename(out), end, length));
      end += length;
    }
  if (existsSync(out)) return tensors;
  const file = path.join(folder, 'model.safetensors');
  const { header, begin } = readHeader(file);
  const input = openSync(file, 'r');
  const output = openSync(`${out}.part`, 'w');
  const read = (name) => {
    const [from, to] = header[`${name}.weight`].data_offsets;
    const values = Buffer.alloc(to - from);
    readSync(input, values, 0, values.length, begin + from);
    return values;
  };
  const row = 4 * hidden;
  for (let i = 0; i < layers; i++) {
    for (let e = 0; e < experts; e++) {
      const [gate, up] = ['gate_proj', 'up_proj'].map((name) => read(`model.layers.${i}.mlp.experts.${e}.${name}`));
      const both = Buffer.alloc(2 * gate.length);
      for (let at = 0; at < gate.length; at += row) {
        gate.copy(both, 2 * at, at, at + row);
        up.copy(both, 2 * at + row, at, at + row);
      }
      writeSync(output, both);
    }
    for (let e = 0; e < experts; e++) writeSync(output, read(`model.layers.${i}.mlp.experts.${e}.down_proj`));
  }
  closeSync(input);
  closeSync(output);
  renameSync(`${out}.part`, out);
  return tensors;
}

/** Below every logarithm of a router's scores: an expert that is not chosen. */
const NEVER = -1e9;

/** Writes `<folder>/t<length>.onnx`: ids (T, int64) to logits (T, V). Returns its path. */
function exportDecoder(folder, { shape, config = {}, block = 0 }, length) {
  const { layers, heads, kvHeads, headDim, qkvBias, qkNorm, experts, taken, shared } = shape;
  const isLlada = config.model_type === undefined;
  const isLlada2 = config.model_type === 'llada2_moe';
  const rotary = headDim * (config.partial_rotary_factor ?? 1);
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

  const silu = (input, output) => fused('QuickGelu', [input], [output], { alpha: { float: 1 } }); // x * sigmoid(x)
  const gated = (at, linear, input, name, output) => {
    linear(input, `${name}.gate_proj`, at('gate'));
    linear(input, `${name}.up_proj`, at('up'));
    silu(at('gate'), at('silu'));
    op('Mul', [at('silu'), at('up')], [at('h')]);
    linear(at('h'), `${name}.down_proj`, output);
  };
  // Sigmoid scores, of which the best of the best groups are chosen by score and bias. The operator takes the softmax of
  // what it is given, so that logarithms of the chosen scores give these as shares of their sum.
  if (isLlada2) {
    numbers('grouped', [length, config.n_group, experts / config.n_group]);
    numbers('flat', [length, experts]);
    numbers('two', [2]);
    numbers('groups', [config.topk_group]);
    numbers('taken', [taken]);
    numbers('last', [-1]);
    const constant = (name, dims, value) =>
      constants.push(inlineTensor(name, FLOAT, dims, new Float32Array(dims.reduce((a, b) => a * b)).fill(value)));
    constant('groups.never', [length, config.n_group], NEVER);
    constant('groups.chosen', [length, config.topk_group], 0);
    constant('experts.never', [length, experts], NEVER);
    constant('experts.chosen', [length, taken], 0);
    constant('scale', [1], config.routed_scaling_factor);
  }
  const llada2Router = (at, w) => {
    op('Sigmoid', [at('router')], [at('scores')]);
    op('Add', [at('scores'), w('mlp.gate', 'expert_bias')], [at('biased')]);
    op('Reshape', [at('biased'), 'grouped'], [at('grouped')]);
    op('TopK', [at('grouped'), 'two'], [at('two'), at('two.at')], { axis: -1 });
    op('ReduceSum', [at('two'), 'last'], [at('groups')], { keepdims: 0 });
    op('TopK', [at('groups'), 'groups'], [at('best'), at('best.at')], { axis: -1 });
    op('ScatterElements', ['groups.never', at('best.at'), 'groups.chosen'], [at('kept')], { axis: 1 });
    op('Unsqueeze', [at('kept'), 'last'], [at('kept3')]);
    op('Add', [at('grouped'), at('kept3')], [at('within')]);
    op('Reshape', [at('within'), 'flat'], [at('candidates')]);
    op('TopK', [at('candidates'), 'taken'], [at('top'), at('top.at')], { axis: -1 });
    op('ScatterElements', ['experts.never', at('top.at'), 'experts.chosen'], [at('chosen')], { axis: 1 });
    op('Log', [at('scores')], [at('logs')]);
    op('Add', [at('logs'), at('chosen')], [at('routes')]);
    return at('routes');
  };

  const embedding = isLlada2 ? 'model.word_embeddings.weight' : 'model.embed_tokens.weight';
  op('Gather', [isLlada ? 'model.transformer.wte.weight' : embedding, 'ids'], ['x']);
  let residual = 'x';
  let delta = null;
  for (let i = 0; i < layers; i++) {
    const w = (name, kind = 'weight') =>
      isLlada
        ? `model.transformer.blocks.${i}.${LLADA[name]}.${kind}`
        : `model.layers.${i}.${(isLlada2 && LLADA2[name]) || name}.${kind}`;
    const at = (name) => `${i}.${name}`;
    const linear = (input, name, output, bias = false) =>
      op('Gemm', bias ? [input, w(name), w(name, 'bias')] : [input, w(name)], [output], { transB: 1 });
    if (delta) residual = addNorm(residual, delta, w('input_layernorm'), at('n1'));
    else norm(residual, w('input_layernorm'), at('n1'));
    if (isLlada2) {
      linear(at('n1'), 'attention.query_key_value', at('qkv'));
      numbers(at('widths'), [heads * headDim, kvHeads * headDim, kvHeads * headDim]);
      op('Split', [at('qkv'), at('widths')], [at('q'), at('k'), at('v')], { axis: 1 });
    }
    for (const name of ['q', 'k', 'v']) {
      const kind = name === 'q' ? 'q' : 'kv';
      if (!isLlada2) linear(at('n1'), `self_attn.${name}_proj`, at(name), qkvBias);
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
          ...(rotary < headDim && { rotary_embedding_dim: rotary }),
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
    if (experts) {
      linear(at('n2'), 'mlp.gate', at('router'));
      const routes = isLlada2 ? llada2Router(at, w) : at('router');
      fused('MoE', [at('n2'), routes, at('fc1'), '', at('fc2')], [at('mixed')], {
        k: taken,
        activation_type: 'swiglu',
        swiglu_fusion: 1,
        activation_alpha: { float: 1 },
        activation_beta: { float: 0 },
        swiglu_limit: { float: 1e30 },
        normalize_routing_weights: 0,
      });
      if (isLlada2) op('Mul', [at('mixed'), 'scale'], [at('scaled')]);
      const mixed = at(isLlada2 ? 'scaled' : 'mixed');
      if (shared) {
        gated(at, linear, at('n2'), 'mlp.shared_experts', at('shared'));
        op('Add', [mixed, at('shared')], [at('f')]);
      } else graph.push(node('', 'Identity', [mixed], [at('f')]));
    } else gated(at, linear, at('n2'), 'mlp', at('f'));
    delta = at('f');
  }
  addNorm(residual, delta, isLlada ? 'model.transformer.ln_f.weight' : 'model.norm.weight', 'z');
  op('Gemm', ['z', isLlada ? 'model.transformer.ff_out.weight' : 'lm_head.weight'], ['logits'], { transB: 1 });

  const { cosine, sine } = rotaryTable(length, rotary, ROPE_THETA);
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
      ...Object.entries(header)
        .filter(([name]) => !name.includes('.experts.'))
        .map(
          ([
            name,
            {
              shape: dims,
              data_offsets: [from, to],
            },
          ]) => externalTensor(name, dims, path.basename(weights), begin + from, to - from),
        ),
      ...(experts ? packExperts(folder, shape) : []),
      ...constants,
      inlineTensor('cosine', FLOAT, [length, rotary / 2], cosine),
      inlineTensor('sine', FLOAT, [length, rotary / 2], sine),
      inlineTensor('positions', INT64, [1, length], positions),
      valueInfo(11, 'ids', INT64, [length]),
      valueInfo(12, 'logits', FLOAT, [length, VOCABULARY]),
      // The MoE operator may write over its input while it still reads it, but never over an output of the graph.
      ...(experts
        ? Array.from({ length: layers }, (_, i) => valueInfo(12, `${i}.n2`, FLOAT, [length, shape.hidden]))
        : []),
    ),
    message(8, bytes(1, ''), integer(2, 17)),
    message(8, bytes(1, 'com.microsoft'), integer(2, 1)),
  ]);
  const out = path.join(folder, `t${length}.onnx`);
  writeFileSync(out, model);
  return out;
}

module.exports = { exportDecoder };
