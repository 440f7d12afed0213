// What a device has to do, through the public API, beside the CPU: run by test/device.test.ts on the emulated plugin,
// and by scripts/gpu/check-node.sh where there is a GPU. A check is a function of (dultra, device) that throws where
// something is wrong.
const assert = require('node:assert/strict');
const path = require('node:path');

const PROMPTS = [
  '12+7=',
  'tom has 7 apples . he buys 5 . how many now ? sum',
  'lily with 3 books and she finds 8 . how many now ? words',
];

/** Runs `body` with a model, and frees it. */
async function withModel(dultra, folder, options, body) {
  const model = await dultra.loadModel(folder, options);
  try {
    return await body(model);
  } finally {
    model.dispose();
  }
}

const fixture = (name) => path.join(__dirname, '..', 'fixtures', 'golden', 'models', name);
const IDS = [5, 17, 3, 40, 8, 22, 96, 96, 96, 96, 96, 96];

/** |a - b| / |b|, L2. */
function relativeError(a, b) {
  assert.equal(a.length, b.length);
  let difference = 0;
  let size = 0;
  for (let i = 0; i < a.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    size += b[i] ** 2;
  }
  return Math.sqrt(difference / size);
}

/** Two optimiser steps of log-probabilities of some tokens; the trainer's state. */
async function train(trainer, steps) {
  for (let step = 0; step < steps; step++) {
    await trainer.score({
      ids: Int32Array.from(IDS),
      offsets: Int32Array.of(0, IDS.length),
      positions: Int32Array.of(6, 7, 8),
      tokens: Int32Array.of(6, 7, 8),
      keep: true,
    });
    await trainer.backward({
      dLogProbs: Float32Array.of(-1, -0.3, 0.2),
    });
    await trainer.step({
      baseLr: 1e-3,
      plannerLr: 1e-3,
      beta1: 0.9,
      beta2: 0.99,
      eps: 1e-8,
      weightDecay: 0.1,
      maxGradNorm: 1,
    });
  }
  return trainer.state();
}

const checks = {
  'the embedded model generates what it generates on the CPU': async (dultra, device) => {
    const options = { maxTokens: 16, blockLength: 16, seed: 3, sampler: { type: 'planner' } };
    const generate = (on) =>
      withModel(dultra, undefined, { device: on }, async (model) => {
        if (on !== 'cpu') assert.match(model.info.device, /^cuda:\d$/);
        const results = [];
        for (const prompt of PROMPTS) results.push(Array.from((await model.generate(prompt, options)).ids));
        return results;
      });
    assert.deepEqual(await generate(device), await generate('cpu'));
  },

  'hidden states and logits are those of the CPU: to 1e-5 in fp32, to 3 % in bf16': async (dultra, device) => {
    const forward = (options) =>
      withModel(dultra, fixture('base'), options, (model) =>
        model.forward({ ids: IDS, planner: { timestep: [0.5], maskIndex: IDS.map((id) => (id === 96 ? 1 : 0)) } }),
      );
    const expected = await forward({ device: 'cpu' });
    const wide = await forward({ device, compute: 'float32' });
    const narrow = await forward({ device, compute: 'bfloat16' });
    for (const what of ['hidden', 'logits', 'plannerLogits']) {
      assert.ok(
        relativeError(wide[what], expected[what]) < 1e-5,
        `${what} in fp32: ${relativeError(wide[what], expected[what])}`,
      );
      assert.ok(
        relativeError(narrow[what], expected[what]) < 0.03,
        `${what} in bf16: ${relativeError(narrow[what], expected[what])}`,
      );
    }
  },

  'quantised weights stay in blocks, and logits are those of the CPU': async (dultra, device) => {
    const ids = IDS.map((id) => id % 40);
    const forward = (options) =>
      withModel(dultra, 'word-problems', { quantize: 'q4', compute: 'float32', ...options }, async (model) => ({
        ...(await model.forward({ ids })),
        bytes: model.info.weightBytes,
      }));
    const expected = await forward({ device: 'cpu' });
    const got = await forward({ device });
    assert.ok(relativeError(got.logits, expected.logits) < 1e-5, `${relativeError(got.logits, expected.logits)}`);
    const plain = await withModel(dultra, 'word-problems', { device }, (model) => model.info.weightBytes);
    assert.ok(got.bytes < 0.7 * plain, `${got.bytes} bytes in blocks, ${plain} as they are stored`);
  },

  'a row does not depend on the rows beside it': async (dultra, device) => {
    await withModel(dultra, undefined, { device }, async (model) => {
      const options = { maxTokens: 16, blockLength: 16, seed: 5, temperature: 0.7 };
      const [alone] = await model.generateBatch([PROMPTS[1]], options);
      const [first] = await model.generateBatch([PROMPTS[1], PROMPTS[2], PROMPTS[0]], options);
      assert.deepEqual(Array.from(first.ids), Array.from(alone.ids));
    });
  },

  'training resumes bit for bit, and its state goes to the CPU and back': async (dultra, device) => {
    for (const compute of ['float32', 'bfloat16'])
      for (const momentDtype of ['float32', 'bfloat16']) {
        const options = { momentDtype, seed: 9 };
        const run = (on, body) =>
          withModel(dultra, fixture('base'), on, async (model) => {
            const trainer = await model.createTrainer(options);
            try {
              return await body(trainer);
            } finally {
              trainer.dispose();
            }
          });
        const here = { device, compute };
        const whole = await run(here, (trainer) => train(trainer, 4));
        const half = await run(here, (trainer) => train(trainer, 2));
        const resumed = await run(here, async (trainer) => {
          await trainer.loadState(half);
          return train(trainer, 2);
        });
        assert.deepEqual(resumed, whole, `${compute}, moments ${momentDtype}: resuming is not exact`);
        const there = await run({ device: 'cpu' }, async (trainer) => {
          await trainer.loadState(whole);
          return trainer.state();
        });
        assert.deepEqual(there, whole, `${compute}, moments ${momentDtype}: the CPU has another state`);
        const back = await run(here, async (trainer) => {
          await trainer.loadState(there);
          return trainer.state();
        });
        assert.deepEqual(back, whole, `${compute}, moments ${momentDtype}: the device has another state`);
      }
  },

  'a device that is not there is refused': async (dultra) => {
    await assert.rejects(dultra.loadModel(undefined, { device: 'cuda:77' }), (error) => {
      assert.equal(error.code, 'DEVICE_UNAVAILABLE');
      return true;
    });
  },
};

module.exports = { checks };
