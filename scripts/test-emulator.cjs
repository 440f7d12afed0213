// npm run test:emulator: builds the CUDA backend for the emulator and runs every native test on it, no GPU needed. Arguments go to the test
// program (--filter <part of a name>). --sanitize runs the tests of small shapes under AddressSanitizer, then all kernels' own under
// ThreadSanitizer, which reports their races.
const { spawnSync } = require('node:child_process');
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
  'sampling_given',
  'unmask_new',
  'unmask_of',
  'unmask_writes',
  'trainer_threads',
  'exchange_',
  'step_two',
  'step_after',
  'step_of',
  'step_from',
];

function run(command, args, env) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } });
  if (error) {
    process.stderr.write(`dultra: ${command}: ${error.message}\n`);
    process.exit(1);
  }
  if (status !== 0) process.exit(status ?? 1);
}

for (const sanitizer of process.argv.includes('--sanitize') ? ['address', 'thread'] : ['']) {
  const directory = path.join('build', sanitizer ? `emulator-${sanitizer}` : 'emulator');
  run('cmake', ['-S', '.', '-B', directory, '-DDULTRA_EMULATOR=ON', `-DDULTRA_SANITIZE=${sanitizer}`, '-DCMAKE_BUILD_TYPE=Release']);
  run('cmake', ['--build', directory, '--parallel', '2']);
  const program = path.join(root, directory, 'dultra_emulated_tests');
  if (!sanitizer) {
    run(program, rest);
    continue;
  }
  process.stdout.write(`--- emulator, ${sanitizer} sanitizer\n`);
  const env = {
    ASAN_OPTIONS: 'detect_leaks=1:detect_stack_use_after_return=0',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
    TSAN_OPTIONS: 'halt_on_error=1',
  };
  if (rest.length > 0) run(program, rest, env);
  else for (const name of SMALL) run(program, ['--filter', name], env);
}
