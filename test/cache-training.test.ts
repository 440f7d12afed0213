// Training on a cache: replay of rollouts, gradients.
import { type CachePolicy, GrpoTrainer, loadModel, training } from '../lib';
import { range } from './cache-cases';
import { makeCheckpoint, random } from './checkpoints';
import {
  emptyReferenceCache,
  type ReferenceWeights,
  referenceHidden,
  referenceLogits,
  referencePlanner,
} from './reference-model';
import { collect, newModelFolder, task, withModel } from './trained-models';

describe('GRPO on a cache', () => {
  const policies: [string, CachePolicy][] = [
    ['dual', { type: 'dual' }],
    ['prefix, planner fresh', { type: 'prefix', planner: 'fresh' }],
    ['refresh', { type: 'refresh', every: 3 }],
    ['delayed, planner fresh', { type: 'delayed', delay: 1, planner: 'fresh' }],
  ];
  test.each(policies)('%s: the replay of a rollout is the rollout', async (_name, cache) => {
    await withModel(await newModelFolder({ nLayers: 2 }), async (fresh) => {
      const options = {
        dataset: task,
        maxSteps: 2,
        promptsPerStep: 3,
        numGenerations: 4,
        blockLength: 4,
        temperature: 1,
        tokenBudget: 40,
        learningRate: 1e-2,
        advantageMinClip: null,
        rewards: {
          any: ({ results }: { results: readonly { ids: Int32Array }[] }) => results.map(({ ids }) => ids[0] % 5),
        },
        cache,
      };
      await using trainer = new GrpoTrainer(fresh, options);
      const metrics = await collect(trainer.train());
      expect(metrics).toHaveLength(2);
      for (const { ratioDeviation, replayedSteps } of metrics) {
        expect(ratioDeviation).toBeLessThanOrEqual(1e-5);
        expect(replayedSteps).toBeGreaterThan(3);
      }
    });
  });

  test('a second update from the same rollouts refills the cache with the new weights', async () => {
    await withModel(await newModelFolder(), async (fresh) => {
      await using trainer = new GrpoTrainer(fresh, {
        dataset: task,
        maxSteps: 2,
        numIterations: 2,
        promptsPerStep: 2,
        numGenerations: 4,
        blockLength: 4,
        temperature: 1,
        learningRate: 1e-3,
        rewards: { any: ({ results }) => results.map(({ ids }) => ids[0] % 5) },
        advantageMinClip: null,
        cache: { type: 'dual' },
        referenceModel: undefined,
      });
      const [first, second] = await collect(trainer.train());
      expect(first.ratioDeviation).toBeLessThanOrEqual(1e-5);
      expect(second.ratioDeviation).toBeGreaterThan(1e-4);
      expect(second.ratioDeviation).toBeLessThan(1);
    });
  });

  test('a frozen reference replays on a cache of its own', async () => {
    const folder = await newModelFolder();
    await withModel(folder, (fresh) =>
      withModel(folder, async (referenceModel) => {
        await using trainer = new GrpoTrainer(fresh, {
          dataset: task,
          maxSteps: 1,
          promptsPerStep: 2,
          numGenerations: 3,
          blockLength: 4,
          beta: 0.1,
          referenceModel,
          rewards: { any: ({ results }) => results.map(({ ids }) => ids[0] % 5) },
          cache: { type: 'dual' },
        });
        const [{ kl }] = await collect(trainer.train());
        // The same weights: no divergence.
        expect(Math.abs(kl!)).toBeLessThan(1e-6);
      }),
    );
  });

  test('wrong options', async () => {
    await withModel(await newModelFolder(), async (fresh) => {
      const options = { dataset: task, rewards: { any: () => [] } };
      expect(() => new GrpoTrainer(fresh, { ...options, cache: { type: 'dual', dtype: 'bfloat16' } })).toThrow(
        /cache\.dtype: expected "float32", which gradients need/,
      );
      expect(() => new GrpoTrainer(fresh, { ...options, cache: { type: 'dual' }, compat: 'reference' })).toThrow(
        /cache: expected none with compat "reference"/,
      );
      expect(() => new GrpoTrainer(fresh, { ...options, cache: { type: 'some' as never } })).toThrow(/cache\.type/);
    });
  });
});

describe('gradients of a pass on a cache', () => {
  const next = random(12);
  const length = 12;
  const positions = [2, 3, 5, 6, 7, 10];
  const candidates = [3, 6, 10];

  test.each(['cached', 'fresh'] as const)(
    'planner %s: every tensor against central differences in double',
    async (planner) => {
      const made = makeCheckpoint({ config: { num_head_layers: 2 }, seed: 9 });
      const { config, weights } = made;
      const small = await loadModel(made.folder);
      const token = () => Math.floor(next() * (config.vocab_size - 2));
      const first = range(0, length).map((i) => (candidates.includes(i) ? config.mask_token_id : token()));
      const second = first.map((id, i) => (positions.includes(i) && id !== config.mask_token_id ? token() : id));
      const tokens = candidates.map(token);
      const timesteps = [Math.fround(0.3), Math.fround(0.6)];
      const upstream = candidates.map(() => [next() - 0.5, next() - 0.5]);

      // What the first pass leaves, in double: constants of the second.
      const held = emptyReferenceCache(config);
      const isCandidate = (list: readonly number[]) => list.map((position) => candidates.includes(position));
      const whole = { positions: range(0, length), cache: held };
      const states = referenceHidden(config, weights, first, whole);
      referencePlanner(config, weights, states, timesteps[0], isCandidate(whole.positions), whole);
      const objective = (w: ReferenceWeights) => {
        const cache = structuredClone(held);
        const pass = { positions, cache };
        const hidden = referenceHidden(
          config,
          w,
          positions.map((position) => second[position]),
          pass,
        );
        let logits: Float64Array;
        if (planner === 'cached') {
          const own = referencePlanner(config, w, hidden, timesteps[1], isCandidate(positions), pass);
          logits = Float64Array.from(candidates, (position) => own[positions.indexOf(position)]);
        } else {
          const mixed = states.slice();
          for (const [i, position] of positions.entries()) mixed[position] = hidden[i];
          const all = referencePlanner(config, w, mixed, timesteps[1], isCandidate(whole.positions));
          logits = Float64Array.from(candidates, (position) => all[position]);
        }
        const rows = referenceLogits(
          config,
          w,
          candidates.map((position) => hidden[positions.indexOf(position)]),
        );
        return candidates.reduce((total, _, i) => {
          const x = Array.from(rows[i], (value, id) => (id === config.mask_token_id ? -Infinity : value));
          const largest = Math.max(...x);
          const logProb =
            x[tokens[i]] - largest - Math.log(x.reduce((sum, value) => sum + Math.exp(value - largest), 0));
          return total + upstream[i][0] * logProb + upstream[i][1] * logits[i];
        }, 0);
      };

      const cache = await small.createCache([length], { planner });
      for (const activationCheckpointing of [false, true]) {
        const trainer = await small.createTrainer({ activationCheckpointing });
        const score = (ids: number[], computed: number[], timestep: number, keep: boolean) =>
          trainer.score({
            ids: Int32Array.from(computed, (position) => ids[position]),
            offsets: Int32Array.from([0, computed.length]),
            candidateOffsets: Int32Array.from([0, candidates.length]),
            positions: Int32Array.from(candidates),
            tokens: Int32Array.from(tokens),
            excludedToken: config.mask_token_id,
            planner: { timestep: Float32Array.of(timestep), maskIndex: Uint8Array.from(isCandidate(computed), Number) },
            cached: { cache: cache.native, rows: Int32Array.of(0), positions: Int32Array.from(computed) },
            keep,
          });
        await score(first, range(0, length), timesteps[0], false);
        await score(second, positions, timesteps[1], true);
        await trainer.backward({
          dLogProbs: Float32Array.from(upstream, ([x]) => x),
          dPlannerLogits: Float32Array.from(upstream, ([, x]) => x),
        });
        const found = new Map((await trainer.gradients()).map(({ name, data }) => [name, data]));
        trainer.dispose();
        for (const [name, { data }] of weights) {
          const gradient = found.get(name)!;
          const norm = Math.sqrt(gradient.reduce((sum, x) => sum + x * x, 0));
          const largest = gradient.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
          for (const entry of [gradient.findIndex((x) => Math.abs(x) === largest), Math.floor(next() * data.length)]) {
            const value = data[entry];
            data[entry] = value + 1e-5;
            const above = objective(weights);
            data[entry] = value - 1e-5;
            const below = objective(weights);
            data[entry] = value;
            const expected = (above - below) / 2e-5;
            const error = Math.abs(gradient[entry] - expected) / (1e-4 * Math.max(norm, 1e-3));
            if (!(error < 1))
              throw new Error(`${name}[${entry}]: expected ${expected}, got ${gradient[entry]} (norm ${norm})`);
          }
        }
      }
      cache.dispose();
      small.dispose();
    },
  );
});

test('recorded rollouts on a cache are what denoise gives', async () => {
  await withModel(await newModelFolder(), async (fresh) => {
    const cache: CachePolicy = { type: 'refresh', every: 2 };
    const policy = {
      temperature: 0.5,
      tokenLogProb: 'untempered',
      plannerTemperature: 1,
      probabilityScale: 1,
      forcedStep: 'exact',
      compat: null,
    } as const;
    const texts = ['1 a b c d e f g h', '3 a a b c d e f g'];
    const { results, steps } = await training.recordRollouts(
      fresh,
      texts.map((text) => fresh.encodePrompt(text)),
      {
        policy: { ...policy, cache: { type: 'refresh', every: 2, changed: null, dtype: 'float32', planner: 'cached' } },
        seed: 5n,
        tokenBudget: 17,
        maxTokens: 8,
        blockLength: 4,
      },
    );
    const whole = await fresh.generateBatch(texts, {
      maxTokens: 8,
      blockLength: 4,
      temperature: 0.5,
      seed: 5,
      sampler: { type: 'planner', select: 'bernoulli' },
      cache,
    });
    expect(results).toEqual(whole);
    expect(steps.some(({ computed, ids }) => computed.length < ids.length)).toBe(true);
  });
});
