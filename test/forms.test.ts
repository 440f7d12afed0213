// Forms: texts with slots, tokenised together.
import path from 'node:path';
import { createModel, datasets, loadModel, type MaskedDiffusionModel, trainTokenizer } from '../lib';
import { modelFolder, temporaryFolder } from './helpers';

const world = datasets.world();
const drawn = world.sample('train', 1500, 1, { form: 1 });

let model: MaskedDiffusionModel;
beforeAll(async () => {
  const folder = temporaryFolder();
  const texts = drawn.flatMap(({ prompt, answer }) => [JSON.stringify(prompt), answer]);
  await trainTokenizer(path.join(folder, 'tokenizer'), texts, { vocabSize: 700 });
  const tokenizer = path.join(folder, 'tokenizer');
  await createModel(path.join(folder, 'model'), {
    tokenizer,
    dModel: 16,
    nHeads: 2,
    nLayers: 1,
    maxSequenceLength: 96,
  });
  model = await loadModel(path.join(folder, 'model'), { threads: 1 });
});
afterAll(() => model.dispose());
const encode = (text: string) => model.tokenizer!.encode(text, { addSpecialTokens: false });

test('slots are filled, texts and the end of sequence stay, and the text is the form', async () => {
  const form = ['{"name":"', 4, ',"count":', 2, '}'];
  const prompt = 'Fill in the form: 3 mugs for Anna';
  const result = await model.generate({ prompt, form }, { sampler: { type: 'fixed', steps: 3 } });
  expect(result.promptIds).toEqual(model.encodePrompt(prompt));
  const [head, middle, end] = [form[0], form[2], form[4]].map((text) => encode(text as string));
  const ids = [...result.ids];
  expect(ids).toHaveLength(head.length + 4 + middle.length + 2 + end.length + 1);
  expect(ids.slice(0, head.length)).toEqual(head);
  expect(ids.slice(head.length + 4, head.length + 4 + middle.length)).toEqual(middle);
  expect(ids.slice(-end.length - 1)).toEqual([...end, model.config.eosTokenId]);
  expect(ids).not.toContain(model.config.maskTokenId);
  expect(result.unmaskedAt.filter((step) => step > 0)).toHaveLength(6);
  expect(result.text.startsWith('{"name":"')).toBe(true);
  expect(result.text).not.toContain('<|');
  // The same through token ids.
  const again = { prompt: { promptIds: model.encodePrompt(prompt) }, form };
  expect((await model.generate(again, { sampler: { type: 'fixed', steps: 3 } })).ids).toEqual(result.ids);
});

test('the tokens of a form of the world are those of its answer', () => {
  // What the model was trained on as one text is what slots and texts are encoded to apart.
  for (const { answer, meta } of drawn.slice(0, 200)) {
    const { template } = meta as datasets.WorldMeta;
    let at = 0;
    const parts: string[] = [];
    for (const text of template!) {
      const begin = answer.indexOf(text, at);
      parts.push(answer.slice(at, begin), text);
      at = begin + text.length;
    }
    expect(parts.filter((text) => text !== '').flatMap(encode)).toEqual(encode(answer));
  }
});

test('forms are rows like others: alone or in a batch', async () => {
  const forms = [3, 7].map((width) => ({ prompt: 'Form: Anna', form: ['{"name":"', width, '}'] }));
  const batch = await model.generateBatch(forms, { sampler: { type: 'confidence', threshold: 0.9 } });
  for (const [i, form] of forms.entries())
    expect((await model.generate(form, { sampler: { type: 'confidence', threshold: 0.9 } })).ids).toEqual(batch[i].ids);
});

test('what is no form is refused', async () => {
  const refused = (form: unknown, message: RegExp) =>
    expect(model.generate({ prompt: 'Form:', form: form as string[] })).rejects.toThrow(message);
  await refused('text', /form/);
  await refused([], /at least one slot/);
  await refused(['a', 'b'], /at least one slot/);
  await refused(['a', 0], /form\[1\]/);
  await refused(['a', 2.5], /form\[1\]/);
  await refused(['a', null], /form\[1\]/);
  await refused(['<|mask|>', 2], /form\[0\].*no mask token/);
  await refused(['a', 95], /more than the model's maximum of 96/);
  const form = { prompt: 'Form:', form: ['a', 2] };
  await expect(model.generate(form, { maxTokens: 8 })).rejects.toThrow(/maxTokens: not allowed with a form/);
  await expect(model.generate({ ...form, template: 'a' } as never)).rejects.toThrow(/prompt/);
  await expect(model.generateBatch([form, 'text'])).rejects.toThrow(/only or none/);
  await expect(model.choose(form as never, ['a', 'b'])).rejects.toThrow(/prompt/);
  const plain = await loadModel(modelFolder('base'), { threads: 1 });
  await expect(plain.generate({ prompt: { promptIds: [1] }, form: ['a', 2] })).rejects.toMatchObject({
    code: 'NO_TOKENIZER',
  });
  expect((await plain.generate({ prompt: { promptIds: [1] }, form: [2] })).ids).toHaveLength(
    2 + Number(plain.config.eosTokenId !== null),
  );
  plain.dispose();
});
