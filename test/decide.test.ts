// Decisions: probabilities of options, each question by itself.
import { copyFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import {
  calibrate,
  type DecisionTemplate,
  datasets,
  loadModel,
  type MaskedDiffusionModel,
  type Question,
} from '../lib';
import { choiceConfidence, scoreConfidence, softmax } from '../lib/decisions/probability';
import { eceOfTruths, fitTemperature, knownEce } from '../lib/evaluation/calibration-metrics';
import { Random } from '../lib/random';
import { modelFolder, variant, withTokenizer } from './helpers';
import { newModelFolder } from './trained-models';

let world: MaskedDiffusionModel;
let tiny: MaskedDiffusionModel;
beforeAll(async () => {
  world = await loadModel('world', { threads: 2 });
  tiny = await loadModel(await newModelFolder(), { threads: 1 });
});
afterAll(() => {
  world.dispose();
  tiny.dispose();
});

const REVIEW = 'The soup was awful and the waiter was dreadful.';
const CHOICE: Question = { type: 'choice', instructions: 'b', criteria: { a: null, H: null, '*': null } };
const CHAIN: Question = { type: 'choice', instructions: 'c', criteria: { 'a b': null, 'a c d': null, H: null } };
const BOOLEAN: Question = { type: 'boolean', instructions: 'd' };
const SCORE: Question = { type: 'score', instructions: 'e', criteria: ['x', 'y', 'z'] };
const LETTERS: DecisionTemplate = { message: '{state} {instructions}', answer: '{option}', scorer: 'chain' };
const template = {
  boolean: { ...LETTERS, labels: ['a', 'b'] },
  choice: LETTERS,
  score: { ...LETTERS, labels: ['a', 'b', 'c'] },
};

/** log p of every token of the vocabulary at a position of a row, by a pass of its own and in double precision. */
async function logProbs(model: MaskedDiffusionModel, row: readonly number[], at: number): Promise<number[]> {
  const { maskTokenId, embeddingSize } = model.config;
  const { logits } = await model.forward({ ids: row });
  const own = [...logits!.subarray(at * embeddingSize, (at + 1) * embeddingSize)];
  const most = Math.max(...own);
  const sum = own.reduce((total, x, id) => (id === maskTokenId ? total : total + Math.exp(x - most)), 0);
  return own.map((x) => x - most - Math.log(sum));
}

describe('probabilities', () => {
  test('a chain is the product of the conditionals of unmasking from left to right', async () => {
    const { maskTokenId, eosTokenId } = world.config;
    const options = ['8 + 6 = 14.', '8 + 6 = 15.', '8 + 5 = 14.'];
    const { tokenizer } = world;
    const ids = options.map((text) => tokenizer!.encode(text, { addSpecialTokens: false }));
    expect(new Set(ids.map(({ length }) => length)).size).toBe(1);
    const { answers } = await world.decide(
      'What is 8 + 6?',
      { sum: { type: 'choice', criteria: Object.fromEntries(options.map((text) => [text, null])) } },
      { template: { choice: { message: '{instructions} {state}', answer: '{option}', scorer: 'chain' } } },
    );
    const prompt = [...world.encodePrompt('What is 8 + 6?')];
    const sums: number[] = [];
    for (const own of ids) {
      let sum = 0;
      for (let i = 0; i < own.length; i++) {
        const row = [...prompt, ...own.map((id, k) => (k < i ? id : maskTokenId)), eosTokenId!];
        sum += (await logProbs(world, row, prompt.length + i))[own[i]];
      }
      sums.push(sum);
    }
    const expected = softmax(sums, 1);
    const { sum } = answers;
    if (sum.type !== 'choice') throw new Error(sum.type);
    options.forEach((text, i) => {
      expect(Math.abs(sum.probabilities[text] - expected[i])).toBeLessThan(1e-6);
    });
    const mass = sums.reduce((total, value) => total + Math.exp(value), 0);
    expect(Math.abs(sum.optionMass - mass)).toBeLessThan(1e-6);
    expect(sum).toMatchObject({ choice: options[0], scorer: 'chain', temperature: 1 });
  });

  test('options together: all masks in one row', async () => {
    const { answers, usage } = await tiny.decide('a', { q: CHAIN }, { template, scorer: 'joint' });
    const { maskTokenId, eosTokenId } = tiny.config;
    const encode = (text: string) => tiny.tokenizer!.encode(text, { addSpecialTokens: false });
    const prompt = [...tiny.encodePrompt('a c')];
    const means: number[] = [];
    for (const text of ['a b', 'a c d', 'H']) {
      const ids = encode(text);
      const row = [...prompt, ...ids.map(() => maskTokenId), eosTokenId!];
      let sum = 0;
      for (const [i, id] of ids.entries()) sum += (await logProbs(tiny, row, prompt.length + i))[id];
      means.push(sum / ids.length);
    }
    const length = (encode('a b').length + encode('a c d').length + encode('H').length) / 3;
    const expected = softmax(means, 1 / length);
    const { q } = answers;
    if (q.type !== 'choice') throw new Error(q.type);
    Object.values(q.probabilities).forEach((p, i) => {
      expect(p).toBeCloseTo(expected[i], 5);
    });
    // A row for each length.
    expect(usage.rows).toBe(3);
  });

  test('sums, choices, scores, confidences and what is said of them', async () => {
    const { answers, usage, calibrated, warnings } = await tiny.decide(
      'a',
      { q: CHOICE, b: BOOLEAN, s: SCORE },
      { template },
    );
    expect([calibrated, warnings, Object.keys(answers)]).toEqual([false, [], ['q', 'b', 's']]);
    const { q, b, s } = answers;
    if (q.type !== 'choice' || b.type !== 'boolean' || s.type !== 'score') throw new Error('types');
    const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
    expect(Math.abs(sum(Object.values(q.probabilities)) - 1)).toBeLessThan(1e-12);
    expect(q.probabilities[q.choice]).toBe(Math.max(...Object.values(q.probabilities)));
    expect(Math.abs(sum(s.probabilities) - 1)).toBeLessThan(1e-12);
    expect(s.score).toBeCloseTo(s.probabilities[1] + 2 * s.probabilities[2], 12);
    expect([s.legend, b.probability > 0 && b.probability < 1]).toEqual([['x', 'y', 'z'], true]);
    expect(q.confidence).toBe(choiceConfidence(Object.values(q.probabilities), 'jev'));
    const entropy = await tiny.decide('a', { q: CHOICE }, { template, confidence: 'entropy' });
    expect((entropy.answers.q as typeof q).confidence).toBe(
      choiceConfidence(Object.values(q.probabilities), 'entropy'),
    );
    expect(usage).toEqual({
      inputTokens: ['a b', 'a d', 'a e'].reduce((total, text) => total + tiny.encodePrompt(text).length, 0),
      rows: 3,
      fullForwards: 3,
    });
    expect(JSON.parse(JSON.stringify(answers))).toEqual(answers);
  });

  test('confidences as others compute them', () => {
    expect(choiceConfidence([0.0125, 0.9781, 0.0093], 'entropy')).toBeCloseTo(0.891, 3);
    expect(choiceConfidence([0.25, 0.25, 0.25, 0.25], 'jev')).toBe(0);
    expect(choiceConfidence([0, 1, 0], 'jev')).toBe(1);
    expect(choiceConfidence([0.4, 0.6], 'jev')).toBeCloseTo(0.2, 12);
    expect(scoreConfidence([0.5, 0.5], 'jev')).toBe(0);
    expect(scoreConfidence([0.1, 0.8, 0.1], 'jev')).toBeCloseTo(1 - 0.2 / (2 / 3), 12);
    expect(scoreConfidence([0.5, 0, 0.5], 'jev')).toBe(0);
  });

  test('a scorer that needs single tokens, and labels in a list', async () => {
    await expect(tiny.decide('a', { q: CHAIN }, { template, scorer: 'token' })).rejects.toThrow(
      /^questions\.q: expected options of one token each for the scorer "token"/,
    );
    // A template's own scorer gives way.
    const choice = { ...LETTERS, scorer: 'token' as const };
    const { answers } = await tiny.decide('a', { q: CHAIN, r: CHOICE }, { template: { choice } });
    expect([answers.q.scorer, answers.r.scorer]).toEqual(['chain', 'token']);
    const labels: DecisionTemplate = { message: '{state}{instructions}{options}', answer: '{option}', scorer: 'label' };
    const twice = await world.decide(
      REVIEW,
      { q: { type: 'choice', instructions: '?', criteria: { good: 'it is', bad: null } } },
      { template: { choice: labels }, orders: 2 },
    );
    expect(twice.answers.q).toMatchObject({ type: 'choice', scorer: 'label' });
    expect(twice.usage.rows).toBe(2);
    const once = await world.decide(
      REVIEW,
      { q: { type: 'choice', instructions: '?', criteria: { good: 'it is', bad: null } } },
      { template: { choice: labels } },
    );
    expect(once.usage.rows).toBe(1);
    expect(once.answers.q).not.toEqual(twice.answers.q);
  });

  test('with a prior: scores less those without the state', async () => {
    for (const question of [CHOICE, CHAIN] as (Question & { type: 'choice' })[]) {
      const asked = { q: question };
      const names = Object.keys(question.criteria);
      const lengths = names.map((name) => tiny.tokenizer!.encode(name, { addSpecialTokens: false }).length);
      const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;
      const chosen = async (prompt: string) => (await tiny.choose(prompt, names)).logProbs;
      const [withState, without] = [await chosen(`a ${question.instructions}`), await chosen(question.instructions!)];
      const expected = softmax(
        withState.map((score, i) => ((score - without[i]) * mean) / lengths[i]),
        1,
      );
      const { answers, usage } = await tiny.decide('a', asked, { template, prior: true });
      const plain = await tiny.decide('a', asked, { template });
      const { q } = answers;
      if (q.type !== 'choice') throw new Error(q.type);
      names.forEach((name, i) => {
        expect(q.probabilities[name]).toBeCloseTo(expected[i], 5);
      });
      expect(usage.rows).toBe(2 * plain.usage.rows);
      expect(usage.inputTokens).toBe(
        plain.usage.inputTokens + tiny.encodePrompt(question.instructions as string).length,
      );
      expect(q.optionMass).toBe(plain.answers.q.optionMass);
      // Nothing is left of a state that says nothing.
      const empty = await tiny.decide('', asked, { template, prior: true });
      if (empty.answers.q.type !== 'choice') throw new Error('type');
      for (const p of Object.values(empty.answers.q.probabilities)) expect(p).toBeCloseTo(1 / 3, 12);
    }
    await expect(tiny.decide('a', { q: CHOICE }, { template, prior: 1 as never })).rejects.toThrow(/^prior: expected/);
  });

  test('a model that predicts a token at the position before it, and one that attends by blocks', async () => {
    for (const golden of ['dream_gqa', 'sdar']) {
      const folder = variant(golden, {});
      copyFileSync(path.join(withTokenizer(), 'tokenizer.json'), path.join(folder, 'tokenizer.json'));
      await using model = await loadModel(folder, { threads: 1 });
      const { answers } = await model.decide('a', { q: CHOICE }, { template });
      const { logProbs: expected } = await model.choose('a b', ['a', 'H', '*']);
      const { q } = answers;
      if (q.type !== 'choice') throw new Error(q.type);
      softmax(expected, 1).forEach((p, i) => {
        expect(Object.values(q.probabilities)[i]).toBeCloseTo(p, 9);
      });
    }
  });
});

describe('independence', () => {
  const many = (count: number): Record<string, Question> =>
    Object.fromEntries(
      Array.from({ length: count }, (_, i): [string, Question] => [
        `n${i}`,
        { type: 'choice', instructions: `b${' c'.repeat(i % 7)}`, criteria: { a: null, 'b c': null, d: null } },
      ]),
    );
  const QUESTIONS = { q: CHOICE, b: BOOLEAN, s: SCORE, c: CHAIN };

  test('alone, with fifty others, in another order, and beside generation: the same bits', async () => {
    const alone = Object.fromEntries(
      await Promise.all(
        Object.entries(QUESTIONS).map(async ([name, question]) => [
          name,
          (await tiny.decide('a', { [name]: question }, { template })).answers[name],
        ]),
      ),
    );
    const together = await tiny.decide('a', { ...QUESTIONS, ...many(50) }, { template });
    const reversed = Object.fromEntries(Object.entries({ ...QUESTIONS, ...many(50) }).reverse());
    const backwards = await tiny.decide('a', reversed, { template });
    for (const name of Object.keys(QUESTIONS)) {
      expect(together.answers[name]).toEqual(alone[name]);
      expect(backwards.answers[name]).toEqual(alone[name]);
    }
    // Rows of other kinds in the same passes.
    const load = ['confidence:0.2', 'fixed:4', 'planner'].map((sampler, i) =>
      tiny.generateBatch(['a', 'b c', 'd'], { sampler, maxTokens: 8, temperature: i * 0.3, seed: i }),
    );
    const custom = tiny.generate('a', { maxTokens: 4, sampler: ({ positions }) => [positions[0]] }).catch(() => null);
    const loaded = await Promise.all([1, 2, 3].map(() => tiny.decide('a', QUESTIONS, { template })));
    for (const { answers } of loaded) expect(answers).toEqual(alone);
    const [first] = await Promise.all(load);
    await custom;
    expect(await tiny.generateBatch(['a', 'b c', 'd'], { sampler: 'confidence:0.2', maxTokens: 8, seed: 0 })).toEqual(
      first.map((result) => ({ ...result, seconds: expect.any(Number), tokensPerSecond: expect.any(Number) })),
    );
  });

  test('the order of options changes nothing where the template does not list them', async () => {
    const criteria = { 'a b': null, 'a c d': null, H: null };
    const back = Object.fromEntries(Object.entries(criteria).reverse());
    const [front, other] = await Promise.all(
      [criteria, back].map((own) => tiny.decide('a', { q: { ...CHAIN, criteria: own } as Question }, { template })),
    );
    const of = ({ answers }: typeof front) => (answers.q as { probabilities: Record<string, number> }).probabilities;
    for (const [name, p] of Object.entries(of(front))) expect(of(other)[name]).toBeCloseTo(p, 12);
  });
});

describe('refused', () => {
  const refused = (state: unknown, questions: unknown, options: object, message: RegExp) =>
    expect(tiny.decide(state as string, questions as Record<string, Question>, options)).rejects.toThrow(message);

  test('questions and states that do not fit', async () => {
    await refused('a', {}, { template }, /^questions: expected 1 to 256 questions, got 0/);
    await refused('a', [], { template }, /^questions: expected an object/);
    await refused('a', { q: { type: 'box' } }, { template }, /^questions\.q\.type: expected "boolean" or/);
    await refused('a', { q: { ...CHOICE, criteria: { a: null } } }, {}, /^questions\.q\.criteria: expected 2 to 255/);
    await refused('a', { q: { ...SCORE, criteria: 'x' } }, {}, /^questions\.q\.criteria: expected an array of levels/);
    await refused('a', { q: { ...SCORE, criteria: ['x'] } }, {}, /expected 2 to 10 levels, got 1/);
    await refused('a', { q: { ...SCORE, criteria: [...'abcd'] } }, { template }, /at most 3 levels/);
    await refused('a', { q: { ...BOOLEAN, instruction: 'a' } }, {}, /unknown key "instruction"/);
    await refused(5, { q: BOOLEAN }, { template }, /^state: expected a text/);
    await refused('a b '.repeat(40), { q: BOOLEAN }, { template }, /^state: .* more than the model's maximum of 32/);
    await refused('', { q: { type: 'boolean' } }, { template }, /^questions\.q: expected a state or instructions/);
    let deep: unknown = 1;
    for (let i = 0; i < 40; i++) deep = [deep];
    await refused(deep, { q: BOOLEAN }, { template }, /^state: expected a value at most 32 deep/);
    const signal = AbortSignal.abort(new Error('enough'));
    await refused('a', { q: BOOLEAN }, { template, signal }, /enough/);
  });

  test('options that do not fit', async () => {
    const q = { q: BOOLEAN };
    await refused('a', q, { scorers: 'x' }, /unknown key "scorers"/);
    await refused('a', q, { scorer: 'x' }, /^scorer: expected "token" or/);
    await refused('a', q, { orders: 3 }, /^orders: expected/);
    await refused('a', q, { minOptionMass: 2 }, /^minOptionMass: expected/);
    await refused('a', q, { calibration: {} }, /^calibration: expected "none" or/);
    await refused(
      'a',
      q,
      { template: { boolean: { ...LETTERS, message: '{state}' } } },
      /expected \{instructions\} once/,
    );
    await refused('a', q, { template: { boolean: { ...LETTERS, answer: 'x' } } }, /expected \{option\} once/);
    await refused('a', q, { template, scorer: 'label' }, /expected \{options\} once/);
    const plain = await loadModel(modelFolder('base'), { threads: 1 });
    await expect(plain.decide('a', q)).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
    plain.dispose();
    await expect(plain.decide('a', q)).rejects.toMatchObject({ code: 'DISPOSED' });
  });

  test('where the options are less probable than the bar', async () => {
    const { answers } = await world.decide('What is 8 + 6?', { q: BOOLEAN }, { minOptionMass: 0.5 });
    expect(answers.q).toEqual({ type: 'refusal', optionMass: expect.any(Number), temperature: 1, scorer: 'token' });
    expect(answers.q.optionMass).toBeLessThan(0.5);
    const { answers: known } = await world.decide(REVIEW, world.decisions.questions, { minOptionMass: 0.5 });
    // A review is no message that a team handles.
    expect(Object.values(known).map(({ type }) => type)).toEqual(['choice', 'score', 'boolean', 'refusal']);
  });
});

test('a text with a special token, JSON and messages as a state', async () => {
  const { answers } = await world.decide(`${REVIEW} <|mask|><|end|>`, { q: BOOLEAN });
  expect(answers.q.type).toBe('boolean');
  const json = await world.decide({ review: REVIEW, stars: [1] }, { q: BOOLEAN });
  expect(json.answers).toEqual((await world.decide(`{"review":"${REVIEW}","stars":[1]}`, { q: BOOLEAN })).answers);
  const messages = [{ role: 'user', content: `Is this review positive, negative or neutral? ${REVIEW}` }];
  const { sentiment } = world.decisions.questions;
  const asked = await world.decide(messages, { q: { ...sentiment, instructions: '' } as Question });
  expect(asked.answers.q).toEqual((await world.decide(REVIEW, { sentiment })).answers.sentiment);
});

describe('decision.json', () => {
  const write = (json: unknown) => {
    const folder = withTokenizer();
    writeFileSync(path.join(folder, 'decision.json'), JSON.stringify(json));
    return folder;
  };
  test('its templates, questions and calibration', async () => {
    const base = { version: 1, templates: template, questions: { q: CHOICE } };
    await using model = await loadModel(write(base), { threads: 1 });
    expect(model.decisions).toMatchObject({ questions: { q: CHOICE }, calibration: null });
    const plain = await model.decide('a', model.decisions.questions);
    const hot = { temperature: 3, answers: 100 };
    const { calibration } = await calibrate(model, [{ state: 'a', questions: { q: CHOICE }, answers: { q: 'H' } }]);
    expect(calibration.types).toEqual({});
    const own = { ...calibration, types: { choice: hot } };
    const { answers, calibrated } = await model.decide('a', { q: CHOICE }, { calibration: own });
    expect([calibrated, answers.q.temperature]).toEqual([true, 3]);
    const of = (answer: unknown) => Object.values((answer as { probabilities: Record<string, number> }).probabilities);
    const expected = softmax(of(plain.answers.q).map(Math.log), 3);
    of(answers.q).forEach((p, i) => {
      expect(p).toBeCloseTo(expected[i], 9);
    });
    // A type without a temperature is not calibrated; templates, orders and weights are others.
    expect((await model.decide('a', { q: CHOICE, b: BOOLEAN }, { calibration: own })).calibrated).toBe(false);
    const changed = await model.decide('a', { q: CHOICE }, { calibration: own, scorer: 'joint' });
    expect([changed.calibrated, changed.answers.q.temperature, changed.warnings[0]]).toEqual([
      false,
      1,
      expect.stringContaining('of other templates'),
    ]);
    const other = { ...own, weights: '0'.repeat(64) };
    const { warnings } = await model.decide('a', { q: CHOICE }, { calibration: other });
    expect(warnings).toEqual([expect.stringContaining('of other weights')]);
    await using read = await loadModel(write({ ...base, calibration: own }), { threads: 1 });
    expect((await read.decide('a', { q: CHOICE })).answers).toEqual(answers);
    expect((await read.decide('a', { q: CHOICE }, { calibration: 'none' })).answers).toEqual(plain.answers);
    // Weights that a trainer has changed.
    using trainer = await read.createTrainer();
    await trainer.score({
      ids: Int32Array.of(2, 3, 4),
      offsets: Int32Array.of(0, 3),
      positions: Int32Array.of(1),
      tokens: Int32Array.of(5),
      keep: true,
    });
    await trainer.backward({ dLogProbs: Float32Array.of(-1) });
    await trainer.step({ baseLr: 0.1, plannerLr: 0 });
    expect((await read.decide('a', { q: CHOICE })).calibrated).toBe(false);
  });
  test.each([
    [{ version: 2 }, /decision\.json: version/],
    [{ version: 1, extra: 1 }, /decision\.json/],
    [
      { version: 1, templates: { choice: { message: 'x' } } },
      /decision\.json: templates\.choice\.answer: expected a string/,
    ],
    [{ version: 1, questions: { q: { type: 'x' } } }, /decision\.json: questions\.q\.type/],
    [{ version: 1, calibration: { weights: 'x' } }, /decision\.json: calibration\.weights/],
  ])('refuses %j', async (json, message) => {
    await expect(loadModel(write(json), { threads: 1 })).rejects.toMatchObject({
      code: 'BAD_CHECKPOINT',
      message: expect.stringMatching(message),
    });
  });
});

describe('calibration', () => {
  test('a temperature that is known is found, and the known probabilities with it', () => {
    const random = new Random(3n);
    const truths = Array.from({ length: 4000 }, () => [random.normal() * 2, random.normal() * 2, 0]);
    const answers = truths.map((scores) => {
      const p = softmax(scores, 1);
      const u = random.uniform();
      return { scores: scores.map((x) => x * 3), label: u < p[0] ? 0 : u < p[0] + p[1] ? 1 : 2 };
    });
    expect(Math.abs(fitTemperature(answers) - 3)).toBeLessThan(0.2);
  });

  test('errors against known probabilities have no part of chance, and what chance makes is known', () => {
    expect(knownEce([0.2, 0.7, 0.5], [0.2, 0.7, 0.5])).toBeCloseTo(0, 12);
    // Both are taken for true: right in 0.7 and 0.5, at a confidence of 0.9.
    expect(knownEce([0.9, 0.9], [0.7, 0.5])).toBeCloseTo(0.3, 12);
    // The mean distance of the share of heads from a half.
    const coins = eceOfTruths(new Array(400).fill(0.5), 3n);
    expect(Math.abs(coins - Math.sqrt(2 / Math.PI) * 0.025)).toBeLessThan(0.005);
  });

  test('the embedded model in its trained forms, and in a foreign one', async () => {
    const examples = datasets.worldDecisions('validation', 600, 5);
    const { types } = await calibrate(world, examples);
    const { choice, score, boolean } = types;
    for (const { before, optionMass, majority } of [choice!, score!]) {
      expect(before.accuracy.value).toBeGreaterThanOrEqual(0.99);
      expect(before.ece.value).toBeLessThanOrEqual(0.02);
      expect(optionMass).toBeGreaterThanOrEqual(0.95);
      expect(majority).toBeLessThan(0.5);
    }
    // Its answers are drawn: no model is right more often than the draws are likely.
    expect(boolean!.optionMass).toBeGreaterThanOrEqual(0.95);
    expect(boolean!.distance!.before).toBeLessThan(0.08);
    expect(boolean!.knownEce!.before).toBeLessThan(0.06);
    expect(boolean!.knownEce!.perfect).toBeLessThan(0.04);
    expect([choice!.knownEce, score!.knownEce]).toEqual([null, null]);
    expect(types.choice!.temperature).toBe(1);
    // Options under letters, which it was never asked for.
    const foreign: DecisionTemplate = {
      message: '{instructions} {state} Options:\n{options}',
      answer: '{option}',
      scorer: 'label',
    };
    const found = await calibrate(world, examples, { template: { choice: foreign, score: foreign } });
    for (const { before, after, optionMass, orderBias } of [found.types.choice!, found.types.score!]) {
      expect(optionMass).toBeLessThan(0.01);
      expect(before.ece.value).toBeGreaterThan(0.3);
      expect(after!.ece.value).toBeLessThan(0.06);
      expect(after!.accuracy.value).toBe(before.accuracy.value);
      expect(orderBias!.changed).toBeGreaterThan(0);
    }
    // The same again, from the same seed.
    const again = await calibrate(world, examples.slice(0, 120), { seed: 7 });
    expect(await calibrate(world, examples.slice(0, 120), { seed: 7 })).toEqual(again);
  });

  test('examples that do not fit', async () => {
    const refused = (example: object, message: RegExp) =>
      expect(calibrate(tiny, [example as never], { template })).rejects.toThrow(message);
    await refused(
      { state: 'a', questions: { q: CHOICE }, answers: { q: 'x' } },
      /examples\[0\]\.answers\.q: expected one/,
    );
    await refused(
      { state: 'a', questions: { q: BOOLEAN }, answers: { q: 'true' } },
      /expected true or false, got "true"/,
    );
    await refused({ state: 'a', questions: { q: SCORE }, answers: { q: 3 } }, /expected a level from 0, got 3/);
    await refused({ state: 'a', questions: { q: SCORE }, answers: { r: 3 } }, /answers: unknown key "r"/);
    await refused({ state: 'a', questions: { q: SCORE }, answers: {} }, /expected answers, got none/);
    await expect(calibrate(tiny, [])).rejects.toThrow(/examples: expected at least one/);
  });
});
