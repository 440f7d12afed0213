// DULTRA_TRACE: a line for each activation, the same on every number of threads.
import { spawnSync } from 'node:child_process';
import path from 'node:path';

const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
const model = 'word-problems';

function trace(mode: string, threads: number) {
  const args = ['generate', 'tom has 7', '--model', model, '--device', 'cpu', '--threads', String(threads), '-q'];
  const { status, stderr } = spawnSync(process.execPath, [main, ...args], {
    encoding: 'utf8',
    env: { ...process.env, DULTRA_TRACE: mode },
  });
  return { status, stderr, lines: stderr.split('\n').filter((line) => line.startsWith('trace ')) };
}

test('norms: layer, name, shape, norm and hash of every activation', () => {
  const { status, lines } = trace('norms', 1);
  expect(status).toBe(0);
  for (const line of lines) expect(line).toMatch(/^trace \d+ \w+ \d+x\d+ (f32|bf16) norm=[\d.e+-]+ hash=[0-9a-f]{16}$/);
  const names = new Set(lines.map((line) => line.split(' ')[2]));
  for (const name of ['block_input', 'attn_norm', 'kv', 'q', 'attention', 'mlp_norm', 'block_output', 'logits'])
    expect(names).toContain(name);
  // Every block of the base model and of the planner.
  expect(new Set(lines.filter((line) => line.includes('block_output')).map((line) => line.split(' ')[1])).size).toBe(4);
  expect(trace('norms', 2).lines).toEqual(lines);
});

test('values: the first numbers of every row below', () => {
  const { stderr } = trace('values', 1);
  expect(stderr).toMatch(/^trace 0 block_input (\d+)x64 f32 .*\n {2}0:( -?[\d.e+-]+){8}\n/m);
});

test('another value is an error that names both', () => {
  const { status, stderr } = trace('all', 1);
  expect(status).not.toBe(0);
  expect(stderr).toContain('DULTRA_TRACE: expected "norms", "values" or "time", got "all"');
});
