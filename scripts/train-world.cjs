// Trains the model of the world from its seed to saved models, and measures it: fine-tuning, planner, GRPO from several
// seeds, then figures.json with every figure and how long each stage took, and tables.md with the tables of it. A run
// that was interrupted goes on.
//
//   node scripts/train-world.cjs                        about an hour and a half on two quiet cores
//   node scripts/train-world.cjs --scale 0.01 --count 20 --seeds 1      a rehearsal of a few minutes
//
// scripts/embed-models.cjs puts the models into the package.
const { spawnSync } = require('node:child_process');
const { existsSync, readFileSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { datasets, loadModel, training } = require('../dist/index.js');

const MAIN = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
const { values: flags } = parseArgs({
  options: {
    output: { type: 'string', default: 'runs/world' },
    seeds: { type: 'string', default: '3' },
    threads: { type: 'string' },
    scale: { type: 'string', default: '1' },
    count: { type: 'string', default: '200' },
  },
});
const scale = Number(flags.scale);
const count = Number(flags.count);
const world = datasets.world();

/** What the steps of a run took together, without evaluations and whatever stood between interrupted parts. */
function secondsOf(folder) {
  const lines = readFileSync(path.join(folder, 'metrics.jsonl'), 'utf8').trim().split('\n');
  return lines.reduce((sum, line) => sum + (JSON.parse(line).seconds ?? 0), 0);
}

/** Runs a stage, or what is left of it; returns its model and seconds. */
function stage(name, folder, more) {
  const preset = training.PRESETS[name].world;
  const threads = flags.threads === undefined ? [] : ['--threads', flags.threads];
  const steps = (value) => String(Math.max(1, Math.round(value * scale)));
  const args = existsSync(path.join(folder, 'train.json'))
    ? ['--resume', folder]
    : [name, '--preset', 'world', '--output', folder, '--max-steps', steps(preset.maxSteps), ...more];
  // A rehearsal: a first lesson as short as the rest, and small evaluations at the end alone.
  if (scale !== 1 && args[0] === name) {
    const mixture = preset.mixture.map(({ steps: own, ...rest }) => ({
      ...rest,
      ...(own && { steps: Number(steps(own)) }),
    }));
    args.push('--set', `mixture=${JSON.stringify(mixture)}`, '--set', 'evalExamples=20');
    args.push('--eval-every', steps(preset.maxSteps));
  }
  const final = path.join(folder, 'final');
  if (existsSync(final)) return { model: final, seconds: secondsOf(folder) };
  const { status } = spawnSync(process.execPath, [MAIN, 'train', ...args, '--device', 'cpu', ...threads], {
    stdio: 'inherit',
  });
  if (status !== 0) process.exit(status ?? 1);
  return { model: final, seconds: secondsOf(folder) };
}

/** Tokens of a slot: the longest values, and a space behind. */
const SLOT = 9;
/** What is asked of the model: a form with its slots, else an answer. */
const asked = ({ prompt, meta }) =>
  meta.template ? { prompt, form: meta.template.flatMap((text, i) => (i === 0 ? [text] : [SLOT, text])) } : prompt;

/** Share of right answers and passes per prompt. */
async function measure(model, examples, sampler, cache) {
  let right = 0;
  let passes = 0;
  for (let i = 0; i < examples.length; i += 64) {
    const part = examples.slice(i, i + 64);
    const lengths = part[0].meta.template ? {} : { maxTokens: world.genLength, blockLength: world.blockLength };
    const results = await model.generateBatch(part.map(asked), { sampler, ...(cache && { cache }), ...lengths });
    results.forEach(({ text, nfe }, k) => {
      if (world.verify(part[k], text)) right++;
      passes += nfe;
    });
  }
  return { accuracy: right / examples.length, passes: passes / examples.length, count: examples.length };
}

/** Decisions as probabilities: accuracy, and how far confidence and accuracy are apart (expected calibration error). */
async function decide(model, examples) {
  const bins = Array.from({ length: 10 }, () => ({ confidence: 0, right: 0 }));
  for (const { prompt, answer, meta } of examples) {
    const { option, probabilities } = await model.choose(
      prompt,
      meta.options.map((text) => `${text}.`),
    );
    const confidence = Math.max(...probabilities);
    const bin = bins[Math.min(9, Math.floor(confidence * 10))];
    bin.confidence += confidence;
    if (option === answer) bin.right++;
  }
  const right = bins.reduce((sum, bin) => sum + bin.right, 0);
  const error = bins.reduce((sum, bin) => sum + Math.abs(bin.confidence - bin.right), 0);
  return { accuracy: right / examples.length, calibrationError: error / examples.length };
}

const GROUPS = {
  'extraction, known phrasings': ['validation', ['order', 'ticket', 'visit'], 0.95],
  'decisions, known phrasings': ['validation', ['sentiment', 'stars', 'again', 'triage'], 0.95],
  'lists, known phrasings': ['validation', ['sort', 'list'], 0.95],
  'arithmetic, known phrasings': ['validation', ['sum', 'money', 'units', 'problem', 'dates'], 0.9],
  'forms, known phrasings': ['validation', ['form'], 0.95],
  'all, new phrasings': ['test', world.categories, 0.85],
  'unseen names': ['names', ['order', 'ticket', 'visit', 'question', 'name', 'problem', 'record', 'repeat'], 0.7],
  'questions from outside': ['outside', ['outside'], 0.95],
};

/** Figures of one model under one sampler: every group, and each of its categories. */
async function figuresOf(model, sampler) {
  const groups = {};
  for (const [name, [split, categories, goal]] of Object.entries(GROUPS)) {
    const each = {};
    for (const category of categories) {
      const examples =
        split === 'outside' ? world.sample(split, 500, 7) : world.sample(split, count, 7, { [category]: 1 });
      each[category] = await measure(model, examples, sampler);
    }
    const all = Object.values(each);
    const mean = (key) => all.reduce((sum, figure) => sum + figure[key], 0) / all.length;
    groups[name] = { accuracy: mean('accuracy'), passes: mean('passes'), goal, categories: each };
    const { accuracy, passes } = groups[name];
    process.stdout.write(`  ${name}: ${accuracy.toFixed(3)} @ ${passes.toFixed(2)} (goal ${goal})\n`);
    for (const [category, figure] of Object.entries(each))
      process.stdout.write(`    ${category} ${figure.accuracy.toFixed(3)} @ ${figure.passes.toFixed(2)}\n`);
  }
  return groups;
}

const HEURISTICS = {
  'confidence:0.9': { type: 'confidence', threshold: 0.9 },
  'confidence:0.8': { type: 'confidence', threshold: 0.8 },
  'factor:1': { type: 'factor', factor: 1 },
  'entropy-sum:0.2': { type: 'entropy-sum', gamma: 0.2 },
};
const PLANNERS = { planner: { type: 'planner' }, 'planner, rounded': { type: 'planner', select: 'round' } };

/** Every sampler, without a cache and on the dual one. */
async function samplersOn(model, examples, title) {
  const figures = {};
  for (const cache of [undefined, 'dual'])
    for (const [name, sampler] of Object.entries({ ...HEURISTICS, ...PLANNERS })) {
      const key = cache ? `${name}, on the cache ${cache}` : name;
      figures[key] = await measure(model, examples, sampler, cache && { type: cache });
      const { accuracy, passes } = figures[key];
      process.stdout.write(`  ${title}, ${key}: ${accuracy.toFixed(3)} @ ${passes.toFixed(2)}\n`);
    }
  return figures;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const cell = ({ accuracy, passes }) => `${percent(accuracy)} at ${passes.toFixed(2)}`;
const rows = (lines) => lines.map((line) => `| ${line.join(' | ')} |`).join('\n');
const markdown = ([head, ...lines]) => rows([head, head.map(() => '---'), ...lines]);

/** Mean and standard deviation of right answers and passes. */
function spread(figures) {
  const [accuracy, passes] = ['accuracy', 'passes'].map((key) => {
    const values = figures.map((figure) => figure[key]);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return {
      mean,
      sd: Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / Math.max(1, values.length - 1)),
    };
  });
  const right = `${(100 * accuracy.mean).toFixed(1)} ± ${(100 * accuracy.sd).toFixed(1)} %`;
  return `${right} at ${passes.mean.toFixed(2)} ± ${passes.sd.toFixed(2)}`;
}

/** The figures as the tables of models/README.md. */
function tables({ sft, grpo, planner }) {
  const after = grpo[0]?.groups ?? {};
  const groups = Object.entries(sft.groups).map(([name, figure]) => [
    ...[name, percent(figure.goal), cell(figure), after[name] ? cell(after[name]) : ''],
  ]);
  const categories = Object.entries(sft.groups).flatMap(([name, figure]) =>
    Object.entries(figure.categories).map(([category, own]) => [
      ...[name, category, cell(own), after[name] ? cell(after[name].categories[category]) : ''],
    ]),
  );
  const decisions = Object.entries(sft.decisions).map(([name, { accuracy, calibrationError }]) => [
    ...[name, percent(accuracy), calibrationError.toFixed(3)],
  ]);
  const seeds = Object.values(grpo);
  const samplers = Object.keys(planner).map((name) => [
    ...[name, cell(planner[name]), spread(seeds.map((one) => one.samplers[name]))],
  ]);
  return [
    markdown([['group', 'goal', 'fine-tuned, confidence:0.9', 'after GRPO, planner'], ...groups]),
    markdown([['sampler', 'before GRPO', `after GRPO, ${seeds.length} seeds`], ...samplers]),
    markdown([['decision', 'right', 'calibration error'], ...decisions]),
    markdown([['group', 'category', 'fine-tuned, confidence:0.9', 'after GRPO, planner'], ...categories]),
  ].join('\n\n');
}

async function main() {
  const out = path.resolve(flags.output);
  const figures = { scale, stages: {}, sft: {}, grpo: {} };
  const save = () => writeFileSync(path.join(out, 'figures.json'), `${JSON.stringify(figures, null, 1)}\n`);
  const sft = stage('sft', path.join(out, 'sft'), []);
  figures.stages.sft = sft.seconds;
  const planner = stage('planner', path.join(out, 'planner'), ['--model', sft.model]);
  figures.stages.planner = planner.seconds;
  const trained = Array.from({ length: Number(flags.seeds) }, (_, seed) => {
    const result = stage('grpo', path.join(out, `grpo-${seed}`), ['--model', planner.model, '--seed', String(seed)]);
    figures.stages[`grpo-${seed}`] = result.seconds;
    return result.model;
  });
  const options = { device: 'cpu', ...(flags.threads && { threads: Number(flags.threads) }) };
  const base = await loadModel(planner.model, options);
  process.stdout.write('after fine-tuning, confidence threshold 0.9\n');
  figures.sft.groups = await figuresOf(base, HEURISTICS['confidence:0.9']);
  figures.sft.decisions = {};
  for (const split of ['validation', 'test'])
    for (const category of ['sentiment', 'stars', 'again', 'triage']) {
      const decided = await decide(base, world.sample(split, count, 7, { [category]: 1 }));
      figures.sft.decisions[`${category}, ${split}`] = decided;
      const { accuracy, calibrationError } = decided;
      process.stdout.write(
        `  ${category}, ${split}: ${accuracy.toFixed(3)}, calibration error ${calibrationError.toFixed(3)}\n`,
      );
    }
  save();
  const { mixture } = training.PRESETS.grpo.world;
  const shares = mixture[mixture.length - 1].shares;
  const held = world.sample('validation', 3 * count, 8, shares);
  figures.planner = await samplersOn(base, held, 'before GRPO');
  base.dispose();
  for (const [seed, folder] of trained.entries()) {
    const model = await loadModel(folder, options);
    const own = { samplers: await samplersOn(model, held, `after GRPO ${seed}`) };
    figures.grpo[seed] = own;
    if (seed === 0) {
      process.stdout.write('after GRPO, planner\n');
      own.groups = await figuresOf(model, PLANNERS['planner, rounded']);
    }
    model.dispose();
    save();
  }
  writeFileSync(path.join(out, 'tables.md'), `${tables(figures)}\n`);
  process.stdout.write(`${path.join(out, 'figures.json')}\n`);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
