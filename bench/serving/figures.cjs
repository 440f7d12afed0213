// What serving costs, and what it gains: figures, in turns, with the goals that they meet or miss (`met`).
const { inParallel, median, post, random, requestOf, sleep, startServer, textOf } = require('./server.cjs');

/** Time from the start of a process until it listens: the median of some. */
async function startTimes({ rounds = 5 }) {
  const times = [];
  for (let i = 0; i < rounds; i++) {
    const server = await startServer();
    times.push(server.startMs);
    await server.stop();
  }
  return { pass: true, met: median(times) <= 1000, ms: median(times), all: times };
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
async function overheadOf(server, model, { rounds, cache }) {
  const { prompt } = requestOf(3);
  const settings = { sampler: 'fixed', maxTokens: 24, temperature: 0.7, seed: 3, splitSpecialTokens: true, cache };
  const { maxTokens: max_tokens, splitSpecialTokens: _split, ...same } = settings;
  const request = JSON.stringify({ ...same, prompt, max_tokens });
  const ask = async () => (await post(server.url, request)).json();
  const measured = async (cpu, work) => {
    const [before, start] = [await cpu(), performance.now()];
    await work();
    const ms = performance.now() - start;
    return { ms, cpu: 1000 * ((await cpu()) - before) };
  };
  const framed = JSON.stringify({ ...JSON.parse(request), stream: true, stream_mode: 'denoise' });
  const again = 4;
  const times = { batch: [], served: [], alone: [], asked: [], framed: [] };
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
    const frames = await measured(
      () => serverCpu(server),
      async () => {
        for (let i = 0; i < 16; i++) await (await post(server.url, framed)).text();
      },
    );
    if (round < 0) continue;
    add('batch', batch);
    add('served', served);
    add('alone', alone);
    add('asked', asked);
    add('framed', frames);
  }
  const ratio = (what) => median(times.batch.map((batch, i) => batch[what] / times.served[i][what]));
  const extra = (what) => median(times.asked.map((asked, i) => (asked[what] - times.alone[i][what]) / 16));
  const { nfe } = await model.generate(prompt, settings);
  const frame = (what) => median(times.framed.map((one, i) => (one[what] - times.asked[i][what]) / 16 / nfe));
  return {
    batchRatio: ratio('ms'),
    batchCpuRatio: ratio('cpu'),
    aloneExtraMs: extra('ms'),
    aloneExtraCpuMs: extra('cpu'),
    frameExtraMs: frame('ms'),
    frameExtraCpuMs: frame('cpu'),
  };
}

/** That of rows without a cache, and of those with one, whose passes are shorter. */
async function overhead(server, model, { rounds = 20 }) {
  const plain = await overheadOf(server, model, { rounds });
  const dual = await overheadOf(server, model, { rounds, cache: 'dual' });
  const met = plain.batchRatio >= 0.95 && plain.aloneExtraMs <= 1 && plain.frameExtraMs <= 0.1;
  return { pass: true, met, ...plain, dual };
}

/** What the main thread does between the end of a pass and the begin of the next, for so many rows. */
async function betweenPasses(model, { rounds = 20 }) {
  const { native } = model.engineParts();
  const share = native.share.bind(native);
  let ended = null;
  let gaps = [];
  const watched = () => {
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
  // An assignment would change nothing: the methods of native objects are not writable.
  Object.defineProperty(native, 'share', { value: watched, configurable: true });
  const { prompt } = requestOf(3);
  const lowest = {};
  try {
    for (const sampler of ['fixed', 'planner'])
      for (const rows of [1, 16, 32, 64]) {
        gaps = [];
        for (let i = 0; i < rounds; i++) {
          ended = null;
          await model.generateBatch(new Array(rows).fill(prompt), { sampler, maxTokens: 24, seed: i });
        }
        // What other processes take of the time is not the engine's: the lower fifth.
        lowest[`${sampler} ${rows}`] = gaps.sort((a, b) => a - b)[Math.floor(0.2 * gaps.length)];
      }
  } finally {
    delete native.share;
  }
  const microsecondsARow = Object.fromEntries(
    ['fixed', 'planner'].map((name) => [name, (1000 * (lowest[`${name} 64`] - lowest[`${name} 1`])) / 63]),
  );
  const isMet = ['fixed', 'planner'].every((name) =>
    [1, 16, 32, 64].every((rows) => lowest[`${name} ${rows}`] <= 0.15 + 0.008 * rows),
  );
  return { pass: true, met: isMet, ms: lowest, microsecondsARow };
}

/** What a pass takes for so many rows: milliseconds, and of them what does not grow with the rows. */
async function passCosts(model, { rounds = 20 }) {
  const { prompt } = requestOf(3);
  const { engine } = model.engineParts();
  const counts = [1, 4, 16, 64];
  const all = counts.map(() => []);
  for (let round = -1; round < rounds; round++)
    for (const [i, rows] of counts.entries()) {
      const before = engine.state;
      const settings = { sampler: 'fixed', maxTokens: 24, seed: round + 1, stopAtEos: false };
      await model.generateBatch(new Array(rows).fill(prompt), settings);
      const { passes, passSeconds } = engine.state;
      if (round >= 0) all[i].push((1000 * (passSeconds - before.passSeconds)) / (passes - before.passes));
    }
  const ms = Object.fromEntries(counts.map((rows, i) => [rows, median(all[i])]));
  const msARow = (ms[64] - ms[1]) / 63;
  const fixedMs = Math.max(0, ms[1] - msARow);
  return { pass: true, ms, msARow, fixedMs, scaling16: (16 * ms[1]) / ms[16] };
}

/** How requests of mixed lengths are served: as they come, or in batches that take nobody in until all are done. */
const BATCH = 16;
const SHORT = 8;
const LONG = 96;
const isLong = (i) => i % 8 === 3;
const stepsOf = (i) => (isLong(i) ? LONG : SHORT);
const at95 = (values) => [...values].sort((a, b) => a - b)[Math.floor(0.95 * values.length)];

/** Times at which requests come, at random, so many a second. */
function arrivalTimes(count, perSecond) {
  const pick = random(1);
  let time = 0;
  return Array.from({ length: count }, () => {
    time += (-Math.log((pick(1e6) + 1) / 1e6) * 1000) / perSecond;
    return time;
  });
}

/** The three ways on a machine whose pass takes fixedMs + rows * msARow: times to answer. */
function modelled(way, times, { fixedMs, msARow }) {
  const waits = [];
  let [clock, next] = [0, 0];
  let rows = [];
  while (next < times.length || rows.length > 0) {
    if (rows.length === 0) clock = Math.max(clock, times[next]);
    if (rows.length === 0 || way === 'continuous')
      while (next < times.length && times[next] <= clock && rows.length < BATCH)
        rows.push({ i: next, left: stepsOf(next++) });
    // A padded batch computes every row until the last is done.
    clock += fixedMs + msARow * (way === 'padded' ? rows.length : rows.filter(({ left }) => left > 0).length);
    for (const row of rows) row.left--;
    const isOver = rows.every(({ left }) => left <= 0);
    for (const { i, left } of rows) if (way === 'continuous' ? left === 0 : isOver) waits[i] = clock - times[i];
    rows = way === 'continuous' ? rows.filter(({ left }) => left > 0) : isOver ? [] : rows;
  }
  return at95(waits);
}

/** The most requests a second that are answered within `most` ms in 95 of 100 cases. @param p95 of a rate */
async function goodputOf(p95, most, from, steps) {
  let [low, high] = [from / 16, from * 4];
  for (let i = 0; i < steps; i++) {
    const middle = Math.sqrt(low * high);
    if ((await p95(middle)) <= most) low = middle;
    else high = middle;
  }
  return low;
}

/**
 * Requests that arrive at random, one of eight twelve times as long as the others: how many a second are answered in time,
 * 95 of 100 within four times what the longest takes alone. As they come; in batches whose finished rows cost nothing,
 * as rows of `generateBatch`; and in batches that are computed as a whole, as the references do it.
 */
async function arrivals({ count, costs }) {
  const { loadModel } = require('../../dist/index.js');
  const own = await loadModel(undefined, { threads: 1, engine: { maxRows: BATCH } });
  const { prompt } = requestOf(3);
  const one = (i, maxTokens = stepsOf(i)) =>
    own.generate(prompt, { sampler: 'fixed', maxTokens, seed: i, stopAtEos: false });
  const longest = [];
  for (let i = 0; i < 5; i++) {
    const start = performance.now();
    await one(3);
    longest.push(performance.now() - start);
  }
  const most = 4 * median(longest);
  const run = async (perSecond, serve) => {
    const times = arrivalTimes(count, perSecond);
    const begin = performance.now();
    const waits = [];
    await serve(times, begin, (i) => {
      waits[i] = performance.now() - begin - times[i];
    });
    return at95(waits);
  };
  const ways = {
    continuous: (times, begin, done) =>
      Promise.all(
        times.map(async (time, i) => {
          await sleep(Math.max(0, begin + time - performance.now()));
          await one(i);
          done(i);
        }),
      ),
    fixed: (times, begin, done) => batches(times, begin, done, (i) => one(i)),
    padded: (times, begin, done) => batches(times, begin, done, (i, longestOf) => one(i, longestOf)),
  };
  async function batches(times, begin, done, start) {
    for (let first = 0; first < count; ) {
      await sleep(Math.max(0, begin + times[first] - performance.now()));
      let end = first + 1;
      while (end < count && end - first < BATCH && begin + times[end] <= performance.now()) end++;
      const members = Array.from({ length: end - first }, (_, i) => first + i);
      const length = Math.max(...members.map(stepsOf));
      await Promise.all(members.map((i) => start(i, length)));
      for (const i of members) done(i);
      first = end;
    }
  }
  // What the machine computes at most, by one row alone.
  const mean = Array.from({ length: 8 }, (_, i) => stepsOf(i)).reduce((sum, steps) => sum + steps, 0) / 8;
  const from = (1000 * LONG) / median(longest) / mean;
  const perSecond = {};
  const model95 = { perSecond: {} };
  const steps = count >= 100 ? 7 : 3;
  for (const [way, serve] of Object.entries(ways)) {
    perSecond[way] = await goodputOf((rate) => run(rate, serve), most, from, steps);
    const time = LONG * (costs.fixedMs + costs.msARow);
    const p95 = (rate) => modelled(way, arrivalTimes(2000, rate), costs);
    model95.perSecond[way] = await goodputOf(p95, 4 * time, from, 12);
  }
  own.dispose();
  const ratios = ({ continuous, fixed, padded }) => ({ toPadded: continuous / padded, toFixed: continuous / fixed });
  return {
    pass: true,
    met: ratios(perSecond).toPadded >= 1.5,
    withinMs: most,
    perSecond,
    ratio: ratios(perSecond),
    modelledRatio: ratios(model95.perSecond),
  };
}

/** Short requests of 64 clients, alone and beside one that is ten times as long: in turns. */
async function longRow(server, { rounds = 6 }) {
  const ask = (maxTokens, signal) =>
    post(
      server.url,
      { prompt: requestOf(3).prompt, sampler: 'fixed', max_tokens: maxTokens, dultra: { stop_at_eos: false } },
      signal,
    ).then((response) => textOf(response, false));
  const shorts = async () => {
    const times = [];
    await inParallel(192, 64, async () => {
      const start = performance.now();
      await ask(10);
      times.push(performance.now() - start);
    });
    return median(times);
  };
  await shorts();
  const ratios = [];
  for (let round = 0; round < rounds; round++) {
    const alone = await shorts();
    const gone = new AbortController();
    const long = (async () => {
      while (!gone.signal.aborted) await ask(100, gone.signal);
    })().catch(() => {});
    const beside = await shorts();
    gone.abort();
    await long;
    ratios.push(beside / alone);
  }
  return { pass: true, met: median(ratios) <= 1.3, ratio: median(ratios), all: ratios };
}

/** A long time under an even load: memory and times stay as they are. */
async function soak(server, { seconds }) {
  const samples = [];
  const times = [];
  const begin = performance.now();
  const passed = () => (performance.now() - begin) / 1000;
  const sampling = setInterval(() => samples.push([passed(), server.memory(), server.handles()]), 1000);
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
  const handles = late.map(([, , count]) => count);
  const moreHandles = late.length === 0 ? 0 : Math.max(...handles.slice(-30)) - Math.max(...handles.slice(0, 30));
  const isFlat = late.length === 0 || (slope * 60 < 2 ** 20 && moreHandles <= 4);
  const p99Ratio = p99(0.9, 1) / p99(0.1, 0.2);
  return {
    pass: isFlat,
    met: p99Ratio <= 1.2,
    requests: times.length,
    bytesPerMinute: slope * 60,
    moreHandles,
    p99Ratio,
  };
}

module.exports = { arrivals, betweenPasses, longRow, overhead, passCosts, soak, startTimes };
