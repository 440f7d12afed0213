// How the command line lays out help and tables.
import { layOut } from '../lib/cli/help';
import { besideName, printColumns, printTable, wrap } from '../lib/cli/output';
import { inOneProcess } from './command-line';

const COMMANDS = [
  'generate',
  'chat',
  'decide',
  'train',
  'distill',
  'eval',
  'calibrate',
  'bench',
  'merge',
  'pull',
  'models',
  'info',
  'verify',
  'doctor',
];

test('help is at most 80 columns wide, and says first what most people need', () => {
  const outcomes = inOneProcess([['help'], ...COMMANDS.map((name) => ['help', name])]);
  for (const { code, stdout, stderr } of outcomes) {
    expect([code, stderr]).toEqual([0, '']);
    expect(stdout.split('\n').filter((line) => line.length > 80)).toEqual([]);
  }
  // Nothing is left below its name.
  expect(outcomes[0].stdout).toMatch(/^ {2}models {4,}list the models in the cache of the hub, or delete one$/m);
  for (const name of COMMANDS) expect(outcomes[0].stdout).toMatch(new RegExp(`^  ${name} `, 'm'));
  const generate = outcomes[1].stdout;
  const headings = [...generate.matchAll(/^(\w.*):$/gm)].map(([, heading]) => heading);
  expect(headings.slice(0, 2)).toEqual(['Arguments', 'Common options']);
  expect(generate.indexOf('--model')).toBeLessThan(generate.indexOf('--prompt-ids'));
  // Every option once.
  const options = [...generate.matchAll(/^ {2}(?:-\w, )?(--[\w-]+)/gm)].map(([, option]) => option);
  expect(new Set(options).size).toBe(options.length);
});

test('examples and paragraphs are broken at the width of the terminal', () => {
  const text = [
    'One paragraph that goes on',
    'and on.',
    '',
    'Examples:',
    '  dultra generate --chat "Why is the sky blue?"',
    '  short',
    '    indented more and too long for it',
  ].join('\n');
  expect(layOut(text, 24).split('\n')).toEqual([
    'One paragraph that goes',
    'on and on.',
    '',
    'Examples:',
    '  dultra generate \\',
    '    --chat \\',
    '    "Why is the sky blue?"',
    '  short',
    '    indented more and',
    '    too long for it',
  ]);
  expect(layOut(text, 80)).toBe(text.replace('goes on\nand', 'goes on and'));
});

test('words are kept whole, and nothing is lost', () => {
  expect(wrap('a bb ccc', 4)).toEqual(['a bb', 'ccc']);
  expect(wrap('abcdef g', 3)).toEqual(['abcdef', 'g']);
  expect(wrap('', 3)).toEqual(['']);
  expect(wrap('a editing:0.7:limit=0.5', 12)).toEqual(['a', 'editing:0.7:', 'limit=0.5']);
  expect(besideName('name', ['one two three four five six seven eight'], 6, 40)).toEqual([
    'name    one two three four five six',
    '        seven eight',
  ]);
  expect(besideName('name', ['one two three', 'four'], 6, 12)).toEqual(['name', '  one two', '  three', '  four']);
  expect(besideName('name', ['x'.repeat(99)], 6, null)).toEqual([`name    ${'x'.repeat(99)}`]);
});

describe('tables', () => {
  /** What is printed on a terminal of so many columns; null: in a pipe. */
  function printed(columns: number | null, print: () => void): string[] {
    const { stdout } = process;
    const before = { isTTY: stdout.isTTY, columns: stdout.columns, NO_COLOR: process.env.NO_COLOR };
    let text = '';
    const write = jest.spyOn(stdout, 'write').mockImplementation((piece) => {
      text += piece;
      return true;
    });
    try {
      process.env.NO_COLOR = '1';
      Object.assign(stdout, { isTTY: columns !== null, columns });
      print();
    } finally {
      write.mockRestore();
      Object.assign(stdout, { isTTY: before.isTTY, columns: before.columns });
      if (before.NO_COLOR === undefined) delete process.env.NO_COLOR;
      else process.env.NO_COLOR = before.NO_COLOR;
    }
    return text.split('\n').slice(0, -1);
  }
  const head = ['sampler', 'right', 'tokens/pass', 'tokens/s'];
  const rows = [
    ['planner', '98.0 ± 0.6 %', '3.15', '12000'],
    ['confidence:0.9', '97.1 %', '2.50', '9000'],
  ];

  test('a wide one becomes a list where the terminal is narrow', () => {
    const wide = printed(80, () => printColumns(head, rows, 1));
    expect(wide).toEqual([
      'sampler                right  tokens/pass  tokens/s',
      'planner         98.0 ± 0.6 %         3.15     12000',
      'confidence:0.9        97.1 %         2.50      9000',
    ]);
    expect(printed(null, () => printColumns(head, rows, 1))).toEqual(wide);
    expect(printed(48, () => printColumns(head, rows, 1))).toEqual([
      '                              tokens/  tokens/',
      'sampler                right     pass        s',
      'planner         98.0 ± 0.6 %     3.15    12000',
      'confidence:0.9        97.1 %     2.50     9000',
    ]);
    const narrow = printed(40, () => printColumns(head, rows, 1));
    expect(narrow).toEqual([
      'planner',
      '  right        98.0 ± 0.6 %',
      '  tokens/pass  3.15',
      '  tokens/s     12000',
      'confidence:0.9',
      '  right        97.1 %',
      '  tokens/pass  2.50',
      '  tokens/s     9000',
    ]);
  });

  test('values go on below themselves', () => {
    const print = () =>
      printTable([
        ['gpu', 'none: this build does not contain the CUDA backend'],
        ['isa', 'avx2', 'best'],
      ]);
    expect(printed(null, print)).toEqual([
      'gpu  none: this build does not contain the CUDA backend',
      'isa  avx2',
      '     best',
    ]);
    expect(printed(40, print)).toEqual([
      'gpu  none: this build does not contain',
      '     the CUDA backend',
      'isa  avx2',
      '     best',
    ]);
  });
});

test('the version, and commands that there are not', () => {
  const { version } = require('../package.json');
  const outcomes = inOneProcess([
    ['-v'],
    ['-V'],
    ['help', 'nosuch'],
    ['help', 'generat'],
    ['help', 'help'],
    ['help', 'info'],
  ]);
  expect(outcomes.slice(0, 2).map(({ code, stdout }) => [code, stdout])).toEqual([
    [0, `${version}\n`],
    [0, `${version}\n`],
  ]);
  expect(outcomes[2]).toEqual({
    code: 2,
    stdout: '',
    stderr: 'dultra: unknown command \'nosuch\'\nRun "dultra help" for the commands.\n',
  });
  expect(outcomes[3].stderr).toContain('(Did you mean generate?)');
  expect(outcomes[5].stdout).toMatch(/^Usage: dultra info/);
});
