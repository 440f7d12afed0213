// Examples of distillation as rows, with their teacher's trajectories.
import { existsSync, statSync } from 'node:fs';
import type { ExamplePrompt } from '../../data';
import { locateSplit, readRecords } from '../../data/records';
import { DUltraError, optionError } from '../../errors';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import { show } from '../../text';
import type { TrainingRow } from '../data';
import { encodeRow } from '../token-rows';
import type { AnswerRange } from './segments';
import { type Trajectory, trajectoryOfStates } from './trajectory';

/** A row before it is masked. */
export interface DistillationRow extends AnswerRange {
  ids: Int32Array;
  trajectory: Trajectory | null;
}

/** How long rows are. */
export interface RowLengths {
  maxTokens: number | null;
  rowTokens: number | null;
  /** Whether the padding counts as answer, in which segments are counted. */
  paddingCounts: boolean;
}

/** Prompt and answer as one row, padded with ends of sequence, or cut. */
export function encodeAnswer(
  model: MaskedDiffusionModel,
  example: TrainingRow,
  { maxTokens, rowTokens, paddingCounts }: RowLengths,
  trajectory: Trajectory | null,
): DistillationRow {
  let text = 0;
  const wanted = (answer: number) => {
    text = answer + 1;
    if (rowTokens === null) return maxTokens ?? answer + 1;
    return Math.max(answer + 1, rowTokens - model.encodePrompt(example.prompt).length);
  };
  const { ids: whole, begin } = encodeRow(model, example, wanted);
  if (rowTokens !== null && begin >= rowTokens)
    throw optionError(
      RangeError,
      'rowTokens',
      `expected more than the ${begin} tokens of the prompt ${show(example.prompt)}, got ${rowTokens}`,
    );
  const ids = rowTokens === null ? whole : whole.subarray(0, rowTokens);
  const answer = paddingCounts ? ids.length - begin : text;
  return { ids, begin, answer, length: ids.length, trajectory };
}

/** What a record of a trajectory can have: `dultra distill`'s compact form, or d3LLM's published one. */
interface TrajectoryRecord {
  question?: unknown;
  prompt_ids?: unknown;
  reveal_step?: unknown;
  trajectory?: unknown;
}

const isNumbers = (value: unknown): value is readonly number[] =>
  Array.isArray(value) && value.every((item) => Number.isInteger(item));

/**
 * The trajectory of a record: of `reveal_step`, the first state (from 0) that shows each token of the answer (−1: none
 * does), or of `trajectory`, the whole row after every step. null where it has neither.
 * @throws Error saying what is wrong with a field
 */
export function trajectoryOfRecord(record: unknown, maskTokenId: number): Trajectory | null {
  const { prompt_ids: promptIds, reveal_step: reveal, trajectory: states } = (record ?? {}) as TrajectoryRecord;
  if ((reveal ?? null) === null && (states ?? null) === null) return null;
  if (!isNumbers(promptIds)) throw new Error(`field "prompt_ids": expected token ids, got ${show(promptIds)}`);
  const promptTokens = promptIds.length;
  if ((reveal ?? null) !== null) {
    if (!isNumbers(reveal) || reveal.some((step) => step < -1))
      throw new Error(`field "reveal_step": expected steps from 0, or −1, got ${show(reveal)}`);
    const count = Math.max(-1, ...reveal) + 1;
    const shownFrom = new Int32Array(promptTokens + reveal.length).fill(-1, 0, promptTokens);
    reveal.forEach((step, i) => {
      shownFrom[promptTokens + i] = step === -1 ? count : step;
    });
    return { states: count, shownFrom, promptTokens };
  }
  if (!Array.isArray(states) || !states.every(isNumbers))
    throw new Error('field "trajectory": expected the row of ids after each step, got another');
  const other = states.find((state) => state.length !== states[0].length);
  if (other)
    throw new Error(
      `field "trajectory": expected rows of ${states[0].length} ids, as many as the first has, got one of ${other.length}`,
    );
  return trajectoryOfStates(states, maskTokenId, promptTokens);
}

/** Trajectories by question. */
export type Trajectories = ReadonlyMap<string, Trajectory>;

/**
 * Reads trajectories of a file, a folder or a hub id; each becomes a number per token as it is read.
 * @throws DUltraError BAD_DATASET naming file and line; RangeError for what is none of these
 */
export async function readTrajectories(source: string, maskTokenId: number): Promise<Trajectories> {
  const isFile = existsSync(source) && !statSync(source).isDirectory();
  const files = isFile ? [source] : await locateSplit({ source, config: null }, 'train');
  const found = new Map<string, Trajectory>();
  for (const file of files)
    for await (const { value, where } of readRecords(file)) {
      const { question } = (value ?? {}) as TrajectoryRecord;
      try {
        if (typeof question !== 'string') throw new Error(`field "question": expected text, got ${show(question)}`);
        const trajectory = trajectoryOfRecord(value, maskTokenId);
        if (trajectory) found.set(question, trajectory);
      } catch (cause) {
        throw new DUltraError('BAD_DATASET', `${where}: ${(cause as Error).message}`, { cause });
      }
    }
  if (found.size === 0)
    throw new DUltraError('BAD_DATASET', `${source}: expected records with a trajectory, got none with one`);
  return found;
}

const keyOf = (prompt: ExamplePrompt): string => (typeof prompt === 'string' ? prompt : JSON.stringify(prompt));

/**
 * The trajectory of an example: of a file of trajectories by its prompt, else its own.
 * @throws TypeError for a field of its own that is none
 */
export function trajectoryOfExample(
  example: TrainingRow,
  trajectories: Trajectories | null,
  maskTokenId: number,
): Trajectory | null {
  if (trajectories) return trajectories.get(keyOf(example.prompt)) ?? null;
  try {
    return trajectoryOfRecord(example.meta, maskTokenId);
  } catch (error) {
    throw optionError(TypeError, 'dataset', (error as Error).message);
  }
}
