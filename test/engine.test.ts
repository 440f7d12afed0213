// The scheduler: rows of any calls in the same passes, with the bits that each gets alone.
import { DUltraError, type GenerateOptions, loadModel, type MaskedDiffusionModel, type Prompt } from '../lib';
import { prepare } from '../lib/generation/prepare';
import { Engine } from '../lib/sampling/engine';
import type { EngineOptions } from '../lib/sampling/engine-options';
import type { RowStepEvent, SubmitOptions } from '../lib/sampling/job';
import type { RowOutcome } from '../lib/sampling/rows/row';
import { random } from './checkpoints';
import { modelFolder } from './helpers';

const MASK = 96; // of the golden model "base"

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(modelFolder('base'), { threads: 2 });
});
afterAll(() => model.dispose());

/** The parts of a model that its own engine has. */
const partsOf = (of: MaskedDiffusionModel) => of.engineParts();

const samplers: GenerateOptions['sampler'][] = [
  'planner',
  'planner:bernoulli',
  'planner-cut:0.6',
  'confidence:0.2',
  'factor:1.5',
  'entropy:2',
  'entropy-sum:5',
  'geometric:0.4',
  'fixed:6',
  'random:6',
  'd3llm:0.6',
  'dream:6',
];
const caches: GenerateOptions['cache'][] = [
  undefined,
  undefined,
  'prefix',
  'dual',
  'dual:dtype=bfloat16',
  'refresh:3',
  'refresh:changed=0.2:planner=fresh',
  'delayed:1',
];

interface Request {
  prompt: Prompt;
  options: GenerateOptions;
}

/** Requests of all kinds: one after the other they meet every sampler with every cache. */
function requests(count: number, seed: number): Request[] {
  const next = random(seed);
  const below = (n: number) => Math.floor(next() * n);
  return Array.from({ length: count }, (_, i) => ({
    prompt: { promptIds: Array.from({ length: 1 + below(9) }, () => below(90)) },
    options: {
      sampler: samplers[i % samplers.length],
      cache: caches[(i + Math.floor(i / samplers.length)) % caches.length],
      maxTokens: 8 * (1 + below(3)),
      blockLength: 8,
      temperature: [0, 0.7, 1.2][below(3)],
      ...(below(4) === 0 && { topK: 20, topP: 0.9 }),
      seed: below(1e6),
      stopAtEos: below(2) === 0,
      logprobs: true,
    },
  }));
}

/** Submits a request to an engine of its own kind. */
function submit(engine: Engine, { prompt, options }: Request, how: SubmitOptions = {}) {
  const { rows, settings } = prepare(partsOf(model), [prompt], options);
  return engine.submit(rows, settings, how);
}

const newEngine = (options: EngineOptions = {}) => new Engine(partsOf(model), options);
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => 'none',
    (error) => error.code ?? error.message,
  );

describe('rows of several calls', () => {
  const all = requests(96, 5);
  let alone: RowOutcome[];
  beforeAll(async () => {
    const engine = newEngine();
    alone = [];
    for (const request of all) alone.push((await submit(engine, request).outcomes)[0]);
  });

  const engines: [string, EngineOptions][] = [
    ['without limits', {}],
    ['with little room', { kvBytes: 60_000, stepTokens: 64, maxRows: 7 }],
    ['a row at a time', { stepTokens: 1 }],
  ];
  test.each(engines)('%s: each gets the bits that it gets alone', async (_name, options) => {
    const engine = newEngine(options);
    let [mostRows, mostBytes] = [0, 0];
    const onStep = () => {
      mostRows = Math.max(mostRows, engine.state.activeRows);
      mostBytes = Math.max(mostBytes, engine.state.kvBytes.allocated);
    };
    const outcomes = await Promise.all(
      all.map(async (request, i) => {
        // They come at different times.
        await pause((i * 7) % 40);
        return (await submit(engine, request, { priority: i % 10, onStep }).outcomes)[0];
      }),
    );
    expect(outcomes).toEqual(alone);
    expect(mostRows).toBeLessThanOrEqual(options.maxRows ?? all.length);
    expect(mostBytes).toBeLessThanOrEqual(options.kvBytes ?? Number.POSITIVE_INFINITY);
    const { activeRows, queuedRows, kvBytes } = engine.state;
    expect([activeRows, queuedRows, kvBytes.used]).toEqual([0, 0, 0]);
    if (options.kvBytes) expect(engine.state.passRows).toBeGreaterThan(engine.state.passes);
    if (options.stepTokens === 1) expect(engine.state.passRows).toBe(engine.state.passes);
  });

  test('some leave on the way: the others do not notice, and their room is free', async () => {
    const engine = newEngine({ kvBytes: 200_000 });
    const next = random(8);
    const left = new Set([...all.keys()].filter(() => next() < 0.3));
    const outcomes = await Promise.all(
      all.map(async (request, i) => {
        let steps = 0;
        let hasLeft = false;
        const leaves = left.has(i) ? Math.floor(next() * 4) : -1;
        const submission = submit(engine, request, {
          onStep: () => {
            // Who has left is told no more.
            expect(hasLeft).toBe(false);
            if (++steps !== leaves) return;
            hasLeft = true;
            submission.cancel(new Error('left'));
          },
        });
        if (leaves === 0) submission.cancel(new Error('left'));
        return submission.outcomes.then(
          ([outcome]) => outcome,
          (error) => error.message,
        );
      }),
    );
    outcomes.forEach((outcome, i) => {
      if (outcome !== 'left') expect(outcome).toEqual(alone[i]);
      else expect(left.has(i)).toBe(true);
    });
    expect(outcomes.filter((outcome) => outcome === 'left').length).toBeGreaterThan(10);
    expect(engine.state.kvBytes.used).toBe(0);
    expect(engine.state.activeRows).toBe(0);
  });

  test('calls of the library at the same time share passes', async () => {
    const results = await Promise.all(all.slice(0, 24).map(({ prompt, options }) => model.generate(prompt, options)));
    results.forEach((result, i) => {
      expect(Array.from(result.unmaskedAt)).toEqual(Array.from(alone[i].unmaskedAt.slice(alone[i].begin)));
      expect(Array.from(result.ids)).toEqual(Array.from(alone[i].ids.slice(alone[i].begin)));
    });
  });

  test('what a call is told adds up to its outcome', async () => {
    const engine = newEngine();
    await Promise.all(
      all.slice(0, 30).map(async (request, i) => {
        const events: RowStepEvent[] = [];
        const [outcome] = await submit(engine, request, { onStep: (_row, event) => events.push(event) }).outcomes;
        expect(events.map(({ step }) => step)).toEqual(events.map((_, step) => step + 1));
        expect(events.at(-1)!.outcome).toEqual(outcome);
        expect(events.slice(0, -1).every(({ outcome: none }) => none === null)).toBe(true);
        if (String(request.options.sampler).startsWith('d3llm')) return;
        const ids = events[0].ids.slice().fill(MASK);
        for (const { positions, tokens } of events) positions.forEach((p, at) => (ids[p] = tokens[at]));
        for (let p = outcome.begin; p < ids.length; p++) expect([i, ids[p]]).toEqual([i, outcome.ids[p]]);
      }),
    );
  });
});

describe('limits', () => {
  const long: Request = {
    prompt: { promptIds: [1, 2, 3] },
    options: { sampler: 'fixed', maxTokens: 48, blockLength: 8, seed: 3, stopAtEos: false },
  };

  test('maxNfe: the last pass decides every mask, of any sampler and cache', async () => {
    const engine = newEngine();
    await Promise.all(
      requests(48, 9).map(async (request) => {
        for (const maxNfe of [1, 3]) {
          const [outcome] = await submit(engine, request, { maxNfe }).outcomes;
          expect(outcome.nfe).toBeLessThanOrEqual(maxNfe);
          expect(outcome.ids.slice(outcome.begin).includes(MASK)).toBe(false);
        }
      }),
    );
    const [whole] = await submit(engine, long).outcomes;
    const [cut] = await submit(engine, long, { maxNfe: 20 }).outcomes;
    expect([whole.nfe, cut.nfe]).toEqual([48, 20]);
    // Up to its last pass it is the same row.
    for (let p = 0; p < whole.ids.length; p++) if (whole.unmaskedAt[p] < 20) expect(cut.ids[p]).toBe(whole.ids[p]);
  });

  test('a deadline fails a row, or finishes it with what it has', async () => {
    const engine = newEngine();
    const past = performance.now() - 1;
    expect(await codeOf(submit(engine, long, { deadline: past }).outcomes)).toBe('DEADLINE_EXCEEDED');
    const how: SubmitOptions = {
      deadline: performance.now() + 1e6,
      onDeadline: 'finish',
      onStep: (_row, { step }) => {
        if (step === 9) how.deadline = past;
      },
    };
    const [outcome] = await submit(engine, long, how).outcomes;
    // The pass after the ninth has begun when it is told of; the next one is the last.
    expect(outcome.nfe).toBe(11);
    expect(outcome.ids.includes(MASK)).toBe(false);
    expect((await submit(engine, long, { deadline: performance.now() + 1e12 }).outcomes)[0].nfe).toBe(48);
  });

  test('a full queue refuses, and a row that never fits is refused at once', async () => {
    const engine = newEngine({ maxRows: 1, maxQueue: 1, kvBytes: 10_000 });
    const admitted: string[] = [];
    const first = submit(engine, long, { onAdmit: () => admitted.push('first') });
    const second = submit(engine, long, { onAdmit: () => admitted.push('second') });
    expect(await codeOf(submit(engine, long).outcomes)).toBe('OVERLOADED');
    await Promise.all([first.outcomes, second.outcomes]);
    expect(admitted).toEqual(['first', 'second']);
    const cached = { ...long, options: { ...long.options, cache: 'dual' } };
    expect(await codeOf(submit(engine, cached).outcomes)).toBe('OUT_OF_MEMORY');
  });

  test('a long row does not hold up short ones, and priorities divide the work', async () => {
    const engine = newEngine({ stepTokens: 60 });
    const order: string[] = [];
    const run = async (name: string, maxTokens: number, priority?: number) => {
      const request = { ...long, options: { ...long.options, maxTokens } };
      await submit(engine, request, { priority }).outcomes;
      order.push(name);
    };
    await Promise.all([run('long', 48), run('low', 16, 1), run('high', 16, 9)]);
    expect(order).toEqual(['high', 'low', 'long'].sort((a, b) => order.indexOf(a) - order.indexOf(b)));
    expect(order[0]).toBe('high');
    expect(order.indexOf('long')).toBe(2);
  });

  test('rows of other caches get their share, also those that come to a lane that was idle', async () => {
    const engine = newEngine();
    const order: string[] = [];
    const run = (name: string, change: object, how: SubmitOptions = {}) =>
      submit(
        engine,
        { ...long, options: { ...long.options, ...change } },
        {
          ...how,
          onStep: (row, event) => {
            order.push(name);
            how.onStep?.(row, event);
          },
        },
      ).outcomes;
    let second: Promise<RowOutcome[]> | null = null;
    await run(
      'whole',
      {},
      {
        onStep: (_row, { step }) => {
          // Its passes are cheaper, so that it is done before.
          if (step === 24) second = run('dual', { cache: 'dual' });
        },
      },
    );
    await second;
    const passes = order.slice(order.indexOf('dual'), order.lastIndexOf('dual')).join(' ');
    expect(passes).toContain('dual whole dual');
    expect(order.indexOf('dual')).toBeLessThan(28);
    expect(passes).toContain('dual dual');
  });

  test('smaller rows pass one that waits for memory, but not for ever', async () => {
    const cached = { ...long.options, cache: 'dual' };
    // Room for the large row alone, or for some small ones.
    const engine = newEngine({ kvBytes: Math.floor(1.2 * model.cacheBytes(51)) });
    const order: string[] = [];
    const run = (name: string, maxTokens: number) =>
      submit(engine, { ...long, options: { ...cached, maxTokens } }, { onAdmit: () => order.push(name) }).outcomes;
    const first = [run('small', 8), run('small', 8)];
    await pause(0);
    const large = run('large', 48);
    await Promise.all([...first, large, ...Array.from({ length: 60 }, () => run('small', 8))]);
    const before = order.indexOf('large');
    expect(order).toHaveLength(63);
    // 16 pass it, and those that have room beside each other when it becomes their turn.
    expect(before).toBeGreaterThan(4);
    expect(before).toBeLessThan(2 + 16 + 16);
  });

  test('a deadline finishes rows that wait for their turn', async () => {
    const engine = newEngine({ stepTokens: 52 });
    const steps = [0, 0, 0];
    let told: number[] = [];
    const hows = steps.map((_, i) => {
      const how: SubmitOptions = {
        deadline: performance.now() + 1e6,
        onDeadline: 'finish',
        onStep: (_row, { step }) => {
          steps[i] = step;
          if (i > 0 || step !== 3) return;
          told = [...steps];
          for (const other of hows) other.deadline = performance.now() - 1;
        },
      };
      return how;
    });
    const outcomes = await Promise.all(hows.map((how) => submit(engine, long, how).outcomes));
    const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
    // One of them was in a pass, whose next one is its last.
    expect(sum(outcomes.map(([{ nfe }]) => nfe))).toBe(sum(told) + 1 + 3);
  });

  test('a signal stops rows in the queue and on the way', async () => {
    const engine = newEngine({ maxRows: 1 });
    const running = new AbortController();
    const waiting = new AbortController();
    const reasons = [new Error('one'), new Error('two')];
    const first = submit(engine, long, { signal: running.signal, onStep: () => running.abort(reasons[0]) });
    const second = submit(engine, long, { signal: waiting.signal });
    waiting.abort(reasons[1]);
    await expect(second.outcomes).rejects.toBe(reasons[1]);
    await expect(first.outcomes).rejects.toBe(reasons[0]);
    expect((await submit(engine, long).outcomes)[0].nfe).toBe(48);
    await expect(submit(engine, long, { signal: running.signal }).outcomes).rejects.toBe(reasons[0]);
  });
});

describe('failures', () => {
  test('a row that fails by itself takes nobody with it', async () => {
    const engine = newEngine();
    const [good, bad] = requests(2, 3);
    const { rows, settings } = prepare(partsOf(model), [bad.prompt], { ...bad.options, stopAtEos: false });
    const thrown = new Error('of the caller');
    rows[0].isEnd = () => {
      throw thrown;
    };
    const failing = engine.submit(rows, settings);
    const [outcome] = await submit(engine, good).outcomes;
    await expect(failing.outcomes).rejects.toBe(thrown);
    expect(outcome).toEqual((await submit(engine, good).outcomes)[0]);
  });

  test('a row without numbers says so, and the others go on', async () => {
    const parts = partsOf(model);
    const real = parts.native.share();
    /** The model, which has no numbers for rows that begin with 7. */
    const broken = {
      share: () => broken,
      dispose: () => {},
      info: () => real.info(),
      createCache: (...args: Parameters<typeof real.createCache>) => real.createCache(...args),
      step: async (...args: Parameters<typeof real.step>) => {
        const [{ ids, offsets, selectedOnly }] = args;
        const buffer = await real.step(...args);
        const rows = offsets.length - 1;
        const failures = new Int32Array(buffer, 4 * (selectedOnly ? rows + 1 : 2 * rows + 1), rows);
        for (let r = 0; r < rows; r++) if (ids[offsets[r]] === 7) failures[r] = 2 * 5;
        return buffer;
      },
    };
    const engine = new Engine({ ...parts, native: broken as unknown as typeof real });
    for (const cache of [undefined, 'dual'])
      for (const sampler of ['confidence', 'd3llm', 'planner']) {
        const request = (id: number): Request => ({
          prompt: { promptIds: [id, 3] },
          options: { sampler, cache, maxTokens: 16, blockLength: 8, seed: 4 },
        });
        const [good, bad] = [submit(engine, request(5)), submit(engine, request(7))];
        await expect(bad.outcomes).rejects.toThrow(
          new DUltraError('NON_FINITE', 'the model produced a NaN or infinite logit in row 0 at position 5'),
        );
        expect(await good.outcomes).toEqual(await submit(newEngine(), request(5)).outcomes);
        expect(engine.state.kvBytes.allocated).toBe(0);
      }
    real.dispose();
  });

  test('a model that is disposed finishes what it has begun', async () => {
    const other = await loadModel(modelFolder('base'), { threads: 1 });
    const running = other.generate({ promptIds: [1, 2] }, { maxTokens: 32, cache: 'dual', sampler: 'fixed' });
    other.dispose();
    expect((await running).nfe).toBe(32);
    await expect(other.generate({ promptIds: [1] })).rejects.toMatchObject({ code: 'DISPOSED' });
  });
});
