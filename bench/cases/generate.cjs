// A whole generate: 64 tokens after a prompt of 32 in blocks of 32, one row. Weights are random, so how many steps a
// sampler takes says nothing about it; the time of a step does.
const dultra = require('../../dist/index.js');
const { alternate } = require('../lib/measure.cjs');
const { makeModel, randomIds } = require('../lib/models.cjs');

const SHAPE = 'C 256 x 4';
const PROMPT = 32;
const GENERATED = 64;
const SAMPLERS = {
  planner: { type: 'planner' },
  'planner, bernoulli': { type: 'planner', select: 'bernoulli' },
  confidence: { type: 'confidence' },
  factor: { type: 'factor' },
  entropy: { type: 'entropy' },
  'fixed, 32 steps': { type: 'fixed', steps: 32 },
};

const cases = ({ threads }) => threads.map((count) => ({ threads: count }));

async function run({ threads, quick }) {
  const model = await dultra.loadModel(makeModel(SHAPE, { planner: true }), { threads });
  const prompt = { promptIds: randomIds(SHAPE, PROMPT) };
  const calls = {};
  const outcome = {};
  for (const [name, sampler] of Object.entries(SAMPLERS)) {
    const options = { sampler, maxTokens: GENERATED, blockLength: 32, stopAtEos: false };
    outcome[name] = await model.generate(prompt, options);
    calls[name] = () => model.generate(prompt, options);
  }
  const timings = await alternate(calls, quick ? { seconds: 0.3, rounds: 1 } : { seconds: 2, rounds: 3 });
  return Object.entries(timings).map(([sampler, { turns, ...timing }]) => ({
    shape: `${SHAPE} + planner, ${PROMPT} + ${GENERATED} tokens, ${sampler}`,
    threads,
    contender: 'dultra fp32',
    unit: 'ms',
    ...timing,
    note: `${outcome[sampler].nfe} steps, ${(timing.median / outcome[sampler].nfe).toFixed(2)} ms a step, ${((GENERATED / timing.median) * 1000).toFixed(0)} tokens/s`,
  }));
}

module.exports = { title: 'Generation', cases, run };
