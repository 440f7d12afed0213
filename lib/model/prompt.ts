// Prompts as the ids that a model sees.

import { DUltraError, optionError } from '../errors';
import { checkKeys } from '../options';
import { show } from '../text';
import type { Prompt } from '../types';
import type { Tokenizer } from './tokenizer';

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

/** Ids of a text. @param what the text is, for errors @throws DUltraError NO_TOKENIZER */
export function encodeText(text: string, what: string, vocabulary: Vocabulary): Int32Array {
  return Int32Array.from(tokenizerFor(`a text ${what}`, vocabulary).encode(text));
}

/** The ids that the model sees for a prompt. @throws TypeError, RangeError; DUltraError NO_TOKENIZER. */
export function encodePrompt(prompt: Exclude<Prompt, { template: unknown }>, vocabulary: Vocabulary): Int32Array {
  if (typeof prompt === 'string') return encodeText(prompt, 'prompt', vocabulary);
  if (Array.isArray(prompt)) {
    const tokenizer = tokenizerFor('chat messages', vocabulary);
    for (const message of prompt)
      if (typeof message?.role !== 'string' || typeof message?.content !== 'string')
        throw optionError(
          TypeError,
          'prompt',
          'expected messages of the form { role, content }, both strings; token ids go in { promptIds }',
        );
    const text = tokenizer.applyChatTemplate(prompt, { addGenerationPrompt: true });
    return Int32Array.from(tokenizer.encode(text, { addSpecialTokens: false }));
  }
  if (typeof prompt === 'object' && prompt !== null && 'promptIds' in prompt) {
    checkKeys('prompt', prompt, ['promptIds']);
    return checkIds('promptIds', prompt.promptIds, vocabulary.config.embeddingSize);
  }
  throw optionError(TypeError, 'prompt', 'expected a string, an array of messages, { promptIds } or { template }');
}

/** @throws RangeError where a prompt leaves less than `genLength` tokens of room in the model's longest row */
export function checkRoom(promptTokens: number, genLength: number, maxSequenceLength: number): void {
  const length = promptTokens + genLength;
  if (length > maxSequenceLength)
    throw optionError(
      RangeError,
      'prompt',
      `${promptTokens} tokens and genLength ${genLength} make ${length}, more than the model's maximum of ${maxSequenceLength}`,
    );
}

/** Text of ids, special tokens skipped; "" without a tokenizer. */
export const decodeIds = (ids: ArrayLike<number>, { tokenizer }: Vocabulary): string =>
  tokenizer ? tokenizer.decode(ids, { skipSpecialTokens: true }) : '';
