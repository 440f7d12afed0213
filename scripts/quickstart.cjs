// npm run quickstart: makes a clone ready, generates a few prompts in the terminal, measures every sampler on held-out
// prompts, and writes report.html. Needs no network once the packages are there.
const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const path = require('node:path');
const { setup, SetupError, root } = require('./setup.cjs');

const EMBEDDED = path.join(root, 'models', 'default');
const BASE = path.join(root, 'models', 'base');
const REPORT = path.join(root, 'report.html');
const FIXTURE = path.join('test', 'fixtures', 'golden', 'models', 'base');

/** The embedded model's prompts; the last one is continued at random. */
const PROMPTS = [
  ['tom has 7 apples . he buys 5 . how many now ? sum'],
  ['anna had 9 coins , then loses 4 . how many now ? story'],
  ['lily with 3 books and she finds 8 . how many now ? words', '--temperature', '0.7', '--seed', '1'],
];
/** Held-out prompts that every sampler answers, and of those the ones that the report steps through. */
const COUNT = 512;
const TRACES = 8;

/** One run of the command line, shown as somebody would type it. Throws SetupError where it fails. */
function dultra(...args) {
  const quoted = args.map((argument) => (/^[\w./:,=-]+$/.test(argument) ? argument : JSON.stringify(argument)));
  process.stdout.write(`\n$ npx dultra ${quoted.join(' ')}\n`);
  const { status } = spawnSync(process.execPath, [path.join('dist', 'cli', 'main.js'), ...args], {
    cwd: root,
    stdio: 'inherit',
  });
  if (status !== 0) throw new SetupError(`dultra ${args[0]} ended with exit code ${status}`);
}

/** The settings that no other of the same model beats, in both accuracy and passes: the table that people see. */
function best(results) {
  const { frontier } = require('..');
  const points = results.map((result) => ({ accuracy: result.accuracy, nfe: result.nfe.mean, result }));
  return frontier(points).map(({ result }) => result);
}

/** Aligned columns: the first to the left, numbers to the right. */
function printTable(rows) {
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)));
  for (const row of rows)
    process.stdout.write(
      `${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ')}\n`,
    );
}

/** Every sampler on the model before and after GRPO: a table, report.html, and what follows from them. */
async function measure() {
  const { datasets, evaluate, loadModel, samplerGrid, writeReport } = require('..');
  const { conclude } = require('../dist/evaluation/report-series');
  const dataset = datasets.byName('st1');
  const grid = samplerGrid({ size: 'quick', maxTokens: dataset.genLength });
  const groups = new Map(grid.map(({ name, group }) => [name, group]));
  const isPlanner = (name) => groups.get(name).startsWith('planner');
  const plans = [
    { folder: BASE, label: 'before GRPO', choose: () => true },
    { folder: EMBEDDED, label: 'after GRPO', choose: isPlanner },
    {
      folder: EMBEDDED,
      label: 'after GRPO, planner not used',
      choose: (name) => !isPlanner(name) && !/^fixed steps (8|24)$/.test(name),
    },
  ];
  process.stdout.write(
    `\nEvery sampler on ${COUNT} held-out prompts, before and after GRPO (half a minute).\n` +
      'NFE: forward passes per answer, mean. Shown are the settings that no other one beats.\n',
  );
  const runs = [];
  for (const { folder, label, choose } of plans) {
    const model = await loadModel(folder);
    const samplers = Object.fromEntries(
      grid.filter(({ name }) => choose(name)).map(({ name, sampler }) => [name, sampler]),
    );
    const onProgress = ({ sampler, done, total }) => {
      if (process.stderr.isTTY)
        process.stderr.write(`\r\x1b[K${label}: ${sampler}, ${Math.round((100 * done) / total)} %`);
    };
    const evaluation = await evaluate(model, { dataset, samplers, count: COUNT, traces: TRACES, onProgress });
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
    evaluation.config.model.source = path.relative(root, folder);
    const emphasis = label === 'after GRPO' ? () => true : undefined;
    runs.push({ label, evaluation, group: (name) => groups.get(name) ?? null, emphasis });
    model.dispose();
    process.stdout.write(`\n${label}\n`);
    printTable([
      ['sampler', 'right', 'NFE', 'tokens per pass', 'tokens/s'],
      ...best(evaluation.results).map(({ name, accuracy, nfe, tokensPerForward, tokensPerSecond }) => [
        name,
        `${(100 * accuracy).toFixed(1)} %`,
        nfe.mean.toFixed(2),
        tokensPerForward.untilEos.toFixed(2),
        tokensPerSecond.toFixed(0),
      ]),
    ]);
  }
  await writeReport(REPORT, {
    title: 'dultra: word problems',
    summary:
      'A tiny masked diffusion model answers word problems in one of several right sentences. A sampler decides which positions each forward ' +
      'pass fills; GRPO has taught the model and its unmasking planner to need few passes without giving wrong answers. docs/results.md says ' +
      'where the gain comes from, and where there is none.',
    runs,
    commands: [
      'npm run quickstart',
      'npx dultra train sft --preset tiny',
      'npx dultra train planner --preset tiny',
      'npx dultra train grpo --preset tiny',
    ],
  });
  const report = path.relative(process.cwd(), REPORT) || REPORT;
  process.stdout.write(
    `\n${report}: every setting in a chart, and the answers step by step. docs/results.md: what this shows and what not.\n` +
      `\nIn one sentence: ${conclude(runs)}\n`,
  );
}

async function quickstart() {
  process.stdout.write(
    'dultra: builds the package, generates a few answers and measures every sampler. About three minutes on two idle\n' +
      'cores the first time, less than one when everything is built.\n',
  );
  setup();
  dultra('info');
  const watch = process.stdout.isTTY ? ['--stream', '--delay', '150'] : ['--stream'];
  if (existsSync(EMBEDDED)) {
    for (const [prompt, ...options] of PROMPTS) dultra('generate', prompt, ...options, ...watch);
    await measure();
  } else {
    process.stdout.write(
      `\nThis version brings no trained model along. What follows runs ${FIXTURE}, a tiny test model with random\n` +
        'weights and no tokenizer: token ids come in and out, and they mean nothing. It shows that everything works.\n',
    );
    const options = ['--prompt-ids', '5,17,3', '--max-tokens', '24', '--block-length', '8'];
    dultra('generate', '--model', FIXTURE, ...options, ...watch);
    dultra('generate', '--model', FIXTURE, ...options, '--sampler', 'fixed:6', ...watch);
    dultra('generate', '--model', FIXTURE, ...options, '--temperature', '0.7', '--seed', '1', ...watch);
  }
}

quickstart().catch((error) => {
  process.stderr.write(error instanceof SetupError ? `dultra: ${error.message}\n` : `${error.stack}\n`);
  process.exitCode = 1;
});
