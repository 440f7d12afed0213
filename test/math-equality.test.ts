// Equality of mathematical answers: written pairs of every kind, and texts that mean harm.
import { rewards } from '../lib';
import { ANSWERS } from './math-answers';

const pairsOf = (row: readonly string[]) => row.flatMap((a) => row.filter((b) => b !== a).map((b) => [a, b] as const));

/** The pairs for which `mathEqual` does not say what is expected. */
async function wrong(rows: readonly string[][], expected: boolean): Promise<(readonly [string, string])[]> {
  const found: (readonly [string, string])[] = [];
  for (const [a, b] of rows.flatMap(pairsOf)) if ((await rewards.mathEqual(a, b)) !== expected) found.push([a, b]);
  return found;
}

describe.each(Object.entries(ANSWERS))('%s', (_kind, { equal, different }) => {
  test('equal', async () => expect(await wrong(equal, true)).toEqual([]));
  test('different', async () => expect(await wrong(different, false)).toEqual([]));
});

test('a text equals itself, unless it is empty', async () => {
  for (const text of ['no real solutions', '\\oint_C F\\cdot dr', '0/0', '{{{', '5 10/3', 'a/bc']) {
    expect(await rewards.mathEqual(text, ` ${text} `)).toBe(true);
  }
  expect(await rewards.mathEqual('', '')).toBe(false);
  expect(await rewards.mathEqual(' ', '')).toBe(false);
});

test('what cannot be read equals the same signs alone', async () => {
  expect(await rewards.mathEqual('\\int_0^1 x\\,dx', '\\int_{0}^{1}x dx')).toBe(true);
  expect(await rewards.mathEqual('\\int_0^1 x\\,dx', '\\int_0^2 x\\,dx')).toBe(false);
  expect(await rewards.mathEqual('\\lim_{x\\to0}f(x)', '\\lim_{x \\to 0} f(x)')).toBe(true);
});

test('words that every object of JavaScript has are words', async () => {
  for (const word of ['constructor', 'toString', 'valueOf(x)', '__proto__', '\\hasOwnProperty x', '\\valueOf{2}']) {
    expect(await rewards.mathEqual(word, '2')).toBe(false);
    expect(await rewards.mathEqual(`x ${word}`, 'x')).toBe(false);
    expect(await rewards.mathEqual(word, `${word} `)).toBe(true);
  }
});

const nested = (open: string, depth: number, close: string) => `${open.repeat(depth)}x${close.repeat(depth)}`;
const HOSTILE: readonly [string, string][] = [
  ['9^{9^{9^{9^9}}}', '1'],
  ['10^{10^{10}}', '10^{10^{11}}'],
  ['999999999!', '1'],
  ['((((((((((2^{99})^{99})^{99})^{99})^{99})^{99})^{99})^{99})^{99})^{99})', '3'],
  [`${'{'.repeat(1900)}`, '1'],
  [nested('\\frac{1}{', 180, '}'), 'x'],
  [nested('\\sqrt{', 250, '}'), 'y'],
  [nested('(1,', 400, ')'), 'x'],
  [nested('|', 900, '|'), 'x'],
  [nested('f(', 600, ')'), 'x'],
  [nested('\\text{', 280, '}'), 'x'],
  ['1+'.repeat(900), '900'],
  ['-'.repeat(1900), '1'],
  ['2^'.repeat(900), '2'],
  ['x'.repeat(1500), 'x^{1500}'],
  [`${'1,'.repeat(900)}1`, '1'],
  ['1 '.repeat(900), '1'],
  ['1{,}111'.repeat(280), '1'],
  ['\\,111'.repeat(300), '1'],
  ['9'.repeat(100_000), '1'],
  ['$'.repeat(1999), '1'],
  ['\\pm'.repeat(600), '1'],
  ['=1'.repeat(900), '1'],
  ['5 apples '.repeat(200), '5'],
  [`5${'/m'.repeat(900)}`, '5'],
  ['1e99999999', '1'],
  ['\\sum_{k=1}^{10^{12}} k', '1'],
  ['\\int_0^\\infty e^{-x^{x^{x}}} dx', '1'],
  ['\\prod_{k=1}^{999999999} k', '2'],
  ['\\binom{10^9}{5\\cdot 10^8}', '1'],
  ['(x+y+z+w+u+v+1)^{60}', '(1+x+y+z+w+u+v)^{61}'],
  ['(x+y+z)^{200}', '(y+z+x)^{200}+x^{200}-x^{199}x'],
  ['\u0000\ud800\\', '1'],
  ['\\begin{pmatrix}'.repeat(100), '1'],
  [`${' '.repeat(1900)}a`, '1'],
];

test('texts that mean harm are different, each after little work', async () => {
  // CPU time of this thread; the bound is far above what the count of steps takes on a slow machine.
  for (const [a, b] of HOSTILE) {
    const begin = process.cpuUsage();
    const got = await rewards.mathEqual(a, b);
    const { user, system } = process.cpuUsage(begin);
    expect({ a: a.slice(0, 60), got }).toEqual({ a: a.slice(0, 60), got: false });
    expect((user + system) / 1e6).toBeLessThan(5);
  }
});

test('brackets around a value do not count, however many', async () => {
  expect(await rewards.mathEqual(`${'('.repeat(900)}1${')'.repeat(900)}`, '1')).toBe(true);
});

test('many comparisons leave the event loop its turns', async () => {
  let turns = 0;
  const counter = setInterval(() => turns++, 0);
  for (let k = 0; k < 300; k++) await rewards.mathEqual(`\\sqrt{${8 * (k + 1) ** 2}}`, `${2 * (k + 1)}\\sqrt{2}`);
  clearInterval(counter);
  expect(turns).toBeGreaterThan(5);
});
