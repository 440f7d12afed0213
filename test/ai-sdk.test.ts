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

describe('decisions', () => {
  test("answers are the library's, and parts of a state are read as it reads them", async () => {
    await using world = await loadModel('world', { threads: 1 });
    const review = 'The soup was awful and the waiter was dreadful.';
    const decisionModel = createDultra({ models: { world }, decisions: { orders: 1 } }).decisionModel('world');
    expect(decisionModel).toMatchObject({ specificationVersion: 'v4', provider: 'dultra', modelId: 'world' });
    const { answers, usage } = await world.decide(review, world.decisions.questions);
    const { again, stars } = answers;
    if (again.type !== 'boolean' || stars.type !== 'score') throw new Error('types');
    const asked = world.decisions.questions as Parameters<typeof decisionModel.doDecide>[0]['questions'];
    const result = await decisionModel.doDecide({
      state: [{ type: 'text', text: review }],
      questions: { ...asked, again: { ...asked.again, criteria: null } },
      reasoning: 'high',
    });
    expect(Object.keys(result.answers)).toEqual(Object.keys(answers));
    expect(result.answers).toMatchObject({
      again: { type: 'boolean', probability: again.probability },
      stars: { type: 'score', score: stars.score, probabilities: { ...stars.probabilities } },
    });
    expect(result.usage).toEqual({ inputTokens: usage.inputTokens, outputTokens: 0 });
    expect(result.warnings).toMatchObject([{ type: 'unsupported', feature: 'reasoning' }]);
    expect(result.providerMetadata.dultra.answers.stars).toEqual({
      optionMass: stars.optionMass,
      temperature: 1,
      scorer: stars.scorer,
      confidence: stars.confidence,
    });
    const question = { type: 'boolean' as const, instructions: { ask: 'a' } };
    const one = (state: Parameters<typeof decisionModel.doDecide>[0]['state']) =>
      decisionModel.doDecide({ state, questions: { q: question } }).then(({ answers: { q } }) => q);
    const same = (state: object | string) =>
      world
        .decide(state as string, { q: { type: 'boolean', instructions: '{"ask":"a"}' } })
        .then(({ answers: { q } }) => ({ type: 'boolean', probability: (q as typeof again).probability }));
    expect(await one([{ type: 'json', value: { a: [1] } }])).toEqual(await same({ a: [1] }));
    const two = [
      { type: 'text', text: 'a' },
      { type: 'json', value: 3 },
    ];
    expect(await one(two)).toEqual(await same('a\n3'));
  });

  test('what is not supported is an error', async () => {
    const decisionModel = dultra.decisionModel('tiny');
    const questions = { q: { type: 'boolean' as const, instructions: 'a' } };
    await expect(decisionModel.doDecide({ state: [{ type: 'file' }], questions })).rejects.toThrow(
      'state[0].type: expected "text" or "json", got "file"',
    );
    const state = [{ type: 'text', text: 'a' }];
    const box = { q: { type: 'box' as 'boolean' } };
    await expect(decisionModel.doDecide({ state, questions: box })).rejects.toThrow('questions.q.type: expected');
    const other = decisionModel.doDecide({ state, questions, providerOptions: { dultra: { scorers: 1 } } });
    await expect(other).rejects.toThrow('unknown key "scorers"');
    await expect(decisionModel.doDecide({ state, questions, abortSignal: AbortSignal.abort() })).rejects.toThrow();
    expect(() => dultra.decisionModel('other')).toThrow('name: expected one of tiny, got "other"');
  });
});
