// Builds and runs the C++ tests; with --sanitize under AddressSanitizer + UndefinedBehaviorSanitizer, then
// ThreadSanitizer.
const { spawnSync } = require('node:child_process');
const os = require('node:os');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
const rest = process.argv.slice(2).filter((argument) => argument !== '--sanitize');

function run(command, args, env) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } });
  if (error) {
    process.stderr.write(`dultra: ${command}: ${error.message}\n`);
    process.exit(1);
  }
  if (status !== 0) process.exit(status ?? 1);
}

const toolset = process.platform === 'win32' ? ['-T', 'ClangCL'] : [];
const variants = process.argv.includes('--sanitize') ? ['address', 'thread'] : [''];
for (const sanitizer of variants) {
  const directory = path.join('build', sanitizer ? `native-${sanitizer}` : 'native');
  const options = ['-DDULTRA_TESTS=ON', `-DDULTRA_SANITIZE=${sanitizer}`, '-DCMAKE_BUILD_TYPE=Release'];
  run('cmake', ['-S', '.', '-B', directory, ...toolset, ...options]);
  run('cmake', ['--build', directory, '--config', 'Release', '--parallel', String(os.availableParallelism())]);
  if (sanitizer) process.stdout.write(`--- ${sanitizer} sanitizer\n`);
  const env = {
    ASAN_OPTIONS: 'detect_leaks=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
    TSAN_OPTIONS: 'halt_on_error=1',
  };
  run(path.join(root, directory, 'dultra_tests'), rest, sanitizer ? env : {});
}
