// What the checks of bench/serving.cjs share: a server in a process of its own, requests, and clients.
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const { readFileSync, readdirSync } = require('node:fs');
const path = require('node:path');

const main = path.join(__dirname, '..', '..', 'dist', 'cli', 'main.js');
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

/**
 * Starts `dultra serve`. @param options `env` of the process; `collects`: it collects its garbage when it is asked to
 */
async function startServer(args = [], { env = process.env, collects = false } = {}) {
  const preload = collects && { NODE_OPTIONS: `--require ${path.join(__dirname, 'collect.cjs')}` };
  const options = { env: { ...env, ...preload } };
  const start = performance.now();
  const common = ['--port', '0', '--quiet', '--threads', '1'];
  const child = spawn(process.execPath, [main, 'serve', ...common, ...args], options);
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
    /** Resident bytes after the garbage has been collected, of a server that `collects`. */
    async collected() {
      child.kill('SIGUSR2');
      await sleep(1000);
      return this.memory();
    },
    /** Open files and sockets; null likewise. */
    handles() {
      try {
        return readdirSync(`/proc/${child.pid}/fd`).length;
      } catch {
        return null;
      }
    },
    async gauge(name) {
      const text = await (await fetch(`${url}/metrics`)).text();
      const values = text.match(new RegExp(`^${name}(\\{.*\\})? (\\S+)$`, 'gm')) ?? [];
      return values.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
    },
    /** Sends a signal. @returns the exit code, or the signal that ended it */
    async stop(signal = 'SIGTERM') {
      if (child.exitCode !== null) return child.exitCode;
      const ended = once(child, 'exit');
      child.kill(signal);
      const [code, by] = await ended;
      return code ?? by;
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

module.exports = { inParallel, median, post, random, requestOf, sleep, startServer, textOf };
