// A checkpoint's tokenizer.json and chat template.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { Template } from '@huggingface/jinja';
import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers';
import { DUltraError } from '../errors';
import { badFile, isIndex, readJsonObject, readTextFile } from '../files/json';
import { reasonOf, show } from '../text';
import type { ChatMessage } from '../types';

interface TokenizerConfig {
  chat_template?: string | { name: string; template: string }[];
  [key: string]: unknown;
}

/** The text of a special token in tokenizer_config.json: a string, or an object with `content`. */
export function specialToken(config: Readonly<Record<string, unknown>>, name: string): string | null {
  const value = config[name] as string | { content?: unknown } | null | undefined;
  if (typeof value === 'string') return value;
  return typeof value === 'object' && value !== null && typeof value.content === 'string' ? value.content : null;
}

/**
 * Checks the ids that a tokenizer.json gives to tokens. @param limit what they must be below
 * @returns the highest id, -1 where there is none @throws Error naming the token
 */
function checkIds(tokenizer: object, limit: number): number {
  const { model, added_tokens: added } = tokenizer as { model?: { vocab?: unknown } | null; added_tokens?: unknown };
  let last = -1;
  const check = (token: unknown, id: unknown) => {
    if (!isIndex(id)) throw new Error(`token ${show(token)}: expected a non-negative integer id, got ${show(id)}`);
    if (id >= limit) throw new Error(`token ${show(token)} has id ${id}, the model's tables have ${limit} rows`);
    if (id > last) last = id;
  };
  const vocabulary = model?.vocab;
  // Unigram models list [token, score] pairs, others map tokens to ids.
  if (Array.isArray(vocabulary)) check('', Math.max(0, vocabulary.length - 1));
  else if (typeof vocabulary === 'object' && vocabulary !== null)
    for (const [token, id] of Object.entries(vocabulary)) check(token, id);
  if (Array.isArray(added)) for (const token of added) check(token?.content, token?.id);
  return last;
}

/** Text to ids and back, and chat messages to text. */
export class Tokenizer {
  readonly #tokenizer: HubTokenizer;
  readonly #config: TokenizerConfig;
  readonly #chatTemplate: string | null;
  readonly #source: string;
  /** Number of ids, added tokens included. */
  readonly size: number;
  /** Text of the model's mask token, null where the tokenizer has no such id. */
  readonly maskToken: string | null;
  /** Text of the end-of-sequence token, null where tokenizer_config.json names none. */
  readonly eosToken: string | null;

  /**
   * @param tokenizer parsed tokenizer.json @param config parsed tokenizer_config.json @param maskTokenId the model's
   * @param source named in errors
   */
  constructor(
    tokenizer: object,
    config: TokenizerConfig,
    chatTemplate: string | null,
    maskTokenId: number,
    source: string,
  ) {
    const { model } = tokenizer as { model?: { unk_token?: unknown } };
    // The library reads a word-level model's unknown token from the config only.
    this.#tokenizer = new HubTokenizer(tokenizer, {
      ...(model?.unk_token ? { unk_token: model.unk_token } : {}),
      ...config,
    });
    this.#config = config;
    this.#chatTemplate = chatTemplate;
    this.#source = source;
    this.size = 1 + checkIds(tokenizer, Infinity);
    this.maskToken = this.#tokenizer.id_to_token(maskTokenId) ?? null;
    this.eosToken = specialToken(config, 'eos_token');
  }

  /**
   * Ids of a text; special tokens written in the text are recognised. `addSpecialTokens` (default true) adds what the
   * tokenizer adds by itself.
   */
  encode(text: string, { addSpecialTokens = true }: { addSpecialTokens?: boolean } = {}): number[] {
    const { ids, tokens } = this.#tokenizer.encode(text, { add_special_tokens: addSpecialTokens });
    // A vocabulary without all bytes and without an unknown token has no ids for some texts.
    const unknown = ids.findIndex((id: number | undefined) => !Number.isInteger(id));
    if (unknown >= 0)
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${this.#source}: the tokenizer has no token for ${show(tokens[unknown])}`,
      );
    return ids;
  }

  /** Text of ids. `skipSpecialTokens` (default false) leaves special tokens out. */
  decode(ids: ArrayLike<number>, { skipSpecialTokens = false }: { skipSpecialTokens?: boolean } = {}): string {
    const list = Array.from(ids);
    return list.length === 0 ? '' : this.#tokenizer.decode(list, { skip_special_tokens: skipSpecialTokens });
  }

  /** The id of a token's text, or null. */
  tokenId(token: string): number | null {
    return this.#tokenizer.token_to_id(token) ?? null;
  }

  /** Whether the checkpoint has a chat template. */
  get hasChatTemplate(): boolean {
    return this.#chatTemplate !== null;
  }

  /**
   * Messages as the text that the model was trained on.
   * @param addGenerationPrompt ends with the header of the assistant's turn. Default true.
   * @throws DUltraError NO_TOKENIZER where there is no chat template, BAD_CHECKPOINT where it does not render.
   */
  applyChatTemplate(
    messages: readonly ChatMessage[],
    { addGenerationPrompt = true }: { addGenerationPrompt?: boolean } = {},
  ): string {
    if (this.#chatTemplate === null)
      throw new DUltraError(
        'NO_TOKENIZER',
        `${this.#source} has no chat template; pass the prompt as text instead of messages`,
      );
    const named = Object.fromEntries(
      ['bos_token', 'eos_token', 'pad_token', 'unk_token'].map((name) => [name, specialToken(this.#config, name)]),
    );
    try {
      return new Template(this.#chatTemplate).render({
        ...named,
        messages,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${this.#source}: the chat template does not render: ${reasonOf(cause)}`,
        {
          cause,
        },
      );
    }
  }
}

function defaultTemplate(config: TokenizerConfig): string | null {
  const { chat_template: template } = config;
  if (typeof template === 'string') return template;
  if (!Array.isArray(template)) return null;
  const found = template.find((entry) => entry?.name === 'default') ?? template[0];
  return typeof found?.template === 'string' ? found.template : null;
}

/**
 * The tokenizer of a checkpoint folder; null where it has no tokenizer.json. @param limit rows of the model's tables
 * @throws DUltraError BAD_CHECKPOINT
 */
export async function loadTokenizer(folder: string, maskTokenId: number, limit: number): Promise<Tokenizer | null> {
  const file = path.join(folder, 'tokenizer.json');
  if (!existsSync(file)) return null;
  const configFile = path.join(folder, 'tokenizer_config.json');
  const templateFile = path.join(folder, 'chat_template.jinja');
  const tokenizer = await readJsonObject(file);
  const config: TokenizerConfig = existsSync(configFile) ? await readJsonObject(configFile) : {};
  const template = existsSync(templateFile) ? await readTextFile(templateFile) : defaultTemplate(config);
  try {
    // Before the library runs, which allocates lists as long as the highest id.
    checkIds(tokenizer, limit);
    return new Tokenizer(tokenizer, config, template, maskTokenId, folder);
  } catch (cause) {
    throw badFile(file, reasonOf(cause), cause);
  }
}
