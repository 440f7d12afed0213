// Answers that are values of a schema or texts of a pattern: rows with slots in place of masks that may become anything.
import { DUltraError, optionError } from '../errors';
import { rowLength } from '../model/blocks';
import { checkRoom, encodePrompt } from '../model/prompt';
import { fewestOf, type Layout, layoutOf, patternSlot, widthsOf } from '../structured/layout';
import { type Slot, Slots } from '../structured/slots';
import { type TokenBytes, textOf, tokenBytes } from '../structured/vocabulary';
import { show } from '../text';
import type { PlainPrompt } from '../types';
import type { GeneratingModel, PreparedRow } from './prepare';
import type { GenerateOptions } from './types';

/** What a structured row's answer is read by. */
export interface Structure {
  tokens: TokenBytes;
  isJson: boolean;
  /** Tokens that it takes at least. */
  fewest: number;
}

/** The bytes of a model's tokens. @throws DUltraError NO_TOKENIZER */
export function modelTokens({ tokenizer, config, source }: GeneratingModel, name: string): TokenBytes {
  if (!tokenizer) throw new DUltraError('NO_TOKENIZER', `${source} has no tokenizer.json, which a ${name} needs`);
  return tokenBytes(tokenizer, config, source);
}

/** What of the options does not go with a schema or pattern. */
export function checkStructured({ schema, pattern, stop, research }: GenerateOptions, isPlain: boolean): void {
  const name = schema !== undefined ? 'schema' : 'pattern';
  if (schema !== undefined && pattern !== undefined)
    throw optionError(TypeError, 'pattern', 'not allowed beside schema, whose strings have patterns');
  if (!isPlain)
    throw optionError(
      TypeError,
      name,
      'not allowed with a template, form or suffix; slots of a form have patterns of their own',
    );
  if (stop !== undefined)
    throw optionError(TypeError, 'stop', `not allowed with a ${name}, which says where the text ends`);
  if (research?.compat !== undefined)
    throw optionError(TypeError, 'research.compat', `not allowed with a ${name}, which the reference does not have`);
}

/** A prompt's row whose completion is bound to the schema or pattern. */
export function structuredRow(
  model: GeneratingModel,
  prompt: PlainPrompt,
  { schema, pattern, maxTokens, splitSpecialTokens }: GenerateOptions,
): PreparedRow {
  const tokens = modelTokens(model, schema !== undefined ? 'schema' : 'pattern');
  const { maskTokenId, maxSequenceLength, eosTokenId } = model.config;
  const layout = structureLayout(model, tokens, schema, pattern);
  const promptIds = encodePrompt(prompt, model, { splitSpecialTokens });
  if (maxTokens !== undefined) checkRoom(promptIds.length, maxTokens, maxSequenceLength);
  const widths = widthsOf(layout, maxTokens ?? null, maxSequenceLength - promptIds.length);
  const begin = promptIds.length;
  const wanted = widths.reduce((sum, width) => sum + width, 0);
  const ids = new Int32Array(rowLength(begin + wanted, model.config)).fill(maskTokenId);
  ids.set(promptIds);
  const slots: Slot[] = [];
  let at = begin;
  layout.parts.forEach((part, i) => {
    // A row that is longer so as to end with a block is filled to its end.
    const end = i === layout.parts.length - 1 ? ids.length : at + widths[i];
    if ('automaton' in part) slots.push({ begin: at, end, automaton: part.automaton });
    else ids.set(part, at);
    at = end;
  });
  if (eosTokenId === null && ids.length > begin + wanted && !layout.isJson)
    throw optionError(RangeError, 'pattern', 'expected a model with an end of sequence, which fills the last block');
  return {
    ids,
    begin,
    end: ids.length,
    wanted,
    promptIds,
    isTemplate: false,
    textEnd: null,
    constraint: new Slots(slots, maskTokenId),
    structure: { tokens, isJson: layout.isJson, fewest: fewestOf(layout) },
  };
}

function structureLayout(
  model: GeneratingModel,
  tokens: TokenBytes,
  schema: GenerateOptions['schema'],
  pattern: GenerateOptions['pattern'],
): Layout {
  const target = { tokenizer: model.tokenizer!, tokens, eosTokenId: model.config.eosTokenId };
  if (pattern !== undefined) {
    if (typeof pattern !== 'string')
      throw optionError(TypeError, 'pattern', `expected a regular expression as a string, got ${show(pattern)}`);
    return layoutOf({ pattern }, target);
  }
  if (schema !== 'object' && (typeof schema !== 'object' || schema === null || Array.isArray(schema)))
    throw optionError(TypeError, 'schema', `expected a JSON schema, an object, or "object", got ${show(schema)}`);
  return layoutOf({ schema }, target);
}

/** A slot of a form that has a pattern. */
export function formSlot(model: GeneratingModel, pattern: string, name: string) {
  return patternSlot(pattern, modelTokens(model, 'pattern'), name);
}

/** The text of a structured row's answer, and the value that it is of a schema. */
export function structuredText({ tokens, isJson }: Structure, ids: Int32Array): { text: string; object: unknown } {
  const text = textOf(tokens, ids);
  return { text, object: isJson ? JSON.parse(text) : undefined };
}
