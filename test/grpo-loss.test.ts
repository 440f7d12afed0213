// The pure functions of training, against values by hand and finite differences.
import fc from 'fast-check';
import { training } from '../lib';
import { standardDeviation } from '../lib/statistics';

const {
  grpoLoss,
  referenceGrpoLoss,
  computeAdvantages,
  totalRewards,
  learningRateFactor,
  factorTargets,
  binaryCrossEntropy,
} = training;
const { maskSpan, maskRow, maskedDiffusionLoss, positiveWeight } = training;

const OPTIONS = { clipEpsilonLow: 0.2, clipEpsilonHigh: 0.5, delta: null, beta: 0, scale: 1 };
const step = (advantage: number, ratio: number, candidates = 2) => ({
  advantage,
  logLikelihoods: new Float32Array(candidates).fill(Math.log(ratio) / candidates - 1),
  oldLogLikelihoods: new Float32Array(candidates).fill(-1),
  referenceLogLikelihoods: null,
});

describe('grpoLoss', () => {
  test.each([
    // advantage, ratio, delta, loss, whether a gradient flows
    [1, 1, null, -1, true],
    [-1, 1, null, 1, true],
    [1, 1.4, null, -1.4, true],
    [1, 1.7, null, -1.5, false],
    [1, 0.5, null, -0.5, true],
    [-1, 0.5, null, 0.8, false],
    [-1, 0.9, null, 0.9, true],
    [-1, 3, null, 3, true],
    // min(ρ' A, clip(ρ) A): for negative advantages the clip at 1.5 is the smaller one.
    [-1, 3, 2, 2, false],
    [-1, 3, 1.2, 1.5, false],
    [1, 1.4, 1.2, -1.2, false],
    [0, 1.3, null, -0, false],
  ] as const)('advantage %p, ratio %p, delta %p', (advantage, ratio, delta, loss, flows) => {
    const result = grpoLoss(step(advantage, ratio), { ...OPTIONS, delta });
    expect(result.loss).toBeCloseTo(loss, 5);
    expect(result.ratio).toBeCloseTo(ratio, 5);
    expect(Array.from(result.dLogLikelihoods).map((g) => Math.abs(g) > 1e-9)).toEqual([flows, flows]);
    if (flows) for (const g of result.dLogLikelihoods) expect(g).toBeCloseTo(-ratio * advantage, 5);
  });

  test('reports where the clip decided', () => {
    expect(grpoLoss(step(1, 1.7), OPTIONS).clipped).toBe('high');
    expect(grpoLoss(step(-1, 0.5), OPTIONS).clipped).toBe('low');
    expect(grpoLoss(step(-1, 1.7), OPTIONS).clipped).toBeNull();
    expect(grpoLoss(step(1, 1), OPTIONS).clipped).toBeNull();
  });

  test('beta needs a reference', () => {
    expect(() => grpoLoss(step(1, 1), { ...OPTIONS, beta: 0.1 })).toThrow(TypeError);
  });

  test('the gradient is that of the loss', () => {
    const logs = fc.array(fc.double({ min: -3, max: 0, noNaN: true }), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(
        logs,
        fc.double({ min: -2, max: 2, noNaN: true }),
        fc.double({ min: -0.15, max: 0.15, noNaN: true }),
        fc.double({ min: -0.5, max: 0.5, noNaN: true }),
        fc.constantFrom(0, 0.04, 1),
        fc.constantFrom(null, 1.3, 5),
        (old, advantage, shift, drift, beta, delta) => {
          // One candidate moves by up to 15 %, so that cases fall on both sides of the bounds 0.9 and 1.1.
          const now = old.map((value, i) => (i === 0 ? value + shift : value));
          const make = (values: number[]) => ({
            advantage,
            // Doubles in place of floats: a difference quotient needs them, and the function does not care.
            logLikelihoods: Float64Array.from(values) as unknown as Float32Array,
            oldLogLikelihoods: Float64Array.from(old) as unknown as Float32Array,
            referenceLogLikelihoods: Float64Array.from(old, (value) => value + drift) as unknown as Float32Array,
          });
          const options = { clipEpsilonLow: 0.1, clipEpsilonHigh: 0.1, delta, beta, scale: 0.37 };
          const ratio = Math.exp(shift);
          // A kink has no derivative.
          fc.pre([0.9, 1.1, 1.3, 5].every((bound) => Math.abs(ratio - bound) > 1e-4));
          const { dLogLikelihoods } = grpoLoss(make(now), options);
          const h = 1e-6;
          for (let i = 0; i < old.length; i++) {
            const at = (d: number) =>
              grpoLoss(make(now.map((value, k) => (k === i ? value + d : value))), options).loss;
            expect(Math.abs((at(h) - at(-h)) / (2 * h) - dLogLikelihoods[i])).toBeLessThan(
              1e-6 + 1e-5 * Math.abs(dLogLikelihoods[i]),
            );
          }
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe('referenceGrpoLoss', () => {
  const row = (advantage: number, ratio: number, idle = false) => ({
    ...step(advantage, idle ? 1 : ratio, 4),
    idle,
    references: [],
  });
  const options = { clipEpsilonLow: 0.2, clipEpsilonHigh: 0.5, delta: null, beta: 0, maxTokens: 10, accumulation: 2 };

  test('idle rows add a constant, whole idle chunks nothing', () => {
    const { loss, dLogLikelihoods } = referenceGrpoLoss([row(1, 1.2), row(0.5, 1, true)], options);
    expect(loss).toBeCloseTo(-(1.2 + 0.5) / (2 * 10 * 2), 6);
    expect(Array.from(dLogLikelihoods[1])).toEqual([0, 0, 0, 0]);
    expect(referenceGrpoLoss([row(1, 1, true), row(2, 1, true)], options).loss).toBe(0);
  });

  test('without its quirks it is grpoLoss', () => {
    const plain = grpoLoss(step(0.7, 1.1, 4), { ...OPTIONS, scale: 1 / (3 * 10 * 2) });
    const { loss, dLogLikelihoods } = referenceGrpoLoss([row(0.7, 1.1)], { ...options, chunkRows: 3 });
    expect(loss).toBeCloseTo(plain.loss, 9);
    expect(dLogLikelihoods[0]).toEqual(plain.dLogLikelihoods);
  });
});

describe('advantages', () => {
  const base = { groupSize: 3, scaleRewards: 'none', advantageMinClip: null } as const;

  test('null and NaN leave a function out of a row, all of them leave the row out', () => {
    const columns = [
      { values: [1, null, Number.NaN, null], weight: 1 },
      { values: [2, 3, 4, null], weight: 0.5 },
    ];
    expect(Array.from(totalRewards(columns, 4))).toEqual([2, 1.5, 2, Number.NaN]);
  });

  test('group mean, without the rows that were left out', () => {
    expect(Array.from(computeAdvantages([1, 2, 6, 5, Number.NaN, 7], base))).toEqual([-2, -1, 3, -1, 0, 1]);
    expect(Array.from(computeAdvantages([Number.NaN, Number.NaN, Number.NaN], base))).toEqual([0, 0, 0]);
  });

  test('scaled by the unbiased deviation of the group or of the batch', () => {
    const rewards = [1, 2, 6, 5, 5, 5];
    const group = computeAdvantages(rewards, { ...base, scaleRewards: 'group' });
    expect(group[2]).toBeCloseTo(3 / (Math.sqrt((4 + 1 + 9) / 2) + 1e-4), 12);
    expect(Array.from(group.slice(3))).toEqual([0, 0, 0]);
    const mean = 4;
    const variance = rewards.reduce((sum, r) => sum + (r - mean) ** 2, 0) / 5;
    expect(computeAdvantages(rewards, { ...base, scaleRewards: 'batch' })[2]).toBeCloseTo(
      3 / (Math.sqrt(variance) + 1e-4),
      12,
    );
  });

  test('small ones count as 0', () => {
    expect(Array.from(computeAdvantages([1, 2, 6], { ...base, advantageMinClip: 0 }))).toEqual([0, 0, 3]);
    expect(Array.from(computeAdvantages([1, 2, 6], { ...base, advantageMinClip: -1 }))).toEqual([0, -1, 3]);
  });

  // Their means differ from each of them by rounding.
  const equal = [0.1, 0.7, -0.3, 1.1, 1 / 3, 1e6 / 7, 1e-9 / 3];
  test.each(['none', 'group', 'batch'] as const)('equal rewards have the advantage 0, scaled by %s', (scaleRewards) => {
    for (const reward of equal)
      for (const groupSize of [3, 6, 7, 64]) {
        const rewards = new Array(groupSize).fill(reward);
        expect(standardDeviation(rewards)).toBe(0);
        const options = { groupSize, scaleRewards, advantageMinClip: null };
        expect(new Set(computeAdvantages(rewards, options))).toEqual(new Set([0]));
        // Beside a group that differs.
        const other = Array.from(rewards, (_, i) => reward * i);
        expect(new Set(computeAdvantages([...other, ...rewards], options).slice(groupSize))).toEqual(new Set([0]));
      }
  });

  test('the reward of the mean has the advantage 0, and small differences count', () => {
    expect(computeAdvantages([0.1, 0.2, 0.3], base)[1]).toBe(0);
    // The same sum in another order.
    expect(Array.from(computeAdvantages([0.1 + 0.2, 0.3, 0.3], base))).toEqual([0, 0, 0]);
    const [least, , most] = computeAdvantages([1, 1 + 1e-9, 1 + 2e-9], base);
    expect(least).toBeCloseTo(-1e-9, 15);
    expect(most).toBeCloseTo(1e-9, 15);
  });

  test('rewards must be whole groups', () => expect(() => computeAdvantages([1, 2], base)).toThrow(RangeError));
});

describe('schedules', () => {
  const options = { schedule: 'cosine', warmupSteps: 3, totalSteps: 13, floor: 0.1 } as const;
  test('warm-up, peak, middle and floor', () => {
    expect([0, 1, 2, 3].map((s) => learningRateFactor(s, options))).toEqual([0.25, 0.5, 0.75, 1]);
    expect(learningRateFactor(8, options)).toBeCloseTo(0.55, 12);
    expect(learningRateFactor(13, options)).toBeCloseTo(0.1, 12);
    expect(learningRateFactor(8, { ...options, schedule: 'linear' })).toBeCloseTo(0.55, 12);
    expect(learningRateFactor(5.5, { ...options, schedule: 'linear' })).toBeCloseTo(0.775, 12);
    expect(learningRateFactor(99, { ...options, schedule: 'constant' })).toBe(1);
  });
  test('no warm-up begins at the peak', () => expect(learningRateFactor(0, { ...options, warmupSteps: 0 })).toBe(1));
});

describe('planner initialisation', () => {
  test('factor rule', () => {
    // 1 − 1/3 = .667, 1 − 1/4 = .75, 1 − 1/5 = .8 for the second, third and fourth.
    expect(Array.from(factorTargets([0.9, 0.5, 0.76, 0.95], 1))).toEqual([1, 0, 1, 1]);
    expect(Array.from(factorTargets([0.9, 0.5, 0.74, 0.95], 1))).toEqual([1, 0, 0, 1]);
    expect(Array.from(factorTargets([0.1, 0.05], 1))).toEqual([1, 0]);
    expect(Array.from(factorTargets([], 1))).toEqual([]);
  });

  test("the reference's last pair", () => {
    expect(Array.from(factorTargets([0.1, 0.05], 1, { lastPair: true }))).toEqual([1, 1]);
    expect(Array.from(factorTargets([0.1, 0.05, 0.04], 1, { lastPair: true }))).toEqual([1, 0, 0]);
  });

  test('cross-entropy and its gradient', () => {
    const targets = [1, 0, 1, 0];
    const logits = [0.3, -40, -2, 55];
    const loss = (values: number[]) => binaryCrossEntropy(values, targets, 1.7, 0.25).loss;
    const { dLogits } = binaryCrossEntropy(logits, targets, 1.7, 0.25);
    const expected = (1.7 * Math.log(1 + Math.exp(-0.3)) + 0 + 1.7 * Math.log(1 + Math.exp(2)) + 55) / 4;
    expect(loss(logits)).toBeCloseTo(expected, 9);
    logits.forEach((_, i) => {
      const moved = (d: number) => loss(logits.map((z, k) => (k === i ? z + d : z)));
      expect(dLogits[i]).toBeCloseTo((moved(1e-5) - moved(-1e-5)) / 2e-5, 6);
    });
    expect([positiveWeight(2, 8), positiveWeight(0, 8), positiveWeight(8, 8)]).toEqual([3, 1, 1]);
  });

  test('a span never leaves the completion, and everything right of it is masked', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 20 }),
        fc.integer({ min: 1, max: 50 }),
        fc.integer({ min: 1, max: 40 }),
        fc.infiniteStream(fc.double({ min: 0, max: 0.999999, noNaN: true })),
        (begin, length, minSpan, stream) => {
          const ids = Int32Array.from({ length: begin + length }, (_, i) => 10 + i);
          const row = maskSpan(ids, { begin, minSpan, maskTokenId: 1, uniform: () => stream.next().value as number });
          expect(row.positions.length).toBeGreaterThan(0);
          const masked = Array.from(row.ids.keys()).filter((i) => row.ids[i] === 1);
          expect(masked[0]).toBeGreaterThanOrEqual(begin);
          // Candidates come first; what is masked behind them is the tail without a gap.
          expect(masked.slice(0, row.positions.length)).toEqual(Array.from(row.positions));
          const tail = masked.slice(row.positions.length);
          expect(tail).toEqual(tail.map((_, i) => ids.length - tail.length + i));
        },
      ),
    );
  });
});

test('masking keeps the prompt, and the loss is a weighted cross-entropy', () => {
  const ids = Int32Array.of(5, 6, 7, 8, 9);
  const row = maskRow(ids, { begin: 2, t: 0.5, epsilon: 0.1, uniforms: [0, 0, 0.54, 0.56, 0.1], maskTokenId: 1 });
  expect(row.maskProbability).toBeCloseTo(0.55, 6);
  expect(Array.from(row.ids)).toEqual([5, 6, 1, 8, 1]);
  expect(Array.from(row.positions)).toEqual([2, 4]);
  expect(Array.from(row.tokens)).toEqual([7, 9]);
  expect(maskedDiffusionLoss([-1, -3], 0.25)).toEqual({ loss: 1, dLogProbs: Float32Array.of(-0.25, -0.25) });
});
