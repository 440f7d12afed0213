// Decoders: tokens back to text.
import { z } from 'zod';
import { bytesOfToken, exactTextOfBytes, textOfBytes } from './bytes';
import { build, type Component, characterSchema, component, patternSchema } from './component';
import { compile } from './pattern';

/** Texts of tokens, which are joined behind the last decoder. */
export type Decoder = (tokens: string[]) => string[];

/** Takes spaces away before punctuation, which tokenizers of words put there. @param extra also "do not" */
export function cleanUp(text: string, extra: boolean): string {
  const before = text
    .replaceAll(' .', '.')
    .replaceAll(' ?', '?')
    .replaceAll(' !', '!')
    .replaceAll(' ,', ',')
    .replaceAll(" ' ", "'")
    .replaceAll(" n't", "n't")
    .replaceAll(" 'm", "'m");
  const joined = extra ? before.replaceAll(' do not', " don't") : before;
  return joined.replaceAll(" 's", "'s").replaceAll(" 've", "'ve").replaceAll(" 're", "'re");
}

function byteFallback(tokens: string[]): string[] {
  const result: string[] = [];
  let bytes: number[] = [];
  const flush = () => {
    if (bytes.length > 0) {
      const text = exactTextOfBytes(bytes);
      // Bytes that are no text are U+FFFD each.
      if (text === null) result.push(...bytes.map(() => '\ufffd'));
      else result.push(text);
    }
    bytes = [];
  };
  for (const token of tokens) {
    const byte = /^<0x(\+?[\da-fA-F]{1,2})>$/.exec(token);
    if (byte && token.length === 6) bytes.push(Number.parseInt(byte[1], 16));
    else {
      flush();
      result.push(token);
    }
  }
  flush();
  return result;
}

const DECODERS: Record<string, Component<Decoder>> = {
  Sequence: component({ decoders: z.array(z.unknown()) }, ({ decoders }, path) => {
    const steps = decoders.map((step, i) => buildDecoder(step, `${path}.decoders[${i}]`));
    return (tokens) => steps.reduce((result, step) => step(result), tokens);
  }),
  ByteLevel: component(
    { add_prefix_space: z.boolean(), trim_offsets: z.boolean(), use_regex: z.boolean().default(true) },
    () => (tokens) => [textOfBytes(tokens.flatMap((token) => [...bytesOfToken(token)]))],
  ),
  ByteFallback: component({}, () => byteFallback),
  Fuse: component({}, () => (tokens) => [tokens.join('')]),
  Strip: component(
    { content: characterSchema, start: z.int().nonnegative(), stop: z.literal(0) },
    ({ content, start }) =>
      (tokens) =>
        tokens.map((token) => {
          const characters = Array.from(token);
          let at = 0;
          while (at < start && characters[at] === content) at++;
          return characters.slice(at).join('');
        }),
  ),
  Replace: component({ pattern: patternSchema, content: z.string() }, ({ pattern, content }) => {
    const expression = compile(pattern);
    return (tokens) => tokens.map((token) => token.replace(expression, () => content));
  }),
  Metaspace: component(
    {
      replacement: characterSchema,
      prepend_scheme: z.enum(['always', 'first', 'never']).default('always'),
      split: z.boolean().default(true),
      add_prefix_space: z.boolean().nullish(),
      str_rep: z.string().optional(),
    },
    ({ replacement, prepend_scheme, add_prefix_space }, path) => {
      if (add_prefix_space === false && prepend_scheme !== 'never')
        throw new Error(`${path}: add_prefix_space false goes with prepend_scheme "never", got "${prepend_scheme}"`);
      return (tokens) =>
        tokens.map((token, i) => token.replaceAll(replacement, i === 0 && prepend_scheme !== 'never' ? '' : ' '));
    },
  ),
  WordPiece: component(
    { prefix: z.string(), cleanup: z.boolean() },
    ({ prefix, cleanup }) =>
      (tokens) =>
        tokens.map((token, i) => {
          const text = i === 0 ? token : token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
          return cleanup ? cleanUp(text, true) : text;
        }),
  ),
  BPEDecoder: component(
    { suffix: z.string().min(1) },
    ({ suffix }) =>
      (tokens) =>
        tokens.map((token, i) => token.replaceAll(suffix, i === tokens.length - 1 ? '' : ' ')),
  ),
};

/** The decoder of a tokenizer.json. @throws Error naming what is not supported */
export const buildDecoder = (json: unknown, path = 'decoder'): Decoder => build(DECODERS, json, path);
