// Makes test/fixtures/causal: tiny random models of the Llama family, and what ONNX Runtime computes with them: an
// implementation that shares nothing with this one. Needs onnxruntime-node, which bench/ installs (cd bench && npm ci);
// the fixtures are committed.
const { mkdirSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { FLOAT, INT64, bytes, inlineTensor, integer, message, node, valueInfo } = require('../bench/lib/onnx.cjs');

const root = path.resolve(__dirname, '..');

const MODELS = {
  // As Qwen2.5: grouped queries, biases of q, k and v.
  qwen2: {
    model_type: 'qwen2',
    hidden_size: 48,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    num_hidden_layers: 3,
    intermediate_size: 96,
    vocab_size: 71,
    max_position_embeddings: 256,
    rms_norm_eps: 1e-6,
    rope_theta: 1000000,
    tie_word_embeddings: false,
    hidden_act: 'silu',
    use_sliding_window: false,
    eos_token_id: 3,
  },
  // As the small ones of Qwen2.5: tied head.
  tied: {
    model_type: 'qwen2',
    hidden_size: 32,
    num_attention_heads: 4,
    num_key_value_heads: 1,
    num_hidden_layers: 2,
    intermediate_size: 64,
    vocab_size: 50,
    max_position_embeddings: 128,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: true,
    hidden_act: 'silu',
    eos_token_id: [3, 4],
  },
  llama: {
    model_type: 'llama',
    hidden_size: 32,
    num_attention_heads: 2,
    num_hidden_layers: 2,
    intermediate_size: 80,
    vocab_size: 60,
    max_position_embeddings: 128,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: false,
    attention_bias: false,
    hidden_act: 'silu',
    eos_token_id: 2,
  },
};

/** A small seeded generator (mulberry32) and normal numbers that bfloat16 holds exactly. */
function random(seed) {
  let state = seed;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const narrow = new Float32Array(1);
  const word = new Uint32Array(narrow.buffer);
  const normal = (scale) => {
    narrow[0] = scale * Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
    word[0] &= 0xffff0000;
    return narrow[0];
  };
  return { uniform, normal };
}

function makeTensors(c, seed) {
  const { normal } = random(seed);
  const [h, f, v] = [c.hidden_size, c.intermediate_size, c.vocab_size];
  const kv = (h / c.num_attention_heads) * (c.num_key_value_heads ?? c.num_attention_heads);
  const tensors = new Map();
  const add = (name, shape, scale, mean = 0) =>
    tensors.set(name, {
      shape,
      data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => mean + normal(scale)),
    });
  add('model.embed_tokens.weight', [v, h], 0.5);
  for (let i = 0; i < c.num_hidden_layers; i++) {
    const at = `model.layers.${i}`;
    add(`${at}.input_layernorm.weight`, [h], 0.1, 1);
    add(`${at}.post_attention_layernorm.weight`, [h], 0.1, 1);
    for (const [name, rows] of [
      ['q', h],
      ['k', kv],
      ['v', kv],
    ]) {
      add(`${at}.self_attn.${name}_proj.weight`, [rows, h], 0.2);
      if (c.model_type === 'qwen2') add(`${at}.self_attn.${name}_proj.bias`, [rows], 0.5);
    }
    add(`${at}.self_attn.o_proj.weight`, [h, h], 0.2);
    add(`${at}.mlp.gate_proj.weight`, [f, h], 0.2);
    add(`${at}.mlp.up_proj.weight`, [f, h], 0.2);
    add(`${at}.mlp.down_proj.weight`, [h, f], 0.2);
  }
  add('model.norm.weight', [h], 0.1, 1);
  if (!c.tie_word_embeddings) add('lm_head.weight', [v, h], 0.3);
  return tensors;
}

function safetensors(tensors) {
  const header = {};
  let end = 0;
  for (const [name, { shape, data }] of tensors) {
    header[name] = { dtype: 'F32', shape, data_offsets: [end, end + data.byteLength] };
    end += data.byteLength;
  }
  let json = JSON.stringify(header);
  json += ' '.repeat((8 - (json.length % 8)) % 8);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([size, Buffer.from(json), ...[...tensors.values()].map(({ data }) => Buffer.from(data.buffer))]);
}

/**
 * The model as an ONNX graph of plain operators, one attention head after the other, for rows of one length: ids (T) to
 * logits (T, V).
 */
function graphOf(c, tensors, length) {
  const graph = [];
  const constants = [];
  const op = (type, inputs, output, attributes) => {
    graph.push(node('', type, inputs, Array.isArray(output) ? output : [output], attributes));
    return output;
  };
  const constant = (name, shape, data) => {
    constants.push(inlineTensor(name, data instanceof Float32Array ? FLOAT : INT64, shape, data));
    return name;
  };
  const heads = c.num_attention_heads;
  const groups = c.num_key_value_heads ?? heads;
  const d = c.hidden_size / heads;
  for (const [name, { shape, data }] of tensors) constant(name, shape, data);
  constant('axis', [1], BigInt64Array.of(1n));
  constant('eps', [1], Float32Array.of(c.rms_norm_eps));
  constant('scale', [1], Float32Array.of(1 / Math.sqrt(d)));
  constant('halves', [2], BigInt64Array.of(BigInt(d / 2), BigInt(d / 2)));
  constant(
    'q_split',
    [heads],
    BigInt64Array.from({ length: heads }, () => BigInt(d)),
  );
  constant(
    'kv_split',
    [groups],
    BigInt64Array.from({ length: groups }, () => BigInt(d)),
  );
  const angle = (t, j) => t * (c.rope_theta ?? 10000) ** ((-2 * j) / d);
  const table = (fn) =>
    Float32Array.from({ length: (length * d) / 2 }, (_, i) => fn(angle(Math.floor(i / (d / 2)), i % (d / 2))));
  constant('cosine', [length, d / 2], table(Math.cos));
  constant('sine', [length, d / 2], table(Math.sin));
  const mask = Float32Array.from({ length: length * length }, (_, i) =>
    i % length > Math.floor(i / length) ? -1e30 : 0,
  );
  constant('mask', [length, length], mask);
  const norm = (x, weight, out) => {
    op('Mul', [x, x], `${out}.square`);
    op('ReduceMean', [`${out}.square`, 'axis'], `${out}.mean`, { keepdims: 1 });
    op('Add', [`${out}.mean`, 'eps'], `${out}.shifted`);
    op('Sqrt', [`${out}.shifted`], `${out}.root`);
    op('Div', [x, `${out}.root`], `${out}.scaled`);
    return op('Mul', [`${out}.scaled`, weight], out);
  };
  const linear = (x, name, out) => {
    const bias = `${name}.bias`;
    return op('Gemm', [x, `${name}.weight`, ...(tensors.has(bias) ? [bias] : [])], out, { transB: 1 });
  };
  const rotate = (x, out) => {
    op('Split', [x, 'halves'], [`${out}.a`, `${out}.b`], { axis: 1 });
    op('Mul', [`${out}.a`, 'cosine'], `${out}.ac`);
    op('Mul', [`${out}.b`, 'sine'], `${out}.bs`);
    op('Mul', [`${out}.b`, 'cosine'], `${out}.bc`);
    op('Mul', [`${out}.a`, 'sine'], `${out}.as`);
    op('Sub', [`${out}.ac`, `${out}.bs`], `${out}.first`);
    op('Add', [`${out}.bc`, `${out}.as`], `${out}.second`);
    return op('Concat', [`${out}.first`, `${out}.second`], out, { axis: 1 });
  };
  let x = op('Gather', ['model.embed_tokens.weight', 'ids'], 'x');
  for (let i = 0; i < c.num_hidden_layers; i++) {
    const w = `model.layers.${i}`;
    const at = (name) => `${i}.${name}`;
    const n1 = norm(x, `${w}.input_layernorm.weight`, at('n1'));
    for (const name of ['q', 'k', 'v']) linear(n1, `${w}.self_attn.${name}_proj`, at(name));
    const each = (name, count) => Array.from({ length: count }, (_, head) => at(`${name}${head}`));
    op('Split', [at('q'), 'q_split'], each('q', heads), { axis: 1 });
    op('Split', [at('k'), 'kv_split'], each('k', groups), { axis: 1 });
    op('Split', [at('v'), 'kv_split'], each('v', groups), { axis: 1 });
    for (let g = 0; g < groups; g++) op('Transpose', [rotate(at(`k${g}`), at(`kr${g}`))], at(`kt${g}`));
    for (let head = 0; head < heads; head++) {
      const g = Math.floor((head * groups) / heads);
      op('MatMul', [rotate(at(`q${head}`), at(`qr${head}`)), at(`kt${g}`)], at(`s${head}`));
      op('Mul', [at(`s${head}`), 'scale'], at(`t${head}`));
      op('Add', [at(`t${head}`), 'mask'], at(`m${head}`));
      op('Softmax', [at(`m${head}`)], at(`p${head}`), { axis: 1 });
      op('MatMul', [at(`p${head}`), at(`v${g}`)], at(`o${head}`));
    }
    op('Concat', each('o', heads), at('heads'), { axis: 1 });
    linear(at('heads'), `${w}.self_attn.o_proj`, at('attention'));
    const h = op('Add', [x, at('attention')], at('h'));
    const n2 = norm(h, `${w}.post_attention_layernorm.weight`, at('n2'));
    linear(n2, `${w}.mlp.gate_proj`, at('gate'));
    linear(n2, `${w}.mlp.up_proj`, at('up'));
    op('Sigmoid', [at('gate')], at('sigmoid'));
    op('Mul', [at('gate'), at('sigmoid')], at('silu'));
    op('Mul', [at('silu'), at('up')], at('mlp'));
    linear(at('mlp'), `${w}.mlp.down_proj`, at('down'));
    x = op('Add', [h, at('down')], at('out'));
  }
  const z = norm(x, 'model.norm.weight', 'z');
  op('Gemm', [z, c.tie_word_embeddings ? 'model.embed_tokens.weight' : 'lm_head.weight'], 'logits', { transB: 1 });
  return Buffer.concat([
    integer(1, 8),
    message(
      7,
      ...graph,
      bytes(2, 'causal'),
      ...constants,
      valueInfo(11, 'ids', INT64, [length]),
      valueInfo(12, 'logits', FLOAT, [length, c.vocab_size]),
    ),
    message(8, bytes(1, ''), integer(2, 18)),
  ]);
}

async function main() {
  const ort = require(require.resolve('onnxruntime-node', { paths: [path.join(root, 'bench')] }));
  for (const [name, config] of Object.entries(MODELS)) {
    const folder = path.join(root, 'test', 'fixtures', 'causal', name);
    mkdirSync(folder, { recursive: true });
    const tensors = makeTensors(config, name.length * 7919);
    const { uniform } = random(17);
    const logitsOf = async (ids) => {
      const session = await ort.InferenceSession.create(graphOf(config, tensors, ids.length));
      const { logits } = await session.run({
        ids: new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [ids.length]),
      });
      return logits.data;
    };
    const rows = [];
    for (const length of [2, 9, 40]) {
      const ids = Array.from({ length }, () => Math.floor(uniform() * config.vocab_size));
      rows.push({ ids, logits: Array.from(await logitsOf(ids), (x) => Number(x.toPrecision(9))) });
    }
    // Greedy continuation, without its end, by the whole row each time.
    const prompt = rows[1].ids;
    const greedy = [...prompt];
    for (let step = 0; step < 12; step++) {
      const logits = (await logitsOf(greedy)).slice(-config.vocab_size);
      greedy.push(logits.indexOf(Math.max(...logits)));
    }
    writeFileSync(path.join(folder, 'config.json'), `${JSON.stringify(config, null, 1)}\n`);
    writeFileSync(path.join(folder, 'model.safetensors'), safetensors(tensors));
    const by = `onnxruntime-node ${require(require.resolve('onnxruntime-node/package.json', { paths: [path.join(root, 'bench')] })).version}`;
    writeFileSync(
      path.join(folder, 'expected.json'),
      `${JSON.stringify({ by, rows, prompt, greedy: greedy.slice(prompt.length) })}\n`,
    );
    process.stdout.write(`${folder}\n`);
  }
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
