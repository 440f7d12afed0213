// A checkpoint's tokenizer and chat template.
import { DUltraError } from '../errors';
import { isIndex } from '../files/json';
import { shownSource } from '../package';
import { reasonOf, show } from '../text';
import type { ChatMessage } from '../types';
import { render } from './chat-template/render';
import { applyConfig, type TokenizerConfig, type TokenizerSettings } from './tokenization/config';
import { cleanUp } from './tokenization/decoders';
import { longestToken } from './tokenization/longest-token';
import { Pipeline } from './tokenization/pipeline';
import { withoutOpenSpace } from './tokenization/stable-prefix';

/**
 * Checks the ids that a tokenizer.json gives to tokens. @param limit what they must be below
 * @throws Error naming the token
 */
export function checkTokenIds(tokenizer: object, limit: number): void {
  const { model, added_tokens: added } = tokenizer as { model?: { vocab?: unknown } | null; added_tokens?: unknown };
  const check = (token: unknown, id: unknown) => {
    if (!isIndex(id)) throw new Error(`token ${show(token)}: expected a non-negative integer id, got ${show(id)}`);
    if (id >= limit) throw new Error(`token ${show(token)} has id ${id}, the model's tables have ${limit} rows`);
  };
  const vocabulary = model?.vocab;
  if (typeof vocabulary === 'object' && vocabulary !== null && !Array.isArray(vocabulary))
    for (const [token, id] of Object.entries(vocabulary)) check(token, id);
  if (Array.isArray(added)) for (const token of added) check(token?.content, token?.id);
}

/** Text of a chat template, null for none, or why the ones that are there cannot be used. */
export type ChatTemplate = string | Error | null;

/** Options of {@link Tokenizer.encode}. */
export interface EncodeOptions {
  /** Adds what the tokenizer adds by itself, such as a token for the start. Default true. */
  addSpecialTokens?: boolean | undefined;
  /**
   * Special tokens written in the text are text like any other. Default: `split_special_tokens` of
   * tokenizer_config.json, which is false where it is not set: they are recognised, as in transformers.
   */
  splitSpecialTokens?: boolean | undefined;
  /**
   * Texts that surely have more tokens are refused with a RangeError before they are encoded, which takes a second or two
   * for each megabyte. Default: none is.
   */
  atMost?: number | undefined;
}

/** A text that has more tokens than were asked for. */
export class TextTooLong extends RangeError {
  /** @param tokens that it has at least */
  constructor(readonly tokens: number) {
    super(`prompt: the text has at least ${tokens} tokens`);
    this.name = 'TextTooLong';
  }
}

/** Text to ids and back, and chat messages to text. */
export class Tokenizer {
  readonly #pipeline: Pipeline;
  readonly #settings: TokenizerSettings;
  readonly #chatTemplate: ChatTemplate;
  readonly #source: string;
  readonly #longest: number | null;
  /** Number of ids, added tokens included. */
  readonly size: number;
  /** Text of the model's mask token, null where the tokenizer has no such id. */
  readonly maskToken: string | null;
  /** Id of the token that stands for text that the vocabulary lacks; null where it lacks none. */
  readonly unknownId: number | null;
  /** Text of the end-of-sequence token, null where tokenizer_config.json names none. */
  readonly eosToken: string | null;

  /**
   * @param tokenizer parsed tokenizer.json @param config parsed tokenizer_config.json @param maskTokenId the model's
   * @param chatTemplate null for none; an Error says why the one that is there cannot be used
   * @param source named in errors @throws Error naming a component, an option or a key that is not supported
   */
  constructor(
    tokenizer: object,
    config: TokenizerConfig,
    chatTemplate: ChatTemplate,
    maskTokenId: number,
    source: string,
  ) {
    checkTokenIds(tokenizer, Infinity);
    this.#pipeline = new Pipeline(tokenizer);
    this.#settings = applyConfig(this.#pipeline, config, tokenizer);
    this.#longest = longestToken(tokenizer, this.#pipeline.added.texts);
    this.#chatTemplate = chatTemplate;
    this.#source = source;
    this.size = 1 + this.#pipeline.lastId;
    this.maskToken = this.#pipeline.tokenOf(maskTokenId);
    this.unknownId = this.#pipeline.model.unknownId;
    this.eosToken = this.#settings.named.eos_token ?? null;
  }

  /** Ids of a text. @throws DUltraError BAD_CHECKPOINT where the vocabulary has no token for it */
  encode(text: string, options: EncodeOptions = {}): number[] {
    return this.#encode(text, options);
  }
  /** @param clean applied to what is left of the text without special tokens */
  #encode(text: string, options: EncodeOptions, clean?: (text: string) => string): number[] {
    const { addSpecialTokens = true, splitSpecialTokens = this.#settings.splitsSpecial, atMost } = options;
    if (atMost !== undefined) {
      const least = this.#leastTokens(clean ? clean(text) : text);
      if (least > atMost) throw new TextTooLong(least);
    }
    try {
      return this.#pipeline.encode(text, addSpecialTokens, splitSpecialTokens, clean);
    } catch (cause) {
      throw new DUltraError('BAD_CHECKPOINT', `${this.#source}: ${reasonOf(cause)}`, { cause });
    }
  }

  /** Tokens that a text has at least, as far as its length says. */
  #leastTokens(text: string): number {
    return this.#longest === null ? 0 : Math.ceil(Buffer.byteLength(text) / this.#longest);
  }

  /** Text of ids; ids without a token are left out. `skipSpecialTokens` (default false) leaves special tokens out. */
  decode(
    ids: ArrayLike<number>,
    { skipSpecialTokens = false }: { skipSpecialTokens?: boolean | undefined } = {},
  ): string {
    const text = this.#pipeline.decode(Array.from(ids), skipSpecialTokens);
    return this.#settings.cleansUp ? cleanUp(text, false) : text;
  }

  /**
   * The beginning of the text of ids that stays as it is whatever ids follow: without a character that misses bytes, and
   * "" where the tokenizer's decoder may change any of it. A stream writes what it grows by. Options as in `decode`.
   */
  decodePrefix(
    ids: ArrayLike<number>,
    { skipSpecialTokens = false }: { skipSpecialTokens?: boolean | undefined } = {},
  ): string {
    const text = this.#pipeline.decodePrefix(Array.from(ids), skipSpecialTokens);
    return this.#settings.cleansUp ? cleanUp(withoutOpenSpace(text), false) : text;
  }

  /** What tokens stand for, without special and added ones; null where that depends on the tokens around them. */
  tokenBytes(): Map<number, Uint8Array> | null {
    return this.#pipeline.tokenBytes();
  }

  /** The id of a token's text, or null. */
  tokenId(token: string): number | null {
    return this.#pipeline.added.idOf(token) ?? null;
  }
  /** The text of an id's token, or null. */
  idToken(id: number): string | null {
    return this.#pipeline.tokenOf(id);
  }

  /** Text of a special token by its name in tokenizer_config.json, such as "mask_token", or null. */
  specialToken(name: string): string | null {
    return this.#settings.named[name] ?? null;
  }

  /** Whether the checkpoint has a chat template. */
  get hasChatTemplate(): boolean {
    return this.#chatTemplate !== null;
  }

  /**
   * Messages as the text that the model was trained on: what transformers renders, without tools and documents.
   * @param addGenerationPrompt ends with the header of the assistant's turn. Default true.
   * @throws DUltraError NO_TOKENIZER where there is no chat template, BAD_CHECKPOINT where it does not render, or does
   * what is not supported.
   */
  applyChatTemplate(
    messages: readonly ChatMessage[],
    { addGenerationPrompt = true }: { addGenerationPrompt?: boolean | undefined } = {},
  ): string {
    const template = this.#chatTemplate;
    if (template === null)
      throw new DUltraError(
        'NO_TOKENIZER',
        `${shownSource(this.#source)} has no chat template; pass the prompt as text instead of messages`,
      );
    try {
      if (template instanceof Error) throw template;
      const { named, additional } = this.#settings;
      return render(template, {
        ...named,
        ...(additional.length > 0 ? { additional_special_tokens: additional } : {}),
        messages,
        tools: null,
        documents: null,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${this.#source}: the chat template does not render: ${reasonOf(cause)}`,
        { cause },
      );
    }
  }

  /**
   * Ids of messages, with the header of the assistant's turn at the end. With `splitSpecialTokens` special tokens in
   * the messages are text, and those of the template are not.
   * @throws DUltraError as {@link Tokenizer.applyChatTemplate} and {@link Tokenizer.encode}
   */
  encodeMessages(
    messages: readonly ChatMessage[],
    { splitSpecialTokens, atMost }: Omit<EncodeOptions, 'addSpecialTokens'> = {},
  ): number[] {
    const options = { addSpecialTokens: false, splitSpecialTokens, atMost };
    if (splitSpecialTokens !== true) return this.#encode(this.applyChatTemplate(messages), options);
    // A character that no text has, put into the special tokens of the messages, hides them from the tokenizer.
    const all = JSON.stringify(messages);
    const marks = Array.from({ length: 32 }, (_mark, i) => String.fromCharCode(0xfdd0 + i));
    const mark = marks.find((character) => !all.includes(character));
    const special = Array.from(this.#pipeline.added.special).filter((token) => token.length > 1);
    if (mark === undefined)
      throw new DUltraError('BAD_CHECKPOINT', `${this.#source}: messages with all of U+FDD0 to U+FDEF`);
    const hide = (text: string) =>
      special.reduce((result, token) => result.replaceAll(token, () => token[0] + mark + token.slice(1)), text);
    const hidden = messages.map((message) => ({
      ...message,
      content: hide(message.content),
      role: hide(message.role),
    }));
    const text = this.applyChatTemplate(hidden);
    return this.#encode(text, { ...options, splitSpecialTokens: false }, (piece) => piece.replaceAll(mark, ''));
  }
}
