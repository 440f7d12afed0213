// The transformer as an ONNX file, for onnxruntime-node. Weights stay in the checkpoint: ONNX lets a tensor name a byte
// range of another file. The nodes are those that ONNX Runtime's own transformer optimizer puts in place of an exported
// graph: its fused RMS norms, rotary embedding and multi-head attention, and Gemm with weights as torch.nn.Linear keeps
// them.
const { closeSync, openSync, readSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { ROPE_THETA, RMS_EPS } = require('./models.cjs');

// ---- protocol buffers: the few field kinds that ONNX files need. Numbers and types are those of onnx.proto.
const varint = (value) => {
  const bytes = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  return Buffer.from([...bytes, Number(rest)]);
};
const integer = (field, value) => Buffer.concat([varint(field << 3), varint(value)]);
const float = (field, value) => {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return Buffer.concat([varint((field << 3) | 5), bytes]);
};
const bytes = (field, value) => {
  const content = Buffer.isBuffer(value) ? value : Buffer.from(value);
  return Buffer.concat([varint((field << 3) | 2), varint(content.length), content]);
};
const message = (field, ...parts) => bytes(field, Buffer.concat(parts));

const FLOAT = 1;
const INT64 = 7;

function attribute(name, value) {
  if (typeof value === 'string') return message(5, bytes(1, name), bytes(4, value), integer(20, 3));
  if (typeof value === 'object') return message(5, bytes(1, name), float(2, value.float), integer(20, 1));
  return message(5, bytes(1, name), integer(3, value), integer(20, 2));
}
const node = (domain, type, inputs, outputs, attributes = {}) =>
  message(
    1,
    ...inputs.map((name) => bytes(1, name)),
    ...outputs.map((name) => bytes(2, name)),
    bytes(4, type),
    ...Object.entries(attributes).map(([name, value]) => attribute(name, value)),
    bytes(7, domain),
  );
const dimensions = (shape) => shape.map((n) => integer(1, n));
const inlineTensor = (name, type, shape, array) =>
  message(5, ...dimensions(shape), integer(2, type), bytes(8, name), bytes(9, Buffer.from(array.buffer)));
const externalTensor = (name, shape, file, offset, length) =>
  message(
    5,
    ...dimensions(shape),
    integer(2, FLOAT),
    bytes(8, name),
    ...Object.entries({ location: file, offset, length }).map(([key, value]) =>
      message(13, bytes(1, key), bytes(2, String(value))),
    ),
    integer(14, 1),
  );
const valueInfo = (field, name, type, shape) =>
  message(
    field,
    bytes(1, name),
    message(2, message(1, integer(1, type), message(2, ...shape.map((n) => message(1, integer(1, n)))))),
  );

/** Angles of every position: (T, D/2) cosines and sines, computed in fp32 as dultra and PyTorch do. */
function rotaryTable(length, headDim, theta = ROPE_THETA) {
  const { fround } = Math;
  const half = headDim / 2;
  const cosine = new Float32Array(length * half);
  const sine = new Float32Array(length * half);
  for (let p = 0; p < length; p++)
    for (let j = 0; j < half; j++) {
      const frequency = fround(1 / fround(theta ** fround((2 * j) / headDim)));
      cosine[p * half + j] = Math.cos(fround(p * frequency));
      sine[p * half + j] = Math.sin(fround(p * frequency));
    }
  return { cosine, sine };
}

/** Writes `<folder>/t<length>.onnx`: ids (T, int64) to logits (T, V). Returns its path. */
function exportOnnx(folder, { hidden: c, layers, heads, vocab }, length) {
  const weights = path.join(folder, 'model.safetensors');
  const file = openSync(weights, 'r');
  const size = Buffer.alloc(8);
  readSync(file, size, 0, 8, 0);
  const headerLength = Number(size.readBigUInt64LE(0));
  const json = Buffer.alloc(headerLength);
  readSync(file, json, 0, headerLength, 8);
  closeSync(file);
  const header = JSON.parse(json.toString());

  const graph = [];
  const op = (type, inputs, outputs, attributes) => graph.push(node('', type, inputs, outputs, attributes));
  const fused = (type, inputs, outputs, attributes) =>
    graph.push(node('com.microsoft', type, inputs, outputs, attributes));
  const base = 'model.transformer';
  const linear = (input, weight, output) => op('Gemm', [input, weight], [output], { transB: 1 });
  // The norm of (x + delta), and that sum, which the next residual starts from.
  const addNorm = (x, delta, weight, output) => {
    fused('SkipSimplifiedLayerNormalization', [x, delta, weight], [output, '', '', `${output}.sum`], {
      epsilon: { float: RMS_EPS },
    });
    return `${output}.sum`;
  };

  op('Gather', [`${base}.wte.weight`, 'ids'], ['x']);
  let residual = 'x';
  let delta = null;
  for (let i = 0; i < layers; i++) {
    const w = (name) => `${base}.blocks.${i}.${name}.weight`;
    const at = (name) => `${i}.${name}`;
    if (delta) residual = addNorm(residual, delta, w('attn_norm'), at('n1'));
    else
      op('SimplifiedLayerNormalization', [residual, w('attn_norm')], [at('n1')], {
        axis: -1,
        epsilon: { float: RMS_EPS },
        stash_type: 1,
      });
    for (const name of ['q', 'k', 'v']) {
      linear(at('n1'), w(`${name}_proj`), at(name));
      op('Reshape', [at(name), 'sequence'], [at(`${name}3`)]); // (1, T, C)
    }
    for (const name of ['q', 'k'])
      fused('RotaryEmbedding', [at(`${name}3`), 'positions', 'cosine', 'sine'], [at(`${name}r`)], {
        interleaved: 0,
        num_heads: heads,
      });
    fused('MultiHeadAttention', [at('qr'), at('kr'), at('v3')], [at('a3')], { num_heads: heads });
    op('Reshape', [at('a3'), 'rows'], [at('a')]);
    linear(at('a'), w('attn_out'), at('o'));
    residual = addNorm(residual, at('o'), w('ff_norm'), at('n2'));
    linear(at('n2'), w('ff_proj'), at('gate'));
    linear(at('n2'), w('up_proj'), at('up'));
    fused('QuickGelu', [at('gate')], [at('silu')], { alpha: { float: 1 } }); // x * sigmoid(x)
    op('Mul', [at('silu'), at('up')], [at('h')]);
    linear(at('h'), w('ff_out'), at('f'));
    delta = at('f');
  }
  addNorm(residual, delta, `${base}.ln_f.weight`, 'z');
  linear('z', `${base}.ff_out.weight`, 'logits');

  const { cosine, sine } = rotaryTable(length, c / heads);
  const model = Buffer.concat([
    integer(1, 8), // ir_version
    message(
      7,
      ...graph,
      bytes(2, 'llada'),
      ...Object.entries(header).map(
        ([
          name,
          {
            shape,
            data_offsets: [begin, end],
          },
        ]) => externalTensor(name, shape, path.basename(weights), 8 + headerLength + begin, end - begin),
      ),
      inlineTensor('cosine', FLOAT, [length, c / heads / 2], cosine),
      inlineTensor('sine', FLOAT, [length, c / heads / 2], sine),
      inlineTensor(
        'positions',
        INT64,
        [1, length],
        BigInt64Array.from({ length }, (_, i) => BigInt(i)),
      ),
      inlineTensor('sequence', INT64, [3], BigInt64Array.of(1n, BigInt(length), BigInt(c))),
      inlineTensor('rows', INT64, [2], BigInt64Array.of(BigInt(length), BigInt(c))),
      valueInfo(11, 'ids', INT64, [length]),
      valueInfo(12, 'logits', FLOAT, [length, vocab]),
    ),
    message(8, bytes(1, ''), integer(2, 17)),
    message(8, bytes(1, 'com.microsoft'), integer(2, 1)),
  ]);
  const out = path.join(folder, `t${length}.onnx`);
  writeFileSync(out, model);
  return out;
}

module.exports = {
  exportOnnx,
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
};
