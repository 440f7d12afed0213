// OpenAI's client and the AI SDK against a server: their versions for Node.js 20 here, those for 22 in a process of it.
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, streamText } from 'ai';
import OpenAI from 'openai';
import { z } from 'zod';
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { type Listening, listen } from '../lib/server';
import { withTokenizer } from './helpers';

// biome-ignore lint/suspicious/noExplicitAny: answers are compared with what they should be
type Json = any;

let model: MaskedDiffusionModel;
let listening: Listening;
let client: OpenAI;
beforeAll(async () => {
  model = await loadModel(withTokenizer(), { threads: 1, engine: { maxRows: 4, maxQueue: 4 } });
  listening = await listen({ models: { tiny: model }, port: 0, apiKeys: ['key'] });
  client = new OpenAI({ baseURL: `${listening.url}/v1`, apiKey: 'key', maxRetries: 0 });
});
afterAll(async () => {
  await listening.close();
  model.dispose();
});

const messages = [{ role: 'user' as const, content: 'a+b' }];
const request = { model: 'tiny', messages, max_tokens: 16, sampler: 'confidence:0.2' };
const library = () => model.generate(messages, { maxTokens: 16, sampler: 'confidence:0.2', splitSpecialTokens: true });

describe('openai', () => {
  test('chats, streams, helpers, completions, responses and models', async () => {
    const { text } = await library();
    const whole = await client.chat.completions.create(request);
    expect([whole.choices[0].message.content, whole.usage?.total_tokens]).toEqual([
      text,
      (whole.usage?.prompt_tokens ?? 0) + (whole.usage?.completion_tokens ?? 0),
    ]);
    let streamed = '';
    const frames: unknown[] = [];
    const options = { stream: true as const, stream_mode: 'denoise', stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create({ ...request, ...options })) {
      streamed += chunk.choices[0]?.delta.content ?? '';
      if ('dultra' in chunk) frames.push(chunk.dultra);
    }
    expect([streamed, frames.length > 1]).toEqual([text, true]);
    const helper = client.chat.completions.stream({ ...request, logprobs: true });
    const completion = await helper.finalChatCompletion();
    expect(completion.choices[0].message.content).toBe(text);
    expect(completion.choices[0].logprobs?.content?.length).toBe(whole.usage?.completion_tokens);
    const infilled = await client.completions.create({ model: 'tiny', prompt: 'ab', suffix: 'yz', max_tokens: 8 });
    expect(infilled.choices[0].text).toHaveLength(infilled.choices[0].text.length);
    expect(infilled.usage?.prompt_tokens).toBe(5);
    const response = await client.responses.create({
      model: 'tiny',
      input: 'a+b',
      max_output_tokens: 16,
      sampler: 'confidence:0.2',
    } as OpenAI.Responses.ResponseCreateParamsNonStreaming);
    expect(response.output_text).toBe(text);
    const events = client.responses.stream({ model: 'tiny', input: 'a+b', max_output_tokens: 16 });
    expect((await events.finalResponse()).output_text.length).toBeGreaterThan(0);
    const list = await client.models.list();
    expect(list.data.map(({ id }) => id)).toEqual(['tiny']);
    expect((await client.models.retrieve('tiny')).owned_by).toBe('dultra');
  });

  test('errors have their classes, a full queue is tried again, and leaving a stream frees its row', async () => {
    await expect(client.chat.completions.create({ ...request, model: 'other' })).rejects.toThrow(OpenAI.NotFoundError);
    const unknown = client.chat.completions.create({ ...request, samplr: 1 } as never);
    await expect(unknown).rejects.toThrow(OpenAI.BadRequestError);
    await expect(client.withOptions({ apiKey: 'no' }).models.list()).rejects.toThrow(OpenAI.AuthenticationError);
    const many = { ...request, n: 4, sampler: 'fixed', max_tokens: 32 };
    const crowd = Array.from({ length: 6 }, () => client.chat.completions.create(many));
    const outcomes = await Promise.allSettled(crowd);
    const refused = outcomes.filter(({ status }) => status === 'rejected') as PromiseRejectedResult[];
    expect(refused.length).toBeGreaterThan(0);
    for (const { reason } of refused) expect(reason).toBeInstanceOf(OpenAI.RateLimitError);
    const { engine } = model.engineParts();
    for await (const _ of await client.chat.completions.create({ ...many, n: 1, stream: true })) break;
    for (let i = 0; i < 400 && engine.state.activeRows > 0; i++)
      await new Promise((resolve) => setTimeout(resolve, 10));
    expect(engine.state.activeRows).toBe(0);
    const patient = client.withOptions({ maxRetries: 2 });
    let refusals = 0;
    const flaky = patient.withOptions({
      fetch: async (url, init) => {
        if (refusals++ > 0) return fetch(url as string, init as RequestInit);
        return Response.json(
          { error: { message: 'full', type: 'rate_limit_error', param: null, code: 'engine_overloaded' } },
          { status: 429, headers: { 'retry-after': '0' } },
        );
      },
    });
    expect((await flaky.chat.completions.create(request)).choices).toHaveLength(1);
    expect(refusals).toBe(2);
  });
});

test('ai: generateText and streamText, with settings of the provider', async () => {
  const provider = createOpenAICompatible({
    name: 'dultra',
    baseURL: `${listening.url}/v1`,
    apiKey: 'key',
    includeUsage: true,
  });
  const call = {
    model: provider('tiny'),
    prompt: 'a+b',
    maxOutputTokens: 16,
    temperature: 0,
    maxRetries: 0,
    providerOptions: { dultra: { sampler: 'confidence:0.2' } },
  };
  const expected = await library();
  const { text, usage } = await generateText(call);
  expect([text, usage.outputTokens]).toEqual([expected.text, expected.usage.completionTokens]);
  const stream = streamText(call);
  let streamed = '';
  for await (const part of stream.textStream) streamed += part;
  expect(streamed).toBe(expected.text);
  expect((await stream.usage).outputTokens).toBe(expected.usage.completionTokens);
  await expect(generateText({ ...call, model: provider('other') })).rejects.toThrow('there is no model');
});

const schema = z.strictObject({ n: z.int().min(3).max(40), colour: z.enum(['red', 'blue']) });

test('ai: generateObject, whose schema the server keeps to', async () => {
  const provider = createOpenAICompatible({
    name: 'dultra',
    baseURL: `${listening.url}/v1`,
    apiKey: 'key',
    supportsStructuredOutputs: true,
  });
  for (let seed = 0; seed < 3; seed++) {
    const settings = { model: provider('tiny'), schema, prompt: 'a+b', temperature: 1, seed, maxRetries: 0 };
    const { object } = await generateObject(settings);
    expect(schema.parse(object)).toEqual(object);
  }
  const odd = z.object({ n: z.number().multipleOf(2) });
  const refused = generateObject({ model: provider('tiny'), schema: odd, prompt: 'a', maxRetries: 0 });
  await expect(refused).rejects.toThrow('multipleOf');
});

/** Node.js 22 or newer: this one, or that of the packages in test/clients; null without them. */
function nodeOfClients(): string | null {
  const packages = path.join(__dirname, 'clients', 'node_modules');
  if (!existsSync(path.join(packages, 'openai'))) return null;
  if (Number.parseInt(process.versions.node, 10) >= 22) return process.execPath;
  const node = path.join(packages, `node-${process.platform}-${process.arch}`, 'bin', 'node');
  return existsSync(node) ? node : null;
}

const node22 = nodeOfClients();
const why = node22 ? '' : ' (skipped: npm ci --prefix test/clients was not run, or has no Node.js 22 for this system)';
/** What a program of test/clients prints. */
async function printed(script: string, ...values: string[]) {
  const { stdout } = await promisify(execFile)(node22!, [path.join(__dirname, 'clients', script), ...values]);
  return JSON.parse(stdout);
}

(node22 ? test : test.skip)(`openai 7 and ai 7${why}`, async () => {
  const got = await printed('check.mjs', `${listening.url}/v1`, JSON.stringify(request));
  const { text, usage } = await library();
  const answer = [text, usage.completionTokens];
  const decided = await model.decide('{"a":"b"}', {
    p: { type: 'boolean', instructions: 'c' },
    c: { type: 'choice', instructions: 'c', criteria: { true: null, x: null } },
    s: { type: 'score', instructions: 'c', criteria: ['a', 'b'] },
  });
  const answers = decided.answers as Record<string, Json>;
  expect(Number.parseInt(got.node, 10)).toBeGreaterThanOrEqual(22);
  expect(got).toEqual({
    node: got.node,
    whole: answer,
    streamed: [text, true],
    helper: answer,
    response: text,
    models: ['tiny'],
    decision: [
      [
        { type: 'predicate', name: null, probability: answers.p.probability },
        {
          type: 'choice',
          name: null,
          choice: answers.c.choice === 'true' ? true : 'x',
          confidence: answers.c.confidence,
          probabilities: [
            { value: true, probability: answers.c.probabilities.true },
            { value: 'x', probability: answers.c.probabilities.x },
          ],
        },
        {
          type: 'score',
          name: 'level',
          score: answers.s.score,
          confidence: answers.s.confidence,
          probabilities: [
            { label: 'a', value: 0, probability: answers.s.probabilities[0] },
            { label: 'b', value: 1, probability: answers.s.probabilities[1] },
          ],
        },
      ],
      {
        input_tokens: decided.usage.inputTokens,
        input_tokens_details: { cached_tokens: 0, cache_write_tokens: 0 },
        output_tokens: 0,
        output_tokens_details: { reasoning_tokens: 0 },
        total_tokens: decided.usage.inputTokens,
      },
    ],
    undecided: [true, 'questions[0].choices'],
    object: schema.parse(got.object),
    refused: [true, 'model_not_found', 'string'],
    retried: [text, 2],
    generated: answer,
    texts: answer,
    failure: 'there is no model "other"',
  });
});

(node22 ? test : test.skip)(`ai 7 with the provider, in its process${why}`, async () => {
  const review = 'The soup was awful and the waiter was dreadful.';
  const got = await printed('provider.mjs', withTokenizer(), review);
  const { text, usage, nfe } = await library();
  await using world = await loadModel('world', { threads: 1 });
  const decided = await world.decide(review, {
    again: { type: 'boolean', instructions: 'Will the customer buy again?' },
    mood: {
      type: 'choice',
      instructions: 'Is this review positive, negative or neutral?',
      criteria: { positive: null, negative: null, neutral: null },
    },
    stars: { type: 'score', instructions: 'How many stars?', criteria: ['one', 'two', 'three', 'four', 'five'] },
  });
  const { again, mood, stars } = decided.answers as Record<string, Json>;
  const { inputTokens } = decided.usage;
  const positions = got.streamed[1];
  expect(got).toEqual({
    node: got.node,
    whole: [text, usage.completionTokens, nfe],
    // A frame for every pass, and each position in one of them.
    streamed: [text, positions, positions],
    object: schema.parse(got.object),
    answers: {
      again: { type: 'boolean', probability: again.probability },
      mood: { type: 'choice', choice: mood.choice, probabilities: mood.probabilities },
      stars: { type: 'score', score: stars.score, probabilities: { ...stars.probabilities } },
    },
    usage: { inputTokens, outputTokens: 0, totalTokens: inputTokens },
    calibrated: decided.calibrated,
    refused: ['AI_DecisionRefusalError', ['a']],
    unsupported: 'AI_DecisionUnsupportedQuestionTypeError',
  });
  expect(positions).toBeGreaterThan(0);
});
