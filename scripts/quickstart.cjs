// npm run quickstart: makes a clone ready, generates a few prompts in the terminal, measures every sampler on held-out
// prompts, and writes report.html. Needs no network once the packages are there.
const { spawnSync } = require('node:child_process');
const path = require('node:path');
const { setup, SetupError, root } = require('./setup.cjs');

/** Prompts of the embedded model's world, and one from outside. */
const PROMPTS = [
  'Hello!',
  'Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.',
  'Is this review positive, negative or neutral? The soup was awful and the waiter was dreadful.',
  'What is 7 + 5?',
  'Why is the sky blue?',
];
/** Held-out prompts that every sampler answers, and of those the ones that the report steps through. */
const COUNT = 192;
const TRACES = 8;
const REPORT = path.join(root, 'report.html');

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
  const dataset = datasets.world();
  const grid = samplerGrid({ size: 'quick', maxTokens: dataset.genLength }).filter(
    ({ name }) => name !== 'fixed steps 2',
  );
  const groups = new Map(grid.map(({ name, group }) => [name, group]));
  const isPlanner = (name) => groups.get(name).startsWith('planner');
  const plans = [
    { model: 'world', label: 'before GRPO', choose: () => true },
    { model: 'world-grpo', label: 'after GRPO', choose: isPlanner },
    {
      model: 'world-grpo',
      label: 'after GRPO, planner not used',
      choose: (name) => !isPlanner(name) && !name.startsWith('fixed steps'),
    },
  ];
  process.stdout.write(
    `\nEvery sampler on ${COUNT} held-out prompts, before and after GRPO (half a minute).\n` +
      'NFE: forward passes per answer, mean. Shown are the settings that no other one beats.\n',
  );
  const runs = [];
  for (const { model: name, label, choose } of plans) {
    const model = await loadModel(name);
    const samplers = Object.fromEntries(
      grid.filter((entry) => choose(entry.name)).map((entry) => [entry.name, entry.sampler]),
    );
    const onProgress = ({ sampler, done, total }) => {
      if (process.stderr.isTTY)
        process.stderr.write(`\r\x1b[K${label}: ${sampler}, ${Math.round((100 * done) / total)} %`);
    };
    const evaluation = await evaluate(model, { dataset, samplers, count: COUNT, traces: TRACES, onProgress });
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
    evaluation.config.model.source = name;
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
    title: 'dultra: a small world',
    summary:
      'A small masked diffusion model answers questions about orders, appointments, reviews, sums and lists. A sampler decides which ' +
      'positions each forward pass fills; GRPO teaches the model and its unmasking planner to need few passes without giving wrong answers. ' +
      'models/README.md has the figures, the recipe, and where there is no gain.',
    runs,
    commands: ['npm run quickstart', 'node scripts/train-world.cjs'],
  });
  const report = path.relative(process.cwd(), REPORT) || REPORT;
  process.stdout.write(
    `\n${report}: every setting in a chart, and the answers step by step. docs/training-a-planner.md: how the model was made.\n` +
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
  for (const prompt of PROMPTS) dultra('generate', prompt, ...watch);
  await measure();
}

quickstart().catch((error) => {
  process.stderr.write(error instanceof SetupError ? `dultra: ${error.message}\n` : `${error.stack}\n`);
  process.exitCode = 1;
});
