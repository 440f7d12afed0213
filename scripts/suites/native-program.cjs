// Runs the test program of a CMake tree, with the options of its sanitizer.
const { spawn } = require('node:child_process');
const os = require('node:os');
const { createInterface } = require('node:readline');
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

// Shares of the tests for each processor. One process each would leave a processor idle where the other has the long
// tests.
const SHARES = 8;

/**
 * Runs a test program, its tests in shares, as many at a time as there are processors (a test of kernels on the emulator
 * has one thread). Closes with one total. Throws SetupError where a test fails or a process does not end.
 */
async function runTests(preset, name, args, options = {}) {
  if (preset.endsWith('san')) process.stdout.write(`--- ${preset}\n`);
  const processors = os.availableParallelism();
  const shards = processors * SHARES;
  // Variables of a sanitizer that is not compiled in have no effect.
  const env = {
    ASAN_OPTIONS: options.asan ?? 'detect_leaks=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
    TSAN_OPTIONS: 'halt_on_error=1',
    ...process.env,
  };
  const outcomes = [];
  let next = 0;
  const worker = async () => {
    while (next < shards)
      outcomes.push(await runShard(program(preset, name), [...args, '--shard', `${next++}/${shards}`], env));
  };
  await Promise.all(Array.from({ length: processors }, worker));
  const sum = (key) => outcomes.reduce((total, outcome) => total + outcome[key], 0);
  process.stdout.write(`${sum('passed')} passed, ${sum('failed')} failed\n`);
  // A sanitizer may report after the last test, at exit.
  const broken = outcomes.find(
    ({ counted, passed, failed, code }) => !counted || (code !== 0 && passed > 0 && failed === 0),
  );
  if (broken) throw new SetupError(`${name} did not run to its end: ${broken.end}`);
  if (sum('failed') > 0 || sum('passed') === 0) throw new SetupError(`${name}: ${sum('failed')} tests failed`);
}

/** One process of a test program; shows its lines, but not its own total. { passed, failed, counted, code, end }. */
function runShard(command, args, env) {
  return new Promise((resolve, reject) => {
    const outcome = { passed: 0, failed: 0, counted: false };
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'], env });
    createInterface({ input: child.stdout }).on('line', (line) => {
      const counts = /^(\d+) passed, (\d+) failed$/.exec(line);
      if (!counts) process.stdout.write(`${line}\n`);
      else Object.assign(outcome, { passed: Number(counts[1]), failed: Number(counts[2]), counted: true });
    });
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ ...outcome, code, end: signal ?? `exit code ${code}` }));
  });
}

module.exports = { runTests, sanitizers };
