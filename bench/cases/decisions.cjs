// Decisions of the embedded model: fifty questions about a text, in turns with a plain forward pass of the same rows;
// and requests over HTTP by sixteen clients, each of which asks again as soon as it has its answer. Server and clients
// are in this process.
const http = require('node:http');
const dultra = require('../../dist/index.js');
const { alternate, speedup } = require('../lib/measure.cjs');

const REVIEW = 'The soup was awful and the waiter was dreadful.';
const QUESTIONS = 50;
const CLIENTS = 16;
/** Of each client, in a run. */
const REQUESTS = 8;

const cases = ({ threads }) => threads.map((count) => ({ threads: count }));

/** Questions that differ, so that no row is another's. */
const questions = () =>
  Object.fromEntries(
    Array.from({ length: QUESTIONS }, (_, i) => [
      `q${i}`,
      { type: 'boolean', instructions: `Will the customer ${i} buy again?` },
    ]),
  );

/** The rows that these questions are, packed. */
function rowsOf(model, asked) {
  const { maskTokenId, eosTokenId } = model.config;
  const end = model.tokenizer.encode('.', { addSpecialTokens: false });
  const ids = [];
  const rowOffsets = [0];
  for (const { instructions } of Object.values(asked)) {
    ids.push(...model.encodePrompt(`${instructions} ${REVIEW}`), maskTokenId, ...end, eosTokenId);
    rowOffsets.push(ids.length);
  }
  return { ids: Int32Array.from(ids), rowOffsets: Int32Array.from(rowOffsets) };
}

async function run({ threads, quick }) {
  const model = await dultra.loadModel('world', { threads });
  const asked = questions();
  const request = rowsOf(model, asked);
  const { answers } = await model.decide(REVIEW, asked);
  const again = await model.decide(REVIEW, { one: asked.q7 });
  if (again.answers.one.probability !== answers.q7.probability) throw new Error('an answer depends on the others');
  const { listen } = require('../../dist/server/index.js');
  const listening = await listen({ models: { world: model }, port: 0 });
  const body = JSON.stringify({
    state: REVIEW,
    questions: { again: { type: 'noul', instructions: 'Will the customer buy again?' } },
  });
  // fetch takes as much of a core as the server does.
  const agent = new http.Agent({ keepAlive: true, maxSockets: CLIENTS });
  const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) };
  const ask = () =>
    new Promise((resolve, reject) => {
      const sent = http.request(`${listening.url}/v1/systemone`, { method: 'POST', agent, headers }, (response) => {
        if (response.statusCode !== 200) reject(new Error(`status ${response.statusCode}`));
        response.on('end', resolve).on('error', reject).resume();
      });
      sent.on('error', reject).end(body);
    });
  const client = async () => {
    for (let i = 0; i < REQUESTS; i++) await ask();
  };
  const calls = {
    'decide, 50 questions': () => model.decide(REVIEW, asked),
    'forward, the same rows': () => model.forward(request),
    'POST /v1/systemone, 16 clients': () => Promise.all(Array.from({ length: CLIENTS }, client)),
  };
  const timings = await alternate(calls, quick ? { seconds: 0.3, rounds: 1 } : { seconds: 2, rounds: 5 });
  const forward = timings['forward, the same rows'];
  const notes = {
    'decide, 50 questions': ({ median }) => `${Math.round((1000 * QUESTIONS) / median)} questions/s`,
    'forward, the same rows': () => `${request.ids.length} tokens`,
    'POST /v1/systemone, 16 clients': ({ median }) =>
      `${Math.round((1000 * CLIENTS * REQUESTS) / median)} requests/s of one question; clients in the same process`,
  };
  agent.destroy();
  await listening.close();
  const times = 1 / speedup(timings['decide, 50 questions'], forward, 'wall');
  return Object.entries(timings).map(([name, { turns, ...timing }]) => ({
    shape: `embedded model, ${name}`,
    threads,
    contender: 'dultra',
    unit: 'ms',
    ...timing,
    note: notes[name](timing) + (name.startsWith('decide') ? `; ${times.toFixed(2)} times the forward pass` : ''),
  }));
}

module.exports = { title: 'Decisions', cases, run };
