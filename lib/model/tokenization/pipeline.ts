// A tokenizer.json as the functions that it describes: text to ids and back, as the tokenizers library has them.
import { z } from 'zod';
import { show } from '../../text';
import { AddedTokens, readAddedToken, type Section } from './added-tokens';
import { type BytesRule, bytesRule } from './bytes-rule';
import { buildDecoder, type Decoder } from './decoders';
import { buildModel, type Model } from './models';
import { buildNormalizer } from './normalizers';
import { buildPostProcessor, type PostProcessor } from './post-processors';
import { buildPreTokenizer, type PreTokenizer } from './pre-tokenizers';
import { type PrefixRule, prefixRule, withoutLastBytes, withoutUnfinished } from './stable-prefix';

const nothing = (reason: string) => z.null(reason).optional();
const fileSchema = z.strictObject({
  version: z.literal('1.0').optional(),
  truncation: nothing('a tokenizer that cuts texts is not supported'),
  padding: nothing('a tokenizer that pads texts is not supported'),
  added_tokens: z.array(z.unknown()).optional(),
  normalizer: z.unknown().optional(),
  pre_tokenizer: z.unknown().optional(),
  post_processor: z.unknown().optional(),
  decoder: z.unknown().optional(),
  model: z.looseObject({}),
});

const isNone = (json: unknown): json is null | undefined => json === null || json === undefined;

/** Normalizers before which a piece may be said to begin where the text does. */
const KEEPS_START = /^(NF(C|D|KC|KD)|Lowercase)$/;
/**
 * `prepend_scheme: first` asks where a piece stands in the text before it was normalized. That is known only where the
 * normalizer keeps the start, and nothing cuts before.
 */
function checkFirst(normalizer: unknown, preTokenizer: unknown): void {
  const isFirst = (part: unknown) => (part as { prepend_scheme?: unknown } | null)?.prepend_scheme === 'first';
  const steps = (preTokenizer as { pretokenizers?: unknown[] } | null)?.pretokenizers ?? [preTokenizer];
  if (!steps.some(isFirst)) return;
  if (!isFirst(steps[0]) || (!isNone(normalizer) && !KEEPS_START.test(String((normalizer as { type?: unknown }).type))))
    throw new Error(
      'pre_tokenizer: prepend_scheme "first" behind another normalizer or pre-tokenizer is not supported',
    );
}

export class Pipeline {
  readonly model: Model;
  readonly added: AddedTokens;
  readonly #preTokenizer: PreTokenizer | null;
  readonly #postProcessor: PostProcessor | null;
  readonly #decoder: Decoder | null;
  readonly #prefixRule: PrefixRule;
  readonly #bytesRule: BytesRule | null;
  readonly #tokens = new Map<number, string>();

  /** @param json a parsed tokenizer.json @throws Error naming what is missing or not supported */
  constructor(json: object) {
    const parsed = fileSchema.safeParse(json);
    if (!parsed.success) {
      const [{ path, message }] = parsed.error.issues;
      throw new Error(`${path.join('.')}${path.length > 0 ? ': ' : ''}${message}`);
    }
    const { normalizer, pre_tokenizer, post_processor, decoder, model, added_tokens = [] } = parsed.data;
    checkFirst(normalizer, pre_tokenizer);
    const normalize = isNone(normalizer) ? null : buildNormalizer(normalizer);
    // Files of old versions do not name the kind of the model.
    this.model = buildModel('type' in model ? model : { type: 'merges' in model ? 'BPE' : undefined, ...model });
    this.#preTokenizer = isNone(pre_tokenizer) ? null : buildPreTokenizer(pre_tokenizer);
    this.#postProcessor = isNone(post_processor) ? null : buildPostProcessor(post_processor);
    this.#decoder = isNone(decoder) ? null : buildDecoder(decoder);
    this.#prefixRule = prefixRule(decoder);
    this.#bytesRule = bytesRule(decoder);
    for (const [token, id] of this.model.vocabulary) this.#tokens.set(id, token);
    this.added = new AddedTokens(this.model, normalize);
    const tokens = added_tokens.map((token, i) => readAddedToken(token, `added_tokens[${i}]`));
    this.added.add(tokens);
    tokens.forEach(({ content }, i) => {
      const { id } = added_tokens[i] as { id: number };
      const given = this.added.idOf(content);
      // The library numbers added tokens itself.
      if (given !== id && content !== '')
        throw new Error(`added_tokens: ${show(content)} has id ${id}, where ${given} is the next`);
    });
  }

  /** Ids of a text. @param clean applied to what is left to the model @throws Error where a token is missing */
  encode(text: string, addSpecialTokens: boolean, splitSpecial: boolean, clean?: (text: string) => string): number[] {
    // Half a pair of surrogates is no character.
    const whole = text.replace(/\p{Surrogate}/gu, '\ufffd');
    const ids = this.added.split(whole, splitSpecial).flatMap((section) => this.#idsOf(section, clean));
    return addSpecialTokens && this.#postProcessor ? this.#postProcessor(ids) : ids;
  }
  #idsOf(section: Section, clean: ((text: string) => string) | undefined): number[] {
    if ('id' in section) return [section.id];
    const piece = clean ? { ...section, text: clean(section.text) } : section;
    const pieces = this.#preTokenizer ? this.#preTokenizer(piece) : [piece];
    return pieces.flatMap(({ text }) => (text === '' ? [] : this.model.encode(text)));
  }

  /** Text of ids; those without a token are left out. */
  decode(ids: readonly number[], skipSpecialTokens: boolean): string {
    return this.#textOf(this.#tokensOf(ids, skipSpecialTokens));
  }

  /** The beginning of the text of ids that stays, whatever ids follow. */
  decodePrefix(ids: readonly number[], skipSpecialTokens: boolean): string {
    const { keepsPrefixes, joinsBytes } = this.#prefixRule;
    if (!keepsPrefixes) return '';
    const tokens = this.#tokensOf(ids, skipSpecialTokens);
    return withoutUnfinished(this.#textOf(joinsBytes ? withoutLastBytes(tokens) : tokens));
  }

  #tokensOf(ids: readonly number[], skipSpecialTokens: boolean): string[] {
    const tokens: string[] = [];
    for (const id of ids) {
      const token = this.added.textOf(id) ?? this.#tokens.get(id);
      if (token === undefined || (skipSpecialTokens && this.added.isSpecial(token))) continue;
      tokens.push(token);
    }
    return tokens;
  }
  #textOf(tokens: string[]): string {
    return this.#decoder ? this.#decoder(tokens).join('') : tokens.join(' ');
  }

  /** Bytes of the tokens that are not added; null where they depend on the tokens around them. */
  tokenBytes(): Map<number, Uint8Array> | null {
    const rule = this.#bytesRule;
    if (!rule) return null;
    const result = new Map<number, Uint8Array>();
    for (const [id, token] of this.#tokens)
      if (this.added.contentOf(id) === undefined && id !== this.model.unknownId) result.set(id, rule(token));
    return result;
  }

  /** The token of an id, null where there is none. */
  tokenOf(id: number): string | null {
    return this.added.contentOf(id) ?? this.#tokens.get(id) ?? null;
  }
  /** The highest id, -1 where there is none. */
  get lastId(): number {
    let last = -1;
    for (const id of this.#tokens.keys()) if (id > last) last = id;
    for (const id of this.added.idList) if (id > last) last = id;
    return last;
  }
}
