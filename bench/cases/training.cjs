// Steps of the three training stages on the embedded word problems, beside plain PyTorch on the same sizes
// (bench/torch/train_tiny.py), where Debian's python3-torch is installed. Both sides take turns.
const { spawnSync } = require('node:child_process');
const { existsSync, mkdtempSync, rmSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const dultra = require('../../dist/index.js');

const PYTHON = '/usr/bin/python3';
const TORCH = path.join(__dirname, '..', 'torch', 'train_tiny.py');
const { sft, planner, grpo } = dultra.training.PRESETS; // of each, the preset "tiny"

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * Milliseconds per step of a stage, of the clock and of all threads, with the metrics of each step; the first steps are
 * not timed.
 */
async function timeSteps(stage, { warmup, steps }) {
  const out = { wall: [], cpu: [], metrics: [] };
  let clock = 0n;
  let cpu = null;
  let step = 0;
  for await (const metrics of stage) {
    const now = process.hrtime.bigint();
    if (step > warmup) {
      const { user, system } = process.cpuUsage(cpu);
      out.wall.push(Number(now - clock) / 1e6);
      out.cpu.push((user + system) / 1e3);
      out.metrics.push(metrics);
    }
    if (++step > warmup + steps) break;
    cpu = process.cpuUsage();
    clock = process.hrtime.bigint();
  }
  return out;
}

/** The three stages with the settings of the preset "tiny". */
async function ours(threads, folder, steps) {
  const dataset = dultra.datasets.byName(sft.tiny.dataset);
  const run = async (source, stage, count) => {
    const model = await dultra.loadModel(source, { threads });
    const timing = await timeSteps(stage(model), { warmup: 5, steps: count });
    await model[Symbol.asyncDispose]();
    return timing;
  };
  const options = ({ model: _, outputDir: __, evalEvery: ___, saveEvery: ____, ...rest }) => ({ ...rest, dataset });
  const base = 'word-problems-base';
  return {
    pretrain: await run(folder, (model) => dultra.trainMaskedDiffusion(model, options(sft.tiny)), steps),
    'planner-init': await run(base, (model) => dultra.trainPlanner(model, options(planner.tiny)), steps),
    grpo: await run(
      base,
      (model) => {
        const { weight } = grpo.tiny.rewards.fastAnswer.options;
        return new dultra.GrpoTrainer(model, {
          ...options(grpo.tiny),
          rewards: { fast: dultra.rewards.fastAnswer({ weight }) },
        }).train();
      },
      Math.ceil(steps / 2),
    ),
  };
}

/** The same from PyTorch: milliseconds by step, or null where it is not installed. */
function theirs(threads, seconds) {
  if (!existsSync(PYTHON)) return null;
  const { status, stdout } = spawnSync(PYTHON, [TORCH, '--threads', String(threads), '--seconds', String(seconds)], {
    encoding: 'utf8',
  });
  if (status !== 0) return null;
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  return { version: lines[0].torch, ...Object.fromEntries(lines.map((line) => [line.step, line])) };
}

const cases = ({ threads }) => threads.map((count) => ({ threads: count }));

async function run({ threads, quick }) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-bench-'));
  const rounds = quick ? 1 : 3;
  const all = { pretrain: [], 'planner-init': [], grpo: [] };
  try {
    const { create } = sft.tiny.model;
    await dultra.createModel(folder, { ...create, vocabulary: dultra.datasets.byName(sft.tiny.dataset).vocabulary });
    for (let round = 0; round < rounds; round++) {
      const mine = await ours(threads, folder, quick ? 10 : 60);
      const torch = theirs(threads, quick ? 0.5 : 2);
      for (const [stage, timing] of Object.entries(mine)) {
        const work = stage === 'grpo' ? grpoWork(timing.metrics) : null;
        all[stage].push({ timing, work, torch: torch && torchStep(stage, torch, work), version: torch?.version });
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return Object.entries(all).flatMap(([stage, turns]) => rowsOf(stage, turns, threads));
}

/** What a GRPO step did, per 192 rows: passes of the rollouts, and replayed pairs. */
function grpoWork(metrics) {
  const rows = grpo.tiny.promptsPerStep * grpo.tiny.numGenerations;
  return {
    passes: mean(metrics.map(({ nfe }) => nfe)),
    replays: mean(metrics.map(({ replayedSteps }) => replayedSteps)) / rows,
  };
}

/** A GRPO step in PyTorch is put together from its parts for the same work, as if its batches were always full. */
function torchStep(stage, torch, work) {
  const time = (key) => {
    if (stage !== 'grpo') return torch[stage][key];
    return (
      work.passes * torch['grpo-rollout'][key] + work.replays * torch['grpo-replay'][key] + torch['grpo-update'][key]
    );
  };
  return { wall: time('ms'), cpu: time('cpu_ms') };
}

function rowsOf(stage, turns, threads) {
  const shape = {
    pretrain: 'pre-training, 64 rows',
    'planner-init': 'planner initialisation, 64 rows',
    grpo: 'GRPO, 192 rollouts',
  }[stage];
  const ordered = turns.flatMap(({ timing }) => timing.wall).sort((a, b) => a - b);
  const at = (p) => ordered[Math.round(p * (ordered.length - 1))];
  const row = {
    shape,
    threads,
    contender: 'dultra fp32',
    unit: 'ms',
    median: at(0.5),
    p10: at(0.1),
    p90: at(0.9),
    runs: ordered.length,
  };
  row.cpu = median(turns.flatMap(({ timing }) => timing.cpu));
  if (stage === 'grpo') {
    const { passes, replays } = turns[turns.length - 1].work;
    row.note = `${passes.toFixed(2)} passes a rollout, ${(replays * 192).toFixed(0)} replayed steps`;
  }
  const known = turns.filter(({ torch }) => torch);
  if (known.length === 0) return [row];
  const reference = `PyTorch ${known[0].version}`;
  // Steps of our stages differ in work (GRPO): the mean of a turn is compared.
  const own = (timing, clock) => (stage === 'grpo' ? mean(timing[clock]) : median(timing[clock]));
  row.reference = reference;
  row.ratio = median(known.map(({ timing, torch }) => torch.wall / own(timing, 'wall')));
  row.cpuRatio = median(known.map(({ timing, torch }) => torch.cpu / own(timing, 'cpu')));
  const walls = known.map(({ torch }) => torch.wall);
  const other = {
    shape,
    threads,
    contender: reference,
    unit: 'ms',
    median: median(walls),
    p10: Math.min(...walls),
    p90: Math.max(...walls),
  };
  return [
    row,
    {
      ...other,
      cpu: median(known.map(({ torch }) => torch.cpu)),
      runs: known.length,
      ...(stage === 'grpo' && { note: 'put together from its parts' }),
    },
  ];
}

module.exports = { title: 'Training', cases, run };
