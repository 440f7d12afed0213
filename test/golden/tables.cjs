// Tables of rewards and answer parsing: JSON files of texts, and what the reference's functions gave for them.

const { isDeepStrictEqual } = require('node:util');

/** What a function gives, in the recorded form. */
function outcome(compute) {
  try {
    return { value: compute() };
  } catch (error) {
    return { raises: error.name };
  }
}

/** A batch of one completion, as the trainer makes it. */
const batchOf = (completion, answer, meta = null) => ({
  completions: [completion],
  examples: [{ prompt: '', answer, category: '', meta }],
  results: [{ nfe: 1 }],
  maxTokens: 1,
  verify: null,
  model: null,
});

/** Equal values; numbers that are not whole, within the tolerance. */
function same(check, where, got, wanted, tolerance) {
  const { value } = wanted ?? {};
  if (typeof value === 'number' && typeof got.value === 'number' && !Number.isInteger(value))
    check.close('value', where, got.value, value, tolerance);
  else check.exact(where, isDeepStrictEqual(got, wanted) ? 'as recorded' : JSON.stringify(got), 'as recorded');
}

const textFunctions = (reference) => ({
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
  'boxed_extraction (remove_boxed(last_boxed_only_string))': (text) => reference.removeBoxed(reference.lastBoxed(text)),
  'eval.Parser.to_float': reference.toNumber,
  'eval.Parser.extract_answer_gsm8k': reference.hashNumber,
  'eval.Parser.extract_answer_gsm8k_fallback': reference.gsm8kNumber,
  'eval.Parser.extract_answer_boxed': reference.boxedAnswer,
});

const normalisers = (reference) => ({
  strip_string: reference.normalise,
  fix_fracs: reference.fixFractions,
  fix_sqrt: reference.fixRoots,
  fix_a_slash_b: reference.fixSlash,
  remove_right_units: reference.removeUnits,
});

/** Every recorded function of every text: one that is not known fails. */
function functionsOf(check, functions, name, text, recorded, tolerance) {
  for (const [what, wanted] of Object.entries(recorded)) {
    const compute = Object.hasOwn(functions, what) ? functions[what] : null;
    if (compute === null) check.exact(`${name}: function ${what}`, 'not known', 'known');
    else
      same(
        check,
        `${name}: ${what} of ${JSON.stringify(text)}`,
        outcome(() => compute(text)),
        wanted,
        tolerance,
      );
  }
}

/** File to what checks it. */
const FILES = {
  text_functions({ rewards, check, tolerance }, { rows }) {
    for (const { text, expected } of rows)
      functionsOf(check, textFunctions(rewards.referenceText), 'text_functions', text, expected, tolerance);
  },
  string_normalisation({ rewards, check, tolerance }, { rows }) {
    for (const { text, ...expected } of rows)
      functionsOf(check, normalisers(rewards.referenceText), 'string_normalisation', text, expected, tolerance);
  },
  is_equiv_types({ rewards, check }, { rows }) {
    const { isEquivalent, isEquivalentInEvaluation } = rewards.referenceText;
    for (const { a, b, ...row } of rows) {
      const where = `${JSON.stringify(a)} and ${JSON.stringify(b)}`;
      check.exact(`evaluation: ${where}`, isEquivalentInEvaluation(a, b), row['eval.is_equiv'].value);
      check.exact(`training: ${where}`, isEquivalent(a, b), row['training.is_equiv'].value);
    }
  },
  async correctness_math({ rewards, check }, { rows }) {
    const correct = rewards.mathCorrect({ compat: 'reference' });
    const format = rewards.boxedFormat();
    const { removeBoxed, lastBoxed, xmlAnswer } = rewards.referenceText;
    for (const { completion, gold, ...row } of rows) {
      const where = JSON.stringify(completion);
      const [right] = await correct(batchOf(completion, gold));
      const [form] = await format(batchOf(completion, gold));
      check.exact(`reward of ${where}`, right, row.reward.value);
      check.exact(`format reward of ${where}`, form, row.format_reward.value);
      same(
        check,
        `answer of ${where}`,
        outcome(() => removeBoxed(lastBoxed(completion))),
        row.extracted,
        0,
      );
      const exact = xmlAnswer(completion) === gold ? 2 : 0;
      check.exact(`exact match of ${where}`, exact, row['exact_match_reward (correctness_reward_func)'].value);
    }
  },
  async math_pairs_handwritten({ rewards, check }, { rows }) {
    for (const { prediction, gold, equivalent } of rows) {
      const where = `${JSON.stringify(prediction)} and ${JSON.stringify(gold)}`;
      check.exact(where, await rewards.mathEqual(prediction, gold), equivalent);
      check.exact(`${where}, exchanged`, await rewards.mathEqual(gold, prediction), equivalent);
    }
  },
  eval_gsm({ rewards, check }, { rows }) {
    const { toNumber, gsm8kNumber, isRightGsm8k } = rewards.referenceText;
    for (const row of rows) {
      const where = JSON.stringify(row.generation);
      check.exact(`gold of ${where}`, toNumber(row.ground_truth_in), row.ground_truth);
      check.exact(`answer of ${where}`, gsm8kNumber(row.generation), row.extracted);
      check.exact(`verdict on ${where}`, isRightGsm8k(row.generation, row.ground_truth_in), row.is_correct);
    }
  },
  eval_math({ rewards, check }, { rows }) {
    const { mathEvaluationAnswer, isEquivalentInEvaluation } = rewards.referenceText;
    for (const { generation, ground_truth: gold, ...row } of rows) {
      const answer = mathEvaluationAnswer(generation);
      check.exact(`answer of ${JSON.stringify(generation)}`, answer, row.extracted);
      const right = answer !== null && isEquivalentInEvaluation(answer, gold);
      check.exact(`verdict on ${JSON.stringify(generation)}`, right, row.is_correct_string_comparison);
    }
  },
  gen_step_reward({ rewards, check }, { sampling_traj: trajectories, expected, tolerance: closeness }) {
    for (const [form, values] of Object.entries(expected))
      trajectories.forEach((steps, i) => {
        const unmaskedAt = steps.flatMap((tokens, step) => tokens.map(() => step + 1));
        check.close(form, `trajectory ${i}`, rewards.stepReward(unmaskedAt, form), values[i], closeness);
      });
  },
  async apps_reward({ rewards, check }, { rows }) {
    for (const options of [{}, { compat: 'reference' }]) {
      const reward = rewards.codeTests(options);
      for (const { completion, input_output: io, reward: wanted } of rows) {
        const { fn_name: functionName, inputs, outputs } = io;
        const tests = { kind: 'calls', functionName, inputs, outputs };
        const meta = { id: '0', head: '', functionName, tests };
        const [got] = await reward(batchOf(completion, null, meta));
        check.exact(`reward of ${JSON.stringify(completion)}`, got, wanted);
      }
    }
  },
};

async function tablesCase(dultra, _model, { description, tables }, check) {
  const { rewards } = dultra;
  try {
    for (const [name, table] of Object.entries(tables)) {
      const rows = table.rows ?? table.sampling_traj;
      check.exact(`${name}: has rows`, Array.isArray(rows) && rows.length > 0, true);
      await FILES[name]({ rewards, check, tolerance: description.tolerance.floats }, table);
    }
  } finally {
    await rewards.sharedSandbox().dispose();
  }
}

module.exports = { tablesCase, TABLES: Object.keys(FILES) };
