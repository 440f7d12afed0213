// Streams: the text that is final, what it grows by, and tokens as text.
import { loadModel, type MaskedDiffusionModel, type Prompt, type StreamEvent } from '../lib';
import type { GeneratingModel, PreparedRow } from '../lib/generation/prepare';
import { RowStream } from '../lib/generation/stream';
import { Tokenizer } from '../lib/model/tokenizer';
import { makeCheckpoint, random } from './checkpoints';
import { byteLevelTokenizer, EOS_TOKEN, MASK_TOKEN, wordTokenizer, writeTokenizer } from './tokenizers';

const byteLevel = byteLevelTokenizer();
const MASK = byteLevel.ids[MASK_TOKEN];
const EOS = byteLevel.ids[EOS_TOKEN];

/** A tokenizer of bytes that are written as <0xE6>, as SentencePiece has for what it does not know. */
const fallback = (decoders: object[]) => {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`);
  const vocab = Object.fromEntries([...bytes, '▁a', 'b', '▁'].map((token, id) => [token, id]));
  return {
    version: '1.0',
    model: { type: 'BPE', byte_fallback: true, vocab, merges: [] },
    decoder: { type: 'Sequence', decoders },
  };
};
const replace = { type: 'Replace', pattern: { String: '▁' }, content: ' ' };
const strip = { type: 'Strip', content: ' ', start: 1, stop: 0 };
const words = ['do', "n't", "'", 's', 've', ',', '.', 'it', "'s", 'x'];

const tokenizers: Record<string, Tokenizer> = {
  bytes: new Tokenizer(byteLevel.tokenizer, {}, null, MASK, ''),
  words: new Tokenizer(wordTokenizer(words, null), {}, null, 99, ''),
  'words, cleaned up': new Tokenizer(
    wordTokenizer(words, null),
    { clean_up_tokenization_spaces: true } as never,
    null,
    99,
    '',
  ),
  fallback: new Tokenizer(fallback([replace, { type: 'ByteFallback' }, { type: 'Fuse' }, strip]), {}, null, 999, ''),
  'a decoder that may change all of it': new Tokenizer(
    fallback([{ type: 'Fuse' }, { type: 'Replace', pattern: { Regex: 'bb+' }, content: 'c' }]),
    {},
    null,
    999,
    '',
  ),
};

/** Events of a row whose positions are decided in the order that is given, several a step. */
function play(tokenizer: Tokenizer, ids: number[], steps: number[][]): StreamEvent[] {
  const mask = 1000;
  const model = { tokenizer, config: { maskTokenId: mask, eosTokenIds: [EOS] } } as unknown as GeneratingModel;
  const stream = new RowStream(model, { begin: 0, isTemplate: true } as PreparedRow);
  const row = new Int32Array(ids.length).fill(mask);
  return steps.map((chosen, step) => {
    const positions = Int32Array.from([...chosen].sort((a, b) => a - b));
    for (const position of positions) row[position] = ids[position];
    const last = step === steps.length - 1;
    const part = {
      positions,
      tokens: positions.map((position) => ids[position]),
      confidences: new Float32Array(positions.length).fill(0.5),
      step: step + 1,
      ids: row.slice(),
      settled: row.includes(mask) ? row.indexOf(mask) : row.length,
    };
    const result = last ? { text: tokenizer.decode(ids, { skipSpecialTokens: true }) } : null;
    return stream.event(part, result as never);
  });
}

/** Random steps that decide `length` positions. */
function randomSteps(length: number, next: () => number): number[][] {
  const order = Array.from({ length }, (_, i) => i);
  for (let i = length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  const steps: number[][] = [];
  while (order.length > 0) steps.push(order.splice(0, 1 + Math.floor(next() * 3)));
  return steps;
}

const TEXT = 'naïve é日本🚀 ok, Ωя🚀🚀';

test('bytes from left to right: whole characters, as soon as their last byte is there', () => {
  const ids = tokenizers.bytes.encode(TEXT);
  const events = play(
    tokenizers.bytes,
    ids,
    ids.map((_, i) => [i]),
  );
  expect(events.map(({ delta }) => delta).filter((delta) => delta !== '')).toEqual([...TEXT]);
  expect(events.map(({ unmasked }) => unmasked[0].text)).toEqual(events.map(({ delta }) => delta));
  expect(events.map(({ step }) => step)).toEqual(ids.map((_, i) => i + 1));
});

test('bytes in any order: each character once, with the byte that completes it', () => {
  const ids = tokenizers.bytes.encode(TEXT);
  for (let seed = 0; seed < 50; seed++) {
    const events = play(tokenizers.bytes, ids, randomSteps(ids.length, random(seed)));
    const pieces = events.flatMap(({ unmasked }) => unmasked.map(({ text }) => text));
    expect([...pieces.join('')].sort()).toEqual([...TEXT].sort());
  }
});

test.each(Object.entries(tokenizers))('%s: deltas add up, whatever the tokens and their order', (_name, tokenizer) => {
  let early = 0;
  for (let seed = 0; seed < 300; seed++) {
    const next = random(seed);
    const ids = Array.from({ length: 12 }, () => {
      // Bytes of characters of two to four bytes in particular, right and wrong ones.
      const [begin, size] =
        next() < 0.5 ? [Math.max(0, tokenizer.size - 8), Math.min(8, tokenizer.size)] : [0, tokenizer.size];
      return begin + Math.floor(next() * size);
    });
    const leftToRight = ids.map((_, i) => [i]);
    for (const steps of [leftToRight, randomSteps(ids.length, next)]) {
      const events = play(tokenizer, ids, steps);
      let text = '';
      for (const event of events) {
        text += event.delta;
        expect(event.text).toBe(text);
        if (event.result === null) {
          expect(event.delta).not.toMatch(/\ufffd$/);
          early += event.delta.length;
        }
      }
      expect(text).toBe(tokenizer.decode(ids, { skipSpecialTokens: true }));
    }
  }
  expect(early > 0).toBe(!_name.startsWith('a decoder'));
});

test('bytes that SentencePiece falls back on wait for the token behind them', () => {
  const ids = [256, ...Buffer.from('é日'), 257];
  const events = play(
    tokenizers.fallback,
    ids,
    ids.map((_, i) => [i]),
  );
  expect(events.map(({ delta }) => delta)).toEqual(['a', '', '', '', '', '', 'é日b']);
});

test('words: a space between two of them, known or not', () => {
  const ids = tokenizers.words.encode('it do x , it');
  const events = play(tokenizers.words, ids, [[1], [0], [3, 4], [2]]);
  expect(events.map(({ unmasked }) => unmasked.map(({ text }) => text))).toEqual([
    [' do'],
    ['it'],
    [' ,', ' it'],
    [' x'],
  ]);
  expect(events.map(({ delta }) => delta)).toEqual(['', 'it do', '', ' x , it']);
});

describe('a model', () => {
  let model: MaskedDiffusionModel;
  beforeAll(async () => {
    const { folder } = makeCheckpoint({
      config: {
        vocab_size: byteLevel.size,
        embedding_size: byteLevel.size + 3,
        mask_token_id: MASK,
        eos_token_id: EOS,
        max_sequence_length: 200,
      },
    });
    writeTokenizer(folder, byteLevel.tokenizer, byteLevel.config);
    model = await loadModel(folder, { threads: 1 });
  });
  afterAll(() => model.dispose());

  /** The text of a stream, with what every stream keeps checked. */
  async function read(prompt: Prompt, options: object): Promise<{ events: StreamEvent[]; text: string }> {
    const events: StreamEvent[] = [];
    for await (const event of model.generateStream(prompt, options)) events.push(event);
    const { result } = events.at(-1)!;
    const text = events.map(({ delta }) => delta).join('');
    expect(text).toBe(result!.text);
    expect(events.at(-1)!.text).toBe(text);
    const pieces: string[] = [];
    for await (const piece of model.textStream(prompt, options)) pieces.push(piece);
    expect(pieces.join('')).toBe(text);
    expect(pieces).not.toContain('');
    return { events, text };
  }

  test('what it streams is the text of the result, also where it stops at an end of sequence', async () => {
    let ended = 0;
    for (let seed = 0; seed < 30; seed++) {
      const options = { maxTokens: 48, blockLength: 8, temperature: 1e3, seed, sampler: { type: 'fixed', steps: 24 } };
      const { events } = await read('naïve', options);
      const { result } = events.at(-1)!;
      if (result!.finishReason === 'stop') ended++;
    }
    expect(ended).toBeGreaterThan(0);
  });

  test('a template begins with what is given', async () => {
    const template = [...Buffer.from('日本 '), MASK, MASK, ...Buffer.from('🚀'), MASK];
    const { events, text } = await read(
      { template },
      { sampler: { type: 'fixed', steps: 3 }, temperature: 1, seed: 5 },
    );
    expect(text.startsWith('日本 ')).toBe(true);
    expect(events[0].text.startsWith('日本 ')).toBe(true);
  });

  test('JSON of an event: plain numbers and arrays, no ids, and small', async () => {
    const { events } = await read('hello', { maxTokens: 64, sampler: { type: 'fixed' } });
    for (const event of events.slice(0, -1)) {
      const json = JSON.stringify(event);
      expect(json.length).toBeLessThan(300 + JSON.stringify(event.text).length);
      expect(Object.keys(JSON.parse(json))).toEqual(['step', 'text', 'delta', 'unmasked', 'remaining', 'result']);
    }
    const { result } = events.at(-1)!;
    const json = JSON.parse(JSON.stringify(events.at(-1)));
    expect(json.result.ids).toEqual(Array.from(result!.ids));
    expect(json.result.unmaskedAt).toEqual(Array.from(result!.unmaskedAt));
    expect(json.result.text).toBe(result!.text);
    expect(events[3].ids).toBeInstanceOf(Int32Array);
  });
});
