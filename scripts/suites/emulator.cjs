// npm run test:emulator: builds the CUDA backend for the emulator and runs every native test on it; needs no GPU.
// Arguments go to the test program (--filter <part of a name>). --sanitize runs the tests of small shapes under
// AddressSanitizer, then the kernels' own under ThreadSanitizer, which reports their races. Without arguments the
// benchmark of a device runs too, on tiny shapes, and the report of scripts/gpu/check.sh on its output: faults in them
// must not cost minutes on a GPU.
const { spawnSync } = require('node:child_process');
const path = require('node:path');
const { build, configure, program } = require('../cmake.cjs');
const { report } = require('../gpu/report.cjs');
const { SetupError, root } = require('../setup.cjs');
const { runTests, sanitizers } = require('./native-program.cjs');

/** Runs a benchmark of a device; its measurements, each a line of JSON. Throws SetupError where a case is left out. */
function measure(command, args, env) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  const lines = (stdout ?? '').split('\n').filter(Boolean);
  const skipped = lines.find((line) => 'skipped' in JSON.parse(line));
  if (error || status !== 0 || skipped || lines.length < 10)
    throw new SetupError(`${command} ${args.join(' ')}: ${error?.message ?? skipped ?? stderr}`);
  return lines;
}

/**
 * The benchmark, and PyTorch's half of it where Debian's PyTorch is installed, must measure every case and give a
 * report of every bar.
 */
function checkBenchmark() {
  const measurements = measure(program('emulator', 'dultra_bench_cuda'), ['--tiny'], {
    DULTRA_CUDA_PLUGIN: program('emulator', 'libdultra_emulated_cuda.so'),
  });
  const hasTorch = spawnSync('/usr/bin/python3', ['-c', 'import torch']).status === 0;
  if (hasTorch)
    measurements.push(
      ...measure('/usr/bin/python3', [path.join('bench', 'torch', 'gpu.py'), '--tiny', '--device', 'cpu']),
    );
  const { bars } = report({ facts: 'gpu\temulator\n', measurements: measurements.join('\n'), golden: '', times: '' });
  // Without PyTorch the comparisons with it are not measured; everything else must be.
  const missing = bars.filter(
    ({ verdict, bar }) => verdict === 'not measured' && (hasTorch || !bar.endsWith('against PyTorch')),
  );
  if (bars.length < 15 || missing.length > 0)
    throw new SetupError(`the report lacks ${missing.map(({ bar }) => bar).join(', ') || 'bars'}`);
  process.stdout.write(`ok the benchmark of a device, and its report: ${bars.length} bars\n`);
}

const SANITIZED = {
  address: { preset: 'emulator-asan', tests: ['--tag', 'small'] },
  thread: { preset: 'emulator-tsan', tests: ['--tag', 'small', '--without-tag', 'slow_with_threads'] },
};

module.exports = async (args) => {
  const { variants, rest } = sanitizers(args);
  for (const sanitizer of variants) {
    const { preset, tests } = SANITIZED[sanitizer] ?? { preset: 'emulator', tests: [] };
    configure(preset);
    build(preset);
    // Lanes switch stacks, which AddressSanitizer's fake stacks do not survive.
    const options = { asan: 'detect_leaks=1:detect_stack_use_after_return=0' };
    await runTests(preset, 'dultra_emulated_tests', rest.length > 0 ? rest : tests, options);
    if (sanitizer === 'none' && rest.length === 0) checkBenchmark();
  }
};
