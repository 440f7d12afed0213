// The provider of the AI SDK, with the SDK itself.
import { generateObject, generateText, streamObject, streamText } from 'ai';
import { z } from 'zod';
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { createDultra, type DultraProvider } from '../lib/ai-sdk';
import { withTokenizer } from './helpers';

let model: MaskedDiffusionModel;
let dultra: DultraProvider;
beforeAll(async () => {
  Object.assign(globalThis, { AI_SDK_LOG_WARNINGS: false });
  model = await loadModel(withTokenizer(), { threads: 1 });
  dultra = createDultra({ models: { tiny: model }, options: { sampler: 'confidence:0.2' } });
});
afterAll(() => model.dispose());

const messages = [{ role: 'user' as const, content: 'a+b' }];
const library = (options: object = {}) =>
  model.generate(messages, { maxTokens: 16, sampler: 'confidence:0.2', ...options });

test("texts are the library's, with usage, passes and warnings", async () => {
  const expected = await library();
  const { text, usage, finishReason, providerMetadata, warnings } = await generateText({
    model: dultra('tiny'),
    messages,
    maxOutputTokens: 16,
    presencePenalty: 1,
  });
  expect(text).toBe(expected.text);
  expect(usage).toMatchObject({
    inputTokens: expected.usage.promptTokens,
    outputTokens: expected.usage.completionTokens,
    totalTokens: expected.usage.totalTokens,
  });
  expect(finishReason).toBe(expected.finishReason === 'length' ? 'length' : 'stop');
  expect(providerMetadata?.dultra).toMatchObject({ nfe: expected.nfe, seed: String(expected.seed) });
  expect(warnings).toMatchObject([{ type: 'unsupported', feature: 'presencePenalty' }]);
});

test('options of a call come before those of the provider', async () => {
  const { nfe } = await library({ sampler: 'fixed:4' });
  const { providerMetadata } = await generateText({
    model: dultra.languageModel('tiny'),
    messages,
    maxOutputTokens: 16,
    providerOptions: { dultra: { sampler: 'fixed:4' } },
  });
  expect(providerMetadata?.dultra).toMatchObject({ nfe });
});

test('a stream grows to the text, with a frame for every pass', async () => {
  const expected = await library();
  const stream = streamText({ model: dultra('tiny'), messages, maxOutputTokens: 16, includeRawChunks: true });
  let text = '';
  const positions: number[] = [];
  for await (const part of stream.fullStream) {
    if (part.type === 'text-delta') text += part.text;
    if (part.type === 'raw')
      positions.push(
        ...(part.rawValue as { unmasked: { position: number }[] }).unmasked.map(({ position }) => position),
      );
  }
  expect(text).toBe(expected.text);
  expect(new Set(positions).size).toBe(positions.length);
  expect((await stream.usage).outputTokens).toBe(expected.usage.completionTokens);
});

test('objects are of their schema, whole and as a stream', async () => {
  const schema = z.strictObject({ n: z.int().min(3).max(40), colour: z.enum(['red', 'blue']).nullable() });
  for (let seed = 0; seed < 3; seed++) {
    const settings = { model: dultra('tiny'), schema, messages, temperature: 1, seed };
    const { object } = await generateObject(settings);
    expect(schema.parse(object)).toEqual(object);
    const streamed = streamObject(settings);
    for await (const _ of streamed.partialObjectStream);
    expect(await streamed.object).toEqual(object);
  }
  const { object } = await generateObject({ model: dultra('tiny'), output: 'enum', enum: ['yes', 'no'], messages });
  expect(['yes', 'no']).toContain(object);
});

test('what is not supported is an error', async () => {
  expect(() => dultra('other')).toThrow('name: expected one of tiny, got "other"');
  const schema = z.object({ n: z.number().multipleOf(2) });
  const refused = generateObject({ model: dultra('tiny'), schema, messages, maxRetries: 0 });
  await expect(refused).rejects.toThrow('schema.properties.n.multipleOf');
  const controller = new AbortController();
  controller.abort(new Error('enough'));
  const aborted = generateText({ model: dultra('tiny'), messages, abortSignal: controller.signal });
  await expect(aborted).rejects.toThrow();
});
