// Checks of a server under load and with faults: each says whether it passed, and its figures.
const { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { inParallel, median, post, random, requestOf, sleep, startServer, textOf } = require('./server.cjs');

/** Many requests of all kinds at a time: every answer is the library's. Some clients leave at any moment. */
async function mixed(server, model, { count, atATime = 64, leaving = 0 }) {
  const wrong = [];
  const errors = [];
  await inParallel(count, atATime, async (i) => {
    const { prompt, options, body, stream } = requestOf(i);
    const gone = new AbortController();
    const leaves = i % count < leaving;
    if (leaves) setTimeout(() => gone.abort(), random(i)(40));
    try {
      const text = await textOf(await post(server.url, { ...body, stream }, gone.signal), stream);
      if (text !== (await model.generate(prompt, options)).text) wrong.push(i);
    } catch (error) {
      if (!leaves) errors.push(String(error));
    }
  });
  let rows = 1;
  for (let i = 0; i < 200 && rows > 0; i++) {
    rows = (await server.gauge('dultra_active_rows')) + (await server.gauge('dultra_queued_rows'));
    if (rows > 0) await sleep(20);
  }
  const kv = await server.gauge('dultra_kv_bytes');
  const pass = wrong.length === 0 && errors.length === 0 && rows === 0 && kv === 0;
  return { pass, count, leaving, wrong: wrong.length, errors: errors.slice(0, 3), rowsLeft: rows, kvBytesLeft: kv };
}

/**
 * Readers that never read do not hold up the others, nor fill the memory: of a `server` that `collects`, the bytes beyond
 * those that are left of as many readers who read.
 */
async function silentReaders(server, { readers = 50, rounds = 30 }) {
  const body = JSON.stringify({ ...requestOf(1).body, stream: true, n: 8, dultra: { frames: true } });
  const time = async () => {
    const times = [];
    for (let i = 0; i < rounds; i++) {
      const start = performance.now();
      await textOf(await post(server.url, requestOf(2).body), false);
      times.push(performance.now() - start);
    }
    return median(times);
  };
  await time();
  const alone = await time();
  await inParallel(readers, readers, async () => (await post(server.url, body)).text());
  const before = await server.collected();
  const { hostname, port } = new URL(server.url);
  const head = `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
  const sockets = Array.from({ length: readers }, () => {
    const socket = net.connect(Number(port), hostname);
    socket.on('error', () => {});
    socket.pause();
    socket.write(head);
    return socket;
  });
  for (let i = 0; i < 200 && (i < 10 || (await server.gauge('dultra_active_rows')) > 0); i++) await sleep(20);
  const beside = await time();
  const perReader = before === null ? null : ((await server.collected()) - before) / readers;
  for (const socket of sockets) socket.destroy();
  const ratio = beside / alone;
  const pass = perReader === null || perReader < 2 ** 21;
  return { pass, met: ratio <= 1.1, readers, ratio, bytesPerReader: perReader };
}

/** A body that is none, of some kind. */
function malformed(i) {
  const pick = random(7919 * i + 1);
  const good = JSON.stringify(requestOf(i).body);
  const any = [null, true, -1, 1e308, '', 'x', [], {}, [[]], { a: 1 }, 'é'.repeat(50)];
  const kinds = [
    () => good.slice(0, pick(good.length)),
    () => '['.repeat(1 + pick(100_000)),
    () => `{"prompt":${'['.repeat(5000)}${']'.repeat(5000)}}`,
    () => good.replace(/"seed":\d+/, `"seed":${'9'.repeat(1 + pick(400))}.5`),
    () => Uint8Array.from(good, (char, at) => (at % 7 === 3 ? 0x80 + pick(128) : char.charCodeAt(0))),
    () =>
      JSON.stringify({
        ...JSON.parse(good),
        [Object.keys(JSON.parse(good))[pick(5)]]: any[pick(any.length)],
        max_tokens: 0,
      }),
    () => JSON.stringify({ ...JSON.parse(good), ['k'.repeat(1 + pick(200_000))]: 1 }),
    () => JSON.stringify({ ...JSON.parse(good), sampler: any[pick(any.length)] ?? 'no', n: 99 }),
  ];
  return kinds[i % kinds.length]();
}

/** Values of any kind, where fast-check is installed. */
function anyValues(count) {
  try {
    const fc = require('fast-check');
    return fc.sample(fc.jsonValue({ maxDepth: 6 }), { numRuns: count, seed: 5 });
  } catch {
    return [];
  }
}

/** Sends the head of a request and then what `more` writes. @returns the status line, or how the socket ended */
function rawRequest(url, head, more) {
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    let said = '';
    const socket = net.connect(Number(port), hostname, () => {
      socket.write(head);
      more(socket);
    });
    socket.on('data', (data) => {
      said += data;
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve(/^HTTP\S+ (\d+)/.exec(said)?.[1] ?? 'closed'));
  });
}

/** 100 MB with their length told, and in chunks without it: written until the server closes. */
function largeBodies(url, megabytes) {
  const head = (how) =>
    `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n${how}\r\n\r\n`;
  const write = (wrap) => (socket) => {
    const piece = wrap(Buffer.alloc(2 ** 16, 32));
    let left = 16 * megabytes;
    const next = () => {
      while (left > 0 && !socket.destroyed) {
        left--;
        if (!socket.write(piece)) return socket.once('drain', next);
      }
      return undefined;
    };
    next();
  };
  const chunk = (bytes) => Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`), bytes, Buffer.from('\r\n')]);
  return Promise.all([
    rawRequest(
      url,
      head(`content-length: ${2 ** 20 * megabytes}`),
      write((bytes) => bytes),
    ),
    rawRequest(url, head('transfer-encoding: chunked'), write(chunk)),
  ]);
}

/** Bodies of any kind of nonsense are refused, and the server lives; a second time takes no more memory. */
async function nonsense({ count }) {
  const server = await startServer([], { collects: true });
  const { url } = server;
  const before = await server.collected();
  const bad = [];
  let slowest = 0;
  const values = anyValues(Math.ceil(count / 8)).map((value) => JSON.stringify(value));
  const fields = Object.keys(requestOf(0).body);
  const bodies = async () => {
    const send = async (body, kind, mayBeRight = false) => {
      const start = performance.now();
      const response = await post(url, body);
      const answer = await response.json();
      slowest = Math.max(slowest, performance.now() - start);
      if (mayBeRight && response.status === 200) return;
      if (response.status < 400 || response.status >= 500 || !answer.error?.code) bad.push([kind, response.status]);
    };
    await inParallel(count, 16, (i) => send(malformed(i), i % 8));
    await inParallel(values.length, 16, async (i) => {
      // As a body, and as a field of one.
      if (i % 2 === 0) return send(values[i], 'any', true);
      const body = { ...requestOf(i).body, max_tokens: 4, [fields[i % fields.length]]: JSON.parse(values[i]) };
      return send(JSON.stringify(body), 'field', true);
    });
    await sleep(200);
    return before === null
      ? null
      : { asItIs: server.memory() - before, collected: (await server.collected()) - before };
  };
  const grown = await bodies();
  const megabytes = Math.max(4, Math.round(count / 100));
  const large = await largeBodies(url, megabytes);
  // A head that does not end, and sockets that say nothing, more than are let in: those that are there are answered.
  const slow = rawRequest(url, 'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n', (socket) => {
    const drip = setInterval(() => (socket.destroyed ? clearInterval(drip) : socket.write('x-a: b\r\n')), 500);
    socket.on('close', () => clearInterval(drip));
  });
  const idle = Math.max(8, Math.round(count / 2));
  const sockets = Array.from({ length: idle }, () =>
    net.connect(Number(new URL(url).port), '127.0.0.1').on('error', () => {}),
  );
  await sleep(500);
  for (const socket of sockets) socket.destroy();
  await sleep(100);
  const answers = (await fetch(`${url}/health`)).status === 200;
  const grownAgain = await bodies();
  // It takes ten seconds and more until it is cut: a short run does not wait for it.
  const slowHead = count < 1000 ? null : await Promise.race([slow, sleep(25_000).then(() => 'open after 25 s')]);
  const code = await server.stop();
  const isRefused = large.every((status) => status === '413' || status === 'closed');
  const isCut = [null, '408', 'closed'].includes(slowHead);
  const pass = bad.length === 0 && isRefused && answers && isCut && code === 0;
  const met = grownAgain === null || grownAgain.collected <= 20 * 2 ** 20;
  return {
    pass,
    met,
    count,
    bad: bad.slice(0, 5),
    large,
    megabytes,
    idle,
    slowHead,
    slowestMs: slowest,
    grownBytes: grown,
    grownAgainBytes: grownAgain,
  };
}

/**
 * Ten times what it can do: requests at an even rate, whatever becomes of them. What is refused is told when to come back,
 * and does so with OpenAI's client.
 */
async function overflow({ count }) {
  const server = await startServer(['--max-rows', '4', '--max-queue', '4']);
  let refused = 0;
  const wrong = [];
  /** Asks once. @returns whether it was answered */
  const ask = async (i) => {
    const response = await post(server.url, requestOf(i).body);
    const { error } = await response.json();
    if (response.status === 200) return true;
    refused++;
    const wait = Number(response.headers.get('retry-after'));
    if (response.status !== 429 || !(wait >= 1 && wait <= 60) || error.code !== 'engine_overloaded')
      wrong.push([response.status, error.code, wait]);
    return false;
  };
  /** Answers a second of so many clients, each with one request after the other. */
  const unloaded = async () => {
    const start = performance.now();
    await inParallel(count, 6, ask);
    return (1000 * count) / (performance.now() - start);
  };
  /** Answers a second of requests that come at a rate. */
  const loaded = async (perSecond) => {
    const start = performance.now();
    const asked = [];
    for (let i = 0; i < count * 10; i++) {
      const early = start + (1000 * i) / perSecond - performance.now();
      if (early > 1) await sleep(early);
      asked.push(ask(i % count));
    }
    const spent = performance.now() - start;
    const answered = (await Promise.all(asked)).filter(Boolean).length;
    return { perSecond: (1000 * answered) / (performance.now() - start), asked: (1000 * count * 10) / spent };
  };
  await unloaded();
  const ratios = [];
  const rates = [];
  for (let round = 0; round < 3; round++) {
    const alone = await unloaded();
    const { perSecond, asked } = await loaded(10 * alone);
    ratios.push(perSecond / alone);
    rates.push(asked / alone);
  }
  const openai = await ofOpenAi(server, 24);
  await server.stop();
  const goodputRatio = median(ratios);
  const pass = wrong.length === 0 && refused > 0 && openai.answered === openai.asked && openai.tries > openai.asked;
  const figures = { refused, wrong: wrong.slice(0, 5), rateRatio: median(rates), goodputRatio, openai };
  return { pass, met: goodputRatio >= 0.9, ...figures };
}

/** Requests of OpenAI's client, all at once, which comes back when it is told to. */
async function ofOpenAi(server, asked) {
  const OpenAI = require('openai').default;
  let tries = 0;
  const client = new OpenAI({
    baseURL: `${server.url}/v1`,
    apiKey: 'none',
    maxRetries: 10,
    fetch: (...args) => {
      tries++;
      return fetch(...args);
    },
  });
  const outcomes = await Promise.allSettled(
    Array.from({ length: asked }, (_, i) => client.completions.create({ ...requestOf(i).body, model: 'dultra' })),
  );
  return { asked, answered: outcomes.filter(({ status }) => status === 'fulfilled').length, tries };
}

/** SIGTERM under load: what is under way is finished, the rest refused, and the process ends with 0. */
async function terminate({ count }) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-serving-'));
  // What it leaves on the disk would be there.
  const env = { ...process.env, TMPDIR: folder, HOME: folder, XDG_CACHE_HOME: folder };
  const start = (...args) => startServer(['--max-rows', '8', '--max-queue', '1000', ...args], { env });
  const outcomes = {};
  const note = (what) => {
    outcomes[what] = (outcomes[what] ?? 0) + 1;
  };
  const load = (server, change = {}) =>
    Array.from({ length: count }, (_, i) =>
      post(server.url, { ...requestOf(i).body, ...change, stream: i % 2 === 0 }).then(
        async (response) => {
          const text = await response.text().catch(() => null);
          const isWhole = response.status === 200 && /finish_reason":"(stop|length)"/.test(text ?? '');
          note(text === null ? 'cut' : isWhole ? 'finished' : `refused ${response.status}`);
        },
        () => note('not connected'),
      ),
    );
  /** Until the first is answered. */
  const begun = async () => {
    const before = outcomes.finished ?? 0;
    for (let i = 0; i < 1000 && (outcomes.finished ?? 0) === before; i++) await sleep(5);
  };
  try {
    const server = await start();
    const asked = load(server);
    await begun();
    const code = await server.stop();
    await Promise.all(asked);
    const known = ['finished', 'refused 503', 'not connected'];
    const areKnown = outcomes.finished > 0 && Object.keys(outcomes).every((what) => known.includes(what));

    // A second signal does not wait for what is under way.
    const hasty = await start('--drain', '600');
    const ended = { ...outcomes };
    const long = load(hasty, { n: 16, sampler: 'fixed', max_tokens: 100 });
    await begun();
    const stopping = hasty.stop();
    await sleep(30);
    hasty.child.kill('SIGTERM');
    const hastyCode = await stopping;
    await Promise.all(long);

    // What was killed leaves the port free, and nothing else.
    const killed = await start();
    const { port } = new URL(killed.url);
    const some = load(killed);
    await begun();
    const killedBy = await killed.stop('SIGKILL');
    await Promise.all(some);
    const again = await start('--port', port);
    const answers = (await textOf(await post(again.url, requestOf(1).body), false)).length > 0;
    const lastCode = await again.stop();
    const left = readdirSync(folder);
    const isOrderly = code === 0 && hastyCode === 130 && killedBy === 'SIGKILL' && lastCode === 0 && answers;
    return {
      pass: isOrderly && areKnown && left.length === 0,
      code,
      outcomes: ended,
      hastyCode,
      killedBy,
      answers,
      left,
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A copy of the embedded model's folder, for what is done to it. */
function modelCopy(folder, name) {
  const copy = path.join(folder, name);
  cpSync(path.join(__dirname, '..', '..', 'models', 'word-problems'), copy, { recursive: true });
  return copy;
}

/** Makes all bytes of a tensor the same: 0xff is NaN, which no model is loaded with, 0x7f too large to compute with. */
function spoil(file, part, byte) {
  const bytes = readFileSync(file);
  const begin = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, begin).toString());
  const [name] = Object.keys(header).filter((key) => part.test(key));
  const [from, to] = header[name].data_offsets;
  bytes.fill(byte, begin + from, begin + to);
  writeFileSync(file, bytes);
}

/** Models that cannot answer, beside one that does: their requests fail alone, and say of what. */
async function broken({ count }) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-serving-'));
  try {
    const [nan, huge, gone, cut] = ['nan', 'huge', 'gone', 'cut'].map((name) => modelCopy(folder, name));
    spoil(path.join(nan, 'base.safetensors'), /wte/, 0xff);
    spoil(path.join(huge, 'base.safetensors'), /transformer\.ff_out/, 0x7f);
    const sources = ['good=word-problems', `nan=${nan}`, `huge=${huge}`, `gone=${gone}`, `cut=${cut}`];
    const server = await startServer(['--kv-bytes', '20000', ...sources.flatMap((source) => ['-m', source])]);
    rmSync(gone, { recursive: true });
    const weights = path.join(cut, 'base.safetensors');
    writeFileSync(weights, readFileSync(weights).subarray(0, 5000));
    const expected = {
      nan: [503, 'model_unavailable'],
      huge: [500, 'non_finite'],
      gone: [503, 'model_unavailable'],
      cut: [503, 'model_unavailable'],
      cached: [400, 'unsupported_value'],
    };
    const kinds = ['good', ...Object.keys(expected)];
    const wrong = [];
    const texts = new Map();
    await inParallel(count, 16, async (i) => {
      const kind = kinds[i % kinds.length];
      const model = kind === 'cached' ? 'good' : kind;
      const { prompt } = requestOf(1).body;
      const body = { prompt, model, sampler: 'fixed', max_tokens: 12, ...(kind === 'cached' && { cache: 'dual' }) };
      const response = await post(server.url, body);
      const answer = await response.json();
      if (kind === 'good') {
        if (response.status !== 200) wrong.push([kind, response.status]);
        else texts.set(answer.choices[0].text, true);
      } else if (String([response.status, answer.error?.code]) !== String(expected[kind]))
        wrong.push([kind, response.status, answer.error?.code]);
    });
    const code = await server.stop();
    return {
      pass: wrong.length === 0 && texts.size === 1 && code === 0,
      count,
      wrong: wrong.slice(0, 5),
      texts: texts.size,
      code,
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

module.exports = { broken, mixed, nonsense, overflow, silentReaders, terminate };
