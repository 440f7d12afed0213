// dultra chat: through a pipe as it is started, and the parts that need a terminal against stand-ins for one.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { loadModel } from '../lib';
import { readLines, TerminalLines } from '../lib/cli/lines';
import { StatusLine } from '../lib/cli/progress';
import { main } from './command-line';
import { modelFolder, temporaryFolder, withTokenizer } from './helpers';

const env = { ...process.env, HF_HUB_OFFLINE: '1', DULTRA_CUDA_PLUGIN: '/nowhere/libdultra_cuda.so' };
const chat = (args: string[], input: string | Buffer) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, 'chat', ...args], {
    input,
    env,
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
};

describe('through a pipe', () => {
  const folder = withTokenizer(96);
  const args = ['-m', folder, '-n', '8'];

  test('every line is a message, answered in the chat so far', async () => {
    const { status, stdout, stderr } = chat([...args, '--system', 'be brief', '-q'], 'hi\n\n  \r\nand?\r\nunended');
    await using model = await loadModel(folder);
    const session = model.chat({ system: 'be brief' });
    let expected = '';
    for (const text of ['hi', 'and?', 'unended']) expected += `${(await session.send(text, { maxTokens: 8 })).text}\n`;
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: expected, stderr: '' });
  });

  test('commands: messages are saved and gone on with, what was left out is said', () => {
    const file = path.join(temporaryFolder(), 'chat.json');
    const first = chat(args, `hi\n/stats\n/save ${file}\n/reset\n//slash\n/system short\n/system\n/exit\nnever\n`);
    expect(first.stderr).toContain(`saved 2 messages to ${file}\n`);
    expect(first.stderr).toContain('(cut at 8 tokens; --max-tokens sets how many)');
    expect(first.stdout).toMatch(
      /^.*\nlast answer: 8 tokens in .*\ncontext: 16 of 96 tokens\nin all: 1 answer, 8 tokens in .*\n.*\nshort\n$/,
    );
    expect(first.status).toBe(0);
    const { messages } = JSON.parse(readFileSync(file, 'utf8'));
    expect(messages.map(({ role }: { role: string }) => role)).toEqual(['user', 'assistant']);
    const long = 'x'.repeat(60);
    const second = chat([...args, '--load', file], `${long}\n/save ${file}\n`);
    expect(second.stderr).toContain('(the oldest 2 messages do not fit any more; the model did not see them)');
    expect(JSON.parse(readFileSync(file, 'utf8')).messages.slice(0, 3)).toEqual([
      ...messages,
      { role: 'user', content: long },
    ]);
    expect(chat(args, `/load ${file}\n/system\n`)).toMatchObject({ status: 0, stdout: '(no system message)\n' });
  });

  test('/save does not write over what is no chat', () => {
    const file = path.join(temporaryFolder(), 'notes.txt');
    writeFileSync(file, 'my notes');
    const { status, stderr } = chat(args, `/save ${file}\n`);
    expect(stderr).toMatch(/expected a saved chat: .*JSON/);
    expect(status).toBe(2);
    expect(readFileSync(file, 'utf8')).toBe('my notes');
    const nowhere = path.join(temporaryFolder(), 'nowhere', 'chat.json');
    expect(chat(args, `/save ${nowhere}\n`).status).toBe(1);
    expect(existsSync(nowhere)).toBe(false);
  });

  test.each<[string, string[], string | Buffer, number, RegExp]>([
    ['an unknown command', [], '/restet\n', 2, /unknown command \/restet; \/help lists them/],
    ['a command without its file', [], '/save\n', 2, /\/save: expected a file, as in \/save chat\.json/],
    ['a file that is not there', [], '/load /nowhere.json\n', 2, /expected a saved chat: .*nowhere/],
    ['a saved chat of another form', ['--load', path.join(modelFolder('base'), 'config.json')], '', 2, /"messages"/],
    ['a message that is too long', [], 'x'.repeat(90), 2, /^dultra: text: 96 tokens, without earlier turns/],
    ['no text', [], Buffer.from([65, 0, 1, 10]), 2, /stdin, line 1: expected UTF-8 text, got binary data/],
    ['a line without end', [], Buffer.alloc(2 ** 24, 'a'), 2, /stdin, line 1: expected at most 8 MiB, got more/],
  ])('%s ends it', (_what, more, input, code, message) => {
    const { status, stdout, stderr } = chat([...args, ...more], input);
    expect(stderr).toMatch(message);
    expect({ status, stdout }).toEqual({ status: code, stdout: '' });
  });

  test('without a chat template: refused', () => {
    const refused = chat(['-m', modelFolder('base')], 'hi\n');
    expect(refused.stderr).toMatch(/^dultra: --model: .*has no chat template.*"dultra generate" completes a prompt/);
    expect(refused.status).toBe(2);
  });

  test('the embedded model chats, and says what it knows', () => {
    const { status, stdout, stderr } = chat([], 'Hello!\nMy name is Anna.\nWhat is my name?\n');
    expect(stderr).toMatch(/^The embedded model knows small talk/);
    const answers = stdout.trimEnd().split('\n');
    expect(answers).toHaveLength(3);
    expect(answers[0]).toMatch(/^H(ello|i)!/);
    expect(answers[2]).toContain('Anna');
    expect(status).toBe(0);
  });
});

describe('lines', () => {
  test('of a stream: any cut, with and without an end; a bad one is told of, and the rest is read', async () => {
    const text = 'eins\r\n\nd\u00e9ux\nx';
    for (const size of [1, 2, 5, 100]) {
      const stream = new PassThrough();
      const bytes = Buffer.concat([Buffer.from(text), Buffer.from([0xff, 10]), Buffer.from('end\n')]);
      for (let i = 0; i < bytes.length; i += size) stream.write(bytes.subarray(i, i + size));
      stream.end();
      const lines = [];
      for await (const line of readLines(stream, 'in')) lines.push(line);
      expect(lines).toEqual([
        { number: 1, text: 'eins' },
        { number: 2, text: '' },
        { number: 3, text: 'd\u00e9ux' },
        { number: 4, error: expect.stringMatching(/^in, line 4: expected UTF-8 text, got the byte 0xFF/) },
        { number: 5, text: 'end' },
      ]);
    }
  });

  /** A terminal: keys in, what is written out. */
  function terminal() {
    const input = Object.assign(new PassThrough(), { isTTY: true, setRawMode: () => {} });
    const output = Object.assign(new PassThrough(), { isTTY: true, columns: 40, rows: 10 });
    let written = '';
    output.on('data', (piece) => {
      written += piece;
    });
    const interrupts: boolean[] = [];
    const lines = new TerminalLines(input as unknown as NodeJS.ReadStream, output as unknown as NodeJS.WriteStream, {
      prompt: '> ',
      words: ['/help'],
      onInterrupt: (wasTyping) => interrupts.push(wasTyping),
    });
    return { input, lines, interrupts, written: () => written };
  }

  test('of a terminal: what is typed meanwhile is not shown before its turn', async () => {
    const { input, lines, written } = terminal();
    const first = lines.next();
    input.write('one\r');
    expect(await first).toBe('one');
    const before = written();
    input.write('two\rthr');
    await sleep(20);
    expect(written()).toBe(before);
    expect(await lines.next()).toBe('two');
    expect(written().slice(before.length)).toBe('> two\n');
    const third = lines.next();
    expect(written()).toContain('> thr');
    input.write('ee\r');
    expect(await third).toBe('three');
    input.end();
    expect(await lines.next()).toBeNull();
  });

  test('Ctrl-C takes back a line that has begun, and is told of', async () => {
    const { input, lines, interrupts } = terminal();
    const line = lines.next();
    input.write('half');
    input.write('\x03');
    input.write('\x03');
    input.write('whole\r');
    expect(await line).toBe('whole');
    expect(interrupts).toEqual([true, false]);
    lines.close();
    expect(await lines.next()).toBeNull();
  });
});

test('a status line appears after a moment, is cut to the width, and is gone at the end; none in a pipe', async () => {
  let written = '';
  const stream = { isTTY: true, columns: 18, write: (text: string) => (written += text) };
  const status = new StatusLine(stream as unknown as NodeJS.WriteStream);
  status.update('pass 1');
  status.clear();
  expect(written).toBe('');
  status.update('pass 2\x1b[2J');
  status.update('pass 3, 400 of 512 left');
  for (let i = 0; written === '' && i < 200; i++) await sleep(10);
  status.clear();
  // biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences are what this reads
  expect(written.replace(/\x1b\[\d+m/g, '')).toBe('\r\x1b[Kpass 3, 400 of 51\r\x1b[K');
  const pipe = new StatusLine({ ...stream, isTTY: false } as unknown as NodeJS.WriteStream);
  written = '';
  pipe.update('pass 1');
  await sleep(400);
  pipe.clear();
  expect(written).toBe('');
});

const hasTerminal = process.platform === 'linux' && spawnSync('script', ['--version']).status === 0;
describe(`on a terminal${hasTerminal ? '' : ' (skipped: script of util-linux is not here)'}`, () => {
  const on = hasTerminal ? test : test.skip;
  const folder = withTokenizer(512);
  /** Answers of minutes, so that they can be stopped on any machine. */
  const slow = ['-m', withTokenizer(4096), '-n', '4000', '-b', '4000', '-s', 'fixed:4000'];

  /** Starts a chat; `say` waits for what is shown, and then types. */
  function start(...more: string[]) {
    const command = [process.execPath, main, 'chat', ...more].map((part) => `'${part}'`).join(' ');
    const child = spawn('script', ['-qec', command, '/dev/null'], { env: { ...env, TERM: 'xterm', SHELL: '/bin/sh' } });
    let shown = '';
    let from = 0;
    child.stdout.on('data', (piece) => {
      shown += piece;
    });
    const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
    const waitFor = async (pattern: RegExp) => {
      for (let i = 0; !pattern.test(shown.slice(from)) && i < 6000; i++) await sleep(10);
      expect(shown.slice(from)).toMatch(pattern);
      from = shown.length;
    };
    return {
      ended,
      waitFor,
      async say(pattern: RegExp, keys: string) {
        await waitFor(pattern);
        child.stdin.write(keys);
      },
    };
  }
  on('answers, commands, and leaving by /exit', async () => {
    const { say, ended } = start('-m', folder, '-n', '8');
    await say(/\/help lists the commands.*> /s, 'hi\r');
    await say(/\(cut at 8 tokens.*> /s, '/stats\r');
    await say(/in all: 1 answer, 8 tokens.*> /s, '/nonsense\r');
    await say(/unknown command \/nonsense.*> /s, `${'x'.repeat(600)}\r`);
    await say(/text: 606 tokens, without earlier turns.*> /s, '/exit\r');
    expect(await ended).toBe(0);
  });

  on('Ctrl-C stops the answer, and twice leaves', async () => {
    const { say, waitFor, ended } = start(...slow);
    await say(/> /, 'hi\r');
    await say(/pass \d+, \d+ left/, '\x03');
    await say(/stopped: the chat is as it was before the message.*> /s, '/stats\r');
    await say(/no answers yet.*> /s, 'half a line');
    await say(/half a line/, '\x03\x03');
    await waitFor(/\n/);
    expect(await ended).toBe(0);
  });

  on('Ctrl-C at the prompt says how to leave; Ctrl-D leaves', async () => {
    const { say, ended } = start('-m', folder, '-n', '8', '-q');
    await say(/> /, '\x03');
    await say(/\(Ctrl-C again, Ctrl-D or \/exit leaves\).*> /s, '\x04');
    expect(await ended).toBe(0);
  });
});
