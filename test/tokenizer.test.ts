import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel, type MaskedDiffusionModel, type Prompt } from '../lib';
import { makeCheckpoint } from './checkpoints';
import { byteLevelTokenizer, EOS_TOKEN, MASK_TOKEN, START_TOKEN, wordTokenizer, writeTokenizer } from './tokenizers';

const { tokenizer: json, config, size, ids: special } = byteLevelTokenizer();
const mask = special[MASK_TOKEN];
const eos = special[EOS_TOKEN];
/** A checkpoint that the byte-level tokenizer fits. */
const made = (change: { embedding?: number } = {}) =>
  makeCheckpoint({
    config: {
      vocab_size: change.embedding ?? size,
      embedding_size: change.embedding ?? size + 3,
      mask_token_id: mask,
      eos_token_id: eos,
      max_sequence_length: 200,
    },
  });

let model: MaskedDiffusionModel;
beforeAll(async () => {
  const { folder } = made();
  writeTokenizer(folder, json, config);
  model = await loadModel(folder);
});
afterAll(() => model.dispose());

const ascii = (text: string) => Array.from(Buffer.from(text));

describe('a byte-level tokenizer', () => {
  test('merges, bytes and special tokens', () => {
    const tokenizer = model.tokenizer!;
    expect(tokenizer.size).toBe(size);
    expect(tokenizer.encode('hello')).toEqual([259]);
    expect(tokenizer.encode('hello world!')).toEqual([259, 262, ...ascii('ld!')]);
    expect(tokenizer.encode('')).toEqual([]);
    expect(tokenizer.encode(`${START_TOKEN}hi${EOS_TOKEN}`)).toEqual([special[START_TOKEN], ...ascii('hi'), eos]);
    expect(tokenizer.tokenId(MASK_TOKEN)).toBe(mask);
    expect(tokenizer.tokenId('no such token')).toBeNull();
    expect(tokenizer.maskToken).toBe(MASK_TOKEN);
    expect(tokenizer.eosToken).toBe(EOS_TOKEN);
  });

  test.each(['hello world', ' two  spaces\n\ttab ', 'Grüße, 世界 🙂!', 'x'.repeat(500), '0 1.5 -3', '\u0000\u007f'])(
    '%j comes back',
    (text) => {
      const tokenizer = model.tokenizer!;
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    },
  );

  test('skips special tokens where that is asked for', () => {
    const tokenizer = model.tokenizer!;
    const ids = [special[START_TOKEN], ...ascii('ok'), mask, eos];
    expect(tokenizer.decode(ids)).toBe(`${START_TOKEN}ok${MASK_TOKEN}${EOS_TOKEN}`);
    expect(tokenizer.decode(Int32Array.from(ids), { skipSpecialTokens: true })).toBe('ok');
    expect(tokenizer.decode([])).toBe('');
    // Half a character is not a character, and ids beyond the vocabulary are nothing.
    expect(tokenizer.decode([0xe4, 0xb8])).toBe('\ufffd');
    expect(typeof tokenizer.decode([size + 1])).toBe('string');
  });

  test('the template of chat messages', async () => {
    const messages = [
      { role: 'system', content: 'be brief' },
      { role: 'user', content: 'hello' },
    ];
    const text = `${START_TOKEN}system: be brief\n${START_TOKEN}user: hello\n`;
    expect(model.tokenizer!.applyChatTemplate(messages, { addGenerationPrompt: false })).toBe(text);
    const { promptIds } = await model.generate(messages, { genLength: 4 });
    expect(Array.from(promptIds)).toEqual(model.tokenizer!.encode(`${text}${START_TOKEN}assistant: `));
  });

  test('prompts of text', async () => {
    const options = { genLength: 8, sampler: { type: 'fixed' as const }, stopAtEos: false };
    const result = await model.generate('hello world', options);
    expect(Array.from(result.promptIds)).toEqual([259, 262, ...ascii('ld')]);
    expect(result).toEqual(await model.generate({ promptIds: result.promptIds }, options));
    const end = result.ids.indexOf(eos);
    const shown = Array.from(end < 0 ? result.ids : result.ids.slice(0, end));
    expect(result.text).toBe(model.tokenizer!.decode(shown, { skipSpecialTokens: true }));
  });

  test('templates of text: what is between the masks stays', async () => {
    const template = `hello${MASK_TOKEN}${MASK_TOKEN} world${MASK_TOKEN}`;
    const before = model.tokenizer!.encode(template);
    expect(before.filter((id) => id === mask)).toHaveLength(3);
    const result = await model.generate({ template }, { sampler: { type: 'fixed', steps: 3 } });
    expect(result.ids).toHaveLength(before.length);
    before.forEach((id, i) => {
      if (id === mask) expect(result.ids[i]).not.toBe(mask);
      else expect(result.ids[i]).toBe(id);
    });
    expect(result.text).toBe(model.tokenizer!.decode(result.ids, { skipSpecialTokens: true }));
    await expect(model.generate({ template: 'hello' })).rejects.toThrow(/at least one mask token/);
  });

  test('a stream says its tokens in text', async () => {
    let text = '';
    for await (const event of model.generateStream('hello', { genLength: 6, blockLength: 1, stopAtEos: false }))
      for (const { token, text: piece } of event.unmasked) {
        expect(piece).toBe(model.tokenizer!.decode([token], { skipSpecialTokens: true }));
        text += piece;
      }
    expect(typeof text).toBe('string');
  });

  const wrong: [string, Prompt][] = [
    ['a message without content', [{ role: 'user' }] as never],
    ['a message that is null', [null] as never],
    ['content that is no text', [{ role: 'user', content: 5 }] as never],
    ['ids as a prompt', [1, 2, 3] as never],
  ];
  test.each(wrong)('%s is refused', async (_name, prompt) => {
    await expect(model.generate(prompt)).rejects.toThrow(TypeError);
  });
});

describe('files of a tokenizer', () => {
  /** Loads a checkpoint with these files put into its folder, and disposes it. */
  async function load<T>(
    write: (folder: string) => void,
    use: (model: MaskedDiffusionModel) => T | Promise<T>,
  ): Promise<T> {
    const { folder } = made();
    write(folder);
    const loaded = await loadModel(folder);
    try {
      return await use(loaded);
    } finally {
      loaded.dispose();
    }
  }

  test('none: ids alone', () =>
    load(
      () => {},
      async (loaded) => {
        expect(loaded.tokenizer).toBeNull();
        expect((await loaded.generate({ promptIds: [1, 2] }, { genLength: 4 })).text).toBe('');
        for (const prompt of ['text', [{ role: 'user', content: 'x' }], { template: `a${MASK_TOKEN}` }] as Prompt[])
          await expect(loaded.generate(prompt)).rejects.toMatchObject({ name: 'DUltraError', code: 'NO_TOKENIZER' });
      },
    ));

  test('tokenizer.json alone: no chat template', () =>
    load(
      (folder) => writeTokenizer(folder, json),
      async (loaded) => {
        expect(loaded.tokenizer!.hasChatTemplate).toBe(false);
        expect(loaded.tokenizer!.eosToken).toBeNull();
        await expect(loaded.generate([{ role: 'user', content: 'x' }])).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
        expect((await loaded.generate('hello', { genLength: 4 })).ids).toHaveLength(4);
      },
    ));

  test('chat_template.jinja goes before the template of tokenizer_config.json', () =>
    load(
      (folder) => {
        writeTokenizer(folder, json, config);
        writeFileSync(path.join(folder, 'chat_template.jinja'), '{{ messages | length }}');
      },
      (loaded) => expect(loaded.tokenizer!.applyChatTemplate([{ role: 'user', content: 'x' }])).toBe('1'),
    ));

  test('several named templates: "default"', () =>
    load(
      (folder) =>
        writeTokenizer(folder, json, {
          ...config,
          chat_template: [
            { name: 'tool_use', template: 'tools' },
            { name: 'default', template: 'plain' },
          ],
        }),
      (loaded) => expect(loaded.tokenizer!.applyChatTemplate([])).toBe('plain'),
    ));

  test('a template that does not render', () =>
    load(
      (folder) =>
        writeTokenizer(folder, json, { ...config, chat_template: "{{ raise_exception('no system prompt') }}" }),
      (loaded) =>
        expect(loaded.generate([{ role: 'user', content: 'x' }])).rejects.toMatchObject({
          code: 'BAD_CHECKPOINT',
          message: expect.stringMatching(/chat template does not render.*no system prompt/),
        }),
    ));

  test('a vocabulary of words, with and without a token for unknown ones', async () => {
    await load(
      (folder) => writeTokenizer(folder, wordTokenizer(['[UNK]', 'one', 'two'], '[UNK]'), {}),
      (loaded) => expect(loaded.tokenizer!.encode('Two one three')).toEqual([2, 1, 0]),
    );
    await load(
      (folder) => writeTokenizer(folder, wordTokenizer(['one', 'two'], null), {}),
      async (loaded) => {
        expect(loaded.tokenizer!.encode('two')).toEqual([1]);
        // Not id 0, which is what an undefined id would become in an Int32Array.
        await expect(loaded.generate('two three')).rejects.toMatchObject({
          code: 'BAD_CHECKPOINT',
          message: expect.stringMatching(/no token for/),
        });
      },
    );
  });

  const broken: [string, (folder: string) => void, RegExp][] = [
    [
      'not JSON',
      (folder) => writeFileSync(path.join(folder, 'tokenizer.json'), '{"model": '),
      /tokenizer\.json: not JSON/,
    ],
    ['empty', (folder) => writeFileSync(path.join(folder, 'tokenizer.json'), ''), /tokenizer\.json: not JSON/],
    ['an array', (folder) => writeTokenizer(folder, []), /tokenizer\.json: expected a JSON object/],
    ['null', (folder) => writeTokenizer(folder, null), /tokenizer\.json: expected a JSON object/],
    ['without a model', (folder) => writeTokenizer(folder, { version: '1.0' }), /tokenizer\.json: /],
    [
      'of an unknown kind',
      (folder) => writeTokenizer(folder, { ...json, model: { type: 'Magic' } }),
      /tokenizer\.json: /,
    ],
    ['a folder', (folder) => mkdirSync(path.join(folder, 'tokenizer.json')), /tokenizer\.json: expected a file/],
    [
      'ids that are none',
      (folder) =>
        writeTokenizer(
          folder,
          { ...wordTokenizer(['a'], null), model: { type: 'WordLevel', vocab: { a: -1 }, unk_token: null } },
          {},
        ),
      /non-negative integer id, got -1/,
    ],
    [
      'an added token of an id far away',
      (folder) => writeTokenizer(folder, { ...json, added_tokens: [{ id: 4e9, content: 'far', special: true }] }),
      /"far" has id 4000000000/,
    ],
    [
      'more ids than the model',
      (folder) =>
        writeTokenizer(
          folder,
          { ...wordTokenizer([], null), model: { type: 'WordLevel', vocab: { a: size + 3 }, unk_token: null } },
          {},
        ),
      new RegExp(`"a" has id ${size + 3}, the model's tables have ${size + 3} rows`),
    ],
    [
      'a config that is not JSON',
      (folder) => {
        writeTokenizer(folder, json);
        writeFileSync(path.join(folder, 'tokenizer_config.json'), 'x');
      },
      /tokenizer_config\.json: not JSON/,
    ],
    [
      'a config that is a list',
      (folder) => writeTokenizer(folder, json, [1]),
      /tokenizer_config\.json: expected a JSON object/,
    ],
  ];
  test.each(broken)('%s is refused', async (_name, write, message) => {
    await expect(load(write, () => {})).rejects.toMatchObject({
      name: 'DUltraError',
      code: 'BAD_CHECKPOINT',
      message: expect.stringMatching(message),
    });
  });
});
