/**
 * Rewards: functions of a batch of completions. One number per row; null leaves that function out of the row's reward.
 * @module
 */

import type { CodeMeta, MathMeta } from '../data';
import { gradeCompletion } from '../data';
import { DUltraError, optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { GenerateResult } from '../generation/types';
import { codeRewardOf } from '../grading/code';
import { extractAnswer } from '../grading/extract-answer';
import { mathEqual } from '../grading/math-answer';
import type { PythonRunner } from '../grading/python-sandbox';
import * as referenceText from '../grading/reference-text';
import type { CausalModel } from '../model/causal-model';
import type { ModelTrainer } from '../model/trainer';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../options';
import { concatenate, packed, packRows } from '../packing';
import { normaliseSpace, show } from '../text';
import type { ChatMessage } from '../types';
import { fitsTeacher } from './fits-teacher';

/** The example of a row, as rewards see it. */
export interface RewardExample {
  prompt: string | readonly ChatMessage[];
  /** null where the data set has no answers. */
  answer: string | null;
  category: string;
  meta: unknown;
}

/** Completions to grade. Arrays are parallel, one entry per row. */
export interface RewardBatch {
  /** Texts, up to the first end of sequence. */
  completions: readonly string[];
  examples: readonly RewardExample[];
  /** Ids, NFE, log-likelihood … of each completion. */
  results: readonly GenerateResult[];
  /** Length of each completion in tokens. */
  maxTokens: number;
  /** The data set's own verifier, or null. */
  verify: ((example: RewardExample, completion: string) => boolean | Promise<boolean>) | null;
  /** The model that generated them. */
  model: MaskedDiffusionModel;
}

/**
 * A reward, sync or async: one number per row; null leaves this function out of the row's reward. NaN and infinities
 * end the training with an error that names the reward and the row.
 */
export type RewardFunction = (batch: RewardBatch) => ArrayLike<number | null> | Promise<ArrayLike<number | null>>;

/** Marks rewards for speed, which the reference switches off when the planner is frozen. */
const stepRewards = new WeakSet<RewardFunction>();

/** Whether a reward came from {@link stepPenalty}. */
export const isStepReward = (reward: RewardFunction): boolean => stepRewards.has(reward);

const judged = new WeakMap<RewardBatch, Promise<(boolean | null)[]>>();

/**
 * Whether each row's completion is right: by the data set's verifier, else by comparison with the answer, white space
 * aside; null without both. A batch is graded once, however many rewards use the result.
 */
export function correctRows(batch: RewardBatch): Promise<(boolean | null)[]> {
  let rows = judged.get(batch);
  if (!rows) {
    rows = Promise.all(
      batch.completions.map((completion, row) => {
        const example = batch.examples[row];
        if (batch.verify) return batch.verify(example, completion);
        return example.answer === null ? null : normaliseSpace(example.answer) === normaliseSpace(completion);
      }),
    );
    judged.set(batch, rows);
  }
  return rows;
}

/**
 * 1 for a right answer, 0 for a wrong one: by the data set's verifier, else by comparison with the answer, white space
 * aside.
 */
export const exactAnswer: RewardFunction = async (batch) =>
  (await correctRows(batch)).map((correct) => (correct === null ? null : Number(correct)));

/**
 * 1 + weight · (1 − NFE / maxTokens) for a right answer, 0 for a wrong one: speed counts only where the answer is
 * right, so that no policy gains by being fast and wrong.
 */
export function fastAnswer(options: { weight?: number | undefined } = {}): RewardFunction {
  checkKeys('options', options, ['weight']);
  const { weight = 0.5 } = options;
  checkNumber('weight', weight, { min: 0, max: 1e6 });
  return async (batch) =>
    (await correctRows(batch)).map((correct, row) => {
      if (correct === null) return null;
      return correct ? 1 + weight * (1 - batch.results[row].nfe / batch.maxTokens) : 0;
    });
}

/**
 * A penalty for every step that a row took, in the three forms of the reference (with n_s the tokens that step s
 * decided): "sum" (default) −NFE / 50; "sqrt" −Σ √n_s; "sqrt_sum" −Σ √n_s / Σ n_s.
 */
export function stepPenalty(options: { form?: 'sum' | 'sqrt' | 'sqrt_sum' | undefined } = {}): RewardFunction {
  checkKeys('options', options, ['form']);
  const { form = 'sum' } = options;
  checkChoice('form', form, ['sum', 'sqrt', 'sqrt_sum'] as const);
  const reward: RewardFunction = ({ results }) => results.map(({ unmaskedAt }) => stepReward(unmaskedAt, form));
  stepRewards.add(reward);
  return reward;
}

/** {@link stepPenalty} of one row. @param unmaskedAt step, from 1, that decided each position; 0: none */
export function stepReward(unmaskedAt: ArrayLike<number>, form: 'sum' | 'sqrt' | 'sqrt_sum'): number {
  const perStep = new Map<number, number>();
  for (const step of Array.from(unmaskedAt)) if (step > 0) perStep.set(step, (perStep.get(step) ?? 0) + 1);
  if (form === 'sum') return perStep.size === 0 ? 0 : -perStep.size / 50;
  let roots = 0;
  let tokens = 0;
  for (const count of perStep.values()) {
    roots += Math.sqrt(count);
    tokens += count;
  }
  if (tokens === 0) return 0;
  return form === 'sqrt' ? -roots : -roots / tokens;
}

/** `reward` (default 1) where the completion matches the pattern, else 0. */
export function format(pattern: RegExp, options: { reward?: number | undefined } = {}): RewardFunction {
  if (!(pattern instanceof RegExp)) throw optionError(TypeError, 'pattern', `expected a RegExp, got ${show(pattern)}`);
  checkKeys('options', options, ['reward']);
  const { reward = 1 } = options;
  checkNumber('reward', reward, {});
  // A pattern with the flag "g" or "y" would remember where it stopped.
  const stateless = new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, ''));
  return ({ completions }) => completions.map((completion) => (stateless.test(completion) ? reward : 0));
}

export {
  type CodeResult,
  type CodeTests,
  codeRewardOf,
  type GradeOptions,
  gradeProgram,
  passAtK,
  pythonEqual,
} from '../grading/code';
export { extractAnswer } from '../grading/extract-answer';
export { mathEqual } from '../grading/math-answer';
export { NativePython, type NativePythonOptions } from '../grading/native-python';
export {
  type PythonOutcome,
  type PythonProgram,
  type PythonRunner,
  PythonSandbox,
  type PythonSandboxOptions,
  type SandboxWalls,
  sharedSandbox,
} from '../grading/python-sandbox';
export * as referenceText from '../grading/reference-text';

/** The right answer: the data set's, or extracted from the text of a solution. */
function goldOf({ answer, meta }: RewardExample): string | null {
  const gold = (meta as Partial<MathMeta> | null | undefined)?.gold;
  if (typeof gold === 'string') return gold;
  if (answer === null) return null;
  return /\\boxed|####|<answer>/.test(answer) ? extractAnswer(answer) : answer;
}

/**
 * 2 if the completion's answer is mathematically equal to the right one ({@link mathEqual}), else 0.
 * `compat: "reference"`: 2 if both are the same string once normalised, as the reference does.
 */
export function mathCorrect(options: { compat?: 'reference' | undefined } = {}): RewardFunction {
  checkKeys('options', options, ['compat']);
  const { compat } = options;
  if (compat !== undefined) checkChoice('compat', compat, ['reference'] as const);
  return ({ completions, examples }) =>
    Promise.all(
      completions.map(async (completion, row) => {
        const example = examples[row];
        if (compat === 'reference')
          return example.answer === null ? null : referenceText.mathReward(completion, example.answer);
        const gold = goldOf(example);
        if (gold === null) return null;
        const answer = extractAnswer(completion);
        return answer !== null && (await mathEqual(answer, gold)) ? 2 : 0;
      }),
    );
}

/**
 * 1 where the completion's program passes the problem's tests; −0.05 where it raises, or exceeds time or memory; else
 * 0: the reference's values. For examples of the code data sets; null for others. `compat: "reference"`: the program is
 * looked for, and its results are compared, as in the reference's reward.
 * @throws (while rewarding) DUltraError PACKAGE_NOT_FOUND, SANDBOX
 */
export function codeTests(
  options: { sandbox?: PythonRunner | undefined; compat?: 'reference' | undefined } = {},
): RewardFunction {
  checkKeys('options', options, ['sandbox', 'compat']);
  const { sandbox, compat } = options;
  if (compat !== undefined) checkChoice('compat', compat, ['reference'] as const);
  if (sandbox !== undefined && typeof sandbox?.run !== 'function')
    throw optionError(TypeError, 'sandbox', `expected a PythonSandbox or a NativePython, got ${show(sandbox)}`);
  return ({ completions, examples }) =>
    Promise.all(
      completions.map(async (completion, row) => {
        const meta = examples[row].meta as Partial<CodeMeta> | null | undefined;
        if (!meta?.tests) return null;
        const result = await gradeCompletion(meta as CodeMeta, completion, { sandbox, compat });
        return result === null ? 0 : codeRewardOf(result);
      }),
    );
}

/** Options of {@link causalLogProb}. */
export interface CausalTeacherOptions {
  /** A loaded autoregressive model. */
  model: CausalModel;
  /** Tokens per forward pass of the teacher. Default 8192. */
  tokenBudget?: number | undefined;
}

/**
 * Mean log-probability per token that an autoregressive teacher gives the completion after the prompt: on-policy
 * distillation. Prompt and completion are tokenised by themselves, in the teacher's tokenizer and chat template, and
 * never across their boundary; null for an empty completion, and for a row that is longer than the teacher's longest,
 * of which a process warning tells.
 */
export function causalLogProb(options: CausalTeacherOptions): RewardFunction {
  checkKeys('options', options, ['model', 'tokenBudget']);
  const { model: teacher, tokenBudget = 8192 } = options;
  if (typeof teacher?.logProbs !== 'function')
    throw optionError(TypeError, 'model', 'expected a model loaded by loadCausalModel');
  checkInteger('tokenBudget', tokenBudget, { min: 1, max: 1 << 30 });
  return async ({ completions, examples }) => {
    const { tokenizer } = teacher;
    if (!tokenizer)
      throw new DUltraError('NO_TOKENIZER', `${teacher.source} has no tokenizer.json, which a teacher needs`);
    const rows = completions.map((completion, row) => ({
      promptIds: teacher.encodePrompt(examples[row].prompt),
      ids: tokenizer.encode(completion, { addSpecialTokens: false }),
    }));
    const fits = rows.map(({ promptIds, ids }) => fitsTeacher(teacher, promptIds.length + ids.length));
    const scored = await teacher.logProbs(
      rows.filter((_, row) => fits[row]),
      { tokenBudget },
    );
    const means = scored.map((logProbs) =>
      logProbs.length === 0 ? null : logProbs.reduce((sum, value) => sum + value, 0) / logProbs.length,
    );
    return fits.map((fit) => (fit ? means.shift()! : null));
  };
}

const ofText =
  (value: (completion: string) => number) =>
  (): RewardFunction =>
  ({ completions }) =>
    completions.map(value);

/**
 * 0.25 to 1: a box and an answer tag count half a point each, no box a quarter. The reference's format reward for
 * mathematics.
 */
export const boxedFormat = ofText(referenceText.boxedFormatReward);

/** 0.5 where the completion has both think tags. The reference's reward in thinking mode. */
export const thinkTags = ofText(referenceText.thinkTagsReward);

/** 0 to 1 for one fenced Python block with nothing behind it. The reference's format reward for code. */
export const codeFence = ofText(referenceText.codeFenceReward);

/** Options of {@link teacherLogProb}. */
export interface TeacherOptions {
  /**
   * A loaded model: a larger one, or the frozen base that training began with. Not the model that trains.
   */
  model: MaskedDiffusionModel;
  /**
   * Forward passes per completion: its positions are masked in so many interleaved groups, each predicted from all the
   * others. Default 4.
   */
  passes?: number | undefined;
  /** Tokens per forward pass of the teacher. Default 8192. */
  tokenBudget?: number | undefined;
}

/**
 * Mean log-probability per token that a teacher gives the completion, each token predicted from the rest of the row (a
 * masked model's pseudo-likelihood). Where the teacher's tokenizer is another one, prompt and completion are its own
 * tokens throughout. null for a row that is longer than the teacher's longest, of which a process warning tells.
 */
export function teacherLogProb(options: TeacherOptions): RewardFunction {
  checkKeys('options', options, ['model', 'passes', 'tokenBudget']);
  const { model: teacher, passes = 4, tokenBudget = 8192 } = options;
  if (typeof teacher?.createTrainer !== 'function') throw optionError(TypeError, 'model', 'expected a loaded model');
  checkInteger('passes', passes, { min: 1, max: 1 << 20 });
  checkInteger('tokenBudget', tokenBudget, { min: 1, max: 1 << 30 });
  let scorer: Promise<ModelTrainer> | null = null;
  return async (batch) => {
    scorer ??= teacher.createTrainer({ freezeBase: true, freezePlanner: true });
    const judge = await scorer;
    const sameIds = batch.model.source === teacher.source || (!batch.model.tokenizer && !teacher.tokenizer);
    const sums = new Float64Array(batch.results.length);
    const counts = new Float64Array(batch.results.length);
    const rows: { owner: number; ids: Int32Array; positions: Int32Array; tokens: Int32Array }[] = [];
    batch.results.forEach((result, owner) => {
      const completion = sameIds
        ? result.ids.slice(0, result.tokens)
        : Int32Array.from(teacher.tokenizer?.encode(batch.completions[owner], { addSpecialTokens: false }) ?? []);
      const prompt = sameIds ? result.promptIds : teacher.encodePrompt(batch.examples[owner].prompt);
      if (!fitsTeacher(teacher, prompt.length + completion.length)) return;
      const whole = new Int32Array(prompt.length + completion.length);
      whole.set(prompt);
      whole.set(completion, prompt.length);
      for (let group = 0; group < passes; group++) {
        const positions = Int32Array.from(completion.keys()).filter(
          (i) => i % passes === group && completion[i] !== teacher.config.maskTokenId,
        );
        if (positions.length === 0) continue;
        const ids = whole.slice();
        for (const i of positions) ids[prompt.length + i] = teacher.config.maskTokenId;
        rows.push({
          owner,
          ids,
          positions: positions.map((i) => prompt.length + i),
          tokens: positions.map((i) => completion[i]),
        });
      }
    });
    for (const batch of packRows(rows, ({ ids }) => ids.length, tokenBudget)) {
      const { logProbs } = await judge.score({
        ...packed(batch),
        tokens: concatenate(
          batch.map(({ tokens }) => tokens),
          Int32Array,
        ),
        excludedToken: teacher.config.maskTokenId,
      });
      let at = 0;
      for (const { owner, positions } of batch) {
        for (let i = 0; i < positions.length; i++) sums[owner] += logProbs![at++];
        counts[owner] += positions.length;
      }
    }
    return Array.from(sums, (sum, row) => (counts[row] > 0 ? sum / counts[row] : null));
  };
}
