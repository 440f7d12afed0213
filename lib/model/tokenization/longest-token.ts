// How much of a text one token stands for at most: what is many times longer than that cannot fit a model.
import { bytesOfText, isByteCharacter } from './bytes';

type Json = Record<string, unknown>;

/** Bytes that NFC at most writes as one. */
const COMPOSED = 4;
/** Pre-tokenizers that keep every character, and Split, if it does. */
const KEEPS_ALL = ['ByteLevel', 'Digits', 'Metaspace', 'FixedLength'];

const isAbsent = (value: unknown) => value === null || value === undefined || value === '';

/** A normalizer or pre-tokenizer, or those that it is a sequence of. */
function partsOf(part: unknown): Json[] {
  if (typeof part !== 'object' || part === null) return [];
  const inner = (part as Json).normalizers ?? (part as Json).pretokenizers;
  return Array.isArray(inner) ? inner.flatMap(partsOf) : [part as Json];
}

/**
 * Bytes of a text that one token stands for at most; null where the tokenizer may leave out some of a text, or has a
 * token for any length of it. @param json a tokenizer.json that is known to be supported
 * @param added texts that added tokens stand for; null: some take the white space around them
 */
export function longestToken(json: object, added: readonly string[] | null): number | null {
  const {
    normalizer,
    pre_tokenizer: preTokenizer,
    model,
  } = json as Record<'normalizer' | 'pre_tokenizer', unknown> & {
    model: Json & { vocab: object };
  };
  const [normalizers, preTokenizers] = [partsOf(normalizer), partsOf(preTokenizer)];
  const isKept =
    added !== null &&
    normalizers.every(({ type }) => type === 'NFC' || type === 'ByteLevel') &&
    preTokenizers.every(
      ({ type, behavior }) => KEEPS_ALL.includes(String(type)) || (type === 'Split' && behavior !== 'Removed'),
    );
  const isPlain = 'merges' in model && isAbsent(model.continuing_subword_prefix) && isAbsent(model.end_of_word_suffix);
  if (!isKept || !isPlain) return null;
  const tokens = Object.keys(model.vocab);
  const isByteLevel = [...normalizers, ...preTokenizers].some(({ type }) => type === 'ByteLevel');
  const bytes = tokens.filter(isByteLevel ? isByteCharacter : (token) => /^<0x[\dA-F]{2}>$/.test(token)).length;
  // Every character has a token, so that none is left out.
  if (bytes < 256 || (!isByteLevel && model.byte_fallback !== true)) return null;
  const lengths = isByteLevel ? tokens.map(({ length }) => length) : tokens.map((token) => bytesOfText(token).length);
  const longest = [...lengths, ...added.map((token) => bytesOfText(token).length)].reduce((a, b) => Math.max(a, b), 1);
  return normalizers.some(({ type }) => type === 'NFC') ? COMPOSED * longest : longest;
}
