// Checkpoints of random weights in the shapes that the benchmark runs, written once into build/bench-models.
const { existsSync, mkdirSync, openSync, writeSync, closeSync, renameSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { root } = require('../../scripts/setup.cjs');

/**
 * Shapes of LLaDA: MLP 3 C as in LLaDA-8B. The vocabulary is 4096, not LLaDA's 126464: with that one, the output head
 * alone would be 90 % of the multiplications of the small model and 54 % of the large one's, and the table would time a
 * single matrix product.
 */
const SHAPES = {
  'C 256 x 4': { hidden: 256, layers: 4, heads: 4, mlp: 768, vocab: 4096 },
  'C 1024 x 8': { hidden: 1024, layers: 8, heads: 8, mlp: 3072, vocab: 4096 },
};
const MAX_LENGTH = 4096;
const ROPE_THETA = 500000;
const RMS_EPS = 1e-5;

/** Name to shape, in file order; with the planner head of LLaDOU if asked. */
function tensorShapes({ hidden: c, layers, mlp: f, vocab: v }, planner) {
  const shapes = new Map([['model.transformer.wte.weight', [v, c]]]);
  const block = (prefix) => {
    for (const name of ['q_proj', 'k_proj', 'v_proj', 'attn_out']) shapes.set(`${prefix}.${name}.weight`, [c, c]);
    for (const name of ['ff_proj', 'up_proj']) shapes.set(`${prefix}.${name}.weight`, [f, c]);
    shapes.set(`${prefix}.ff_out.weight`, [c, f]);
    for (const name of ['attn_norm', 'ff_norm']) shapes.set(`${prefix}.${name}.weight`, [c]);
  };
  for (let i = 0; i < layers; i++) block(`model.transformer.blocks.${i}`);
  shapes.set('model.transformer.ln_f.weight', [c]);
  shapes.set('model.transformer.ff_out.weight', [v, c]);
  if (!planner) return shapes;
  block('mask_head.0');
  shapes.set('time_embedding.mlp.0.weight', [c, 256]).set('time_embedding.mlp.0.bias', [c]);
  shapes.set('time_embedding.mlp.2.weight', [c, c]).set('time_embedding.mlp.2.bias', [c]);
  shapes.set('mask_embedding.weight', [2, c]);
  for (const norm of ['norm_out_1', 'norm_out_2'])
    shapes.set(`${norm}.modulation.weight`, [2 * c, c]).set(`${norm}.modulation.bias`, [2 * c]);
  shapes.set('mask_linear.weight', [1, c]).set('mask_linear.bias', [1]);
  return shapes;
}

/** Sums of four uniforms: near enough to normal, seeded, and quick for a hundred million of them. */
function randomSource(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state * 2 ** -32;
  };
  return () => (uniform() + uniform() + uniform() + uniform() - 2) * Math.sqrt(3);
}

/**
 * The folder of a checkpoint of that shape, written if it is not there: matrices of variance 1 / columns, so that
 * activations keep their size through the layers; norm weights around 1.
 */
function makeModel(shapeName, { planner = false } = {}) {
  const shape = SHAPES[shapeName];
  const folder = path.join(root, 'build', 'bench-models', `${shapeName.replace(/ /g, '')}${planner ? '-planner' : ''}`);
  const file = path.join(folder, 'model.safetensors');
  if (existsSync(file)) return folder;
  mkdirSync(folder, { recursive: true });
  const header = {};
  let end = 0;
  for (const [name, dims] of tensorShapes(shape, planner)) {
    const begin = end;
    end += 4 * dims.reduce((a, b) => a * b);
    header[name] = { dtype: 'F32', shape: dims, data_offsets: [begin, end] };
  }
  let json = JSON.stringify(header);
  json += ' '.repeat((8 - (json.length % 8)) % 8);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const part = `${file}.part`;
  const out = openSync(part, 'w');
  writeSync(out, Buffer.concat([length, Buffer.from(json)]));
  const random = randomSource(1);
  for (const dims of tensorShapes(shape, planner).values()) {
    const values = new Float32Array(dims.reduce((a, b) => a * b));
    const scale = dims.length === 2 ? 1 / Math.sqrt(dims[1]) : 0.1;
    const offset = dims.length === 2 ? 0 : 1;
    for (let i = 0; i < values.length; i++) values[i] = offset + scale * random();
    writeSync(out, Buffer.from(values.buffer));
  }
  closeSync(out);
  const config = {
    model_type: 'llada',
    d_model: shape.hidden,
    n_heads: shape.heads,
    n_layers: shape.layers,
    mlp_hidden_size: shape.mlp,
    vocab_size: shape.vocab,
    max_sequence_length: MAX_LENGTH,
    rope_theta: ROPE_THETA,
    rms_norm_eps: RMS_EPS,
    mask_token_id: shape.vocab - 1,
    num_head_layers: 1,
  };
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config));
  renameSync(part, file);
  return folder;
}

/** `count` token ids below the mask id. */
function randomIds(shapeName, count) {
  let state = count;
  return Int32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) % (SHAPES[shapeName].vocab - 1);
  });
}

module.exports = { SHAPES, ROPE_THETA, RMS_EPS, makeModel, randomIds };
