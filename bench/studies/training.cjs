// The study behind docs/results.md: trains base, planner and GRPO models of a task for several seeds, decodes each with
// every sampler, and writes the tables. Finished runs are kept, so that a study can be stopped and resumed; of a finished
// seed, seed.json has all that the tables need, and the runs beside it can go.
//
//   node bench/studies/training.cjs --task st1 --seeds 0,1,2,3,4             trains, evaluates, prints the tables
//   node bench/studies/training.cjs --task st1 --seeds 0 --variants all      and the ablations
//   node bench/studies/training.cjs --task st1 --seeds 0 --variants rivals   and the other methods, see RIVALS
//   node bench/studies/training.cjs --task st1 --tables --out bench/results/training     prints the tables of what is there
//   --quick: a few steps and prompts of everything, to see that it runs
const { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const dultra = require('../..');
const { machine } = require('../lib/report.cjs');

/**
 * Steps per stage, and the weight of speed in the reward where it is not 0.5. Learning rates are the same for all tasks
 * but sudoku, where larger ones make GRPO collapse.
 */
const RECIPES = {
  st1: { base: 3200, planner: 300, grpo: 300, speed: 2 },
  s1: { base: 3200, planner: 400, grpo: 150 },
  t12: { base: 4500, planner: 400, grpo: 150 },
  t12w: { base: 4500, planner: 400, grpo: 150 },
  free8: { base: 3000, planner: 400, grpo: 200 },
  freeb8: { base: 2500, planner: 400, grpo: 200 },
  free12: { base: 3000, planner: 400, grpo: 200 },
  sudoku4: {
    base: 1600,
    planner: 400,
    grpo: 200,
    dModel: 96,
    grpoRates: { learningRate: 5e-5, plannerLearningRate: 2e-4 },
  },
};

/** One right answer per prompt instead of a drawn one: the family and ending that come first. */
function onePhrase(dataset) {
  if (!dataset.answers) throw new Error(`${dataset.name} has no paraphrases to choose from`);
  const choose = (example) => ({ ...example, answer: dataset.answers(example)[0] });
  return { ...dataset, sample: (split, count, seed) => dataset.sample(split, count, seed).map(choose) };
}

/**
 * Other methods on the same base, with as many updates as GRPO has. Distillation learns from the base's own right answers
 * to so many prompts; the planner of a distilled model is initialised, and trained by GRPO, as that of the base.
 */
const RIVALS = [
  'sft-one',
  'dparallel',
  'd3llm',
  'diffu-grpo',
  'trace',
  'dparallel-planner',
  'dparallel-grpo',
  'd3llm-planner',
  'd3llm-grpo',
];
const OWN_ANSWERS = 4000;
/** Those that leave the planner as it was made. */
const WITHOUT_PLANNER = ['base', 'sft-one', 'dparallel', 'd3llm', 'diffu-grpo', 'trace'];

function stagesOf(task, dataset, { quick }) {
  const recipe = quick ? { ...RECIPES[task], base: 30, planner: 6, grpo: 4 } : RECIPES[task];
  const { trainCertainty, trainMaskedDiffusion, trainPlanner, trainPseudoTrajectories, GrpoTrainer, rewards } = dultra;
  const base = {
    learningRate: 3e-3,
    betas: [0.9, 0.98],
    weightDecay: 0.1,
    warmupSteps: 100,
    schedule: 'cosine',
    learningRateFloor: 0.1,
  };
  const grpoOptions = {
    dataset,
    maxSteps: recipe.grpo,
    promptsPerStep: 16,
    numGenerations: 12,
    temperature: 0.5,
    learningRate: 1e-4,
    plannerLearningRate: 3e-4,
    ...recipe.grpoRates,
    betas: [0.9, 0.99],
    weightDecay: 0,
    warmupSteps: 5,
    advantageMinClip: 0,
    rewards: { fast: rewards.fastAnswer({ weight: recipe.speed ?? 0.5 }) },
  };
  const grpo = (extra = {}) => ({
    from: 'planner',
    run: (model, common) => new GrpoTrainer(model, { ...grpoOptions, ...common, ...extra }).train(),
  });
  const planner = (from) => ({
    from,
    run: (model, common) =>
      trainPlanner(model, {
        dataset,
        maxSteps: recipe.planner,
        learningRate: 1e-3,
        betas: [0.9, 0.99],
        weightDecay: 0.01,
        ...common,
      }),
  });
  // A third of the answer: segments within a row, and windows that grow to it.
  const segment = Math.max(2, Math.ceil(dataset.genLength / 3));
  const distilled = (train, own) => ({
    from: 'base',
    answers: quick ? 16 : OWN_ANSWERS,
    run: (model, common, answers) =>
      train(model, {
        dataset: { examples: answers, genLength: dataset.genLength },
        maxSteps: recipe.grpo,
        batchSize: 64,
        learningRate: 3e-4,
        ...own,
        ...common,
      }),
  });
  // Tokens are scored, and speed is the sampler's: the reward is for right answers alone.
  const tokens = (objective, own = {}) => ({
    from: 'base',
    run: (model, common) =>
      new GrpoTrainer(model, {
        dataset,
        objective,
        maxSteps: recipe.grpo,
        promptsPerStep: 16,
        numGenerations: 12,
        temperature: 0.5,
        learningRate: 1e-4,
        weightDecay: 0,
        warmupSteps: 5,
        rewards: { correct: rewards.exactAnswer },
        ...own,
        ...common,
      }).train(),
  });
  return {
    dparallel: distilled(trainCertainty, { blockLength: segment }),
    d3llm: distilled(trainPseudoTrajectories, { windows: [Math.ceil(segment / 2), segment] }),
    // As in d1, two tokens a pass.
    'diffu-grpo': tokens('diffu-grpo', { rolloutSampler: { type: 'fixed', steps: dataset.genLength / 2 } }),
    trace: tokens('trace', { rolloutSampler: { type: 'confidence', threshold: 0.9 } }),
    'dparallel-planner': planner('dparallel'),
    'dparallel-grpo': { ...grpo(), from: 'dparallel-planner' },
    'd3llm-planner': planner('d3llm'),
    'd3llm-grpo': { ...grpo(), from: 'd3llm-planner' },
    base: {
      from: 'init',
      run: (model, common) =>
        trainMaskedDiffusion(model, { dataset, maxSteps: recipe.base, maskEpsilon: 0.02, ...base, ...common }),
    },
    planner: planner('base'),
    grpo: grpo(),
    'planner-only': grpo({ freezeBase: true }),
    'planner-only-long': grpo({ freezeBase: true, maxSteps: 2 * recipe.grpo, plannerLearningRate: 1e-3 }),
    'no-init': { ...grpo(), from: 'base' },
    'no-clip': grpo({ advantageMinClip: null }),
    tempered: grpo({ tokenLogProb: 'tempered' }),
    'reference-reward': grpo({
      rewards: { correct: rewards.exactAnswer, steps: { fn: rewards.stepPenalty(), weight: 0.1 } },
    }),
    'no-speed': grpo({ rewards: { correct: rewards.exactAnswer } }),
    'speed-0.5': grpo({ rewards: { fast: rewards.fastAnswer({ weight: 0.5 }) } }),
    'speed-2': grpo({ rewards: { fast: rewards.fastAnswer({ weight: 2 }) } }),
    'forced-reference': grpo({ forcedStep: 'reference' }),
    'sft-one': {
      from: 'base',
      run: (model, common) =>
        trainMaskedDiffusion(model, {
          dataset: onePhrase(dataset),
          maxSteps: 300,
          maskEpsilon: 0.02,
          ...base,
          ...common,
          learningRate: 3e-4,
        }),
    },
  };
}

const MAIN = ['base', 'planner', 'grpo'];

/** A folder appears whole or not at all. */
async function whole(folder, fill) {
  if (existsSync(folder)) return;
  const partial = `${folder}.partial`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(path.dirname(folder), { recursive: true });
  await fill(partial);
  renameSync(partial, folder);
}

async function trainStage(name, stages, folder, seed, task) {
  const modelOf = (stage) => path.join(folder, stage === 'init' ? 'init' : `${stage}/model`);
  if (name === 'init')
    return whole(modelOf('init'), (to) =>
      dultra.createModel(to, {
        vocabulary: dultra.datasets.byName(task).vocabulary,
        dModel: RECIPES[task].dModel ?? 64,
        seed,
      }),
    );
  if (existsSync(modelOf(name))) return undefined;
  const { from, run, answers } = stages[name];
  await trainStage(from, stages, folder, seed, task);
  const model = await dultra.loadModel(modelOf(from));
  const before = process.cpuUsage();
  const start = Date.now();
  const own = path.join(folder, 'answers.jsonl');
  if (answers) {
    const options = { dataset: task, count: answers, output: own, seed };
    for await (const { done, written } of dultra.distillAnswers(model, { ...options, keepWrong: answers < 100 }))
      if (done === answers) process.stderr.write(`${task} seed ${seed} answers: ${written} of ${done}\n`);
  }
  const outputDir = path.join(folder, name, 'run');
  let last;
  for await (const metrics of run(
    model,
    {
      seed,
      outputDir,
      resume: existsSync(path.join(outputDir, 'config.json')),
      saveEvery: 50,
      keepLast: 1,
    },
    own,
  )) {
    last = metrics;
    if (metrics.step % 25 === 0 || metrics.step === metrics.maxSteps) {
      const { accuracy, nfe, loss, agreement } = metrics;
      const parts =
        accuracy === undefined
          ? [`loss ${loss.toFixed(4)}`]
          : [`accuracy ${accuracy.toFixed(3)}`, `nfe ${nfe.toFixed(2)}`];
      if (agreement !== undefined) parts.push(`agreement ${agreement.toFixed(3)}`);
      process.stderr.write(
        `${task} seed ${seed} ${name} ${metrics.step}/${metrics.maxSteps} ${parts.join(' ')} ${((Date.now() - start) / 1000).toFixed(0)} s\n`,
      );
    }
  }
  const { user, system } = process.cpuUsage(before);
  await whole(modelOf(name), (to) => model.save(to));
  const cost = { steps: last?.step ?? null, seconds: (Date.now() - start) / 1000, cpuSeconds: (user + system) / 1e6 };
  writeFileSync(path.join(folder, name, 'cost.json'), `${JSON.stringify(cost)}\n`);
  await model[Symbol.asyncDispose]();
  return undefined;
}

/** Validation and test evaluations of a stage's model over the whole grid, one token per step included. */
async function evaluateStage(name, folder, task, count) {
  const files = Object.fromEntries(
    ['validation', 'test'].map((split) => [split, path.join(folder, name, `${split}.json`)]),
  );
  const dataset = dultra.datasets.byName(task);
  const planned = !WITHOUT_PLANNER.includes(name);
  const whole = dultra.samplerGrid({ maxTokens: dataset.genLength, planner: planned });
  // Of an ablation the planner's rules are enough to compare it by.
  const every = [...MAIN, ...RIVALS].includes(name) || !planned;
  const grid = whole.filter(({ group }) => every || isPlanner(group));
  const samplers = Object.fromEntries(grid.map(({ name: key, sampler }) => [key, sampler]));
  let model = null;
  for (const [split, file] of Object.entries(files)) {
    if (existsSync(file)) continue;
    model ??= await dultra.loadModel(path.join(folder, name, 'model'));
    const evaluation = await dultra.evaluate(model, { dataset, split, samplers, count, seed: 1 });
    // Per-prompt records of a whole grid are megabytes; the tables need none.
    for (const result of evaluation.results) result.samples = [];
    evaluation.config.model.source = name;
    writeFileSync(`${file}.tmp`, `${JSON.stringify(evaluation)}\n`);
    renameSync(`${file}.tmp`, file);
    process.stderr.write(`${task} ${name} ${split} evaluated\n`);
  }
  if (model) await model[Symbol.asyncDispose]();
  const read = (file) => JSON.parse(readFileSync(file, 'utf8'));
  return { validation: read(files.validation), test: read(files.test) };
}

const groupOf = (grid) => {
  const groups = new Map(grid.map(({ name, group }) => [name, group]));
  return (name) => groups.get(name) ?? null;
};
const isPlanner = (group) => group.startsWith('planner');

/** The rows of the study's table for one seed. */
function rowsOf(evaluations, maxTokens) {
  const group = groupOf(dultra.samplerGrid({ maxTokens }));
  const rows = [];
  const add = (label, { validation, test }, choose) => {
    for (const { group: name, points } of dultra.chooseOperatingPoints(validation, test, { group: choose }))
      rows.push({ group: name === 'best' ? label : `${label}, ${name}`, points });
  };
  const rival = (name) => (isPlanner(group(name)) ? null : group(name));
  const bestRival = (name) => (isPlanner(group(name)) ? null : 'best');
  const bestPlanner = (name) => (isPlanner(group(name)) ? 'best' : null);
  const { base, planner, grpo, ...variants } = evaluations;
  add('base', base, rival);
  add('base, **best of all heuristics**', base, bestRival);
  if (planner) add('planner after init, **best rule**', planner, bestPlanner);
  if (grpo) {
    add('after GRPO', grpo, (name) => (isPlanner(group(name)) ? group(name) : null));
    add('after GRPO, **best planner rule**', grpo, bestPlanner);
    add('GRPO base without its planner, **best of all heuristics**', grpo, bestRival);
  }
  for (const [name, evaluation] of Object.entries(variants)) {
    if (!WITHOUT_PLANNER.includes(name)) add(`${name}: best planner rule`, evaluation, bestPlanner);
    add(`${name}: best heuristic`, evaluation, bestRival);
  }
  return rows;
}

const budgetsLine = () => dultra.BUDGETS.map((budget) => (budget === null ? 'any NFE' : `NFE ≤ ${budget}`));

/** Markdown: accuracy @ NFE, mean ± sd over the seeds where there are several. */
function table(rows, runs) {
  const cell = (point) => {
    if (point === null) return '-';
    const sd = ({ mean, sd: deviation }, digits) =>
      `${mean.toFixed(digits)}${runs > 1 ? ` ± ${deviation.toFixed(digits)}` : ''}`;
    return `${sd(point.accuracy, 3)} @ ${sd(point.nfe, 2)}`;
  };
  return markdown(
    ['sampler', ...budgetsLine()],
    rows.map(({ group, points }) => [group, ...points.map(cell)]),
  );
}

/** The chosen setting's accuracy and NFE per category, and its sentence families, of one seed. */
function categoryRows(evaluations, maxTokens) {
  const group = groupOf(dultra.samplerGrid({ maxTokens }));
  const lines = [];
  const show = (stage, choose, label) => {
    const { validation, test } = evaluations[stage];
    const rows = dultra.chooseOperatingPoints(validation, test, { group: choose, budgets: [4, null] });
    for (const point of rows[0]?.points ?? []) {
      if (!point) continue;
      const result = test.results.find(({ name }) => name === point.name);
      const categories = Object.entries(result.categories).map(
        ([key, { accuracy, nfe }]) => `${key} ${accuracy.toFixed(3)} @ ${nfe.toFixed(2)}`,
      );
      const families = Object.entries(result.families ?? {}).map(([key, n]) => `${key} ${n}`);
      const errors = result.errors ? [`slot ${result.errors.slot}`, `mix ${result.errors.mix}`] : [];
      lines.push([
        label,
        point.name,
        `${result.accuracy.toFixed(3)} @ ${result.nfe.mean.toFixed(2)}`,
        categories.join('; '),
        [...families, ...errors].join(', '),
      ]);
    }
  };
  const best = (test) => (name) => (test(group(name)) ? 'best' : null);
  show(
    'base',
    best((name) => !isPlanner(name)),
    'base, best heuristic (≤ 4 NFE; any)',
  );
  if (evaluations.planner) show('planner', best(isPlanner), 'planner after init (≤ 4 NFE; any)');
  if (evaluations.grpo) show('grpo', best(isPlanner), 'planner after GRPO (≤ 4 NFE; any)');
  return lines;
}

const CATEGORIES = ['stage', 'setting', 'accuracy @ NFE', 'by category', 'families of right answers; errors'];

/** Markdown: a table. */
const markdown = (head, rows) =>
  [head, head.map(() => '---'), ...rows].map((line) => `| ${line.join(' | ')} |`).join('\n');

/** An evaluation's figures to five digits, which is all that the tables need. */
function figuresOf({ config: { split }, results }) {
  const round = (value) => Number(value.toFixed(5));
  return {
    config: { split },
    results: results.map(({ name, accuracy, accuracyError, nfe, tokensPerForward }) => ({
      name,
      accuracy: round(accuracy),
      accuracyError: round(accuracyError),
      nfe: { mean: round(nfe.mean) },
      tokensPerForward: { untilEos: round(tokensPerForward.untilEos) },
    })),
  };
}

/** What the tables need of one seed. */
async function summaryOf(folder, evaluations, maxTokens) {
  const costs = {};
  for (const name of Object.keys(evaluations)) {
    const file = path.join(folder, name, 'cost.json');
    if (existsSync(file)) costs[name] = JSON.parse(readFileSync(file, 'utf8'));
  }
  const model = await dultra.loadModel(path.join(folder, 'base/model'));
  const { isa } = model.info;
  await model[Symbol.asyncDispose]();
  const evaluated = Object.entries(evaluations).map(([name, { validation, test }]) => [
    name,
    { validation: figuresOf(validation), test: figuresOf(test) },
  ]);
  return {
    machine: machine({ isa }),
    costs,
    categories: categoryRows(evaluations, maxTokens),
    evaluations: Object.fromEntries(evaluated),
  };
}

/** AUP of each group of settings of an evaluation, weighed against the best accuracy of all methods. */
function areasOf({ results }, group, bestAccuracy) {
  const curves = new Map();
  for (const { name, accuracy, tokensPerForward } of results) {
    const key = group(name);
    if (key === null) continue;
    curves.set(key, [
      ...(curves.get(key) ?? []),
      { accuracy: 100 * accuracy, tokensPerForward: tokensPerForward.untilEos },
    ]);
  }
  return new Map([...curves].map(([key, points]) => [key, dultra.accuracyUnderParallelism(points, { bestAccuracy })]));
}

/** AUP of a stage's best family of rules, chosen on validation, mean and deviation over the seeds: "412 ± 9, factor". */
function aupCell(seeds, stage, group, which) {
  const chosen = seeds.map(({ evaluations }) => {
    const best = (split) =>
      100 * Math.max(...Object.values(evaluations).flatMap((each) => each[split].results.map((r) => r.accuracy)));
    const [validation, test] = ['validation', 'test'].map((split) =>
      areasOf(evaluations[stage][split], group, best(split)),
    );
    const found = [...validation].filter(([key]) => which(key)).sort((a, b) => b[1] - a[1])[0];
    return found && { name: found[0], area: test.get(found[0]) };
  });
  if (chosen.some((found) => !found)) return '-';
  const areas = chosen.map(({ area }) => area);
  const mean = areas.reduce((sum, area) => sum + area, 0) / areas.length;
  const sd = Math.sqrt(areas.reduce((sum, area) => sum + (area - mean) ** 2, 0) / Math.max(1, areas.length - 1));
  const names = [...new Set(chosen.map(({ name }) => name))].join(' or ');
  return `${mean.toFixed(0)}${areas.length > 1 ? ` ± ${sd.toFixed(0)}` : ''}, ${names}`;
}

/** What came before a stage. */
const chain = (stages, name) => (name === 'init' ? [] : [...chain(stages, stages[name].from), name]);

/** Markdown: AUP and cost of each stage. */
function costTable(seeds, stages, maxTokens) {
  const group = groupOf(dultra.samplerGrid({ maxTokens }));
  const names = Object.keys(seeds[0].evaluations).filter((name) => seeds.every((each) => each.evaluations[name]));
  const cost = (name, key) =>
    seeds.reduce((sum, { costs }) => sum + (costs[name]?.[key] ?? Number.NaN), 0) / seeds.length;
  const rows = names.map((name) => {
    const before = chain(stages, name);
    return [
      name,
      aupCell(seeds, name, group, (key) => !isPlanner(key)),
      aupCell(seeds, name, group, isPlanner),
      String(cost(name, 'steps')),
      cost(name, 'cpuSeconds').toFixed(0),
      `${before.reduce((sum, each) => sum + cost(each, 'cpuSeconds'), 0).toFixed(0)}, ${before.join(' → ')}`,
    ];
  });
  return markdown(
    ['stage', 'AUP, best rule', "AUP, planner's best rule", 'updates', 'CPU seconds', 'with what came before'],
    rows,
  );
}

/** Seeds whose results are there. */
const finished = (folder) =>
  (existsSync(folder) ? readdirSync(folder) : [])
    .filter((name) => existsSync(path.join(folder, name, 'seed.json')))
    .map((name) => Number(name.replace('seed-', '')))
    .sort((a, b) => a - b);

async function main() {
  const { values } = parseArgs({
    options: {
      task: { type: 'string', default: 'st1' },
      seeds: { type: 'string', default: '0' },
      variants: { type: 'string', default: '' },
      out: { type: 'string', default: 'runs/study' },
      count: { type: 'string', default: '512' },
      tables: { type: 'boolean', default: false },
      quick: { type: 'boolean', default: false },
    },
  });
  const { task } = values;
  if (!RECIPES[task]) throw new Error(`--task: expected one of ${Object.keys(RECIPES).join(', ')}, got ${task}`);
  const seeds = values.seeds.split(',').map(Number);
  const dataset = dultra.datasets.byName(task);
  const stages = stagesOf(task, dataset, values);
  const others = Object.keys(stages).filter((name) => !MAIN.includes(name) && (name !== 'sft-one' || dataset.answers));
  const rivals = RIVALS.filter((name) => others.includes(name));
  const named = values.variants.split(',').filter((name) => name !== '');
  const variants = values.variants === 'all' ? others : values.variants === 'rivals' ? rivals : named;
  for (const name of variants)
    if (!stages[name]) throw new Error(`--variants: expected some of ${others.join(', ')}, got ${name}`);
  const perSeed = [];
  for (const seed of values.tables ? finished(path.join(values.out, task)) : seeds) {
    const folder = path.join(values.out, task, `seed-${seed}`);
    const file = path.join(folder, 'seed.json');
    if (!values.tables) {
      for (const name of [...MAIN, ...variants]) await trainStage(name, stages, folder, seed, task);
      const evaluations = {};
      for (const name of [...MAIN, ...variants])
        evaluations[name] = await evaluateStage(name, folder, task, values.quick ? 8 : Number(values.count));
      writeFileSync(`${file}.tmp`, `${JSON.stringify(await summaryOf(folder, evaluations, dataset.genLength))}\n`);
      renameSync(`${file}.tmp`, file);
    }
    perSeed.push({ seed, ...JSON.parse(readFileSync(file, 'utf8')) });
  }
  if (perSeed.length === 0) throw new Error(`--out: expected ${task}/seed-*/seed.json in it, got ${values.out}`);
  const rows = dultra.averageOperatingPoints(perSeed.map(({ evaluations }) => rowsOf(evaluations, dataset.genLength)));
  process.stdout.write(
    `### ${task}, seeds ${perSeed.map(({ seed }) => seed).join(', ')}\n\n${table(rows, perSeed.length)}\n\n`,
  );
  process.stdout.write(`${costTable(perSeed, stages, dataset.genLength)}\n\n`);
  for (const { seed, categories, machine: at } of perSeed)
    process.stdout.write(`Seed ${seed} (${at.cpu}, ${at.isa}):\n\n${markdown(CATEGORIES, categories)}\n\n`);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
