// One forward pass, ids to logits in JavaScript's hands, beside onnxruntime-node on the same checkpoint.
const dultra = require('../../dist/index.js');
const { openSession, feed } = require('../lib/contender.cjs');
const { alternate, speedup } = require('../lib/measure.cjs');
const { SHAPES, makeModel, randomIds } = require('../lib/models.cjs');
const { exportOnnx } = require('../lib/onnx.cjs');

const REFERENCE = 'onnxruntime-node';
/** Largest difference between two fp32 programs that count as computing the same logits. */
const TOLERANCE = 1e-3;

const cases = ({ quick, threads }) =>
  Object.keys(SHAPES)
    .slice(0, quick ? 1 : undefined)
    .flatMap((shape) =>
      [64, 256, 512].flatMap((length) => threads.map((count) => ({ shape, length, threads: count }))),
    );

async function run({ shape, length, threads, quick }) {
  const folder = makeModel(shape);
  const ids = randomIds(shape, length);
  const session = await openSession(exportOnnx(folder, SHAPES[shape], length), threads);
  const input = feed(ids);
  const variants = {
    'dultra fp32': {},
    'dultra bf16 weights': { dtype: 'bfloat16' },
    'dultra bf16 compute': { compute: 'bfloat16' },
  };
  const calls = {};
  for (const [name, options] of Object.entries(variants)) {
    const model = await dultra.loadModel(folder, { threads, ...options }).catch((error) => {
      if (error.code !== 'DEVICE_UNAVAILABLE') throw error;
    });
    if (model) calls[name] = () => model.forward({ ids });
  }
  calls[REFERENCE] = () => session.run(input);

  const ours = (await calls['dultra fp32']()).logits;
  const theirs = (await calls[REFERENCE]()).logits.data;
  const difference = ours.reduce((most, value, i) => Math.max(most, Math.abs(value - theirs[i])), 0);
  if (!(difference <= TOLERANCE))
    throw new Error(`logits differ from ${REFERENCE}'s by ${difference}, more than ${TOLERANCE}`);

  const timings = await alternate(calls, quick ? { seconds: 0.3, rounds: 3 } : { seconds: 4, rounds: 7 });
  return Object.entries(timings).map(([contender, { turns, ...timing }]) => ({
    shape: `${shape}, T ${length}`,
    threads,
    contender,
    unit: 'ms',
    ...timing,
    ratio: contender === REFERENCE ? undefined : speedup(timings[contender], timings[REFERENCE], 'wall'),
    cpuRatio: contender === REFERENCE ? undefined : speedup(timings[contender], timings[REFERENCE], 'cpu'),
    reference: REFERENCE,
    note: contender === REFERENCE ? `logits differ by ${difference.toExponential(1)} at most` : undefined,
  }));
}

module.exports = { title: 'Forward pass', cases, run };
