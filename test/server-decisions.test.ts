// /v1/decisions and /v1/systemone: answers are the library's, bit for bit, and errors those of each form.
import { loadModel, type MaskedDiffusionModel, type Question } from '../lib';
import { type Listening, listen } from '../lib/server';

// biome-ignore lint/suspicious/noExplicitAny: answers are compared with what they should be
type Json = any;

let model: MaskedDiffusionModel;
let listening: Listening;
beforeAll(async () => {
  model = await loadModel('world', { threads: 2, engine: { maxRows: 64, maxQueue: 512 } });
  listening = await listen({ models: { world: model }, port: 0 });
});
afterAll(async () => {
  await listening.close();
  model.dispose();
});

const REVIEW = 'The soup was awful and the waiter was dreadful.';
const post = async (
  path: string,
  body: unknown,
  type = 'application/json',
): Promise<{ status: number; body: Json }> => {
  const response = await fetch(listening.url + path, {
    method: 'POST',
    headers: { 'content-type': type },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  return { status: response.status, body: await response.json() };
};
const decisions = (questions: unknown, more: object = {}) =>
  post('/v1/decisions', { model: 'world', input: REVIEW, questions, ...more });
const systemOne = (questions: unknown, more: object = {}) =>
  post('/v1/systemone', { state: REVIEW, questions, ...more });

const AGAIN = 'Will the customer buy again?';
const MOOD = 'Is this review positive, negative or neutral?';
const STARS = 'How many stars?';
const LEVELS = ['one', 'two', 'three', 'four', 'five'];
const QUESTIONS: Record<string, Question> = {
  again: { type: 'boolean', instructions: AGAIN },
  mood: { type: 'choice', instructions: MOOD, criteria: { positive: null, negative: null, neutral: null } },
  stars: { type: 'score', instructions: STARS, criteria: LEVELS },
};

describe('/v1/decisions', () => {
  const three = [
    { type: 'predicate', instructions: AGAIN },
    {
      type: 'choice',
      instructions: [{ type: 'input_text', text: MOOD }],
      choices: ['positive', 'negative', 'neutral'].map((value) => ({ value })),
      name: 'mood',
    },
    { type: 'score', instructions: STARS, levels: LEVELS.map((label) => ({ label })) },
  ];

  test('#39 three types in order, named or not, as the library answers', async () => {
    const { answers, usage } = await model.decide(REVIEW, QUESTIONS);
    const { status, body } = await decisions(three);
    const { again, mood, stars } = answers as Json;
    expect(status).toBe(200);
    expect(body.model).toBe('world');
    expect(body.answers).toEqual([
      { type: 'predicate', name: null, probability: again.probability },
      {
        type: 'choice',
        name: 'mood',
        choice: 'negative',
        confidence: mood.confidence,
        probabilities: ['positive', 'negative', 'neutral'].map((value) => ({
          value,
          probability: mood.probabilities[value],
        })),
      },
      {
        type: 'score',
        name: null,
        score: stars.score,
        confidence: stars.confidence,
        probabilities: LEVELS.map((label, value) => ({ label, value, probability: stars.probabilities[value] })),
      },
    ]);
    expect(body.usage).toEqual({
      input_tokens: usage.inputTokens,
      input_tokens_details: { cached_tokens: 0, cache_write_tokens: 0 },
      output_tokens: 0,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: usage.inputTokens,
    });
    expect(body.dultra).toMatchObject({ calibrated: false, warnings: [], rows: 3 });
    expect(body.dultra.answers[0]).toEqual({ option_mass: again.optionMass, temperature: 1, scorer: 'token' });
    // A message of a user is a text; several are a chat.
    const item = (role: string, text: string) => ({ role, content: [{ type: 'input_text', text }] });
    const asItem = await decisions(three, { input: [item('user', REVIEW)] });
    expect(asItem.body.answers).toEqual(body.answers);
    const chat = await decisions(three.slice(0, 1), { input: [item('user', 'Hello!'), item('assistant', 'Hello!')] });
    expect([chat.status, chat.body.answers.length]).toEqual([200, 1]);
  });

  test('parts of JSON, refusals, and what clients send besides', async () => {
    const { answers } = await model.decide('ab{"c":[1]}', { q: QUESTIONS.again });
    const content = [
      { type: 'input_text', text: 'ab', prompt_cache_breakpoint: { mode: 'explicit' } },
      { type: 'input_json', data: { c: [1] } },
    ];
    const { status, body } = await decisions(three.slice(0, 1), {
      input: [{ type: 'message', role: 'user', content }],
      prompt_cache_options: { mode: 'explicit' },
      dultra: { prior: false },
    });
    expect([status, body.answers[0].probability]).toEqual([200, (answers.q as Json).probability]);
    const said = [{ type: 'refusal', refusal: 'No.' }];
    const chat = [
      { role: 'user', content },
      { role: 'assistant', content: said, phase: 'final_answer' },
    ];
    expect((await decisions(three.slice(0, 1), { input: chat })).status).toBe(200);
    const prior = await decisions(three.slice(0, 1), { dultra: { prior: true } });
    expect([prior.status, prior.body.dultra.rows]).toEqual([200, 2]);
  });

  test('#40 "true" and true are two values', async () => {
    const choices = [{ value: 'true' }, { value: true }, { value: false }];
    const { status, body } = await decisions([{ type: 'choice', instructions: AGAIN, choices }]);
    expect(status).toBe(200);
    const [{ probabilities, choice }] = body.answers;
    expect(probabilities.map(({ value }: Json) => value)).toEqual(['true', true, false]);
    expect(probabilities[0].probability).not.toBe(probabilities[1].probability);
    expect(['true', true, false]).toContain(choice);
  });

  test('a refusal passes', async () => {
    const { body } = await decisions([{ type: 'predicate', instructions: 'xyz' }], {
      input: 'What is 8 + 6?',
      dultra: { min_option_mass: 0.9 },
    });
    expect(body.answers).toEqual([{ type: 'refusal', name: null }]);
  });

  const choice = (choices: unknown) => [{ type: 'choice', instructions: 'a', choices }];
  const values = (count: number) => Array.from({ length: count }, (_, i) => ({ value: `v${i}` }));
  const bad: [string, unknown, object, string, string | null][] = [
    ['#41 one choice', choice(values(1)), {}, 'invalid_value', 'questions[0].choices'],
    ['#41 256 choices', choice(values(256)), {}, 'invalid_value', 'questions[0].choices'],
    ['#41 a choice twice', choice([{ value: 'a' }, { value: 'a' }]), {}, 'invalid_value', 'questions[0].choices'],
    ['choices that read alike', choice([{ value: 'a' }, { value: 'A' }]), {}, 'invalid_value', 'questions[0].criteria'],
    ['no questions', [], {}, 'invalid_value', 'questions'],
    ['no instructions', [{ type: 'predicate', instructions: ' ' }], {}, 'invalid_value', 'questions[0].instructions'],
    [
      'one level',
      [{ type: 'score', instructions: 'a', levels: [{ label: 'x' }] }],
      {},
      'invalid_value',
      'questions[0].levels',
    ],
    [
      'eleven levels',
      [{ type: 'score', instructions: 'a', levels: Array.from({ length: 11 }, (_, i) => ({ label: `${i}` })) }],
      {},
      'invalid_value',
      'questions[0].levels',
    ],
    ['another type', [{ type: 'box' }], {}, 'invalid_value', 'questions[0].type'],
    ['an unknown key', three, { temprature: 1 }, 'unknown_parameter', 'temprature'],
    ['an unknown key of dultra', three, { dultra: { scorers: 'a' } }, 'unknown_parameter', 'dultra.scorers'],
    [
      'an image',
      three,
      { input: [{ role: 'user', content: [{ type: 'input_image' }] }] },
      'unsupported_value',
      'input[0].content',
    ],
    ['an input that is too long', three, { input: 'abc '.repeat(400) }, 'context_length_exceeded', 'input'],
  ];
  test.each(bad)('400: %s', async (_what, questions, more, code, param) => {
    const { status, body } = await decisions(questions, more);
    expect([status, body.error.type, body.error.code, body.error.param]).toEqual([
      400,
      'invalid_request_error',
      code,
      param,
    ]);
  });

  test('other errors', async () => {
    expect((await post('/v1/decisions', '{')).body.error.code).toBe('invalid_json');
    expect((await post('/v1/decisions', {}, 'text/plain')).status).toBe(415);
    expect((await decisions(three, { model: 'x' })).status).toBe(404);
    expect((await fetch(`${listening.url}/v1/decisions`)).status).toBe(405);
  });
});

describe('/v1/systemone', () => {
  const three = {
    stars: { type: 'score', instructions: STARS, criteria: LEVELS },
    again: { type: 'noul', instructions: AGAIN, criteria: { true: 'comes back' } },
    mood: { type: 'choice', instructions: MOOD, criteria: { positive: null, negative: 'bad', neutral: null } },
  };

  test('#42 three types, with their keys in order, and a state of JSON', async () => {
    const { answers, usage } = (await model.decide(REVIEW, QUESTIONS)) as Json;
    const { status, body } = await systemOne(three);
    expect(status).toBe(200);
    expect(Object.keys(body)).toEqual(['model', 'answers', 'usage']);
    expect(Object.keys(body.answers)).toEqual(['stars', 'again', 'mood']);
    expect(body.answers).toEqual({
      stars: {
        type: 'score',
        score: answers.stars.score,
        legend: LEVELS,
        probabilities: Object.fromEntries(answers.stars.probabilities.map((p: number, i: number) => [String(i), p])),
        confidence: answers.stars.confidence,
      },
      again: { type: 'noul', noul: answers.again.probability },
      mood: {
        type: 'choice',
        choice: 'negative',
        probabilities: answers.mood.probabilities,
        confidence: answers.mood.confidence,
      },
    });
    expect(body.usage).toEqual({ input_tokens: usage.inputTokens, output_tokens: 0 });
    const said = await post('/api/systemone', { state: { review: REVIEW }, questions: three, dultra: true });
    expect(said.body).toMatchObject({ calibrated: false, warnings: [], dultra: { rows: 3 } });
    expect(said.body.dultra.answers.again.scorer).toBe('token');
  });

  const one = (question: object) => ({ q: { type: 'noul', instructions: 'a', ...question } });
  let deep: unknown = 1;
  for (let i = 0; i < 40; i++) deep = [deep];
  const bad: [string, unknown, object][] = [
    ['#43 no questions', {}, {}],
    ['#43 another type', one({ type: 'box' }), {}],
    ['no instructions', one({ instructions: '' }), {}],
    ['one option', one({ type: 'choice', criteria: { a: null } }), {}],
    [
      '256 options',
      one({ type: 'choice', criteria: Object.fromEntries(Array.from({ length: 256 }, (_, i) => [`v${i}`, null])) }),
      {},
    ],
    ['#43 a state 40 deep', three, { state: deep }],
    ['a state that is a number', three, { state: 5 }],
    ['a model that is no text', three, { model: 5 }],
    ['a state that is too long', three, { state: 'abc '.repeat(400) }],
  ];
  test.each(bad)('422: %s', async (_what, questions, more) => {
    const { status, body } = await systemOne(questions, more);
    expect([status, body.error.code, body.error.type]).toEqual([422, 422, 'unprocessable_entity_error']);
    expect(body.error.message).toMatch(/\w/);
  });

  test('other errors', async () => {
    const error = async (body: unknown) => {
      const { status, body: said } = await post('/v1/systemone', body);
      return [status, said.error.code, said.error.type];
    };
    expect(await error('{')).toEqual([400, 400, 'invalid_request_error']);
    expect(await error({ state: 'a'.repeat(2 ** 21), questions: three })).toEqual([
      413,
      413,
      'request_too_large_error',
    ]);
    expect(await error({ state: 'a', questions: three, model: 'x' })).toEqual([404, 404, 'not_found_error']);
  });
});

test('answers under load, beside chats and streams, are those of the library', async () => {
  const { answers } = (await model.decide(REVIEW, QUESTIONS)) as Json;
  const others = Array.from({ length: 24 }, (_, i) =>
    post(i % 2 ? '/v1/chat/completions' : '/v1/completions', {
      ...(i % 2 ? { messages: [{ role: 'user', content: `What is ${i} + 2?` }] } : { prompt: `What is ${i} + 2?` }),
      max_tokens: 24,
      sampler: ['confidence:0.9', 'fixed:4', 'planner'][i % 3],
    }),
  );
  const asked = Array.from({ length: 40 }, (_, i) =>
    systemOne({ [`n${i}`]: { type: 'noul', instructions: `Is it ${i}?` }, q: { type: 'noul', instructions: AGAIN } }),
  );
  for (const { status, body } of await Promise.all(asked)) {
    expect(status).toBe(200);
    expect(body.answers.q.noul).toBe(answers.again.probability);
  }
  for (const { status } of await Promise.all(others)) expect(status).toBe(200);
  const text = await (await fetch(`${listening.url}/metrics`)).text();
  expect(text).toMatch(/dultra_decisions_total\{model="world",type="boolean"\} \d\d/);
});
