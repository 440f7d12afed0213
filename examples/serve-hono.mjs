// A hono application (npm install hono @hono/node-server) with a model in it: node serve-hono.mjs [MODEL] [PORT]
import { serve } from '@hono/node-server';
import { loadModel } from 'dultra';
import { Server } from 'dultra/server';
import { Hono } from 'hono';

const [source, port = '8080'] = process.argv.slice(2);
// At most 16 rows go through passes together, 64 wait, and more are refused with 429.
const model = await loadModel(source || undefined, { engine: { maxRows: 16, maxQueue: 64 } });
// Which names the application has, and who may ask, is its own matter: its middleware runs before.
const llm = new Server({ models: { dultra: model }, hosts: null });

const app = new Hono();
app.get('/', (c) => c.text('The model is under /llm/v1, a page to try it on at /llm/.'));
app.mount('/llm', llm.fetch);

const http = serve({ fetch: app.fetch, port: Number(port), hostname: '127.0.0.1' }, (address) =>
  console.log(`http://127.0.0.1:${address.port}`),
);
process.once('SIGTERM', async () => {
  await llm.drain(30_000); // new requests are refused, those under way are finished
  http.close();
  http.closeAllConnections();
  model.dispose();
});
