// Every family, four layers as wide as those of half a billion parameters to one: a forward pass of 64 positions, ids to
// logits, beside onnxruntime-node on the same checkpoint; and of those that attend by blocks, a pass over a block of 32
// behind 64 and behind 960 finished positions of the exact cache.
const dultra = require('../../dist/index.js');
const { openSession, feed } = require('../lib/contender.cjs');
const { FAMILIES, VOCABULARY, makeFamilyModel } = require('../lib/family-models.cjs');
const { alternate, speedup } = require('../lib/measure.cjs');
const { exportDecoder } = require('../lib/onnx-decoder.cjs');

const REFERENCE = 'onnxruntime-node';
const LENGTH = 64;
/** Largest difference between two fp32 programs that count as computing the same logits. */
const TOLERANCE = 1e-3;
const BEHIND = [64, 960];

const cases = ({ quick, threads }) =>
  Object.keys(FAMILIES)
    .slice(0, quick ? 1 : undefined)
    .flatMap((family) => threads.map((count) => ({ family, threads: count })));

const idsOf = (count) => Int32Array.from({ length: count }, (_, i) => (i * 7919) % (VOCABULARY - 1));

/** Passes over a block behind so many finished positions, and what frees their caches. */
async function blockPasses(model, block) {
  const calls = {};
  const caches = [];
  for (const behind of BEHIND) {
    const cache = await model.createCache([behind + block]);
    caches.push(cache);
    const ids = idsOf(behind + block);
    await model.forward({ ids, cache, logits: false });
    const positions = Int32Array.from({ length: block }, (_, i) => behind + i);
    calls[`a block of ${block} behind ${behind}, fp32`] = () =>
      model.forward({ ids: ids.subarray(behind), positions, cache });
  }
  return { calls, free: () => caches.forEach((cache) => cache.dispose()) };
}

async function run({ family, threads, quick }) {
  const folder = makeFamilyModel(family);
  const { shape, block } = FAMILIES[family];
  const ids = idsOf(LENGTH);
  const calls = {};
  const plain = await dultra.loadModel(folder, { threads });
  calls['dultra fp32'] = () => plain.forward({ ids });
  const half = await dultra.loadModel(folder, { threads, dtype: 'bfloat16' });
  calls['dultra bf16 weights'] = () => half.forward({ ids });
  const session = await openSession(exportDecoder(folder, FAMILIES[family], LENGTH), threads);
  const input = feed(ids);
  calls[REFERENCE] = () => session.run(input, ['logits']);
  const ours = (await calls['dultra fp32']()).logits;
  const theirs = (await calls[REFERENCE]()).logits.data;
  const difference = ours.reduce((most, value, i) => Math.max(most, Math.abs(value - theirs[i])), 0);
  if (!(difference <= TOLERANCE))
    throw new Error(`${family}: logits differ from ${REFERENCE}'s by ${difference}, more than ${TOLERANCE}`);
  const passes = block ? await blockPasses(plain, block) : null;
  const timings = await alternate(
    { ...calls, ...passes?.calls },
    quick ? { seconds: 0.3, rounds: 1 } : { seconds: 2, rounds: 5 },
  );
  passes?.free();
  const { parameters, activeParameters } = plain.info;
  const millions = (count) => `${Math.round(count / 1e6)} M`;
  const size = shape.experts ? `${millions(parameters)}, ${millions(activeParameters)} active` : millions(parameters);
  const reference = timings[REFERENCE];
  return Object.entries(timings).map(([contender, { turns, ...timing }]) => {
    const isForward = contender.startsWith('dultra');
    return {
      shape: `${family}, ${size}`,
      threads,
      contender,
      unit: 'ms',
      ...timing,
      ratio: isForward && reference ? speedup(timings[contender], reference, 'wall') : undefined,
      cpuRatio: isForward && reference ? speedup(timings[contender], reference, 'cpu') : undefined,
      reference: REFERENCE,
    };
  });
}

module.exports = { title: `Every family: a forward pass of ${LENGTH} positions, and of a block`, cases, run };
