// Pre-tokenizers: where a text is cut, so that no token spans two pieces.
import { z } from 'zod';
import { toByteCharacters } from './bytes';
import { build, type Component, characterSchema, component, patternSchema } from './component';
import { compile, escapeText } from './pattern';
import { PUNCTUATION } from './unicode';

/** A piece of a text. `isStart`: whether it begins where the text does. */
export interface Piece {
  text: string;
  isStart: boolean;
}
/** Pieces out of a piece. */
export type PreTokenizer = (piece: Piece) => Piece[];

const BEHAVIORS = ['Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous'] as const;
type Behavior = (typeof BEHAVIORS)[number];

/** What a pattern matches of a text and what lies between, in order. */
function parts(text: string, pattern: RegExp): { text: string; isMatch: boolean }[] {
  const found: { text: string; isMatch: boolean }[] = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    if (at < match.index) found.push({ text: text.slice(at, match.index), isMatch: false });
    found.push({ text: match[0], isMatch: true });
    at = match.index + match[0].length;
  }
  if (at < text.length) found.push({ text: text.slice(at), isMatch: false });
  return found;
}

/** Cuts a text at what a pattern matches, or with `isInverted` at what it does not match. */
function cut(text: string, pattern: RegExp, behavior: Behavior, isInverted = false): string[] {
  const list = parts(text, pattern).map((part) => ({ text: part.text, isCut: part.isMatch !== isInverted }));
  if (behavior === 'Removed') return list.filter(({ isCut }) => !isCut).map((part) => part.text);
  if (behavior === 'Isolated') return list.map((part) => part.text);
  if (list.some((part) => part.text === '')) throw new Error('a pattern that matches an empty text is not supported');
  if (behavior === 'MergedWithNext') list.reverse();
  const merged: string[] = [];
  let wasCut = false;
  for (const { text: piece, isCut } of list) {
    const joins = behavior === 'Contiguous' ? isCut === wasCut : isCut && !wasCut;
    const last = merged.length - 1;
    if (!joins || last < 0) merged.push(piece);
    else merged[last] = behavior === 'MergedWithNext' ? piece + merged[last] : merged[last] + piece;
    wasCut = isCut;
  }
  return behavior === 'MergedWithNext' ? merged.reverse() : merged;
}

/** A pre-tokenizer that only cuts. */
const cutter =
  (pieces: (text: string) => string[]): PreTokenizer =>
  ({ text, isStart }) => {
    const list = pieces(text);
    // What is removed at the start moves the first piece away from it.
    return list.map((piece, i) => ({ text: piece, isStart: isStart && i === 0 && text.startsWith(piece) }));
  };
const SPACE = /\p{White_Space}/gu;
const GPT2 = compile({ Regex: "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+" });
/** A letter of a word, as Rust has it. */
export const WORD = '[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]';
const WORDS = new RegExp(`${WORD}+|[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}\\p{White_Space}]+`, 'gu');

const PRE_TOKENIZERS: Record<string, Component<PreTokenizer>> = {
  Sequence: component({ pretokenizers: z.array(z.unknown()) }, ({ pretokenizers }, path) => {
    const steps = pretokenizers.map((step, i) => buildPreTokenizer(step, `${path}.pretokenizers[${i}]`));
    return (piece) => steps.reduce((pieces, step) => pieces.flatMap(step).filter(({ text }) => text !== ''), [piece]);
  }),
  Split: component(
    { pattern: patternSchema, behavior: z.enum(BEHAVIORS), invert: z.boolean() },
    ({ pattern, behavior, invert }) => {
      const expression = compile(pattern);
      return cutter((text) => cut(text, expression, behavior, invert));
    },
  ),
  ByteLevel: component(
    { add_prefix_space: z.boolean(), trim_offsets: z.boolean(), use_regex: z.boolean().default(true) },
    ({ add_prefix_space, use_regex }) =>
      ({ text, isStart }) => {
        const whole = add_prefix_space && !text.startsWith(' ') ? ` ${text}` : text;
        const pieces = use_regex ? cut(whole, GPT2, 'Isolated') : [whole];
        return pieces.map((piece, i) => ({ text: toByteCharacters(piece), isStart: isStart && i === 0 }));
      },
  ),
  Whitespace: component({}, () => cutter((text) => cut(text, WORDS, 'Removed', true))),
  WhitespaceSplit: component({}, () => cutter((text) => cut(text, SPACE, 'Removed'))),
  Punctuation: component({ behavior: z.enum(BEHAVIORS).default('Isolated') }, ({ behavior }) =>
    cutter((text) => cut(text, PUNCTUATION, behavior)),
  ),
  BertPreTokenizer: component({}, () =>
    cutter((text) => cut(text, SPACE, 'Removed').flatMap((piece) => cut(piece, PUNCTUATION, 'Isolated'))),
  ),
  Digits: component({ individual_digits: z.boolean() }, ({ individual_digits }) =>
    cutter((text) => cut(text, /\p{N}/gu, individual_digits ? 'Isolated' : 'Contiguous')),
  ),
  FixedLength: component({ length: z.int().positive().default(5) }, ({ length }) =>
    cutter((text) => {
      const characters = Array.from(text);
      const count = Math.ceil(characters.length / length);
      return Array.from({ length: count }, (_, i) => characters.slice(i * length, (i + 1) * length).join(''));
    }),
  ),
  Metaspace: component(
    {
      replacement: characterSchema,
      prepend_scheme: z.enum(['always', 'first', 'never']).default('always'),
      split: z.boolean().default(true),
      // Of older files.
      add_prefix_space: z.boolean().nullish(),
      str_rep: z.string().optional(),
    },
    ({ replacement, prepend_scheme, split, add_prefix_space }, path) => {
      if (add_prefix_space === false && prepend_scheme !== 'never')
        throw new Error(`${path}: add_prefix_space false goes with prepend_scheme "never", got "${prepend_scheme}"`);
      const mark = new RegExp(escapeText(replacement), 'gu');
      return ({ text, isStart }) => {
        const marked = text.replaceAll(' ', () => replacement);
        const prepends = prepend_scheme === 'always' || (prepend_scheme === 'first' && isStart);
        const whole = prepends && !marked.startsWith(replacement) ? replacement + marked : marked;
        const pieces = split ? cut(whole, mark, 'MergedWithNext') : [whole];
        return pieces.map((piece, i) => ({ text: piece, isStart: isStart && i === 0 }));
      };
    },
  ),
};

/** The pre-tokenizer of a tokenizer.json. @throws Error naming what is not supported */
export const buildPreTokenizer = (json: unknown, path = 'pre_tokenizer'): PreTokenizer =>
  build(PRE_TOKENIZERS, json, path);
