// The programs in examples/, run as they stand.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { inBrowser, launch, testInBrowser } from './browser';
import { temporaryFolder } from './helpers';
import { eventsIn, type Program, startProgram } from './servers';

const root = path.resolve(__dirname, '..');
const folder = path.join(root, 'examples');

/** Lines that an example prints. */
function run(name: string, ...args: string[]): string[] {
  const { status, stdout, stderr } = spawnSync(process.execPath, [path.join(folder, name), ...args], {
    cwd: root,
    encoding: 'utf8',
  });
  expect(stderr).toBe('');
  expect(status).toBe(0);
  return stdout.trimEnd().split('\n');
}

const prompt = 'Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.';
const order = { name: 'Anna', item: 'red mugs', count: 3, city: 'Paris' };

test('generate: right in few passes, and in one pass per token', () => {
  const [fast, how, slow, howSlow] = run('generate.mjs', prompt);
  expect(JSON.parse(fast)).toEqual(order);
  expect(JSON.parse(slow)).toEqual(order);
  const passes = (text: string) => Number(/ in (\d+) forward passes/.exec(text)![1]);
  expect(passes(how)).toBeLessThan(passes(howSlow));
});

test('stream: every pass leaves fewer to go', () => {
  const lines = run('stream.mjs', prompt, 'fixed:4');
  const last = lines.pop()!;
  const left = lines.map((line) => Number(/\((\d+) to go\)$/.exec(line)![1]));
  expect(left).toEqual([36, 24, 12].slice(0, lines.length)); // fewer passes where the end comes early
  expect(last).toMatch(/^ [2-4] {2}.+ {2}\([2-4] passes\)$/);
});

test('custom-sampler: takes more care, and so more passes, than the threshold it is made of', () => {
  const passes: Record<string, number> = {};
  for (const line of run('custom-sampler.mjs')) {
    const [, name, count] = /^(\w+), (\d+) passes: \S/.exec(line)!;
    passes[name] = (passes[name] ?? 0) + Number(count);
  }
  expect(Object.keys(passes)).toEqual(['spread', 'confidence', 'planner']);
  expect(passes.spread).toBeGreaterThan(passes.confidence);
});

test('custom-reward: the reward rises', () => {
  const gained = run('custom-reward.mjs', '12').map((line) => Number(/reward (-?[\d.]+),/.exec(line)![1]));
  expect(gained).toHaveLength(12);
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  expect(mean(gained.slice(-4))).toBeGreaterThan(mean(gained.slice(0, 4)) + 0.1);
});

test('evaluate: a table, and a page', () => {
  const report = path.join(temporaryFolder(), 'report.html');
  const lines = run('evaluate.mjs', '64', report);
  expect(lines.map((line) => line.split(' ')[0])).toEqual([
    'planner',
    'planner-round',
    'entropy-sum:0.2',
    'confidence:0.9',
    'fixed:4',
    'fixed:24',
  ]);
  for (const line of lines) expect(line).toMatch(/^\S+ +[\d.]+ ± [\d.]+ % +[\d.]+ passes +[\d.]+ tokens\/pass$/);
  const passes = Object.fromEntries(
    lines.map((line) => [line.split(' ')[0], Number(/([\d.]+) passes/.exec(line)![1])]),
  );
  expect(passes['fixed:4']).toBe(4);
  expect(passes.planner).toBeLessThan(passes['fixed:24']);
  expect(existsSync(report)).toBe(true);
});

test('chat-page: a page, and an event for each pass that together are the answer', async () => {
  const { url, stop } = await startProgram(path.join(folder, 'chat-page.mjs'), ['', '0'], root);
  try {
    const page = await fetch(url);
    expect(page.headers.get('content-type')).toMatch(/^text\/html/);
    expect(await page.text()).toContain('new EventSource(`/stream?prompt=');

    const eventsOf = async (prompt: string) => {
      const response = await fetch(`${url}/stream?prompt=${encodeURIComponent(prompt)}`);
      expect(response.headers.get('content-type')).toBe('text/event-stream');
      return eventsIn(await response.text());
    };
    const events = await eventsOf(prompt);
    const { done, length } = events.at(-1);
    expect(JSON.parse(done.text)).toEqual(order);
    expect(done.passes).toBe(events.length);
    expect(events.map(({ delta }) => delta).join('')).toBe(done.text);
    const cells: string[] = Array(length).fill('');
    for (const { unmasked } of events)
      for (const { position, text } of unmasked) {
        expect(cells[position]).toBe('');
        cells[position] = text;
      }
    expect(cells.join('').trim()).toBe(done.text);
    expect(await eventsOf('tom '.repeat(300))).toEqual([{ error: expect.stringMatching(/^prompt: /) }]);
    expect((await fetch(`${url}/nothing`)).status).toBe(404);
  } finally {
    await stop();
  }
});

describe('clients of dultra serve', () => {
  let server: Program;
  beforeAll(async () => {
    const options = ['--port', '0', '--threads', '1', '--quiet', '--cors', 'null'];
    server = await startProgram(path.join(root, 'dist', 'cli', 'main.js'), ['serve', ...options]);
  });
  afterAll(() => server.stop());

  test("serve-openai: OpenAI's client", () => {
    const [whole, streamed, value] = run('serve-openai.mjs', '', server.url);
    for (const line of [whole, streamed]) expect(JSON.parse(/^\{.*\}/.exec(line)![0])).toEqual(order);
    expect(whole).toMatch(/ {2}\(\d+ tokens in \d+ passes\)$/);
    expect(streamed).toMatch(/ {2}\([1-9]\d* passes\)$/);
    expect(value).toBe('bad');
  });

  const hasCurl = ['sh', 'curl'].every((name) => spawnSync(name, ['--version']).error === undefined);
  const testWithCurl = hasCurl ? test : test.skip;
  testWithCurl(`serve-curl: five requests${hasCurl ? '' : ' (skipped: there is no sh or curl)'}`, () => {
    const { stdout, stderr, status } = spawnSync('sh', [path.join(folder, 'serve-curl.sh'), server.url], {
      encoding: 'utf8',
    });
    expect([stderr, status]).toEqual(['', 0]);
    const [chat, stream, between, value, decision] = stdout.split(/^# .*\n/m).slice(1);
    expect(JSON.parse(chat).choices[0].message.content).toBe('8 + 6 = 14.');
    const chunks = eventsIn(stream);
    expect(chunks.at(-1)).toBe('[DONE]');
    expect(chunks.filter((chunk) => chunk.dultra?.frame).length).toBeGreaterThan(0);
    expect(JSON.parse(between).choices[0].text).toBe('14');
    expect(JSON.parse(value).choices[0].message.content).toBe('14');
    expect(JSON.parse(decision).answers.again.noul).toBeLessThan(0.5);
  });

  testInBrowser(inBrowser('serve-chat: a chat in a page that is a file'), async () => {
    const browser = await launch();
    try {
      const page = await browser.newPage();
      // A busy machine is slow, and no reason to fail.
      page.setDefaultTimeout(300_000);
      const complaints: string[] = [];
      page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
      page.on('pageerror', (error) => complaints.push(String(error)));
      await page.goto(`${pathToFileURL(path.join(folder, 'serve-chat.html'))}#${server.url}`);
      const said = async (text: string) => {
        await page.fill('input', text);
        await page.click('text=Send');
        await page.locator('button:enabled').waitFor();
      };
      await said('What is 8 + 6?');
      const lines = page.locator('#chat p');
      expect(await lines.allTextContents()).toEqual(['What is 8 + 6?', '8 + 6 = 14.']);
      expect(complaints).toEqual([]);
      await said('tom '.repeat(600));
      expect(await page.textContent('#state')).toMatch(/^a text has at least \d+ tokens/);
    } finally {
      await browser.close();
    }
  });

  test('serve-chat reads streams as the playground does', () => {
    const readerOf = (file: string) =>
      /^( *)async function\* eventsOf\(response\) \{\n([\s\S]*?)^\1\}$/m
        .exec(readFileSync(path.join(root, file), 'utf8'))![2]
        .replace(/^ +/gm, '');
    expect(readerOf('examples/serve-chat.html')).toBe(readerOf('lib/server/playground-page.js'));
  });
});

describe('applications with a model in them', () => {
  /** What both are asked. */
  async function check(program: Program): Promise<void> {
    const { url } = program;
    const init = (body: object) => ({
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    try {
      expect(await (await fetch(url)).text()).toContain('/llm/v1');
      const answer = await fetch(`${url}/llm/v1/completions`, init({ prompt, max_tokens: 48, stream: true }));
      expect(answer.status).toBe(200);
      const texts = eventsIn(await answer.text()).map((event) => event.choices?.[0].text ?? '');
      expect(JSON.parse(texts.join(''))).toEqual(order);
      expect((await fetch(`${url}/llm/v1/completions`, init({}))).status).toBe(400);
      expect((await fetch(`${url}/llm/playground-page.js`)).status).toBe(200);
      expect((await fetch(`${url}/llm/nothing`)).status).toBe(404);
      // A client that leaves takes its row along.
      const gone = new AbortController();
      const long = init({ prompt, max_tokens: 200, sampler: 'fixed', stream: true, dultra: { frames: true } });
      const left = await fetch(`${url}/llm/v1/completions`, { ...long, signal: gone.signal });
      await left.body!.getReader().read();
      gone.abort();
      const rows = async () =>
        /^dultra_active_rows\{.*\} (\d+)$/m.exec(await (await fetch(`${url}/llm/metrics`)).text())![1];
      for (let i = 0; i < 100 && (await rows()) !== '0'; i++) await new Promise((resolve) => setTimeout(resolve, 10));
      expect(await rows()).toBe('0');
    } finally {
      expect(await program.stop()).toBe(0);
    }
  }

  test('serve-hono', async () => {
    await check(await startProgram(path.join(folder, 'serve-hono.mjs'), ['', '0'], root));
  });

  const express = path.join(root, 'test', 'clients', 'node_modules', 'express');
  const hasExpress = existsSync(express);
  const withExpress = hasExpress ? test : test.skip;
  withExpress(`serve-express${hasExpress ? '' : ' (skipped: npm ci --prefix test/clients was not run)'}`, async () => {
    const place = temporaryFolder();
    mkdirSync(path.join(place, 'node_modules', '@hono'), { recursive: true });
    const link = (name: string, target: string) =>
      symlinkSync(target, path.join(place, 'node_modules', name), 'junction');
    link('dultra', root);
    link('express', express);
    link('@hono/node-server', path.join(root, 'node_modules', '@hono', 'node-server'));
    copyFileSync(path.join(folder, 'serve-express.mjs'), path.join(place, 'app.mjs'));
    const program = await startProgram(path.join(place, 'app.mjs'), ['', '0'], place);
    const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"a":5}' };
    // What stands behind the model in the application has its bodies.
    const echo = await (await fetch(`${program.url}/echo`, init)).json();
    await check(program);
    expect(echo).toEqual({ a: 5 });
  });
});

test('the page about them lists every one', () => {
  const page = readFileSync(path.join(folder, 'README.md'), 'utf8');
  const listed = [...page.matchAll(/^\| `node (examples\/\S+)` \|/gm)].map(([, file]) => path.basename(file));
  expect(listed.sort()).toEqual(readdirSync(folder).filter((file) => file.endsWith('.mjs')));
});

describe('nextjs', () => {
  const clients = path.join(root, 'test', 'clients', 'node_modules');
  const own = path.join(clients, `node-${process.platform}-${process.arch}`, 'bin', 'node');
  const node = Number.parseInt(process.versions.node, 10) >= 22 ? process.execPath : own;
  const hasClients = existsSync(path.join(clients, 'ai')) && existsSync(node);
  const why = hasClients ? '' : ' (skipped: npm ci --prefix test/clients was not run, or has no Node.js 22 here)';
  const withClients = hasClients ? test : test.skip;

  test('its lock file has the package as it is, and no address of a registry', () => {
    const read = (file: string) => JSON.parse(readFileSync(path.join(root, file), 'utf8'));
    const { packages } = read('examples/nextjs/package-lock.json');
    const manifest = read('package.json');
    const { dependencies, peerDependencies, engines, version } = packages['node_modules/dultra'];
    expect({ dependencies, peerDependencies, engines, version }).toEqual({
      dependencies: manifest.dependencies,
      peerDependencies: manifest.peerDependencies,
      engines: manifest.engines,
      version: manifest.version,
    });
    const others = Object.entries(packages as Record<string, { resolved?: string; integrity?: string }>).filter(
      ([folder]) => folder !== '' && folder !== 'node_modules/dultra',
    );
    for (const [, { resolved, integrity }] of others)
      expect([resolved, typeof integrity]).toEqual([undefined, 'string']);
  });

  withClients(`its routes have the types of the AI SDK 7${why}`, () => {
    const project = temporaryFolder();
    const example = path.join(folder, 'nextjs');
    const compilerOptions = {
      ...JSON.parse(readFileSync(path.join(example, 'tsconfig.json'), 'utf8')).compilerOptions,
      ...{ plugins: [], incremental: false, types: ['node'], typeRoots: [path.join(root, 'node_modules', '@types')] },
      paths: {
        ai: [path.join(clients, 'ai')],
        dultra: [path.join(root, 'dist', 'index.d.ts')],
        'dultra/ai-sdk': [path.join(root, 'dist', 'ai-sdk', 'index.d.ts')],
      },
    };
    const files = ['chat', 'decide'].map((name) => path.join(example, 'app', 'api', name, 'route.ts'));
    writeFileSync(path.join(project, 'tsconfig.json'), JSON.stringify({ compilerOptions, files }));
    const compiler = path.join(root, 'node_modules', '.bin', 'tsc');
    const { stdout, status } = spawnSync(process.execPath, [compiler, '-p', project], { encoding: 'utf8' });
    expect([stdout, status]).toEqual(['', 0]);
  });

  withClients(`its routes answer${why}`, () => {
    const review = 'The soup was awful and the waiter was dreadful.';
    const script = path.join(root, 'test', 'clients', 'routes.mjs');
    const { stdout, stderr } = spawnSync(node, [script, review, prompt], { encoding: 'utf8' });
    const { decided, answered, refused } = JSON.parse(stdout || stderr);
    expect([decided[0], answered[0], refused]).toEqual([200, 200, [400, 400]]);
    expect(JSON.parse(decided[1])).toMatchObject({
      mood: { type: 'choice', choice: 'negative' },
      stars: { type: 'score' },
      again: { type: 'boolean' },
    });
    expect(JSON.parse(answered[1])).toEqual(order);
  });
});
