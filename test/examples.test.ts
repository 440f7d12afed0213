// The programs in examples/, run as they stand.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
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
