// Mathematical answers: the reference's functions value for value, and our equality on hand-written pairs.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { type RewardBatch, rewards } from '../lib';

const { referenceText: reference } = rewards;
const table = <T>(name: string): { rows: T[] } & Record<string, unknown> =>
  JSON.parse(readFileSync(path.join(__dirname, 'fixtures', 'golden', 'rewards', `${name}.json`), 'utf8'));

interface Recorded {
  value?: unknown;
  raises?: string;
}

/** What a function gives, in the fixtures' form. */
function outcome(compute: () => unknown): Recorded {
  try {
    return { value: compute() };
  } catch (error) {
    return { raises: (error as Error).name };
  }
}

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

describe('the reference', () => {
  const functions: Record<string, (text: string) => unknown> = {
    extract_xml_answer: reference.xmlAnswer,
    extract_hash_answer: reference.hashAnswer,
    int_reward_func: reference.integerReward,
    strict_format_reward_func: reference.strictFormatReward,
    soft_format_reward_func: reference.thinkTagsReward,
    xmlcount_reward_func: reference.tagCountReward,
    codefence_reward_func: reference.codeFenceReward,
    reward_len: (text) => 0 - Array.from(text).length,
    boxed_and_answer_tags_format_reward: reference.boxedFormatReward,
    _strip_code_fence: reference.stripCodeFence,
    _extract_apps_solution: reference.programOf,
    last_boxed_only_string: reference.lastBoxed,
    'boxed_extraction (remove_boxed(last_boxed_only_string))': (text) =>
      reference.removeBoxed(reference.lastBoxed(text)),
    'eval.Parser.to_float': reference.toNumber,
    'eval.Parser.extract_answer_gsm8k': reference.hashNumber,
    'eval.Parser.extract_answer_gsm8k_fallback': reference.gsm8kNumber,
    'eval.Parser.extract_answer_boxed': reference.boxedAnswer,
  };

  const { rows } = table<{ text: string; expected: Record<string, Recorded> }>('text_functions');
  test.each(Object.keys(functions))('%s', (name) => {
    expect(rows).toHaveLength(60);
    for (const { text, expected } of rows) {
      const got = outcome(() => functions[name](text));
      const want = expected[name];
      if (typeof want.value === 'number' && !Number.isInteger(want.value)) expect(got.value).toBeCloseTo(want.value, 9);
      else expect({ text, got }).toEqual({ text, got: want });
    }
  });
  test('all recorded functions are compared', () =>
    expect(Object.keys(rows[0].expected).sort()).toEqual(Object.keys(functions).sort()));

  test('normalising', () => {
    const steps = {
      strip_string: reference.normalise,
      fix_fracs: reference.fixFractions,
      fix_sqrt: reference.fixRoots,
      fix_a_slash_b: reference.fixSlash,
      remove_right_units: reference.removeUnits,
    };
    const { rows } = table<{ text: string } & Record<string, Recorded>>('string_normalisation');
    expect(rows.length).toBeGreaterThan(100);
    for (const { text, ...expected } of rows)
      for (const [name, step] of Object.entries(steps))
        expect({ text, name, got: outcome(() => step(text)) }).toEqual({
          text,
          name,
          got: expected[name as keyof typeof expected],
        });
  });

  test('comparing values of any type', () => {
    for (const row of table<{ a: unknown; b: unknown } & Record<string, Recorded>>('is_equiv_types').rows) {
      expect({ row, got: reference.isEquivalentInEvaluation(row.a, row.b) }).toEqual({
        row,
        got: row['eval.is_equiv'].value,
      });
      expect({ row, got: reference.isEquivalent(row.a, row.b) }).toEqual({ row, got: row['training.is_equiv'].value });
    }
  });

  test('training rewards', async () => {
    interface Row {
      completion: string;
      gold: string;
      reward: Recorded;
      extracted: Recorded;
      format_reward: Recorded;
      'exact_match_reward (correctness_reward_func)': Recorded;
    }
    const { rows } = table<Row>('correctness_math');
    expect(rows).toHaveLength(62);
    const correct = rewards.mathCorrect({ compat: 'reference' });
    const format = rewards.boxedFormat();
    for (const row of rows) {
      const { completion, gold } = row;
      expect({ row, got: await correct(batchOf(completion, gold)) }).toEqual({ row, got: [row.reward.value] });
      expect({ row, got: await format(batchOf(completion, gold)) }).toEqual({ row, got: [row.format_reward.value] });
      expect(outcome(() => reference.removeBoxed(reference.lastBoxed(completion)))).toEqual(row.extracted);
      const exact = reference.xmlAnswer(completion) === gold ? 2 : 0;
      expect(exact).toBe(row['exact_match_reward (correctness_reward_func)'].value);
    }
  });

  test('evaluation of GSM8K and MATH500', () => {
    const gsm = table<{
      generation: string;
      ground_truth_in: unknown;
      ground_truth: number;
      extracted: number | null;
      is_correct: boolean;
    }>('eval_gsm');
    for (const row of gsm.rows) {
      expect(reference.toNumber(row.ground_truth_in)).toBe(row.ground_truth);
      expect(reference.gsm8kNumber(row.generation)).toBe(row.extracted);
      expect(reference.isRightGsm8k(row.generation, row.ground_truth_in)).toBe(row.is_correct);
    }
    const math = table<{
      generation: string;
      ground_truth: string;
      extracted: string | null;
      is_correct_string_comparison: boolean;
    }>('eval_math');
    for (const row of math.rows) {
      const answer = reference.mathEvaluationAnswer(row.generation);
      expect({ row, answer }).toEqual({ row, answer: row.extracted });
      const right = answer !== null && reference.isEquivalentInEvaluation(answer, row.ground_truth);
      expect({ row, right }).toEqual({ row, right: row.is_correct_string_comparison });
    }
  });

  test('step rewards', () => {
    const { sampling_traj: trajectories, expected } = table('gen_step_reward') as unknown as {
      sampling_traj: number[][][];
      expected: Record<'sum' | 'sqrt' | 'sqrt_sum', number[]>;
    };
    for (const form of ['sum', 'sqrt', 'sqrt_sum'] as const)
      trajectories.forEach((steps, i) => {
        const unmaskedAt = steps.flatMap((tokens, step) => tokens.map(() => step + 1));
        expect(rewards.stepReward(unmaskedAt, form)).toBeCloseTo(expected[form][i], 12);
      });
  });
});

describe('equality', () => {
  interface Pair {
    prediction: string;
    gold: string;
    equivalent: boolean;
    must: boolean;
  }
  const { rows } = table<Pair>('math_pairs_handwritten');

  test('all recorded pairs, in both directions', async () => {
    expect(rows.filter(({ must }) => must)).toHaveLength(77);
    for (const pair of rows) {
      const { prediction, gold, equivalent } = pair;
      expect({ pair, got: await rewards.mathEqual(prediction, gold) }).toEqual({ pair, got: equivalent });
      expect({ pair, got: await rewards.mathEqual(gold, prediction) }).toEqual({ pair, got: equivalent });
    }
  });

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
