// From prompts and options to rows of ids with masks, and how they are denoised.
import type { DecidingModel } from '../decisions/decide';
import { DUltraError, optionError } from '../errors';
import { attendedBlock, rowLength, wholeRow } from '../model/blocks';
import type { ModelConfig } from '../model/config';
import { familyOf } from '../model/families';
import { checkIds, checkRoom, encodePrompt, encodeText, maskName } from '../model/prompt';
import { stopStrings, TextEnd } from '../model/text-end';
import type { NativeModel } from '../native';
import { checkInteger, checkKeys, checkList } from '../options';
import { type ResolvedCache, resolveCache } from '../sampling/caches';
import type { Engine } from '../sampling/engine';
import type { RowInput } from '../sampling/rows/row';
import { definitionOf } from '../sampling/samplers';
import type { DenoiseSettings } from '../sampling/settings';
import { type Slot, Slots } from '../structured/slots';
import { show } from '../text';
import type { FormPrompt, FormSlot, InfillPrompt, PlainPrompt, Prompt } from '../types';
import type { Encoding } from './encoding';
import type { GenerationDefaults } from './generation-config';
import { resolveGenerateOptions } from './options';
import { checkStructured, formSlot, type Structure, structuredRow } from './structured';
import { templateIds } from './template';
import type { GenerateOptions } from './types';

/** Default number of generated tokens, where the model has room for twice as many. */
const DEFAULT_MAX_TOKENS = 128;
/** Default block length, where it divides the generated length. */
const DEFAULT_BLOCK_LENGTH = 32;

/** What generation and decisions need of a model. */
export interface GeneratingModel extends DecidingModel {
  native: NativeModel;
  /** Runs the rows of all calls. */
  readonly engine: Engine;
  /** Texts as ids, without holding up the event loop. */
  readonly encoding: Encoding;
  generationDefaults: GenerationDefaults;
}

/** A prompt as a row of ids with masks. */
export interface PreparedRow extends RowInput {
  /** Position behind the completion. */
  end: number;
  /** Where its text ends early; null without stop strings. */
  textEnd: TextEnd | null;
  promptIds: Int32Array;
  isTemplate: boolean;
  /** How its answer is read, with a schema or pattern. */
  structure?: Structure | undefined;
  constraint?: Slots | undefined;
}

const isTemplate = (prompt: Prompt): prompt is { template: string | ArrayLike<number> } =>
  typeof prompt === 'object' && prompt !== null && 'template' in prompt;

export const isForm = (prompt: Prompt): prompt is FormPrompt =>
  typeof prompt === 'object' && prompt !== null && 'form' in prompt;

export const isInfill = (prompt: Prompt): prompt is InfillPrompt =>
  typeof prompt === 'object' && prompt !== null && 'suffix' in prompt;

/** Checks prompts and options together. @throws as `model.generate`. */
export function prepare(
  model: GeneratingModel,
  prompts: readonly Prompt[],
  given: GenerateOptions,
): { rows: PreparedRow[]; settings: DenoiseSettings } {
  if (!Array.isArray(prompts)) throw optionError(TypeError, 'prompts', `expected an array, got ${show(prompts)}`);
  if (given?.hole !== undefined)
    throw optionError(
      TypeError,
      'hole',
      'for generate and generateBatch: which length is kept is known when all are filled',
    );
  const templates = prompts.filter((prompt) => isTemplate(prompt) || isForm(prompt)).length;
  if (templates > 0 && templates < prompts.length)
    throw optionError(TypeError, 'prompts', 'expected templates only or none, got both');
  const isStructured = given?.schema !== undefined || given?.pattern !== undefined;
  if (isStructured) checkStructured(given, templates === 0 && !prompts.some(isInfill));
  const options = withDefaults(model, given, templates > 0 || isStructured);
  const settings = resolveGenerateOptions(options, model.config.planner !== null);
  const maxTokens = options.maxTokens ?? defaultMaxTokens(model);
  const rows = prompts.map((prompt) =>
    isStructured
      ? structuredRow(model, prompt as PlainPrompt, options)
      : isTemplate(prompt)
        ? templateRow(model, prompt, options)
        : isForm(prompt)
          ? formRow(model, prompt, options)
          : isInfill(prompt)
            ? infillRow(model, prompt, maxTokens, options)
            : promptRow(model, prompt, maxTokens, options),
  );
  endEarly(model, rows, stopStrings(options.stop));
  if (templates > 0) settings.stopAtEos ??= false;
  else if (isStructured) settings.blockLength = options.blockLength ?? attendedBlock(model.config);
  else settings.blockLength = blockLengthOf(model, options, maxTokens);
  settings.cache = cacheOf(model, options, settings);
  settings.scores = scoresOf(model, settings);
  settings.topPFirst = settings.reference && familyOf(model.config).topPFirst === true;
  settings.finishesBlock = settings.reference && familyOf(model.config).finishesBlock === true;
  checkSampler(model, settings, rows);
  return { rows, settings };
}

/** Ends rows at stop strings. */
function endEarly(model: GeneratingModel, rows: readonly PreparedRow[], strings: readonly string[]): void {
  if (strings.length === 0) return;
  if (rows.some(({ isTemplate }) => isTemplate))
    throw optionError(TypeError, 'stop', 'not allowed with a template or form, whose masks say what to fill');
  const end = new TextEnd(model, strings);
  for (const row of rows) {
    row.textEnd = end;
    row.isEnd = (prefix) => end.isIn(prefix);
  }
}

/** The options with the checkpoint's sampler and stop strings, where they name none. */
function withDefaults(
  { generationDefaults }: GeneratingModel,
  options: GenerateOptions,
  hasTemplates: boolean,
): GenerateOptions {
  // research.compat replays recorded runs: what the checkpoint says of others does not apply.
  if (typeof options !== 'object' || options === null || options.research?.compat !== undefined) return options;
  const sampler = options.sampler ?? generationDefaults.sampler;
  const stop = options.stop ?? (hasTemplates ? undefined : generationDefaults.stop);
  return { ...options, ...(sampler !== undefined && { sampler }), ...(stop !== undefined && { stop }) };
}

/** Tokens that a model generates where nothing says how many. */
export function defaultMaxTokens(model: {
  config: { maxSequenceLength: number };
  generationDefaults?: GenerationDefaults;
}): number {
  const fitting = Math.min(DEFAULT_MAX_TOKENS, Math.max(1, model.config.maxSequenceLength >> 1));
  return model.generationDefaults?.maxTokens ?? fitting;
}

/** Block length of so many tokens, where nothing says another. */
export const defaultBlockLength = (maxTokens: number): number =>
  maxTokens % DEFAULT_BLOCK_LENGTH === 0 ? DEFAULT_BLOCK_LENGTH : maxTokens;

/** Refuses a cache that is not for the model. @throws RangeError */
export function checkCache(config: ModelConfig, { type }: ResolvedCache): void {
  if (type === 'blocks' && attendedBlock(config) === null)
    throw optionError(
      RangeError,
      'cache.type',
      'expected another than "blocks", which is for models that attend by blocks: in this one every position sees all',
    );
}

/** Models that attend by blocks cache finished ones, which is exact. */
function cacheOf({ config }: GeneratingModel, { cache, research }: GenerateOptions, settings: DenoiseSettings) {
  checkCache(config, settings.cache);
  const isDefault = cache === undefined && research?.compat === undefined && attendedBlock(config) !== null;
  return isDefault ? resolveCache({ type: 'blocks' }) : settings.cache;
}

/** Which distribution confidences are of; null: the model's. */
function scoresOf({ config }: GeneratingModel, settings: DenoiseSettings): DenoiseSettings['scores'] {
  const { sampler, scores, topK, topP, temperature, reference } = settings;
  const filters = topK !== null || topP < 1;
  const bySampler = typeof sampler !== 'function' && definitionOf(sampler).filteredConfidence === true;
  const byFamily = (filters || reference) && familyOf(config).filteredConfidence === true;
  const chosen = scores ?? (bySampler || byFamily ? 'filtered' : 'untempered');
  // Without a temperature and filters they are the same, and the model's are cheaper.
  const differs = chosen === 'filtered' ? filters || temperature > 0 : chosen === 'tempered' && temperature > 0;
  return differs ? chosen : null;
}

function blockLengthOf(
  { config, generationDefaults }: GeneratingModel,
  options: GenerateOptions,
  maxTokens: number,
): number {
  const attended = attendedBlock(config);
  if (attended !== null) return options.blockLength ?? attended;
  // The checkpoint's block length belongs to its own generated length.
  const fromCheckpoint = options.maxTokens === undefined ? generationDefaults.blockLength : undefined;
  const blockLength = options.blockLength ?? fromCheckpoint ?? defaultBlockLength(maxTokens);
  if (maxTokens % blockLength !== 0)
    throw optionError(RangeError, 'maxTokens', `expected a multiple of blockLength (${blockLength}), got ${maxTokens}`);
  return blockLength;
}

function templateRow(
  model: GeneratingModel,
  prompt: { template: string | ArrayLike<number> },
  { maxTokens, splitSpecialTokens }: GenerateOptions,
): PreparedRow {
  checkKeys('prompt', prompt, ['template']);
  if (maxTokens !== undefined)
    throw optionError(TypeError, 'maxTokens', 'not allowed with a template, whose masks say what to fill');
  if (splitSpecialTokens)
    throw optionError(TypeError, 'splitSpecialTokens', 'not allowed with a template, whose masks are special tokens');
  const { template } = prompt;
  const { maskTokenId, maxSequenceLength, embeddingSize } = model.config;
  const ids =
    typeof template === 'string' ? templateIds(model, template) : checkIds('template', template, embeddingSize);
  if (!ids.includes(maskTokenId))
    throw optionError(
      RangeError,
      'template',
      `expected at least one mask, ${typeof template === 'string' ? '[MASK], {{8}} for eight, or ' : ''}${maskName(model)}, got none`,
    );
  if (ids.length > maxSequenceLength)
    throw optionError(
      RangeError,
      'template',
      `expected at most ${maxSequenceLength} tokens, the model's maximum, got ${ids.length}`,
    );
  return { ids, begin: 0, end: ids.length, promptIds: ids, isTemplate: true, textEnd: null };
}

function formRow(
  model: GeneratingModel,
  prompt: FormPrompt,
  { maxTokens, splitSpecialTokens }: GenerateOptions,
): PreparedRow {
  checkKeys('prompt', prompt, ['prompt', 'form']);
  if (maxTokens !== undefined)
    throw optionError(TypeError, 'maxTokens', 'not allowed with a form, whose slots say what to fill');
  const { maskTokenId, eosTokenId, maxSequenceLength } = model.config;
  const promptIds = encodePrompt(prompt.prompt, model, { splitSpecialTokens });
  const idsOfPart = (name: string, part: FormPrompt['form'][number]): number[] => {
    if (typeof part === 'object' && part !== null) checkKeys(name, part, ['tokens', 'pattern']);
    if (typeof part !== 'string') {
      const [count, own] = typeof part === 'number' ? [part, name] : [part?.tokens, `${name}.tokens`];
      checkInteger(own, count, { min: 1, max: maxSequenceLength });
      return new Array<number>(count).fill(maskTokenId);
    }
    if (!model.tokenizer)
      throw new DUltraError('NO_TOKENIZER', `${model.source} has no tokenizer.json, which the texts of a form need`);
    const ids = model.tokenizer.encode(part, { addSpecialTokens: false, splitSpecialTokens });
    if (ids.includes(maskTokenId))
      throw optionError(
        RangeError,
        name,
        `expected no mask token, ${maskName(model)}, since numbers stand for slots, got ${show(part)}`,
      );
    return ids;
  };
  const slots: Slot[] = [];
  let at = promptIds.length;
  const parts = checkList('form', prompt.form, (name, part): number[] => {
    const ids = idsOfPart(name, part as FormPrompt['form'][number]);
    if (typeof part === 'object') {
      const automaton = formSlot(model, (part as FormSlot).pattern, `${name}.pattern`);
      slots.push({ begin: at, end: at + ids.length, automaton });
    }
    at += ids.length;
    return ids;
  });
  if (prompt.form.every((part) => typeof part === 'string'))
    throw optionError(RangeError, 'form', 'expected at least one slot, a number of tokens, got none');
  const filled = [...promptIds, ...parts.flat(), ...(eosTokenId === null ? [] : [eosTokenId])];
  if (filled.length > maxSequenceLength)
    throw optionError(
      RangeError,
      'form',
      `prompt and form make ${filled.length} tokens, more than the model's maximum of ${maxSequenceLength}`,
    );
  const ids = wholeRow(filled, model.config);
  const constraint = slots.length > 0 ? new Slots(slots, maskTokenId) : undefined;
  checkSlots(slots, ids, constraint);
  return {
    ids,
    begin: promptIds.length,
    end: ids.length,
    promptIds,
    isTemplate: true,
    textEnd: null,
    constraint,
  };
}

/** Refuses a form whose slots no text fits. */
function checkSlots(slots: readonly Slot[], ids: Int32Array, constraint: Slots | undefined): void {
  for (const { begin, end } of slots)
    if (constraint!.allowed(ids, Int32Array.of(begin))[0]!.bits.every((word) => word === 0))
      throw optionError(RangeError, 'form', `no text of ${end - begin} tokens matches the pattern of a slot`);
}

function promptRow(
  model: GeneratingModel,
  prompt: PlainPrompt,
  maxTokens: number,
  { splitSpecialTokens }: GenerateOptions,
): PreparedRow {
  const { maskTokenId, maxSequenceLength } = model.config;
  const promptIds = encodePrompt(prompt, model, { splitSpecialTokens });
  checkRoom(promptIds.length, maxTokens, maxSequenceLength);
  const ids = new Int32Array(rowLength(promptIds.length + maxTokens, model.config)).fill(maskTokenId);
  ids.set(promptIds);
  const begin = promptIds.length;
  return { ids, begin, end: ids.length, wanted: maxTokens, promptIds, isTemplate: false, textEnd: null };
}

function suffixIdsOf(
  model: GeneratingModel,
  { suffix }: InfillPrompt,
  { splitSpecialTokens }: GenerateOptions,
): Int32Array {
  const { maskTokenId, embeddingSize } = model.config;
  const isText = typeof suffix === 'string';
  if (!isText && (typeof suffix !== 'object' || suffix === null || !('suffixIds' in suffix)))
    throw optionError(TypeError, 'suffix', `expected a string or { suffixIds }, got ${show(suffix)}`);
  if (!isText) checkKeys('suffix', suffix, ['suffixIds']);
  const ids = isText
    ? encodeText(suffix, 'suffix', model, { splitSpecialTokens, isPart: true })
    : checkIds('suffixIds', suffix.suffixIds, embeddingSize);
  if (ids.includes(maskTokenId))
    throw optionError(RangeError, 'suffix', `expected no mask token, ${maskName(model)}, in it`);
  return ids;
}

function infillRow(
  model: GeneratingModel,
  prompt: InfillPrompt,
  maxTokens: number,
  options: GenerateOptions,
): PreparedRow {
  checkKeys('prompt', prompt, ['prompt', 'suffix']);
  const { config } = model;
  if (attendedBlock(config) !== null)
    throw optionError(
      RangeError,
      'suffix',
      'expected none with a model that attends by blocks, which does not see what follows its answer',
    );
  const promptIds = encodePrompt(prompt.prompt, model, options);
  const suffixIds = suffixIdsOf(model, prompt, options);
  const ending = config.eosTokenId === null ? [] : [config.eosTokenId];
  const [begin, end] = [promptIds.length, promptIds.length + maxTokens];
  checkRoom(begin + suffixIds.length + ending.length, maxTokens, config.maxSequenceLength);
  const ids = new Int32Array(end + suffixIds.length + ending.length).fill(config.maskTokenId);
  ids.set(promptIds);
  ids.set([...suffixIds, ...ending], end);
  return { ids, begin, end, wanted: maxTokens, promptIds, isTemplate: false, textEnd: null };
}

/** What of a sampler depends on the model and on the rows' blocks. */
function checkSampler(
  { config, source }: GeneratingModel,
  { sampler, blockLength, cache }: DenoiseSettings,
  rows: readonly PreparedRow[],
): void {
  if (typeof sampler === 'function') return;
  const { needsPlanner, checkBlocks, byBlocks } = definitionOf(sampler);
  if (needsPlanner && !config.planner)
    throw new DUltraError(
      'NO_PLANNER',
      `sampler: ${source} has no planner head; use { type: "confidence" } or another sampler`,
    );
  if (byBlocks && config.mask !== 'block-causal')
    throw optionError(
      RangeError,
      'sampler.type',
      `expected another than ${show(sampler.type)}, which is for models that attend by blocks: in this one every position sees all`,
    );
  if (byBlocks && cache.type !== 'none' && cache.type !== 'blocks')
    throw optionError(
      RangeError,
      'cache.type',
      `expected "blocks" or "none" with the sampler ${show(sampler.type)}, got ${show(cache.type)}`,
    );
  if (sampler.type === 'sub-blocks' && sampler.partCache && (config.mask !== 'block-causal' || cache.type === 'none'))
    throw optionError(
      TypeError,
      'sampler.partCache',
      'expected a model that attends by blocks, and a cache: passes over a part read the rest of its block from one',
    );
  for (const { begin, end } of rows) {
    const length = end - begin;
    checkBlocks?.(sampler, Math.ceil(length / (blockLength ?? length)));
  }
}
