// Runs a program of a CMake tree as a suite does: with its output shown, and under the options of its sanitizer.
const { spawnSync } = require('node:child_process');
const { program } = require('../cmake.cjs');
const { SetupError, root } = require('../setup.cjs');

/** Which variants `--sanitize[=address|thread]` asks for, and the arguments without it. */
function sanitizers(args) {
  const flags = args.filter((argument) => /^--sanitize(=|$)/.test(argument));
  const named = flags.map((flag) => flag.split('=')[1]).filter(Boolean);
  const unknown = named.find((name) => !['address', 'thread'].includes(name));
  if (unknown) throw new SetupError(`--sanitize: expected address or thread, got ${unknown}`);
  const variants = flags.length === 0 ? ['none'] : named.length === 0 ? ['address', 'thread'] : named;
  return { variants, rest: args.filter((argument) => !flags.includes(argument)) };
}

/** Runs a command with its output shown. Throws SetupError where it fails. */
function run(command, args, env) {
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error || status !== 0)
    throw new SetupError(`${[command, ...args].join(' ')}: ${error?.message ?? signal ?? `exit code ${status}`}`);
}

/** Runs a test program; environment variables of a sanitizer that is not compiled in have no effect. */
function runTests(preset, name, args, options = {}) {
  if (preset.endsWith('san')) process.stdout.write(`--- ${preset}\n`);
  run(program(preset, name), args, {
    ASAN_OPTIONS: options.asan ?? 'detect_leaks=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
    TSAN_OPTIONS: 'halt_on_error=1',
  });
}

module.exports = { run, runTests, sanitizers };
