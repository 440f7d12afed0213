// What an autoregressive teacher says of each token of a completion that another tokenizer may have cut.
import { DUltraError } from '../../errors';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateResult } from '../../generation/types';
import type { CausalModel } from '../../model/causal-model';
import type { Tokenizer } from '../../model/tokenizer';
import { fitsTeacher } from '../../rewards/fits-teacher';
import type { TrainingRow } from '../data';

/**
 * Where each token ends in a text, in characters; −1 inside a character that several tokens make up.
 * @param ids of the text
 */
function tokenEnds(tokenizer: Tokenizer, ids: readonly number[], text: string): number[] {
  return ids.map((_, i) => {
    const prefix = tokenizer.decode(ids.slice(0, i + 1), { skipSpecialTokens: true });
    return text.startsWith(prefix) ? prefix.length : -1;
  });
}

/**
 * Values of the tokens of one tokenization as values of those of another: tokens between two places where tokens of both
 * end share the sum of what stands there, in equal parts. With the same tokens they are the same values.
 * @param from ends of the tokens that have values @param to ends of the others; −1: no place where a token ends
 */
export function alignValues(values: ArrayLike<number>, from: readonly number[], to: readonly number[]): Float32Array {
  const out = new Float32Array(to.length).fill(Number.NaN);
  const ends = new Set(from.filter((end) => end >= 0));
  let at = 0;
  let begin = 0;
  for (let i = 0; i < to.length; i++) {
    if (to[i] < 0 || !ends.has(to[i])) continue;
    let sum = 0;
    while (at < from.length && from[at] !== to[i]) sum += values[at++];
    // Several tokens may end there: those that add no character.
    while (at < from.length && from[at] === to[i]) sum += values[at++];
    out.fill(sum / (i + 1 - begin), begin, i + 1);
    begin = i + 1;
  }
  return out;
}

/** A completion as a teacher gets it. */
export interface TeacherRow {
  prompt: TrainingRow['prompt'];
  text: string;
  /** The model's tokens of it, and whether the last one is the end of sequence. */
  ids: number[];
  hasEnd: boolean;
}

/** What a teacher says of a completion, in its own tokens; null: it is longer than the teacher's longest. */
export type TeacherScore = {
  logProbs: Float32Array;
  /** Whether the last one is of the end of sequence. */
  hasEnd: boolean;
  /** Where its tokens end; null: its tokens are those of the model. */
  ends: number[] | null;
} | null;

/** Completions for a teacher. @throws DUltraError NO_TOKENIZER */
export function teacherRows(
  model: MaskedDiffusionModel,
  results: readonly GenerateResult[],
  examples: readonly Pick<TrainingRow, 'prompt'>[],
): TeacherRow[] {
  checkTokenizer(model);
  return results.map(({ ids, tokens, text }, i) => {
    const hasEnd = tokens > 0 && ids[tokens - 1] === model.config.eosTokenId;
    return { prompt: examples[i].prompt, text, ids: Array.from(ids.subarray(0, tokens)), hasEnd };
  });
}

/** @throws DUltraError NO_TOKENIZER */
function checkTokenizer({ tokenizer, source }: { tokenizer: Tokenizer | null; source: string }): Tokenizer {
  if (!tokenizer)
    throw new DUltraError('NO_TOKENIZER', `${source} has no tokenizer.json, which distillation from a teacher needs`);
  return tokenizer;
}

/**
 * The log-probabilities that a teacher gives completions after their prompts, in its own tokens and chat template. The end
 * of sequence is the teacher's own. Of a row that is longer than the teacher's longest a process warning tells.
 */
export async function scoreCompletions(teacher: CausalModel, rows: readonly TeacherRow[]): Promise<TeacherScore[]> {
  const tokenizer = checkTokenizer(teacher);
  const [end] = teacher.config.eosTokenIds;
  const encoded = rows.map((row) => {
    const hasEnd = row.hasEnd && end !== undefined;
    const teacherIds = tokenizer.encode(row.text, { addSpecialTokens: false });
    const promptIds = teacher.encodePrompt(row.prompt);
    return { row, hasEnd, teacherIds, promptIds, ids: hasEnd ? [...teacherIds, end] : teacherIds };
  });
  const fitting = encoded.filter(({ promptIds, ids }) => fitsTeacher(teacher, promptIds.length + ids.length));
  const scored = await teacher.logProbs(fitting);
  const known = new Map(fitting.map((row, i) => [row, scored[i]]));
  return encoded.map((item) => {
    const logProbs = known.get(item);
    if (!logProbs) return null;
    const { row, hasEnd, teacherIds } = item;
    const own = hasEnd ? row.ids.slice(0, -1) : row.ids;
    const isSame = own.length === teacherIds.length && own.every((id, k) => id === teacherIds[k]);
    return { logProbs, hasEnd, ends: isSame ? null : tokenEnds(tokenizer, teacherIds, row.text) };
  });
}

/** What a teacher has said of a completion, by the tokens of the model; NaN behind the completion, and where it said nothing. */
export function ofOwnTokens(
  model: MaskedDiffusionModel,
  { ids }: GenerateResult,
  row: TeacherRow,
  score: TeacherScore,
): Float32Array {
  const out = new Float32Array(ids.length).fill(Number.NaN);
  if (score === null) return out;
  const { logProbs, ends, hasEnd } = score;
  const own = hasEnd ? row.ids.slice(0, -1) : row.ids;
  out.set(
    ends === null
      ? logProbs.subarray(0, own.length)
      : alignValues(logProbs, ends, tokenEnds(model.tokenizer!, own, row.text)),
  );
  if (hasEnd) out[own.length] = logProbs[logProbs.length - 1];
  return out;
}
