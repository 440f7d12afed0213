// The server: OpenAI's wire formats, what it refuses, and that it answers as the library does.
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { type Listening, type LogEntry, listen, Server } from '../lib/server';
import { variant, withTokenizer } from './helpers';
import { eventsIn } from './servers';

// biome-ignore lint/suspicious/noExplicitAny: answers are compared with what they should be
type Json = any;

let model: MaskedDiffusionModel;
let listening: Listening;
const log: LogEntry[] = [];
beforeAll(async () => {
  model = await loadModel(withTokenizer(), { threads: 1, engine: { maxRows: 8, maxQueue: 64, stepTokens: 'auto' } });
  listening = await listen({ models: { tiny: model }, port: 0, log: (entry) => log.push(entry) });
});
afterAll(async () => {
  await listening.close();
  model.dispose();
});

const messages = [{ role: 'user', content: 'a+b' }];
const plain = { messages, max_tokens: 16, sampler: 'confidence:0.2' };

const post = (path: string, body: unknown, headers: Record<string, string> = {}, signal?: AbortSignal) =>
  fetch(listening.url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    ...(signal && { signal }),
  });
const chat = async (body: unknown) => {
  const response = await post('/v1/chat/completions', body);
  return { status: response.status, headers: response.headers, body: (await response.json()) as Json };
};
const events = async (response: Response) => eventsIn(await response.text());

describe('answers', () => {
  test('#01 a chat is what the library says, with usage that adds up', async () => {
    const { status, headers, body } = await chat(plain);
    const result = await model.generate(messages as never, {
      maxTokens: 16,
      sampler: 'confidence:0.2',
      splitSpecialTokens: true,
    });
    expect(status).toBe(200);
    expect(headers.get('x-request-id')).toMatch(/^[\w-]{36}$/);
    expect(body).toMatchObject({
      object: 'chat.completion',
      model: 'tiny',
      choices: [
        {
          index: 0,
          message: { role: 'assistant', content: result.text, refusal: null },
          logprobs: null,
          finish_reason: result.finishReason === 'length' ? 'length' : 'stop',
        },
      ],
    });
    const { prompt_tokens, completion_tokens, total_tokens, nfe } = body.usage;
    expect([prompt_tokens, completion_tokens, nfe]).toEqual([
      result.promptIds.length,
      result.usage.completionTokens,
      result.nfe,
    ]);
    expect(total_tokens).toBe(prompt_tokens + completion_tokens);
  });

  test.each(['confidence:0.2', 'planner', 'fixed', 'd3llm:0.6'])(
    '#02 #03 a stream of %s is the plain text',
    async (sampler) => {
      for (const cache of [undefined, 'dual']) {
        const request = { ...plain, sampler, cache, temperature: 0.7, seed: 5 };
        const whole = await chat(request);
        const stream = await events(
          await post('/v1/chat/completions', { ...request, stream: true, stream_options: { include_usage: true } }),
        );
        expect(stream.pop()).toBe('[DONE]');
        const chunks = stream as Record<string, Json>[];
        const usage = chunks.pop()!;
        expect(usage.choices).toEqual([]);
        expect(usage.usage).toEqual(whole.body.usage);
        expect(new Set(chunks.map(({ id, object, created }) => `${id} ${object} ${created}`)).size).toBe(1);
        expect(chunks[0]).toMatchObject({ object: 'chat.completion.chunk', usage: null });
        expect(chunks[0].choices[0].delta).toEqual({ role: 'assistant', content: '' });
        const text = chunks.map(({ choices }) => choices[0].delta.content ?? '').join('');
        expect(text).toBe(whole.body.choices[0].message.content);
        expect(chunks.map(({ choices }) => choices[0].finish_reason).filter(Boolean)).toEqual([
          whole.body.choices[0].finish_reason,
        ]);
      }
    },
  );

  test('#29 denoise frames decide each position once', async () => {
    const stream = await events(
      await post('/v1/chat/completions', { ...plain, sampler: 'fixed', stream: true, stream_mode: 'denoise' }),
    );
    const frames = stream.flatMap((chunk) =>
      typeof chunk === 'object' && chunk.dultra?.frame ? [chunk.dultra.frame] : [],
    );
    const positions = frames.flatMap(({ unmasked }) => unmasked.map(({ position }: { position: number }) => position));
    expect(new Set(positions).size).toBe(positions.length);
    expect(frames.map(({ step }) => step)).toEqual(frames.map((_, i) => i + 1));
    for (const chunk of stream) if (typeof chunk === 'object' && chunk.dultra) expect(chunk.choices).toEqual([]);
  });

  test('#04 #05 n choices are rows of a batch, a seed repeats an answer, and a drawn seed is told', async () => {
    const request = { ...plain, temperature: 1, n: 3, seed: '-1', sampler: 'fixed' };
    const first = await chat(request);
    expect((await chat(request)).body.choices).toEqual(first.body.choices);
    expect(first.body.dultra.seed).toBe('18446744073709551615');
    const rows = await model.generateBatch([messages, messages, messages] as never, {
      maxTokens: 16,
      sampler: 'fixed',
      temperature: 1,
      seed: 2n ** 64n - 1n,
      splitSpecialTokens: true,
    });
    expect(first.body.choices.map((choice: Json) => choice.message.content)).toEqual(rows.map(({ text }) => text));
    const drawn = await chat({ ...plain, temperature: 1, sampler: 'fixed' });
    const again = await chat({ ...plain, temperature: 1, sampler: 'fixed', seed: drawn.body.dultra.seed });
    expect(again.body.choices).toEqual(drawn.body.choices);
  });

  test('#33 completions: texts and ids, in order; any number of tokens; passes as asked', async () => {
    const ask = async (body: object) => (await post('/v1/completions', { max_tokens: 7, ...body })).json();
    const both = (await ask({ prompt: ['ab', 'x'] })) as Json;
    const ids = [...'ab'].map((letter) => letter.charCodeAt(0) - 32);
    const byIds = (await ask({ prompt: ids })) as Json;
    const lists = (await ask({ prompt: [ids, ['x'.charCodeAt(0) - 32]] })) as Json;
    expect(lists.choices).toEqual(both.choices);
    expect(both.object).toBe('text_completion');
    expect(both.choices.map(({ index }: Json) => index)).toEqual([0, 1]);
    expect(byIds.choices[0].text).toBe(both.choices[0].text);
    expect(both.usage.completion_tokens).toBeLessThanOrEqual(14);
    const quick = (await ask({ prompt: 'ab', max_nfe: 1, dultra: { stop_at_eos: false } })) as Json;
    expect([quick.usage.nfe, quick.usage.completion_tokens]).toEqual([1, 7]);
    const logged = (await chat({ ...plain, logprobs: true })).body.choices[0].logprobs.content;
    expect(logged.length).toBeGreaterThan(0);
    for (const { logprob, top_logprobs } of logged) expect([logprob <= 0, top_logprobs]).toEqual([true, []]);
  });

  test('#38 #46 models, health and metrics', async () => {
    const get = async (path: string) => (await fetch(listening.url + path)).json();
    expect(await get('/v1/models')).toMatchObject({ object: 'list', data: [{ id: 'tiny', object: 'model' }] });
    expect(await get('/v1/models/tiny')).toMatchObject({ id: 'tiny', owned_by: 'dultra' });
    expect(await get('/v1/models/other')).toMatchObject({ error: { code: 'model_not_found' } });
    expect((await fetch(`${listening.url}/v1/models/other`)).status).toBe(404);
    expect(await get('/health')).toEqual({ status: 'ok' });
    const metrics = await (await fetch(`${listening.url}/metrics`)).text();
    expect(metrics).toMatch(
      /^dultra_requests_total\{route="\/v1\/chat\/completions",model="tiny",status="200"\} \d+$/m,
    );
    expect(metrics).toMatch(/^dultra_active_rows\{model="tiny"\} 0$/m);
    expect(log.find(({ status }) => status === 200)).toMatchObject({ model: 'tiny', settings: { maxTokens: 16 } });
    expect(JSON.stringify(log)).not.toContain('a+b');
  });
});

describe('the log', () => {
  test('a line has what gives its answer again', async () => {
    const requests = [
      { ...plain, temperature: 0.9 },
      { ...plain, temperature: 1, n: 3, sampler: 'fixed', top_k: 20, top_p: 0.9, cache: 'dual' },
      { ...plain, sampler: 'planner', cache: 'prefix', block_length: 8, seed: '-5', temperature: 0.5 },
      { ...plain, sampler: 'fixed', stop: 'a', dultra: { stop_at_eos: false } },
      { ...plain, sampler: 'fixed', max_nfe: 3, temperature: 1 },
      { ...plain, sampler: 'fixed', max_tokens: 32, dultra: { deadline_ms: 1, on_deadline: 'finish' } },
    ];
    for (const request of requests) {
      const crowd = Promise.all([chat({ ...plain, n: 2 }), chat({ ...plain, sampler: 'fixed', temperature: 1 })]);
      const answer = await chat(request);
      await crowd;
      if (answer.status === 504) continue;
      const {
        settings,
        passes,
        model: name,
      } = JSON.parse(
        JSON.stringify(log.findLast(({ usage }) => JSON.stringify(usage) === JSON.stringify(answer.body.usage))),
      );
      const { maxTokens, maxNfe, topK, topP, stopAtEos, blockLength, logprobs, ...same } = settings;
      const isCut = 'dultra' in request && 'deadline_ms' in request.dultra;
      const again = await chat({
        messages,
        model: name,
        ...same,
        n: passes.length,
        max_tokens: maxTokens,
        max_nfe: isCut ? passes[0] : maxNfe,
        top_k: topK,
        top_p: topP,
        block_length: blockLength,
        logprobs,
        dultra: { stop_at_eos: stopAtEos },
      });
      expect(again.body.choices).toEqual(answer.body.choices);
      expect(again.body.usage).toEqual(answer.body.usage);
    }
  });
});

describe('refusals', () => {
  const cases: [string, object, number, string, string | null][] = [
    ['#24 an unknown key', { samplr: 'planner' }, 400, 'unknown_parameter', 'samplr'],
    ['#21 a model', { model: 'other' }, 404, 'model_not_found', 'model'],
    ['#12 no messages', { messages: undefined }, 400, 'missing_required_parameter', 'messages'],
    ['#12 an empty list', { messages: [] }, 400, 'invalid_value', 'messages'],
    ['#13 a role', { messages: [{ role: 'tool', content: 'x' }] }, 400, 'unsupported_value', 'messages[0].role'],
    [
      '#13 a picture',
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] },
      400,
      'unsupported_value',
      'messages[0].content',
    ],
    ['#09 two lengths', { max_completion_tokens: 8 }, 400, 'invalid_value', 'max_tokens'],
    ['#10 no tokens', { max_tokens: 0 }, 400, 'invalid_value', 'max_tokens'],
    ['#10 a length as text', { max_tokens: '5' }, 400, 'invalid_value', 'max_tokens'],
    ['#10 too many tokens', { max_tokens: 1e6 }, 400, 'context_length_exceeded', 'messages'],
    ['#17 a temperature', { temperature: 3 }, 400, 'invalid_value', 'temperature'],
    ['#17 a temperature as text', { temperature: 'hot' }, 400, 'invalid_value', 'temperature'],
    ['#15 a tool', { tools: [{ type: 'function' }] }, 400, 'unsupported_parameter', 'tools'],
    ['a penalty', { presence_penalty: 0.5 }, 400, 'unsupported_parameter', 'presence_penalty'],
    ['a format', { response_format: { type: 'xml' } }, 400, 'invalid_value', 'response_format.type'],
    ['#26 two samplers', { dultra: { sampler: 'planner' } }, 400, 'invalid_value', 'sampler'],
    ['a sampler', { sampler: 'confidnce' }, 400, 'invalid_value', 'sampler'],
    ['a block length', { block_length: 5 }, 400, 'invalid_value', 'max_tokens'],
    ['a deadline', { sampler: 'fixed', dultra: { deadline_ms: 0 } }, 400, 'invalid_value', 'dultra.deadline_ms'],
  ];
  test.each(cases)('%s', async (_name, change, status, code, param) => {
    const answer = await chat({ ...plain, ...change });
    expect(answer.body).toMatchObject({ error: { code, param, type: expect.any(String) } });
    expect(answer.status).toBe(status);
    expect(answer.body.error.message).not.toMatch(/undefined|\bat \S+:\d+/);
  });

  test('#14 #17 what changes nothing is taken, and null stands for nothing', async () => {
    const neutral = {
      user: 'u',
      metadata: { a: 'b' },
      tools: [],
      tool_choice: 'none',
      response_format: { type: 'text' },
      presence_penalty: 0,
      logit_bias: {},
      top_logprobs: null,
      temperature: null,
      stop: null,
      service_tier: 'auto',
    };
    expect((await chat({ ...plain, ...neutral })).body.choices).toEqual((await chat(plain)).body.choices);
  });

  test('#22 #23 #45 bodies, types, methods, hosts and origins', async () => {
    const path = '/v1/chat/completions';
    const statusOf = async (response: Promise<Response>) => (await response).status;
    for (const body of ['{', '', '[]', 'null', '"x"']) expect(await statusOf(post(path, body))).toBe(400);
    expect(await statusOf(post(path, '{}', { 'content-type': 'text/plain' }))).toBe(415);
    expect(await statusOf(post(path, ' '.repeat(2 ** 20 + 1)))).toBe(413);
    const wrong = await fetch(listening.url + path);
    expect([wrong.status, wrong.headers.get('allow')]).toEqual([405, 'POST']);
    expect(await statusOf(fetch(`${listening.url}/nope`))).toBe(404);
    expect(await statusOf(fetch(`${listening.url}/health`, { headers: { origin: 'https://evil.example' } }))).toBe(403);
    const foreign = await listening.server.fetch(new Request('http://evil.example/v1/models'));
    expect([foreign.status, ((await foreign.json()) as Json).error.code]).toEqual([403, 'host_not_allowed']);
  });

  test('#44 keys', async () => {
    const guarded = await listen({
      models: { tiny: model },
      port: 0,
      apiKeys: ['one', 'two'],
      cors: ['https://a.example'],
    });
    const get = (key?: string) =>
      fetch(`${guarded.url}/v1/models`, {
        headers: { origin: 'https://a.example', ...(key && { authorization: `Bearer ${key}` }) },
      });
    expect((await Promise.all([get(), get('three'), get('two')])).map(({ status }) => status)).toEqual([401, 401, 200]);
    expect((await get('one')).headers.get('access-control-allow-origin')).toBe('https://a.example');
    // OpenAI's client in a web page sends headers of its own.
    const preflight = await fetch(`${guarded.url}/v1/chat/completions`, {
      method: 'OPTIONS',
      headers: {
        origin: 'https://a.example',
        'access-control-request-method': 'POST',
        'access-control-request-headers': 'authorization,content-type,x-stainless-os',
      },
    });
    expect([preflight.status, preflight.headers.get('access-control-allow-headers')]).toEqual([
      204,
      'authorization,content-type,x-stainless-os',
    ]);
    await guarded.close();
  });
});

test('models are loaded on request, one at a time, and put out where memory is short', async () => {
  const loads: string[] = [];
  const load = (name: string) => async () => {
    loads.push(name);
    return loadModel(withTokenizer(), { threads: 1 });
  };
  const { weightBytes } = model.info;
  const server = new Server({
    models: { a: load('a'), b: load('b'), c: load('c'), kept: model },
    maxModelBytes: 2.5 * weightBytes,
  });
  const ask = async (name: string, more: object = {}) => {
    const response = await server.fetch(
      new Request('http://localhost/v1/chat/completions', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ ...plain, model: name, ...more }),
      }),
    );
    return (await response.json()) as Json;
  };
  const loaded = async () => {
    const text = await (await server.fetch(new Request('http://localhost/metrics'))).text();
    return [...text.matchAll(/^dultra_model_bytes\{model="(\w+)"\}/gm)].map(([, name]) => name);
  };
  await server.load('a');
  const [first, second] = await Promise.all([ask('a'), ask('b')]);
  expect(first.choices).toEqual(second.choices);
  expect(await loaded()).toEqual(['a', 'b', 'kept']);
  await ask('a');
  await ask('c');
  expect([loads, await loaded()]).toEqual([
    ['a', 'b', 'c'],
    ['a', 'c', 'kept'],
  ]);
  // What has requests under way is not put out.
  const busy = Promise.all([ask('a', { n: 8, sampler: 'fixed' }), ask('c', { n: 8, sampler: 'fixed' })]);
  const third = ask('b');
  expect((await busy).map(({ choices }) => choices.length)).toEqual([8, 8]);
  expect((await third).choices).toEqual(first.choices);
  expect((await ask('kept')).choices).toEqual(first.choices);
  server.dispose();
  expect(await loaded()).toEqual(['kept']);
  expect((await ask('c')).choices).toEqual(first.choices);
  server.dispose();
});

test('a model that cannot be loaded fails its request, and is tried again', async () => {
  let tries = 0;
  const server = new Server({
    models: {
      late: async () => {
        if (++tries === 1) throw new Error('not yet');
        return loadModel(withTokenizer(), { threads: 1 });
      },
    },
  });
  await expect(server.load('late')).rejects.toThrow('not yet');
  await server.load('late');
  expect(tries).toBe(2);
  server.dispose();
});

test('models that cannot answer fail their requests alone, by name', async () => {
  const entries: LogEntry[] = [];
  // Numbers too large to compute with; NaN itself is refused when a model is loaded.
  const folder = variant('base', {
    tensors: (tensors) => {
      tensors['model.transformer.ff_out.weight'].raw.fill(0x7f);
    },
  });
  const small = await loadModel(withTokenizer(), { threads: 1, engine: { kvBytes: 1000 } });
  const server = new Server({
    models: {
      good: model,
      small,
      nan: () => loadModel(folder, { threads: 1 }),
      gone: () => loadModel(`${folder}/gone`, { threads: 1 }),
    },
    log: (entry) => entries.push(entry),
  });
  const ask = async (name: string, more: object = {}) => {
    const body = JSON.stringify({ prompt: [1, 2, 3], max_tokens: 8, sampler: 'fixed', model: name, ...more });
    const headers = { 'content-type': 'application/json' };
    const response = await server.fetch(
      new Request('http://localhost/v1/completions', { method: 'POST', headers, body }),
    );
    return { status: response.status, headers: response.headers, body: (await response.json()) as Json };
  };
  const [good, nan, gone, cached, again] = await Promise.all([
    ask('good'),
    ask('nan'),
    ask('gone'),
    ask('small', { cache: 'dual' }),
    ask('good'),
  ]);
  expect(good.status).toBe(200);
  expect(again.body.choices).toEqual(good.body.choices);
  expect([nan.status, nan.body.error.code, nan.headers.get('x-should-retry')]).toEqual([500, 'non_finite', 'false']);
  expect([gone.status, gone.body.error]).toEqual([
    503,
    {
      message: 'the model "gone" could not be loaded',
      type: 'server_error',
      param: 'model',
      code: 'model_unavailable',
    },
  ]);
  // Where it lies is for the log alone.
  expect(entries.find(({ model: name }) => name === 'gone')).toMatchObject({
    status: 503,
    error: 'model_unavailable',
    reason: expect.stringContaining(folder),
  });
  expect([cached.status, cached.body.error.code, cached.body.error.param]).toEqual([400, 'unsupported_value', 'cache']);
  expect((await ask('small')).body.choices).toEqual(good.body.choices);
  server.dispose();
  small.dispose();
});

describe('ends', () => {
  const long = { ...plain, sampler: 'fixed', max_tokens: 32 };

  test('a client that leaves takes its rows along', async () => {
    const { engine } = model.engineParts();
    const leaving = Array.from({ length: 6 }, async (_, i) => {
      const gone = new AbortController();
      const asked = post('/v1/chat/completions', { ...long, n: 8, stream: i % 2 === 0 }, {}, gone.signal);
      setTimeout(() => gone.abort(), i);
      await asked.then((response) => response.text()).catch(() => {});
    });
    await Promise.all(leaving);
    for (let i = 0; i < 400 && engine.state.activeRows + engine.state.queuedRows > 0; i++)
      await new Promise((resolve) => setTimeout(resolve, 10));
    expect([engine.state.activeRows, engine.state.queuedRows]).toEqual([0, 0]);
    expect((await chat(plain)).status).toBe(200);
  });

  test('a full queue is refused with a time to come back', async () => {
    const answers = await Promise.all(Array.from({ length: 12 }, () => chat({ ...long, n: 16 })));
    const refused = answers.filter(({ status }) => status === 429);
    expect(refused.length).toBeGreaterThan(0);
    for (const { headers, body } of refused)
      expect([headers.get('retry-after'), Number(headers.get('retry-after-ms')), body.error.type]).toEqual([
        expect.stringMatching(/^([1-9]|[1-5]\d|60)$/),
        expect.any(Number),
        'rate_limit_error',
      ]);
    expect(answers.filter(({ status }) => status === 200).length + refused.length).toBe(12);
  });

  test('#46 closing finishes what is under way and refuses the rest', async () => {
    const other = await listen({ models: { tiny: model }, port: 0 });
    const ask = () =>
      other.server.fetch(
        new Request(`${other.url}/v1/chat/completions`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify(long),
        }),
      );
    const running = ask();
    await new Promise((resolve) => setTimeout(resolve, 1));
    const closing = other.close();
    expect((await ask()).status).toBe(503);
    expect((await other.server.fetch(new Request(`${other.url}/health`))).status).toBe(503);
    expect((await running).status).toBe(200);
    expect(await closing).toBe(true);
    await expect(fetch(`${other.url}/health`)).rejects.toThrow();
  });
});
