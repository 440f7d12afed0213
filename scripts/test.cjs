// node scripts/test.cjs SUITE [ARGUMENTS]: runs a suite of scripts/suites (native, emulator, mutants, package, cross).
// Without a suite (npm test): the C++ tests, then jest, closed by one total. npm test -- test/golden.test.ts: arguments
// that are no suite go to jest, and the C++ tests are left out.
const { spawn } = require('node:child_process');
const { existsSync, mkdtempSync, readFileSync, rmSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { SetupError, root } = require('./setup.cjs');

/** Runs a command, its standard output kept and (unless told otherwise) shown; resolves to { code, output }. */
function run(command, args, show = true) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.on('data', (chunk) => {
      output += chunk;
      if (show) process.stdout.write(chunk);
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ code: code ?? 1, output }));
  });
}

/** Runs the C++ tests; { passed, failed }, null where they did not run to their end. */
async function runNative() {
  const { code, output } = await run(process.execPath, [__filename, 'native']);
  const counts = [...output.matchAll(/^(\d+) passed, (\d+) failed$/gm)].at(-1);
  if (!counts || (code !== 0 && counts[2] === '0')) return null;
  return { passed: Number(counts[1]), failed: Number(counts[2]) };
}

/** Runs jest; { passed, failed, skipped, code }, null where it left no report. */
async function runJest(args) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-test-'));
  const report = path.join(folder, 'jest.json');
  try {
    const jest = require.resolve('jest/bin/jest');
    // With --json and an output file jest still writes its ordinary report, to standard error.
    const { code } = await run(process.execPath, [jest, '--json', `--outputFile=${report}`, ...args], false);
    if (!existsSync(report)) return null;
    const counts = JSON.parse(readFileSync(report, 'utf8'));
    return {
      passed: counts.numPassedTests,
      failed: counts.numFailedTests + counts.numRuntimeErrorTestSuites,
      skipped: counts.numPendingTests,
      code,
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Everything, with one total as the last line; returns the exit code. */
async function runAll(jestArguments) {
  const native = jestArguments.length === 0 ? await runNative() : { passed: 0, failed: 0 };
  if (!native) process.stdout.write('The C++ tests did not run to their end.\n');
  const jest = await runJest(jestArguments);
  const passed = (native?.passed ?? 0) + (jest?.passed ?? 0);
  const failed = (native?.failed ?? 0) + (jest?.failed ?? 0);
  if (jest?.skipped > 0) process.stdout.write(`${jest.skipped} skipped; their names say why\n`);
  process.stdout.write(`${passed} passed, ${failed} failed\n`);
  return native && jest && jest.code === 0 && failed === 0 && passed > 0 ? 0 : 1;
}

async function main() {
  const [suite = '', ...args] = process.argv.slice(2);
  const file = path.join(__dirname, 'suites', `${suite}.cjs`);
  if (!/^\w+$/.test(suite) || !existsSync(file)) return runAll(process.argv.slice(2));
  return (await require(file)(args)) ?? 0;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    process.stderr.write(error instanceof SetupError ? `dultra: ${error.message}\n` : `${error.stack}\n`);
    process.exitCode = 1;
  },
);
