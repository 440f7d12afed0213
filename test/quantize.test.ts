// Quantising while loading and into a folder: the same model, close to the one that it was made of.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import {
  compareDecisions,
  datasets,
  evaluate,
  loadModel,
  type MaskedDiffusionModel,
  maskedPerplexity,
  quantizeModel,
  training,
} from '../lib';
import { readGguf } from '../lib/files/gguf';
import { readSafetensors, writeSafetensors } from '../lib/files/safetensors';
import { makeCheckpoint } from './checkpoints';
import { inOneProcess } from './command-line';
import { temporaryFolder } from './helpers';

jest.setTimeout(60_000);

/** Rows of whole groups of 32, but for those of the MLP's last matrix. */
const { folder: checkpoint } = makeCheckpoint({
  config: { d_model: 64, n_heads: 4, n_kv_heads: 2, mlp_hidden_size: 80, num_head_layers: 1 },
  dtype: 'BF16',
});
const ids = Array.from({ length: 12 }, (_, i) => (i * 17) % 45);
const logitsOf = async (folder: string, options = {}) => {
  await using model = await loadModel(folder, options);
  const { logits, plannerLogits } = await model.forward({
    ids,
    planner: { timestep: [0.5], maskIndex: ids.map((_, i) => i % 2) },
  });
  return { logits: logits!, plannerLogits: plannerLogits!, info: model.info, storedDtype: model.storedDtype };
};
const distance = (a: Float32Array, b: Float32Array) =>
  Math.sqrt(a.reduce((sum, x, i) => sum + (x - b[i]) ** 2, 0) / b.reduce((sum, x) => sum + x * x, 0));

test.each([
  ['q8', 0.02],
  ['q4', 0.25],
] as const)('%s: a folder holds what quantising while loading gives', async (to, most) => {
  const plain = await logitsOf(checkpoint, { dtype: 'float32' });
  const quantised = await logitsOf(checkpoint, { quantize: to });
  expect(distance(quantised.logits, plain.logits)).toBeLessThan(most);
  expect(distance(quantised.logits, plain.logits)).toBeGreaterThan(1e-4);
  const folder = path.join(temporaryFolder(), 'out');
  const written = await quantizeModel(checkpoint, folder, { to });
  // Of each of two blocks all matrices but ff_out; the table and the head.
  expect(written).toMatchObject({ folder, quantized: 2 * 6 + 2 });
  expect(written.bytesAfter).toBeLessThan(written.bytesBefore);
  const read = await logitsOf(folder);
  expect(read.logits).toEqual(quantised.logits);
  expect(read.plannerLogits).toEqual(quantised.plannerLogits);
  expect(read.info.weightBytes).toBe(quantised.info.weightBytes);
  expect(read.info.weightBytes).toBeLessThan(plain.info.weightBytes / 2);
  expect(read.storedDtype).toBe('mixed');
  const tensors = await readSafetensors(path.join(folder, 'model.safetensors'));
  expect(tensors.get('model.transformer.blocks.1.q_proj.weight')).toMatchObject(
    to === 'q8' ? { dtype: 'I8', shape: [64, 64] } : { dtype: 'U8', shape: [64, 32] },
  );
  expect(tensors.get('model.transformer.wte.weight_scale')).toMatchObject({ dtype: 'F16', shape: [48, 2] });
  expect(tensors.get('model.transformer.blocks.0.ff_out.weight')).toMatchObject({ dtype: 'BF16', shape: [64, 80] });
  // What is saved again is a model of plain numbers.
  const saved = temporaryFolder();
  {
    await using model = await loadModel(folder);
    await model.save(saved);
  }
  expect((await logitsOf(saved)).logits).toEqual(quantised.logits);
  await expect(quantizeModel(folder, path.join(temporaryFolder(), 'again'))).rejects.toThrow(/not quantised/);
  await expect(quantizeModel(checkpoint, folder)).rejects.toThrow(/new or empty folder/);
});

test.each([
  ['q8', 'Q8_0'],
  ['q4', 'IQ4_NL'],
  ['q4_0', 'Q4_0'],
] as const)('%s: a GGUF file holds the blocks that a folder does', async (to, type) => {
  const folder = path.join(temporaryFolder(), 'out');
  const file = path.join(temporaryFolder(), 'new', 'model.gguf');
  const inFolder = await quantizeModel(checkpoint, folder, { to });
  const seen: number[] = [];
  const written = await quantizeModel(checkpoint, file, { to, onProgress: ({ doneBytes }) => seen.push(doneBytes) });
  expect(written).toMatchObject({ folder: file, quantized: inFolder.quantized, tokenizer: false });
  expect(written.left).toBeGreaterThan(0);
  expect(seen.at(-1)).toBe(written.bytesBefore);
  const { metadata, tensors } = await readGguf(file);
  expect(metadata.get('general.architecture')).toBe('llada');
  expect(metadata.get('diffusion.shift_logits')).toBe(false);
  expect(tensors.get('blk.1.attn_q.weight')).toMatchObject({ dtype: type, shape: [64, 64] });
  expect(tensors.get('token_embd.weight')).toMatchObject({ dtype: 'Q8_0' });
  expect(tensors.get('blk.0.ffn_down.weight')).toMatchObject({ dtype: 'F32', shape: [64, 80] });
  const logits = async (source: string) => {
    await using model = await loadModel(source);
    return (await model.forward({ ids })).logits!;
  };
  expect(await logits(file)).toEqual(await logits(folder));
  await expect(quantizeModel(checkpoint, file, { to })).rejects.toThrow(/expected a new file, got/);
});

test('a model that a GGUF file cannot describe is refused, and nothing is written', async () => {
  const { folder } = makeCheckpoint({ config: { d_model: 64, n_heads: 4, include_qkv_bias: true } });
  const file = path.join(temporaryFolder(), 'model.gguf');
  await expect(quantizeModel(folder, file)).rejects.toThrow(/would say qkvBias false, the model has true/);
  expect(existsSync(file)).toBe(false);
});

test('codes of another kind are refused', async () => {
  const folder = path.join(temporaryFolder(), 'out');
  await quantizeModel(checkpoint, folder, { to: 'q4' });
  const config = path.join(folder, 'config.json');
  const text = readFileSync(config, 'utf8');
  expect(text).toContain('"codebook": "iq4_nl"');
  for (const [was, is, message] of [
    ['"iq4_nl"', '"nf4"', /quantization_config\.codebook: expected "iq4_nl" or null, got "nf4"/],
    ['"group_size": 32', '"group_size": 64', /quantization_config\.group_size: expected 32, got 64/],
    ['"symmetric": true', '"symmetric": false', /quantization_config\.symmetric: expected true, got false/],
  ] as const) {
    writeFileSync(config, text.replace(was, is));
    await expect(loadModel(folder)).rejects.toThrow(message);
  }
});

test('scales that do not fit their codes are refused', async () => {
  const folder = path.join(temporaryFolder(), 'out');
  await quantizeModel(checkpoint, folder);
  const file = path.join(folder, 'model.safetensors');
  const tensors = await readSafetensors(file);
  const name = 'model.transformer.blocks.0.q_proj.weight_scale';
  const scale = tensors.get(name)!;
  tensors.set(name, { dtype: 'F16', shape: [32, 4], data: scale.data });
  await writeSafetensors(file, tensors);
  await expect(loadModel(folder)).rejects.toThrow(
    /q_proj\.weight: expected .*_scale of type F16 and shape \[64, 2\], got/,
  );
  tensors.delete(name);
  await writeSafetensors(file, tensors);
  await expect(loadModel(folder)).rejects.toMatchObject({ code: 'BAD_CHECKPOINT' });
  const config = path.join(folder, 'config.json');
  writeFileSync(config, readFileSync(config, 'utf8').replace('"dultra"', '"awq"'));
  await expect(loadModel(folder)).rejects.toThrow(/quantization_config/);
});

test('a quantised model decides almost as its own, and a planner trains over it', async () => {
  await using model = await loadModel('word-problems');
  await using small = await loadModel('word-problems', { quantize: 'q8' });
  const prompts = ['tom has 3 apples . he buys 2 apples . how many apples has tom now ?'];
  const options = { maxTokens: 8, sampler: 'confidence:0.9' } as const;
  const same = await compareDecisions(model, model, prompts, options);
  expect(same).toMatchObject({ tokens: 8, differingTokens: 0, differingSteps: 0 });
  const compared = await compareDecisions(model, small, prompts, options);
  expect(compared.tokens).toBe(8);
  expect(compared.differingTokens).toBeLessThanOrEqual(1);
  const trainer = await small.createTrainer({ freezeBase: true });
  trainer.dispose();
  expect(small.info.weightBytes).toBeLessThan(model.info.weightBytes);
});

test('q4: the embedded model answers within two points, and decides alike in 95 of 100', async () => {
  await using model = await loadModel('word-problems', { threads: 1 });
  await using small = await loadModel('word-problems', { quantize: 'q4', threads: 1 });
  const options = { dataset: 'st1', samplers: ['planner'], count: 512 };
  const [plain, quantised] = [await evaluate(model, options), await evaluate(small, options)].map(
    ({ results }) => results[0].accuracy,
  );
  expect(plain).toBeGreaterThan(0.99);
  expect(quantised).toBeGreaterThanOrEqual(plain - 0.02);
  const task = datasets.byName('st1');
  const prompts = task.sample('test', 64, 0).map(({ prompt }) => prompt);
  const decoded = { sampler: 'planner', maxTokens: task.genLength, blockLength: task.blockLength } as const;
  const { tokens, differingTokens } = await compareDecisions(model, small, prompts, decoded);
  expect(tokens).toBe(64 * task.genLength);
  expect(differingTokens).toBeLessThanOrEqual(0.05 * tokens);
}, 240_000);

test('adapters that were trained over a quantised base are saved, and give the same bits on another copy of it', async () => {
  const outputDir = temporaryFolder();
  const options = { quantize: 'q4' } as const;
  const logits = async (model: MaskedDiffusionModel) => (await model.forward({ ids })).logits!;
  await using trained = await loadModel('word-problems', options);
  const before = await logits(trained);
  const stage = training.trainMaskedDiffusion(trained, {
    dataset: datasets.byName('st1'),
    maxSteps: 2,
    batchSize: 4,
    learningRate: 1e-2,
    lora: { rank: 2 },
    outputDir,
    saveEvery: 2,
  });
  for await (const metrics of stage) expect(Number.isFinite(metrics.loss)).toBe(true);
  const after = await logits(trained);
  expect(after).not.toEqual(before);
  // The base is still in blocks: nothing has become plain numbers.
  await using fresh = await loadModel('word-problems', options);
  expect(trained.info.weightBytes).toBe(fresh.info.weightBytes);
  const folder = path.join(outputDir, 'checkpoints', 'step-00000002', 'adapter');
  const adapter = await fresh.loadAdapter(folder);
  expect(await logits(fresh)).toEqual(after);
  await adapter.unmerge();
  expect(await logits(fresh)).toEqual(before);
  await adapter.merge();
  expect(await logits(fresh)).toEqual(after);
  adapter.dispose();
  // What is saved has them merged.
  const merged = temporaryFolder();
  await fresh.save(merged);
  await using plain = await loadModel(merged);
  expect(distance(await logits(plain), after)).toBeLessThan(1e-5);
});

test('dultra train --quantize: planned, begun and resumed over a base in blocks', () => {
  const cwd = temporaryFolder();
  const train = ['train', 'sft', '-d', 'st1', '-m', 'word-problems', '--set', 'lora={rank: 2}'];
  const small = [...train, '--quantize', 'q4'];
  const few = ['--max-steps', '1', '--batch-size', '2', '--set', 'saveEvery=1', '-o', 'run'];
  const [dry, plain, begun, resumed] = inOneProcess(
    [
      [...small, '--dry-run', '--json'],
      [...train, '--dry-run', '--json', '--device', 'cpu'],
      [...small, ...few],
      ['train', '--resume', 'run', '--max-steps', '2'],
    ],
    cwd,
  );
  const bytes = ({ stdout }: { stdout: string }, name: string): number =>
    (JSON.parse(stdout) as { plan: training.MemoryPlan }).plan.items.find((item) => item.name === name)!.bytes;
  expect(bytes(dry, 'weights')).toBeLessThan(0.5 * bytes(plain, 'weights'));
  expect(bytes(dry, 'masters')).toBeLessThan(0.5 * bytes(plain, 'masters'));
  expect([begun.code, resumed.code]).toEqual([0, 0]);
  expect(JSON.parse(readFileSync(path.join(cwd, 'run', 'train.json'), 'utf8'))).toMatchObject({
    load: { quantize: 'q4' },
  });
  const adapter = path.join(cwd, 'run', 'checkpoints', 'step-00000002', 'adapter');
  expect(existsSync(path.join(adapter, 'adapter_config.json'))).toBe(true);
});

test('dultra eval says how a quantised model differs from its own: decisions and perplexity of masked text', async () => {
  const dataset = datasets.byName('st1');
  const [{ code, stdout }] = inOneProcess([
    [
      ...['eval', '--models', 'word-problems,word-problems:q4', '-d', 'st1', '--count', '6'],
      ...['--samplers', 'confidence:0.9', '--json'],
    ],
  ]);
  expect(code).toBe(0);
  const examples = dataset.sample('test', 6, 0);
  const masked = examples.map(({ prompt, answer }) => ({ prompt, completion: answer! }));
  const expected = await Promise.all(
    [{}, { quantize: 'q4' as const }].map(async (options) => {
      await using model = await loadModel('word-problems', options);
      return await maskedPerplexity(model, masked, { seed: 0, fillTo: dataset.genLength });
    }),
  );
  const { decisions } = JSON.parse(stdout) as { decisions: Record<string, unknown>[] };
  expect(decisions).toMatchObject([
    {
      model: 'word-problems:q4',
      reference: 'word-problems',
      tokens: 6 * dataset.genLength,
      perplexity: { reference: expected[0], model: expected[1] },
    },
  ]);
  expect(expected[1]).not.toEqual(expected[0]);
});
