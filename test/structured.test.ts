// Answers that are values of a schema or texts of a pattern, whatever the model predicts.
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import {
  type CreateModelOptions,
  createModel,
  type GenerateOptions,
  type JsonSchema,
  loadModel,
  type MaskedDiffusionModel,
} from '../lib';
import { accepts, automatonOf } from '../lib/structured/automaton';
import { languageOf, shapeOf } from '../lib/structured/json-schema';
import { patternLanguage } from '../lib/structured/pattern';
import { random } from './checkpoints';
import { temporaryFolder } from './helpers';
import { byteLevelTokenizer, EOS_TOKEN, MASK_TOKEN, writeTokenizer } from './tokenizers';
import { newModelFolder } from './trained-models';

// By require, and so without types: the oracle of these tests alone.
const { default: Ajv } = require('ajv/dist/2020');
const ajv = new Ajv({ strict: false });
require('ajv-formats')(ajv);
const compile = (schema: unknown): ((value: unknown) => boolean) => ajv.compile(schema);

/** Random schemas; DULTRA_SCHEMAS=1000 takes minutes. */
const SCHEMAS = Number(process.env.DULTRA_SCHEMAS ?? 100);

let tokenizerFolder: string;
let model: MaskedDiffusionModel;

/** A model of random weights over bytes. */
async function randomModel(options: Partial<CreateModelOptions> = {}): Promise<MaskedDiffusionModel> {
  const folder = path.join(temporaryFolder(), 'model');
  await createModel(folder, {
    tokenizer: tokenizerFolder,
    dModel: 16,
    nHeads: 2,
    nLayers: 1,
    maxSequenceLength: 512,
    seed: 3,
    ...options,
  });
  return loadModel(folder, { threads: 1 });
}

beforeAll(async () => {
  tokenizerFolder = temporaryFolder();
  mkdirSync(tokenizerFolder, { recursive: true });
  const { tokenizer, config } = byteLevelTokenizer();
  writeTokenizer(tokenizerFolder, tokenizer, { ...config, eos_token: EOS_TOKEN, mask_token: MASK_TOKEN });
  model = await randomModel();
});
afterAll(() => model.dispose());

/** A schema of the subset. */
function randomSchema(next: () => number, depth = 2): JsonSchema {
  const below = (n: number) => Math.floor(next() * n);
  const one = <T>(list: readonly T[]): T => list[below(list.length)];
  const bounds = (scale: number, digits: number): JsonSchema => {
    const low = Number(((next() - 0.5) * scale).toFixed(digits));
    const high = Number((low + next() * scale).toFixed(digits));
    return {
      ...(next() < 0.5 && { [one(['minimum', 'exclusiveMinimum'])]: low }),
      ...(next() < 0.5 && { [one(['maximum', 'exclusiveMaximum'])]: high + 2 }),
    };
  };
  const scalars: (() => JsonSchema)[] = [
    () => ({ type: 'string' }),
    () => {
      const min = below(4);
      return { type: 'string', minLength: min, maxLength: min + below(6) };
    },
    () => ({ type: 'string', pattern: one(['^[a-c]{1,4}$', '\\d\\.\\d', '^(x|yz)*$', '^"?[^\\s]+é$', '[\\n\\\\]']) }),
    () => ({ type: 'string', format: one(['date', 'time', 'date-time', 'uuid']) }),
    () => ({ type: 'integer', ...bounds(one([10, 1000, 1e6]), 0) }),
    () => ({ type: 'number', ...bounds(one([1, 100, 1e5]), below(4)) }),
    () => ({ type: one(['boolean', 'null']) }),
    () => ({ type: ['string', 'null'], maxLength: 5 }),
    () => ({ enum: ['red', 'blue "x"', 7, null, { a: [1] }, -2.5].slice(below(5)) }),
    () => ({ const: one(['a\nb', 12, true, [], 'ü']) }),
  ];
  const nested: (() => JsonSchema)[] = [
    () => {
      const minItems = below(3);
      const bound = next() < 0.7 && { maxItems: minItems + below(3) };
      return { type: 'array', items: randomSchema(next, depth - 1), minItems, ...bound };
    },
    () => ({ anyOf: Array.from({ length: 1 + below(3) }, () => randomSchema(next, depth - 1)) }),
    () => objectSchema(below(4)),
  ];
  const objectSchema = (count: number): JsonSchema => {
    const names = ['name', 'a b', 'ü', '"', 'x', 'count'].slice(0, count);
    const properties = Object.fromEntries(names.map((name) => [name, randomSchema(next, depth - 1)]));
    return { type: 'object', properties, required: names, additionalProperties: false };
  };
  return depth > 0 && next() < 0.6 ? one(nested)() : one(scalars)();
}

describe('languages', () => {
  test('numbers within bounds, and no others', () => {
    const next = random(5);
    for (let round = 0; round < 40; round++) {
      const schema: Record<string, unknown> = { type: round % 2 === 0 ? 'integer' : 'number' };
      const bound = () => Number(((next() - 0.5) * 10 ** (round % 5)).toFixed(round % 4));
      const [low, high] = [bound(), bound()].sort((a, b) => a - b);
      schema[round % 3 === 0 ? 'minimum' : 'exclusiveMinimum'] = low;
      schema[round % 4 < 2 ? 'maximum' : 'exclusiveMaximum'] = high + 1.5;
      const automaton = automatonOf(languageOf(shapeOf(schema)));
      const fits = compile(schema);
      for (let i = 0; i < 100; i++) {
        const near = [low, high + 1.5, low + next() * (high + 1.5 - low)][i % 3] + (i < 30 ? 0 : (next() - 0.5) * 3);
        const text = String(Number(near.toFixed(schema.type === 'integer' ? 0 : i % 5)));
        if (text === '0' || !text.includes('e'))
          expect({ schema, text, accepted: accepts(automaton, text) }).toEqual({ schema, text, accepted: fits(+text) });
      }
    }
  });

  test('patterns match what JavaScript matches', () => {
    const next = random(6);
    const alphabet = ['a', 'b', 'x', '1', '.', ' ', '\n', 'é', '😀', '"', '\\', '-', 'B'];
    for (const pattern of [
      '^(ab|x)*1{2,3}$',
      'a.b',
      '[^a-x]\\s?$',
      '^a|b$',
      '(?:^(?:a|1)|x)-',
      '\\w+?\\d',
      '(?<n>[.-])\\\\',
      '\\p{Lu}',
      '[\\u{1F600}é]{2}',
      '^$',
    ]) {
      const found = automatonOf(patternLanguage(pattern, { search: true }));
      const whole = automatonOf(patternLanguage(pattern, { search: false }));
      const expression = new RegExp(pattern, 'u');
      const wholeExpression = new RegExp(`^(?:${pattern})$`, 'u');
      for (let i = 0; i < 300; i++) {
        const length = Math.floor(next() * 5);
        const text = Array.from({ length }, () => alphabet[Math.floor(next() * alphabet.length)]).join('');
        expect([pattern, text, accepts(found, text)]).toEqual([pattern, text, expression.test(text)]);
        expect([pattern, text, accepts(whole, text)]).toEqual([pattern, text, wholeExpression.test(text)]);
      }
    }
  });

  test.each<[string, RegExp]>([
    ['(?=a)b', /\(\?=…\), which is not supported/],
    ['(a)\\1', /refers to a group/],
    ['\\bx', /\\b, which is not supported/],
    ['a^b', /\^ or \$ in its middle/],
    ['(', /is no regular expression/],
  ])('the pattern %s is refused', async (pattern, message) => {
    const error = await model.generate('a', { pattern }).catch((reason) => reason);
    expect(error).toBeInstanceOf(RangeError);
    expect(error).toMatchObject({ option: 'pattern', message: expect.stringMatching(message) });
  });

  const object = (properties: object, more: object = {}) => ({
    type: 'object',
    properties,
    required: Object.keys(properties),
    additionalProperties: false,
    ...more,
  });
  test.each<[string, JsonSchema]>([
    ['schema.type', {}],
    ['schema.type', { type: 'float' }],
    ['schema.additionalProperties', { type: 'object', properties: {}, required: [] }],
    ['schema.required', object({ a: { type: 'null' } }, { required: [] })],
    ['schema.properties.a.multipleOf', object({ a: { type: 'integer', multipleOf: 2 } })],
    ['schema.properties["a b"].items.oneOf', object({ 'a b': { type: 'array', items: { oneOf: [] } } })],
    ['schema.$ref.type', { $ref: '#/$defs', $defs: {} }],
    ['schema.anyOf[1].$ref', { anyOf: [{ type: 'null' }, { $ref: '#' }] }],
    ['schema.$ref', { $ref: 'https://example.com/a' }],
    ['schema.format', { type: 'string', format: 'email' }],
    ['schema.pattern', { type: 'string', pattern: '(?!a)' }],
    ['schema.minLength', { type: 'string', minLength: 3, maxLength: 2 }],
    ['schema.exclusiveMaximum', { type: 'number', maximum: 3, exclusiveMaximum: true }],
    ['schema', { type: 'integer', minimum: 3, maximum: 2 }],
    ['schema.enum', { type: 'string', enum: [1, null] }],
    ['schema.patternProperties', { type: 'object', patternProperties: {}, additionalProperties: false }],
    ['schema.minimum', { type: 'string', minimum: 3 }],
  ])('what is not of the subset is named: %s of %j', async (option, schema) => {
    const error = await model.generate('a', { schema }).catch((reason) => reason);
    expect(error).toMatchObject({
      option: expect.stringMatching(new RegExp(`^${option.replace(/[.$[\]]/g, '\\$&')}`)),
    });
  });
});

describe('values of schemas', () => {
  const SAMPLERS = ['confidence:0.9', 'fixed', 'entropy:0.5', 'random', 'factor:1', 'dream', 'd3llm'] as const;

  test(
    `${SCHEMAS} random schemas and random weights: each value is valid`,
    async () => {
      const next = random(11);
      for (let i = 0; i < SCHEMAS; i++) {
        const schema = randomSchema(next);
        const options: GenerateOptions = {
          schema,
          sampler: SAMPLERS[i % SAMPLERS.length],
          temperature: [0, 1, 5][i % 3],
          seed: i,
          blockLength: [8, 32, 512][i % 3],
        };
        const { text, object } = await model.generate(`${i}`, options).catch((error) => {
          throw new Error(`${JSON.stringify(options)}: ${error.stack}`);
        });
        expect({ schema, text, valid: compile(schema)(object) }).toEqual({ schema, text, valid: true });
        expect(JSON.parse(text)).toEqual(object);
      }
    },
    6_000 * Math.max(100, SCHEMAS),
  );

  const schema: JsonSchema = {
    type: 'object',
    properties: {
      name: { type: 'string', maxLength: 8 },
      age: { type: 'integer', minimum: 0, maximum: 120 },
      tags: { type: 'array', items: { enum: ['a', 'b'] }, maxItems: 3 },
      born: { type: ['string', 'null'], format: 'date' },
    },
    required: ['name', 'age', 'tags', 'born'],
    additionalProperties: false,
  };

  test.each([
    ...['planner', 'planner:select=bernoulli', 'geometric', 'fixed:8', 'd3llm', 'dream'].map((sampler) => [
      { sampler, temperature: 1 },
    ]),
    ...['prefix', 'dual', 'refresh:3', 'delayed:1'].map((cache) => [{ cache, blockLength: 16, temperature: 1 }]),
    [{ temperature: 1, topK: 5, topP: 0.8 }],
    [{ sampler: ({ positions }: { positions: Int32Array }) => [...positions] }],
    [{ stopAtEos: false, logprobs: true }],
  ] as [GenerateOptions][])('with %j', async (options) => {
    const results = await model.generateBatch(['a', 'b', 'c'], { schema, seed: 1, ...options });
    for (const { object, finishReason } of results) {
      expect(compile(schema)(object)).toBe(true);
      expect(finishReason).toBe('stop');
    }
  });

  test.each([
    ['dream', ['dream', 'confidence']],
    ['sdar', ['dynamic', 'editing', 'entropy-sum']],
    ['fast-dllm-v2', ['sub-blocks', 'confidence']],
    ['illada', ['fixed']],
  ] as const)('of the family %s', async (family, samplers) => {
    using other = await randomModel({ family, plannerLayers: 0 });
    for (const sampler of samplers) {
      const options: GenerateOptions = { schema, seed: 2, sampler, temperature: 1 };
      const { object } = await other.generate('a', options);
      expect(compile(schema)(object)).toBe(true);
    }
  });

  test('rows beside it keep their bits', async () => {
    const plain = { maxTokens: 32, temperature: 1, seed: 4, logprobs: true };
    const alone = await model.generate('x', plain);
    const bound = await model.generate('x', { schema, seed: 4 });
    const [beside, again] = await Promise.all([model.generate('x', plain), model.generate('x', { schema, seed: 4 })]);
    expect(beside).toEqual(alone);
    expect(again).toEqual(bound);
  });

  test('a stream grows to the text', async () => {
    const whole = await model.generate('a', { schema, seed: 7, temperature: 1 });
    let text = '';
    let last: unknown;
    for await (const { delta, result } of model.generateStream('a', { schema, seed: 7, temperature: 1 })) {
      text += delta;
      last = result;
    }
    expect(text).toBe(whole.text);
    expect(last).toEqual(whole);
  });

  test('any object', async () => {
    for (let seed = 0; seed < 5; seed++) {
      const { object } = await model.generate('a', { schema: 'object', temperature: 1, seed });
      expect(Object.prototype.toString.call(object)).toBe('[object Object]');
    }
  });

  test('maxTokens is what all of it takes', async () => {
    const { ids, object } = await model.generate('a', { schema, maxTokens: 120 });
    expect(ids).toHaveLength(120);
    expect(compile(schema)(object)).toBe(true);
    const error = await model.generate('a', { schema, maxTokens: 20 }).catch((reason) => reason);
    expect(error).toBeInstanceOf(RangeError);
    const fewest = Number(/at least (\d+)/.exec(error.message)![1]);
    const least = await model.generate('a', { schema, maxTokens: fewest });
    expect(least.ids).toHaveLength(fewest);
    expect(compile(schema)(least.object)).toBe(true);
  });
});

describe('patterns', () => {
  test.each(['[A-Z][a-z]+, \\d{4}', 'yes|no', '^é{2}.*$', '(?:\\p{Lu}\\.)+'])(
    'the text matches %s',
    async (pattern) => {
      for (let seed = 0; seed < 5; seed++) {
        const { text, object } = await model.generate('a', { pattern, temperature: 2, seed });
        expect(text).toMatch(new RegExp(`^(?:${pattern})$`, 'u'));
        expect(object).toBeUndefined();
      }
    },
  );

  test('slots of a form', async () => {
    const form = ['Year ', { tokens: 6, pattern: '\\d{2,4}' }, '!', 3];
    for (let seed = 0; seed < 5; seed++) {
      const { text } = await model.generate({ prompt: 'a', form }, { temperature: 2, seed });
      expect(text).toMatch(/^Year \d{2,4} {2,4}!/);
    }
    const short = ['a', { tokens: 1, pattern: '\\d{2}' }];
    await expect(model.generate({ prompt: 'a', form: short })).rejects.toThrow('form: no text of 1 tokens');
    const wrong = [{ tokens: 1, patern: 'a' }] as never;
    await expect(model.generate({ prompt: 'a', form: wrong })).rejects.toThrow('did you mean "pattern"');
  });
});

test('what does not go together is refused', async () => {
  const refused = (options: GenerateOptions, message: string, prompt: Parameters<typeof model.generate>[0] = 'a') =>
    expect(model.generate(prompt, options)).rejects.toThrow(message);
  await refused({ schema: { type: 'null' }, pattern: 'a' }, 'pattern: not allowed beside schema');
  await refused({ pattern: 'a', stop: 'b' }, 'stop: not allowed with a pattern');
  await refused({ schema: 'object', research: { compat: 'reference' } }, 'research.compat: not allowed');
  await refused({ pattern: 'a' }, 'pattern: not allowed with a template', { template: '[MASK]' });
  await refused({ pattern: 'a' }, 'pattern: not allowed with a template', { prompt: 'a', suffix: 'b' });
  await refused({ schema: 3 as never }, 'schema: expected a JSON schema');
  await refused({ pattern: /a/ as never }, 'pattern: expected a regular expression as a string');
  using words = await loadModel(await newModelFolder(), { threads: 1 });
  await expect(words.generate('a', { pattern: 'a' })).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
});
