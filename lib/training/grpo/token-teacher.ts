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

/**
 * The log-probability that a teacher gives each token of completions, after the prompts in its own tokens and chat
 * template; NaN behind the completion, and for a row that is longer than the teacher's longest, of which a process
 * warning tells. The end of sequence is the teacher's own.
 */
export async function teacherLogProbs(
  teacher: CausalModel,
  model: MaskedDiffusionModel,
  results: readonly GenerateResult[],
  examples: readonly TrainingRow[],
): Promise<Float32Array[]> {
  const { tokenizer } = teacher;
  if (!tokenizer || !model.tokenizer)
    throw new DUltraError(
      'NO_TOKENIZER',
      `${(tokenizer ? model : teacher).source} has no tokenizer.json, which distillation from a teacher needs`,
    );
  const [end] = teacher.config.eosTokenIds;
  const rows = results.map(({ ids, tokens, text }, i) => {
    const hasEnd = tokens > 0 && ids[tokens - 1] === model.config.eosTokenId && end !== undefined;
    const own = Array.from(ids.subarray(0, hasEnd ? tokens - 1 : tokens));
    const teacherIds = tokenizer.encode(text, { addSpecialTokens: false });
    const promptIds = teacher.encodePrompt(examples[i].prompt);
    return { own, hasEnd, text, teacherIds, promptIds, ids: hasEnd ? [...teacherIds, end] : teacherIds };
  });
  const fitting = rows.filter(({ promptIds, ids }) => fitsTeacher(teacher, promptIds.length + ids.length));
  const scored = await teacher.logProbs(fitting);
  const known = new Map(fitting.map((row, i) => [row, scored[i]]));
  return rows.map((row, i) => {
    const out = new Float32Array(results[i].ids.length).fill(Number.NaN);
    const logProbs = known.get(row);
    if (!logProbs) return out;
    const { own, hasEnd, text, teacherIds } = row;
    const isSame = own.length === teacherIds.length && own.every((id, k) => id === teacherIds[k]);
    out.set(
      isSame
        ? logProbs.subarray(0, own.length)
        : alignValues(logProbs, tokenEnds(tokenizer, teacherIds, text), tokenEnds(model.tokenizer!, own, text)),
    );
    if (hasEnd) out[own.length] = logProbs[logProbs.length - 1];
    return out;
  });
}
