// The sampler that also changes decided tokens, on a model that attends by blocks. That its decisions are the
// reference's, test/golden.test.ts says.
import { copyFileSync } from 'node:fs';
import path from 'node:path';
import { type DenoiseRow, type EditingSampler, loadModel, type MaskedDiffusionModel, parseSampler } from '../lib';
import { modelFolder, variant, withTokenizer } from './helpers';

const BLOCK = 8;
const MASK = 97;
const load = { threads: 1, maskTokenId: MASK, blockLength: BLOCK };
let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(modelFolder('llada2'), load);
});
afterAll(() => model.dispose());

const PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
const sampler: EditingSampler = { type: 'editing', threshold: 0.35, editingThreshold: 0.3 };

async function passes(options: object, prompt: object = { promptIds: PROMPT }): Promise<DenoiseRow[]> {
  const steps: DenoiseRow[] = [];
  const settings = { sampler, stopAtEos: false, ...options };
  for await (const { rows } of model.denoise([prompt as never], settings)) steps.push(rows[0]);
  return steps;
}

test('decided tokens of the current block change, given ones and finished blocks do not', async () => {
  const steps = await passes({ maxTokens: 22 });
  let edits = 0;
  let before = [...PROMPT, ...new Array(22).fill(MASK)];
  let finished = 0;
  for (const { ids, block, positions, selected, tokens } of steps) {
    const start = BLOCK * (block + 1);
    expect(start).toBeGreaterThanOrEqual(finished);
    finished = start;
    ids.forEach((id, i) => {
      if (id === before[i]) return;
      expect(i).toBeGreaterThanOrEqual(Math.max(start, PROMPT.length));
      expect(i).toBeLessThan(start + BLOCK);
      expect([selected[positions.indexOf(i)], tokens[positions.indexOf(i)]]).toEqual([1, id]);
      edits += Number(before[i] !== MASK);
    });
    before = Array.from(ids);
  }
  expect(edits).toBeGreaterThan(0);
  expect(before).not.toContain(MASK);
});

test('with thresholds of 1 a pass decides so many, and one more confirms the block', async () => {
  const rule = { ...sampler, threshold: 1, editingThreshold: 1, numToTransfer: 3 };
  const count = async (more: object) =>
    (await passes({ maxTokens: 6, sampler: { ...rule, ...more } })).map(({ selected }) =>
      selected.reduce((sum, one) => sum + one, 0),
    );
  expect(await count({})).toEqual([3, 3, 0]);
  // No pass may begin without a mask.
  expect(await count({ maxPostSteps: 0 })).toEqual([3, 3]);
  const { nfe } = await model.generate({ promptIds: PROMPT }, { maxTokens: 6, sampler: rule, stopAtEos: false });
  expect(nfe).toBe(3);
});

test.each([0, 1, 4])('at most %i passes of a block begin without a mask', async (maxPostSteps) => {
  // Every token that is predicted replaces the one that is there.
  const steps = await passes({
    maxTokens: 22,
    sampler: { ...sampler, editingThreshold: 0, maxPostSteps },
    temperature: 1,
  });
  const without = new Map<number, number>();
  let before = new Array(PROMPT.length + 22).fill(MASK);
  for (const { block, ids, positions } of steps) {
    const masks = positions.filter((p) => before[p] === MASK).length;
    if (masks === 0) without.set(block, (without.get(block) ?? 0) + 1);
    before = Array.from(ids);
  }
  expect(Math.max(0, ...without.values())).toBe(maxPostSteps);
});

test('the cache for blocks changes no bit, and rows of a batch are as they are alone', async () => {
  const prompts = [PROMPT, [20, 21], [30, 31, 32, 33, 34, 35, 36, 37]].map((promptIds) => ({ promptIds }));
  const options = { maxTokens: 16, sampler, temperature: 0.7, seed: 3 };
  const cached = await model.generateBatch(prompts, options);
  const plain = await model.generateBatch(prompts, { ...options, cache: { type: 'none' } });
  const what = ({ ids, unmaskedAt, nfe }: (typeof plain)[number]) => ({ ids, unmaskedAt, nfe });
  expect(cached.map(what)).toEqual(plain.map(what));
  for (const [i, prompt] of prompts.entries())
    expect(what(await model.generate(prompt, { ...options, research: { firstRow: i } }))).toEqual(what(plain[i]));
});

test('a template keeps what it gives, and masks of a prompt are filled in', async () => {
  const template = [5, MASK, 7, MASK, MASK, 9, 10, MASK, 11, 12, MASK, 14];
  const { ids } = await model.generate({ template }, { sampler });
  template.forEach((id, i) => {
    if (id === MASK) expect(ids[i]).not.toBe(MASK);
    else expect(ids[i]).toBe(id);
  });
  const steps = await passes({ maxTokens: 6 }, { promptIds: [5, MASK, ...PROMPT.slice(2)] });
  expect(steps.at(-1)!.ids).not.toContain(MASK);
});

test('a block that edits open again for ever ends with an error', async () => {
  // The mask token is drawn for every position, as its rows of the head outweigh all others in this seed or another.
  const run = passes({
    maxTokens: 22,
    sampler: { ...sampler, threshold: 1, editingThreshold: 0, maxPostSteps: 1000000 },
    research: { compat: 'reference' },
    temperature: 50,
  });
  await expect(run).rejects.toMatchObject({
    code: 'NO_PROGRESS',
    message: expect.stringMatching(/masks are left after 1000 passes/),
  });
});

test('where it does not apply', async () => {
  await using other = await loadModel(modelFolder('lladamoe'), { threads: 1, maskTokenId: MASK });
  await expect(other.generate({ promptIds: PROMPT }, { sampler })).rejects.toThrow(
    'sampler.type: expected another than "editing", which is for models that attend by blocks',
  );
  await expect(model.generate({ promptIds: PROMPT }, { sampler, cache: { type: 'dual' } })).rejects.toThrow(
    'cache.type: expected "blocks" or "none" with the sampler "editing", got "dual"',
  );
  for (const bad of [{ threshold: 2 }, { editingThreshold: -1 }, { maxPostSteps: 0.5 }, { numToTransfer: 0 }])
    await expect(model.generate({ promptIds: PROMPT }, { sampler: { ...sampler, ...bad } })).rejects.toThrow(
      RangeError,
    );
  expect(parseSampler('editing:0.7:editingThreshold=0.5:maxPostSteps=4:numToTransfer=2')).toEqual({
    type: 'editing',
    threshold: 0.7,
    editingThreshold: 0.5,
    maxPostSteps: 4,
    numToTransfer: 2,
  });
});

test('what is settled does not change: streams say only that, and stop strings are looked for there', async () => {
  const steps = await passes({ maxTokens: 22 });
  const last = steps[steps.length - 1].ids;
  for (const { ids, settled, finished } of steps) {
    expect(ids.slice(0, settled)).toEqual(last.slice(0, settled));
    if (!finished) expect(settled % BLOCK === 0 || settled === PROMPT.length).toBe(true);
  }
  const folder = variant('llada2', {});
  copyFileSync(path.join(withTokenizer(), 'tokenizer.json'), path.join(folder, 'tokenizer.json'));
  await using texts = await loadModel(folder, load);
  const options = { sampler, maxTokens: 22, stopAtEos: false };
  let length = 0;
  for (let first = 0; first < 12; first++) {
    const prompt = { promptIds: PROMPT.map((id, i) => (id * (first + 1) + i) % 90) };
    const streamed = async (more: object) => {
      let text = '';
      for await (const event of texts.generateStream(prompt, { ...options, ...more })) {
        text += event.delta;
        expect(event.text).toBe(text);
        if (event.result) expect(event.result.text).toBe(text);
      }
      return text;
    };
    const whole = await streamed({});
    length += whole.length;
    for (let i = 0; i + 2 <= whole.length; i += 3) {
      const stop = whole.slice(i, i + 2);
      const expected = whole.slice(0, whole.indexOf(stop));
      expect(await streamed({ stop })).toBe(expected);
      expect((await texts.generate(prompt, { ...options, stop })).text).toBe(expected);
    }
  }
  expect(length).toBeGreaterThan(40);
});
