// Replays every recorded run of the reference implementation that this version knows.
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as dultra from '../lib';

type Result = { name: string; status: 'passed' | 'failed'; detail: string };
const { runGolden, verdictOf } = require('./golden/runner.cjs') as {
  runGolden(api: typeof dultra, root: string, options: { only?: (name: string) => boolean }): Promise<Result[]>;
  verdictOf(results: Result[]): { text: string; code: number };
};

const folder = path.join(__dirname, 'fixtures', 'golden');
const cases = readdirSync(folder).filter((name) => existsSync(path.join(folder, name, 'case.json')));

jest.setTimeout(60_000);

test('the fixtures are there', () => expect(cases.length).toBeGreaterThanOrEqual(75));

test.each(cases)('%s', async (name) => {
  const [result] = await runGolden(dultra, folder, { only: (candidate: string) => candidate === name });
  expect(result).toMatchObject({ name, status: 'passed' });
});

describe('what the runner does not know has failed', () => {
  let root: string;
  beforeEach(() => {
    root = mkdtempSync(path.join(os.tmpdir(), 'dultra-golden-'));
  });
  afterEach(() => rmSync(root, { recursive: true, force: true }));

  /** A recorded case, changed. */
  function copyOf(name: string, change: (description: Record<string, never>) => object) {
    cpSync(path.join(folder, name), path.join(root, name), { recursive: true });
    const file = path.join(root, name, 'case.json');
    writeFileSync(file, JSON.stringify(change(JSON.parse(readFileSync(file, 'utf8')))));
  }

  test.each<[string, (description: Record<string, never>) => object, string]>([
    ['a kind', (it) => ({ ...it, kind: 'unheard_of' }), 'kind "unheard_of" is not known'],
    ['a kind that every object has', (it) => ({ ...it, kind: 'constructor' }), 'kind "constructor" is not known'],
    ['no kind', ({ kind: _kind, ...it }) => it, 'kind undefined is not known'],
    [
      'a setting',
      (it) => ({ ...it, args: { ...(it.args as object), nucleus: 1 } }),
      'kind fastdllm: setting nucleus is not known',
    ],
  ])('%s', async (_what, change, detail) => {
    copyOf('fastdllm_fixed_b1', change);
    expect(await runGolden(dultra, root, {})).toEqual([{ name: 'fastdllm_fixed_b1', status: 'failed', detail }]);
  });

  test('a variant', async () => {
    copyOf('gen_inf_b1_block8', (it) => ({ ...it, args: { ...(it.args as object), mode: 'dreaming' } }));
    const [result] = await runGolden(dultra, root, {});
    expect(result).toMatchObject({ status: 'failed' });
    expect(result.detail).toMatch(/^kind generate: this variant is not known: .*"dreaming"/);
  });

  test('a file, a folder, and a broken description', async () => {
    copyOf('adamw_5steps', (it) => it);
    writeFileSync(path.join(root, 'adamw_5steps', 'more.safetensors'), '');
    mkdirSync(path.join(root, 'empty'));
    mkdirSync(path.join(root, 'broken'));
    writeFileSync(path.join(root, 'broken', 'case.json'), '{');
    writeFileSync(path.join(root, 'stray.bin'), '');
    const details = Object.fromEntries((await runGolden(dultra, root, {})).map(({ name, detail }) => [name, detail]));
    expect(details).toEqual({
      adamw_5steps: 'kind adamw: file more.safetensors is not known',
      empty: 'the folder has no case.json',
      broken: expect.stringContaining('JSON'),
      'stray.bin': 'the file is not known',
    });
  });

  test('by its exit code, and an empty folder too', async () => {
    const verdict = async () => verdictOf(await runGolden(dultra, root, {}));
    expect(await verdict()).toEqual({ code: 1, text: 'no case is there: 0 passed, 0 failed' });
    copyOf('adamw_5steps', (it) => it);
    expect(await verdict()).toEqual({ code: 0, text: '1 passed, 0 failed' });
    copyOf('fastdllm_fixed_b1', (it) => ({ ...it, kind: 'unheard_of' }));
    expect(await verdict()).toEqual({ code: 1, text: '1 passed, 1 failed' });
  });
});
