// dultra generate --batch: a file of prompts to a file of completions, whatever happens on the way.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel } from '../lib';
import { inOneProcess, main } from './command-line';
import { exceptOnWindows, modelFolder, temporaryFolder, withTokenizer } from './helpers';

const model = withTokenizer(96);
const env = { ...process.env, HF_HUB_OFFLINE: '1', DULTRA_CUDA_PLUGIN: '/nowhere/libdultra_cuda.so' };

interface Written {
  line: number;
  id?: unknown;
  key: string;
  seed?: number;
  text?: string;
  error?: string;
}
const parse = (text: string) =>
  text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Written);
/** What does not depend on the time that it took. */
const untimed = (records: Written[]) => records.map((record) => ({ ...record, seconds: 0 }));

function files(input: string | Buffer) {
  const folder = temporaryFolder();
  const batch = path.join(folder, 'in.jsonl');
  writeFileSync(batch, input);
  return { batch, out: path.join(folder, 'out.jsonl') };
}
const line = (value: unknown) => `${JSON.stringify(value)}\n`;
const command = ({ batch, out }: { batch: string; out: string }, ...more: string[]) => [
  ...['generate', '-m', model, '-n', '8', '--batch', batch, '--out', out],
  ...more,
];

const many = Array.from({ length: 12 }, (_, i) => line({ id: `q${i}`, prompt: `what is ${i}` })).join('');

test('records, in order, are what generate gives; a bad line is told of in its own, and the others go on', async () => {
  const messages = [{ role: 'user', content: 'hi' }];
  const at = files(
    [
      line({ id: 'a', prompt: 'one', answer: 'ignored' }),
      '{"prompt": half\n',
      ' \r\n',
      line({ id: 2, messages }),
      line({ promptIds: [1, 2, 3] }),
      line({ id: 'long', prompt: 'x'.repeat(96) }),
      line({ prompt: 'one', messages }),
      line({ prompt: ' ' }),
      line({ id: 'b', messages: [{ role: 'user' }] }),
      line([1]),
      line({ promptIds: [1, 500] }),
      line({ promptIds: [] }),
      JSON.stringify({ prompt: 'last', messages: null }),
    ].join(''),
  );
  const [{ code, stdout, stderr }] = inOneProcess([command(at, '-t', '0.7')]);
  expect(stdout).toBe('');
  expect(stderr).toBe(`4 completions in ${at.out}; 8 lines failed, and say why\n`);
  expect(code).toBe(1);
  const records = parse(readFileSync(at.out, 'utf8'));
  expect(records.map(({ line: number, id, error }) => [number, id, error])).toEqual([
    [1, 'a', undefined],
    [2, undefined, expect.stringMatching(/^expected JSON: /)],
    [4, 2, undefined],
    [5, undefined, undefined],
    [6, 'long', expect.stringMatching(/^prompt: 96 tokens and maxTokens 8 make 104, more than the model's maximum/)],
    [7, undefined, 'expected one of "prompt", "messages" and "promptIds", got prompt and messages'],
    [8, undefined, 'prompt: expected one that says something'],
    [9, 'b', expect.stringMatching(/^messages: expected one that says something/)],
    [10, undefined, 'expected an object such as {"prompt": "…"}'],
    [11, undefined, expect.stringMatching(/^promptIds\[1\]: expected 0 to \d+, got 500/)],
    [12, undefined, 'promptIds: expected a list of token ids'],
    [13, undefined, undefined],
  ]);
  await using loaded = await loadModel(model);
  const options = { maxTokens: 8, temperature: 0.7, seed: 0 };
  for (const [number, prompt] of [
    [1, 'one'],
    [4, messages],
    [5, { promptIds: [1, 2, 3] }],
    [13, 'last'],
  ] as const) {
    // The random stream of a line is its own.
    const result = await loaded.generate(prompt as string, { ...options, research: { firstRow: number - 1 } });
    expect(records.find((record) => record.line === number)).toMatchObject({
      text: result.text,
      seed: 0,
      nfe: result.nfe,
      usage: result.usage,
    });
  }
});

test('the same whatever lines are computed together, and however often it was ended', () => {
  const whole = files(many);
  const single = { batch: whole.batch, out: path.join(temporaryFolder(), 'single.jsonl') };
  const drawn = ['-t', '1', '--seeds', '2', '-q'];
  const outcomes = inOneProcess([command(whole, ...drawn), command(single, ...drawn, '--batch-size', '1')]);
  expect(outcomes.map(({ code }) => code)).toEqual([0, 0]);
  const text = readFileSync(whole.out, 'utf8');
  const order = (a: Written, b: Written) => a.line - b.line || a.seed! - b.seed!;
  const expected = untimed(parse(text)).sort(order);
  expect(expected.map(({ line: number, seed }) => [number, seed])).toEqual(
    Array.from({ length: 24 }, (_, i) => [1 + (i >> 1), i & 1]),
  );
  expect(expected[0].text).not.toBe(expected[1].text);
  expect(untimed(parse(readFileSync(single.out, 'utf8'))).sort(order)).toEqual(expected);
  // Ended within a line, at its end, and with lines missing in between.
  const lines = text.split(/(?<=\n)/);
  const ends = [
    text.slice(0, 9),
    text.slice(0, text.length >> 1),
    lines.slice(0, 7).join(''),
    [...lines].reverse().slice(0, 5).join(''),
  ];
  const cuts = ends.map((begun) => {
    const cut = { batch: whole.batch, out: path.join(temporaryFolder(), 'cut.jsonl') };
    writeFileSync(cut.out, begun);
    return { begun, cut };
  });
  const resumed = inOneProcess(cuts.map(({ cut }) => command(cut, ...drawn)));
  cuts.forEach(({ begun, cut }, i) => {
    expect(resumed[i]).toEqual({ code: 0, stdout: '', stderr: '' });
    const after = readFileSync(cut.out, 'utf8');
    expect(after.startsWith(begun.slice(0, begun.lastIndexOf('\n') + 1))).toBe(true);
    expect(untimed(parse(after)).sort(order)).toEqual(expected);
  });
  // Done: nothing is computed again, and more seeds are added.
  const [again, more] = inOneProcess([command(whole, ...drawn), command(single, '-t', '1', '--seeds', '3')]);
  expect([again.code, readFileSync(whole.out, 'utf8')]).toEqual([0, text]);
  expect(more.stderr).toBe(`36 completions in ${single.out}, 24 of them from before\n`);
  expect(parse(readFileSync(single.out, 'utf8'))).toHaveLength(36);
});

const killed = exceptOnWindows('Windows ends a process that is sent a signal');
for (const [signal, code] of [
  ['SIGKILL', null],
  ['SIGINT', 130],
] as const)
  killed(`${signal} leaves what is done, and the same command goes on`, async () => {
    const at = files(Array.from({ length: 300 }, (_, i) => line({ prompt: `what is ${i}` })).join(''));
    const args = command(at, '-n', '80', '-b', '80', '-s', 'fixed:80', '--batch-size', '1');
    const child = spawn(process.execPath, [main, ...args], { env });
    let stderr = '';
    child.stderr.on('data', (piece) => {
      stderr += piece;
    });
    const ended = new Promise((resolve) => child.on('close', resolve));
    while (!existsSync(at.out) || readFileSync(at.out).length < 500) await new Promise((done) => setTimeout(done, 5));
    child.kill(signal);
    expect(await ended).toBe(code);
    const before = readFileSync(at.out, 'utf8');
    const whole = parse(before.slice(0, before.lastIndexOf('\n') + 1));
    expect(whole.length).toBeGreaterThan(0);
    expect(whole.length).toBeLessThan(300);
    if (signal === 'SIGINT')
      expect(stderr).toBe(
        `${whole.length} completions are in ${at.out}; the same command goes on\ndultra: interrupted\n`,
      );
    // Fewer lines, so that the rest is short; what is there stays as it is.
    writeFileSync(
      at.batch,
      readFileSync(at.batch, 'utf8')
        .split(/(?<=\n)/)
        .slice(0, whole.length + 2)
        .join(''),
    );
    expect(spawnSync(process.execPath, [main, ...args], { env }).status).toBe(0);
    const after = readFileSync(at.out, 'utf8');
    expect(parse(after).map(({ line: number }) => number)).toEqual(
      Array.from({ length: whole.length + 2 }, (_, i) => i + 1),
    );
    expect(parse(after).slice(0, whole.length)).toEqual(whole);
  });

test('an output of other prompts, of other options, or of another program is left as it is', () => {
  const at = files(line({ prompt: 'one' }) + line({ prompt: 'two' }));
  inOneProcess([command(at)]);
  const before = readFileSync(at.out, 'utf8');
  const other = /^dultra: --out: .* has a completion of another line 1, or of other options/;
  const changed = files(line({ prompt: 'zero' }));
  for (const args of [command(at, '-n', '16'), command(at, '-s', 'fixed:4'), command({ ...changed, out: at.out })]) {
    const [{ code, stderr }] = inOneProcess([args]);
    expect([code, stderr]).toEqual([2, expect.stringMatching(other)]);
    expect(readFileSync(at.out, 'utf8')).toBe(before);
  }
  for (const text of ['my notes\n', 'my notes', '{"line": 1}\n', `${before}more\n`, `${before}more`]) {
    writeFileSync(at.out, text);
    const [{ code, stderr }] = inOneProcess([command(at)]);
    expect([code, stderr]).toEqual([2, expect.stringMatching(/^dultra: --out: .*expected what --batch has written/)]);
    expect(readFileSync(at.out, 'utf8')).toBe(text);
  }
  const [same] = inOneProcess([command({ batch: at.batch, out: at.batch })]);
  expect([same.code, same.stderr]).toEqual([2, expect.stringMatching(/^dultra: --out: expected another file than/)]);
});

test('one process at a time writes an output; the lock of one that is gone counts for nothing', () => {
  const at = files(line({ prompt: 'one' }));
  const lock = `${at.out}.lock`;
  writeFileSync(lock, String(process.pid));
  const [held] = inOneProcess([command(at)]);
  expect([held.code, held.stderr]).toEqual([
    2,
    expect.stringContaining(
      `--out: ${at.out} is being written by process ${process.pid}; end it first, or remove ${lock}`,
    ),
  ]);
  expect(existsSync(at.out)).toBe(false);
  const gone = spawnSync(process.execPath, ['-e', '']).pid;
  for (const holder of [String(gone), '']) {
    writeFileSync(lock, holder);
    expect(inOneProcess([command(at, '-q')])[0]).toEqual({ code: 0, stdout: '', stderr: '' });
    expect(existsSync(lock)).toBe(false);
  }
});

test('lines of stdin are prompts, and completions are printed', async () => {
  const run = (input: string | Buffer, ...more: string[]) =>
    spawnSync(process.execPath, [main, 'generate', '-m', model, '-n', '8', '--batch', '-', '-q', ...more], {
      env,
      input,
      encoding: 'utf8',
    });
  const { status, stdout, stderr } = run('hi\n\n{"not": first}\n', '--chat');
  expect([status, stderr]).toEqual([0, '']);
  await using loaded = await loadModel(model);
  const expected = await loaded.generate([{ role: 'user', content: 'hi' }], { maxTokens: 8 });
  const records = parse(stdout);
  expect(records.map(({ line: number }) => number)).toEqual([1, 3]);
  expect(records[0].text).toBe(expected.text);
  const bad = run(
    Buffer.concat([Buffer.from('ok\n'), Buffer.from([0xff, 10]), Buffer.alloc(2 ** 24), Buffer.from('\nend')]),
  );
  expect(bad.status).toBe(1);
  expect(parse(bad.stdout).map(({ error }) => error)).toEqual([
    undefined,
    expect.stringMatching(/^stdin, line 2: expected UTF-8 text, got the byte 0xFF/),
    'stdin, line 3: expected at most 8 MiB, got more',
    undefined,
  ]);
  expect(run('\n').stderr).toMatch(/^dultra: --batch: expected prompts in stdin, got none/);
});

test('a model without a tokenizer: ids', () => {
  const at = files(line({ promptIds: [5, 17, 3] }) + line({ prompt: 'text' }));
  const base = modelFolder('base');
  const [{ code }, json] = inOneProcess([
    ['generate', '-m', base, '-n', '8', '--batch', at.batch, '--out', at.out],
    ['generate', '-m', base, '-n', '8', '--prompt-ids', '5,17,3', '--json'],
  ]);
  expect(code).toBe(1);
  const records = parse(readFileSync(at.out, 'utf8')) as (Written & { ids?: number[] })[];
  const { ids, tokens } = JSON.parse(json.stdout).result;
  expect(records[0].ids).toEqual(ids.slice(0, tokens));
  expect(records[1].error).toMatch(/has no tokenizer\.json/);
});

test('wrong usage', () => {
  const at = files('');
  const cases: [string[], RegExp][] = [
    [command(at), /--batch: expected prompts in .*, got none/],
    [command(at, 'a prompt'), /PROMPT: not together with --batch/],
    [command(at, '--stream'), /--stream: not together with --batch/],
    [command(at, '--prompt-ids', '5'), /--prompt-ids: not together with --batch/],
    [command(at, '--json'), /--json: not together with --batch/],
    [command(at, '--seeds', '0'), /--seeds: expected at least 1, got 0/],
    [command(at, '--batch-size', '0'), /--batch-size: expected at least 1/],
    [['generate', 'text', '--out', 'x'], /--out: expected together with --batch/],
    [['generate', 'text', '--seeds', '2'], /--seeds: expected together with --batch/],
    [command({ ...at, batch: '/nowhere.jsonl' }), /--batch: expected a file of prompts, or - for stdin: ENOENT/],
    [command({ ...at, batch: temporaryFolder() }), /--batch: expected a file of prompts, got the folder/],
  ];
  inOneProcess(cases.map(([args]) => args)).forEach(({ code, stdout, stderr }, i) => {
    expect(stderr).toMatch(cases[i][1]);
    expect([code, stdout]).toEqual([2, '']);
  });
  // An option that fits no line is no fault of a line.
  const [{ code, stderr }] = inOneProcess([command(files(many), '-n', '10', '-b', '4')]);
  expect([code, stderr]).toEqual([
    2,
    expect.stringMatching(/^dultra: --max-tokens: expected a multiple of --block-length/),
  ]);
});
