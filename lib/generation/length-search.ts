// Holes whose length is not known: they are filled at some lengths, and the text that the model finds most probable is
// kept.
import { isOptionError, optionError } from '../errors';
import { attendedBlock } from '../model/blocks';
import { decodeIds } from '../model/prompt';
import { indexOfEnd } from '../model/text-end';
import { checkChoice } from '../options';
import { packRows, range } from '../packing';
import type { SubmitOptions } from '../sampling/job';
import type { RowOutcome } from '../sampling/rows/row';
import type { ScoredInput } from '../sampling/rows/scored-row';
import type { DenoiseSettings } from '../sampling/settings';
import type { FormPrompt, Prompt } from '../types';
import { denoiseAlone, isPrivate } from './alone';
import { defaultMaxTokens, type GeneratingModel, isForm, isInfill, type PreparedRow, prepare } from './prepare';
import { resultsOf, Stopwatch } from './result';
import type { GenerateOptions, GenerateResult } from './types';

/** Parts of the longest length that are tried. */
const SHARES = [0.25, 0.5, 0.75, 1];
/** Tokens of a hole are scored in so many passes' rows, each with every fourth of them masked. */
const GROUPS = 4;
/** Positions that one pass computes at most. */
const TOKEN_BUDGET = 16384;

/** A prompt at one length. */
interface Candidate {
  row: PreparedRow;
  settings: DenoiseSettings;
}

/** Refuses what has no hole whose length could be another. @throws TypeError */
function checkHole(prompt: Prompt, { schema, pattern, research }: GenerateOptions): void {
  if (research?.compat !== undefined)
    throw optionError(TypeError, 'hole', 'not allowed with research.compat, which the reference does not have');
  if (schema === undefined && pattern === undefined && !isForm(prompt) && !isInfill(prompt))
    throw optionError(
      TypeError,
      'hole',
      'expected together with a schema, a pattern, a form or a suffix: other answers end by themselves, and a template says how long its holes are',
    );
}

/** A form with shorter slots. */
const shorter = (prompt: FormPrompt, share: number): FormPrompt => {
  const scaled = (tokens: number) => Math.ceil(tokens * share);
  return {
    ...prompt,
    form: prompt.form.map((part) =>
      typeof part === 'number'
        ? scaled(part)
        : typeof part === 'object'
          ? { ...part, tokens: scaled(part.tokens) }
          : part,
    ),
  };
};

/** The prompt at each length, the shortest first. @throws as `model.generate` */
function candidatesOf(model: GeneratingModel, prompt: Prompt, options: GenerateOptions): Candidate[] {
  const prepared = (own: Prompt, more: GenerateOptions = {}): Candidate => {
    const { rows, settings } = prepare(model, [own], { ...options, ...more });
    return { row: rows[0], settings };
  };
  if (isForm(prompt)) {
    const longest = prepared(prompt);
    const others = new Map<string, Candidate>();
    for (const share of SHARES.slice(0, -1)) {
      const form = shorter(prompt, share);
      if (form.form.every((part, i) => JSON.stringify(part) === JSON.stringify(prompt.form[i]))) continue;
      try {
        others.set(JSON.stringify(form.form), prepared(form));
      } catch (error) {
        // A pattern may have no text that is so short.
        if (!isOptionError(error) || error.option !== 'form') throw error;
      }
    }
    return [...others.values(), longest];
  }
  const longest = prepared(prompt);
  const { structure, wanted } = longest.row;
  const most = structure ? wanted! : (options.maxTokens ?? defaultMaxTokens(model));
  const least = structure?.fewest ?? 0;
  // Blocks are whole ones, where their length is given.
  const step = structure || attendedBlock(model.config) !== null ? 1 : (options.blockLength ?? 1);
  const lengths = SHARES.map((share) => Math.ceil((least + (most - least) * share) / step) * step);
  return [...new Set(lengths)].map((maxTokens) => (maxTokens === most ? longest : prepared(prompt, { maxTokens })));
}

/** Positions of the holes that were filled, one list for each hole. */
function holesOf(model: GeneratingModel, row: PreparedRow, outcome: RowOutcome): number[][] {
  const { maskTokenId } = model.config;
  const slots = new Set(row.constraint?.slots.map(({ begin }) => begin));
  const holes: number[][] = [];
  for (const position of range(row.begin, row.end)) {
    if (row.ids[position] !== maskTokenId) continue;
    const goesOn = holes.at(-1)?.at(-1) === position - 1 && !slots.has(position);
    if (goesOn) holes.at(-1)!.push(position);
    else holes.push([position]);
  }
  return holes.map((hole) => hole.filter((position) => outcome.ids[position] !== maskTokenId));
}

/** Positions whose tokens say something: not the white space and ends of sequence that fill up a hole. */
function told(model: GeneratingModel, holes: readonly number[][], { ids }: RowOutcome): Int32Array {
  const fills = (position: number) => decodeIds([ids[position]], model).trim() === '';
  const kept = holes.flatMap((hole) => hole.slice(0, 1 + hole.findLastIndex((position) => !fills(position))));
  return Int32Array.from(kept.length > 0 ? kept : holes.flat());
}

/** Whether a text ends before its suffix. */
const isEnded = (model: GeneratingModel, prompt: Prompt, row: PreparedRow, { ids }: RowOutcome): boolean =>
  isInfill(prompt) && indexOfEnd(ids.subarray(row.begin, row.end), model.config.eosTokenIds) >= 0;

/** The rows that say how probable the tokens of holes are, each with some of them masked. */
function scoredRows(model: GeneratingModel, row: PreparedRow, outcome: RowOutcome): ScoredInput[] {
  const positions = told(model, holesOf(model, row, outcome), outcome);
  return Array.from({ length: Math.min(GROUPS, positions.length) }, (_, group) => {
    const own = positions.filter((_position, i) => i % GROUPS === group);
    const ids = outcome.ids.slice();
    for (const position of own) ids[position] = model.config.maskTokenId;
    const tokens = Array.from(own, (position) => Int32Array.of(outcome.ids[position]));
    return { ids, begin: row.begin, positions: own, tokens };
  });
}

/**
 * Fills a prompt's holes at some lengths and keeps the best text: the one with the highest mean log-probability of its
 * tokens, as the model finds them where it may choose any. The result of each length is that of `generate` with as many
 * `maxTokens`, bit for bit.
 */
export async function searchLengths(
  model: GeneratingModel,
  prompt: Prompt,
  { hole, ...options }: GenerateOptions,
  submit: SubmitOptions = {},
): Promise<GenerateResult> {
  checkChoice('hole', hole, ['search'] as const);
  checkHole(prompt, options);
  const candidates = candidatesOf(model, prompt, options);
  const { seed } = candidates[0].settings;
  const watch = new Stopwatch();
  const { outcomes, scored, scores } = await watch.time(async () => {
    const ends = await Promise.all(
      candidates.map(async ({ row, settings }) => {
        const [outcome] = isPrivate(settings)
          ? await denoiseAlone(model, [row], settings)
          : await model.engine.submit([row], settings, { ...submit, signal: settings.signal }).outcomes;
        return outcome;
      }),
    );
    const inputs = candidates.map(({ row }, i) => scoredRows(model, row, ends[i]));
    const values: Float32Array[] = [];
    const scoring = { ...submit, signal: candidates[0].settings.signal };
    for (const group of packRows(inputs.flat(), ({ ids }) => ids.length, TOKEN_BUDGET))
      values.push(...(await model.engine.score(group, scoring)));
    let at = 0;
    const means = inputs.map((rows) => {
      const own = values.slice(at, at + rows.length).flatMap((row) => [...row]);
      at += rows.length;
      return own.reduce((sum, value) => sum + value, 0) / own.length;
    });
    return { outcomes: ends, scored: inputs.flat().length, scores: means };
  });
  // What follows a hole does not follow an end of sequence in it.
  const ends = outcomes.map((outcome, i) => isEnded(model, prompt, candidates[i].row, outcome));
  const rated = ends.every(Boolean) ? scores : scores.map((score, i) => (ends[i] ? Number.NEGATIVE_INFINITY : score));
  const best = rated.indexOf(Math.max(...rated));
  const written = { seed, logprobs: options.logprobs };
  const lengths = candidates.map(({ row }, i) => ({ tokens: row.end - row.begin, score: scores[i] }));
  const fullForwards = outcomes.reduce((sum, outcome) => sum + outcome.fullForwards, scored);
  const kept = [candidates[best].row];
  return resultsOf(model, kept, [outcomes[best]], written, watch.seconds, { lengths, fullForwards })[0];
}
