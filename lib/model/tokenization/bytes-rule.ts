// What a token stands for by itself, where a text is what its tokens stand for, one behind the other.
import { bytesOfText, bytesOfToken } from './bytes';

/** Bytes of a token. */
export type BytesRule = (token: string) => Uint8Array;

interface Step {
  type?: string;
  decoders?: Step[];
  replacement?: string;
  content?: string;
  pattern?: { String?: string };
}

const stepsOf = (decoder: Step | null | undefined): Step[] =>
  decoder?.type === 'Sequence' ? decoder.decoders!.flatMap(stepsOf) : decoder ? [decoder] : [];

/**
 * The rule of a `decoder` of tokenizer.json that is supported; null where tokens are joined by rules of words. A space
 * that a decoder takes from the very beginning of a text is the token's all the same.
 */
export function bytesRule(decoder: unknown): BytesRule | null {
  const steps = stepsOf(decoder as Step | null | undefined);
  if (steps.length === 1 && steps[0].type === 'ByteLevel') return (token) => Uint8Array.from(bytesOfToken(token));
  const spaces = steps.flatMap(({ type, replacement = '\u2581', pattern, content }) =>
    type === 'Metaspace' ? [replacement] : type === 'Replace' && content === ' ' ? [pattern?.String ?? ''] : [],
  );
  const isKnown = ({ type }: Step) => /^(Metaspace|Replace|ByteFallback|Fuse|Strip)$/.test(String(type));
  const replaces = steps.filter(({ type }) => type === 'Replace').length;
  const isOne = spaces.length <= 1 && spaces[0] !== '' && replaces <= spaces.length;
  if (steps.length === 0 || !isOne || !steps.every(isKnown)) return null;
  const fallsBack = steps.some(({ type }) => type === 'ByteFallback');
  return (token) => {
    const byte = fallsBack ? /^<0x([\dA-Fa-f]{2})>$/.exec(token) : null;
    return byte
      ? Uint8Array.of(Number.parseInt(byte[1], 16))
      : bytesOfText(spaces.length > 0 ? token.replaceAll(spaces[0], ' ') : token);
  };
}
