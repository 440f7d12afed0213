// Added tokens: found in a text as they stand, before anything is split.
import { z } from 'zod';
import { show } from '../../text';
import type { Model } from './models';
import type { Normalizer } from './normalizers';
import { escapeText } from './pattern';
import { WORD } from './pre-tokenizers';
import { spaceEnd, spaceStart } from './space';

export interface AddedToken {
  content: string;
  /** Found only where no word goes on before or behind it. */
  singleWord: boolean;
  /** Takes the white space before it. */
  lstrip: boolean;
  /** Takes the white space behind it. */
  rstrip: boolean;
  /** Found in the normalized text. */
  normalized: boolean;
  special: boolean;
}
/** A part of a text: what an added token stands for, or what is left to the model. */
export type Section = { id: number } | { text: string; isStart: boolean };

const flagsSchema = {
  content: z.string(),
  single_word: z.boolean().default(false),
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  normalized: z.boolean().optional(),
  special: z.boolean().default(false),
};
const fileSchema = z.strictObject({ id: z.number(), ...flagsSchema });
const configSchema = z.strictObject({ __type: z.string().optional(), ...flagsSchema });

function read(schema: z.ZodType<z.infer<typeof configSchema>>, json: unknown, path: string): AddedToken {
  const parsed = schema.safeParse(json);
  if (!parsed.success) {
    const [{ path: keys, message }] = parsed.error.issues;
    throw new Error(`${[path, ...keys].join('.')}: ${message}`);
  }
  const { content, single_word: singleWord, lstrip, rstrip, special, normalized = !special } = parsed.data;
  return { content, singleWord, lstrip, rstrip, normalized, special };
}
/** An entry of `added_tokens` in tokenizer.json. */
export const readAddedToken = (json: unknown, path: string): AddedToken => read(fileSchema as never, json, path);
/** An entry of `added_tokens_decoder` in tokenizer_config.json, or a special token that is written as an object. */
export const readConfigToken = (json: unknown, path: string): AddedToken => read(configSchema as never, json, path);

const ENDS_WITH_WORD = new RegExp(`${WORD}$`, 'u');
const STARTS_WITH_WORD = new RegExp(`^${WORD}`, 'u');

/** Tokens by the texts that they are found as, and the pattern that finds the longest at each place. */
interface Finder {
  pattern: RegExp;
  tokens: ReadonlyMap<string, number>;
}

export class AddedTokens {
  readonly #model: Model;
  readonly #normalize: Normalizer | null;
  readonly #ids = new Map<string, number>();
  readonly #byId = new Map<number, AddedToken>();
  /** The texts that tokens are found as, by id. */
  readonly #foundAs = new Map<number, string>();
  readonly #special = new Set<string>();
  #finders: { raw: Finder | null; normalized: Finder | null } | null = null;

  constructor(model: Model, normalize: Normalizer | null) {
    this.#model = model;
    this.#normalize = normalize;
  }

  /** Adds tokens. Those that the vocabulary lacks get the next free ids, as in the tokenizers library. */
  add(tokens: readonly AddedToken[]): void {
    const size = this.#model.vocabulary.size;
    let next = size;
    for (const id of this.#byId.keys()) if (id >= next) next = id + 1;
    for (const token of tokens) {
      if (token.content === '') continue;
      const id = this.idOf(token.content) ?? next++;
      this.#ids.set(token.content, id);
      this.#byId.set(id, token);
      this.#foundAs.set(id, token.normalized && this.#normalize ? this.#normalize(token.content) : token.content);
      if (token.special) this.#special.add(token.content);
    }
    this.#finders = null;
  }
  idOf(content: string): number | undefined {
    return this.#ids.get(content) ?? this.#model.vocabulary.get(content);
  }
  /** The token that was added under this text. */
  get(content: string): AddedToken | undefined {
    const id = this.#ids.get(content);
    return id === undefined ? undefined : this.#byId.get(id);
  }
  /** Ids of added tokens. */
  get idList(): number[] {
    return Array.from(this.#byId.keys());
  }
  /** The texts that tokens are found as; null where some take the white space around them. */
  get texts(): string[] | null {
    for (const { lstrip, rstrip } of this.#byId.values()) if (lstrip || rstrip) return null;
    return Array.from(this.#foundAs.values());
  }
  /** The text of an added token's id as tokenizer.json writes it, undefined for other ids. */
  contentOf(id: number): string | undefined {
    return this.#byId.get(id)?.content;
  }
  /** The text of an added token's id as it is found in a text, which decoders get. */
  textOf(id: number): string | undefined {
    return this.#foundAs.get(id);
  }
  isSpecial(content: string): boolean {
    return this.#special.has(content);
  }
  get special(): ReadonlySet<string> {
    return this.#special;
  }
  #finder(normalized: boolean): Finder | null {
    const tokens = new Map<string, number>();
    for (const [id, token] of this.#byId) {
      if (token.normalized !== normalized) continue;
      const text = this.#foundAs.get(id)!;
      if (tokens.has(text) || text === '')
        throw new Error(`added_tokens: ${show(token.content)} is found as ${show(text)}, as another is or nothing`);
      tokens.set(text, id);
    }
    if (tokens.size === 0) return null;
    // The first alternative that matches wins: the longest has to stand first.
    const texts = Array.from(tokens.keys()).sort((a, b) => b.length - a.length);
    return { pattern: new RegExp(texts.map(escapeText).join('|'), 'gu'), tokens };
  }
  #prepared(): { raw: Finder | null; normalized: Finder | null } {
    this.#finders ??= { raw: this.#finder(false), normalized: this.#finder(true) };
    return this.#finders;
  }
  /** @throws Error where two tokens are found as the same text */
  check(): void {
    this.#prepared();
  }

  /** @param splitSpecial special tokens in the text are not found */
  #find(text: string, isStart: boolean, finder: Finder | null, splitSpecial: boolean): Section[] {
    const sections: Section[] = [];
    let at = 0;
    const push = (end: number) => {
      if (at < end) sections.push({ text: text.slice(at, end), isStart: isStart && at === 0 });
    };
    for (const match of finder ? text.matchAll(finder.pattern) : []) {
      const id = finder!.tokens.get(match[0])!;
      const token = this.#byId.get(id)!;
      if (splitSpecial && this.#special.has(token.content)) continue;
      let start = match.index;
      let end = start + match[0].length;
      if (
        token.singleWord &&
        (ENDS_WITH_WORD.test(text.slice(Math.max(0, start - 2), start)) ||
          STARTS_WITH_WORD.test(text.slice(end, end + 2)))
      )
        continue;
      if (token.lstrip) start = spaceStart(text, start, at);
      if (token.rstrip) end = spaceEnd(text, end);
      push(start);
      sections.push({ id });
      at = end;
    }
    push(text.length);
    return sections;
  }

  /** A text's parts, in order; those without an id are normalized. */
  split(text: string, splitSpecial: boolean): Section[] {
    const { raw, normalized } = this.#prepared();
    return this.#find(text, true, raw, splitSpecial).flatMap((section) => {
      if ('id' in section) return [section];
      const plain = this.#normalize === null ? section.text : this.#normalize(section.text);
      return this.#find(plain, section.isStart, normalized, splitSpecial);
    });
  }
}
