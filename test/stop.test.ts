// Stop strings: where texts end, when rows are finished, and that streams and batches say the same.
import {
  type GenerateOptions,
  type GenerateResult,
  loadModel,
  type MaskedDiffusionModel,
  type StreamEvent,
} from '../lib';
import { makeCheckpoint, random } from './checkpoints';
import { modelFolder } from './helpers';
import { byteLevelTokenizer, EOS_TOKEN, MASK_TOKEN, writeTokenizer } from './tokenizers';

const byteLevel = byteLevelTokenizer();
let model: MaskedDiffusionModel;

beforeAll(async () => {
  const config = {
    vocab_size: byteLevel.size,
    embedding_size: byteLevel.size + 3,
    mask_token_id: byteLevel.ids[MASK_TOKEN],
    eos_token_id: byteLevel.ids[EOS_TOKEN],
    max_sequence_length: 200,
  };
  const { folder } = makeCheckpoint({ config });
  writeTokenizer(folder, byteLevel.tokenizer, byteLevel.config);
  model = await loadModel(folder, { threads: 1 });
});
afterAll(() => model.dispose());

const samplers = ['planner:bernoulli', 'confidence:0.02', 'fixed:12', 'd3llm:5:blockAddThreshold=0.1'];

/** The text before the stop string that is complete first, found letter by letter; null where there is none. */
function before(text: string, stops: readonly string[]): string | null {
  for (let end = 1; end <= text.length; end++) {
    const ended = stops.filter((stop) => text.slice(0, end).endsWith(stop)).map(({ length }) => length);
    if (ended.length > 0) return text.slice(0, end - Math.max(...ended));
  }
  return null;
}

async function streamed(prompt: string, options: GenerateOptions): Promise<StreamEvent[]> {
  const events: StreamEvent[] = [];
  for await (const event of model.generateStream(prompt, options)) events.push(event);
  return events;
}

/** A run without stop strings, and some that stand in its text. */
async function runs(): Promise<{ options: GenerateOptions; full: GenerateResult; stop: string[] }[]> {
  const next = random(5);
  const all = [];
  for (let seed = 0; seed < 40; seed++) {
    const options = { sampler: samplers[seed % 4], maxTokens: 48, blockLength: 8, temperature: 0.5, seed };
    const full = await model.generate('abc', options);
    const { text } = full;
    const begin = Math.floor(next() * text.length);
    const stop = [text.slice(begin, begin + 1 + Math.floor(next() * 6))];
    // A second one that begins before the first and ends later, or is its end, or stands nowhere.
    const second = [text.slice(Math.max(0, begin - 2), begin + 8), stop[0].slice(1), 'nowhere to be found'][seed % 3];
    if (seed % 2 === 1 && second !== '') stop.push(second);
    if (stop[0] !== '') all.push({ options, full, stop });
  }
  return all;
}

test('the text ends before the first stop string, and no pass is spent after it stands there', async () => {
  let saved = 0;
  let acrossBlocks = 0;
  for (const { options, full, stop } of await runs()) {
    const result = await model.generate('abc', { ...options, stop });
    const expected = before(full.text, stop);
    expect(result).toMatchObject({ text: expected, finishReason: 'stop' });
    // The first pass after which the text that is final has one.
    const events = await streamed('abc', options);
    const last = events.findIndex(({ text }) => before(text, stop) !== null);
    expect(Math.max(...result.unmaskedAt)).toBe(last + 1);
    expect(result.nfe).toBe(last + 1);
    if (result.nfe < full.nfe) saved++;
    // What was decided is the same, and `tokens` of it are needed for the text with its end.
    result.ids.forEach((id, i) => {
      if (result.unmaskedAt[i] > 0) expect([id, result.unmaskedAt[i]]).toEqual([full.ids[i], full.unmaskedAt[i]]);
    });
    const { tokens } = result;
    expect(result.usage.completionTokens).toBe(tokens);
    expect(before(model.decode(full.ids.slice(0, tokens)), stop)).toBe(expected);
    expect(
      before(model.tokenizer!.decodePrefix(full.ids.slice(0, tokens - 1), { skipSpecialTokens: true }), stop),
    ).toBe(null);
    if (tokens > 8 && (tokens - 1) % 8 < 2) acrossBlocks++;
  }
  expect(saved).toBeGreaterThan(5);
  expect(acrossBlocks).toBeGreaterThan(0);
});

test('a stream says what generate returns, and never a part of a stop string', async () => {
  for (const { options, full, stop } of await runs()) {
    const result = await model.generate('abc', { ...options, stop });
    const events = await streamed('abc', { ...options, stop });
    expect(events.at(-1)!.result).toEqual(result);
    let text = '';
    for (const event of events) {
      text += event.delta;
      expect(event.text).toBe(text);
      expect(before(full.text, stop)!.startsWith(text)).toBe(true);
    }
    expect(text).toBe(result.text);
    let pieces = '';
    for await (const piece of model.textStream('abc', { ...options, stop })) pieces += piece;
    expect(pieces).toBe(result.text);
  }
});

test('the rows of a batch end as they do alone', async () => {
  const stop = ['a', 'e', '\n'];
  const options = { maxTokens: 32, blockLength: 8, temperature: 0.5, seed: 3, stop };
  const prompts = ['abc', 'x', 'a longer one'];
  const batch = await model.generateBatch(prompts, options);
  for (const [i, prompt] of prompts.entries())
    expect(await model.generate(prompt, { ...options, research: { firstRow: i } })).toEqual(batch[i]);
});

test('a stop string that never comes changes nothing, nor does one behind the end of sequence', async () => {
  let ended = 0;
  for (let seed = 0; seed < 24; seed++) {
    const options = { maxTokens: 160, blockLength: 32, temperature: 5, seed, sampler: 'fixed:10', stopAtEos: false };
    const full = await model.generate('abc', options);
    expect(await model.generate('abc', { ...options, stop: 'nowhere to be found' })).toEqual(full);
    expect(await model.generate('abc', { ...options, stop: [] })).toEqual(full);
    if (full.tokens === full.ids.length) continue;
    const behind = model.decode(full.ids.slice(full.tokens));
    const stop = [...behind].find((letter) => !full.text.includes(letter) && letter !== '\ufffd');
    if (stop === undefined) continue;
    expect(await model.generate('abc', { ...options, stop })).toEqual(full);
    ended++;
  }
  expect(ended).toBeGreaterThan(0);
});

test('wrong stop strings', async () => {
  const refused = (prompt: unknown, stop: unknown) =>
    expect(model.generate(prompt as string, { stop } as GenerateOptions)).rejects;
  await refused('x', 5).toThrow('stop: expected a string or an array of strings, got 5');
  await refused('x', null).toThrow('stop: expected a string or an array of strings, got null');
  await refused('x', '').toThrow('stop: expected a text of at least one character, got ""');
  await refused('x', ['a', '']).toThrow('stop[1]: expected a text of at least one character, got ""');
  await refused('x', ['a', 3]).toThrow('stop[1]: expected a string, got 3');
  await refused({ template: `a${MASK_TOKEN}` }, 'a').toThrow('stop: not allowed with a template or form');
  await refused({ prompt: 'x', form: ['a', 2] }, 'a').toThrow('stop: not allowed with a template or form');
  using plain = await loadModel(modelFolder('base'), { threads: 1 });
  await expect(plain.generate({ promptIds: [1] }, { stop: 'a' })).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
});
