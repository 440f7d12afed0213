// A process of a job, for test/distributed.test.ts. Argument: what to do, as JSON. Rank 0 prints what it has found, as
// JSON in a line.
const task = JSON.parse(process.argv[2]);
const manifest = require('../package.json');
const { version } = manifest;
if (task.versionOfSecond && (process.env.OMPI_COMM_WORLD_RANK ?? process.env.PMI_RANK) === '1')
  manifest.version = task.versionOfSecond;
const {
  datasets,
  distributed,
  GrpoTrainer,
  loadModel,
  rewards,
  training,
  trainMaskedDiffusion,
  trainPlanner,
} = require('../dist/index.js');

// That of the addon, which is opened next.
manifest.version = version;
const group = distributed.init();
// The emulator has one device, whose memory is each process's own: to NCCL they are on hosts of their own.
if (task.ownDevices) process.env.NCCL_HOSTID = String(group.rank);
if (group.rank === group.size - 1) Object.assign(process.env, task.environmentOfLast);
const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

/** A reward without a task: how many of the tokens are early ones of the vocabulary. */
const early = ({ results }) => results.map(({ ids }) => ids.filter((id) => id > 2 && id < 20).length / ids.length);

/** AdamW's eps is large, so that gradients that are rounding noise do not move an element by a whole learning rate. */
const COMPARED = { learningRate: 1e-3, eps: 1e-3, schedule: 'constant', warmupSteps: 0, evalExamples: 6 };

/** The trainers, by what makes them differ from each other in what processes exchange. */
const RUNS = {
  sft: { gradientAccumulation: 2, batchSize: 6, evalEvery: 2, evalSampler: 'confidence' },
  'sft zero 1': { batchSize: 6, zeroStage: 1 },
  'sft zero 2': { batchSize: 6, gradientAccumulation: 2, zeroStage: 2 },
  'sft bf16': { batchSize: 6, momentDtype: 'bfloat16', lora: { rank: 2 } },
  planner: { batchSize: 6, minSpan: 4, evalEvery: 2 },
  grpo: { evalEvery: 2, advantageMinClip: null, scaleRewards: 'batch' },
  'grpo cache': { cache: { type: 'refresh' }, gradientAccumulation: 2 },
  'grpo diffu-grpo': { objective: 'diffu-grpo', numIterations: 2 },
  'grpo wd1': { objective: 'wd1' },
  'grpo trace': { objective: 'trace', temperature: 1 },
  dparallel: { batchSize: 6, blockLength: 4, evalEvery: 2 },
  d3llm: { batchSize: 6, windows: [4], gradientAccumulation: 2 },
  'grpo lora': { lora: { rank: 2 }, freezePlanner: true, beta: 0.1, numIterations: 2 },
};

function start(name, model, more) {
  const { dataName = 'free8', otherExamples = false, ...rest } = more;
  const task = datasets.byName(dataName);
  const sample = (split, count, seed, shares) => task.sample(split, count, seed + 1, shares);
  const dataset = otherExamples ? { ...task, sample } : task;
  const options = { dataset, ...COMPARED, ...RUNS[name], ...rest };
  if (name === 'dparallel') return training.trainCertainty(model, options);
  if (name === 'd3llm') return training.trainPseudoTrajectories(model, options);
  if (name.startsWith('sft')) return trainMaskedDiffusion(model, options);
  if (name === 'planner') return trainPlanner(model, options);
  return new GrpoTrainer(model, { promptsPerStep: 3, numGenerations: 3, rewards: { early }, ...options }).train();
}

async function run(name, more, onStep = () => {}) {
  const isLast = group.rank === group.size - 1;
  const model = await loadModel((isLast && task.modelOfLast) || task.model, { threads: 1 });
  const losses = [];
  let exchange;
  const onStart = (run) => {
    exchange = run.exchange;
  };
  for await (const metrics of start(name, model, { ...more, onStart })) {
    losses.push(metrics.loss);
    await onStep(metrics.step);
  }
  const hash = await model.weightsHash();
  model.dispose();
  return { hash, losses, exchange };
}

async function main() {
  if (task.do === 'exchange') {
    const texts = await distributed.gatherJson(group, 'x'.repeat(group.rank));
    const [numbers] = (await group.allGather(Float64Array.of(group.rank, 0.1))).slice(-1);
    const empty = await group.allGatherBytes(new Uint8Array(0));
    await group.barrier();
    const share = await distributed.machineShare(group);
    const { UCX_MEM_EVENTS: memoryEvents } = process.env;
    const { localSize } = share;
    if (group.rank === 0)
      print({ size: group.size, texts, numbers: [...numbers], empty: empty.length, localSize, memoryEvents });
    return;
  }
  if (task.do === 'passes') {
    // Rank 1 makes a pass less than the others.
    const model = await loadModel(task.model, { threads: 1 });
    const trainer = await model.createTrainer({ freezePlanner: true, zeroStage: 2 });
    for (let pass = group.rank === 1 ? 1 : 0; pass < 2; pass++) await trainer.joinBackward({});
    await trainer.step({ baseLr: 1e-3, plannerLr: 0 });
    return;
  }
  if (task.do === 'leave' || task.do === 'differ') {
    if (group.rank !== 1) await group.barrier();
    else if (task.do === 'differ') await group.allGather(Float64Array.of(1));
    return;
  }
  if (task.do === 'memory') {
    const model = await loadModel(task.model, { threads: 1 });
    const before = process.memoryUsage.rss();
    const trainer = await model.createTrainer({ freezePlanner: true, zeroStage: task.zeroStage });
    const all = await distributed.gatherJson(group, process.memoryUsage.rss() - before);
    if (group.rank === 0) print(all);
    trainer.dispose();
    return;
  }
  if (task.do === 'train') {
    if (task.tellsProcess) process.stderr.write(`rank ${group.rank} is process ${process.pid}\n`);
    const found = {};
    for (const name of task.runs) found[name] = await run(name, task.options);
    // Every process has the same weights.
    const all = await distributed.gatherJson(group, found);
    if (group.rank === 0) print({ ...found, alike: all.every((one) => JSON.stringify(one) === JSON.stringify(found)) });
    return;
  }
  if (task.do === 'code') {
    // Of each completion a program, which a test judges.
    const sandbox = new rewards.PythonSandbox({ workers: 1 });
    const judge = rewards.codeTests({ sandbox });
    const tests = { kind: 'calls', functionName: 'f', inputs: [[2]], outputs: [1] };
    const meta = { id: '0', head: '', functionName: 'f', tests };
    let judged;
    const code = async (batch) => {
      const completions = batch.results.map(({ ids }) => `def f(x): return sum([${[...ids]}]) % x`);
      const results = await judge({ ...batch, completions, examples: batch.examples.map(() => ({ meta })) });
      judged = [results, batch.results.map(({ ids }) => ids.reduce((sum, id) => sum + id, 0) % 2)];
      return results;
    };
    await run('grpo', { ...task.options, rewards: { code } });
    await sandbox.dispose();
    const all = await distributed.gatherJson(group, judged);
    if (group.rank === 0) print(all);
    return;
  }
  if (task.do === 'roles') {
    const found = {};
    for (const [name, config] of Object.entries(task.configs)) {
      const whole = { ...COMPARED, maxSteps: 3, dataset: 'free8', ...config };
      if (task.tellsProcess) process.stderr.write(`rank ${group.rank} is process ${process.pid}\n`);
      if (training.roleOf(whole) === 'teacher') {
        // Without a word, while others wait for its answers.
        if (task.leaves) setTimeout(() => process.exit(0), 1500);
        await training.serveTeachers(whole, { threads: 1 });
        continue;
      }
      const model = await loadModel(task.model, { threads: 1 });
      const metrics = [];
      for await (const step of training.runConfig('grpo', model, whole)) {
        if (task.tellsProcess) process.stderr.write(`step ${step.step}\n`);
        if (task.fails && step.step === 2) throw new Error('the reward model is gone');
        const { seconds: _, tokensPerSecond: __, ...others } = step;
        metrics.push(others);
      }
      found[name] = { hash: await model.weightsHash(), metrics };
      model.dispose();
    }
    // All work together again.
    const all = await distributed.gatherJson(group, found);
    if (group.rank === 0) print(found);
    const trained = all.filter((one) => Object.keys(one).length > 0);
    if (trained.some((one) => JSON.stringify(one) !== JSON.stringify(found) && group.rank === 0))
      throw new Error('processes that train ended with different weights');
    return;
  }
  // Goes on until it is killed, or fails.
  process.stderr.write(`rank ${group.rank} is process ${process.pid}\n`);
  const isLast = group.rank === group.size - 1;
  await run(task.name, { ...task.options, ...(isLast && task.ofLast) }, async (step) => {
    if (group.rank === 0) process.stderr.write(`step ${step}\n`);
    if (task.do === 'fail' && isLast && step === 2) throw new Error('the reward model is gone');
  });
}

main();
