// The programs in examples/, run as they stand.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { temporaryFolder } from './helpers';

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
  const server = spawn(process.execPath, [path.join(folder, 'chat-page.mjs'), '', '0'], { cwd: root });
  try {
    const address = await new Promise<string>((resolve, reject) => {
      let said = '';
      const hear = (data: Buffer) => {
        said += String(data);
        const found = /^(http:\/\/127\.0\.0\.1:\d+)$/m.exec(said);
        if (found) resolve(found[1]);
      };
      server.stdout.on('data', hear);
      server.stderr.on('data', (data) => reject(new Error(String(data))));
      server.on('exit', (code) => reject(new Error(`exit code ${code}`)));
    });
    const page = await fetch(address);
    expect(page.headers.get('content-type')).toMatch(/^text\/html/);
    expect(await page.text()).toContain('new EventSource(`/stream?prompt=');

    const eventsOf = async (prompt: string) => {
      const response = await fetch(`${address}/stream?prompt=${encodeURIComponent(prompt)}`);
      expect(response.headers.get('content-type')).toBe('text/event-stream');
      const text = await response.text();
      return text
        .trimEnd()
        .split('\n\n')
        .map((line) => JSON.parse(line.replace(/^data: /, '')));
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
    expect((await fetch(`${address}/nothing`)).status).toBe(404);
  } finally {
    server.kill();
  }
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
