// node test/device/run.cjs [device]: the checks of a device, and the reference's recorded cases on it in fp32. One line
// each, a total, exit code 1 where one failed.
const path = require('node:path');

const root = path.resolve(__dirname, '..', '..');
const { checks } = require('./checks.cjs');
const { runGolden } = require('../golden/runner.cjs');

async function main([device = 'cuda']) {
  const dultra = require(root);
  let passed = 0;
  let failed = 0;
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check(dultra, device);
      process.stdout.write(`ok   ${name}\n`);
      passed++;
    } catch (error) {
      process.stdout.write(`FAIL ${name}: ${error.message}\n`);
      failed++;
    }
  }
  const results = await runGolden(dultra, path.join(root, 'test', 'fixtures', 'golden'), {
    load: { device, compute: 'float32' },
    log: (line) => process.stdout.write(`${line}\n`),
  });
  for (const { status } of results) {
    passed += status === 'passed' ? 1 : 0;
    failed += status === 'failed' ? 1 : 0;
  }
  process.stdout.write(`${passed} passed, ${failed} failed\n`);
  return failed > 0 || passed === 0 ? 1 : 0;
}

main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    process.stderr.write(`${error.stack}\n`);
    process.exitCode = 2;
  },
);
