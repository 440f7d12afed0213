// Saved models and adapters, as files.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { MaskedDiffusionModel } from '../lib';
import { modelFolder, readTensors, temporaryFolder, variant } from './helpers';
import { newModelFolder, weightsOf, withModel } from './trained-models';
import { grpo, sft } from './trainers';

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
});

describe('models as files', () => {
  const ids = [3, 4, 5, 1, 1, 1, 6, 1];
  const logitsOf = async (model: MaskedDiffusionModel) => (await model.forward({ ids })).logits!;

  test('save keeps fp32 exactly, with config and tokenizer', async () => {
    const target = temporaryFolder();
    await withModel(folder, async (model) => {
      await sft(model);
      await model.save(target);
      const wanted = await logitsOf(model);
      await withModel(target, async (copy) => {
        expect(await logitsOf(copy)).toEqual(wanted);
        expect(copy.config).toEqual(model.config);
        expect(copy.tokenizer!.encode('1 a B *')).toEqual(model.tokenizer!.encode('1 a B *'));
      });
    });
    const config = JSON.parse(readFileSync(path.join(target, 'config.json'), 'utf8'));
    expect(config).toMatchObject({
      num_head_layers: 1,
      use_adaln: true,
      torch_dtype: 'float32',
      architectures: ['LLaDOUModelLM'],
    });
  });

  test('fields that nobody here reads survive', async () => {
    const target = temporaryFolder();
    await withModel(modelFolder('gqa'), (model) => model.save(target));
    const original = JSON.parse(readFileSync(path.join(modelFolder('gqa'), 'config.json'), 'utf8'));
    expect(JSON.parse(readFileSync(path.join(target, 'config.json'), 'utf8'))).toEqual({
      ...original,
      torch_dtype: 'float32',
    });
    const [before, after] = [modelFolder('gqa'), target].map((from) =>
      readTensors(path.join(from, 'model.safetensors')),
    );
    expect(Object.keys(after).sort()).toEqual(Object.keys(before).sort());
    for (const [name, { raw, shape }] of Object.entries(after))
      expect([name, shape, raw.equals(before[name].raw)]).toEqual([name, before[name].shape, true]);
  });

  test('a new model says what the reference has other defaults for', () => {
    expect(JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8'))).toMatchObject({
      activation_type: 'silu',
      block_type: 'llama',
      layer_norm_type: 'rms',
      rope: true,
      include_bias: false,
      weight_tying: false,
      use_block_embeddings: false,
    });
  });

  test('a config of transformers 5 is saved for both versions', async () => {
    const source = variant('base', {
      config: (config) => {
        config.rope_parameters = { rope_type: 'default', rope_theta: 250000 };
        config.dtype = 'float32';
        config.eos_token_id = [95, 7];
        config.pad_token_id = -1;
        delete config.rope_theta;
      },
    });
    const target = temporaryFolder();
    await withModel(source, async (model) => {
      await model.save(target, { dtype: 'bfloat16' });
      await withModel(target, async (copy) => expect(copy.config).toEqual(model.config));
    });
    expect(JSON.parse(readFileSync(path.join(target, 'config.json'), 'utf8'))).toMatchObject({
      rope_theta: 250000,
      rope_parameters: { rope_type: 'default', rope_theta: 250000 },
      dtype: 'bfloat16',
      torch_dtype: 'bfloat16',
      eos_token_id: [95, 7],
    });
  });

  test.each([
    ['bfloat16', 2 ** -8],
    ['float16', 2 ** -11],
  ] as const)('save as %s rounds to nearest', async (dtype, relative) => {
    const target = temporaryFolder();
    await withModel(folder, async (model) => {
      await model.save(target, { dtype });
      const exact = await weightsOf(model);
      await withModel(target, async (copy) => {
        const rounded = await weightsOf(copy);
        for (const [name, { data }] of Object.entries(exact))
          data.forEach((x, i) =>
            expect(Math.abs(rounded[name].data[i] - x)).toBeLessThanOrEqual(relative * Math.abs(x) + 2 ** -25),
          );
      });
    });
  });

  test('a folder with a checkpoint in shards is refused', async () => {
    const target = temporaryFolder();
    writeFileSync(path.join(target, 'model.safetensors.index.json'), '{}');
    await withModel(folder, (model) => expect(model.save(target)).rejects.toThrow('folder: '));
  });

  test('adapters: train, save, load, take out, put back', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const targets = ['q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out'] as const;
    const lora = { rank: 3, alpha: 5, targets };
    const trained = await withModel(folder, async (model) => {
      await sft(model, { lora, outputDir: run, learningRate: 1e-2, warmupSteps: 0 });
      return logitsOf(model);
    });
    const adapter = path.join(run, 'checkpoints', 'step-00000003', 'adapter');
    const config = JSON.parse(readFileSync(path.join(adapter, 'adapter_config.json'), 'utf8'));
    expect(config).toMatchObject({ peft_type: 'LORA', r: 3, lora_alpha: 5, modules_to_save: null });
    expect('model.transformer.blocks.1.q_proj').toMatch(new RegExp(`^${config.target_modules}$`));
    for (const other of ['model.transformer.ff_out', 'mask_head.0.q_proj'])
      expect(other).not.toMatch(new RegExp(`^${config.target_modules}$`));
    const tensors = readTensors(path.join(adapter, 'adapter_model.safetensors'));
    expect(tensors['base_model.model.model.transformer.blocks.0.ff_out.lora_A.weight'].shape).toEqual([3, 48]);
    expect(tensors['base_model.model.model.transformer.blocks.0.ff_out.lora_B.weight'].shape).toEqual([16, 3]);
    await withModel(folder, async (model) => {
      const base = await logitsOf(model);
      const distance = async (wanted: Float32Array) =>
        (await logitsOf(model)).reduce((max, x, i) => Math.max(max, Math.abs(x - wanted[i])), 0);
      expect(await distance(trained)).toBeGreaterThan(1e-2);
      const handle = await model.loadAdapter(adapter);
      expect(await distance(trained)).toBeLessThan(1e-5);
      await handle.unmerge();
      expect(await distance(base)).toBe(0);
      await handle.merge();
      expect(await distance(trained)).toBeLessThan(1e-5);
      handle.dispose();
      expect(await distance(trained)).toBeLessThan(1e-5);
    });
    // The merged checkpoint is the same model.
    await withModel(path.dirname(adapter), async (model) => {
      const merged = await logitsOf(model);
      merged.forEach((x, i) => expect(Math.abs(x - trained[i])).toBeLessThan(1e-5));
    });
  });

  test('adapters beside a planner that trains', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const forward = async (model: MaskedDiffusionModel) =>
      (await model.forward({ ids, planner: { timestep: [0.5], maskIndex: ids.map((id) => id === 1) } })).plannerLogits!;
    const trained = await withModel(folder, async (model) => {
      await grpo(model, { lora: { rank: 2 }, outputDir: run, learningRate: 1e-2 });
      return forward(model);
    });
    await withModel(folder, async (model) => {
      (await model.loadAdapter(path.join(run, 'checkpoints', 'step-00000003', 'adapter'))).dispose();
      (await forward(model)).forEach((z, i) => expect(Math.abs(z - trained[i])).toBeLessThan(1e-5));
    });
  });
});
