// OpenAI's client 7 and the AI SDK 7 against a server: node check.mjs BASE_URL REQUEST. Prints what they got as JSON.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, jsonSchema, streamText } from 'ai';
import OpenAI from 'openai';

const [baseURL, request] = process.argv.slice(2);
const chat = JSON.parse(request);
const client = new OpenAI({ baseURL, apiKey: 'key', maxRetries: 0 });
const got = { node: process.versions.node };

const whole = await client.chat.completions.create(chat);
got.whole = [whole.choices[0].message.content, whole.usage.completion_tokens];

let streamed = '';
let frames = 0;
const streaming = { stream: true, stream_mode: 'denoise', stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...chat, ...streaming })) {
  streamed += chunk.choices[0]?.delta.content ?? '';
  if ('dultra' in chunk) frames++;
}
got.streamed = [streamed, frames > 1];

const helper = client.chat.completions.stream({ ...chat, logprobs: true });
const final = await helper.finalChatCompletion();
got.helper = [final.choices[0].message.content, final.choices[0].logprobs.content.length];

const { model, messages, max_tokens, sampler } = chat;
const input = messages[0].content;
got.response = (await client.responses.create({ model, input, max_output_tokens: max_tokens, sampler })).output_text;
got.models = (await client.models.list()).data.map(({ id }) => id);

const decision = await client.decisions.create({
  model,
  input: [{ role: 'user', content: [{ type: 'input_json', data: { a: 'b' } }] }],
  questions: [
    { type: 'predicate', instructions: 'c' },
    { type: 'choice', instructions: [{ type: 'input_text', text: 'c' }], choices: [{ value: true }, { value: 'x' }] },
    { type: 'score', instructions: 'c', levels: [{ label: 'a' }, { label: 'b' }], name: 'level' },
  ],
});
got.decision = [decision.answers, decision.usage];
got.undecided = await client.decisions
  .create({ model, input: 'a', questions: [{ type: 'choice', instructions: 'c', choices: [{ value: 'x' }] }] })
  .catch((error) => [error instanceof OpenAI.BadRequestError, error.param]);

const refused = await client.chat.completions.create({ ...chat, model: 'other' }).catch((error) => error);
got.refused = [refused instanceof OpenAI.NotFoundError, refused.code, typeof refused.requestID];

let asked = 0;
const patient = client.withOptions({
  maxRetries: 2,
  fetch: async (url, init) => {
    if (asked++ > 0) return fetch(url, init);
    const error = { message: 'full', type: 'rate_limit_error', param: null, code: 'engine_overloaded' };
    return Response.json({ error }, { status: 429, headers: { 'retry-after': '0' } });
  },
});
got.retried = [(await patient.chat.completions.create(chat)).choices[0].message.content, asked];

for await (const _ of await client.chat.completions.create({ ...chat, stream: true })) break;

const provider = createOpenAICompatible({ name: 'dultra', baseURL, apiKey: 'key', includeUsage: true });
const call = {
  model: provider(model),
  prompt: input,
  maxOutputTokens: max_tokens,
  temperature: 0,
  maxRetries: 0,
  providerOptions: { dultra: { sampler } },
};
const generated = await generateText(call);
got.generated = [generated.text, generated.usage.outputTokens];
const schema = {
  type: 'object',
  properties: { n: { type: 'integer', minimum: 3, maximum: 40 }, colour: { enum: ['red', 'blue'] } },
  required: ['n', 'colour'],
  additionalProperties: false,
};
const structured = createOpenAICompatible({ name: 'dultra', baseURL, apiKey: 'key', supportsStructuredOutputs: true });
const { object } = await generateObject({
  model: structured(model),
  prompt: input,
  schema: jsonSchema(schema),
  temperature: 1,
  seed: 4,
});
got.object = object;
const stream = streamText(call);
let text = '';
for await (const part of stream.textStream) text += part;
got.texts = [text, (await stream.usage).outputTokens];
got.failure = await generateText({ ...call, model: provider('other') }).catch(({ message }) => message);

process.stdout.write(JSON.stringify(got));
