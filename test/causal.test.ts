// Autoregressive models against ONNX Runtime's numbers (scripts/causal-oracle.cjs made them): log-probabilities, greedy
// continuations, batches; and the teacher's reward, whose tokens must not move at the boundary of prompt and
// completion.
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import {
  type CausalModel,
  evaluateCampaign,
  loadCausalModel,
  loadModel,
  type RewardBatch,
  rewards,
  type TaskDataset,
} from '../lib';
import { withTokenizer as asciiTokenizer, modelFolder, temporaryFolder, variant } from './helpers';

interface Expected {
  by: string;
  rows: { ids: number[]; logits: number[] }[];
  prompt: number[];
  greedy: number[];
}

const folderOf = (name: string) => path.join(__dirname, 'fixtures', 'causal', name);

/** log softmax(logits)[token], in double precision. */
function logProb(logits: readonly number[], token: number): number {
  const top = Math.max(...logits);
  return logits[token] - top - Math.log(logits.reduce((sum, x) => sum + Math.exp(x - top), 0));
}

describe.each(['qwen2', 'tied', 'llama'])('%s', (name) => {
  const expected = JSON.parse(readFileSync(path.join(folderOf(name), 'expected.json'), 'utf8')) as Expected;
  let model: CausalModel;
  beforeAll(async () => {
    model = await loadCausalModel(folderOf(name), { threads: 2 });
  });
  afterAll(() => model.dispose());

  test('log-probabilities within 1e-4', async () => {
    expect(expected.by).toMatch(/^onnxruntime-node \d/);
    const v = model.config.embeddingSize;
    // Every split of prompt and completion, all rows in one batch and in small passes.
    const rows = expected.rows.flatMap(({ ids }) =>
      [1, Math.ceil(ids.length / 2)].map((cut) => ({ promptIds: ids.slice(0, cut), ids: ids.slice(cut) })),
    );
    const scored = await model.logProbs(rows);
    let worst = 0;
    rows.forEach(({ promptIds, ids }, i) => {
      const { logits } = expected.rows[Math.floor(i / 2)];
      ids.forEach((token, j) => {
        const at = promptIds.length + j - 1;
        worst = Math.max(worst, Math.abs(scored[i][j] - logProb(logits.slice(at * v, (at + 1) * v), token)));
      });
    });
    expect(worst).toBeLessThan(1e-4);
    expect(worst).toBeGreaterThan(0);
    expect(await model.logProbs(rows, { tokenBudget: 7 })).toEqual(scored);
    expect((await model.logProbs([rows[3]]))[0]).toEqual(scored[3]);
  });

  test('greedy continuation', async () => {
    const { eosTokenIds } = model.config;
    const stop = expected.greedy.findIndex((id) => eosTokenIds.includes(id));
    const want = stop < 0 ? expected.greedy : expected.greedy.slice(0, stop + 1);
    const [result, other] = await model.generateBatch([{ promptIds: expected.prompt }, { promptIds: [5] }], {
      maxTokens: 12,
    });
    expect(Array.from(result.ids)).toEqual(want);
    expect(result.nfe).toBe(want.length);
    expect(result.finishReason).toBe(stop < 0 ? 'length' : 'stop');
    const [scored] = await model.logProbs([{ promptIds: expected.prompt, ids: result.ids }]);
    result.logProbs.forEach((value, i) => {
      expect(value).toBeCloseTo(scored[i], 4);
    });
    const [alone] = await model.generateBatch([{ promptIds: [5] }], { maxTokens: 12 });
    expect(alone.ids).toEqual(other.ids);
  });

  test('samples by the seed', async () => {
    const draw = async (seed: number) =>
      (
        await model.generateBatch([{ promptIds: [5, 6] }, { promptIds: [5, 6] }], {
          maxTokens: 8,
          temperature: 1,
          seed,
        })
      ).map(({ ids }) => Array.from(ids));
    const one = await draw(1);
    expect(await draw(1)).toEqual(one);
    expect(await draw(2)).not.toEqual(one);
    expect(one[0]).not.toEqual(one[1]);
    const [second] = await model.generateBatch([{ promptIds: [5, 6] }], {
      maxTokens: 8,
      temperature: 1,
      seed: 1,
      firstRow: 1,
    });
    expect(Array.from(second.ids)).toEqual(one[1]);
  });
});

test('qwen3 scores as the block diffusion model of its shape does by blocks of one', async () => {
  // Blocks of one position are the causal mask, and SDAR's forward pass is checked against recorded runs.
  const folder = variant('sdar', {
    config: (config) =>
      Object.assign(config, { model_type: 'qwen3', block_size: null, mask_token_id: null, fuse_cross_entropy: null }),
  });
  await using qwen3 = await loadCausalModel(folder, { threads: 1 });
  await using sdar = await loadModel(modelFolder('sdar'), { threads: 1, blockLength: 1 });
  const ids = Int32Array.of(5, 17, 3, 88, 42, 9, 61);
  const { logits } = await sdar.forward({ ids, rowOffsets: [0, ids.length] });
  const v = sdar.config.embeddingSize;
  const [scored] = await qwen3.logProbs([{ promptIds: ids.slice(0, 1), ids: ids.slice(1) }]);
  scored.forEach((value, i) => {
    expect(value).toBeCloseTo(logProb(Array.from(logits!.slice(i * v, (i + 1) * v)), ids[i + 1]), 5);
  });
});

test('an abort rejects with its reason', async () => {
  await using model = await loadCausalModel(folderOf('qwen2'));
  const reason = new Error('enough');
  const controller = new AbortController();
  const work = model.generateBatch([{ promptIds: [5, 6] }], {
    maxTokens: 200,
    temperature: 1,
    signal: controller.signal,
  });
  controller.abort(reason);
  await expect(work).rejects.toBe(reason);
});

describe('loading', () => {
  const broken = (change: (config: Record<string, unknown>) => void): string => {
    const folder = temporaryFolder();
    cpSync(folderOf('qwen2'), folder, { recursive: true });
    const config = JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8')) as Record<string, unknown>;
    change(config);
    writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config));
    return folder;
  };

  test.each<[string, unknown, RegExp]>([
    ['model_type', 'gpt2', /the model is of the family "gpt2", which dultra does not run/],
    ['model_type', 'llada', /model_type: expected .*, got "llada", a masked diffusion model, which loadModel loads/],
    ['hidden_size', 47, /hidden_size \/ num_attention_heads: expected an even head size/],
    ['num_key_value_heads', 3, /num_attention_heads: expected a multiple of num_key_value_heads \(3\), got 4/],
    ['head_dim', 16, /q_proj\.weight: expected shape \[64, 48\], got \[48, 48\]/],
    ['head_dim', 15, /head_dim: expected an even head size, got 15/],
    [
      'rope_scaling',
      { rope_type: 'yarn' },
      /rope_scaling\.rope_type: expected "default" or "linear" or "llama3" or null, got "yarn"/,
    ],
    ['use_sliding_window', true, /use_sliding_window: expected false or null, got true/],
    ['hidden_act', 'gelu', /hidden_act: expected "silu" or null, got "gelu"/],
    ['vocab_size', 'x', /vocab_size: /],
    ['num_hidden_layers', 4, /missing tensors model\.layers\.3\./],
    ['num_hidden_layers', 1, /blocks that config\.json names, got also model\.layers\.1\.[^,]*, .* and \d+ more$/],
    ['model_type', 'llama', /blocks that config\.json names, got also model\.layers\.0\.self_attn\.q_proj\.bias, /],
    ['model_type', 'qwen3', /q_proj\.weight: expected shape \[512, 48\], got \[48, 48\]/],
  ])('%s = %j', async (field, value, message) => {
    const folder = broken((config) => {
      config[field] = value;
    });
    await expect(loadCausalModel(folder)).rejects.toMatchObject({
      code: 'BAD_CHECKPOINT',
      message: expect.stringMatching(message),
    });
  });

  test('arguments', async () => {
    await using model = await loadCausalModel(folderOf('qwen2'));
    await expect(model.logProbs([{ promptIds: [], ids: [1] }])).rejects.toThrow(
      'rows[0].promptIds: expected at least one token, got none',
    );
    await expect(model.logProbs([{ promptIds: [71], ids: [1] }])).rejects.toThrow(
      'rows[0]: expected ids from 0 to 70, got 71',
    );
    await expect(model.generateBatch([{ promptIds: [1] }], { maxTokens: 300 })).rejects.toThrow(
      "more than the model's maximum of 256",
    );
    await expect(model.generateBatch(['text'])).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
    await expect(model.generateBatch([[]] as never, {})).rejects.toBeDefined();
    model.dispose();
    await expect(model.logProbs([])).rejects.toMatchObject({ code: 'DISPOSED' });
  });

  test('biases train: gradients of every tensor against central differences', async () => {
    const folder = variant('base', {
      config: (config) => {
        config.include_bias = true;
        config.bias_for_layer_norm = false;
      },
      tensors: (tensors) => {
        let seed = 1;
        const random = () => {
          seed = (seed * 48271) % 2147483647;
          return seed / 2147483647 - 0.5;
        };
        for (const [name, { shape }] of Object.entries(tensors)) {
          if (
            !/blocks\.\d+\.\w+_(proj|out)\.weight$|mask_head.*_(proj|out)\.weight$|transformer\.ff_out\.weight$/.test(
              name,
            )
          )
            continue;
          const data = Float32Array.from({ length: shape[0] }, random);
          tensors[name.replace('weight', 'bias')] = {
            dtype: 'F32',
            shape: [shape[0]],
            data,
            raw: Buffer.from(data.buffer),
          };
        }
      },
    });
    await using model = await loadModel(folder);
    expect(model.config).toMatchObject({ qkvBias: true, attnOutBias: true, mlpBias: true, headBias: true });
    const trainer = await model.createTrainer();
    const mask = model.config.maskTokenId;
    const request = {
      ids: Int32Array.from([5, 6, mask, mask, 7, mask, 9, mask]),
      offsets: Int32Array.from([0, 5, 8]),
      candidateOffsets: Int32Array.from([0, 2, 4]),
      positions: Int32Array.from([2, 3, 0, 2]),
      tokens: Int32Array.from([8, 3, 4, 11]),
      planner: { timestep: Float32Array.from([0.25, 0.5]), maskIndex: Uint8Array.from([0, 0, 1, 1, 0, 1, 0, 1]) },
    };
    const weights = [0.5, -1, 0.75, 0.25];
    const loss = async () => {
      const { logProbs, plannerLogits } = await trainer.score(request);
      return weights.reduce((sum, w, i) => sum + w * (logProbs![i] - 0.5 * plannerLogits![i]), 0);
    };
    await trainer.score({ ...request, keep: true });
    await trainer.backward({
      dLogProbs: Float32Array.from(weights),
      dPlannerLogits: Float32Array.from(weights, (w) => -0.5 * w),
    });
    const gradients = await trainer.gradients();
    const { step, tensors } = await trainer.state();
    expect(gradients.filter(({ name }) => /(proj|out)\.bias$/.test(name)).length).toBeGreaterThan(14);
    for (const { name, data: gradient } of gradients) {
      // Along the gradient itself the loss changes by h times its norm.
      const norm = Math.sqrt(gradient.reduce((sum, g) => sum + g * g, 0));
      expect(norm).toBeGreaterThan(0);
      const h = 5e-3;
      const moved = async (sign: number) => {
        const shifted = tensors.map((tensor) =>
          tensor.name === name
            ? { ...tensor, data: tensor.data.map((x, i) => x + (sign * h * gradient[i]) / norm) }
            : tensor,
        );
        await trainer.loadState({ step, tensors: shifted });
        return loss();
      };
      const slope = ((await moved(1)) - (await moved(-1))) / (2 * h);
      expect(Math.abs(slope - norm) / Math.max(norm, 0.05)).toBeLessThan(0.02);
    }
    trainer.dispose();
  });
});

describe('the teacher', () => {
  /** A tokenizer that would merge "a" and "b" into one token wherever they meet. */
  function withTokenizer(): string {
    const folder = temporaryFolder();
    cpSync(folderOf('qwen2'), folder, { recursive: true });
    const vocab: Record<string, number> = { a: 5, b: 6, c: 7, ab: 8, ' ': 9, '<|user|>': 10, '<|bot|>': 11 };
    const special = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
    const added = ['<|user|>', '<|bot|>'].map((content) => ({ id: vocab[content], content, ...special }));
    writeFileSync(
      path.join(folder, 'tokenizer.json'),
      JSON.stringify({
        version: '1.0',
        added_tokens: added,
        normalizer: null,
        pre_tokenizer: null,
        post_processor: null,
        decoder: { type: 'Fuse' },
        model: { type: 'BPE', vocab, merges: [['a', 'b']] },
      }),
    );
    const template = '{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|bot|>';
    writeFileSync(path.join(folder, 'tokenizer_config.json'), JSON.stringify({ chat_template: template }));
    return folder;
  }

  test('prompt and completion are tokenised apart', async () => {
    await using teacher = await loadCausalModel(withTokenizer());
    expect(teacher.tokenizer!.encode('cab')).toEqual([7, 8]);
    const reward = rewards.causalLogProb({ model: teacher });
    const prompts = ['ca', [{ role: 'user', content: 'ca' }], 'ca'];
    const batch = {
      completions: ['bc', 'bc', ''],
      examples: prompts.map((prompt) => ({ prompt, answer: null, category: '', meta: null })),
      results: [],
      maxTokens: 4,
      verify: null,
      model: null as never,
    } as unknown as RewardBatch;
    const values = await reward(batch);
    const [text, chat] = await teacher.logProbs([
      { promptIds: [7, 5], ids: [6, 7] },
      { promptIds: [10, 7, 5, 11], ids: [6, 7] },
    ]);
    expect(values[0]).toBeCloseTo((text[0] + text[1]) / 2, 6);
    expect(values[1]).toBeCloseTo((chat[0] + chat[1]) / 2, 6);
    expect(values[2]).toBeNull();
    expect(values[0]).not.toBeCloseTo(values[1]!, 3);
  });

  test('is a baseline beside diffusion', async () => {
    const folder = withTokenizer();
    const examples = ['ca', 'ab', 'c'].map((prompt) => ({ prompt, answer: '', category: '', meta: null }));
    const dataset: TaskDataset<string> = {
      name: 'letters',
      genLength: 6,
      blockLength: 6,
      vocabulary: [],
      finite: { test: examples },
      sample: (_split, count) => examples.slice(0, count),
      verify: (_example, completion) => completion.includes('a'),
    };
    const ascii = asciiTokenizer();
    const campaign = await evaluateCampaign({
      dataset,
      samplers: { 'fixed:3': { type: 'fixed', steps: 3 } },
      models: { diffusion: () => loadModel(ascii), qwen: () => loadCausalModel(folder) },
      traces: 1,
    });
    expect(campaign.rows.map(({ model, sampler }) => [model, sampler])).toEqual([
      ['diffusion', 'fixed:3'],
      ['qwen', 'autoregressive'],
    ]);
    const { results } = campaign.evaluations[1].evaluation;
    expect(results[0]).toMatchObject({ sampler: 'autoregressive', tokensPerForward: { generated: 1, untilEos: 1 } });
    await using teacher = await loadCausalModel(folder);
    const rows = await teacher.generateBatch(['ca', 'ab', 'c'], { maxTokens: 6 });
    expect(results[0].samples.map(({ completion, nfe }) => [completion, nfe])).toEqual(
      rows.map(({ text, nfe }) => [text, nfe]),
    );
    expect(results[0].samples[0].trace!.unmaskedAt).toEqual(Array.from(rows[0].ids, (_, i) => i + 1));
  });

  test('needs a tokenizer, and a model', async () => {
    await using teacher = await loadCausalModel(folderOf('qwen2'));
    const reward = rewards.causalLogProb({ model: teacher });
    await expect(reward({ completions: [], examples: [] } as never)).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
    expect(() => rewards.causalLogProb({ model: {} as never })).toThrow(
      'model: expected a model loaded by loadCausalModel',
    );
  });
});
