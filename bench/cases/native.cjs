// Single operations, in the native microbenchmarks of bench/native: matrix products beside OpenBLAS and oneDNN where
// those are installed, attention, rows, and the sampler beside a plain scan.
const { spawnSync } = require('node:child_process');
const { build, configure, program } = require('../../scripts/cmake.cjs');
const { root } = require('../../scripts/setup.cjs');

/** M x K x N of the products inside the two models, and of one layer of LLaDA-8B's width. */
const PRODUCTS = [
  '64x256x256',
  '64x256x1536',
  '256x768x256',
  '64x1024x6144',
  '512x1024x1024',
  '512x3072x1024',
  '32x4096x4096',
  '512x4096x4096',
];

function execute(command, args) {
  const { status, stdout, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (error) throw error;
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} ended with exit code ${status}\n${stdout}`);
  return stdout;
}

/** Builds the microbenchmarks and runs one; its lines of JSON. */
function measure(name, args) {
  configure('bench');
  build('bench', [`dultra_bench_${name}`]);
  return execute(program('bench', `dultra_bench_${name}`), args)
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

const products = {
  title: 'Matrix products',
  cases: ({ quick, threads }) =>
    PRODUCTS.slice(0, quick ? 3 : undefined).flatMap((shape) => threads.map((count) => ({ shape, threads: count }))),
  async run({ shape, threads, quick }) {
    const lines = measure('gemm', ['--threads', String(threads), '--shapes', shape, '--seconds', quick ? '0.1' : '1']);
    const isLibrary = ({ contender }) => /^(openblas|onednn)/.test(contender);
    const best = lines.filter(isLibrary).sort((a, b) => b.gflops - a.gflops)[0];
    return lines.map((line) => ({
      shape: shape.replaceAll('x', ' x '),
      threads,
      contender: isLibrary(line) ? line.contender : `dultra ${line.contender}`,
      unit: 'GFLOP/s',
      median: line.gflops,
      p10: line.gflops_p10,
      p90: line.gflops_p90,
      runs: line.runs,
      ratio: isLibrary(line) || !best ? undefined : line.gflops / best.gflops,
      reference: 'the better library',
    }));
  },
};

const operations = {
  title: 'Attention, rows, sampling',
  cases: ({ threads }) => threads.map((count) => ({ threads: count })),
  async run({ threads }) {
    return measure('ops', [String(threads)]).map((line) => ({
      shape: line.shape,
      threads,
      contender: 'dultra fp32',
      unit: 'µs',
      median: line.us,
      p10: line.us_p10,
      p90: line.us_p90,
      runs: line.runs,
      ratio: line.plain_us ? line.plain_us / line.us : undefined,
      reference: 'a plain scan',
      note: line.note,
    }));
  },
};

const experts = {
  title: 'A mixture of experts',
  cases: ({ threads }) => threads.map((count) => ({ threads: count })),
  async run({ threads }) {
    return measure('experts', [String(threads)]).map((line) => ({
      shape: `${line.rows} positions, ${line.taken} of ${line.experts} experts each, ${line.read} in all`,
      threads,
      contender: 'dultra fp32, bf16 weights',
      unit: 'µs',
      median: line.us,
      runs: line.runs,
      ratio: 1 / line.per_weight,
      reference: 'an MLP of the width that a token takes, for each weight read',
      note: `the MLP: ${line.mlp_us} µs`,
    }));
  },
};

module.exports = { products, operations, experts };
