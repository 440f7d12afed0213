// A server inside another application, as docs/serving.md has it: in hono, and where requests are those of Node.js, as in
// express, whose handlers they are.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { getRequestListener } from '@hono/node-server';
import { Hono } from 'hono';
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

const request = { prompt: 'a+b', max_tokens: 8, stream: true };
const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(request) };

/** The text of a stream. */
async function streamed(response: Response): Promise<string> {
  expect([response.status, response.headers.get('content-type')]).toEqual([200, 'text/event-stream; charset=utf-8']);
  const events = (await response.text()).split('\n\n').filter((event) => event.startsWith('data: {'));
  return events.map((event) => JSON.parse(event.slice(6)).choices[0].text).join('');
}
const expected = async () => (await model.generate('a+b', { maxTokens: 8, splitSpecialTokens: true })).text;

test('in hono: under a path, beside routes of the application', async () => {
  const app = new Hono();
  app.get('/', (c) => c.text('mine'));
  app.route('/llm', server.app);
  expect(await (await app.request('http://localhost/')).text()).toBe('mine');
  expect(await streamed(await app.request('http://localhost/llm/v1/completions', init))).toBe(await expected());
  const wrong = await app.request('http://localhost/llm/v1/completions', { ...init, body: '{}' });
  expect([wrong.status, ((await wrong.json()) as { error: { param: string } }).error.param]).toEqual([400, 'prompt']);
});

test('in express: the last handler, which gets what no other took', async () => {
  type Handler = (request: IncomingMessage, response: ServerResponse, next: () => void) => void;
  const handlers: Handler[] = [
    (incoming, response, next) => (incoming.url === '/' ? response.end('mine') : next()),
    getRequestListener((incoming) => server.fetch(incoming)),
  ];
  const http = createServer((incoming, response) => {
    const run = (at: number): void => handlers[at](incoming, response, () => run(at + 1));
    run(0);
  });
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
  expect(await (await fetch(url)).text()).toBe('mine');
  expect(await streamed(await fetch(`${url}/v1/completions`, init))).toBe(await expected());
  expect((await fetch(`${url}/nothing`)).status).toBe(404);
  http.closeAllConnections();
  await new Promise((resolve) => http.close(resolve));
});
