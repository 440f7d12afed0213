// Equality of mathematical answers, and rewards for it; what the reference's functions give is among the recorded runs.
import { type RewardBatch, rewards } from '../lib';

/** A batch of one completion, as the trainer makes it. */
function batchOf(completion: string, answer: string | null, meta: unknown = null): RewardBatch {
  return {
    completions: [completion],
    examples: [{ prompt: '', answer, category: '', meta }],
    results: [{ nfe: 1 } as RewardBatch['results'][number]],
    maxTokens: 1,
    verify: null,
    model: null as never,
  };
}

describe('equality', () => {
  test.each([
    ['\\begin{pmatrix} 1 & 2 \\\\ 3 & \\frac{1}{2} \\end{pmatrix}', '\\begin{bmatrix}1&2\\\\3&0.5\\end{bmatrix}', true],
    ['\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}', '\\begin{pmatrix} 1 & 3 \\\\ 2 & 4 \\end{pmatrix}', false],
    ['\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}', '\\begin{pmatrix} 1 & 2 \\end{pmatrix}', false],
    ['50\\%', '50', true],
    ['50\\%', '0.5', true],
    ['50\\%', '5', false],
    ['5 meters', '5', true],
    ['12cm', '12\\text{ cm}', true],
    ['12\\,\\mathrm{cm}^2', '12', true],
    ['5x', '5', false],
    ['x', 'y', false],
    ['x', '5', false],
    ['\\text{(B)}', 'A', false],
    ['x \\in [1, 2]', '[1,2]', true],
    ['x \\le 3', '3 \\ge x', true],
    ['x < 3', 'x \\le 3', false],
    ['1 < x < 3', '1<x<3', true],
    ['2x - y + 1 = 0', 'y = 2x + 1', true],
    ['2x - y - 1 = 0', 'y = 2x + 1', false],
    ['x = 2 \\text{ or } x = 3', 'x=3, x=2', true],
    ['2 and 3', '\\{2, 3\\}', true],
    ['2^{100}', '1267650600228229401496703205376', true],
    ['2^{100}', '1267650600228229401496703205377', false],
    ['100000000000000000001', '100000000000000000002', false],
    ['\\sin(\\pi/6)', '0.5', true],
    ['e^{i\\pi}', '-1', true],
    ['\\frac{x^2-1}{x-1}', 'x+1', true],
    ['(x+1)(x-1)', 'x^2-1', true],
    ['(x+1)^3', 'x^3+3x^2+3x+1', true],
    ['\\ln(e^2)', '2', true],
    ['1e3', '1000', true],
    ['$\\frac{3}{4}$.', '0.75', true],
    ['\\emptyset', '\\emptyset', true],
    ['The Cat', 'the cat', true],
    ['', '', false],
    ['0.333', '\\frac13', false],
    ['0.33333333', '\\frac{1}{3}', false],
  ])('%s and %s: %p', async (a, b, expected) => {
    expect(await rewards.mathEqual(a, b)).toBe(expected);
    expect(await rewards.mathEqual(b, a)).toBe(expected);
  });

  test.each([
    ['a \\boxed{1} b \\boxed{\\frac{1}{2}} c', '\\frac{1}{2}'],
    ['\\boxed{\\text{a}_{b_{c}}}', '\\text{a}_{b_{c}}'],
    ['\\boxed 7 done', '7'],
    ['<think>\\boxed{3}</think><answer>4</answer>', '4'],
    ['<answer>\\boxed{2}</answer>', '2'],
    ['<answer>no closing', 'no closing'],
    ['work #### 18', '18'],
    ['first 3, then 1,234.5', '1,234.5'],
    ['so it costs $42.', '$42'],
    ['cut off \\boxed{4', null],
    ['nothing', null],
    ['', null],
  ])('the answer in %j', (text, answer) => expect(rewards.extractAnswer(text)).toBe(answer));

  test('rewards', async () => {
    const correct = rewards.mathCorrect();
    expect(await correct(batchOf('so \\boxed{\\frac{2}{4}}', '0.5'))).toEqual([2]);
    expect(await correct(batchOf('so \\boxed{\\frac{2}{4}}', 'The solution is \\boxed{0.5}.'))).toEqual([2]);
    expect(await correct(batchOf('so \\boxed{0.6}', '0.5'))).toEqual([0]);
    expect(await correct(batchOf('nothing', '0.5'))).toEqual([0]);
    expect(await correct(batchOf('7', null))).toEqual([null]);
    expect(await correct(batchOf('7', 'text', { gold: '7' }))).toEqual([2]);
    expect(() => rewards.mathCorrect({ compat: 'x' as never })).toThrow(RangeError);
    await expect(rewards.mathEqual(1 as never, '1')).rejects.toThrow('answer: expected a string, got 1');
  });
});
