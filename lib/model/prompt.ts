// Prompts as the ids that a model sees.

import { DUltraError, optionError } from '../errors';
import { checkKeys } from '../options';
import { shownSource } from '../package';
import { show } from '../text';
import type { PlainPrompt } from '../types';
import type { EncodeOptions, Tokenizer } from './tokenizer';

/** What a model knows of its tokens. */
export interface Vocabulary {
  /** null for a checkpoint without tokenizer.json. */
  tokenizer: Tokenizer | null;
  config: { embeddingSize: number };
  /** Named in errors. */
  source: string;
}

/** Token ids out of an array-like. @throws TypeError, RangeError naming `name` and the first id that does not fit. */
export function checkIds(name: string, ids: ArrayLike<number>, embeddingSize: number): Int32Array {
  if (ids === null || typeof ids !== 'object' || !Number.isInteger(ids.length) || ids.length < 0)
    throw optionError(TypeError, name, `expected an array of token ids, got ${show(ids)}`);
  for (let i = 0; i < ids.length; i++)
    if (!Number.isInteger(ids[i]) || ids[i] < 0 || ids[i] >= embeddingSize)
      throw optionError(RangeError, `${name}[${i}]`, `expected 0 to ${embeddingSize - 1}, got ${ids[i]}`);
  return Int32Array.from(ids);
}

function tokenizerFor(what: string, { tokenizer, source }: Vocabulary): Tokenizer {
  if (tokenizer) return tokenizer;
  throw new DUltraError(
    'NO_TOKENIZER',
    `${source} has no tokenizer.json, which ${what} needs; pass { promptIds: [...] } instead`,
  );
}

/** The mask token, for messages: its text, where the tokenizer has one, and its id. */
export function maskName({ tokenizer, config }: Vocabulary & { config: { maskTokenId: number } }): string {
  const text = tokenizer?.maskToken ?? null;
  return text === null ? `the mask token (id ${config.maskTokenId})` : `${show(text)} (id ${config.maskTokenId})`;
}

/** How prompts become ids. */
export interface EncodePromptOptions {
  /** Special tokens in texts and messages are text like any other; those of the chat template stay special. */
  splitSpecialTokens?: boolean | undefined;
  /** No special tokens are put around the text: it stands behind others. */
  isPart?: boolean | undefined;
  /** As of the tokenizer. */
  atMost?: EncodeOptions['atMost'];
}

/** Tokenizers of which it was said that they do not know a prompt. */
const warned = new WeakSet<Tokenizer>();

/** Says, once for a tokenizer, that a prompt has text which it does not know: the model cannot see it. */
function warnUnknown(ids: readonly number[], tokenizer: Tokenizer, source: string): void {
  const { unknownId } = tokenizer;
  if (unknownId === null || warned.has(tokenizer) || !ids.includes(unknownId)) return;
  warned.add(tokenizer);
  const unknown = ids.filter((id) => id === unknownId).length;
  process.emitWarning(
    `${unknown} of ${ids.length} tokens of a prompt are ${show(tokenizer.idToken(unknownId))}: ${shownSource(source)} does not know this text`,
    { type: 'DultraWarning', code: 'DULTRA_UNKNOWN_TEXT' },
  );
}

/** The ids of a prompt, all of which the model knows. */
function inTables(ids: readonly number[], tokenizer: Tokenizer, { config, source }: Vocabulary): Int32Array {
  const unknown = ids.find((id) => id >= config.embeddingSize);
  if (unknown !== undefined)
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: token ${show(tokenizer.idToken(unknown))} has id ${unknown}, the model's tables have ${config.embeddingSize} rows`,
    );
  warnUnknown(ids, tokenizer, source);
  return Int32Array.from(ids);
}

/** Ids of a text. @param what the text is, for errors @throws DUltraError NO_TOKENIZER, BAD_CHECKPOINT */
export function encodeText(
  text: string,
  what: string,
  vocabulary: Vocabulary,
  { splitSpecialTokens, isPart, atMost }: EncodePromptOptions = {},
): Int32Array {
  const tokenizer = tokenizerFor(`a text ${what}`, vocabulary);
  const ids = tokenizer.encode(text, { splitSpecialTokens, atMost, ...(isPart && { addSpecialTokens: false }) });
  return inTables(ids, tokenizer, vocabulary);
}

/** The ids that the model sees for a prompt. @throws TypeError, RangeError; DUltraError NO_TOKENIZER, BAD_CHECKPOINT. */
export function encodePrompt(
  prompt: PlainPrompt,
  vocabulary: Vocabulary,
  options: EncodePromptOptions = {},
): Int32Array {
  if (typeof prompt === 'string') return encodeText(prompt, 'prompt', vocabulary, options);
  if (Array.isArray(prompt)) {
    const tokenizer = tokenizerFor('chat messages', vocabulary);
    for (const message of prompt)
      if (typeof message?.role !== 'string' || typeof message?.content !== 'string')
        throw optionError(
          TypeError,
          'prompt',
          'expected messages of the form { role, content }, both strings; token ids go in { promptIds }',
        );
    return inTables(tokenizer.encodeMessages(prompt, options), tokenizer, vocabulary);
  }
  if (typeof prompt === 'object' && prompt !== null && 'promptIds' in prompt) {
    checkKeys('prompt', prompt, ['promptIds']);
    return checkIds('promptIds', prompt.promptIds, vocabulary.config.embeddingSize);
  }
  throw optionError(
    TypeError,
    'prompt',
    'expected a string, an array of messages, { promptIds }, { prompt, suffix }, { prompt, form } or { template }',
  );
}

/** @throws RangeError where a prompt leaves less than `maxTokens` tokens of room in the model's longest row */
export function checkRoom(promptTokens: number, maxTokens: number, maxSequenceLength: number): void {
  const length = promptTokens + maxTokens;
  if (length > maxSequenceLength)
    throw optionError(
      RangeError,
      'prompt',
      `${promptTokens} tokens and maxTokens ${maxTokens} make ${length}, more than the model's maximum of ${maxSequenceLength}`,
    );
}

/** Text of ids, special tokens skipped; "" without a tokenizer. */
export const decodeIds = (ids: ArrayLike<number>, { tokenizer }: Vocabulary): string =>
  tokenizer ? tokenizer.decode(ids, { skipSpecialTokens: true }) : '';
