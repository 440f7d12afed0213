// Writes a LLaDA-shaped checkpoint of random weights, of any size, without holding it in memory.
// --help says how.
const { closeSync, mkdirSync, openSync, writeFileSync, writeSync } = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');

const USAGE =
  'usage: node scripts/make-random-checkpoint.cjs --out FOLDER [--gb 1] [--dtype bfloat16] [--hidden 1024]\n' +
  '         [--vocab 32000] [--shards 1] [--no-planner] [--seed 1]';

const DTYPES = { float32: ['F32', 4], bfloat16: ['BF16', 2], float16: ['F16', 2] };
/** Numbers that repeat through the weights: a period that no row length divides, so that rows differ. */
const POOL = (1 << 20) + 7;

/** Numbers with the standard deviation 1 / sqrt(inputs), as bytes of a storage type. */
function pool(dtype, deviation, seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  // A sum of three uniforms is near enough to a normal distribution; its deviation is 1/2.
  const values = Float32Array.from({ length: POOL }, () => (next() + next() + next()) * 2 * deviation);
  if (dtype === 'F32') return Buffer.from(values.buffer);
  const bits = new Uint32Array(values.buffer);
  if (dtype === 'BF16') return Buffer.from(Uint16Array.from(bits, (b) => b >>> 16).buffer);
  // Half: exponents below 2^-14 become 0, which random weights do not miss.
  const half = (b) => {
    const exponent = ((b >>> 23) & 0xff) - 112;
    return ((b >>> 16) & 0x8000) | (exponent > 0 ? (exponent << 10) | ((b >>> 13) & 0x3ff) : 0);
  };
  return Buffer.from(Uint16Array.from(bits, half).buffer);
}

/** config.json of a model of about `bytes` bytes. */
function makeConfig({ bytes, elementBytes, hidden, vocab, planner }) {
  const mlp = Math.ceil((hidden * 3) / 64) * 64; // LLaDA-8B: 12288 for 4096
  const perBlock = hidden * (4 * hidden + 3 * mlp);
  const fixed = 2 * vocab * hidden + (planner ? perBlock + hidden * (256 + 5 * hidden) : 0);
  const layers = Math.max(1, Math.round((bytes / elementBytes - fixed) / perBlock));
  return {
    architectures: [planner ? 'LLaDOUModelLM' : 'LLaDAModelLM'],
    model_type: 'llada',
    activation_type: 'silu',
    block_type: 'llama',
    layer_norm_type: 'rms',
    rope: true,
    d_model: hidden,
    n_heads: hidden / 64,
    n_kv_heads: hidden / 64,
    n_layers: layers,
    mlp_hidden_size: mlp,
    vocab_size: vocab,
    embedding_size: vocab,
    max_sequence_length: 4096,
    rope_theta: 500000,
    rms_norm_eps: 1e-5,
    weight_tying: false,
    mask_token_id: vocab - 1,
    eos_token_id: vocab - 2,
    pad_token_id: vocab - 2,
    ...(planner ? { use_adaln: true, use_mask_embeddings: true, num_head_layers: 1 } : {}),
  };
}

/** Name and shape of every tensor. */
function tensorsOf(config, planner) {
  const { d_model: c, mlp_hidden_size: f, embedding_size: v } = config;
  const tensors = [['model.transformer.wte.weight', [v, c]]];
  const block = (at) => {
    for (const name of ['q_proj', 'k_proj', 'v_proj', 'attn_out']) tensors.push([`${at}.${name}.weight`, [c, c]]);
    tensors.push([`${at}.ff_proj.weight`, [f, c]], [`${at}.up_proj.weight`, [f, c]], [`${at}.ff_out.weight`, [c, f]]);
    tensors.push([`${at}.attn_norm.weight`, [c]], [`${at}.ff_norm.weight`, [c]]);
  };
  for (let i = 0; i < config.n_layers; i++) block(`model.transformer.blocks.${i}`);
  tensors.push(['model.transformer.ln_f.weight', [c]], ['model.transformer.ff_out.weight', [v, c]]);
  if (!planner) return tensors;
  block('mask_head.0');
  tensors.push(['time_embedding.mlp.0.weight', [c, 256]], ['time_embedding.mlp.0.bias', [c]]);
  tensors.push(
    ['time_embedding.mlp.2.weight', [c, c]],
    ['time_embedding.mlp.2.bias', [c]],
    ['mask_embedding.weight', [2, c]],
  );
  for (const norm of ['norm_out_1', 'norm_out_2'])
    tensors.push([`${norm}.modulation.weight`, [2 * c, c]], [`${norm}.modulation.bias`, [2 * c]]);
  tensors.push(['mask_linear.weight', [1, c]], ['mask_linear.bias', [1]]);
  return tensors;
}

/** Writes one file. @returns bytes of tensor data */
function writeFile(file, tensors, dtype, elementBytes, seed) {
  const header = { __metadata__: { format: 'pt' } };
  let at = 0;
  for (const [name, shape] of tensors) {
    const bytes = shape.reduce((product, n) => product * n, 1) * elementBytes;
    header[name] = { dtype, shape, data_offsets: [at, at + bytes] };
    at += bytes;
  }
  let json = JSON.stringify(header);
  json += ' '.repeat((8 - (json.length % 8)) % 8);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const fd = openSync(file, 'w');
  const write = (buffer) => {
    for (let done = 0; done < buffer.length; ) done += writeSync(fd, buffer, done);
  };
  write(length);
  write(Buffer.from(json));
  const pools = new Map();
  for (const [name, shape] of tensors) {
    const isNorm = /norm\.weight$|ln_f/.test(name);
    const deviation = isNorm ? 0 : shape.length === 1 ? 0.02 : name.includes('wte') ? 1 : 1 / Math.sqrt(shape[1]);
    if (!pools.has(deviation)) pools.set(deviation, pool(dtype, deviation, seed + pools.size));
    const one = { F32: [0, 0, 0x80, 0x3f], BF16: [0x80, 0x3f], F16: [0, 0x3c] }[dtype];
    const source = isNorm ? Buffer.alloc(shape[0] * elementBytes, Buffer.from(one)) : pools.get(deviation);
    for (let left = shape.reduce((product, n) => product * n, 1) * elementBytes; left > 0; left -= source.length)
      write(source.subarray(0, Math.min(left, source.length)));
  }
  closeSync(fd);
  return at;
}

/** Writes a checkpoint folder. @returns {{ bytes: number, config: object }} */
function makeRandomCheckpoint({
  out,
  gb = 1,
  dtype = 'bfloat16',
  hidden = 1024,
  vocab = 32000,
  shards = 1,
  planner = true,
  seed = 1,
}) {
  if (!DTYPES[dtype]) throw new RangeError(`dtype: expected ${Object.keys(DTYPES).join(', ')}, got ${dtype}`);
  if (hidden % 64 !== 0 || hidden <= 0) throw new RangeError(`hidden: expected a multiple of 64, got ${hidden}`);
  const [storage, elementBytes] = DTYPES[dtype];
  const config = makeConfig({ bytes: gb * 2 ** 30, elementBytes, hidden, vocab, planner });
  const tensors = tensorsOf(config, planner);
  mkdirSync(out, { recursive: true });
  const nameOf = (i) =>
    shards === 1
      ? 'model.safetensors'
      : `model-${String(i + 1).padStart(5, '0')}-of-${String(shards).padStart(5, '0')}.safetensors`;
  const weightMap = {};
  let bytes = 0;
  for (let i = 0; i < shards; i++) {
    const part = tensors.slice(
      Math.floor((tensors.length * i) / shards),
      Math.floor((tensors.length * (i + 1)) / shards),
    );
    for (const [name] of part) weightMap[name] = nameOf(i);
    bytes += writeFile(path.join(out, nameOf(i)), part, storage, elementBytes, seed + 1000 * i);
  }
  if (shards > 1)
    writeFileSync(
      path.join(out, 'model.safetensors.index.json'),
      JSON.stringify({ metadata: { total_size: bytes }, weight_map: weightMap }),
    );
  writeFileSync(path.join(out, 'config.json'), `${JSON.stringify(config, null, 1)}\n`);
  return { bytes, config };
}

module.exports = { makeRandomCheckpoint };

function main() {
  const { values } = parseArgs({
    options: {
      out: { type: 'string' },
      gb: { type: 'string', default: '1' },
      dtype: { type: 'string', default: 'bfloat16' },
      hidden: { type: 'string', default: '1024' },
      vocab: { type: 'string', default: '32000' },
      shards: { type: 'string', default: '1' },
      seed: { type: 'string', default: '1' },
      'no-planner': { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(`${USAGE}\n`);
    return;
  }
  if (!values.out) throw new Error('--out: expected a folder');
  const { out, dtype } = values;
  const [gb, hidden, vocab, shards, seed] = ['gb', 'hidden', 'vocab', 'shards', 'seed'].map((name) => {
    const number = Number(values[name]);
    if (!Number.isFinite(number) || number <= 0)
      throw new RangeError(`--${name}: expected a positive number, got ${values[name]}`);
    return number;
  });
  const { bytes, config } = makeRandomCheckpoint({
    out,
    gb,
    dtype,
    hidden,
    vocab,
    shards,
    planner: !values['no-planner'],
    seed,
  });
  process.stdout.write(`${out}: ${(bytes / 2 ** 30).toFixed(2)} GiB, ${config.n_layers} blocks of ${config.d_model}\n`);
}

if (require.main === module)
  try {
    main();
  } catch (error) {
    process.stderr.write(`${error.message}\n${USAGE}\n`);
    process.exitCode = 2;
  }
