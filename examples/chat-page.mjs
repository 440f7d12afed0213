// A page that shows text as it is unmasked, over server-sent events: node examples/chat-page.mjs [MODEL] [PORT]
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { loadModel } from 'dultra';

const [source, port = '8080'] = process.argv.slice(2);
const page = readFileSync(new URL('chat-page.html', import.meta.url));
const model = await loadModel(source || undefined);
/** A model with a chat template gets the question as a message, any other one as text. */
const promptOf = (text) => (model.tokenizer?.hasChatTemplate ? [{ role: 'user', content: text }] : text);

/** Sends one event for each forward pass, and the end of the answer or an error as the last one. */
async function stream(prompt, response) {
  const stop = new AbortController();
  response.on('close', () => stop.abort()); // the reader has left: stop the work
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' });
  const send = (data) => response.write(`data: ${JSON.stringify(data)}\n\n`);
  try {
    const options = { splitSpecialTokens: true, signal: stop.signal }; // what people type is text, not special tokens
    for await (const { step, ids, unmasked, delta, result } of model.generateStream(promptOf(prompt), options)) {
      send({
        length: ids.length,
        step,
        unmasked: unmasked.map(({ position, text }) => ({ position, text })),
        delta, // the text that is final from here on
        ...(result && { done: { text: result.text, passes: result.nfe, tokens: result.tokens } }),
      });
    }
  } catch (error) {
    if (!stop.signal.aborted) send({ error: error.message });
  }
  response.end();
}

const server = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  if (pathname === '/stream') return stream(searchParams.get('prompt') ?? '', response);
  if (pathname === '/') return response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end(page);
  return response.writeHead(404).end();
});
// Only this machine: put a server with passwords and limits in front of it before others may reach it.
server.listen(Number(port), '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
process.once('SIGTERM', () => {
  server.close();
  server.closeAllConnections();
  model.dispose();
});
