// An express application (npm install express @hono/node-server) with a model in it: node serve-express.mjs [MODEL] [PORT]
import { getRequestListener } from '@hono/node-server';
import { loadModel } from 'dultra';
import { Server } from 'dultra/server';
import express from 'express';

const [source, port = '8080'] = process.argv.slice(2);
// At most 16 rows go through passes together, 64 wait, and more are refused with 429.
const model = await loadModel(source || undefined, { engine: { maxRows: 16, maxQueue: 64 } });
// Which names the application has, and who may ask, is its own matter: its middleware runs before.
const llm = new Server({ models: { dultra: model }, hosts: null });

const app = express();
// Before what reads bodies, as express.json() does: the server reads them itself.
app.use('/llm', getRequestListener(llm.fetch));
app.use(express.json());
app.get('/', (_request, response) => response.send('The model is under /llm/v1, a page to try it on at /llm/.'));
app.post('/echo', (request, response) => response.json(request.body));

const http = app.listen(Number(port), '127.0.0.1', () => console.log(`http://127.0.0.1:${http.address().port}`));
process.once('SIGTERM', async () => {
  await llm.drain(30_000); // new requests are refused, those under way are finished
  http.close();
  http.closeAllConnections();
  model.dispose();
});
