// What holds for every family of masked diffusion models, on small new ones: each is made, trained, decoded, saved and
// resumed in the same way.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { createPlanner, GrpoTrainer, loadModel, type MaskedDiffusionModel, trainMaskedDiffusion } from '../lib';
import { checkpointNames, NEW_FAMILIES } from '../lib/model/families';
import { unusedTensors } from '../lib/model/tensors';
import { random } from './checkpoints';
import { type FixtureTensor, readTensors, temporaryFolder, writeTensors } from './helpers';
import { collect, metricsOf, newModelFolder, task, weightsOf, withModel } from './trained-models';
import { earlyTokens } from './trainers';

const folders = new Map<string, string>();
const folderOf = async (family: string): Promise<string> => {
  if (!folders.has(family)) {
    const blocks = family === 'fast-dllm-v2' && { blockLength: 4 };
    folders.set(family, await newModelFolder({ family, nHeads: 4, nKvHeads: 2, dModel: 32, ...blocks }));
  }
  return folders.get(family)!;
};
const IDS = Array.from({ length: 16 }, (_, i) => i + 3);
const prompts = ['1 a b c', '2 d', '5 e f g h a b'];

/** A copy of a folder with another config.json or other tensors. */
function changed(
  folder: string,
  change: { config?: object; tensors?: (tensors: Record<string, FixtureTensor>) => void },
): string {
  const copy = temporaryFolder();
  for (const name of ['tokenizer.json', 'tokenizer_config.json'])
    writeFileSync(path.join(copy, name), readFileSync(path.join(folder, name)));
  const config = JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8')) as object;
  writeFileSync(path.join(copy, 'config.json'), JSON.stringify({ ...config, ...change.config }));
  const tensors = readTensors(path.join(folder, 'model.safetensors'));
  change.tensors?.(tensors);
  writeTensors(path.join(copy, 'model.safetensors'), tensors);
  return copy;
}

describe.each(NEW_FAMILIES)('%s', (family) => {
  let model: MaskedDiffusionModel;
  beforeAll(async () => {
    model = await loadModel(await folderOf(family), { threads: 1 });
  });
  afterAll(() => model.dispose());

  test.each(['confidence', 'planner', 'fixed'] as const)(
    '%s: rows of a batch are as they are alone, with any threads; a stream ends with what generate returns',
    async (type) => {
      const settings = { sampler: { type }, maxTokens: 12, temperature: 0.8, seed: 5, stopAtEos: false };
      const plain = ({ seconds: _, tokensPerSecond: __, ...rest }: Awaited<ReturnType<typeof model.generate>>) => rest;
      const together = await model.generateBatch(prompts, settings);
      await using other = await loadModel(await folderOf(family), { threads: 3 });
      for (const [i, prompt] of prompts.entries()) {
        const alone = await other.generate(prompt, { ...settings, research: { firstRow: i } });
        expect(plain(alone)).toEqual(plain(together[i]));
        expect(alone.ids).not.toContain(model.config.maskTokenId);
      }
      let last = null;
      for await (const { result } of model.generateStream(prompts[0], settings)) last = result;
      expect(plain(last!)).toEqual(plain(together[0]));
    },
  );

  test('a pass over some positions of a cache is the pass over all', async () => {
    const length = IDS.length;
    const { logits } = await model.forward({ ids: IDS, rowOffsets: [0, length] });
    await using cache = await model.createCache([length]);
    const all = IDS.map((_, i) => i);
    await model.forward({ ids: IDS, rowOffsets: [0, length], cache, positions: all });
    const some = [3, 4, 9, 14];
    const subset = await model.forward({
      ids: some.map((position) => IDS[position]),
      rowOffsets: [0, some.length],
      cache,
      positions: some,
    });
    const v = model.config.embeddingSize;
    some.forEach((position, i) => {
      expect(subset.logits!.slice(i * v, (i + 1) * v)).toEqual(logits!.slice(position * v, (position + 1) * v));
    });
  });

  test('a run that is resumed ends as one that was not interrupted', async () => {
    const run = async (stops: number[]) => {
      const outputDir = path.join(temporaryFolder(), 'run');
      let weights: Awaited<ReturnType<typeof weightsOf>> = {};
      for (const [i, maxSteps] of stops.entries())
        await withModel(await folderOf(family), async (own) => {
          const options = { dataset: task, batchSize: 4, schedule: 'constant', warmupSteps: 0, saveEvery: 2 } as const;
          await collect(trainMaskedDiffusion(own, { ...options, maxSteps, outputDir, ...(i > 0 && { resume: true }) }));
          weights = await weightsOf(own);
        });
      return { weights, metrics: metricsOf(outputDir).map(({ maxSteps: _, ...rest }) => rest) };
    };
    const [whole, parts] = [await run([4]), await run([2, 4])];
    expect(parts.metrics).toEqual(whole.metrics);
    expect(parts.weights).toEqual(whole.weights);
  });

  test('adapters as PEFT writes them change what a merge by hand changes; those that are saved load again', async () => {
    const { checkpointName } = checkpointNames(model.config);
    const next = random(7);
    const draw = (count: number) => Float32Array.from({ length: count }, () => (Math.floor(next() * 9) - 4) / 64);
    const modules = [0, 1].flatMap((layer) =>
      ['q_proj', 'attn_out', 'ff_out'].map((name) =>
        checkpointName(`model.transformer.blocks.${layer}.${name}.weight`).replace('.weight', ''),
      ),
    );
    const adapter = temporaryFolder();
    const files: Record<string, FixtureTensor> = {};
    const merged = changed(await folderOf(family), {
      tensors: (tensors) => {
        for (const module of modules) {
          const tensor = tensors[`${module}.weight`];
          const [outputs, inputs] = tensor.shape;
          const [a, b] = [draw(2 * inputs), draw(outputs * 2)];
          const put = (name: string, shape: number[], data: Float32Array) => {
            files[`base_model.model.${module}.${name}.weight`] = {
              dtype: 'F32',
              shape,
              data,
              raw: Buffer.from(data.buffer),
            };
          };
          put('lora_A', [2, inputs], a);
          put('lora_B', [outputs, 2], b);
          const sum = Float32Array.from(tensor.data as Float32Array, (x, at) => {
            const [o, i] = [Math.floor(at / inputs), at % inputs];
            return x + 2 * (b[o * 2] * a[i] + b[o * 2 + 1] * a[inputs + i]);
          });
          tensors[`${module}.weight`] = { ...tensor, data: sum, raw: Buffer.from(sum.buffer) };
        }
      },
    });
    const targets = [...new Set(modules.map((module) => module.split('.').at(-1)))];
    const config = { peft_type: 'LORA', r: 2, lora_alpha: 4, target_modules: targets, bias: 'none' };
    writeFileSync(path.join(adapter, 'adapter_config.json'), JSON.stringify(config));
    writeTensors(path.join(adapter, 'adapter_model.safetensors'), files);
    const request = { ids: IDS, rowOffsets: [0, IDS.length] };
    await using expected = await loadModel(merged, { threads: 1 });
    await withModel(await folderOf(family), async (own) => {
      (await own.loadAdapter(adapter)).dispose();
      const [{ logits }, { logits: byHand }] = [await own.forward(request), await expected.forward(request)];
      logits!.forEach((x, i) => {
        expect(Math.abs(x - byHand![i])).toBeLessThan(1e-5);
      });
    });
    const outputDir = path.join(temporaryFolder(), 'run');
    await withModel(await folderOf(family), async (own) => {
      const options = { dataset: task, maxSteps: 1, batchSize: 4, warmupSteps: 0, learningRate: 1e-2, outputDir };
      await collect(trainMaskedDiffusion(own, { ...options, lora: { rank: 2 } }));
      const trained = await own.forward(request);
      await withModel(await folderOf(family), async (again) => {
        (await again.loadAdapter(path.join(outputDir, 'checkpoints', 'step-00000001', 'adapter'))).dispose();
        expect((await again.forward(request)).logits).toEqual(trained.logits);
      });
    });
  });

  test('GRPO makes it faster at no less reward', async () => {
    await withModel(await folderOf(family), async (own) => {
      await collect(
        trainMaskedDiffusion(own, { dataset: task, maxSteps: 30, batchSize: 16, learningRate: 3e-3, warmupSteps: 3 }),
      );
      await using trainer = new GrpoTrainer(own, {
        dataset: task,
        maxSteps: 30,
        promptsPerStep: 4,
        numGenerations: 8,
        temperature: 0.5,
        learningRate: 1e-4,
        plannerLearningRate: 1e-2,
        seed: 1,
        rewards: {
          early: { fn: earlyTokens, weight: 4 },
          fast: ({ results }) => results.map(({ nfe, ids }) => 1 - nfe / ids.length),
        },
      });
      const metrics = await collect(trainer.train());
      const mean = (part: typeof metrics, key: 'nfe' | 'reward/early') =>
        part.reduce((sum, step) => sum + step[key], 0) / part.length;
      const [first, last] = [metrics.slice(0, 4), metrics.slice(-4)];
      for (const { ratioDeviation } of metrics) expect(ratioDeviation).toBeLessThanOrEqual(1e-5);
      expect(mean(last, 'nfe')).toBeLessThan(0.8 * mean(first, 'nfe'));
      expect(mean(last, 'reward/early')).toBeGreaterThan(mean(first, 'reward/early') - 0.05);
    });
  });

  test('a planner of either size that is made for it unmasks', async () => {
    const base = changed(await folderOf(family), {
      tensors: (tensors) => {
        for (const name of Object.keys(tensors))
          if (!name.startsWith('model.') && !name.startsWith('lm_head')) delete tensors[name];
      },
    });
    for (const size of ['block', 'small'] as const) {
      const head = path.join(temporaryFolder(), 'planner');
      await createPlanner(base, head, { size });
      await using own = await loadModel(base, { threads: 1, planner: head });
      const { ids, nfe } = await own.generate(prompts[0], {
        maxTokens: 8,
        sampler: { type: 'planner' },
        stopAtEos: false,
      });
      expect(ids).not.toContain(own.config.maskTokenId);
      expect(nfe).toBeGreaterThan(0);
    }
  });

  test('what it does not use is known; a block too many, or of another family, is refused by its tensors', async () => {
    const folder = await folderOf(family);
    const tensors = readTensors(path.join(folder, 'model.safetensors'));
    const { checkpointName } = checkpointNames(model.config);
    expect(unusedTensors(model.config, new Map(Object.entries({ ...tensors, other: null })), checkpointName)).toEqual([
      'other',
    ]);
    const layers = family === 'llada' ? 'n_layers' : 'num_hidden_layers';
    await expect(loadModel(changed(folder, { config: { [layers]: 1 } }))).rejects.toThrow(
      /expected the tensors of the blocks that config\.json names, got also model\./,
    );
    for (const other of NEW_FAMILIES) {
      const own = readTensors(path.join(await folderOf(other), 'model.safetensors'));
      // Families whose tensors are the same cannot be told apart by them.
      if (Object.keys(own).sort().join() === Object.keys(tensors).sort().join()) continue;
      const swapped = changed(folder, {
        tensors: (all) => {
          for (const name of Object.keys(all)) delete all[name];
          Object.assign(all, own);
        },
      });
      await expect(loadModel(swapped)).rejects.toMatchObject({
        code: 'BAD_CHECKPOINT',
        message: expect.stringMatching(
          /: (missing tensors|expected the tensors of the blocks that config\.json names)/,
        ),
      });
    }
  });

  test('heads that do not divide, and no mask token', async () => {
    const folder = await folderOf(family);
    const [width, heads, mask] =
      family === 'llada' ? ['d_model', 'n_heads', null] : ['hidden_size', 'num_attention_heads', 'mask_token_id'];
    await expect(loadModel(changed(folder, { config: { [heads]: 5, head_dim: null } }))).rejects.toThrow(
      family === 'llada'
        ? /d_model: expected a multiple of n_heads \(5\), got 32/
        : /num_attention_heads|head size|expected shape/,
    );
    await expect(loadModel(changed(folder, { config: { [width]: 0 } }))).rejects.toThrow(new RegExp(`${width}: `));
    if (mask === null) return;
    const silent = changed(folder, { config: { [mask]: null } });
    writeFileSync(path.join(silent, 'tokenizer_config.json'), '{}');
    await expect(loadModel(silent)).rejects.toThrow('mask_token_id: expected the id of the mask token, got none');
    await using named = await loadModel(silent, { maskTokenId: 1, threads: 1 });
    expect(named.config.maskTokenId).toBe(1);
  });
});
