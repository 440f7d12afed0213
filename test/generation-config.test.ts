// generation_config.json: defaults of dultra's own, ends of a text, and settings of transformers that are not applied.
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadCausalModel, loadModel, parseSampler } from '../lib';
import { modelFolder, temporaryFolder, withoutPlanner, withTokenizer } from './helpers';

const prompt = { promptIds: [5, 17, 3] };

/** The golden model "base" with a generation_config.json. */
function withDefaults(json: unknown, from = modelFolder('base')): string {
  const folder = temporaryFolder();
  for (const file of ['config.json', 'model.safetensors']) copyFileSync(path.join(from, file), path.join(folder, file));
  writeFileSync(path.join(folder, 'generation_config.json'), JSON.stringify(json));
  return folder;
}

test('lengths and sampler are what generate does where it is told nothing', async () => {
  const sampler = { type: 'fixed', steps: 3 } as const;
  const model = await loadModel(withDefaults({ gen_length: 12, block_length: 12, sampler, eos_token_id: 5 }));
  expect(model.generationDefaults).toEqual({ maxTokens: 12, blockLength: 12, sampler });
  const result = await model.generate(prompt);
  expect(result.ids).toHaveLength(12);
  expect(await model.generate(prompt, { maxTokens: 12, blockLength: 12, sampler })).toEqual(result);
  // What the caller says comes first; a length of the caller's is not cut into the checkpoint's blocks.
  expect((await model.generate(prompt, { maxTokens: 7 })).ids).toHaveLength(7);
  expect((await model.generate(prompt, { sampler: { type: 'fixed' }, stopAtEos: false })).nfe).toBe(12);
  expect((await model.generate({ template: [5, 96, 96] }, { sampler: { type: 'fixed' } })).ids).toHaveLength(3);
  model.dispose();
});

test('without the file, and for a planner that is not there, the package decides', async () => {
  const plain = await loadModel(modelFolder('base'));
  expect(plain.generationDefaults).toEqual({});
  plain.dispose();
  const model = await loadModel(
    withDefaults({ gen_length: 8, sampler: { type: 'planner', select: 'round' } }, withoutPlanner('base')),
  );
  expect(model.generationDefaults).toEqual({ maxTokens: 8 });
  expect((await model.generate(prompt)).ids).toHaveLength(8);
  model.dispose();
});

test.each([
  [{ gen_length: 0 }, /gen_length: .*got 0/],
  [{ gen_length: 8, block_length: 3 }, /gen_length: expected a multiple of block_length \(3\), got 8/],
  [{ block_length: 3 }, /block_length: expected gen_length beside it/],
  [{ sampler: { type: 'planner', select: 'most' } }, /sampler\.select: expected "topk"/],
  [{ sampler: 'confidense:0.9' }, /sampler: expected planner, .*got "confidense:0\.9"/],
  [{ sampler: 'confidence:2' }, /sampler\.threshold: .*got 2/],
  [{ sampler: '' }, /sampler: expected planner, .*got ""/],
  [{ sampler: 3 }, /sampler: .*got 3/],
  [{ stop_strings: 3 }, /stop_strings: expected a text or a list of texts, none of them empty, got 3/],
  [{ stop_strings: ['###', ''] }, /stop_strings: .*got \["###",""\]/],
  [[], /generation_config\.json: .*got \[\]/],
  [
    { eos_token_id: 104 },
    /generation_config\.json: eos_token_id: expected an id below 104, a list of such ids, .* got 104/,
  ],
  [{ eos_token_id: [5, '6'] }, /generation_config\.json: eos_token_id: .*got \[5,"6"\]/],
  [{ eos_token_id: -3 }, /generation_config\.json: eos_token_id: .*got -3/],
])('%j is a bad checkpoint', async (json, message) => {
  await expect(loadModel(withDefaults(json))).rejects.toMatchObject({
    code: 'BAD_CHECKPOINT',
    message: expect.stringMatching(message),
  });
});

test.each<[string, object]>([
  ['fixed:3', { type: 'fixed', steps: 3 }],
  ['planner:1.5', { type: 'planner', probabilityScale: 1.5 }],
  ['confidence', { type: 'confidence' }],
])('a sampler in short form, %s', async (short, sampler) => {
  const model = await loadModel(withDefaults({ gen_length: 12, sampler: short }));
  expect(model.generationDefaults).toEqual({ maxTokens: 12, sampler });
  expect(await model.generate(prompt)).toEqual(await model.generate(prompt, { sampler: short }));
  model.dispose();
  const plain = await loadModel(withDefaults({ sampler: short }, withoutPlanner('base')));
  expect(plain.generationDefaults).toEqual(short.startsWith('planner') ? {} : { sampler });
  plain.dispose();
});

test('stop strings are where texts end that are told nothing else', async () => {
  const from = withTokenizer();
  const plain = await loadModel(from, { threads: 1 });
  const settings = { maxTokens: 24, sampler: 'fixed', temperature: 1, seed: 4 } as const;
  const full = await plain.generate('abc', settings);
  const stop = full.text.slice(5, 7);
  const asked = await plain.generate('abc', { ...settings, stop });
  expect(asked.finishReason).toBe('stop');
  for (const stop_strings of [stop, ['nowhere', stop]]) {
    const folder = withDefaults({ stop_strings }, from);
    for (const file of ['tokenizer.json', 'tokenizer_config.json'])
      copyFileSync(path.join(from, file), path.join(folder, file));
    await using model = await loadModel(folder, { threads: 1 });
    expect(model.generationDefaults).toEqual({ stop: [stop_strings].flat() });
    expect(await model.generate('abc', settings)).toEqual(asked);
    let text = '';
    for await (const piece of model.textStream('abc', settings)) text += piece;
    expect(text).toBe(asked.text);
    // The caller's come first; templates and recorded runs have none.
    expect(await model.generate('abc', { ...settings, stop: [] })).toEqual(full);
    const { maxTokens: _, ...rest } = settings;
    const template = { template: 'abc{{20}}' };
    expect(await model.generate(template, rest)).toEqual(await plain.generate(template, rest));
    const recorded = { ...settings, research: { compat: 'reference' } } as const;
    expect(await model.generate('abc', recorded)).toEqual(await plain.generate('abc', recorded));
  }
  plain.dispose();
});

describe('ends of a text', () => {
  const causal = path.join(__dirname, 'fixtures', 'causal', 'qwen2');

  /** What the autoregressive model of the fixtures writes where config.json and generation_config.json name these ends. */
  async function written(own: unknown, other?: unknown) {
    const folder = temporaryFolder();
    copyFileSync(path.join(causal, 'model.safetensors'), path.join(folder, 'model.safetensors'));
    const config = JSON.parse(readFileSync(path.join(causal, 'config.json'), 'utf8'));
    writeFileSync(path.join(folder, 'config.json'), JSON.stringify({ ...config, eos_token_id: own }));
    if (other !== undefined) writeFileSync(path.join(folder, 'generation_config.json'), JSON.stringify(other));
    await using model = await loadCausalModel(folder, { threads: 1 });
    const [{ ids, finishReason }] = await model.generateBatch([{ promptIds: [5, 7, 9] }], { maxTokens: 10 });
    return { ids: Array.from(ids), finishReason, ends: model.config.eosTokenIds };
  }

  test('an autoregressive model stops at those of generation_config.json, else of config.json', async () => {
    const { ids, finishReason } = await written(null);
    expect({ length: ids.length, finishReason }).toEqual({ length: 10, finishReason: 'length' });
    const cut = (end: number) => ({ ids: ids.slice(0, ids.indexOf(end) + 1), finishReason: 'stop' });
    const [first, late] = [ids[2], ids.find((id, i) => i > 3 && !ids.slice(0, 4).includes(id))!];
    const unused = Array.from({ length: 71 }, (_, id) => id).find((id) => !ids.includes(id))!;
    expect(await written(first)).toMatchObject(cut(first));
    expect(await written([unused, first])).toMatchObject(cut(first));
    expect(await written(null, { eos_token_id: first })).toMatchObject(cut(first));
    expect(await written(unused, { eos_token_id: [late, unused] })).toMatchObject({
      ...cut(late),
      ends: [late, unused],
    });
    // In its place, not beside it.
    expect(await written(first, { eos_token_id: late })).toMatchObject(cut(late));
    expect(await written(first, { eos_token_id: -1 })).toMatchObject({ ids, finishReason: 'length', ends: [] });
    for (const silent of [{}, { eos_token_id: null }, { eos_token_id: [] }, { pad_token_id: late }])
      expect(await written(first, silent)).toMatchObject(cut(first));
  });

  test.each(['confidence:0.3', 'fixed', 'd3llm', 'planner'])(
    'a diffusion model stops at each of two, %s',
    async (sampler) => {
      const settings = { maxTokens: 24, blockLength: 4, sampler: parseSampler(sampler), temperature: 1, seed: 3 };
      const plain = await loadModel(withDefaults({ eos_token_id: -1 }), { threads: 1 });
      const { ids, finishReason } = await plain.generate(prompt, settings);
      plain.dispose();
      expect(finishReason).toBe('length');
      // Tokens of the second and third block that occur nowhere before.
      const fresh = (from: number) => {
        for (let i = from; i < ids.length; i++) if (ids.indexOf(ids[i]) === i) return ids[i];
        throw new Error('every token occurs twice');
      };
      const [one, two] = [fresh(4), fresh(9)];
      for (const ends of [[two], [one, two], [two, one], [one]]) {
        await using model = await loadModel(withDefaults({ eos_token_id: ends }), { threads: 1 });
        expect(model.config).toMatchObject({ eosTokenIds: ends, eosTokenId: 95 });
        const result = await model.generate(prompt, settings);
        const end = ends.includes(one) ? one : two;
        expect(result).toMatchObject({ finishReason: 'stop', tokens: ids.indexOf(end) + 1 });
        expect(result.ids.slice(0, result.tokens)).toEqual(ids.slice(0, result.tokens));
        expect(result.nfe).toBeLessThan(24);
      }
    },
  );

  test('a checkpoint that is saved keeps its ends', async () => {
    const target = temporaryFolder();
    await using model = await loadModel(withDefaults({ eos_token_id: [7, 9] }), { threads: 1 });
    await model.save(target);
    expect(JSON.parse(readFileSync(path.join(target, 'config.json'), 'utf8')).eos_token_id).toBe(95);
    await using copy = await loadModel(target, { threads: 1 });
    expect(copy.config).toEqual(model.config);
  });
});

describe('settings of transformers', () => {
  const warningsOf = async (json: object, folder = withDefaults(json)) => {
    const spy = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
    try {
      for (let time = 0; time < 2; time++) (await loadModel(folder, { threads: 1 })).dispose();
      return spy.mock.calls
        .filter(([, options]) => (options as { code?: string } | undefined)?.code === 'DULTRA_NOT_APPLIED')
        .map(([message]) => String(message));
    } finally {
      spy.mockRestore();
    }
  };

  test('what options say, what is off, and bookkeeping pass without a word', async () => {
    const quiet = {
      _from_model_config: true,
      bos_token_id: 94,
      eos_token_id: 95,
      pad_token_id: -1,
      do_sample: true,
      temperature: 0.6,
      top_p: 0.9,
      top_k: 20,
      min_p: 0,
      max_length: 4096,
      max_new_tokens: 512,
      repetition_penalty: 1.0,
      no_repeat_ngram_size: 0,
      num_beams: 1,
      suppress_tokens: null,
      bad_words_ids: [],
      cache_implementation: 'dynamic',
      num_assistant_tokens: 20,
      transformers_version: '4.46.3',
      gen_length: 8,
    };
    expect(await warningsOf(quiet)).toEqual([]);
  });

  test.each<[string, unknown, string]>([
    ['repetition_penalty', 1.05, '1.05'],
    ['suppress_tokens', [1, 2], '[1,2]'],
    ['bad_words_ids', [[5, 6]], 'an array of 1'],
    ['no_repeat_ngram_size', 3, '3'],
    ['num_beams', 4, '4'],
    ['forced_eos_token_id', 5, '5'],
    ['min_new_tokens', 16, '16'],
    ['sequence_bias', { '[1]': 2 }, 'an object'],
    ['guidance_scale', 1.5, '1.5'],
    ['stop_strings', ['###'], '["###"]'],
    ['alg', 'entropy', '"entropy"'],
    ['constructor', 3, '3'],
  ])('%s is named once', async (key, value, shown) => {
    const [warning, ...more] = await warningsOf({ [key]: value, temperature: 0.5 });
    expect(warning).toMatch(/generation_config\.json: not applied: /);
    expect(warning.endsWith(`: not applied: ${key} (${shown})`)).toBe(true);
    expect(more).toEqual([]);
  });

  test('without the file, config.json is where older versions say them', async () => {
    const folder = temporaryFolder();
    const from = modelFolder('base');
    copyFileSync(path.join(from, 'model.safetensors'), path.join(folder, 'model.safetensors'));
    const config = JSON.parse(readFileSync(path.join(from, 'config.json'), 'utf8'));
    const old = { repetition_penalty: 1.2, suppress_tokens: [3], num_beams: 1, temperature: 0.9, min_length: 0 };
    writeFileSync(path.join(folder, 'config.json'), JSON.stringify({ ...config, ...old }));
    expect(await warningsOf({}, folder)).toEqual([
      expect.stringMatching(/config\.json: not applied: repetition_penalty \(1\.2\), suppress_tokens \(\[3\]\)$/),
    ]);
  });
});
