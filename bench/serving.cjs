// A server under load and with faults, and what it costs beside the library.
//   node bench/serving.cjs [--only NAME,…] [--scale 1] [--soak 600] [--out FILE]
// The server runs in a process of its own, with the embedded model. Every check says whether it passed, and its figures;
// times of a busy machine are compared as ratios of medians, in turns. --scale 0.1 makes a tenth of the requests; --out
// writes FILE.json and FILE.md.
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const { readFileSync, writeFileSync } = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { machine } = require('./lib/report.cjs');

const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
const NAMES = ['tom', 'anna', 'ben', 'lucy'];
const SAMPLERS = ['planner', 'planner-round', 'confidence:0.9', 'entropy:0.2', 'fixed:4', 'fixed', 'd3llm:0.6'];
const CACHES = [undefined, 'dual', 'prefix', 'refresh'];

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Numbers that look random and are the same every time. */
function random(seed) {
  let state = seed >>> 0;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
}

/** Starts `dultra serve`. */
async function startServer(...args) {
  const start = performance.now();
  const child = spawn(process.execPath, [main, 'serve', '--port', '0', '--quiet', '--threads', '1', ...args]);
  let said = '';
  const url = await new Promise((resolve, reject) => {
    child.stderr.on('data', (data) => {
      said += data;
      const found = /listening on (http:\S+)/.exec(said);
      if (found) resolve(found[1]);
    });
    child.on('exit', (code) => reject(new Error(`the server ended with ${code}: ${said}`)));
  });
  return {
    url,
    child,
    startMs: performance.now() - start,
    /** Resident bytes; null where the system does not say. */
    memory() {
      try {
        return 1024 * Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))[1]);
      } catch {
        return null;
      }
    },
    async gauge(name) {
      const text = await (await fetch(`${url}/metrics`)).text();
      const values = text.match(new RegExp(`^${name}(\\{.*\\})? (\\S+)$`, 'gm')) ?? [];
      return values.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
    },
    async stop(signal = 'SIGTERM') {
      if (child.exitCode !== null) return child.exitCode;
      const ended = once(child, 'exit');
      child.kill(signal);
      return (await ended)[0];
    },
  };
}

/** A request, and the options of the library that give the same. */
function requestOf(i, pick = random(i)) {
  const number = () => 1 + pick(8);
  const prompt = `${NAMES[pick(4)]} has ${number()} apples . he buys ${number()} . how many now ? story`;
  const sampler = SAMPLERS[pick(SAMPLERS.length)];
  const cache = CACHES[pick(CACHES.length)];
  const maxTokens = 4 + pick(21);
  const temperature = pick(2) ? 0.7 : 0;
  const options = { sampler, maxTokens, temperature, seed: i, splitSpecialTokens: true, ...(cache && { cache }) };
  const body = { prompt, sampler, max_tokens: maxTokens, temperature, seed: i, ...(cache && { cache }) };
  return { prompt, options, body, stream: pick(2) === 1 };
}

const post = (url, body, signal) =>
  fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body),
    signal,
  });

/** The text of an answer or stream. @throws for what is none */
async function textOf(response, isStream) {
  if (response.status !== 200) throw new Error(`status ${response.status}: ${await response.text()}`);
  if (!isStream) return (await response.json()).choices[0].text;
  const events = (await response.text()).split('\n\n').filter((part) => part.startsWith('data: {'));
  return events.map((part) => JSON.parse(part.slice(6)).choices[0]?.text ?? '').join('');
}

/** Runs `work(i)` for i from 0 to before `count`, so many at a time. */
async function inParallel(count, atATime, work) {
  let next = 0;
  const worker = async () => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: Math.min(atATime, count) }, worker));
}

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

/** Readers that never read do not hold up the others, nor fill the memory. */
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
  const before = server.memory();
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
  const perReader = before === null ? null : (server.memory() - before) / readers;
  for (const socket of sockets) socket.destroy();
  const ratio = beside / alone;
  return { pass: perReader === null || perReader < 2 ** 21, readers, ratio, bytesPerReader: perReader };
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

/** Bodies of any kind of nonsense are refused, and the server lives. */
async function nonsense(server, { count }) {
  const before = server.memory();
  const bad = [];
  let slowest = 0;
  await inParallel(count, 16, async (i) => {
    const start = performance.now();
    const response = await post(server.url, malformed(i));
    const { error } = await response.json();
    slowest = Math.max(slowest, performance.now() - start);
    if (response.status < 400 || response.status >= 500 || !error?.code) bad.push([i % 8, response.status]);
  });
  const large = await fetch(`${server.url}/v1/completions`, {
    method: 'POST',
    duplex: 'half',
    headers: { 'content-type': 'application/json' },
    // In pieces, so that no length is told before; of four times what the server takes, and no more.
    body: (async function* () {
      for (let i = 0; i < 64; i++) yield new Uint8Array(2 ** 16).fill(32);
    })(),
  }).then(
    ({ status }) => status,
    () => 'closed',
  );
  const { url } = server;
  const sockets = Array.from({ length: Math.min(500, count) }, () =>
    net.connect(Number(new URL(url).port), '127.0.0.1').on('error', () => {}),
  );
  await sleep(50);
  const answers = (await fetch(`${url}/health`)).status === 200;
  for (const socket of sockets) socket.destroy();
  await sleep(200);
  const grown = before === null ? null : server.memory() - before;
  const pass = bad.length === 0 && (large === 413 || large === 'closed') && answers;
  return { pass, count, bad: bad.slice(0, 5), large, slowestMs: slowest, grownBytes: grown };
}

/** Ten times what fits: the rest is refused with a time to come back, and comes back. */
async function overflow({ count }) {
  const server = await startServer('--max-rows', '4', '--max-queue', '4');
  let refused = 0;
  let unanswered = 0;
  const goodput = async (atATime) => {
    const start = performance.now();
    await inParallel(count, atATime, async (i) => {
      for (let tries = 0; ; tries++) {
        const response = await post(server.url, requestOf(i).body);
        if (response.status === 200) {
          await response.json();
          return;
        }
        refused++;
        const wait = Number(response.headers.get('retry-after'));
        await response.text();
        if (response.status !== 429 || !(wait >= 1) || tries > 200) {
          unanswered++;
          return;
        }
        // Impatient: the server's time is for clients that can wait.
        await sleep(10 + random(i + tries)(40));
      }
    });
    return count / ((performance.now() - start) / 1000);
  };
  await goodput(4);
  const ratios = [];
  for (let round = 0; round < 3; round++) {
    const alone = await goodput(4);
    ratios.push((await goodput(80)) / alone);
  }
  await server.stop();
  return { pass: unanswered === 0 && refused > 0, refused, unanswered, goodputRatio: median(ratios) };
}

/** SIGTERM under load: what is under way is finished, the rest refused, and the process ends with 0. */
async function terminate({ count }) {
  const server = await startServer('--max-rows', '8', '--max-queue', '1000');
  const outcomes = {};
  const note = (what) => {
    outcomes[what] = (outcomes[what] ?? 0) + 1;
  };
  const asked = Array.from({ length: count }, (_, i) =>
    post(server.url, { ...requestOf(i).body, stream: i % 2 === 0 }).then(
      async (response) => {
        const text = await response.text();
        note(
          response.status === 200 && /finish_reason":"(stop|length)"/.test(text)
            ? 'finished'
            : `refused ${response.status}`,
        );
      },
      () => note('not connected'),
    ),
  );
  await sleep(30);
  const code = await server.stop();
  await Promise.all(asked);
  const known = Object.keys(outcomes).every((what) => ['finished', 'refused 503', 'not connected'].includes(what));
  return { pass: code === 0 && known, code, outcomes };
}

/** CPU seconds of the server's process so far: of all its threads, and without what the metrics themselves cost. */
const serverCpu = (server) => server.gauge('process_cpu_seconds_total');
const ownCpu = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

/**
 * Answers with and without HTTP, in turns. Rows: 16 clients who ask again as soon as they are answered, against batches
 * of 16; by the clock, whose ratio has the clients' own work too, and by the CPU time of either process. One row: what a
 * request takes beside it.
 */
async function overhead(server, model, { rounds = 20 }) {
  const { prompt, options, body } = requestOf(3);
  const settings = { ...options, sampler: 'fixed', maxTokens: 24 };
  const request = JSON.stringify({ ...body, sampler: 'fixed', max_tokens: 24 });
  const ask = async () => (await post(server.url, request)).json();
  const measured = async (cpu, work) => {
    const [before, start] = [await cpu(), performance.now()];
    await work();
    const ms = performance.now() - start;
    return { ms, cpu: 1000 * ((await cpu()) - before) };
  };
  const again = 4;
  const times = { batch: [], served: [], alone: [], asked: [] };
  const add = (name, value) => times[name].push(value);
  for (let round = -2; round < rounds; round++) {
    const batch = await measured(ownCpu, async () => {
      for (let i = 0; i < again; i++) await model.generateBatch(new Array(16).fill(prompt), settings);
    });
    const served = await measured(
      () => serverCpu(server),
      () => inParallel(16 * again, 16, ask),
    );
    const alone = await measured(ownCpu, async () => {
      for (let i = 0; i < 16; i++) await model.generate(prompt, settings);
    });
    const asked = await measured(
      () => serverCpu(server),
      async () => {
        for (let i = 0; i < 16; i++) await ask();
      },
    );
    if (round < 0) continue;
    add('batch', batch);
    add('served', served);
    add('alone', alone);
    add('asked', asked);
  }
  const ratio = (what) => median(times.batch.map((batch, i) => batch[what] / times.served[i][what]));
  const extra = (what) => median(times.asked.map((asked, i) => (asked[what] - times.alone[i][what]) / 16));
  return {
    pass: true,
    batchRatio: ratio('ms'),
    batchCpuRatio: ratio('cpu'),
    aloneExtraMs: extra('ms'),
    aloneExtraCpuMs: extra('cpu'),
  };
}

/** What the main thread does between the end of a pass and the begin of the next, for so many rows. */
async function betweenPasses(model, { rounds = 20 }) {
  const { native } = model.engineParts();
  const share = native.share.bind(native);
  let ended = null;
  let gaps = [];
  native.share = () => {
    const handle = share();
    const step = (...args) => {
      if (ended !== null) gaps.push(performance.now() - ended);
      const work = handle.step(...args);
      const end = () => {
        ended = performance.now();
      };
      work.then(end, end);
      return work;
    };
    const get = (target, name) =>
      name === 'step' ? step : typeof target[name] === 'function' ? target[name].bind(target) : target[name];
    return new Proxy(handle, { get });
  };
  const { prompt } = requestOf(3);
  const lowest = {};
  try {
    for (const sampler of ['fixed', 'planner'])
      for (const rows of [1, 16, 64]) {
        gaps = [];
        for (let i = 0; i < rounds; i++) {
          ended = null;
          await model.generateBatch(new Array(rows).fill(prompt), { sampler, maxTokens: 24, seed: i });
        }
        // What other processes take of the time is not the engine's: the lower fifth.
        lowest[`${sampler} ${rows}`] = gaps.sort((a, b) => a - b)[Math.floor(0.2 * gaps.length)];
      }
  } finally {
    native.share = share;
  }
  const microsecondsARow = Object.fromEntries(
    ['fixed', 'planner'].map((name) => [name, (1000 * (lowest[`${name} 64`] - lowest[`${name} 1`])) / 63]),
  );
  return { pass: true, ms: lowest, microsecondsARow };
}

/** Requests that arrive at random, in batches of 8 that wait for each other and as they come: time to answer. */
async function arrivals(model, { count }) {
  const lengths = Array.from({ length: count }, (_, i) => (i % 4 === 0 ? 24 : 6));
  const one = (i) => model.generate(requestOf(i).prompt, { sampler: 'fixed', maxTokens: lengths[i], seed: i });
  const p95 = (values) => [...values].sort((a, b) => a - b)[Math.floor(0.95 * values.length)];
  await one(0);
  const start = performance.now();
  for (let i = 0; i < 20; i++) await one(i % count);
  const gap = (performance.now() - start) / 20;
  const pick = random(1);
  const at = [];
  for (let i = 0, time = 0; i < count; i++) {
    time += -Math.log((pick(1e6) + 1) / 1e6) * gap * 0.7;
    at.push(time);
  }
  const run = async (serve) => {
    const begin = performance.now();
    const waits = [];
    await serve(begin, (i) => {
      waits[i] = performance.now() - begin - at[i];
    });
    return { p95: p95(waits), perSecond: (1000 * count) / (performance.now() - begin) };
  };
  const continuous = () =>
    run(async (begin, done) => {
      await Promise.all(
        at.map(async (time, i) => {
          await sleep(Math.max(0, begin + time - performance.now()));
          await one(i);
          done(i);
        }),
      );
    });
  const fixed = () =>
    run(async (begin, done) => {
      for (let first = 0; first < count; ) {
        await sleep(Math.max(0, begin + at[first] - performance.now()));
        let end = first;
        while (end < count && end - first < 8 && begin + at[end] <= performance.now()) end++;
        end = Math.max(end, first + 1);
        await Promise.all(Array.from({ length: end - first }, (_, i) => one(first + i)));
        for (let i = first; i < end; i++) done(i);
        first = end;
      }
    });
  const rounds = [];
  for (let round = 0; round < 3; round++) rounds.push([await fixed(), await continuous()]);
  return {
    pass: true,
    p95Ratio: median(rounds.map(([a, b]) => a.p95 / b.p95)),
    perSecondRatio: median(rounds.map(([a, b]) => b.perSecond / a.perSecond)),
  };
}

/** A long time under an even load: memory and times stay as they are. */
async function soak(server, { seconds }) {
  const samples = [];
  const times = [];
  const begin = performance.now();
  const passed = () => (performance.now() - begin) / 1000;
  const sampling = setInterval(() => samples.push([passed(), server.memory()]), 1000);
  await Promise.all(
    Array.from({ length: 16 }, async (_, client) => {
      for (let i = client; passed() < seconds; i += 16) {
        const start = performance.now();
        await textOf(await post(server.url, requestOf(i % 1000).body), false);
        times.push([passed(), performance.now() - start]);
      }
    }),
  );
  clearInterval(sampling);
  const late = samples.filter(([time, bytes]) => time > seconds / 5 && bytes !== null);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [x, y] = [mean(late.map(([time]) => time)), mean(late.map(([, bytes]) => bytes))];
  const slope =
    late.reduce((sum, [time, bytes]) => sum + (time - x) * (bytes - y), 0) /
    late.reduce((sum, [time]) => sum + (time - x) ** 2, 0);
  const p99 = (from, to) => {
    const some = times.filter(([time]) => time >= from * seconds && time < to * seconds).map(([, ms]) => ms);
    return some.sort((a, b) => a - b)[Math.floor(0.99 * some.length)];
  };
  return {
    pass: late.length === 0 || slope * 60 < 2 ** 20,
    requests: times.length,
    bytesPerMinute: slope * 60,
    p99Ratio: p99(0.9, 1) / p99(0.1, 0.2),
  };
}

/** All checks, or those of `only`, each by its name. */
async function run({ only = null, scale = 1, soakSeconds = 600, report = () => {} } = {}) {
  const { loadModel } = require('../dist/index.js');
  const model = await loadModel(undefined, { threads: 1 });
  const server = await startServer('--max-queue', '4096');
  const some = (count) => Math.max(8, Math.round(count * scale));
  const checks = {
    start: async () => ({ pass: true, startMs: server.startMs }),
    mixed: () => mixed(server, model, { count: some(1000) }),
    leaving: () => mixed(server, model, { count: some(1000), leaving: some(300) }),
    silent: () => silentReaders(server, { readers: some(50), rounds: some(30) }),
    nonsense: () => nonsense(server, { count: some(10_000) }),
    overflow: () => overflow({ count: some(200) }),
    terminate: () => terminate({ count: some(200) }),
    overhead: () => overhead(server, model, { rounds: some(20) }),
    between: () => betweenPasses(model, { rounds: some(20) }),
    arrivals: () => arrivals(model, { count: some(200) }),
    soak: () => soak(server, { seconds: soakSeconds }),
  };
  const results = {};
  try {
    for (const [name, check] of Object.entries(checks)) {
      if (only && !only.includes(name)) continue;
      const load = os.loadavg()[0];
      results[name] = { ...(await check()), load };
      report(name, results[name]);
    }
  } finally {
    await server.stop();
    model.dispose();
  }
  return results;
}

/** A figure, or several by their names. */
const shown = (value) => {
  if (typeof value === 'number') return String(Number(value.toPrecision(3)));
  if (typeof value !== 'object' || value === null) return String(value);
  return Object.entries(value)
    .map(([name, one]) => (Array.isArray(value) ? shown(one) : `${name}: ${shown(one)}`))
    .join(', ');
};

/** Writes results as JSON and as a page. */
function write(file, results) {
  const at = machine({ dultra: require('../package.json').version });
  const command = `node bench/serving.cjs ${process.argv.slice(2).join(' ')}`.trim();
  writeFileSync(`${file}.json`, `${JSON.stringify({ machine: at, command, results }, null, 1)}\n`);
  const rows = Object.entries(results).map(([name, { pass, load, ...figures }]) => {
    const lines = Object.entries(figures).map(([what, value]) => `${what} ${shown(value) || 'none'}`);
    return `| ${name} | ${pass ? 'ok' : 'FAILED'} | ${shown(load)} | ${lines.join('; ')} |`;
  });
  const text = [
    '# Serving: load, faults and cost',
    `\`${command}\``,
    Object.entries(at)
      .map(([name, value]) => `${name}: ${value}`)
      .join(' · '),
    'What each check does stands in ../serving.cjs; `load` is the load average before it.',
    ['| check | | load | figures |', '| --- | --- | --- | --- |', ...rows].join('\n'),
  ];
  writeFileSync(`${file}.md`, `${text.join('\n\n')}\n`);
}

module.exports = { run };

if (require.main === module) {
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      scale: { type: 'string', default: '1' },
      soak: { type: 'string', default: '600' },
      out: { type: 'string' },
    },
  });
  run({
    only: values.only?.split(',') ?? null,
    scale: Number(values.scale),
    soakSeconds: Number(values.soak),
    report: (name, { pass, ...figures }) =>
      process.stdout.write(`${pass ? 'ok    ' : 'FAILED'} ${name} ${JSON.stringify(figures)}\n`),
  }).then(
    (results) => {
      if (values.out) write(values.out, results);
      process.exitCode = Object.values(results).every(({ pass }) => pass) ? 0 : 1;
    },
    (error) => {
      process.stderr.write(`${error.stack}\n`);
      process.exitCode = 1;
    },
  );
}
