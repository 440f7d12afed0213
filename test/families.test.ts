// Which family reads a checkpoint, and what its tensors are called.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadCausalModel, loadModel } from '../lib';
import { parseCausalCheckpoint, parseDiffusionCheckpoint } from '../lib/model/families';
import { expectedTensors } from '../lib/model/tensors';
import { type FixtureTensor, modelFolder, readTensors, temporaryFolder, variant, writeTensors } from './helpers';

const causalFolder = (name: string) => path.join(__dirname, 'fixtures', 'causal', name);
const configOf = (folder: string) =>
  JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8')) as Record<string, unknown>;
const tensors = { has: () => true };

describe('the registry', () => {
  const runs =
    'it runs the masked diffusion models "llada".* and, with loadCausalModel, the autoregressive ones .*"qwen2"';
  test.each([
    ['by its type', { model_type: 'gpt2' }, '"gpt2", which dultra does not run'],
    ['by its type of another spelling', { model_type: 'LLaDA' }, '"LLaDA", which dultra does not run'],
    ['without a type', { model_type: null }, '"LLaDOUModelLM", which dultra does not run'],
    ['without any name', { model_type: null, architectures: null }, 'null, which dultra does not run'],
    [
      'as a variant that keeps the type',
      { architectures: ['LLaDAMoEModelLM'], d_model: undefined, hidden_size: 2048 },
      '"LLaDAMoEModelLM", which dultra does not run \\(d_model: .*\\)',
    ],
  ])('another family is refused by its name: %s', async (_name, change, words) => {
    const folder = variant('base', {
      config: (config) => Object.assign(config, { architectures: ['LLaDOUModelLM'] }, change),
    });
    const message = expect.stringMatching(new RegExp(`config\\.json: the model is of the family ${words}; ${runs}`));
    await expect(loadModel(folder)).rejects.toMatchObject({ code: 'BAD_CHECKPOINT', message });
    await expect(loadCausalModel(folder)).rejects.toMatchObject({ code: 'BAD_CHECKPOINT' });
  });

  test('an unknown class whose config fits is tried, and a known one is refused by the field', async () => {
    const folder = (change: object) => variant('base', { config: (config) => Object.assign(config, change) });
    (await loadModel(folder({ architectures: ['MyLLaDA'] }))).dispose();
    await expect(loadModel(folder({ architectures: ['LLaDAModelLM'], d_model: null }))).rejects.toThrow(
      /config\.json: d_model: [^;]*$/,
    );
  });

  test('a quantized checkpoint is refused by the setting', async () => {
    const quantized = (value: unknown) =>
      variant('base', { config: (config) => Object.assign(config, { quantization_config: value }) });
    await expect(loadModel(quantized({ quant_method: 'awq', bits: 4 }))).rejects.toThrow(
      /quantization_config: expected null, got an object/,
    );
    (await loadModel(quantized(null))).dispose();
  });

  test('a checkpoint of the other kind names the function that loads it', async () => {
    await expect(loadModel(causalFolder('qwen2'))).rejects.toThrow(
      'model_type: expected a masked diffusion model, got "qwen2", an autoregressive model, which loadCausalModel loads',
    );
    await expect(loadCausalModel(modelFolder('base'))).rejects.toThrow(
      'model_type: expected an autoregressive model, got "llada", a masked diffusion model, which loadModel loads',
    );
  });
});

describe('diffusion decoders', () => {
  const qwen = {
    hidden_act: 'silu',
    max_position_embeddings: 32768,
    max_window_layers: 28,
    rms_norm_eps: 1e-6,
    rope_scaling: null,
    rope_theta: 1000000.0,
    sliding_window: null,
    torch_dtype: 'bfloat16',
    use_cache: true,
    use_sliding_window: false,
    initializer_range: 0.02,
    attention_dropout: 0.0,
  };
  /** As published, as far as it decides anything. */
  const published: [name: string, json: Record<string, unknown>, config: object][] = [
    [
      'Dream-org/Dream-v0-Instruct-7B',
      {
        ...qwen,
        architectures: ['DreamModel'],
        model_type: 'Dream',
        hidden_size: 3584,
        intermediate_size: 18944,
        num_hidden_layers: 28,
        num_attention_heads: 28,
        num_key_value_heads: 4,
        vocab_size: 152064,
        max_position_embeddings: 131072,
        mask_token_id: 151666,
        pad_token_id: 151643,
        bos_token_id: 151643,
        eos_token_id: 151643,
        tie_word_embeddings: false,
        use_mrope: false,
      },
      { family: 'dream', headDim: 128, nKvHeads: 4, qkvBias: true, maskTokenId: 151666, shiftLogits: true },
    ],
    [
      'GSAI-ML/iLLaDA-8B-Instruct, which names its mask nowhere',
      {
        architectures: ['ILLaDAForCausalLM'],
        model_type: 'illada',
        auto_map: { AutoModel: 'modeling_illada.ILLaDAForCausalLM' },
        hidden_act: 'silu',
        hidden_size: 4096,
        intermediate_size: 14336,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        vocab_size: 155136,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        layer_norm_eps: null,
        rope_theta: 500000.0,
        rope_scaling: null,
        attention_bias: false,
        mlp_bias: false,
        attention_dropout: 0.0,
        resid_pdrop: 0.0,
        tie_word_embeddings: true,
        torch_dtype: 'bfloat16',
      },
      { family: 'illada', mask: 'bidirectional', maskTokenId: 5, nKvHeads: 8, weightTying: true, qkNorm: false },
    ],
    [
      'JetLM/SDAR-4B-Chat, which does not name its blocks and its mask',
      {
        ...qwen,
        architectures: ['SDARForCausalLM'],
        model_type: 'sdar',
        hidden_size: 2560,
        head_dim: 128,
        intermediate_size: 9728,
        num_hidden_layers: 36,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        vocab_size: 151936,
        eos_token_id: 151643,
        attention_bias: false,
        tie_word_embeddings: false,
        fuse_cross_entropy: true,
      },
      { family: 'sdar', mask: 'block-causal', blockLength: 4, maskTokenId: 151669, qkNorm: true, headDim: 128 },
    ],
    [
      'Efficient-Large-Model/Fast_dLLM_v2_7B',
      {
        ...qwen,
        architectures: ['Fast_dLLM_QwenForCausalLM'],
        model_type: 'Fast_dLLM_Qwen',
        auto_map: { AutoModel: 'modeling.Fast_dLLM_QwenModel' },
        bd_size: 32,
        conplemenrary_mask: true,
        hidden_size: 3584,
        intermediate_size: 18944,
        num_hidden_layers: 28,
        num_attention_heads: 28,
        num_key_value_heads: 4,
        vocab_size: 152064,
        eos_token_id: 151645,
        layer_types: new Array(28).fill('full_attention'),
        tie_word_embeddings: false,
      },
      { family: 'fast-dllm-v2', blockLength: 32, maskTokenId: 151665, shiftLogits: true, qkvBias: true },
    ],
    [
      'dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1, whose tokenizer names the mask',
      {
        ...qwen,
        architectures: ['A2DQwen3LMHeadModel'],
        model_type: 'a2d-qwen3',
        hidden_size: 1024,
        head_dim: 128,
        intermediate_size: 3072,
        num_hidden_layers: 28,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        vocab_size: 151936,
        eos_token_id: 151645,
        tie_word_embeddings: true,
        attention_bias: false,
      },
      { family: 'a2d-qwen3', mask: 'bidirectional', maskTokenId: 151670, headDim: 128, weightTying: true },
    ],
  ];
  test.each(published)('%s', (_name, json, config) => {
    const { config: parsed, checkpointName } = parseDiffusionCheckpoint(
      json,
      'config.json',
      { has: (name) => !name.startsWith('mask_linear') },
      { tokenizerMaskId: 151670 },
    );
    expect(parsed).toMatchObject({ ...config, planner: null });
    const names = [...expectedTensors(parsed).keys()].map(checkpointName);
    expect(new Set(names).size).toBe(names.length);
    expect(names.includes('model.layers.0.self_attn.q_norm.weight')).toBe(parsed.qkNorm);
    expect(names.includes('model.layers.0.self_attn.q_proj.bias')).toBe(parsed.qkvBias);
    expect(names.includes('lm_head.weight')).toBe(!parsed.weightTying);
  });

  const [, [, illadaJson], [, sdarJson]] = published;
  const parse = (json: Record<string, unknown>, hints = {}) =>
    parseDiffusionCheckpoint(json, 'config.json', { has: (name) => !name.startsWith('mask_linear') }, hints).config;

  test('the mask token is the one of config.json, then the family, then the caller, then the tokenizer', () => {
    const hints = { maskTokenId: 7, tokenizerMaskId: 8 };
    expect(parse({ ...sdarJson, mask_token_id: 9 }, hints).maskTokenId).toBe(9);
    expect(parse(sdarJson, hints).maskTokenId).toBe(151669);
    const other = { ...sdarJson, vocab_size: 1000, eos_token_id: 1 };
    expect(parse(other, hints).maskTokenId).toBe(7);
    expect(parse(other, { tokenizerMaskId: 8 }).maskTokenId).toBe(8);
    expect(() => parse(other)).toThrow('mask_token_id: expected the id of the mask token, got none');
    expect(() => parse(other, { tokenizerMaskId: 1000 })).toThrow('expected an id below vocab_size (1000), got 1000');
  });

  test.each<[Record<string, unknown>, string]>([
    [{ ...published[0][1], block_size: 4 }, 'block_size: a key that is not known here and may change the results'],
    [{ ...sdarJson, block_size: 0 }, 'block_size: '],
    [{ ...illadaJson, layer_norm_eps: 1e-5 }, 'layer_norm_eps: expected null'],
    [{ ...illadaJson, rope_scaling: { rope_type: 'linear', factor: 2 } }, 'rope_scaling.rope_type: expected "default"'],
    [{ ...sdarJson, head_dim: 127 }, 'head_dim: expected an even head size, got 127'],
    [
      { ...sdarJson, num_key_value_heads: 5 },
      'num_attention_heads: expected a multiple of num_key_value_heads (5), got 32',
    ],
    [{ ...sdarJson, rope_scaling: { rope_type: 'yarn', factor: 4 } }, 'rope_scaling.rope_type: expected'],
    [{ ...sdarJson, num_experts: 128 }, 'num_experts: a key that is not known here and may change the results'],
  ])('%#: refused by name', (json, message) => {
    expect(() => parse(json)).toThrow(message);
  });

  test('a checkpoint without an output head, and one without the norms of its heads', async () => {
    const tied = variant('sdar', {
      tensors: (tensors) => {
        delete tensors['lm_head.weight'];
      },
    });
    const model = await loadModel(tied);
    expect(model.config.weightTying).toBe(true);
    model.dispose();
    const bare = variant('sdar', {
      tensors: (tensors) => {
        delete tensors['model.layers.1.self_attn.k_norm.weight'];
      },
    });
    await expect(loadModel(bare)).rejects.toThrow('missing tensors model.layers.1.self_attn.k_norm.weight');
    const wide = variant('sdar', {
      tensors: (tensors) => {
        const { shape } = tensors['model.layers.0.self_attn.q_norm.weight'];
        Object.assign(tensors['model.layers.0.self_attn.q_norm.weight'], { shape: [1, ...shape] });
      },
    });
    await expect(loadModel(wide)).rejects.toThrow(
      'tensor model.layers.0.self_attn.q_norm.weight: expected shape [16], got [1, 16]',
    );
  });

  test('what is saved loads again, with the same numbers', async () => {
    const ids = [5, 6, 7, 8, 9, 10, 11, 12, 97, 97];
    for (const name of ['sdar', 'dream_gqa']) {
      await using model = await loadModel(modelFolder(name));
      const folder = path.join(temporaryFolder(), 'saved');
      await model.save(folder);
      await using again = await loadModel(folder);
      expect(again.config).toEqual(model.config);
      expect(await again.forward({ ids, rowOffsets: [0, 10] })).toEqual(
        await model.forward({ ids, rowOffsets: [0, 10] }),
      );
    }
  });
});

describe('names of tensors', () => {
  test('LLaDA: those of the table', () => {
    const { config, checkpointName } = parseDiffusionCheckpoint(configOf(modelFolder('base')), 'config.json', tensors);
    for (const name of expectedTensors(config).keys()) expect(checkpointName(name)).toBe(name);
  });

  test.each(['qwen2', 'llama', 'tied'])('%s: every tensor has one of its own, and no other exists', (name) => {
    const { config, checkpointName } = parseCausalCheckpoint(configOf(causalFolder(name)), 'config.json', tensors);
    const table = [...expectedTensors(config).keys()];
    const names = table.map(checkpointName);
    expect(new Set(names).size).toBe(table.length);
    expect(names.every((one) => /^(model\.(layers\.\d+|embed_tokens|norm)\.|lm_head\.)/.test(one))).toBe(true);
    for (const unknown of [
      'mask_linear.weight',
      'model.transformer.ff_out.bias',
      'model.transformer.blocks.0.toString.weight',
      'lm_head.weight',
    ])
      expect(() => checkpointName(unknown)).toThrow(`tensor ${unknown}: decoders have no such tensor`);
  });
});

describe('decoders', () => {
  const rows = [{ promptIds: [5, 6, 7], ids: [8, 9, 2] }];
  /** The Llama of the fixtures with its config and tensors changed. */
  const changed = (
    config: Record<string, unknown>,
    change: (tensors: Record<string, FixtureTensor>) => void = () => {},
  ): string => {
    const folder = temporaryFolder();
    const from = causalFolder('llama');
    writeFileSync(path.join(folder, 'config.json'), JSON.stringify({ ...configOf(from), ...config }));
    const tensors = readTensors(path.join(from, 'model.safetensors'));
    change(tensors);
    writeTensors(path.join(folder, 'model.safetensors'), tensors);
    return folder;
  };
  const logProbsOf = async (folder: string) => {
    await using model = await loadCausalModel(folder, { threads: 1 });
    return Array.from((await model.logProbs(rows))[0]);
  };
  const tensor = (shape: number[], data: Float32Array): FixtureTensor => ({
    dtype: 'F32',
    shape,
    data,
    raw: Buffer.from(data.buffer),
  });
  /** Rows and columns of a matrix, from 0 on. */
  const part = ({ shape, data }: FixtureTensor, height: number, width: number): FixtureTensor =>
    tensor(
      [height, width],
      Float32Array.from({ length: height * width }, (_, i) =>
        Number(data[Math.floor(i / width) * shape[1] + (i % width)]),
      ),
    );

  test('a Qwen2 has biases of q, k and v, whatever its config says', async () => {
    await using model = await loadCausalModel(causalFolder('qwen2'));
    expect(model.config).toMatchObject({
      family: 'qwen2',
      qkvBias: true,
      attnOutBias: false,
      mask: 'causal',
      headDim: 12,
    });
  });

  test('a Llama has those that its config names', async () => {
    const withBiases = (value: number) =>
      changed({ attention_bias: true, mlp_bias: true }, (tensors) => {
        for (const [name, { shape }] of Object.entries(tensors))
          if (name.endsWith('_proj.weight'))
            tensors[name.replace('weight', 'bias')] = tensor([shape[0]], new Float32Array(shape[0]).fill(value));
      });
    const plain = await logProbsOf(causalFolder('llama'));
    expect(await logProbsOf(withBiases(0))).toEqual(plain);
    expect(await logProbsOf(withBiases(0.1))).not.toEqual(plain);
    await expect(loadCausalModel(changed({ attention_bias: true }))).rejects.toThrow(/missing tensors .*q_proj\.bias/);
    await expect(loadCausalModel(changed({ mlp_bias: true }))).rejects.toThrow(/missing tensors .*gate_proj\.bias/);
  });

  test('heads need not be as wide together as the hidden states', async () => {
    // One of two heads alone, and both where the other adds nothing.
    const half = changed({ num_attention_heads: 1, head_dim: 16 }, (tensors) => {
      for (const [name, matrix] of Object.entries(tensors))
        if (/[qkv]_proj\.weight$/.test(name)) tensors[name] = part(matrix, 16, 32);
        else if (name.endsWith('o_proj.weight')) tensors[name] = part(matrix, 32, 16);
    });
    const silent = changed({}, (tensors) => {
      for (const [name, { shape, data }] of Object.entries(tensors))
        if (name.endsWith('o_proj.weight'))
          tensors[name] = tensor(
            shape,
            Float32Array.from(data as Float32Array, (value, i) => (i % 32 < 16 ? value : 0)),
          );
    });
    const [one, both] = [await logProbsOf(half), await logProbsOf(silent)];
    for (const [i, value] of one.entries()) expect(value).toBeCloseTo(both[i], 5);
    expect(one).not.toEqual(await logProbsOf(causalFolder('llama')));
  });
});
