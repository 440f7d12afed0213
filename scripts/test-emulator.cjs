// npm run test:emulator: builds the CUDA backend for the emulator and runs every native test on it, no GPU needed.
// Arguments go to the test program (--filter <part of a name>). --sanitize runs the tests of small shapes under
// AddressSanitizer, then all kernels' own under ThreadSanitizer, which reports their races. Without arguments the
// benchmark of a device runs too, on tiny shapes, and so does the report of scripts/gpu-check.sh on what it prints:
// nobody wants to find their faults in the minutes on a GPU.
const { spawnSync } = require('node:child_process');
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
const rest = process.argv.slice(2).filter((argument) => argument !== '--sanitize');
// Under a sanitizer, tests that take many cases would take minutes.
const SMALL = [
  'cuda_',
  'matmul_stacks',
  'layernorm_and',
  'rope_matches',
  'rmsnorm_backward',
  'adamw',
  'trainer_split',
  'trainer_adapters',
  'sampling_given',
  'sampling_does_not_depend_on_alignment',
  'log_prob_backward_matches',
  'unmask_new',
  'unmask_of',
  'unmask_writes',
  'trainer_threads',
  'exchange_',
  'kv_cache_sessions',
  'step_rows',
  'step_two',
  'step_after',
  'step_of',
];

// Whole models take minutes under ThreadSanitizer, and run no kernel that the others do not. Named by --filter they run
// there too.
const SLOW_WITH_THREADS = [
  'trainer_split',
  'trainer_adapters',
  'kv_cache_sessions',
  'step_rows',
  'step_after',
  'step_of',
];

function run(command, args, env) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } });
  if (error) {
    process.stderr.write(`dultra: ${command}: ${error.message}\n`);
    process.exit(1);
  }
  if (status !== 0) process.exit(status ?? 1);
}

/**
 * The benchmark, and PyTorch's half of it where Debian's PyTorch is installed, must measure every case and give a
 * report of every bar.
 */
function checkBenchmark(directory) {
  const lines = (command, args, env) => {
    const { status, stdout, stderr, error } = spawnSync(command, args, {
      cwd: root,
      encoding: 'utf8',
      env: { ...process.env, ...env },
    });
    const parsed = (stdout ?? '')
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line));
    const skipped = parsed.find((entry) => 'skipped' in entry);
    if (error || status !== 0 || skipped || parsed.length < 10) {
      process.stderr.write(
        `dultra: ${command} ${args.join(' ')}: ${error?.message ?? (skipped ? JSON.stringify(skipped) : stderr)}\n`,
      );
      process.exit(1);
    }
    return stdout;
  };
  const plugin = path.join(root, directory, 'libdultra_emulated_cuda.so');
  let measurements = lines(path.join(root, directory, 'dultra_bench_cuda'), ['--tiny'], { DULTRA_CUDA_PLUGIN: plugin });
  const hasTorch = spawnSync('/usr/bin/python3', ['-c', 'import torch']).status === 0;
  if (hasTorch)
    measurements += lines('/usr/bin/python3', [path.join('bench', 'torch', 'gpu.py'), '--tiny', '--device', 'cpu'], {});
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-emulator-'));
  try {
    writeFileSync(path.join(folder, 'measurements'), measurements);
    writeFileSync(path.join(folder, 'facts'), 'gpu\temulator\n');
    writeFileSync(path.join(folder, 'golden'), '');
    run('bash', ['scripts/gpu-report.sh', folder, path.join(folder, 'report')]);
    const { bars } = JSON.parse(readFileSync(path.join(folder, 'report.json'), 'utf8'));
    // Without PyTorch nothing can be compared with it; all else is measured.
    const missing = bars.filter(
      ({ verdict, bar }) => verdict === 'not measured' && (hasTorch || !bar.endsWith('against PyTorch')),
    );
    if (bars.length < 15 || missing.length > 0) {
      process.stderr.write(`dultra: the report lacks ${missing.map(({ bar }) => bar).join(', ') || 'bars'}\n`);
      process.exit(1);
    }
    process.stdout.write(`ok the benchmark of a device, and its report: ${bars.length} bars\n`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

for (const sanitizer of process.argv.includes('--sanitize') ? ['address', 'thread'] : ['']) {
  const directory = path.join('build', sanitizer ? `emulator-${sanitizer}` : 'emulator');
  const bench = `-DDULTRA_BENCH=${sanitizer ? 'OFF' : 'ON'}`;
  run('cmake', [
    '-S',
    '.',
    '-B',
    directory,
    '-DDULTRA_EMULATOR=ON',
    bench,
    `-DDULTRA_SANITIZE=${sanitizer}`,
    '-DCMAKE_BUILD_TYPE=Release',
  ]);
  run('cmake', ['--build', directory, '--parallel', String(os.availableParallelism())]);
  const program = path.join(root, directory, 'dultra_emulated_tests');
  if (!sanitizer) {
    run(program, rest);
    if (rest.length === 0) checkBenchmark(directory);
    continue;
  }
  process.stdout.write(`--- emulator, ${sanitizer} sanitizer\n`);
  const env = {
    ASAN_OPTIONS: 'detect_leaks=1:detect_stack_use_after_return=0',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
    TSAN_OPTIONS: 'halt_on_error=1',
  };
  if (rest.length > 0) run(program, rest, env);
  else
    for (const name of SMALL)
      if (sanitizer === 'address' || !SLOW_WITH_THREADS.includes(name)) run(program, ['--filter', name], env);
}
