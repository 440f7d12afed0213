// How much of a decoded text stays as it is, whatever tokens follow.

/** Steps behind which tokens are one text, or the last token differs from others. */
const JOINS = new Set(['ByteLevel', 'Fuse', 'BPEDecoder']);
/** Steps that change no text before the end of what they get, also where it is one text. */
const KEEPS = new Set(['Strip', 'Fuse', 'Metaspace']);

const typesOf = (json: unknown): string[] => {
  const { type, decoders } = (json ?? {}) as { type?: string; decoders?: unknown[] };
  if (type === 'Sequence') return decoders!.flatMap(typesOf);
  return type === undefined ? [] : [type];
};

/** What decides how much of a text is stable. */
export interface PrefixRule {
  /** Only the end of a text changes with the tokens behind it. */
  keepsPrefixes: boolean;
  /** Bytes in a row are one text, or none: their text is known when another token follows. */
  joinsBytes: boolean;
}

/** The rule of a `decoder` of tokenizer.json. */
export function prefixRule(decoder: unknown): PrefixRule {
  const types = typesOf(decoder);
  const join = types.findIndex((type) => JOINS.has(type));
  const behind = join < 0 ? [] : types.slice(join + 1);
  return { keepsPrefixes: behind.every((type) => KEEPS.has(type)), joinsBytes: types.includes('ByteFallback') };
}

/** Tokens without the bytes at their end. */
export function withoutLastBytes(tokens: readonly string[]): string[] {
  let end = tokens.length;
  while (end > 0 && /^<0x[\da-fA-F+]{2}>$/.test(tokens[end - 1])) end--;
  return tokens.slice(0, end);
}

/** A text without the characters at its end that miss bytes. */
export const withoutUnfinished = (text: string): string => text.replace(/\ufffd+$/, '');

/** A text without an end that `cleanUp` may join with what follows: a space and the beginning of " 've" or its like. */
export const withoutOpenSpace = (text: string): string => text.replace(/ [ 'ntmsvre]*$/, '');
