// The study behind docs/caches.md: decodes a task's test prompts with every cache; trains the model a
// little further by GRPO whose rollouts use a cache; decodes again. The stages below were chosen on validation prompts.
//
//   node bench/studies/caches.cjs                      the embedded model on st1; prints the tables
//   node bench/studies/caches.cjs --write              and puts them into bench/results/cache-study.md
//   node bench/studies/caches.cjs --model FOLDER --task t12
const { existsSync, readFileSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { setup, SetupError, root } = require('../../scripts/setup.cjs');

const DOCUMENT = path.join(root, 'bench', 'results', 'cache-study.md');
const MARKS = ['<!-- tables: begin -->', '<!-- tables: end -->'];
const SAMPLERS = ['planner', 'planner-round', 'confidence:0.9'];
const CACHES = ['none', 'prefix', 'dual', 'dual:planner=fresh', 'refresh', 'refresh:planner=fresh', 'refresh:4'];
/** The further training: blocks of the task's length or half the answer, with and without a cache. */
const STAGES = [
  { blocks: 'task', cache: 'refresh', steps: 60, learningRate: 1e-4 },
  { blocks: 'half', cache: 'none', steps: 40, learningRate: 1e-4 },
  { blocks: 'half', cache: 'refresh', steps: 80, learningRate: 5e-5 },
];

/** Accuracy, passes and their weighted sum of every sampler with every cache. */
async function measure(dultra, model, { dataset, count, blockLength }) {
  const named = (list, parse) => Object.fromEntries(list.map((text) => [text, parse(text)]));
  const { results, config } = await dultra.evaluate(model, {
    dataset,
    count,
    maxTokens: dataset.genLength,
    blockLength,
    samplers: named(SAMPLERS, dultra.parseSampler),
    caches: named(CACHES, dultra.parseCache),
  });
  return { results, config };
}

function table({ results }) {
  const lines = SAMPLERS.flatMap((sampler) => {
    const own = results.filter(({ name }) => name === sampler || name.startsWith(`${sampler} + `));
    const plain = own.find(({ cache }) => cache.type === 'none');
    return own.map((result) => {
      const { accuracy, accuracyError, nfe, fullForwards, tokensPerSecond } = result;
      const share = fullForwards.mean / plain.fullForwards.mean;
      const points = 100 * (accuracy - plain.accuracy);
      const cells = [
        sampler,
        result === plain ? 'none' : result.name.slice(sampler.length + 3),
        `${(100 * accuracy).toFixed(1)} ± ${(100 * accuracyError).toFixed(1)}`,
        result === plain ? '' : `${points >= 0 ? '+' : '−'}${Math.abs(points).toFixed(1)}`,
        nfe.mean.toFixed(2),
        fullForwards.mean.toFixed(2),
        `${share.toFixed(2)}`,
        Math.round(tokensPerSecond).toLocaleString('en'),
      ];
      return `| ${cells.join(' | ')} |`;
    });
  });
  const head = [
    'sampler',
    'cache',
    'right, %',
    'points',
    'NFE',
    'full-forward equivalents',
    'share of none',
    'tokens/s',
  ];
  return [`| ${head.join(' | ')} |`, `|${' --- |'.repeat(head.length)}`, ...lines].join('\n');
}

async function train(dultra, model, { dataset, steps, learningRate, cache, blockLength, seed }) {
  const trainer = new dultra.GrpoTrainer(model, {
    dataset,
    maxSteps: steps,
    seed,
    promptsPerStep: 16,
    numGenerations: 12,
    temperature: 0.5,
    learningRate,
    plannerLearningRate: 3 * learningRate,
    weightDecay: 0,
    warmupSteps: 5,
    blockLength,
    cache: dultra.parseCache(cache),
    rewards: { fast: dultra.rewards.fastAnswer({ weight: 0.5 }) },
  });
  let deviation = 0;
  const start = performance.now();
  for await (const { step, reward, accuracy, nfe, ratioDeviation } of trainer.train()) {
    deviation = Math.max(deviation, ratioDeviation);
    if (step % 20 === 0)
      process.stderr.write(
        `grpo step ${step}: reward ${reward.toFixed(3)}, right ${accuracy.toFixed(3)}, NFE ${nfe.toFixed(2)}\n`,
      );
  }
  await trainer.dispose();
  return { deviation, seconds: (performance.now() - start) / 1000 };
}

async function main() {
  const { values } = parseArgs({
    options: {
      model: { type: 'string' },
      task: { type: 'string', default: 'st1' },
      count: { type: 'string', default: '512' },
      seed: { type: 'string', default: '0' },
      save: { type: 'string' },
      write: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    process.stdout.write(
      'node bench/studies/caches.cjs [--model FOLDER] [--task NAME] [--count N] [--seed N] [--save FOLDER] [--write]\n',
    );
    return;
  }
  const [count, seed] = [values.count, values.seed].map(Number);
  if (!(count > 0) || !Number.isInteger(seed)) throw new SetupError('--count, --seed: expected whole numbers');
  setup();
  const dultra = require('../../dist/index.js');
  const dataset = dultra.datasets.byName(values.task);
  const model = await dultra.loadModel(values.model);
  const half = dataset.genLength % 2 === 0 ? dataset.genLength / 2 : dataset.genLength;
  const lengths = [...new Set([dataset.blockLength, half])];
  const parts = [];
  const add = async (title) => {
    for (const blockLength of lengths) {
      process.stderr.write(`${title}, blocks of ${blockLength}\n`);
      const measured = await measure(dultra, model, { dataset, count, blockLength });
      parts.push(`### ${title}, blocks of ${blockLength}\n\n${table(measured)}`);
    }
  };
  await add('The model as it is');
  const blocks = { task: dataset.blockLength, half };
  const done = [];
  for (const stage of STAGES) {
    const { deviation, seconds } = await train(dultra, model, {
      ...stage,
      dataset,
      blockLength: blocks[stage.blocks],
      seed,
    });
    done.push(
      `${stage.steps} steps with cache \`${stage.cache}\` in blocks of ${blocks[stage.blocks]} (${Math.round(seconds)} s, largest |ρ − 1| ${deviation})`,
    );
  }
  await add('After GRPO on the cache');
  if (values.save) await model.save(values.save);
  model.dispose();
  const name = values.model ?? 'the embedded model';
  const text = [
    `${count} test prompts of ${dataset.name}, ${dataset.genLength} tokens each, ${name}; one seed (${seed}). Made by \`node bench/studies/caches.cjs${
      process.argv
        .slice(2)
        .filter((word) => word !== '--write')
        .map((word) => ` ${word}`)
        .join('') || ''
    }\`. The GRPO in between: ${done.join('; ')}.`,
    ...parts,
  ].join('\n\n');
  process.stdout.write(`${text}\n`);
  if (!values.write) return;
  if (!existsSync(DOCUMENT)) throw new SetupError(`${DOCUMENT} does not exist`);
  const [before, rest] = readFileSync(DOCUMENT, 'utf8').split(MARKS[0]);
  const after = rest.split(MARKS[1])[1];
  writeFileSync(DOCUMENT, `${before}${MARKS[0]}\n\n${text}\n\n${MARKS[1]}${after}`);
}

main().catch((error) => {
  process.stderr.write(
    error instanceof SetupError || error.code?.startsWith('ERR_PARSE_ARGS')
      ? `dultra: ${error.message}\n`
      : `${error.stack}\n`,
  );
  process.exitCode = 1;
});
