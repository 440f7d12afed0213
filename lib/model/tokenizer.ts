// A checkpoint's tokenizer.json and chat template.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { Template } from '@huggingface/jinja';
import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers';
import { DUltraError } from '../errors';
import type { ChatMessage } from '../types';

interface TokenizerConfig {
  chat_template?: string | { name: string; template: string }[];
  [key: string]: unknown;
}

/** The text of a special token in tokenizer_config.json: a string, or an object that holds it. */
function specialToken(config: TokenizerConfig, name: string): string | null {
  const value = config[name] as string | { content?: unknown } | null | undefined;
  if (typeof value === 'string') return value;
  return typeof value === 'object' && value !== null && typeof value.content === 'string' ? value.content : null;
}

/** Text to ids and back, and chat messages to text. */
export class Tokenizer {
  readonly #tokenizer: HubTokenizer;
  readonly #config: TokenizerConfig;
  readonly #chatTemplate: string | null;
  readonly #source: string;
  /** Number of ids, added tokens included. */
  readonly size: number;
  /** Text of the mask token, null where tokenizer_config.json names none. */
  readonly maskToken: string | null;
  /** Text of the end-of-sequence token, null where tokenizer_config.json names none. */
  readonly eosToken: string | null;

  /** @param tokenizer parsed tokenizer.json @param config parsed tokenizer_config.json @param source named in errors */
  constructor(tokenizer: object, config: TokenizerConfig, chatTemplate: string | null, source: string) {
    this.#tokenizer = new HubTokenizer(tokenizer, config);
    this.#config = config;
    this.#chatTemplate = chatTemplate;
    this.#source = source;
    let last = -1;
    for (const id of this.#tokenizer.get_vocab(true).values()) if (id > last) last = id;
    this.size = last + 1;
    this.maskToken = specialToken(config, 'mask_token');
    this.eosToken = specialToken(config, 'eos_token');
  }

  /** Ids of a text; special tokens written in the text are recognised. `addSpecialTokens` (default true) adds what the tokenizer adds by itself. */
  encode(text: string, { addSpecialTokens = true }: { addSpecialTokens?: boolean } = {}): number[] {
    return this.#tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids;
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
  applyChatTemplate(messages: readonly ChatMessage[], { addGenerationPrompt = true }: { addGenerationPrompt?: boolean } = {}): string {
    if (this.#chatTemplate === null)
      throw new DUltraError('NO_TOKENIZER', `${this.#source} has no chat template; pass the prompt as text instead of messages`);
    const named = Object.fromEntries(
      ['bos_token', 'eos_token', 'pad_token', 'unk_token'].map((name) => [name, specialToken(this.#config, name)]),
    );
    try {
      return new Template(this.#chatTemplate).render({ ...named, messages, add_generation_prompt: addGenerationPrompt });
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new DUltraError('BAD_CHECKPOINT', `${this.#source}: the chat template does not render: ${reason}`, { cause });
    }
  }
}

async function readJson(file: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(file, 'utf8'));
  } catch (cause) {
    throw new DUltraError('BAD_CHECKPOINT', `${file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

function defaultTemplate(config: TokenizerConfig): string | null {
  const { chat_template: template } = config;
  if (typeof template === 'string') return template;
  if (!Array.isArray(template)) return null;
  return (template.find(({ name }) => name === 'default') ?? template[0])?.template ?? null;
}

/** The tokenizer of a checkpoint folder; null where it has no tokenizer.json. @throws DUltraError BAD_CHECKPOINT */
export async function loadTokenizer(folder: string): Promise<Tokenizer | null> {
  const file = path.join(folder, 'tokenizer.json');
  if (!existsSync(file)) return null;
  const configFile = path.join(folder, 'tokenizer_config.json');
  const templateFile = path.join(folder, 'chat_template.jinja');
  const tokenizer = await readJson(file);
  const config = existsSync(configFile) ? await readJson(configFile) : {};
  const template = existsSync(templateFile) ? await readFile(templateFile, 'utf8') : defaultTemplate(config as TokenizerConfig);
  try {
    return new Tokenizer(tokenizer as object, config as TokenizerConfig, template, folder);
  } catch (cause) {
    throw new DUltraError('BAD_CHECKPOINT', `${file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}
