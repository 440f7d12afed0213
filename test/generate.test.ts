import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import {
  type GenerateOptions,
  loadModel,
  type MaskedDiffusionModel,
  type Prompt,
  type SamplerCandidates,
  type StreamEvent,
} from '../lib';
import { modelFolder, variant, withoutPlanner } from './helpers';

const MASK = 96; // of the golden model "base"
const EOS = 95;
const prompts: Prompt[] = [
  { promptIds: [5, 17, 3] },
  { promptIds: [40, 41, 42, 43, 44, 45, 46, 47] },
  { promptIds: [1] },
];
const sampled: GenerateOptions = { maxTokens: 24, blockLength: 8, temperature: 0.8, seed: 11, stopAtEos: false };

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(modelFolder('base'), { threads: 2 });
});
afterAll(() => model.dispose());

const everySampler: [string, GenerateOptions['sampler']][] = [
  ['planner topk', { type: 'planner' }],
  ['planner round', { type: 'planner', select: 'round', probabilityScale: 0.4 }],
  ['planner threshold', { type: 'planner', select: 'threshold', cut: 0.6 }],
  ['planner bernoulli', { type: 'planner', select: 'bernoulli', probabilityScale: 1.3, plannerTemperature: 0.7 }],
  ['confidence', { type: 'confidence', threshold: 0.2 }],
  ['factor', { type: 'factor', factor: 1.5 }],
  ['entropy', { type: 'entropy', threshold: 2 }],
  ['entropy sum', { type: 'entropy-sum', gamma: 5 }],
  ['geometric', { type: 'geometric', phi: 0.4 }],
  ['geometric random', { type: 'geometric', phi: 0.4, order: 'random' }],
  ['geometric left to right', { type: 'geometric', phi: 0.4, order: 'left_to_right' }],
  ['fixed', { type: 'fixed', steps: 6 }],
  ['fixed random', { type: 'fixed', steps: 6, remasking: 'random' }],
];

describe('invariants', () => {
  test.each(everySampler)(
    '%s: a batch of different lengths equals its rows alone, bit for bit',
    async (_name, sampler) => {
      const batch = await model.generateBatch(prompts, { ...sampled, sampler });
      for (let i = 0; i < prompts.length; i++) {
        const single = await model.generate(prompts[i], { ...sampled, sampler, research: { firstRow: i } });
        expect(single).toEqual(batch[i]);
        expect(single.ids).not.toContain(MASK);
      }
    },
  );

  test.each([1, 3])('%i threads give the bits of 2', async (threads) => {
    const other = await loadModel(modelFolder('base'), { threads });
    for (const [, sampler] of everySampler)
      expect(await other.generateBatch(prompts, { ...sampled, sampler })).toEqual(
        await model.generateBatch(prompts, { ...sampled, sampler }),
      );
    const forward = {
      ids: [1, 2, 3, 96, 96, 4, 5],
      rowOffsets: [0, 3, 7],
      planner: { timestep: [0.25, 0.5], maskIndex: [0, 0, 0, 1, 1, 0, 0] },
    };
    expect(await other.forward(forward)).toEqual(await model.forward(forward));
    other.dispose();
  });

  test('forcedStep: the likelihood of a forced step with and without log p of the position let through', async () => {
    const options: GenerateOptions = {
      ...sampled,
      sampler: { type: 'planner', select: 'bernoulli', probabilityScale: 0.05 },
    };
    const steps = async (forcedStep?: 'exact' | 'reference') => {
      const rows = [];
      for await (const event of model.denoise([prompts[0]], { ...options, research: { forcedStep } }))
        rows.push(...event.rows);
      return rows;
    };
    const [standard, exact, reference] = [await steps(), await steps('exact'), await steps('reference')];
    expect(exact).toEqual(standard);
    let forced = 0;
    exact.forEach((row, step) => {
      expect(reference[step].ids).toEqual(row.ids);
      const alone = row.selected.reduce((sum, bit) => sum + bit, 0) === 1;
      row.positions.forEach((_, i) => {
        const more = reference[step].logLikelihoods[i] - row.logLikelihoods[i];
        if (row.forced && row.selected[i]) expect(more).toBeCloseTo(Math.log(row.probabilities[i]), 4);
        else if (!alone) expect(more).toBe(0);
      });
      forced += Number(row.forced);
    });
    expect(forced).toBeGreaterThan(3);
  });

  test('the same seed gives the same output, another seed another', async () => {
    const once = await model.generate(prompts[0], { ...sampled, seed: 3 });
    expect(await model.generate(prompts[0], { ...sampled, seed: 3n })).toEqual(once);
    expect((await model.generate(prompts[0], { ...sampled, seed: 4 })).ids).not.toEqual(once.ids);
    expect((await model.generate(prompts[0], { ...sampled, seed: 3, research: { firstRow: 1 } })).ids).not.toEqual(
      once.ids,
    );
  });

  test('a sampler and a cache in their short forms are the objects that they stand for', async () => {
    const short = await model.generate(prompts[0], { ...sampled, sampler: 'planner-round:1.25', cache: 'refresh:2' });
    const sampler = { type: 'planner' as const, select: 'round' as const, probabilityScale: 1.25 };
    expect(await model.generate(prompts[0], { ...sampled, sampler, cache: { type: 'refresh', every: 2 } })).toEqual(
      short,
    );
    const refused = (options: GenerateOptions) => expect(model.generate(prompts[0], options)).rejects;
    await refused({ sampler: 'confidence:high' }).toThrow('sampler.threshold: expected a number, got "high"');
    await refused({ cache: 'refresh:x' }).toThrow('cache');
  });

  test('a stream says what generate returns', async () => {
    const events: StreamEvent[] = [];
    for await (const event of model.generateStream(prompts[0], sampled)) events.push(event);
    const result = await model.generate(prompts[0], sampled);
    expect(events.at(-1)!.result).toEqual(result);
    expect(events.slice(0, -1).every((event) => event.result === null)).toBe(true);
    expect(events.filter((event) => event.unmasked.length > 0)).toHaveLength(result.nfe);
    const ids = new Int32Array(24).fill(MASK);
    for (const event of events) {
      for (const { position, token, probability } of event.unmasked) {
        expect(ids[position]).toBe(MASK);
        ids[position] = token;
        expect(result.unmaskedAt[position]).toBe(event.step);
        expect(probability).toBeGreaterThan(0);
      }
      expect(event.ids).toEqual(ids);
      expect(event.remaining).toBe(ids.filter((id) => id === MASK).length);
    }
    expect(ids).toEqual(result.ids);
  });

  test('with a temperature and no seed each call draws its own, and names it so that it can be repeated', async () => {
    const options = { maxTokens: 24, blockLength: 8, temperature: 1, stopAtEos: false };
    const drawn = [await model.generate(prompts[0], options), await model.generate(prompts[0], options)];
    for await (const { result } of model.generateStream(prompts[0], options)) if (result) drawn.push(result);
    const batch = await model.generateBatch(prompts, options);
    expect(new Set([...drawn, batch[0]].map(({ seed }) => seed)).size).toBe(4);
    for (const result of [...drawn, batch[0]])
      expect(await model.generate(prompts[0], { ...options, seed: result.seed })).toEqual(result);
    const { seed } = batch[2];
    expect(await model.generate(prompts[2], { ...options, seed, research: { firstRow: 2 } })).toEqual(batch[2]);
  });

  test('the seed is the one that is given; 0 without a temperature, with compat and in denoise', async () => {
    const seedOf = async (options: GenerateOptions) => (await model.generate(prompts[0], options)).seed;
    expect(await seedOf({ temperature: 1, seed: 7n })).toBe(7);
    const big = await model.generate(prompts[0], { temperature: 1, seed: 2n ** 64n - 1n });
    expect(big.seed).toBe(2n ** 64n - 1n);
    expect(JSON.parse(JSON.stringify(big)).seed).toBe('18446744073709551615');
    expect(await seedOf({})).toBe(0);
    expect(await seedOf({ sampler: { type: 'planner', select: 'bernoulli' } })).toBe(0);
    expect(await seedOf({ temperature: 1, research: { compat: 'reference' } })).toBe(0);
    const run = model.denoise([prompts[0]], { temperature: 1 });
    let next = await run.next();
    while (!next.done) next = await run.next();
    expect(next.value[0].seed).toBe(0);
  });

  test('results say how many tokens there were, and their time, which comparisons and JSON leave out', async () => {
    const [first, second, third] = await model.generateBatch(prompts, sampled);
    expect(first.usage).toEqual({ promptTokens: 3, completionTokens: first.tokens, totalTokens: 3 + first.tokens });
    expect(second.usage.promptTokens).toBe(8);
    expect(first.seconds).toBeGreaterThan(0);
    expect([second.seconds, third.seconds]).toEqual([first.seconds, first.seconds]);
    expect(first.tokensPerSecond).toBe(first.tokens / first.seconds);
    expect(Object.keys(first)).not.toContain('seconds');
    const json = JSON.parse(JSON.stringify(first));
    expect(Object.keys(json)).toEqual(Object.keys(first));
    expect(json.usage).toEqual(first.usage);
    expect(json.ids).toEqual(Array.from(first.ids));

    const template = [5, MASK, MASK, 7, MASK];
    const filled = await model.generate({ template });
    expect(filled.usage).toEqual({ promptTokens: 2, completionTokens: 3, totalTokens: 5 });
    expect((await model.generate({ promptIds: [5, MASK] }, { maxTokens: 2 })).usage.promptTokens).toBe(2);
  });

  test('the time of a stream is that of its passes, not of its reader', async () => {
    jest.useFakeTimers({ doNotFake: ['nextTick', 'setImmediate', 'queueMicrotask'] });
    try {
      // This clock stands still but where the reader moves it, once the passes are done.
      let result = null;
      for await (const event of model.generateStream(prompts[0], sampled)) {
        if (event.step === 1) await model.generate(prompts[0], sampled);
        jest.advanceTimersByTime(5000);
        result = event.result;
      }
      expect(result).toMatchObject({ seconds: 0, tokensPerSecond: 0 });
      const run = model.denoise([prompts[0]], sampled);
      let next = await run.next();
      for (; !next.done; next = await run.next()) jest.advanceTimersByTime(5000);
      expect(next.value[0].seconds).toBe(0);
    } finally {
      jest.useRealTimers();
    }
  });

  test('stopping at the end of sequence changes nothing before it', async () => {
    let stopped = 0;
    for (let seed = 0; seed < 40; seed++) {
      const options = { ...sampled, temperature: 2, seed, sampler: { type: 'fixed' as const } };
      const full = await model.generate(prompts[0], options);
      const early = await model.generate(prompts[0], { ...options, stopAtEos: true });
      const eos = full.ids.indexOf(EOS);
      expect(early.finishReason).toBe(full.finishReason);
      expect(early.tokens).toBe(full.tokens);
      if (eos < 0) {
        expect(early).toEqual(full);
        continue;
      }
      expect(early.ids.slice(0, eos + 1)).toEqual(full.ids.slice(0, eos + 1));
      expect(early.nfe).toBeLessThanOrEqual(full.nfe);
      if (early.nfe < full.nfe) stopped++;
    }
    expect(stopped).toBeGreaterThan(0);
  });

  test('the fixed schedule takes exactly its steps', async () => {
    const { nfe, unmaskedAt } = await model.generate(prompts[0], { ...sampled, sampler: { type: 'fixed', steps: 6 } });
    expect(nfe).toBe(6);
    // 8 positions per block over 2 steps.
    for (let step = 1; step <= 6; step++) expect(unmaskedAt.filter((at) => at === step)).toHaveLength(4);
  });

  test('bf16 weights and arithmetic stay near fp32', async () => {
    const other = await loadModel(modelFolder('base'), { dtype: 'bfloat16' });
    const ids = [5, 17, 3, MASK, MASK, MASK];
    const exact = (await model.forward({ ids })).logits!;
    // The fixture's weights are representable in bf16, so narrower storage alone loses nothing.
    const stored = (await other.forward({ ids })).logits!;
    expect(Math.max(...stored.map((x, i) => Math.abs(x - exact[i])))).toBeLessThan(1e-4);
    other.dispose();
    if (!model.info.isa.includes('bf16')) {
      console.log(`bf16 arithmetic not run: this CPU's best instruction set is ${model.info.isa}`);
      await expect(loadModel(modelFolder('base'), { compute: 'bfloat16' })).rejects.toMatchObject({
        code: 'DEVICE_UNAVAILABLE',
      });
      return;
    }
    const rounded = await loadModel(modelFolder('base'), { dtype: 'bfloat16', compute: 'bfloat16' });
    const logits = (await rounded.forward({ ids })).logits!;
    const norm = (values: number[]) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
    const relative = norm(Array.from(logits, (x, i) => x - exact[i])) / norm(Array.from(exact));
    expect(relative).toBeLessThan(0.03); // the fixture's own guide for bf16
    expect(relative).toBeGreaterThan(1e-5);
    rounded.dispose();
  });
});

describe('templates', () => {
  test('fills the masks in place and nothing else', async () => {
    const template = [5, MASK, 7, MASK, MASK, 9, MASK];
    const result = await model.generate({ template }, { temperature: 0.5, seed: 2 });
    expect(result.ids).toHaveLength(7);
    expect(result.ids).not.toContain(MASK);
    for (const i of [0, 2, 5]) {
      expect(result.ids[i]).toBe(template[i]);
      expect(result.unmaskedAt[i]).toBe(0);
    }
    for (const i of [1, 3, 4, 6]) expect(result.unmaskedAt[i]).toBeGreaterThan(0);
  });

  test('a prompt may hold masks too: they are filled with the first block', async () => {
    const result = await model.generate({ promptIds: [5, MASK, 7] }, { ...sampled, sampler: { type: 'fixed' } });
    expect(result.ids).not.toContain(MASK);
    expect(result.nfe).toBe(25);
  });

  test('blocks of a template go from left to right', async () => {
    const { unmaskedAt } = await model.generate(
      { template: new Array(10).fill(MASK) },
      { blockLength: 4, sampler: { type: 'fixed' } },
    );
    expect(Math.max(...unmaskedAt.slice(0, 4))).toBe(4);
    expect(Math.max(...unmaskedAt.slice(4, 8))).toBe(8);
    expect(Math.max(...unmaskedAt.slice(8))).toBe(10);
  });

  test('refuses what makes no sense', async () => {
    await expect(model.generate({ template: [1, 2] })).rejects.toThrow(
      'template: expected at least one mask, the mask token (id 96), got none',
    );
    await expect(model.generate({ template: [1, MASK] }, { maxTokens: 8 })).rejects.toThrow(
      /maxTokens: not allowed with a template/,
    );
    await expect(model.generateBatch([{ template: [1, MASK] }, { promptIds: [1] }])).rejects.toThrow(
      /templates only or none/,
    );
  });
});

describe('the samplers, step by step', () => {
  const record = async (sampler: GenerateOptions['sampler']) => {
    const steps: { positions: number[]; entropies: number[]; probabilities: number[]; taken: number[] }[] = [];
    for await (const { rows } of model.denoise([prompts[1]], {
      maxTokens: 16,
      blockLength: 8,
      stopAtEos: false,
      sampler,
    })) {
      const [{ positions, entropies, probabilities, selected }] = rows;
      const taken = Array.from(positions).filter((_, i) => selected[i]);
      steps.push({ positions: [...positions], entropies: [...entropies], probabilities: [...probabilities], taken });
    }
    return steps;
  };

  test('geometric: the share of what is left, block by block', async () => {
    const steps = await record({ type: 'geometric', phi: 0.5, order: 'left_to_right' });
    expect(steps.map(({ taken }) => taken.length)).toEqual([4, 2, 1, 1, 4, 2, 1, 1]);
    for (const { positions, taken } of steps) expect(taken).toEqual(positions.slice(0, taken.length));
    expect((await record({ type: 'geometric', phi: 0.9, order: 'random' })).map(({ taken }) => taken.length)).toEqual([
      7, 1, 7, 1,
    ]);
  });

  test('entropy sum: the largest set that stays within gamma', async () => {
    const gamma = 12;
    let several = 0;
    for (const { positions, entropies, taken } of await record({ type: 'entropy-sum', gamma })) {
      const sorted = positions.map((_, i) => i).sort((i, j) => entropies[i] - entropies[j]);
      let size = 0;
      for (let n = 1; n <= sorted.length; n++) {
        const set = sorted.slice(0, n).map((i) => entropies[i]);
        if (set.reduce((a, b) => a + b, 0) - Math.max(...set) <= gamma) size = n;
      }
      expect(taken).toEqual(
        sorted
          .slice(0, size)
          .map((i) => positions[i])
          .sort((a, b) => a - b),
      );
      several += Number(size > 1);
    }
    expect(several).toBeGreaterThan(0);
  });

  test('planner: rounded count, and a cut', async () => {
    for (const { probabilities, taken } of await record({ type: 'planner', select: 'round', probabilityScale: 0.6 })) {
      const sum = probabilities.reduce((a, b) => a + b, 0);
      expect(taken).toHaveLength(Math.max(1, Math.min(probabilities.length, Math.floor(sum + 0.5))));
    }
    const cut = 0.45;
    for (const { positions, probabilities, taken } of await record({ type: 'planner', select: 'threshold', cut })) {
      const above = positions.filter((_, i) => probabilities[i] > cut);
      const top = positions[probabilities.indexOf(Math.max(...probabilities))];
      expect(taken).toEqual(above.length > 0 ? above : [top]);
    }
  });
});

describe('custom samplers', () => {
  test('see the candidates and decide', async () => {
    const seen: SamplerCandidates[] = [];
    const sampler = async (candidates: SamplerCandidates) => {
      seen.push(candidates);
      return [candidates.positions[0]];
    };
    const result = await model.generate({ promptIds: [5, 17, 3] }, { maxTokens: 6, sampler });
    expect(Array.from(result.unmaskedAt)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(seen.map((candidates) => candidates.positions.length)).toEqual([6, 5, 4, 3, 2, 1]);
    expect(seen[2].ids.slice(0, 5)).toEqual(Int32Array.from([5, 17, 3, ...result.ids.slice(0, 2)]));
    expect(seen[0].plannerLogits).toHaveLength(6);
    expect(seen[0].tokens[0]).toBe(result.ids[0]);
  });

  test('a confidence rule written by hand equals the built-in one', async () => {
    const options = { maxTokens: 24, blockLength: 8 };
    const byHand = await model.generate(prompts[1], {
      ...options,
      sampler: ({ positions, confidences }) => positions.filter((_, i) => confidences[i] >= 0.25),
    });
    const builtIn = await model.generate(prompts[1], { ...options, sampler: { type: 'confidence', threshold: 0.25 } });
    expect(byHand.ids).toEqual(builtIn.ids);
    expect(byHand.unmaskedAt).toEqual(builtIn.unmaskedAt);
  });

  test('errors are theirs, or name what was wrong', async () => {
    await expect(model.generate(prompts[0], { maxTokens: 4, sampler: () => [0] })).rejects.toThrow(
      /out of candidates.positions, got 0/,
    );
    await expect(model.generate(prompts[0], { maxTokens: 4, sampler: () => 3 as never })).rejects.toThrow(
      /expected the function to return an array/,
    );
    const boom = new Error('boom');
    const failing = () => {
      throw boom;
    };
    await expect(model.generate(prompts[0], { maxTokens: 4, sampler: failing })).rejects.toBe(boom);
  });
});

describe('stopping', () => {
  test('a signal that is already aborted', async () => {
    const reason = new Error('no');
    await expect(model.generate(prompts[0], { maxTokens: 8, signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    await expect(model.forward({ ids: [1], signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });

  test('an abort on the way', async () => {
    const controller = new AbortController();
    const reason = new Error('enough');
    let steps = 0;
    const run = (async () => {
      for await (const _event of model.generateStream(prompts[0], {
        maxTokens: 64,
        sampler: { type: 'fixed' },
        signal: controller.signal,
      }))
        if (++steps === 3) controller.abort(reason);
    })();
    await expect(run).rejects.toBe(reason);
    expect(steps).toBe(3);
    const later = new AbortController();
    setTimeout(() => later.abort(reason), 5);
    const many = new Array(60).fill({ promptIds: new Array(32).fill(4) });
    await expect(
      model.generateBatch(many, { maxTokens: 64, sampler: { type: 'fixed' }, signal: later.signal }),
    ).rejects.toBe(reason);
  });

  test('leaving a stream', async () => {
    for await (const event of model.generateStream(prompts[0], { maxTokens: 64, sampler: { type: 'fixed' } }))
      if (event.step === 2) break;
    expect((await model.generate(prompts[0], sampled)).ids).toHaveLength(24);
  });

  test('dispose during work lets it finish, and refuses more', async () => {
    const other = await loadModel(modelFolder('base'));
    const running = other.generate(prompts[0], sampled);
    const expected = await model.generate(prompts[0], sampled);
    other.dispose();
    other.dispose();
    expect(await running).toEqual(expected);
    await expect(other.generate(prompts[0])).rejects.toMatchObject({ name: 'DUltraError', code: 'DISPOSED' });
    await expect(other.forward({ ids: [1] })).rejects.toMatchObject({ code: 'DISPOSED' });
  });

  test('using and await using dispose models, caches and trainers', async () => {
    for (const isAsync of [false, true]) {
      const other = await loadModel(modelFolder('base'));
      const cache = await other.createCache([4]);
      const trainer = await other.createTrainer();
      {
        using _model = isAsync ? null : other;
        using _cache = isAsync ? null : cache;
        using _trainer = isAsync ? null : trainer;
        await using _later = isAsync ? other : null;
        await using _laterCache = isAsync ? cache : null;
        await using _laterTrainer = isAsync ? trainer : null;
      }
      await expect(other.generate(prompts[0])).rejects.toMatchObject({ code: 'DISPOSED' });
      await expect(cache.read(0)).rejects.toMatchObject({ code: 'DISPOSED' });
      await expect(trainer.state()).rejects.toMatchObject({ code: 'DISPOSED' });
    }
  });
});

describe('several at once', () => {
  test('two models, and two generations on one', async () => {
    const gqa = await loadModel(modelFolder('gqa'));
    const alone = [
      await model.generate(prompts[0], sampled),
      await model.generate(prompts[1], sampled),
      await gqa.generate(prompts[0], sampled),
    ];
    const together = await Promise.all([
      model.generate(prompts[0], sampled),
      model.generate(prompts[1], sampled),
      gqa.generate(prompts[0], sampled),
    ]);
    expect(together).toEqual(alone);
    gqa.dispose();
  });

  const dist = path.join(__dirname, '..', 'dist', 'index.js');

  test('worker threads, one of them terminated at work', async () => {
    const code = `
      const { parentPort, workerData } = require('node:worker_threads');
      const { loadModel } = require(workerData.dist);
      (async () => {
        const model = await loadModel(workerData.folder);
        parentPort.postMessage((await model.generate({ promptIds: [5, 17, 3] }, workerData.options)).ids);
        for (;;) await model.generate({ promptIds: [5, 17, 3] }, { maxTokens: 64, sampler: { type: 'fixed' } });
      })();`;
    const workers = [0, 1].map(
      () => new Worker(code, { eval: true, workerData: { dist, folder: modelFolder('base'), options: sampled } }),
    );
    const answers = await Promise.all(
      workers.map(
        (worker) => new Promise<Int32Array>((resolve, reject) => worker.once('message', resolve).once('error', reject)),
      ),
    );
    await Promise.all(workers.map((worker) => worker.terminate()));
    const expected = await model.generate(prompts[0], sampled);
    for (const answer of answers) expect(Array.from(answer)).toEqual(Array.from(expected.ids));
  });

  const endings = [
    'process.exit(7)',
    ...(process.platform === 'win32' ? [] : ["process.kill(process.pid, 'SIGTERM')"]),
  ];
  test.each(endings)('the process may end with work under way: %s', (end) => {
    const code = `
      const { loadModel } = require(${JSON.stringify(dist)});
      loadModel(${JSON.stringify(modelFolder('base'))}).then((model) => {
        model.generateBatch(new Array(50).fill({ promptIds: [1, 2, 3] }), { maxTokens: 64, sampler: { type: 'fixed' } });
        setTimeout(() => { ${end} }, 20);
      });`;
    const { status, signal, stderr } = spawnSync(process.execPath, ['-e', code], {
      encoding: 'utf8',
      timeout: 600_000,
    });
    expect(stderr).toBe('');
    expect(end.includes('exit') ? status : signal).toBe(end.includes('exit') ? 7 : 'SIGTERM');
  });

  test('the event loop stays free', async () => {
    let turns = 0;
    let isDone = false;
    const turn = () => {
      turns++;
      if (!isDone) setImmediate(turn);
    };
    turn();
    await model.generateBatch(new Array(40).fill({ promptIds: new Array(32).fill(4) }), {
      maxTokens: 64,
      blockLength: 64,
      sampler: { type: 'fixed', steps: 16 },
    });
    isDone = true;
    // Work that held the loop would allow a few turns per step; a free loop takes thousands.
    expect(turns).toBeGreaterThan(16 * 20);
  });
});

describe('wrong arguments', () => {
  const wrong: [string, () => Promise<unknown>, RegExp, string][] = [
    [
      'unknown option',
      () => model.generate(prompts[0], { genLenght: 3 } as never),
      /unknown key "genLenght"/,
      'TypeError',
    ],
    [
      'maxTokens',
      () => model.generate(prompts[0], { maxTokens: 0 }),
      /maxTokens: expected an integer at least 1/,
      'RangeError',
    ],
    [
      'block length',
      () => model.generate(prompts[0], { maxTokens: 50, blockLength: 32 }),
      /expected a multiple of blockLength \(32\), got 50/,
      'RangeError',
    ],
    [
      'too long',
      () => model.generate({ promptIds: new Array(90).fill(1) }, { maxTokens: 32 }),
      /90 tokens and maxTokens 32 make 122.*maximum of 96/,
      'RangeError',
    ],
    [
      'id out of range',
      () => model.generate({ promptIds: [1, 104] }),
      /promptIds\[1\]: expected 0 to 103, got 104/,
      'RangeError',
    ],
    [
      'id not whole',
      () => model.generate({ promptIds: [1.5] }),
      /promptIds\[0\]: expected 0 to 103, got 1.5/,
      'RangeError',
    ],
    ['no ids', () => model.generate({ promptIds: null as never }), /promptIds: expected an array/, 'TypeError'],
    ['prompt type', () => model.generate(5 as never), /prompt: expected a string/, 'TypeError'],
    [
      'sampler type',
      () => model.generate(prompts[0], { sampler: { type: 'greedy' } as never }),
      /sampler.type: expected "planner" or/,
      'RangeError',
    ],
    [
      'sampler key',
      () => model.generate(prompts[0], { sampler: { type: 'factor', threshold: 1 } as never }),
      /unknown key "threshold"/,
      'TypeError',
    ],
    [
      'sampler range',
      () => model.generate(prompts[0], { sampler: { type: 'confidence', threshold: 2 } }),
      /threshold.*at most 1, got 2/,
      'RangeError',
    ],
    [
      'cut',
      () => model.generate(prompts[0], { sampler: { type: 'planner', select: 'round', cut: 0.5 } }),
      /cut: only with select "threshold", got select "round"/,
      'TypeError',
    ],
    [
      'phi',
      () => model.generate(prompts[0], { sampler: { type: 'geometric', phi: 0 } }),
      /phi.*greater than 0.*got 0/,
      'RangeError',
    ],
    [
      'gamma',
      () => model.generate(prompts[0], { sampler: { type: 'entropy-sum', gamma: -1 } }),
      /gamma.*at least 0/,
      'RangeError',
    ],
    [
      'steps',
      () => model.generate(prompts[0], { maxTokens: 32, blockLength: 8, sampler: { type: 'fixed', steps: 6 } }),
      /multiple of the number of blocks \(4\)/,
      'RangeError',
    ],
    [
      'temperature',
      () => model.generate(prompts[0], { temperature: Number.NaN }),
      /temperature: expected a finite number/,
      'RangeError',
    ],
    ['seed', () => model.generate(prompts[0], { seed: -1 }), /seed: expected 0 to 2\^64/, 'RangeError'],
    [
      'signal',
      () => model.generate(prompts[0], { signal: 'stop' as never }),
      /signal: expected an AbortSignal/,
      'TypeError',
    ],
    ['forward ids', () => model.forward({ ids: [200] }), /ids\[0\]: expected 0 to 103, got 200/, 'RangeError'],
    [
      'forward offsets',
      () => model.forward({ ids: [1, 2], rowOffsets: [0, 3] }),
      /rowOffsets\[1\]: .*at most 2, got 3/,
      'RangeError',
    ],
    [
      'forward planner',
      () => model.forward({ ids: [1, 2], planner: { timestep: [0, 1], maskIndex: [0, 0] } }),
      /planner.timestep/,
      'RangeError',
    ],
  ];
  test.each(wrong)('%s', async (_name, call, message, name) => {
    await expect(call()).rejects.toMatchObject({ name, message: expect.stringMatching(message) });
  });

  test('text without a tokenizer', async () => {
    await expect(model.generate('hello')).rejects.toMatchObject({
      code: 'NO_TOKENIZER',
      message: expect.stringMatching(/promptIds/),
    });
  });

  test('an empty batch is an empty answer', async () => expect(await model.generateBatch([])).toEqual([]));
});

describe('checkpoints without a planner', () => {
  test('work with the other samplers, with the same tokens', async () => {
    const plain = await loadModel(withoutPlanner('base'));
    expect(plain.hasPlanner).toBe(false);
    expect(plain.info.plannerParameters).toBe(0);
    const sampler = { type: 'confidence' as const };
    expect(await plain.generateBatch(prompts, sampled)).toEqual(
      await model.generateBatch(prompts, { ...sampled, sampler }),
    );
    await expect(plain.generate(prompts[0], { sampler: { type: 'planner' } })).rejects.toMatchObject({
      code: 'NO_PLANNER',
    });
    await expect(plain.forward({ ids: [1], planner: { timestep: [0], maskIndex: [0] } })).rejects.toMatchObject({
      code: 'NO_PLANNER',
    });
    plain.dispose();
  });
});

describe('compat: "reference" where the reference would not end', () => {
  test.each([{ type: 'confidence' as const }, { type: 'factor' as const }, { type: 'fixed' as const, steps: 8 }])(
    '$type stops with an error when the mask itself is predicted',
    async (sampler) => {
      // All logits equal: the lowest id wins, and that is the mask.
      const folder = variant('base', {
        config: (config) => {
          config.mask_token_id = 0;
        },
        tensors: (tensors) => tensors['model.transformer.ff_out.weight'].raw.fill(0),
      });
      const flat = await loadModel(folder);
      const options = { maxTokens: 8, sampler };
      await expect(
        flat.generate({ promptIds: [3] }, { ...options, research: { compat: 'reference' } }),
      ).rejects.toMatchObject({
        code: 'NO_PROGRESS',
      });
      // Ours never predicts it.
      expect(Array.from((await flat.generate({ promptIds: [3] }, options)).ids)).toEqual(new Array(8).fill(1));
      flat.dispose();
    },
  );
});
