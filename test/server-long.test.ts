// Large requests: none holds up the others.
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { Server } from '../lib/server';
import { withTokenizer } from './helpers';

let model: MaskedDiffusionModel;
let server: Server;
beforeAll(async () => {
  model = await loadModel(withTokenizer(), { threads: 1 });
  server = new Server({ models: { tiny: model } });
});
afterAll(() => model.dispose());

async function ask(path: string, body: string, signal?: AbortSignal) {
  const headers = { 'content-type': 'application/json' };
  const request = new Request(`http://localhost${path}`, { method: 'POST', headers, body, ...(signal && { signal }) });
  const response = await server.fetch(request);
  const { error } = (await response.json()) as { error: { code: string; message: string; param: string } };
  return { status: response.status, error };
}

/** How often the event loop goes round until something is done. */
async function rounds<T>(work: Promise<T>): Promise<{ count: number; value: T }> {
  let count = 0;
  let isDone = false;
  const turn = () => {
    count++;
    if (!isDone) setImmediate(turn);
  };
  setImmediate(turn);
  const value = await work.finally(() => {
    isDone = true;
  });
  return { count, value };
}

const MILLION = 1_000_000;
const long = 'a+b='.repeat(MILLION / 4);

test.each([
  ['a text', '/v1/completions', JSON.stringify({ prompt: long })],
  ['several texts', '/v1/completions', JSON.stringify({ prompt: new Array(50).fill(long.slice(0, MILLION / 50)) })],
  ['a suffix', '/v1/completions', JSON.stringify({ prompt: 'a', suffix: long })],
  ['a message', '/v1/chat/completions', JSON.stringify({ messages: [{ role: 'user', content: long }] })],
  ['an input', '/v1/responses', JSON.stringify({ input: long })],
])('%s of a megabyte becomes tokens beside the main thread', async (_name, path, body) => {
  const { count, value } = await rounds(ask(path, body));
  expect(value.status).toBe(400);
  expect(value.error).toMatchObject({
    code: 'context_length_exceeded',
    message: expect.stringMatching(/^the prompt has (1000\d{3}|20000|1000002) tokens/),
  });
  // On the main thread it would go round a dozen times.
  expect(count).toBeGreaterThan(100);
});

test('ids are those of the main thread; a template and errors come back too', async () => {
  const { encoding } = model.engineParts();
  const text = `${'x<mask>y '.repeat(2000)}`;
  const options = { splitSpecialTokens: true };
  const messages = [{ role: 'user', content: text }];
  const encoded = await encoding.encode([{ prompt: text }, { prompt: messages }]);
  expect(encoded).toEqual([model.encodePrompt(text, options), model.encodePrompt(messages, options)]);
  const [filled] = await encoding.encode([{ template: `${'a'.repeat(9000)}[MASK]` }]);
  expect([filled.length, filled[9000]]).toEqual([9001, model.config.maskTokenId]);
  const wrong = [{ template: `${'a'.repeat(9000)}{{0}}` }];
  await expect(encoding.encode(wrong)).rejects.toThrow(/^template: expected 1 to \d+ masks, got "\{\{0\}\}"$/);
  await expect(encoding.encode(wrong)).rejects.toThrow(RangeError);
  const clients = Array.from({ length: 66 }, () => new AbortController());
  const outcomes = Promise.allSettled(clients.map(({ signal }) => encoding.encode([{ prompt: text }], signal)));
  for (const client of clients) client.abort(new Error('left'));
  const reasons = (await outcomes).map((outcome) => String((outcome as PromiseRejectedResult).reason));
  expect(reasons.filter((reason) => reason === 'Error: left')).toHaveLength(65);
  expect(reasons[65]).toBe('DUltraError: 64 long texts wait to become tokens');
  // What was left behind holds up nobody.
  expect(await encoding.encode([{ prompt: text }])).toEqual([encoded[0]]);
});

test.each([
  ['texts', '/v1/completions', `{"prompt":[${'"a",'.repeat(200_000)}"a"]}`, 'prompt'],
  ['ids that are none', '/v1/completions', `{"prompt":[${'-1,'.repeat(300_000)}1]}`, 'prompt'],
  ['messages', '/v1/chat/completions', `{"messages":[${'0,'.repeat(400_000)}0]}`, 'messages'],
  ['items', '/v1/responses', `{"input":[${'0,'.repeat(400_000)}0]}`, 'input'],
  ['parts', '/v1/chat/completions', `{"messages":[{"role":"user","content":[${'0,'.repeat(400_000)}0]}]}`, 'content'],
  ['wrong messages', '/v1/chat/completions', `{"messages":[${'0,'.repeat(2000)}0]}`, 'messages[0]'],
])('of many %s the first that is wrong is told', async (_name, path, body, param) => {
  const { status, error } = await ask(path, body);
  expect([status, error.param.endsWith(param), error.message.length < 300]).toEqual([400, true, true]);
});

test.each([
  ['lists', '[]', 25_000, 'expected at most 20000 lists'],
  ['objects', '{"a":"\\\\"}', 12_000, 'expected at most 20000 lists'],
])('many %s are refused before they are read', async (_name, part, count, message) => {
  const { status, error } = await ask('/v1/completions', `{"metadata":[${new Array(count).fill(part)}]}`);
  expect([status, error.code]).toEqual([400, 'invalid_json']);
  expect(error.message).toContain(message);
});

test('depth is counted outside of strings alone', async () => {
  const nested = (levels: number, text = '') =>
    `{"prompt":"a","max_tokens":1,"metadata":${'['.repeat(levels)}${text}${']'.repeat(levels)}}`;
  expect((await ask('/v1/completions', nested(63))).status).toBe(200);
  expect((await ask('/v1/completions', nested(64))).error.message).toBe('expected JSON of at most 64 levels');
  const quoted = JSON.stringify(`\\"${'['.repeat(100)}\\`);
  expect((await ask('/v1/completions', nested(1, quoted))).status).toBe(200);
  expect((await ask('/v1/completions', '{"prompt":"a[[[')).error.message).toBe('the body is not JSON');
});
