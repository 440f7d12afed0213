// Checking a checkpoint of any family: tensors, a fixed text, completions.
import path from 'node:path';
import { createModel, loadModel, type Verification, verifyModel } from '../lib';
import { NEW_FAMILIES } from '../lib/model/families';
import { inOneProcess } from './command-line';
import { modelFolder, readTensors, temporaryFolder, variant, withTokenizer } from './helpers';
import { newModelFolder } from './trained-models';

describe.each(NEW_FAMILIES)('%s', (family) => {
  test('a new model: every tensor is used, and the text is about as likely as chance', async () => {
    const folder = await newModelFolder({ family });
    const found = await verifyModel(folder, { threads: 1, maxTokens: 8 });
    const { tensors, text, completions } = found;
    expect(found).toMatchObject({ source: folder, kind: 'diffusion', family });
    expect(tensors).toEqual({
      used: Object.keys(readTensors(path.join(folder, 'model.safetensors'))).length,
      unused: [],
    });
    expect(text.perplexity).toBeCloseTo(Math.exp(text.nats), 6);
    expect(Math.abs(text.nats - text.chance)).toBeLessThan(6);
    expect(completions).toHaveLength(3);
    for (const { prompt, tokens, nfe } of completions) {
      expect(prompt).toMatch(/\w/);
      // Rows of models that attend by blocks end with one, of 32 positions at most here.
      expect(tokens).toBeLessThan(8 + 32);
      expect(nfe).toBeGreaterThan(0);
    }
    expect(found.problems.filter((problem) => !/likelier than chance/.test(problem))).toEqual([]);
    // The same numbers again, on any number of threads.
    const again = await verifyModel(folder, { threads: 3, maxTokens: 8 });
    expect(again.text).toEqual(text);
    expect(again.completions.map(({ ids }) => ids)).toEqual(completions.map(({ ids }) => ids));
  });
});

test.each(['lladamoe', 'lladamoe_b', 'llada2', 'llada2_b', 'dream_gqa', 'sdar_tied', 'fastdllm2'])(
  '%s: every tensor of a checkpoint in the layout of its own code is used',
  async (name) => {
    // Their config.json names no mask; any id will do here.
    const named = /^(llada|fast)/.test(name) ? { maskTokenId: 89 } : {};
    const { tensors, problems } = await verifyModel(modelFolder(name), { threads: 1, maxTokens: 8, ...named });
    expect(tensors.unused).toEqual([]);
    expect(problems.filter((problem) => !/likelier than chance/.test(problem))).toEqual([]);
  },
);

test('the bound of a model that attends by blocks is that of its blocks behind clean ones', async () => {
  // By blocks of one position the bound is the likelihood itself: each token from those before it.
  const folder = path.join(temporaryFolder(), 'model');
  await createModel(folder, {
    family: 'sdar',
    blockLength: 1,
    vocabulary: ['a', 'b'],
    dModel: 16,
    nHeads: 2,
    nLayers: 1,
  });
  const { text } = await verifyModel(folder, { threads: 1, maxTokens: 2 });
  await using model = await loadModel(folder, { threads: 1 });
  const { maskTokenId, embeddingSize: v } = model.config;
  const ids = model.tokenizer!.encode(
    'The ferry leaves the harbour at nine in the morning and reaches the island an hour later. Most people carry ' +
      'bread, water and a warm coat, because the wind on the cliffs is cold even in summer. In the evening the same ' +
      'boat brings them back, tired and content, and the lights of the town grow larger on the water.',
    { addSpecialTokens: false },
  );
  let nats = 0;
  for (let i = 0; i < ids.length; i++) {
    const row = [...ids.slice(0, i), maskTokenId];
    const { logits } = await model.forward({ ids: row, rowOffsets: [0, row.length] });
    const scores = Array.from(logits!.slice(i * v)).map((x, id) => (id === maskTokenId ? Number.NEGATIVE_INFINITY : x));
    const top = Math.max(...scores);
    nats += top + Math.log(scores.reduce((sum, x) => sum + Math.exp(x - top), 0)) - scores[ids[i]];
  }
  expect(text.tokens).toBe(ids.length);
  expect(text.nats).toBeCloseTo(nats / ids.length, 4);
});

test('an autoregressive model, without a tokenizer', async () => {
  const found = await verifyModel(path.join(__dirname, 'fixtures', 'causal', 'qwen2'), { threads: 1, maxTokens: 4 });
  expect(found).toMatchObject({ kind: 'autoregressive', family: 'qwen2', tensors: { unused: [] } });
  expect(found.completions).toHaveLength(1);
  expect(found.completions[0]).toMatchObject({ prompt: null, text: null });
  expect(found.nfe).toBe(found.completions[0].ids.length);
});

test('tensors that are not used are named', async () => {
  const folder = variant('sdar', {
    tensors: (tensors) => {
      tensors['model.visual.weight'] = tensors['model.norm.weight'];
    },
  });
  const { tensors, problems } = await verifyModel(folder, { threads: 1, maxTokens: 4 });
  expect(tensors.unused).toEqual(['model.visual.weight']);
  expect(problems).toContain('1 tensors of the files are not used');
});

test('on the command line: a table with a block for an issue, or JSON; 1 where something is wrong', async () => {
  const [run, json, none, missing] = inOneProcess([
    ['verify', modelFolder('base'), '--max-tokens', '8', '--threads', '1'],
    ['verify', withTokenizer(128), '--max-tokens', '8', '--json', '-q'],
    ['verify', path.join(temporaryFolder(), 'none')],
    ['verify'],
  ]);
  expect(run.stdout).toMatch(/tensors\s+\d+ used, all of the files/);
  expect(run.stdout).toMatch(/text\s+\d+ tokens: bound on the perplexity/);
  expect(run.stdout).toMatch(/```text\ndultra: [\s\S]*problems: [\s\S]*```/);
  expect(run.stdout.slice(run.stdout.indexOf('```'))).not.toContain(modelFolder('base'));
  const { verification } = JSON.parse(json.stdout) as { verification: Verification };
  expect(verification.completions).toHaveLength(3);
  expect(json.code).toBe(verification.problems.length > 0 ? 1 : 0);
  expect(none).toMatchObject({ code: 1, stdout: '' });
  expect(none.stderr).toMatch(/no such folder/);
  expect(missing).toMatchObject({ code: 2, stdout: '' });
});
