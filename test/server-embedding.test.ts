// A server inside another application; the programs in examples/ that have one are tested with the others there.
import { Hono } from 'hono';
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { Server } from '../lib/server';
import { withTokenizer } from './helpers';
import { eventsIn } from './servers';

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(withTokenizer(), { threads: 1 });
});
afterAll(() => model.dispose());

const post = (body: object, headers: Record<string, string> = {}) => ({
  method: 'POST',
  headers: { 'content-type': 'application/json', ...headers },
  body: JSON.stringify(body),
});
const request = { prompt: 'a+b', max_tokens: 8, stream: true };

/** In hono, under a path and beside a route of the application: as routes of it, or as a handler of all below the path. */
const ways: [string, (app: Hono, server: Server) => void][] = [
  ['route', (app, server) => app.route('/llm', server.app)],
  ['mount', (app, server) => app.mount('/llm', server.fetch)],
];
test.each(ways)('%s: streams, errors and keys are those of the server', async (_name, embed) => {
  const server = new Server({ models: { tiny: model }, apiKeys: ['key'] });
  const app = new Hono();
  app.get('/', (c) => c.text('mine'));
  embed(app, server);
  const ask = (path: string, init = {}) => app.request(`http://localhost${path}`, init);
  const key = { authorization: 'Bearer key' };
  expect(await (await ask('/')).text()).toBe('mine');
  const stream = await ask('/llm/v1/completions', post(request, key));
  expect([stream.status, stream.headers.get('content-type')]).toEqual([200, 'text/event-stream; charset=utf-8']);
  const text = eventsIn(await stream.text()).map((event) => event.choices?.[0].text ?? '');
  expect(text.join('')).toBe((await model.generate('a+b', { maxTokens: 8, splitSpecialTokens: true })).text);
  const wrong = await ask('/llm/v1/completions', post({}, key));
  expect([wrong.status, ((await wrong.json()) as { error: { param: string } }).error.param]).toEqual([400, 'prompt']);
  // What is answered by its path: without a key, and in another form.
  const paths = ['/llm/health', '/llm', '/llm/playground-page.css', '/llm/v1/models'];
  const statuses = await Promise.all(paths.map(async (path) => (await ask(path)).status));
  expect(statuses).toEqual([200, 200, 200, 401]);
  const decided = await ask('/llm/v1/systemone', post({ state: 'a', questions: {} }, key));
  expect([decided.status, await decided.json()]).toEqual([
    422,
    { error: { code: 422, message: expect.any(String), type: 'unprocessable_entity_error' } },
  ]);
});
