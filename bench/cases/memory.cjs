// Peak memory of attention and of a whole forward pass by length: both must grow with T, not T². One thread, each
// length in its own process; the peak is that of the process before the call subtracted from the one after it.
const dultra = require('../../dist/index.js');
const { makeModel, randomIds } = require('../lib/models.cjs');

const SHAPE = 'C 256 x 4';
const HEADS = 4;
const HEAD_DIM = 64;
const MB = 1024;

const cases = () =>
  ['attention', 'forward'].flatMap((what) => [512, 1024, 2048, 4096].map((length) => ({ what, length })));

async function run({ what, length }) {
  let call;
  let known; // bytes of results
  if (what === 'attention') {
    const size = length * HEADS * HEAD_DIM;
    const [q, k, v] = [0, 1, 2].map((i) => Float32Array.from({ length: size }, (_, j) => Math.sin(i + j)));
    call = () => dultra.kernels.maskedAttention(q, k, v, { heads: HEADS, headDim: HEAD_DIM, threads: 1 });
    known = 4 * 4 * size; // the kernel's copies of q, k, v, and its result
  } else {
    const model = await dultra.loadModel(makeModel(SHAPE), { threads: 1 });
    const ids = randomIds(SHAPE, length);
    call = () => model.forward({ ids, logits: false });
    known = 4 * length * 256;
  }
  const before = process.resourceUsage().maxRSS;
  await call();
  const peak = (process.resourceUsage().maxRSS - before) / MB;
  return [
    {
      shape: `${what}, T ${length}`,
      threads: 1,
      contender: 'dultra fp32',
      unit: 'MB',
      median: peak,
      note: `${((peak * 2 ** 20) / length / 1024).toFixed(1)} KB a position; inputs and results are ${(known / 2 ** 20).toFixed(1)} MB, one T x T matrix in fp32 would be ${(4 * length ** 2) / 2 ** 20} MB`,
    },
  ];
}

module.exports = { title: 'Peak memory', cases, run };
