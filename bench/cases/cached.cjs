// One step of decoding, with a dual cache (the block is computed, the rest of the row is cached) beside one without
// (everything is computed), by row length and block length. Every step is one of a real run: candidates' logits,
// sampling and selection included.
const dultra = require('../../dist/index.js');
const { makeModel, randomIds } = require('../lib/models.cjs');

/** The step that the project's goal is about, and one model over lengths. */
const GOAL = { shape: 'C 1024 x 8', length: 512, active: 32 };
const SWEEP = 'C 256 x 4';
const LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096];
const ACTIVE = [8, 32, 128];

function cases({ threads, quick }) {
  const sweep = LENGTHS.flatMap((length) =>
    ACTIVE.filter((active) => active < length).map((active) => ({ shape: SWEEP, length, active })),
  );
  const small = ({ length }) => length <= 256;
  return threads.flatMap((count) =>
    (quick ? sweep.filter(small) : [GOAL, ...sweep]).map((one) => ({ ...one, threads: count })),
  );
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)];
const quantile = (values, p) => [...values].sort((a, b) => a - b)[Math.round(p * (values.length - 1))];

async function run({ shape, length, active, threads, quick }) {
  const model = await dultra.loadModel(makeModel(shape), { threads });
  const prompt = { promptIds: randomIds(shape, length - active) };
  const options = { sampler: { type: 'fixed' }, maxTokens: active, blockLength: active, stopAtEos: false };
  /** Times of `count` steps after the first one, which is full and warms up. */
  const steps = async (cache, count) => {
    const work = model.denoise([prompt], { ...options, cache: { type: cache } });
    await work.next();
    const times = [];
    for (let i = 0; i < count; i++) {
      const cpu = process.cpuUsage();
      const start = process.hrtime.bigint();
      await work.next();
      const wall = Number(process.hrtime.bigint() - start) / 1e6;
      const { user, system } = process.cpuUsage(cpu);
      times.push({ wall, cpu: (user + system) / 1e3 });
    }
    await work.return();
    return times;
  };
  const all = { dual: [], none: [] };
  const ratios = { wall: [], cpu: [] };
  const end = Date.now() + (quick ? 300 : 4000);
  for (let round = 0; round < 3 || Date.now() < end; round++) {
    const turn = {};
    for (const cache of ['dual', 'none']) {
      await sleep(60);
      const times = await steps(cache, cache === 'dual' ? 6 : 2);
      all[cache].push(...times);
      turn[cache] = { wall: median(times.map(({ wall }) => wall)), cpu: median(times.map(({ cpu }) => cpu)) };
    }
    for (const clock of ['wall', 'cpu']) ratios[clock].push(turn.none[clock] / turn.dual[clock]);
  }
  model.dispose();
  return ['dual', 'none'].map((cache) => {
    const walls = all[cache].map(({ wall }) => wall);
    return {
      shape: `${shape}, T ${length}, block ${active}`,
      threads,
      contender: cache === 'dual' ? 'dual-cached step' : 'full step',
      unit: 'ms',
      median: median(walls),
      p10: quantile(walls, 0.1),
      p90: quantile(walls, 0.9),
      runs: walls.length,
      cpu: median(all[cache].map(({ cpu }) => cpu)),
      ratio: cache === 'dual' ? median(ratios.wall) : undefined,
      cpuRatio: cache === 'dual' ? median(ratios.cpu) : undefined,
      reference: 'faster than the full step',
    };
  });
}

module.exports = { title: 'Steps on a cache', cases, run };
