// What the command line reads as text, and what of the text of others reaches the terminal.
import { type SpawnSyncReturns, spawn, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { datasets } from '../lib';
import { oneLine, printable } from '../lib/cli/output';
import { ids, maskedIds } from '../lib/cli/values';
import { inOneProcess, main, type Outcome } from './command-line';
import { exceptOnWindows, modelFolder, temporaryFolder, withTokenizer } from './helpers';

const env = { ...process.env, HF_HUB_OFFLINE: '1', DULTRA_CUDA_PLUGIN: '/nowhere/libdultra_cuda.so' };

const dultra = (args: string[], input: string | Buffer = ''): SpawnSyncReturns<string> =>
  spawnSync(process.execPath, [main, ...args], { input, env, encoding: 'utf8' });

/** Clears the screen, sets the title, colours, reverses the line; by C0 and by C1 characters. */
const HOSTILE = 'x\x1b[2J\x1b]0;title\x07\x9b31m\x85\x7f\r\b\u202eevil\u2066\u061c\ufeff';
/** What may be in a file's name on every system but Windows. */
const NAME = 'n\x1b[2J\x9b31m\u202en';
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones that are meant
const RAW = /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/;

test('control characters, marks and overrides become visible; letters, newlines and tabs stay', () => {
  expect(printable(HOSTILE)).toBe('x␛[2J␛]0;title␇␡31m␡␡␍␈<U+202E>evil<U+2066><U+061C><U+FEFF>');
  expect(printable('naïve 日本\n\tשלום 👩‍🚀 e\u0301')).toBe('naïve 日本\n\tשלום 👩‍🚀 e\u0301');
  expect(oneLine('a\nb\tc\x1b')).toBe('a␊b␉c␛');
});

test('only what makes text printable writes to the streams', () => {
  const folder = path.join(__dirname, '..', 'lib', 'cli');
  const writing = readdirSync(folder, { recursive: true })
    .map(String)
    .filter((name) => name.endsWith('.ts'))
    .filter((name) => /\bstd(out|err)\.write\b|console\./.test(readFileSync(path.join(folder, name), 'utf8')));
  expect(writing).toEqual(['output.ts']);
});

describe('text of others does not reach the terminal as it is', () => {
  /** A checkpoint whose config.json is `change`d. */
  function checkpoint(config: string): string {
    const folder = path.join(temporaryFolder(), 'model');
    cpSync(modelFolder('base'), folder, { recursive: true });
    writeFileSync(path.join(folder, 'config.json'), config);
    return folder;
  }
  const file = (name: string, content: string) => {
    const full = path.join(temporaryFolder(), name);
    writeFileSync(full, content);
    return full;
  };
  const config = JSON.parse(readFileSync(path.join(modelFolder('base'), 'config.json'), 'utf8'));

  const cases: [string, () => string[], number][] = [
    ['config.json that is no JSON', () => ['info', checkpoint(HOSTILE)], 1],
    [
      'config.json of another family',
      () => ['info', checkpoint(JSON.stringify({ ...config, model_type: HOSTILE }))],
      1,
    ],
    ['a key of a data set', () => ['eval', '-d', `gsm8k:${file('a.jsonl', `{"${HOSTILE}`)}`], 1],
    [
      'a value of a data set',
      () => [
        'eval',
        '-d',
        `apps:${file('a.jsonl', JSON.stringify({ question: 'q', difficulty: 'introductory', input_output: HOSTILE }))}`,
      ],
      1,
    ],
    ['a configuration', () => ['train', 'sft', '-c', file('run.yaml', `a: [${HOSTILE}\n: {`)], 2],
    [
      'keys of a configuration',
      () => ['train', 'sft', '-c', file('run.yaml', JSON.stringify({ dataset: 'st1', [HOSTILE]: 1 }))],
      2,
    ],
    ['messages', () => ['generate', '--messages', `[${HOSTILE}`], 2],
    ['messages of a file', () => ['generate', '--messages', file('a.json', HOSTILE)], 2],
    ['an unknown command', () => [HOSTILE], 2],
    ['an unknown option', () => ['info', `--${HOSTILE}`], 2],
    ['a value', () => ['generate', '-n', HOSTILE, 'x'], 2],
    ['a name of a data set', () => ['eval', '-d', HOSTILE], 2],
    ['a name of a sampler', () => ['generate', '-s', HOSTILE, 'x'], 2],
    ['a model', () => ['info', `./${HOSTILE.replaceAll('\0', '')}`], 1],
  ];
  let outcomes: Outcome[];
  beforeAll(() => {
    outcomes = inOneProcess(cases.map(([, args]) => args()));
  });

  test.each(cases.map(([what, , code], i) => [what, code, i] as const))('%s', (_what, code, i) => {
    const { stdout, stderr } = outcomes[i];
    expect(stdout).toBe('');
    expect(stderr).not.toMatch(RAW);
    expect(stderr).not.toContain('this is a bug');
    expect(outcomes[i].code).toBe(code);
  });

  const named = exceptOnWindows('its file names have no control characters');
  named('names of folders and files, in tables, progress and JSON', () => {
    const folder = path.join(temporaryFolder(), NAME);
    cpSync(withTokenizer(512), folder, { recursive: true });
    const own = path.join(folder, 'gsm8k.jsonl');
    writeFileSync(own, JSON.stringify({ question: '1+2', answer: '#### 3' }));
    const info = dultra(['info', folder]);
    expect(info.stdout).toContain('n␛[2J␡31m<U+202E>n');
    const json = dultra(['info', folder, '--json']);
    expect(JSON.parse(json.stdout).model.source).toBe(folder);
    const args = ['eval', '-m', folder, '-d', `gsm8k:${own}`, '--prompts', 'non-thinking', '-n', '8', '-b', '8'];
    const table = dultra([...args, '-s', 'confidence:0.9', '--report', path.join(folder, 'report.html')]);
    expect(table.stderr).toContain('report: ');
    mkdirSync(path.join(folder, 'checkpoints', 'step-00000001'), { recursive: true });
    const train = dultra(['train', 'sft', '-d', 'st1', '-o', folder]);
    expect(train.stderr).toContain('holds a run already');
    for (const { stdout, stderr } of [info, json, table, train]) expect(stdout + stderr).not.toMatch(RAW);
    expect([info, json, train].map(({ status }) => status)).toEqual([0, 0, 2]);
  });

  test('answers of a hub', async () => {
    const server = createServer((_request, response) => {
      response.writeHead(400, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: HOSTILE }));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      const child = spawn(process.execPath, [main, 'info', 'org/name'], {
        env: {
          ...env,
          HF_HUB_OFFLINE: '',
          HF_HOME: temporaryFolder(),
          HF_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
        },
      });
      let text = '';
      for (const stream of [child.stdout, child.stderr])
        stream.on('data', (piece) => {
          text += piece;
        });
      const code = await new Promise((resolve) => child.on('close', resolve));
      expect(code).toBe(1);
      expect(text).toMatch(/org\/name/);
      expect(text).not.toMatch(RAW);
    } finally {
      server.close();
    }
  });

  test('a message that quotes without end is cut', () => {
    const { stderr } = dultra(['generate', '-s', `${'a'.repeat(100_000)}`, 'x']);
    expect(stderr.length).toBeLessThan(5000);
  });
});

describe('prompts', () => {
  test('what the tokenizer does not know is said, and the toy reads what people write', () => {
    const [toy, people] = [
      'tom has 7 apples . he buys 5 . how many now ? sum',
      'Tom has 7 apples. He buys 5. How many now? SUM',
    ].map((prompt) => dultra(['generate', '-m', 'word-problems', prompt, '--json']));
    expect([toy.stderr, people.stderr]).toEqual(['', '']);
    expect(JSON.parse(people.stdout).result).toEqual(JSON.parse(toy.stdout).result);
    const unknown = dultra(['generate', '-m', 'word-problems', 'Why is the sky blue?']);
    expect(unknown.stderr).toMatch(/^warning: 3 of 6 tokens of a prompt are "<unk>": .*does not know this text/);
  });

  test('what the embedded model declines, the command line explains', () => {
    const outside = dultra(['generate', 'Why is the sky blue?']);
    expect(outside.stdout).toBe(`${datasets.WORLD_REFUSAL}\n`);
    expect(outside.stderr).toMatch(/The embedded model knows small talk, .* and declines everything\s+else/s);
    for (const args of [['Hello!'], ['-m', 'world', 'Why is the sky blue?'], ['-q', 'Why is the sky blue?']])
      expect(dultra(['generate', ...args]).stderr).not.toContain('declines');
  });

  const json = ['generate', '-m', withTokenizer(), '-n', '8', '--json'];
  const promptIds = ({ stdout }: SpawnSyncReturns<string>) => JSON.parse(stdout).result.promptIds as number[];
  const codes = (text: string) => Array.from(text, (character) => character.charCodeAt(0) - 32);

  test('a byte order mark is no part of a prompt or of messages', () => {
    expect(promptIds(dultra([...json, '-'], '\ufeff1+2=\n'))).toEqual(codes('1+2='));
    const messages = `\ufeff${JSON.stringify([{ role: 'user', content: 'hi' }])}`;
    expect(promptIds(dultra([...json, '--messages', '-'], messages))).toEqual(codes('user:hi;'));
    const file = path.join(temporaryFolder(), 'messages.json');
    writeFileSync(file, messages);
    expect(promptIds(dultra([...json, '--messages', file]))).toEqual(codes('user:hi;'));
    const config = path.join(temporaryFolder(), 'run.json');
    writeFileSync(config, '\ufeff{"dataset": "nothing"}');
    expect(dultra(['train', 'sft', '-c', config]).stderr).toContain('run.json, line 1: dataset: expected');
  });

  exceptOnWindows('it has no sh')('a pipe is the prompt where there is no other', () => {
    const run = (command: string) =>
      spawnSync('sh', ['-c', command], {
        env: { ...env, NODE: process.execPath, MAIN: main, MODEL: json[2] },
        encoding: 'utf8',
      });
    const piped = run('printf "1+2=\\n" | "$NODE" "$MAIN" generate -m "$MODEL" -n 8 --json');
    expect(promptIds(piped)).toEqual(codes('1+2='));
    const chat = run('printf hi | "$NODE" "$MAIN" generate -m "$MODEL" -n 8 --json --chat');
    expect(promptIds(chat)).toEqual(codes('user:hi;'));
    expect(run('"$NODE" "$MAIN" generate </dev/null').stderr).toMatch(/^dultra: no prompt: give one/);
    expect(run(': | "$NODE" "$MAIN" generate').stderr).toMatch(/^dultra: no prompt: give one/);
  });

  const refused: [string, string[], string | Buffer, RegExp][] = [
    ['nothing on stdin', ['-'], '', /expected a prompt on stdin, got nothing/],
    ['a newline on stdin', ['-'], '\n', /expected a prompt on stdin, got nothing/],
    ['a byte order mark alone', ['-'], '\ufeff', /expected a prompt on stdin, got nothing/],
    ['white space on stdin', ['-', '--chat'], ' \n\t\n', /expected a prompt on stdin, got only white space/],
    ['white space', ['  '], '', /expected a prompt, got only white space/],
    ['nothing', [''], '', /expected a prompt, got nothing/],
    ['nothing in a chat', ['--chat', ''], '', /expected a prompt, got nothing/],
    [
      'messages of nothing',
      ['--messages', '[{"role":"user","content":" "}]'],
      '',
      /expected messages that say something/,
    ],
    ['no messages on stdin', ['--messages', '-'], '', /--messages: expected JSON in stdin/],
    ['Latin-1', ['-'], Buffer.from('naïve', 'latin1'), /stdin, line 1: expected UTF-8 text, got the byte 0xEF/],
    ['UTF-16', ['-'], Buffer.from('\ufeffhello', 'utf16le'), /stdin, line 1: expected UTF-8 text, got UTF-16/],
    [
      'UTF-16 without a mark',
      ['-'],
      Buffer.from('hello', 'utf16le'),
      /stdin, line 1: expected UTF-8 text, got UTF-16, or/,
    ],
    ['binary', ['-'], Buffer.from([1, 2, 0, 4]), /stdin, line 1: expected UTF-8 text, got binary data/],
    ['more than any model reads', ['-'], Buffer.alloc(2 ** 24, 'a'), /stdin: expected at most 8 MiB of text, got more/],
    ['zeros', ['-'], Buffer.alloc(2 ** 24), /stdin, line 1: expected UTF-8 text, got binary data/],
    ['a file that is no text', ['--messages', process.execPath], '', /--messages: .*expected UTF-8 text, got/],
    ['no ids', ['--prompt-ids', ''], '', /Expected ids such as 5,17,3, got none/],
    ['an id left out', ['--prompt-ids', '5,,3'], '', /one before or behind a comma is missing/],
    ['no ids of a template', ['--template-ids', ' '], '', /Expected ids such as 5,_,_,3, got none/],
  ];
  const isStdin = ([, args]: (typeof refused)[number]) => args.includes('-');
  const withInput = refused.filter(isStdin);
  const others = refused.filter((entry) => !isStdin(entry));

  test.each(withInput)('%s is refused', (_what, args, input, message) => {
    const { status, stdout, stderr } = dultra(['generate', ...args], input);
    expect(stderr).toMatch(message);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
  });

  test('the same of arguments', () => {
    const outcomes = inOneProcess(others.map(([, args]) => ['generate', ...args]));
    for (const [i, { code, stdout, stderr }] of outcomes.entries()) {
      expect(stderr).toMatch(others[i][3]);
      expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    }
  });

  test('ids', () => {
    for (const text of ['5,17,3', '5 17 3', ' 5, 17 ,3 ', '5\n17\t3']) expect(ids(text)).toEqual([5, 17, 3]);
    expect(maskedIds('5,_ _,3')).toEqual([5, null, null, 3]);
    for (const text of ['', ' ', ',', '5,', ',5', '5,,3', '5, ,3', '5;3', '-1', '1.5', '_'])
      expect(() => ids(text)).toThrow('Expected ids such as 5,17,3');
  });
});
