// tokenizer_config.json beside tokenizer.json: what of it is read, what has to agree, and what is refused. Keys that
// are not named here have no effect in transformers where a tokenizer.json is there.
import { show } from '../../text';
import { type AddedToken, readConfigToken } from './added-tokens';
import type { Pipeline } from './pipeline';

/** A parsed tokenizer_config.json. */
export type TokenizerConfig = Readonly<Record<string, unknown>>;

/** What tokenizer_config.json says of a tokenizer. */
export interface TokenizerSettings {
  /** Named special tokens, such as bos_token, by their names. */
  named: Readonly<Record<string, string>>;
  /** Further special tokens. */
  additional: readonly string[];
  /** Takes spaces away before punctuation in decoded text. */
  cleansUp: boolean;
  /** Special tokens in a text are not found. */
  splitsSpecial: boolean;
}

const NAMED = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** A token that is written as a text or as an object. */
function tokenOf(value: unknown, key: string): AddedToken {
  if (isObject(value)) return { ...readConfigToken(value, `tokenizer_config.json: ${key}`), special: true };
  if (typeof value !== 'string') throw new Error(`tokenizer_config.json: ${key}: expected a token, got ${show(value)}`);
  return { content: value, singleWord: false, lstrip: false, rstrip: false, normalized: false, special: true };
}

/** Keys of tokenizer_config.json that name one token. */
function namedTokens(config: TokenizerConfig): Map<string, AddedToken> {
  const extra = config.extra_special_tokens;
  const named = new Map<string, AddedToken>();
  for (const key of NAMED)
    if (config[key] !== undefined && config[key] !== null) named.set(key, tokenOf(config[key], key));
  for (const [key, value] of Object.entries(config))
    if (key.endsWith('_token') && !named.has(key) && typeof value === 'string') named.set(key, tokenOf(value, key));
  if (isObject(extra)) for (const [key, value] of Object.entries(extra)) named.set(key, tokenOf(value, key));
  return named;
}
function additionalTokens(config: TokenizerConfig): AddedToken[] {
  const { extra_special_tokens: extra, additional_special_tokens: additional } = config;
  // The newer key goes before, where it lists any.
  const [key, list] =
    Array.isArray(extra) && extra.length > 0
      ? ['extra_special_tokens', extra]
      : ['additional_special_tokens', additional ?? []];
  if (!Array.isArray(list)) throw new Error(`tokenizer_config.json: ${key}: expected a list, got ${show(list)}`);
  return list.map((value) => tokenOf(value, String(key)));
}

const haveSameFlags = (a: AddedToken, b: AddedToken) =>
  a.singleWord === b.singleWord &&
  a.lstrip === b.lstrip &&
  a.rstrip === b.rstrip &&
  a.normalized === b.normalized &&
  a.special === b.special;

/** Adds the tokens of tokenizer_config.json that tokenizer.json lacks, or has with other flags, as transformers does. */
function addTokens(pipeline: Pipeline, config: TokenizerConfig, special: readonly AddedToken[]): void {
  const { added } = pipeline;
  const listed = config.added_tokens_decoder ?? {};
  if (!isObject(listed))
    throw new Error(`tokenizer_config.json: added_tokens_decoder: expected an object, got ${show(listed)}`);
  const tokens = Object.entries(listed).map(([id, json]) => ({
    id: Number(id),
    token: readConfigToken(json, `tokenizer_config.json: added_tokens_decoder.${id}`),
  }));
  tokens.sort((a, b) => a.id - b.id);
  added.add(
    tokens.flatMap(({ token }) => {
      const known = added.get(token.content);
      return known && haveSameFlags(known, token) ? [] : [token];
    }),
  );
  for (const { id, token } of tokens)
    if (token.content !== '' && added.idOf(token.content) !== id)
      throw new Error(
        `tokenizer_config.json: ${show(token.content)} has id ${id}, and ${added.idOf(token.content)} in tokenizer.json`,
      );
  const missing = special.filter(
    ({ content }, i) => !added.get(content) && special.findIndex((other) => other.content === content) === i,
  );
  added.add(missing);
  added.check();
}

/** Whether the post-processor puts a token at one end of an empty text. */
function adds(pipeline: Pipeline, token: AddedToken | undefined, atEnd: boolean): boolean {
  const id = token && pipeline.added.idOf(token.content);
  return id !== undefined && pipeline.encode('', true, false).at(atEnd ? -1 : 0) === id;
}

/** Classes of tokenizers that leave add_bos_token and add_eos_token to tokenizer.json in every version. */
const IGNORES_ENDS = /^(PreTrainedTokenizerFast|TokenizersBackend|Qwen2Tokenizer(Fast)?)$/;

/** Keys that change ids in one version of transformers and not in another: they have to say what tokenizer.json does. */
function checkAgreement(
  pipeline: Pipeline,
  config: TokenizerConfig,
  json: object,
  named: ReadonlyMap<string, AddedToken>,
): void {
  const fail = (key: string, does: string) => {
    throw new Error(`tokenizer_config.json: ${key} is ${show(config[key])}, but tokenizer.json ${does}`);
  };
  const isRead = !IGNORES_ENDS.test(String(config.tokenizer_class));
  for (const [key, name, atEnd] of [
    ['add_bos_token', 'bos_token', false],
    ['add_eos_token', 'eos_token', true],
  ] as const) {
    const does = adds(pipeline, named.get(name), atEnd);
    // Without the token there is nothing to add.
    if (isRead && typeof config[key] === 'boolean' && config[key] !== does && named.has(name))
      fail(key, does ? 'adds it' : 'does not add it');
  }
  const { pre_tokenizer: preTokenizer, normalizer } = json as { pre_tokenizer?: unknown; normalizer?: unknown };
  const prefix = isObject(preTokenizer) ? preTokenizer.add_prefix_space : undefined;
  if (typeof config.add_prefix_space === 'boolean' && typeof prefix === 'boolean' && prefix !== config.add_prefix_space)
    fail('add_prefix_space', `has ${prefix}`);
  const parts = isObject(normalizer) && Array.isArray(normalizer.normalizers) ? normalizer.normalizers : [normalizer];
  const has = (type: string) => parts.some((part) => isObject(part) && part.type === type);
  if (config.do_lower_case === true && !has('Lowercase')) fail('do_lower_case', 'does not lower the case');
  if (config.strip_accents === true && !has('StripAccents')) fail('strip_accents', 'does not strip accents');
}

/** Keys that change ids in ways that are not done here, with the values that do not. */
const REFUSED: Record<string, (value: unknown) => boolean> = {
  do_lowercase_and_remove_accent: (value) => value !== true,
  fix_mistral_regex: (value) => value !== true,
  from_slow: (value) => value !== true,
  src_lang: (value) => typeof value !== 'string',
  tgt_lang: (value) => typeof value !== 'string',
  target_lang: (value) => typeof value !== 'string',
  fast_tokenizer_files: (value) => !Array.isArray(value) || value.every((file) => file === 'tokenizer.json'),
};

function flag(config: TokenizerConfig, key: string): boolean {
  const value = config[key] ?? false;
  if (typeof value !== 'boolean')
    throw new Error(`tokenizer_config.json: ${key}: expected true or false, got ${show(value)}`);
  return value;
}

/**
 * Adds to a tokenizer what tokenizer_config.json says. @param json the tokenizer.json
 * @throws Error naming a key that is wrong, contradicts tokenizer.json or is not supported
 */
export function applyConfig(pipeline: Pipeline, config: TokenizerConfig, json: object): TokenizerSettings {
  for (const [key, isHarmless] of Object.entries(REFUSED))
    if (Object.hasOwn(config, key) && !isHarmless(config[key]))
      throw new Error(`tokenizer_config.json: ${key} ${show(config[key])} is not supported`);
  const named = namedTokens(config);
  const additional = additionalTokens(config);
  addTokens(pipeline, config, [...named.values(), ...additional]);
  checkAgreement(pipeline, config, json, named);
  // transformers leaves the text of byte-pair tokenizers as it is, whose spaces are the text's own.
  const isBpe = (json as { model?: { merges?: unknown } }).model?.merges !== undefined;
  const cleansUp = flag(config, 'clean_up_tokenization_spaces');
  const forced = flag(config, 'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output');
  return {
    named: Object.fromEntries(Array.from(named, ([key, { content }]) => [key, content])),
    additional: additional.map(({ content }) => content),
    cleansUp: cleansUp && (!isBpe || forced),
    splitsSpecial: flag(config, 'split_special_tokens'),
  };
}
