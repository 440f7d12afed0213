// npm run golden -- --dir FOLDER [--only SUBSTRING]: replays recorded reference cases.
const { existsSync } = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { setup, SetupError, root } = require('./setup.cjs');

async function main() {
  const { values } = parseArgs({
    options: {
      dir: { type: 'string' },
      only: { type: 'string' },
      threads: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    process.stdout.write(
      "npm run golden -- [--dir FOLDER] [--only SUBSTRING] [--threads N]\n\nReplays the recorded cases of FOLDER (default: the repository's own).\nA kind, variant, setting or file that is not known fails, and so does a folder without cases.\n",
    );
    return 0;
  }
  const directory = path.resolve(values.dir ?? path.join(root, 'test', 'fixtures', 'golden'));
  if (!existsSync(directory)) throw new SetupError(`--dir: ${directory} does not exist`);
  setup();
  const dultra = require('../dist/index.js');
  const { runGolden, verdictOf } = require('../test/golden/runner.cjs');
  const results = await runGolden(dultra, directory, {
    only: (name) => !values.only || name.includes(values.only),
    load: values.threads ? { threads: Number(values.threads) } : {},
    log: (line) => process.stdout.write(`${line}\n`),
  });
  const { text, code } = verdictOf(results);
  process.stdout.write(`${text}\n`);
  return code;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    process.stderr.write(
      error instanceof SetupError || error.code?.startsWith('ERR_PARSE_ARGS')
        ? `dultra: ${error.message}\n`
        : `${error.stack}\n`,
    );
    process.exitCode = 2;
  },
);
