// A model of LLaDA-8B's shape with random weights in 4 bits, as a GGUF file of 5 GB: how long it takes to load from the
// page cache, how much memory it takes, and a short generation. What is measured runs in a process of its own.
//
//   node bench/studies/large-quantised.cjs [--folder FOLDER] [--layers 32] [--threads 2] [--write]
//
// --write puts the figures into bench/results/large-quantised.md. The file is left in FOLDER (default: a temporary one,
// which is removed).
const { spawnSync } = require('node:child_process');
const { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { setup, root } = require('../../scripts/setup.cjs');

const DOCUMENT = path.join(root, 'bench', 'results', 'large-quantised.md');
const SHAPE = { width: 4096, mlp: 12288, heads: 32, vocabulary: 126464, positions: 4096 };
const MASK = 126336;

/** Random blocks whose scales are of the size of weights. */
function randomBlocks(numbers, bytesOfBlock) {
  const bytes = Buffer.alloc((numbers / 32) * bytesOfBlock);
  let state = 1;
  for (let at = 0; at + 4 <= bytes.length; at += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes.writeUInt32LE((state ^ (state >>> 15)) >>> 0, at);
  }
  // 2^-9, and for codes of 8 bits 2^-13.
  for (let at = 0; at < bytes.length; at += bytesOfBlock)
    bytes.writeUInt16LE(bytesOfBlock === 34 ? 0x0800 : 0x1800, at);
  return bytes;
}

async function writeModel(file, layers) {
  const { writeGguf } = require('../../dist/files/write-gguf.js');
  const { width: C, mlp: F, heads, vocabulary: V, positions } = SHAPE;
  const keys = [
    ['general.architecture', 'string', 'llada'],
    ['llada.vocab_size', 'u32', V],
    ['llada.context_length', 'u32', positions],
    ['llada.embedding_length', 'u32', C],
    ['llada.block_count', 'u32', layers],
    ['llada.feed_forward_length', 'u32', F],
    ['llada.attention.head_count', 'u32', heads],
    ['llada.attention.layer_norm_rms_epsilon', 'f32', 1e-5],
    ['llada.rope.freq_base', 'f32', 500000],
    ['diffusion.shift_logits', 'bool', false],
    ['tokenizer.ggml.mask_token_id', 'u32', MASK],
  ];
  const matrix = (name, rows, columns, dtype = 'IQ4_NL') => ({ name, dtype, shape: [rows, columns] });
  const norm = (name) => ({ name, dtype: 'F32', shape: [C] });
  const tensors = [
    matrix('token_embd.weight', V, C, 'Q8_0'),
    norm('output_norm.weight'),
    matrix('output.weight', V, C, 'Q8_0'),
  ];
  for (let i = 0; i < layers; i++) {
    const at = (name) => `blk.${i}.${name}.weight`;
    for (const name of ['attn_q', 'attn_k', 'attn_v', 'attn_output']) tensors.push(matrix(at(name), C, C));
    tensors.push(matrix(at('ffn_gate'), F, C), matrix(at('ffn_up'), F, C), matrix(at('ffn_down'), C, F));
    tensors.push(norm(at('attn_norm')), norm(at('ffn_norm')));
  }
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  // Layers share their numbers: what is measured does not depend on them.
  const made = new Map();
  await writeGguf(file, keys, tensors, async (name) => {
    const { dtype, shape } = byName.get(name);
    const count = shape.reduce((product, n) => product * n, 1);
    if (dtype === 'F32') return new Uint8Array(new Float32Array(count).fill(1).buffer);
    const key = `${dtype} ${count}`;
    if (!made.has(key)) made.set(key, randomBlocks(count, dtype === 'Q8_0' ? 34 : 18));
    return made.get(key);
  });
}

const lineOf = (name) =>
  Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;

/** In the process of its own: prints one JSON line. */
async function measure(file, threads) {
  const { loadModel } = require('../../dist/index.js');
  const cpu = process.cpuUsage();
  const begin = performance.now();
  const model = await loadModel(file, { threads, compute: 'int8' });
  const loadMs = performance.now() - begin;
  const { user, system } = process.cpuUsage(cpu);
  const loadPeakBytes = lineOf('VmHWM');
  const prompt = { promptIds: Array.from({ length: 16 }, (_, i) => i + 1) };
  const started = performance.now();
  const before = process.cpuUsage();
  const { ids, nfe } = await model.generate(prompt, { maxTokens: 16, sampler: { type: 'fixed', steps: 2 } });
  const passCpu = process.cpuUsage(before);
  process.stdout.write(
    JSON.stringify({
      loadMs,
      loadCpuMs: (user + system) / 1000,
      loadPeakBytes,
      generateMs: performance.now() - started,
      generateCpuMs: (passCpu.user + passCpu.system) / 1000,
      tokens: ids.length,
      nfe,
      weightBytes: model.info.weightBytes,
      isa: model.info.isa,
      peakBytes: lineOf('VmHWM'),
      anonymousBytes: lineOf('RssAnon'),
    }),
  );
}

async function main() {
  const { values } = parseArgs({
    options: {
      folder: { type: 'string' },
      layers: { type: 'string', default: '32' },
      threads: { type: 'string', default: '2' },
      write: { type: 'boolean', default: false },
      measure: { type: 'string' },
    },
  });
  if (values.measure) return measure(values.measure, Number(values.threads));
  setup();
  const folder = values.folder ?? mkdtempSync(path.join(os.tmpdir(), 'dultra-large-'));
  const file = path.join(folder, `random-${values.layers}.gguf`);
  try {
    if (!existsSync(file)) await writeModel(file, Number(values.layers));
    const { status, stdout } = spawnSync(
      process.execPath,
      [__filename, '--measure', file, '--threads', values.threads],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] },
    );
    if (status !== 0) throw new Error('the measurement failed');
    const result = JSON.parse(stdout);
    const gb = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;
    const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
    const lines = [
      '| | |',
      '| --- | --- |',
      `| file | ${gb(statSync(file).size)}, ${values.layers} layers |`,
      `| processor | ${os.cpus()[0].model}, ${values.threads} threads, ${result.isa} |`,
      `| load (CPU time) | ${seconds(result.loadMs)} (${seconds(result.loadCpuMs)}) |`,
      `| peak memory: loaded, generated | ${gb(result.loadPeakBytes)}, ${gb(result.peakBytes)}, of which not mapped ${gb(result.anonymousBytes)} |`,
      `| ${result.tokens} tokens in ${result.nfe} passes over 32 positions (CPU time) | ${seconds(result.generateMs)} (${seconds(result.generateCpuMs)}) |`,
    ];
    process.stdout.write(`${lines.join('\n')}\n`);
    if (values.write)
      writeFileSync(
        DOCUMENT,
        `# An 8B-shaped model in 4 bits\n\nRandom weights, loaded from the page cache, \`compute: 'int8'\`: \`node bench/studies/large-quantised.cjs --write\`.\n\n${lines.join('\n')}\n`,
      );
  } finally {
    if (!values.folder) rmSync(folder, { recursive: true, force: true });
  }
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
