// The command line: the built program as users start it, and the pieces that need a terminal against a small stand-in
// for one.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { loadModel, parseCache } from '../lib';
import { type Cell, layout, RowDisplay } from '../lib/cli/row-display';
import { inOneProcess, main, type Outcome } from './command-line';
import { exceptOnWindows, modelFolder, temporaryFolder, withoutPlanner, withTokenizer } from './helpers';

const base = path.relative(process.cwd(), modelFolder('base'));

/** Runs the command line to its end; `during` sees every piece of stdout. */
function dultra(
  args: string[],
  options: {
    input?: string;
    env?: NodeJS.ProcessEnv;
    during?: (child: ReturnType<typeof spawn>, piece: string) => void;
  } = {},
): Promise<Outcome> {
  // As without the CUDA plugin, also where it has been built.
  const env: NodeJS.ProcessEnv = { ...process.env, DULTRA_CUDA_PLUGIN: '/nowhere/libdultra_cuda.so' };
  for (const name of ['NO_COLOR', 'FORCE_COLOR', 'HF_HUB_CACHE', 'HF_TOKEN']) delete env[name];
  const child = spawn(process.execPath, [main, ...args], { env: { ...env, ...options.env } });
  const outcome: Outcome = { code: null, stdout: '', stderr: '' };
  child.stdout.on('data', (piece) => {
    outcome.stdout += piece;
    options.during?.(child, String(piece));
  });
  child.stderr.on('data', (piece) => {
    outcome.stderr += piece;
  });
  child.stdin.end(options.input ?? '');
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ ...outcome, code }));
  });
}

const short = ['--max-tokens', '24', '--block-length', '8'];

describe('generate', () => {
  test('prints the ids that the API gives, and a summary on stderr', async () => {
    const { code, stdout, stderr } = await dultra(['generate', '-m', base, '--prompt-ids', '5,17,3', ...short]);
    await using model = await loadModel(base);
    const result = await model.generate({ promptIds: [5, 17, 3] }, { maxTokens: 24, blockLength: 8 });
    expect(stdout).toBe(`${result.ids.slice(0, result.tokens).join(',')}\n`);
    expect(stderr).toMatch(new RegExp(`^${result.tokens} tokens in ${result.nfe} forward passes`));
    expect(code).toBe(0);
  });

  test('--json is one document, with every option in it', async () => {
    const options = [
      '-t',
      '0.5',
      '--seed',
      '18446744073709551615',
      '--select',
      'bernoulli',
      '--probability-scale',
      '2',
      '--no-stop-at-eos',
      '--top-k',
      '20',
      '--top-p',
      '0.9',
    ];
    const args = ['generate', '-m', base, '--prompt-ids', '5 17 3', ...short, ...options, '--threads', '1', '--json'];
    const { code, stdout, stderr } = await dultra(args);
    const document = JSON.parse(stdout);
    expect(document.options).toEqual({
      sampler: { type: 'planner', select: 'bernoulli', probabilityScale: 2 },
      maxTokens: 24,
      blockLength: 8,
      temperature: 0.5,
      topK: 20,
      topP: 0.9,
      seed: '18446744073709551615',
      stopAtEos: false,
    });
    expect(document.threads).toBe(1);
    await using model = await loadModel(base);
    const same = await model.generate({ promptIds: [5, 17, 3] }, { ...document.options, seed: 2n ** 64n - 1n });
    expect(document.result.ids).toEqual(Array.from(same.ids));
    expect(document.result.nfe).toBe(same.nfe);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const again = JSON.parse((await dultra([...args, '--stream'])).stdout);
    const { usage } = document.result;
    expect(usage).toEqual({ promptTokens: 3, completionTokens: same.tokens, totalTokens: 3 + same.tokens });
    expect(document.tokensPerSecond).toBeCloseTo(same.tokens / document.seconds, 6);
    expect(again.result).toEqual(document.result);
    const ids = new Array(24).fill(96);
    for (const { unmasked } of again.steps) for (const { position, token } of unmasked) ids[position] = token;
    expect(ids).toEqual(document.result.ids);
    expect(again.steps.map(({ step }: { step: number }) => step)).toEqual([...again.steps.keys()].map((i) => i + 1));
    expect(again.steps[0].ids).toBeUndefined();
  });

  test('--stream without a terminal is a line per step, then the completion', async () => {
    const { stdout } = await dultra(
      ['generate', '-m', base, '--prompt-ids', '5,17,3', ...short, '--stream', '--quiet'],
      {
        env: { NO_COLOR: '1' },
      },
    );
    const lines = stdout.trimEnd().split('\n');
    expect(lines[0]).toMatch(/^step 1, \d+ of 24 left: /);
    expect(lines.at(-2)).toMatch(/^step \d+, 0 of 24 left: [\d ]+$/);
    expect(lines.at(-1)).toBe(lines.at(-2)!.replace(/.*: /, '').replaceAll(' ', ','));
    expect(stdout).not.toContain('\x1b');
  });

  test('--stop, several times, is the list of the API', async () => {
    const prompt = 'tom has 7 apples . he buys 5 . how many now ? story';
    const args = ['generate', '-m', 'word-problems', prompt, '--stop', ' .', '--stop', 'nowhere', '--json'];
    const { code, stdout, stderr } = await dultra(args);
    expect([code, stderr]).toEqual([0, '']);
    await using model = await loadModel('word-problems');
    const stop = [' .', 'nowhere'];
    const result = await model.generate(prompt, { stop });
    expect(result.finishReason).toBe('stop');
    expect(JSON.parse(stdout)).toMatchObject({ options: { stop }, result: JSON.parse(JSON.stringify(result)) });
  });

  test('a seed that was drawn is named, and repeats the text', async () => {
    const args = ['generate', '-m', base, '--prompt-ids', '5,17,3', ...short, '-t', '1'];
    const drawn = await dultra(args);
    const [, seed] = /, seed (\d+)$/.exec(drawn.stderr.trimEnd())!;
    const again = await dultra([...args, '--seed', seed]);
    expect(again.stdout).toBe(drawn.stdout);
    expect(again.stderr).not.toContain('seed');
  });

  test('--stream keeps the words of a tokenizer of words apart', async () => {
    const { stdout } = await dultra([
      'generate',
      '-m',
      'word-problems',
      'tom has 7 apples . he buys 5 . how many now ? sum',
      '--stream',
      '--quiet',
    ]);
    const lines = stdout.trimEnd().split('\n');
    expect(lines.at(-1)).toMatch(/^\S+( \S+){5,}$/);
    expect(lines.at(-1)!.split(' ')).toContain('12');
    expect(lines.at(-2)!.replace(/^.*? left: /, '')).toBe(lines.at(-1));
  });

  test('text from an argument, stdin, a chat, messages and a template', async () => {
    const folder = withTokenizer();
    const messages = JSON.stringify([{ role: 'user', content: 'hi' }]);
    const file = path.join(temporaryFolder(), 'messages.json');
    writeFileSync(file, messages);
    const json = ['generate', '-m', folder, '--json'];
    const outcomes = inOneProcess([
      [...json, '1+2=', '-n', '8'],
      [...json, '--chat', 'hi', '-n', '8'],
      [...json, '--messages', messages, '-n', '8'],
      [...json, '--messages', file, '-n', '8'],
      [...json, '--template', 'ab<mask>d<mask>'],
      [...json, '--template-ids', '65,66,_,68,96'],
      ['generate', '-m', folder, '1+2=', '-n', '8', '-q'],
    ]);
    for (const { code, stderr } of outcomes) expect([code, stderr]).toEqual([0, '']);
    const result = ({ stdout }: Outcome) =>
      JSON.parse(stdout).result as { text: string; promptIds: number[]; ids: number[] };
    const codes = (text: string) => Array.from(text, (character) => character.charCodeAt(0) - 32);
    const [argument, chat, fromText, fromFile, template, templateIds] = outcomes.slice(0, 6).map(result);
    expect(argument.promptIds).toEqual(codes('1+2='));
    expect(chat.promptIds).toEqual(codes('user:hi;'));
    expect(fromText).toEqual(chat);
    expect(fromFile).toEqual(chat);
    expect(template.text).toMatch(/^ab.?d/);
    expect(template.ids).not.toContain(96);
    expect(templateIds).toEqual(template);
    expect(outcomes[6].stdout).toBe(`${argument.text}\n`);
    expect(result(await dultra([...json, '-', '-n', '8'], { input: '1+2=\n' }))).toEqual(argument);
    expect(result(await dultra([...json, '--messages', '-', '-n', '8'], { input: messages }))).toEqual(chat);
  });

  test('--split-special-tokens: a mask token in a prompt is text, but not in a template', () => {
    const folder = withTokenizer();
    const json = ['generate', '-m', folder, '--json', '-n', '8'];
    const [special, text, chat, template] = inOneProcess([
      [...json, 'a<mask>'],
      [...json, 'a<mask>', '--split-special-tokens'],
      [...json, 'a<mask>', '--split-special-tokens', '--chat'],
      ['generate', '-m', folder, '--template', 'a<mask>', '--split-special-tokens'],
    ]);
    const idsOf = ({ stdout }: Outcome) => (JSON.parse(stdout).result as { promptIds: number[] }).promptIds;
    expect(idsOf(special)).toHaveLength(2);
    expect(idsOf(text)).toHaveLength('a<mask>'.length);
    expect(idsOf(chat)).toHaveLength('user:a<mask>;'.length);
    expect(JSON.parse(text.stdout).options.splitSpecialTokens).toBe(true);
    expect([template.code, template.stderr]).toEqual([
      2,
      expect.stringMatching(/--split-special-tokens: not allowed with a template/),
    ]);
  });

  test('every sampler of the help', () => {
    const samplers = [
      'planner',
      'planner:bernoulli',
      'confidence:0.2',
      'factor:1',
      'entropy:2',
      'fixed:6',
      'random:6',
      'd3llm:2',
    ];
    const outcomes = inOneProcess(
      samplers.map((name) => ['generate', '-m', base, '--prompt-ids', '5', ...short, '-s', name, '--json']),
    );
    outcomes.forEach(({ code, stdout }, i) => {
      expect([samplers[i], code]).toEqual([samplers[i], 0]);
      expect(JSON.parse(stdout).result.ids).not.toContain(96);
    });
  });
});

describe('caches', () => {
  test('generate: every cache of the help, and what it saved', async () => {
    const names = [
      'none',
      'prefix',
      'dual',
      'dual:planner=fresh:dtype=bfloat16',
      'refresh:4',
      'refresh:changed=0.2',
      'delayed:1:every=3',
    ];
    const outcomes = inOneProcess(
      names.map((name) => ['generate', '-m', base, '--prompt-ids', '5', ...short, '--cache', name, '--json']),
    );
    await using model = await loadModel(base);
    for (const [i, { code, stdout }] of outcomes.entries()) {
      expect([names[i], code]).toEqual([names[i], 0]);
      const { options, result } = JSON.parse(stdout);
      expect(options.cache).toEqual(parseCache(names[i]));
      const same = await model.generate({ promptIds: [5] }, { maxTokens: 24, blockLength: 8, cache: options.cache });
      expect(result).toEqual(
        JSON.parse(
          JSON.stringify({ ...same, ids: Array.from(same.ids) }, (_, x) =>
            ArrayBuffer.isView(x) ? Array.from(x as Int32Array) : x,
          ),
        ),
      );
    }
    const { stderr } = await dultra(['generate', '-m', base, '--prompt-ids', '5', ...short, '--cache', 'dual']);
    expect(stderr).toMatch(/ in \d+ forward passes worth \d+\.\d\d full ones \(/);
    const [wrong] = inOneProcess([['generate', '-m', base, '--prompt-ids', '5', '--cache', 'double']]);
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringMatching(/--cache: expected none, prefix, dual/)]);
  });

  test('eval: every sampler with every cache', () => {
    const args = ['eval', '--samplers', 'planner,confidence:0.9', '--caches', 'none,dual', '--count', '8'];
    const report = path.join(temporaryFolder(), 'report.html');
    const [table, json, twice, plain] = inOneProcess([
      [...args, '--report', report],
      [...args, '--json', '-q'],
      ['eval', '--caches', 'dual,dual'],
      ['eval', '--samplers', 'planner', '--count', '4'],
    ]);
    // Without a cache every pass is a full one.
    expect(plain.stdout).toMatch(/^sampler +right +NFE +tokens\/pass /);
    expect([table.code, json.code]).toEqual([0, 0]);
    expect(table.stdout).toMatch(/^sampler +right +NFE +full passes /);
    expect(table.stdout).toMatch(/^planner \+ dual {2,}/m);
    const { results } = JSON.parse(json.stdout);
    expect(results.map(({ name }: { name: string }) => name)).toEqual([
      'planner',
      'planner + dual',
      'confidence:0.9',
      'confidence:0.9 + dual',
    ]);
    expect(readFileSync(report, 'utf8')).toMatch(/full-forward equivalents per answer/);
    expect([twice.code, twice.stderr]).toEqual([2, expect.stringMatching(/--caches: dual is given twice/)]);
  });
});

describe('errors', () => {
  const prompt = ['generate', '-m', base, '--prompt-ids', '5,17,3'];
  const wrongUsage: [string[], RegExp][] = [
    [[], /^Usage: dultra/],
    [['generat'], /unknown command 'generat'\n\(Did you mean generate\?\)/],
    [['generate'], /no prompt: give one as an argument/],
    [['generate', '-3+5='], /comes after --/],
    [[...prompt, 'text'], /expected one prompt, got PROMPT and --prompt-ids/],
    [[...prompt, '-n', '24', '-b', '7'], /--max-tokens: expected a multiple of --block-length \(7\), got 24/],
    [[...prompt, '-n', 'many'], /'-n, --max-tokens <n>' argument 'many' is invalid. Expected a whole number/],
    [[...prompt, '-n', '128'], /prompt: 3 tokens and --max-tokens 128 make 131, more than the model's maximum of 96/],
    [[...prompt, '-n', '8', '-t', '-1'], /--temperature: expected a finite number at least 0/],
    [[...prompt, '-n', '8', '--seed', '-1'], /Expected a whole number from 0/],
    [[...prompt, '-s', 'best'], /--sampler: expected planner, planner-round, planner-cut, confidence/],
    [
      [...prompt, '-s', 'confidence:2'],
      /--sampler threshold: expected a finite number at least 0 and at most 1, got 2/,
    ],
    [[...prompt, '-s', 'confidence', '--select', 'topk'], /are the planner's; --sampler is confidence/],
    [[...prompt, '--probability-scale', '0'], /--probability-scale: expected a finite number greater than 0/],
    [[...prompt, '--top-k', '0'], /--top-k: expected an integer at least 1/],
    [[...prompt, '--top-p', '2'], /--top-p: expected a finite number greater than 0 and at most 1, got 2/],
    [[...prompt, '--threads', '0'], /--threads: expected an integer at least 1/],
    [[...prompt, '--delay', '5'], /--delay: expected together with --stream/],
    [['generate', '-m', base, '--prompt-ids', '5,x'], /Expected ids such as 5,17,3; "x" is none/],
    [['generate', '-m', base, '--prompt-ids', '500', '-n', '8'], /--prompt-ids\[0\]: expected 0 to 103, got 500/],
    [
      ['generate', '-m', base, '--template-ids', '5,4'],
      /--template-ids: expected at least one mask, the mask token \(id 96\), got none/,
    ],
    [['generate', '-m', base, '--template-ids', '5,_', '-n', '4'], /--max-tokens: not allowed with a template/],
    [['generate', '-m', base, '--messages', 'nowhere.json'], /--messages: expected JSON .* or a file with it: ENOENT/],
    [['generate', '-m', base, '--messages', '[{"role":"user"}]'], /expected an array of \{ "role": …, "content": … \}/],
    [['generate', '-m', 'a/b/c', 'text'], /--model: expected a folder that exists or a hub id/],
    [['info', 'a', 'b'], /too many arguments for 'info'/],
  ];
  const failures: [string[], RegExp][] = [
    [['generate', '-m', base, 'text'], /has no tokenizer.json, .*--prompt-ids 5,17,3/],
    [['generate', '-m', '/nowhere', 'text'], /\/nowhere: no such folder/],
    [
      ['generate', '-m', base, '--prompt-ids', '5', '--device', 'cuda'],
      /--device: "cuda:0" is not available: this build does not contain the CUDA backend/,
    ],
    [['generate', '-m', 'org/name', 'text'], /org\/name@main: HF_HUB_OFFLINE is set/],
    [['info', 'test', '--json'], /config\.json/],
  ];
  let outcomes: Outcome[];
  beforeAll(() => {
    outcomes = inOneProcess([...wrongUsage, ...failures].map(([args]) => args));
  });

  test.each(wrongUsage.map(([args, message], i) => [args, message, i] as const))(
    '%j is wrong usage',
    (_args, message, i) => {
      const { code, stdout, stderr } = outcomes[i];
      expect(stderr).toMatch(message);
      expect(stderr).not.toMatch(/\n {4}at /);
      expect(stdout).toBe('');
      expect(code).toBe(2);
    },
  );

  test.each(failures.map(([args, message], i) => [args, message, i] as const))('%j fails', (_args, message, i) => {
    const { code, stdout, stderr } = outcomes[wrongUsage.length + i];
    expect(stderr).toMatch(message);
    expect(stderr).not.toMatch(/\n {4}at /);
    expect(stdout).toBe('');
    expect(code).toBe(1);
  });

  test('the exit codes are those of the process', async () => {
    expect((await dultra(['generate'])).code).toBe(2);
    expect((await dultra(['generate', '-m', '/nowhere', 'text'])).code).toBe(1);
  });

  test('a checkpoint without a planner names the other samplers', async () => {
    const args = ['generate', '-m', withoutPlanner('base'), '--prompt-ids', '5', ...short];
    expect((await dultra(args)).code).toBe(0);
    const { code, stderr } = await dultra([...args, '-s', 'planner']);
    expect(stderr).toMatch(/has no planner head; use --sampler confidence/);
    expect(code).toBe(1);
  });
});

describe('interruption', () => {
  const slow = ['generate', '-m', base, '--prompt-ids', '5', '-n', '64', '-s', 'fixed', '--stream', '--delay', '500'];

  for (const [signal, expected] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)
    exceptOnWindows('Windows ends a process that is sent a signal')(
      `${signal} stops a run with exit code ${expected}`,
      async () => {
        const { code, stdout, stderr } = await dultra(slow, {
          during: (child, piece) => piece.includes('step 2') && child.kill(signal),
        });
        expect(stderr).toMatch(/^dultra: interrupted\n$/m);
        expect(stdout).not.toMatch(/step 64/);
        expect(code).toBe(expected);
      },
    );

  test('a reader that closes the pipe ends it quietly', async () => {
    const { code, stderr } = await dultra(slow, { during: (child) => child.stdout!.destroy() });
    expect(stderr).toBe('');
    expect(code).toBe(0);
  });
});

describe('info', () => {
  test('without a model', async () => {
    const { code, stdout } = await dultra(['info']);
    expect(stdout).toMatch(/^dultra +\d+\.\d+\.\d+$/m);
    expect(stdout).toMatch(
      /^gpu +none: this build does not contain the CUDA backend(, which is for Linux| .*npm run build:cuda)/m,
    );
    expect(code).toBe(0);
    const { system, model } = JSON.parse((await dultra(['info', '--json'])).stdout);
    expect(system.node).toBe(process.version);
    expect(system.devices).toEqual(['cpu']);
    expect(model).toBeNull();
  });

  test('--report: a block for an issue, without paths', async () => {
    const { code, stdout, stderr } = await dultra(['info', '--report'], {
      env: { DULTRA_CUDA_PLUGIN: '/home/somebody/plugin.so' },
    });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^```text\ndultra: \d+\.\d+\.\d+\nnode: v\d+/);
    expect(stdout).toMatch(/^system: \w+ /m);
    expect(stdout).toMatch(/^memory: /m);
    expect(stdout).not.toContain('somebody');
    expect((await dultra(['info', base, '--report'])).code).toBe(2);
  });

  test('with a model', async () => {
    const { stdout } = await dultra(['info', base]);
    expect(stdout).toMatch(/^transformer +2 layers of width 64, 4 heads, feed-forward 160$/m);
    expect(stdout).toMatch(/^planner +1 layer, AdaLN$/m);
    expect(stdout).toMatch(/^tokenizer +none: prompts are token ids/m);
    const { model } = JSON.parse((await dultra(['info', base, '--json'])).stdout);
    expect(model.config.maskTokenId).toBe(96);
    expect(model.parameters).toBeGreaterThan(model.plannerParameters);
    expect((await dultra(['info', withoutPlanner('base')])).stdout).toMatch(
      /^planner +none: use the samplers confidence/m,
    );
    expect((await dultra(['info', withTokenizer()])).stdout).toMatch(
      /^tokenizer +97 ids, with chat template, mask token <mask>$/m,
    );
  });

  test('help and version', async () => {
    expect((await dultra(['--version'])).stdout).toBe(`${require('../package.json').version}\n`);
    const help = await dultra(['help', 'generate']);
    expect(help.stdout).toMatch(/--sampler .*\n[\s\S]*Samplers, which choose/);
    expect(help).toMatchObject({ code: 0, stderr: '' });
    expect(help.stdout).toBe((await dultra(['generate', '--help'])).stdout);
  });
});

test('a hub id is downloaded with progress on stderr', async () => {
  const names = ['config.json', 'model.safetensors'];
  const contents = new Map(names.map((name) => [name, readFileSync(path.join(base, name))]));
  const commit = '0123456789abcdef0123456789abcdef01234567';
  const blob = (data: Buffer) => createHash('sha1').update(`blob ${data.length}\0`).update(data).digest('hex');
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url!, 'http://localhost');
    const json = (value: unknown) => response.setHeader('Content-Type', 'application/json').end(JSON.stringify(value));
    const file = contents.get(path.basename(pathname));
    if (pathname.startsWith('/api/models/org/name/tree/'))
      json(
        names.map((name) => ({
          type: 'file',
          path: name,
          size: contents.get(name)!.length,
          oid: blob(contents.get(name)!),
        })),
      );
    else if (pathname.startsWith('/api/models/org/name'))
      json({
        _id: '1',
        id: 'org/name',
        sha: commit,
        private: false,
        gated: false,
        downloads: 0,
        likes: 0,
        lastModified: '2026-01-01',
      });
    else if (pathname.startsWith('/org/name/resolve/') && file) response.end(file);
    else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const env = {
      HF_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      HF_HOME: temporaryFolder(),
    };
    const args = ['generate', '-m', 'org/name', '--prompt-ids', '5,17,3', ...short];
    const { code, stdout, stderr } = await dultra(args, { env });
    expect(stderr).toMatch(/^downloading config\.json \(.* kB\)\ndownloading model\.safetensors \(.*\)\n24 tokens in/);
    expect(stdout).toBe((await dultra([...args.with(2, base)])).stdout);
    expect(code).toBe(0);
    // The second time nothing has to come.
    expect((await dultra(args, { env })).stderr).toMatch(/^24 tokens in/);
  } finally {
    server.close();
  }
});

describe('the row display', () => {
  const cells = (text: string, step: number | null = 1): Cell[] =>
    Array.from(text, (character) => ({ text: character, step }));
  const plain = (row: readonly Cell[], columns: number) =>
    layout(row, columns).lines.map((line) => line.map(({ text }) => text).join(''));

  test('lines break at the width, at newlines, and before a wide character that does not fit', () => {
    expect(plain(cells('abcdefg'), 3)).toEqual(['abc', 'def', 'g']);
    expect(plain(cells('ab\ncd'), 10)).toEqual(['ab', 'cd']);
    expect(plain(cells('ab漢字'), 3)).toEqual(['ab', '漢', '字']);
    expect(plain(cells('e\u0301e\u0301e'), 3)).toEqual(['e\u0301e\u0301e']);
    expect(plain([...cells('ab'), { text: '', step: null }], 10)).toEqual(['ab░']);
    expect(layout([...cells('abcd'), { text: '', step: null }], 2)).toMatchObject({ open: 2 });
  });

  test('control characters of a model do not reach the terminal', () => {
    expect(plain(cells('a\x1b[2Jb\r\u009b'), 20)).toEqual(['a␛[2Jb␍␡']);
  });

  /**
   * Interprets what RowDisplay writes: text, newlines, cursor up, clear to the end; everything else must be a colour or
   * the cursor.
   */
  class Screen {
    readonly isTTY = true;
    lines: string[] = [''];
    column = 0;
    row = 0;
    cursor = true;

    constructor(
      public columns: number,
      public rows: number,
    ) {}

    write(text: string): boolean {
      // biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences are what this reads
      for (const [token, sequence] of text.matchAll(/\x1b\[([?\d;]*[A-Za-z])|[\s\S]/gu)) {
        if (sequence === undefined) this.put(token);
        else if (sequence.endsWith('A')) this.row = Math.max(this.top(), this.row - Number.parseInt(sequence, 10));
        else if (sequence === 'J')
          this.lines.splice(this.row, Number.POSITIVE_INFINITY, this.lines[this.row].slice(0, this.column));
        else if (sequence === '?25l' || sequence === '?25h') this.cursor = sequence.endsWith('h');
        else expect(sequence).toMatch(/^\d+m$/);
      }
      return true;
    }

    /** First line that is still on the screen. */
    top(): number {
      return Math.max(0, this.lines.length - this.rows);
    }

    put(character: string): void {
      if (character === '\r') this.column = 0;
      else if (character === '\n' || this.column === this.columns) {
        this.row++;
        this.column = 0;
        this.lines[this.row] ??= '';
      }
      if (character === '\r' || character === '\n') return;
      this.lines[this.row] =
        this.lines[this.row].slice(0, this.column) + character + this.lines[this.row].slice(this.column + 1);
      this.column++;
    }
  }

  const mask: Cell = { text: '', step: null };
  test.each([
    [20, 24],
    [7, 24],
    [20, 3],
    [5, 2],
  ])('%i columns and %i rows: the row is redrawn in its place and stays whole at the end', (columns, rows) => {
    const screen = new Screen(columns, rows);
    screen.write('before\n');
    const display = new RowDisplay(screen as unknown as NodeJS.WriteStream);
    const text = 'The quick brown fox\njumps over the lazy dog.';
    const row: Cell[] = Array.from(text, () => mask);
    for (let step = 1; step <= 5; step++) {
      Array.from(text).forEach((character, i) => {
        if (i % 5 === step - 1) row[i] = { text: character, step };
      });
      display.update(row, `step ${step}`);
      expect(screen.cursor).toBe(false);
      expect(screen.lines[screen.lines.length - 1]).toBe(`step ${step}`.slice(0, columns - 1));
      if (rows === 24 && columns === 20 && step < 5)
        expect(screen.lines.slice(1).join('').match(/░/g)).toHaveLength(row.filter((c) => c === mask).length);
    }
    display.finish(row);
    expect(screen.cursor).toBe(true);
    // The terminal wraps the whole text by itself.
    const wrapped = text.split('\n').flatMap((line) => line.match(new RegExp(`.{1,${columns}}`, 'g')));
    expect(screen.lines).toEqual([...(columns < 6 ? ['befor', 'e'] : ['before']), ...wrapped, '']);
  });

  test('the part with masks is what a low terminal shows', () => {
    const screen = new Screen(11, 4);
    const display = new RowDisplay(screen as unknown as NodeJS.WriteStream);
    display.update([...cells('a'.repeat(40)), mask, ...cells('b'.repeat(9)), ...cells('c'.repeat(40))], 'status');
    expect(screen.lines.join('')).toContain('░bbbbbbbbb');
    expect(screen.lines).toHaveLength(3);
  });

  test('steps differ in colour', () => {
    const written: string[] = [];
    const stream = { isTTY: false, columns: 80, rows: 24, write: (text: string) => written.push(text) };
    const { FORCE_COLOR, NO_COLOR } = process.env;
    try {
      delete process.env.NO_COLOR;
      process.env.FORCE_COLOR = '1';
      new RowDisplay(stream as unknown as NodeJS.WriteStream).update(
        [...cells('a', 1), ...cells('b', 2), ...cells('c', 0)],
        '',
      );
      process.env.NO_COLOR = '1';
      new RowDisplay(stream as unknown as NodeJS.WriteStream).update([...cells('a', 1), ...cells('b', 2)], '');
    } finally {
      process.env.FORCE_COLOR = FORCE_COLOR;
      process.env.NO_COLOR = NO_COLOR;
      if (FORCE_COLOR === undefined) delete process.env.FORCE_COLOR;
      if (NO_COLOR === undefined) delete process.env.NO_COLOR;
    }
    expect(written[1]).toContain('\x1b[36ma\x1b[39m\x1b[32mb\x1b[39mc');
    expect(written[3]).toContain('ab');
  });
});
