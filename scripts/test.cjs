// npm test: C++ tests, then jest (which also replays the reference's recorded cases); closes with one total.
// Arguments go to jest: npm test -- test/golden.test.ts runs that file alone, without the C++ tests.
const { spawn } = require('node:child_process');
const { mkdtempSync, readFileSync, rmSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.resolve(__dirname, '..');

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

async function main() {
  const jestArguments = process.argv.slice(2);
  const total = { passed: 0, failed: 0, skipped: 0 };
  let failed = false;
  if (jestArguments.length === 0) {
    const { code, output } = await run(process.execPath, ['scripts/test-native.cjs']);
    const counts = [...output.matchAll(/^(\d+) passed, (\d+) failed$/gm)].at(-1);
    if (counts) {
      total.passed += Number(counts[1]);
      total.failed += Number(counts[2]);
    }
    failed ||= code !== 0 || !counts;
    if (!counts) process.stdout.write('The C++ tests did not run to their end.\n');
  }
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-test-'));
  const report = path.join(folder, 'jest.json');
  const jest = require.resolve('jest/bin/jest');
  // With --json and an output file jest still writes its ordinary report, to standard error.
  const { code } = await run(process.execPath, [jest, '--json', `--outputFile=${report}`, ...jestArguments], false);
  try {
    const { numPassedTests, numFailedTests, numPendingTests, numRuntimeErrorTestSuites } = JSON.parse(
      readFileSync(report, 'utf8'),
    );
    total.passed += numPassedTests;
    total.failed += numFailedTests + numRuntimeErrorTestSuites;
    total.skipped += numPendingTests;
  } catch {
    failed = true;
  }
  rmSync(folder, { recursive: true, force: true });
  failed ||= code !== 0 || total.failed > 0 || total.passed === 0;
  if (total.skipped > 0) process.stdout.write(`${total.skipped} skipped; their names say why\n`);
  // The last line, for whoever reads it by machine.
  process.stdout.write(`${total.passed} passed, ${total.failed} failed\n`);
  process.exitCode = failed ? 1 : 0;
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
