// What each route answers to each kind of request: one server, one table.
// The cases of conformance by their numbers: `npx jest -t '#07'` runs one. In brackets are the files whose tests have the
// number in their names: server-conformance.test.ts, server.test.ts and server-decisions.test.ts.
// #01 chat, plain: 200, usage adds up, passes counted (server)
// #02 chat, stream: deltas join to the text of 01, then [DONE] (server)
// #03 chat, stream with include_usage: usage null, then a last chunk without choices (server)
// #04 chat, seed and temperature, twice: equal answers (server)
// #05 chat, n 3: three choices, rows 0 to 2 of the library (server)
// #06 chat, stop in the middle: text cut, "stop" (conformance)
// #07 chat, stop that does not come: the whole text (conformance)
// #08 chat, max_tokens 1 and 7: at most as many (conformance)
// #09 chat, max_tokens and max_completion_tokens differ: 400 (server)
// #10 chat, max_tokens 0, -1, "5", 1e9: 400 each (server, conformance)
// #11 chat, prompt over the maximum: 400 context_length_exceeded (conformance)
// #12 chat, messages empty, missing, of an unknown role: 400 with the field (server, conformance)
// #13 chat, a picture, the role of a tool: 400 unsupported_value (server)
// #14 chat, no tools, tool_choice "none": 200 (server)
// #15 chat, a tool: 400 unsupported_parameter (server)
// #16 chat, top_p at temperature 0 and 1; 0: 200, the library's; 400 (conformance)
// #17 chat, temperature 3, "hot", null: 400, 400, as if absent (server)
// #18 chat, logprobs; top_logprobs 21: an entry for each token; 400 (conformance)
// #19 chat, a schema: a value of it (conformance)
// #20 chat, a schema that refers to itself: 400 invalid_schema with its path (conformance)
// #21 chat, an unknown model: 404 (server)
// #22 a body that is no JSON, empty, a list, of another type: 400 each, 415 (server)
// #23 2 MB; GET; an unknown path: 413; 405 with allow; 404 (server)
// #24 chat, an unknown key: 400 unknown_parameter, which names the one meant (server, conformance)
// #25 chat, compat, a function as text: 400 (conformance)
// #26 chat, two samplers: 400 (server)
// #27 chat, each sampler: passes and text of the library (conformance)
// #28 chat, each cache: text and forwards of the library (conformance)
// #29 chat, stream_mode "denoise": frames decide each position once (server)
// #30 chat, diffusing: the last text is that of 01 (conformance)
// #31 chat, max_nfe 1: one pass (conformance)
// #32 chat, deadline 1 ms in a full queue: 504 (conformance)
// #33 completion, a text, texts, ids, lists of ids: 200, in order (server)
// #34 completion with a suffix, and fim: equal texts, the library's (conformance)
// #35 completion, echo; best_of 2: 200; 400 (conformance)
// #36 response, plain and as a stream: text of 01, events in order (conformance)
// #37 response, previous_response_id: 400 (conformance)
// #38 models: all, one, an unknown one: 200, 200, 404 (server)
// #39 decisions, three types, without names: 200, in order, name null (decisions)
// #40 decisions, choices "true" and true: two values (decisions)
// #41 decisions, one choice, 256, one twice: 400 each (decisions)
// #42 systemone, three types, a state of JSON: 200, keys in order, noul without confidence (decisions)
// #43 systemone, no questions, an unknown type, a state 40 deep: 422 each (decisions)
// #44 no key, a wrong one, a right one: 401, 401, 200 (server)
// #45 another host; a foreign origin: 403 each (server)
// #46 metrics; health while closing: text format; 503 (server)
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { type Listening, listen } from '../lib/server';
import { withTokenizer } from './helpers';
import { eventsIn } from './servers';

// biome-ignore lint/suspicious/noExplicitAny: answers are compared with what they should be
type Json = any;

let model: MaskedDiffusionModel;
let listening: Listening;
beforeAll(async () => {
  model = await loadModel(withTokenizer(), { threads: 1, engine: { maxRows: 16, maxQueue: 64 } });
  listening = await listen({ models: { tiny: model }, port: 0 });
});
afterAll(async () => {
  await listening.close();
  model.dispose();
});

const CHAT = '/v1/chat/completions';
const TEXT = '/v1/completions';
const FIM = '/v1/fim/completions';
const RESPONSES = '/v1/responses';
const messages = [{ role: 'user', content: 'a+b' }];
const base = { max_tokens: 16, sampler: 'confidence:0.2' };
const bodyOf = (path: string, change: object) =>
  path === CHAT
    ? { messages, ...base, ...change }
    : { ...change, ...(path === RESPONSES ? {} : { ...base, ...change }) };

const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
  fetch(listening.url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
const ask = async (path: string, change: object = {}) => {
  const response = await post(path, bodyOf(path, change));
  return { status: response.status, body: (await response.json()) as Json };
};
const eventsOf = async (path: string, change: object = {}): Promise<Json[]> => {
  const response = await post(path, bodyOf(path, { ...change, stream: true }));
  expect([response.status, response.headers.get('content-type')]).toEqual([200, 'text/event-stream; charset=utf-8']);
  return eventsIn(await response.text());
};
const libraryOf = (options: object) =>
  model.generate(messages as never, { maxTokens: 16, sampler: 'confidence:0.2', splitSpecialTokens: true, ...options });
const textOf = ({ body }: { body: Json }) => body.choices[0].message?.content ?? body.choices[0].text;

const formatOf = (schema: object) => ({
  response_format: { type: 'json_schema', json_schema: { name: 'answer', schema, strict: true } },
});

describe('values of schemas', () => {
  const schema = {
    type: 'object',
    properties: { a: { type: 'integer', minimum: 3, maximum: 20 }, ok: { type: 'boolean' } },
    required: ['a', 'ok'],
    additionalProperties: false,
  };
  const expectValue = (text: string) => {
    const value = JSON.parse(text);
    expect(value).toEqual({ a: expect.any(Number), ok: expect.any(Boolean) });
    expect([Number.isInteger(value.a), value.a >= 3, value.a <= 20]).toEqual([true, true, true]);
  };

  test("#19 a chat, plain and as a stream, is the library's value", async () => {
    const request = { ...formatOf(schema), max_tokens: undefined, temperature: 1, seed: 5 };
    const answer = await ask(CHAT, request);
    expectValue(textOf(answer));
    expect(answer.body.choices[0].finish_reason).toBe('stop');
    const library = await libraryOf({ schema, maxTokens: undefined, temperature: 1, seed: 5 });
    expect(textOf(answer)).toBe(library.text);
    const deltas = (await eventsOf(CHAT, request)).map((chunk) => chunk.choices?.[0]?.delta.content ?? '');
    expect(deltas.join('')).toBe(library.text);
  });

  test('one pass is enough for a valid value', async () => {
    const answer = await ask(CHAT, { ...formatOf(schema), max_tokens: undefined, max_nfe: 1, temperature: 2, seed: 1 });
    expect([answer.status, answer.body.usage.nfe]).toEqual([200, 1]);
    expectValue(textOf(answer));
  });

  test('any object, and values of responses', async () => {
    const any = await ask(CHAT, { response_format: { type: 'json_object' }, max_tokens: 24, temperature: 1, seed: 2 });
    expect(Object.prototype.toString.call(JSON.parse(textOf(any)))).toBe('[object Object]');
    const format = { type: 'json_schema', name: 'answer', schema, strict: true };
    const { status, body } = await ask(RESPONSES, { input: 'a+b', text: { format } });
    expect([status, body.status, body.text.format.name]).toEqual([200, 'completed', 'answer']);
    expectValue(body.output[0].content[0].text);
  });
});

describe('holes of unknown length', () => {
  test("the library's, of chats with a schema and of completions with a suffix", async () => {
    const schema = {
      type: 'object',
      properties: { a: { type: 'string' } },
      required: ['a'],
      additionalProperties: false,
    };
    const hole = 'search' as const;
    const change = { ...formatOf(schema), max_tokens: 24, temperature: 1, seed: 5, n: 2, dultra: { hole } };
    const chat = await ask(CHAT, change);
    for (const firstRow of [0, 1]) {
      const research = { firstRow };
      const library = await libraryOf({ schema, maxTokens: 24, temperature: 1, seed: 5, hole, research });
      expect(chat.body.choices[firstRow].message.content).toBe(library.text);
    }
    const infilled = await ask(FIM, { prompt: 'ab', suffix: 'yz', dultra: { hole } });
    const prompt = { prompt: 'ab', suffix: 'yz' };
    const options = { maxTokens: 16, sampler: 'confidence:0.2', splitSpecialTokens: true, hole };
    const { text, nfe, fullForwards } = await model.generate(prompt, options);
    expect([textOf(infilled), infilled.body.usage.nfe]).toEqual([text, nfe]);
    expect(infilled.body.usage.full_forwards).toBeCloseTo(fullForwards, 9);
  });
});

describe('refused, with the field and the reason', () => {
  const cases: [what: string, path: string, change: object, status: number, code: string, param: string | null][] = [
    ['#10 tokens below one', CHAT, { max_tokens: -1 }, 400, 'invalid_value', 'max_tokens'],
    ['#10 tokens by the billion', CHAT, { max_tokens: 1e9 }, 400, 'context_length_exceeded', 'messages'],
    [
      '#11 a prompt over the maximum',
      CHAT,
      { messages: [{ role: 'user', content: 'a'.repeat(500) }] },
      400,
      'context_length_exceeded',
      'messages',
    ],
    ['#12 a role', CHAT, { messages: [{ role: 'x', content: 'a' }] }, 400, 'unsupported_value', 'messages[0].role'],
    ['#16 a nucleus of none', CHAT, { top_p: 0 }, 400, 'invalid_value', 'top_p'],
    ['#25 a function as text', CHAT, { sampler: '() => []' }, 400, 'invalid_value', 'sampler'],
    ['#25 the reference', CHAT, { compat: 'reference' }, 400, 'unknown_parameter', 'compat'],
    ['#18 21 most probable tokens', CHAT, { logprobs: true, top_logprobs: 21 }, 400, 'invalid_value', 'top_logprobs'],
    ['most probable tokens alone', CHAT, { top_logprobs: 2 }, 400, 'invalid_value', 'top_logprobs'],
    [
      'most probable tokens with a cache',
      CHAT,
      { logprobs: true, top_logprobs: 2, cache: 'dual' },
      400,
      'unsupported_value',
      'cache',
    ],
    ['steps beside a sampler', CHAT, { steps: 4 }, 400, 'invalid_value', 'steps'],
    [
      '#20 a schema that refers to itself',
      CHAT,
      formatOf({ type: 'array', items: { $ref: '#' } }),
      400,
      'invalid_schema',
      'response_format.json_schema.schema.items.$ref',
    ],
    [
      'a keyword that is not of the subset',
      CHAT,
      formatOf({ anyOf: [{ type: 'integer', multipleOf: 2 }] }),
      400,
      'invalid_schema',
      'response_format.json_schema.schema.anyOf[0].multipleOf',
    ],
    [
      'a schema without a name',
      CHAT,
      { response_format: { type: 'json_schema', json_schema: { schema: {} } } },
      400,
      'invalid_value',
      'response_format.json_schema.name',
    ],
    ['a schema and a stop string', CHAT, { ...formatOf({ type: 'null' }), stop: 'a' }, 400, 'invalid_value', 'stop'],
    [
      'a schema without room',
      CHAT,
      { ...formatOf({ enum: ['aaaa'] }), max_tokens: 2 },
      400,
      'invalid_value',
      'max_tokens',
    ],
    ['an unknown key of dultra', CHAT, { dultra: { prioritty: 3 } }, 400, 'unknown_parameter', 'dultra.prioritty'],
    ['a hole of nothing', CHAT, { dultra: { hole: 'search' } }, 400, 'unsupported_value', 'dultra.hole'],
    [
      'a hole in a stream',
      FIM,
      { prompt: 'a', suffix: 'b', stream: true, dultra: { hole: 'search' } },
      400,
      'unsupported_value',
      'dultra.hole',
    ],
    [
      'a hole in one pass',
      FIM,
      { prompt: 'a', suffix: 'b', max_nfe: 1, dultra: { hole: 'search' } },
      400,
      'unsupported_value',
      'dultra.hole',
    ],
    [
      'most probable tokens of a hole',
      CHAT,
      { ...formatOf({ type: 'null' }), logprobs: true, top_logprobs: 1, dultra: { hole: 'search' } },
      400,
      'unsupported_value',
      'top_logprobs',
    ],
    ['diffusing without a stream', CHAT, { diffusing: true }, 400, 'invalid_value', 'diffusing'],
    [
      'a template of a chat',
      CHAT,
      { max_tokens: null, dultra: { template: true } },
      400,
      'unsupported_value',
      'dultra.template',
    ],
    [
      'a template with a length',
      TEXT,
      { prompt: 'a[MASK]', dultra: { template: true } },
      400,
      'invalid_value',
      'max_tokens',
    ],
    [
      'a template without masks',
      TEXT,
      { prompt: 'a', max_tokens: null, dultra: { template: true } },
      400,
      'invalid_value',
      'template',
    ],
    ['#35 the best of two', TEXT, { prompt: 'a', best_of: 2 }, 400, 'unsupported_parameter', 'best_of'],
    ['six logprobs', TEXT, { prompt: 'a', logprobs: 6 }, 400, 'invalid_value', 'logprobs'],
    ['a prompt that is none', TEXT, { prompt: 5 }, 400, 'invalid_value', 'prompt'],
    ['five stop strings', CHAT, { stop: ['a', 'b', 'c', 'd', 'e'] }, 400, 'invalid_value', 'stop'],
    ['a seed that is none', CHAT, { seed: 'x' }, 400, 'invalid_value', 'seed'],
    ['no prompt', TEXT, {}, 400, 'missing_required_parameter', 'prompt'],
    ['ids that there are not', TEXT, { prompt: [99999] }, 400, 'invalid_value', 'prompt[0]'],
    [
      'a suffix that does not fit',
      FIM,
      { prompt: 'a', suffix: 'b'.repeat(500) },
      400,
      'context_length_exceeded',
      'prompt',
    ],
    ['no input', RESPONSES, {}, 400, 'missing_required_parameter', 'input'],
    [
      '#37 an earlier response',
      RESPONSES,
      { input: 'a', previous_response_id: 'resp_1' },
      400,
      'unsupported_parameter',
      'previous_response_id',
    ],
    [
      'a picture',
      RESPONSES,
      { input: [{ role: 'user', content: [{ type: 'input_image', image_url: 'x' }] }] },
      400,
      'unsupported_value',
      'input[0].content',
    ],
    [
      'a schema of a response',
      RESPONSES,
      { input: 'a', text: { format: { type: 'json_schema', name: 'a', schema: { type: 'any' } } } },
      400,
      'invalid_schema',
      'text.format.schema.type',
    ],
    ['a model', RESPONSES, { input: 'a', model: 'other' }, 404, 'model_not_found', 'model'],
    [
      '#32 a deadline in a full queue',
      CHAT,
      { n: 16, sampler: 'fixed', dultra: { deadline_ms: 1 } },
      504,
      'deadline_exceeded',
      null,
    ],
  ];
  test.each(cases)('%s', async (_what, path, change, status, code, param) => {
    const answer = await ask(path, change);
    expect({ status: answer.status, ...answer.body.error }).toMatchObject({ status, code, param });
    // What was expected is said.
    expect(answer.body.error.message).toMatch(/\S/);
    expect(answer.body.error.message).not.toMatch(/Invalid input$/);
  });
});

describe('what the library says', () => {
  const forms = [
    'confidence:0.2',
    'planner',
    'planner-round',
    'factor',
    'entropy:0.5',
    'entropy-sum:0.5',
    'geometric',
    'fixed',
    'fixed:4',
    'dynamic',
    'd3llm:0.6',
    'dream',
  ];
  test.each(forms)('#27 the sampler %s', async (sampler) => {
    const library = await libraryOf({ sampler });
    const answer = await ask(CHAT, { sampler });
    expect([answer.status, textOf(answer), answer.body.usage.nfe]).toEqual([200, library.text, library.nfe]);
    expect(answer.body.usage.tokens_per_forward).toBe(library.tokensPerForward);
  });

  test.each(['dual', 'prefix', 'refresh', 'delayed'])('#28 the cache %s', async (cache) => {
    const library = await libraryOf({ cache });
    const answer = await ask(CHAT, { cache });
    expect([textOf(answer), answer.body.usage.full_forwards]).toEqual([library.text, library.fullForwards]);
  });

  test('#16 a nucleus at any temperature', async () => {
    for (const temperature of [0, 1]) {
      const request = { temperature, seed: 4, sampler: 'fixed' };
      const library = await libraryOf({ ...request, topP: 0.9 });
      const answer = await ask(CHAT, { ...request, top_p: 0.9 });
      expect([answer.status, textOf(answer)]).toEqual([200, library.text]);
    }
  });

  test('#06 #07 stop strings cut, and those that do not come do not', async () => {
    const whole = textOf(await ask(CHAT));
    const stop = whole.slice(3, 5);
    const cut = await ask(CHAT, { stop });
    expect([textOf(cut), cut.body.choices[0].finish_reason]).toEqual([whole.slice(0, whole.indexOf(stop)), 'stop']);
    expect(textOf(await ask(CHAT, { stop: ['\u0001'] }))).toBe(whole);
  });

  test('#08 #31 any number of tokens, and passes as many as asked', async () => {
    for (const max_tokens of [1, 7])
      expect((await ask(CHAT, { max_tokens })).body.usage.completion_tokens).toBeLessThanOrEqual(max_tokens);
    expect((await ask(CHAT, { max_nfe: 1 })).body.usage.nfe).toBe(1);
    for (const change of [{ steps: 4 }, { num_denoising_steps: 4 }, { dultra: { steps: 4 } }])
      expect((await ask(CHAT, { sampler: undefined, ...change })).body.dultra.sampler).toEqual({
        type: 'fixed',
        steps: 4,
      });
  });
});

describe('logprobs', () => {
  test('#18 the most probable tokens begin with the one that was taken at temperature 0', async () => {
    for (const sampler of ['fixed', 'confidence:0.2', 'd3llm:0.6']) {
      const { body } = await ask(CHAT, { sampler, logprobs: true, top_logprobs: 3 });
      const { content } = body.choices[0].logprobs;
      expect(content).toHaveLength(body.usage.completion_tokens);
      for (const { token, logprob, top_logprobs: top } of content) {
        // What stands behind an end of sequence no pass decided.
        if (logprob === -9999) continue;
        expect(top).toHaveLength(3);
        expect(top[0].token).toBe(token);
        expect(top[0].logprob).toBeCloseTo(logprob, 4);
        expect(top.map((one: Json) => one.logprob)).toEqual(
          top.map((one: Json) => one.logprob).sort((a: number, b: number) => b - a),
        );
      }
    }
  });

  test('#18 #35 completions have them as lists, streams with the last chunk', async () => {
    const { body } = await ask(TEXT, { prompt: 'ab', logprobs: 2, echo: true });
    const [{ text, logprobs }] = body.choices;
    expect(text.startsWith('ab')).toBe(true);
    expect(logprobs.tokens.join('')).toBe(text.slice(2));
    expect(logprobs.text_offset[0]).toBe(2);
    expect(logprobs.top_logprobs).toHaveLength(logprobs.tokens.length);
    expect((await ask(TEXT, { prompt: 'ab', logprobs: 0 })).body.choices[0].logprobs.top_logprobs).toBeNull();
    const stream = await eventsOf(CHAT, { logprobs: true });
    const whole = (await ask(CHAT, { logprobs: true })).body.choices[0].logprobs;
    expect(stream.at(-2).choices[0]).toMatchObject({ finish_reason: expect.any(String), logprobs: whole });
  });
});

describe('infilling and templates', () => {
  test('#34 a suffix follows the answer, by either route', async () => {
    const request = { prompt: 'ab', suffix: 'yz', seed: 1 };
    const [text, fim] = [await ask(TEXT, request), await ask(FIM, request)];
    const library = await model.generate({ prompt: 'ab', suffix: 'yz' }, { maxTokens: 16, sampler: 'confidence:0.2' });
    expect([textOf(text), textOf(fim)]).toEqual([library.text, library.text]);
    expect(text.body.usage.prompt_tokens).toBe(5);
    const stream = await eventsOf(FIM, request);
    expect(
      stream
        .slice(0, -1)
        .map((chunk) => chunk.choices[0].text)
        .join(''),
    ).toBe(library.text);
    expect(textOf(await ask(TEXT, { prompt: 'ab', suffix: '' }))).toBe(textOf(await ask(TEXT, { prompt: 'ab' })));
  });

  test('a template is filled in place, and its canvas says what is given', async () => {
    const request = { prompt: 'ab[MASK]c{{2}}', max_tokens: null, dultra: { template: true, frames: true } };
    const { text } = await model.generate({ template: 'ab[MASK]c{{2}}' }, { sampler: 'confidence:0.2' });
    expect(textOf(await ask(TEXT, request))).toBe(text);
    const stream = await eventsOf(TEXT, request);
    const { canvas } = stream.find((chunk) => chunk.dultra?.canvas).dultra;
    expect(canvas).toMatchObject({ index: 0, length: 6 });
    expect(canvas.given.map(({ position, text: given }: Json) => [position, given])).toEqual([
      [0, 'a'],
      [1, 'b'],
      [3, 'c'],
    ]);
    const decided = stream.flatMap((chunk) => chunk.dultra?.frame?.unmasked ?? []);
    expect(decided.map(({ position }) => position).sort()).toEqual([2, 4, 5]);
  });

  test('#30 diffusing: every text replaces the one before, and the last is the answer', async () => {
    const stream = await eventsOf(CHAT, { diffusing: true, sampler: 'fixed' });
    const texts = stream.filter((chunk) => chunk.choices?.[0]?.delta.content);
    const marked = texts.filter((chunk) => chunk.diffusion_meta);
    expect(marked.length).toBeGreaterThan(1);
    expect(marked[0].choices[0].delta.content).toContain('░');
    const progress = marked.map((chunk) => chunk.diffusion_meta.diffusion_progress);
    expect(progress).toEqual([...progress].sort((a, b) => a - b));
    expect(texts.at(-1).diffusion_meta).toBeUndefined();
    expect(texts.at(-1).choices[0].delta.content).toBe(textOf(await ask(CHAT, { sampler: 'fixed' })));
  });
});

describe('responses', () => {
  const request = { input: 'a+b', max_output_tokens: 16, sampler: 'confidence:0.2' };

  test('#36 a response is the message of the chat', async () => {
    const chat = await ask(CHAT);
    for (const input of ['a+b', [{ role: 'user', content: [{ type: 'input_text', text: 'a+b' }] }]]) {
      const { status, body } = await ask(RESPONSES, { ...request, input });
      expect(status).toBe(200);
      expect(body).toMatchObject({ object: 'response', model: 'tiny', error: null, previous_response_id: null });
      expect(body.output[0].content).toEqual([{ type: 'output_text', text: textOf(chat), annotations: [] }]);
      expect(body.usage).toMatchObject({ input_tokens: chat.body.usage.prompt_tokens, nfe: chat.body.usage.nfe });
      expect(body.status).toBe(chat.body.choices[0].finish_reason === 'length' ? 'incomplete' : 'completed');
    }
    const instructed = await ask(RESPONSES, { ...request, instructions: 'be' });
    const system = [{ role: 'system', content: 'be' }, ...messages];
    expect(instructed.body.output[0].content[0].text).toBe(textOf(await ask(CHAT, { messages: system })));
  });

  test('#36 its events come in order, numbered, and say the same', async () => {
    const events = await eventsOf(RESPONSES, request);
    const types = events.map(({ type }) => type).filter((type) => type !== 'response.output_text.delta');
    const { response } = events.at(-1);
    expect(types).toEqual(
      [
        'created',
        'in_progress',
        'output_item.added',
        'content_part.added',
        'output_text.done',
        'content_part.done',
        'output_item.done',
        response.status,
      ].map((type) => `response.${type}`),
    );
    expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, i) => i));
    const text = events.map(({ type, delta }) => (type === 'response.output_text.delta' ? delta : '')).join('');
    expect(text).toBe(response.output[0].content[0].text);
  });
});

test('#24 an unknown key is refused with the one that was meant', async () => {
  const { status, body } = await ask(CHAT, { samplr: 'planner' });
  expect([status, body.error.message]).toEqual([400, 'samplr is not a parameter: did you mean "sampler"?']);
});

test('every case has a test, and every number a case', () => {
  const read = (name: string) => readFileSync(path.join(__dirname, name), 'utf8');
  const listed = [...read('server-conformance.test.ts').matchAll(/^\/\/ #(\d\d) .* \(([\w, ]+)\)$/gm)];
  expect(listed.map(([, number]) => Number(number))).toEqual(Array.from({ length: 46 }, (_, i) => i + 1));
  const files = { server: 'server', conformance: 'server-conformance', decisions: 'server-decisions' };
  for (const [name, file] of Object.entries(files)) {
    // Names begin with their numbers, behind a quote.
    const named = [...read(`${file}.test.ts`).matchAll(/['"]((?:#\d\d )+)/g)].flatMap(([, numbers]) =>
      numbers.trim().split(' '),
    );
    const expected = listed.filter(([, , where]) => where.split(', ').includes(name)).map(([, number]) => `#${number}`);
    expect([name, [...new Set(named)].sort()]).toEqual([name, expected]);
  }
});

test('the dashboard asks for metrics that there are', async () => {
  const dashboard = readFileSync(path.join(__dirname, '..', 'docs', 'serving-dashboard.json'), 'utf8');
  const names = new Set(dashboard.match(/\b(dultra|nodejs|process)_[a-z0-9_]+/g));
  const metrics = await (await fetch(`${listening.url}/metrics`)).text();
  expect(names.size).toBeGreaterThan(10);
  expect([...names].filter((name) => !new RegExp(`^${name}[ {]`, 'm').test(metrics))).toEqual([]);
});

describe('curl', () => {
  const curl = (...args: string[]) => spawnSync('curl', ['-sS', '--max-time', '60', ...args], { encoding: 'utf8' });
  const hasCurl = curl('--version').status === 0;
  const testWithCurl = hasCurl ? test : test.skip;

  // The child would hold up the server of this process, so it is asked in another.
  testWithCurl(`streams, HTTP/1.0 and what is chunked${hasCurl ? '' : ' (skipped: there is no curl)'}`, async () => {
    const run = (...args: string[]) =>
      new Promise<string>((resolve) => {
        const child = spawn('curl', ['-sS', '--max-time', '60', ...args]);
        let out = '';
        child.stdout.on('data', (data) => {
          out += data;
        });
        child.stderr.on('data', (data) => {
          out += data;
        });
        child.on('close', () => resolve(out));
      });
    const url = listening.url + CHAT;
    const json = ['-H', 'content-type: application/json', '-d', JSON.stringify(bodyOf(CHAT, {}))];
    const text = textOf(await ask(CHAT));
    expect(textOf({ body: JSON.parse(await run(url, ...json)) })).toBe(text);
    expect(textOf({ body: JSON.parse(await run('--http1.0', url, ...json)) })).toBe(text);
    expect(textOf({ body: JSON.parse(await run('-H', 'transfer-encoding: chunked', url, ...json)) })).toBe(text);
    const stream = await run(
      '-N',
      url,
      '-H',
      'content-type: application/json',
      '-d',
      JSON.stringify(bodyOf(CHAT, { stream: true })),
    );
    expect(stream.trimEnd().endsWith('data: [DONE]')).toBe(true);
  });
});
