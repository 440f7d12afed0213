// npm run quickstart: makes a clone ready, then generates a few prompts in the terminal.
const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const path = require('node:path');
const { setup, SetupError, root } = require('./setup.cjs');

const EMBEDDED = path.join(root, 'models', 'default');
const FIXTURE = path.join('test', 'fixtures', 'golden', 'models', 'base');

/** The embedded model's prompts; the last one is continued at random. */
const PROMPTS = [
  ['tom has 7 apples . he buys 5 . how many now ?'],
  ['anna had 9 coins , then loses 4 . how many now ?'],
  ['lily with 3 books and she finds 8 . how many now ?', '--temperature', '0.7', '--seed', '1'],
];

/** One run of the command line, shown as somebody would type it. Throws SetupError where it fails. */
function dultra(...args) {
  const quoted = args.map((argument) => (/^[\w./:,=-]+$/.test(argument) ? argument : JSON.stringify(argument)));
  process.stdout.write(`\n$ npx dultra ${quoted.join(' ')}\n`);
  const { status } = spawnSync(process.execPath, [path.join('dist', 'cli', 'main.js'), ...args], { cwd: root, stdio: 'inherit' });
  if (status !== 0) throw new SetupError(`dultra ${args[0]} ended with exit code ${status}`);
}

function quickstart() {
  setup();
  dultra('info');
  const watch = process.stdout.isTTY ? ['--stream', '--delay', '150'] : ['--stream'];
  if (existsSync(EMBEDDED)) {
    for (const [prompt, ...options] of PROMPTS) dultra('generate', prompt, ...options, ...watch);
  } else {
    process.stdout.write(
      `\nThis version brings no trained model along. What follows runs ${FIXTURE}, a tiny test model with random\n` +
        'weights and no tokenizer: token ids come in and out, and they mean nothing. It shows that everything works.\n',
    );
    const options = ['--prompt-ids', '5,17,3', '--gen-length', '24', '--block-length', '8'];
    dultra('generate', '--model', FIXTURE, ...options, ...watch);
    dultra('generate', '--model', FIXTURE, ...options, '--sampler', 'fixed:6', ...watch);
    dultra('generate', '--model', FIXTURE, ...options, '--temperature', '0.7', '--seed', '1', ...watch);
  }
  process.stdout.write('\nReady. README.md says how to load a checkpoint of yours; npm test runs the tests.\n');
}

try {
  quickstart();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`dultra: ${error.message}\n`);
  process.exitCode = 1;
}
