// Wrong input to a model that has loaded: what is no array, no number, no signal; and samplers and streams that
// misbehave.
import {
  DUltraError,
  type GenerateOptions,
  isOptionError,
  loadModel,
  type MaskedDiffusionModel,
  type Prompt,
} from '../lib';
import { makeCheckpoint } from './checkpoints';

const MASK = 44;
const { folder } = makeCheckpoint();
let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(folder, { threads: 2 });
});
afterAll(() => model.dispose());

const prompt = { promptIds: [1, 2, 3] };

describe('an error names its option', () => {
  const wrong: [string, () => Promise<unknown>][] = [
    ['maxTokens', () => model.generate(prompt, { maxTokens: 0 })],
    ['sampler.threshold', () => model.generate(prompt, { sampler: { type: 'confidence', threshold: 2 } })],
    ['promptIds[0]', () => model.generate({ promptIds: [-1] })],
    ['threads', () => loadModel(folder, { threads: -1 })],
  ];
  test.each(wrong)('%s', async (option, call) => {
    const error = (await call().catch((thrown) => thrown)) as Error & { option?: string };
    expect([isOptionError(error), error.option]).toEqual([true, option]);
    expect(error.message.startsWith(`${option}: `)).toBe(true);
  });
  test('and errors that are about none do not', () => {
    expect(isOptionError(new TypeError('maxTokens: x'))).toBe(false);
    expect(isOptionError(Object.assign(new DUltraError('INTERNAL', 'x'), { option: 'x' }))).toBe(false);
  });
});

describe('ids', () => {
  const wrong: [string, unknown, RegExp][] = [
    ['a text', '123', /promptIds: expected an array/],
    ['a number', 5, /promptIds: expected an array/],
    ['a function', () => [1], /promptIds: expected an array/],
    ['no length', {}, /promptIds: expected an array/],
    ['a length of NaN', { length: Number.NaN }, /promptIds: expected an array/],
    ['a negative length', { length: -1 }, /promptIds: expected an array/],
    ['a length of infinity', { length: Infinity }, /promptIds: expected an array/],
    ['a length without elements', { length: 2 ** 32 }, /promptIds\[0\]: expected 0 to 47, got undefined/],
    ['a hole', new Array(2), /promptIds\[0\]: expected 0 to 47, got undefined/],
    ['null in it', [null], /promptIds\[0\]/],
    ['text in it', ['1'], /promptIds\[0\]/],
    ['bigints', new BigInt64Array(2), /promptIds\[0\]/],
    ['NaN', [Number.NaN], /promptIds\[0\]: expected 0 to 47, got NaN/],
    ['-1', [-1], /promptIds\[0\]: expected 0 to 47, got -1/],
    ['2^32', [2 ** 32], /promptIds\[0\]: expected 0 to 47, got 4294967296/],
    ['one beyond the tables', Int32Array.from([1, 48]), /promptIds\[1\]: expected 0 to 47, got 48/],
  ];
  test.each(wrong)('%s', async (_name, promptIds, message) => {
    await expect(model.generate({ promptIds } as Prompt)).rejects.toThrow(message);
    await expect(model.generate({ template: promptIds } as Prompt)).rejects.toThrow(/template|tokenizer/);
    await expect(model.forward({ ids: promptIds as number[] })).rejects.toThrow(/ids/);
  });

  test('ids of the padded part of the tables are ids; no prompt at all is one', async () => {
    expect((await model.generate({ promptIds: [47] }, { maxTokens: 4 })).ids).toHaveLength(4);
    expect((await model.generate({ promptIds: [] }, { maxTokens: 4 })).ids).toHaveLength(4);
    expect((await model.generate({ promptIds: { length: 1, 0: 5 } }, { maxTokens: 4 })).promptIds).toEqual(
      Int32Array.from([5]),
    );
  });

  test('without maxTokens, half of what a short model can hold', async () => {
    expect((await model.generate({ promptIds: [1, 2] })).ids).toHaveLength(32);
  });

  test('exactly the longest row fits', async () => {
    const promptIds = new Array(60).fill(1);
    expect((await model.generate({ promptIds }, { maxTokens: 4 })).ids).toHaveLength(4);
    await expect(model.generate({ promptIds }, { maxTokens: 5 })).rejects.toThrow(
      /make 65, more than the model's maximum of 64/,
    );
    expect((await model.generate({ template: new Array(64).fill(MASK) })).ids).toHaveLength(64);
    await expect(model.generate({ template: new Array(65).fill(MASK) })).rejects.toThrow(/at most 64 tokens/);
    await expect(model.forward({ ids: new Array(65).fill(1) })).rejects.toThrow(/expected 1 to 64 tokens, got 65/);
    await expect(model.generate(prompt, { maxTokens: 2 ** 30 })).rejects.toThrow(/more than the model's maximum/);
  });

  const prompts: [string, unknown][] = [
    ['null', null],
    ['undefined', undefined],
    ['an empty object', {}],
    ['true', true],
    ['a symbol', Symbol('x')],
    ['another key', { promptIds: [1], tokens: [1] }],
    ['both', { promptIds: [1], template: [MASK] }],
  ];
  test.each(prompts)('a prompt that is %s', async (_name, value) => {
    await expect(model.generate(value as Prompt)).rejects.toThrow(TypeError);
    await expect(model.generateBatch([prompt, value as Prompt], { maxTokens: 4 })).rejects.toThrow(TypeError);
  });
  test.each([null, 'x', { length: 1 }, prompt])('prompts that are %j', async (value) => {
    await expect(model.generateBatch(value as never)).rejects.toThrow(/prompts: expected an array/);
  });
});

describe('forward', () => {
  const wrong: [string, object, RegExp][] = [
    ['a key', { id: [1] }, /unknown key "id"/],
    ['no ids', { ids: [] }, /expected 1 to 64 tokens, got 0/],
    ['logits', { ids: [1], logits: 'no' }, /logits: expected a boolean/],
    ['signal', { ids: [1], signal: 5 }, /signal: expected an AbortSignal, got 5/],
    ['signal null', { ids: [1], signal: null }, /signal: expected an AbortSignal, got null/],
    ['offsets of text', { ids: [1, 2], rowOffsets: '02' }, /rowOffsets: expected an array/],
    ['no offsets', { ids: [1, 2], rowOffsets: [] }, /offsets: expected 0 first/],
    ['offsets that begin late', { ids: [1, 2], rowOffsets: [1, 2] }, /offsets: expected 0 first/],
    ['offsets that end early', { ids: [1, 2], rowOffsets: [0, 1] }, /offsets: expected 0 first/],
    ['an offset of NaN', { ids: [1, 2], rowOffsets: [0, Number.NaN, 2] }, /rowOffsets\[1\]: .*got NaN/],
    ['half an offset', { ids: [1, 2], rowOffsets: [0, 1.5, 2] }, /rowOffsets\[1\]: .*got 1\.5/],
    [
      'an offset that wraps to 1',
      { ids: [1, 2], rowOffsets: [0, 2 ** 32 + 1, 2] },
      /rowOffsets\[1\]: .*at most 2, got 4294967297/,
    ],
    ['a negative offset', { ids: [1, 2], rowOffsets: [0, -1, 2] }, /rowOffsets\[1\]: .*got -1/],
    ['falling offsets', { ids: [1, 2], rowOffsets: [0, 2, 1, 2] }, /row 1: expected 1 to 64 tokens, got -1/],
    ['an empty row', { ids: [1, 2], rowOffsets: [0, 0, 2] }, /row 0: expected 1 to 64 tokens, got 0/],
    ['an empty planner', { ids: [1], planner: {} }, /planner\.timestep: expected an array/],
    ['a planner key', { ids: [1], planner: { timestep: [0], maskIndex: [0], t: 1 } }, /planner: unknown key "t"/],
    [
      'a timestep of NaN',
      { ids: [1], planner: { timestep: [Number.NaN], maskIndex: [0] } },
      /planner\.timestep\[0\]: .*got NaN/,
    ],
    [
      'a timestep above 1',
      { ids: [1], planner: { timestep: [1.1], maskIndex: [0] } },
      /planner\.timestep\[0\]: .*at most 1, got 1\.1/,
    ],
    ['a mask index of 2', { ids: [1], planner: { timestep: [0], maskIndex: [2] } }, /planner\.maskIndex\[0\]: .*got 2/],
    [
      'a mask index of text',
      { ids: [1], planner: { timestep: [0], maskIndex: ['x'] } },
      /planner\.maskIndex\[0\]: .*got "x"/,
    ],
    [
      'too few mask indices',
      { ids: [1, 2], planner: { timestep: [0], maskIndex: [1] } },
      /planner\.maskIndex: expected one entry per id/,
    ],
  ];
  test.each(wrong)('%s', async (_name, request, message) => {
    await expect(model.forward(request as never)).rejects.toThrow(message);
  });

  test('booleans are mask indices', async () => {
    const ids = [1, MASK];
    const numbers = await model.forward({ ids, planner: { timestep: [0.5], maskIndex: [0, 1] } });
    expect(await model.forward({ ids, planner: { timestep: [0.5], maskIndex: [false, true] } })).toEqual(numbers);
    expect((await model.forward({ ids, logits: false })).logits).toBeNull();
  });
});

describe('options', () => {
  test.each([
    [{ genLength: 8 }, 'options: unknown key "genLength"; did you mean "maxTokens"? Expected one of sampler, '],
    [{ maxNewTokens: 8 }, 'unknown key "maxNewTokens"; did you mean "maxTokens"?'],
    [{ maxOutputTokens: 8 }, 'did you mean "maxTokens"?'],
    [{ max_tokens: 8 }, 'did you mean "maxTokens"?'],
    [{ max_new_tokens: 8 }, 'did you mean "maxTokens"?'],
    [{ block_length: 8 }, 'did you mean "blockLength"?'],
    [{ temprature: 1 }, 'did you mean "temperature"?'],
    [{ sed: 1 }, 'did you mean "seed"?'],
    [{ steps: 16 }, 'unknown key "steps"; did you mean "sampler"?'],
    [{ logProbs: true }, 'did you mean "logprobs"?'],
    [{ compat: 'reference' }, 'did you mean "research"?'],
    [{ firstRow: 1 }, 'did you mean "research"?'],
    [{ abortSignal: null }, 'did you mean "signal"?'],
    [{ sampler: { type: 'confidence', treshold: 0.9 } }, 'sampler: unknown key "treshold"; did you mean "threshold"?'],
    [{ cache: { type: 'refresh', evrey: 2 } }, 'cache: unknown key "evrey"; did you mean "every"?'],
    [{ colour: 1 }, 'options: unknown key "colour"; expected one of sampler, '],
    [{ ['x'.repeat(5000)]: 1 }, /^options: unknown key "x{79}…; expected one of/],
  ])('an unknown key, and what it may stand for: %j', async (options, message) => {
    await expect(model.generate('x', options as never)).rejects.toThrow(TypeError);
    await expect(model.generate('x', options as never)).rejects.toThrow(message);
  });

  const wrong: [string, object, RegExp][] = [
    ['null', null as never, /options: expected an object, got null/],
    ['text', 'x' as never, /options: expected an object/],
    ['maxTokens text', { maxTokens: '8' }, /maxTokens: expected an integer.*got "8"/],
    ['maxTokens NaN', { maxTokens: Number.NaN }, /maxTokens: .*got NaN/],
    ['blockLength 0', { maxTokens: 8, blockLength: 0 }, /blockLength: .*got 0/],
    ['temperature negative', { temperature: -0.1 }, /temperature: .*at least 0.*got -0\.1/],
    ['temperature infinite', { temperature: Infinity }, /temperature: expected a finite number/],
    ['seed 0.5', { seed: 0.5 }, /seed: expected a safe integer/],
    ['seed 2^53', { seed: 2 ** 53 }, /seed: expected a safe integer/],
    ['seed 2^64', { seed: 2n ** 64n }, /seed: expected 0 to 2\^64 - 1/],
    ['firstRow 2^32', { research: { firstRow: 2 ** 32 } }, /^research\.firstRow: .*at most 4294967295/],
    ['stopAtEos', { stopAtEos: 1 }, /stopAtEos: expected true or false, got 1/],
    [
      'tokenLogProb',
      { research: { tokenLogProb: 'cold' } },
      /^research\.tokenLogProb: expected "untempered" or "tempered"/,
    ],
    ['research null', { research: null }, /^research: expected an object, got null/],
    ['a research key', { research: { seed: 1 } }, /^research: unknown key "seed"/],
    ['compat', { research: { compat: 'Reference' } }, /^research\.compat: expected "reference"/],
    [
      'sampler null',
      { sampler: null },
      /sampler: expected an object with a "type", its short form such as "confidence:0.9", or a function, got null/,
    ],
    ['sampler array', { sampler: [] }, /sampler\.type: expected/],
    [
      'sampler inherited type',
      { sampler: Object.create({ type: 'fixed' }, { x: { value: 1, enumerable: true } }) },
      /unknown key "x"/,
    ],
    [
      'planner select',
      { sampler: { type: 'planner', select: 'all' } },
      /sampler\.select: expected "topk" or "round" or "threshold" or "bernoulli"/,
    ],
    ['planner scale', { sampler: { type: 'planner', probabilityScale: 0 } }, /probabilityScale: .*greater than 0/],
    [
      'planner temperature',
      { sampler: { type: 'planner', plannerTemperature: -1 } },
      /plannerTemperature: .*greater than 0/,
    ],
    ['threshold NaN', { sampler: { type: 'confidence', threshold: Number.NaN } }, /threshold: .*got NaN/],
    ['factor negative', { sampler: { type: 'factor', factor: -1 } }, /factor: .*at least 0/],
    ['entropy text', { sampler: { type: 'entropy', threshold: 'low' } }, /threshold: expected a number/],
    ['fixed steps', { sampler: { type: 'fixed', steps: 1.5 } }, /steps: expected an integer/],
  ];
  test.each(wrong)('%s', async (_name, value, message) => {
    const options = (
      value !== null && typeof value === 'object' ? { maxTokens: 8, ...value } : value
    ) as GenerateOptions;
    await expect(model.generate(prompt, options)).rejects.toThrow(message);
    const stream = model.generateStream(prompt, options);
    await expect(stream.next()).rejects.toThrow(message);
    // Nothing of it stays: the model works on.
    expect((await stream.next()).done).toBe(true);
  });
});

describe('recorded uniforms', () => {
  const options: GenerateOptions = { maxTokens: 4, temperature: 1, sampler: { type: 'planner', select: 'bernoulli' } };
  test.each([
    ['too few for tokens', { token: new Float64Array(3) }, /uniforms\.token/],
    ['too many for positions', { position: new Float64Array(5) }, /uniforms\.position/],
  ])('%s', async (_name, draws, message) => {
    await expect(model.denoise([prompt], options, () => draws).next()).rejects.toThrow(message);
  });
});

describe('samplers and streams that misbehave', () => {
  const run = (sampler: GenerateOptions['sampler']) => model.generate(prompt, { maxTokens: 6, sampler });
  test('positions twice count once; positions that are none do not count', async () => {
    expect((await run(({ positions }) => [positions[0], positions[0]])).nfe).toBe(6);
    for (const bad of [[-1], [1.5], ['3'], [undefined], [Number.NaN], [1e9]])
      await expect(run(() => bad as number[])).rejects.toThrow(/expected positions out of candidates\.positions/);
    for (const bad of [null, undefined, 5, 'x', {}])
      await expect(run(() => bad as never)).rejects.toThrow(/return an array of positions/);
    await expect(run(async () => Promise.reject(new Error('later')))).rejects.toThrow('later');
  });

  test('what a sampler does to its arrays stays with it', async () => {
    const honest = await run(({ positions }) => [positions[0]]);
    const vandal = await run((candidates) => {
      const [first] = candidates.positions;
      candidates.ids.fill(0);
      return [first];
    });
    expect(vandal.ids).toEqual(honest.ids);
  });

  test('an abort inside a sampler, and inside a stream', async () => {
    const controller = new AbortController();
    const reason = new Error('inside');
    const aborting = model.generate(prompt, {
      maxTokens: 6,
      signal: controller.signal,
      sampler: ({ positions }) => {
        controller.abort(reason);
        return [positions[0]];
      },
    });
    await expect(aborting).rejects.toBe(reason);
    const second = new AbortController();
    const events: unknown[] = [];
    const reading = (async () => {
      for await (const event of model.generateStream(prompt, {
        maxTokens: 20,
        signal: second.signal,
        sampler: { type: 'fixed' },
      })) {
        events.push(event);
        if (events.length === 3) second.abort(reason);
      }
    })();
    await expect(reading).rejects.toBe(reason);
    expect(events).toHaveLength(3);
  });

  test('a model disposed in the middle of a stream: the stream ends as it would have', async () => {
    const other = await loadModel(folder, { threads: 1 });
    const options: GenerateOptions = { maxTokens: 8, sampler: { type: 'fixed' }, seed: 3, temperature: 1 };
    const expected = await other.generate(prompt, options);
    let result = null;
    for await (const event of other.generateStream(prompt, options)) {
      other.dispose();
      result = event.result;
    }
    expect(result).toEqual(expected);
    await expect(other.generateStream(prompt, options).next()).rejects.toMatchObject({ code: 'DISPOSED' });
    await expect(other.denoise([prompt], options).next()).rejects.toMatchObject({ code: 'DISPOSED' });
    await expect(other.generateBatch([prompt], options)).rejects.toMatchObject({ code: 'DISPOSED' });
  });
});
