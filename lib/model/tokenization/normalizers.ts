// Normalizers: what is done to a text before it is split.
import { z } from 'zod';
import { toByteCharacters } from './bytes';
import { build, type Component, component, patternSchema } from './component';
import { compile } from './pattern';
import { spaceEnd, spaceStart } from './space';
import { MARKS, normalized } from './unicode';

export type Normalizer = (text: string) => string;

/** Unlike a whole text's lower case, that of each character does not depend on its place: Σ is σ also at a word's end. */
const lowerCase: Normalizer = (text) => Array.from(text, (character) => character.toLowerCase()).join('');

const NORMALIZERS: Record<string, Component<Normalizer>> = {
  Sequence: component({ normalizers: z.array(z.unknown()) }, ({ normalizers }, path) => {
    const steps = normalizers.map((step, i) => buildNormalizer(step, `${path}.normalizers[${i}]`));
    return (text) => steps.reduce((result, step) => step(result), text);
  }),
  NFC: component({}, () => (text) => normalized(text, 'NFC')),
  NFD: component({}, () => (text) => normalized(text, 'NFD')),
  NFKC: component({}, () => (text) => normalized(text, 'NFKC')),
  NFKD: component({}, () => (text) => normalized(text, 'NFKD')),
  Lowercase: component({}, () => lowerCase),
  Strip: component(
    { strip_left: z.boolean(), strip_right: z.boolean() },
    ({ strip_left, strip_right }) =>
      (text) =>
        text.slice(strip_left ? spaceEnd(text, 0) : 0, strip_right ? spaceStart(text, text.length) : text.length),
  ),
  StripAccents: component({}, () => (text) => text.replace(MARKS, '')),
  Replace: component({ pattern: patternSchema, content: z.string() }, ({ pattern, content }) => {
    const expression = compile(pattern);
    return (text) => text.replace(expression, () => content);
  }),
  Prepend: component(
    { prepend: z.string() },
    ({ prepend }) =>
      (text) =>
        text === '' ? '' : prepend + text,
  ),
  ByteLevel: component({}, () => toByteCharacters),
};

/** The normalizer of a tokenizer.json. @throws Error naming what is not supported */
export const buildNormalizer = (json: unknown, path = 'normalizer'): Normalizer => build(NORMALIZERS, json, path);
