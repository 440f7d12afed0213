// JSON schemas of the strict subset as shapes of values.
import { optionError } from '../errors';
import { show } from '../text';
import { accepts, automatonOf, type ByteAutomaton, intersect, TooLarge } from './automaton';
import {
  characters,
  choice,
  EVERY_CHARACTER,
  intersection,
  type Language,
  mapLanguage,
  optional,
  repeat,
  separated,
  sequence,
  text,
  union,
} from './language';
import { type Bounds, integerLanguage, numberAutomaton } from './numbers';
import { PatternError, patternLanguage } from './pattern';

/** A JSON schema, as JSON has it. */
export type JsonSchema = { readonly [keyword: string]: unknown };

/** What a value looks like. */
export type Shape =
  | { kind: 'object'; properties: readonly (readonly [string, Shape])[] }
  | { kind: 'array'; item: Shape; min: number; max: number }
  | { kind: 'any'; options: readonly Shape[] }
  /** Texts of JSON, each of which is a value. */
  | { kind: 'texts'; texts: readonly string[] }
  | { kind: 'string' | 'number'; language: Language };

/** Nested values, references followed. */
const MOST_DEPTH = 64;
const ANNOTATIONS = new Set([
  '$schema',
  '$id',
  '$comment',
  '$defs',
  'definitions',
  'title',
  'description',
  'default',
  'examples',
  'deprecated',
  'readOnly',
  'writeOnly',
]);
const BOUNDS = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'] as const;
const KEYWORDS: Readonly<Record<string, readonly string[]>> = {
  object: ['properties', 'required', 'additionalProperties'],
  array: ['items', 'minItems', 'maxItems'],
  string: ['minLength', 'maxLength', 'pattern', 'format'],
  number: BOUNDS,
  integer: BOUNDS,
  boolean: [],
  null: [],
};

const LEAP_YEAR = '(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26]|00)00)';
const DATE = `(?:\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))|${LEAP_YEAR}-02-29)`;
const TIME = '(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)';
const FORMATS: Readonly<Record<string, string>> = {
  date: DATE,
  time: TIME,
  'date-time': `${DATE}T${TIME}`,
  uuid: '[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}',
};

const SHORT_ESCAPES: readonly (readonly [number, string])[] = [
  [0x08, '\\b'],
  [0x09, '\\t'],
  [0x0a, '\\n'],
  [0x0c, '\\f'],
  [0x0d, '\\r'],
  [0x22, '\\"'],
  [0x5c, '\\\\'],
];
const PLAIN: Language & { kind: 'set' } = {
  kind: 'set',
  set: [
    [0x20, 0x21],
    [0x23, 0x5b],
    [0x5d, 0xd7ff],
    [0xe000, 0x10ffff],
  ],
};

/** The characters of a set as a string of JSON writes them, each in one way. */
function escaped(language: Language): Language | null {
  if (language.kind !== 'set') return null;
  const options: Language[] = [{ kind: 'set', set: intersection(language.set, PLAIN.set) }];
  const has = (code: number) => language.set.some(([from, to]) => from <= code && code <= to);
  for (const [code, written] of SHORT_ESCAPES) if (has(code)) options.push(text(written));
  for (let code = 0; code < 0x20; code++)
    if (has(code) && !SHORT_ESCAPES.some(([other]) => other === code))
      options.push(text(`\\u${code.toString(16).padStart(4, '0')}`));
  return choice(...options);
}

const isObject = (value: unknown): value is JsonSchema =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Where something stands in a schema, as messages name it. */
const within = (path: string, key: string | number): string =>
  typeof key === 'number'
    ? `${path}[${key}]`
    : /^[A-Za-z_$][\w$]*$/.test(key)
      ? `${path}.${key}`
      : `${path}[${show(key)}]`;

class Reader {
  readonly #open: unknown[] = [];

  constructor(readonly root: JsonSchema) {}

  #refuse(path: string, message: string): never {
    throw optionError(RangeError, path, message);
  }

  /** @param path of the schema, for messages */
  shape(schema: unknown, path: string): Shape {
    if (!isObject(schema)) throw optionError(TypeError, path, `expected a schema, an object, got ${show(schema)}`);
    if (this.#open.includes(schema)) this.#refuse(path, 'refers to itself, which is not supported');
    if (this.#open.length >= MOST_DEPTH) this.#refuse(path, `expected at most ${MOST_DEPTH} schemas in each other`);
    this.#open.push(schema);
    try {
      return this.#shape(schema, path);
    } catch (error) {
      if (error instanceof TooLarge) this.#refuse(path, 'needs an automaton that is too large');
      throw error;
    } finally {
      this.#open.pop();
    }
  }

  #shape(schema: JsonSchema, path: string): Shape {
    const keywords = Object.keys(schema).filter(
      (keyword) => !ANNOTATIONS.has(keyword) && schema[keyword] !== undefined,
    );
    const only = (allowed: readonly string[], beside: string) => {
      for (const keyword of keywords)
        if (!allowed.includes(keyword))
          this.#refuse(within(path, keyword), `the keyword ${show(keyword)} is not supported${beside}`);
    };
    if ('$id' in schema && schema !== this.root)
      this.#refuse(within(path, '$id'), 'is supported in the outermost schema alone');
    if ('$ref' in schema) {
      only(['$ref'], ' beside "$ref"');
      return this.shape(this.#resolve(schema.$ref, within(path, '$ref')), within(path, '$ref'));
    }
    if ('anyOf' in schema) {
      only(['anyOf'], ' beside "anyOf"');
      const { anyOf } = schema;
      const at = within(path, 'anyOf');
      if (!Array.isArray(anyOf) || anyOf.length === 0)
        throw optionError(TypeError, at, `expected a list of schemas, got ${show(anyOf)}`);
      return { kind: 'any', options: anyOf.map((option, i) => this.shape(option, within(at, i))) };
    }
    const types = this.#types(schema, path);
    const values = this.#values(schema, path);
    only(
      ['type', 'enum', 'const', ...(types ?? []).flatMap((type) => KEYWORDS[type])],
      types ? ` for type ${show(schema.type)}` : '',
    );
    if (!types && !values)
      this.#refuse(within(path, 'type'), 'expected one of the types, or enum, const, anyOf or $ref');
    const options = types?.map((type) => this.#ofType(type, schema, path, values !== null)) ?? [];
    const shape: Shape = options.length === 1 ? options[0] : { kind: 'any', options };
    if (!values) return shape;
    const texts = values.map((value) => JSON.stringify(value));
    const automaton = types && automatonOf(languageOf(shape));
    const fitting = automaton ? texts.filter((value) => accepts(automaton, value)) : texts;
    if (fitting.length === 0)
      this.#refuse(
        within(path, 'enum' in schema ? 'enum' : 'const'),
        'has no value of the type and its other keywords',
      );
    return { kind: 'texts', texts: [...new Set(fitting)] };
  }

  #types(schema: JsonSchema, path: string): string[] | null {
    const { type } = schema;
    if (type === undefined) return null;
    const types: unknown[] = Array.isArray(type) ? type : [type];
    for (const one of types)
      if (typeof one !== 'string' || !Object.hasOwn(KEYWORDS, one))
        this.#refuse(within(path, 'type'), `expected one of ${Object.keys(KEYWORDS).join(', ')}, got ${show(one)}`);
    if (types.length === 0) this.#refuse(within(path, 'type'), 'expected at least one type');
    return types as string[];
  }

  #values(schema: JsonSchema, path: string): unknown[] | null {
    const hasEnum = schema.enum !== undefined;
    if (hasEnum && (!Array.isArray(schema.enum) || schema.enum.length === 0))
      throw optionError(TypeError, within(path, 'enum'), `expected a list of values, got ${show(schema.enum)}`);
    const list = hasEnum ? (schema.enum as unknown[]) : null;
    if (!('const' in schema)) return list;
    const constant = JSON.stringify(schema.const);
    if (list && !list.some((value) => JSON.stringify(value) === constant))
      this.#refuse(within(path, 'const'), 'is none of the values of enum');
    return [schema.const];
  }

  #ofType(type: string, schema: JsonSchema, path: string, hasValues: boolean): Shape {
    switch (type) {
      case 'object':
        return this.#object(schema, path, hasValues);
      case 'array': {
        const min = this.#count(schema, 'minItems', path) ?? 0;
        const max = this.#count(schema, 'maxItems', path) ?? Number.POSITIVE_INFINITY;
        if (min > max) this.#refuse(within(path, 'minItems'), `expected at most maxItems, ${max}, got ${min}`);
        const item: Shape =
          schema.items === undefined && max === 0
            ? { kind: 'texts', texts: [] }
            : this.shape(schema.items, within(path, 'items'));
        return { kind: 'array', item, min, max };
      }
      case 'string':
        return { kind: 'string', language: this.#string(schema, path) };
      case 'boolean':
        return { kind: 'texts', texts: ['true', 'false'] };
      case 'null':
        return { kind: 'texts', texts: ['null'] };
      default:
        return { kind: 'number', language: this.#number(type, schema, path) };
    }
  }

  #object(schema: JsonSchema, path: string, hasValues: boolean): Shape {
    const { properties = {}, required = [], additionalProperties } = schema;
    if (!isObject(properties))
      throw optionError(TypeError, within(path, 'properties'), `expected an object, got ${show(properties)}`);
    if (additionalProperties !== false)
      this.#refuse(within(path, 'additionalProperties'), `expected false, got ${show(additionalProperties)}`);
    if (!Array.isArray(required))
      throw optionError(TypeError, within(path, 'required'), `expected a list of names, got ${show(required)}`);
    const names = Object.keys(properties);
    for (const name of names)
      if (!required.includes(name) && !hasValues)
        this.#refuse(within(path, 'required'), `expected every property, ${show(name)} is missing`);
    for (const name of required)
      if (!names.includes(name as string))
        this.#refuse(within(path, 'required'), `names ${show(name)}, which is none of the properties`);
    const at = within(path, 'properties');
    return { kind: 'object', properties: names.map((name) => [name, this.shape(properties[name], within(at, name))]) };
  }

  #count(schema: JsonSchema, keyword: string, path: string): number | undefined {
    const value = schema[keyword];
    if (value === undefined) return undefined;
    if (!Number.isSafeInteger(value) || (value as number) < 0)
      this.#refuse(within(path, keyword), `expected a whole number of at least 0, got ${show(value)}`);
    return value as number;
  }

  #string(schema: JsonSchema, path: string): Language {
    const min = this.#count(schema, 'minLength', path) ?? 0;
    const max = this.#count(schema, 'maxLength', path) ?? Number.POSITIVE_INFINITY;
    if (min > max) this.#refuse(within(path, 'minLength'), `expected at most maxLength, ${max}, got ${min}`);
    const parts: Language[] = [];
    const { pattern, format } = schema;
    if (pattern !== undefined) {
      if (typeof pattern !== 'string')
        throw optionError(TypeError, within(path, 'pattern'), `expected a regular expression, got ${show(pattern)}`);
      try {
        parts.push(patternLanguage(pattern, { search: true }));
      } catch (error) {
        if (error instanceof PatternError) this.#refuse(within(path, 'pattern'), `${show(pattern)} ${error.message}`);
        throw error;
      }
    }
    if (format !== undefined) {
      if (typeof format !== 'string' || !Object.hasOwn(FORMATS, format))
        this.#refuse(within(path, 'format'), `expected one of ${Object.keys(FORMATS).join(', ')}, got ${show(format)}`);
      parts.push(patternLanguage(FORMATS[format as string], { search: false }));
    }
    const lengths = min > 0 || max < Number.POSITIVE_INFINITY;
    if (lengths || parts.length === 0) parts.push(repeat({ kind: 'set', set: EVERY_CHARACTER }, min, max));
    const contents = parts.map((part) => mapLanguage(part, escaped));
    const content = contents.length === 1 ? contents[0] : both(contents.map(automatonOf));
    const language = sequence(text('"'), content, text('"'));
    if (automatonOf(language).states === 0) this.#refuse(path, 'no string has all of its keywords');
    return language;
  }

  #number(type: string, schema: JsonSchema, path: string): Language {
    const bounds: Bounds = {};
    for (const keyword of BOUNDS) {
      const value = schema[keyword];
      if (value === undefined) continue;
      if (typeof value !== 'number' || !Number.isFinite(value))
        throw optionError(TypeError, within(path, keyword), `expected a number, got ${show(value)}`);
      bounds[keyword] = value;
    }
    const language: Language =
      type === 'integer' ? integerLanguage(bounds) : { kind: 'automaton', automaton: numberAutomaton(bounds) };
    if (automatonOf(language).states === 0) this.#refuse(path, `no ${type} of up to 15 digits is within its bounds`);
    return language;
  }

  #resolve(reference: unknown, path: string): unknown {
    if (typeof reference !== 'string' || !/^#(\/|$)/.test(reference))
      this.#refuse(path, `expected a place in the schema itself, such as "#/$defs/item", got ${show(reference)}`);
    let target: unknown = this.root;
    for (const part of (reference as string).split('/').slice(1)) {
      const key = unescaped(part);
      const holder = target as Record<string, unknown> | null;
      target = typeof holder === 'object' && holder !== null && Object.hasOwn(holder, key) ? holder[key] : undefined;
    }
    if (target === undefined) this.#refuse(path, `${show(reference)} is nowhere in the schema`);
    return target;
  }
}

/** A part of a JSON pointer in a fragment. */
function unescaped(part: string): string {
  let text = part;
  try {
    text = decodeURIComponent(part);
  } catch {
    // A % that stands for itself.
  }
  return text.replaceAll('~1', '/').replaceAll('~0', '~');
}

const both = (automata: readonly ByteAutomaton[]): Language => ({
  kind: 'automaton',
  automaton: automata.reduce((all, one) => intersect(all, one)),
});

/** The shape of a schema's values. @throws RangeError, TypeError naming the keyword by its path */
export const shapeOf = (schema: JsonSchema, name = 'schema'): Shape => new Reader(schema).shape(schema, name);

const SPACE = optional(text(' '));

/** The texts of a shape's values: without whitespace, but for a space behind each comma and colon where one likes. */
export function languageOf(shape: Shape): Language {
  switch (shape.kind) {
    case 'texts':
      return choice(...shape.texts.map(text));
    case 'any':
      return choice(...shape.options.map(languageOf));
    case 'object': {
      const parts = shape.properties.flatMap(([name, value], i) => [
        ...(i > 0 ? [text(','), SPACE] : []),
        text(`${JSON.stringify(name)}:`),
        SPACE,
        languageOf(value),
      ]);
      return sequence(text('{'), ...parts, text('}'));
    }
    case 'array': {
      const { item, min, max } = shape;
      if (max === 0) return text('[]');
      const one = languageOf(item);
      const comma = sequence(text(','), SPACE);
      const items =
        min <= 1 && max === Number.POSITIVE_INFINITY
          ? separated(one, comma)
          : sequence(one, repeat(sequence(comma, one), Math.max(0, min - 1), max - 1));
      const some = sequence(text('['), items, text(']'));
      return min > 0 ? some : choice(text('[]'), some);
    }
    default:
      return shape.language;
  }
}

/** Characters that JSON may have between its parts. */
export const WHITESPACE: Language = characters(...union([[0x20, 0x20]], [[0x09, 0x0a]], [[0x0d, 0x0d]]));
