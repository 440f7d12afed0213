// Which family reads a checkpoint, and what its tensors are called.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadCausalModel, loadModel } from '../lib';
import { checkComputable, parseCausalCheckpoint, parseDiffusionCheckpoint } from '../lib/model/families';
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
    await expect(loadModel(quantized({ quant_method: 'gptq', bits: 4 }))).rejects.toThrow(
      /quantization_config: expected null, got an object/,
    );
    (await loadModel(quantized(null))).dispose();
  });

  test('a checkpoint of the other kind names the function that loads it', async () => {
    await expect(loadModel(causalFolder('qwen2'))).rejects.toThrow(
      'model_type: expected "llada", got "qwen2", an autoregressive model, which loadCausalModel loads',
    );
    await expect(loadCausalModel(modelFolder('base'))).rejects.toThrow(
      'model_type: expected "qwen2" or "llama", got "llada", a masked diffusion model, which loadModel loads',
    );
  });

  test('what the native core does not compute yet is refused', () => {
    const { config } = parseDiffusionCheckpoint(configOf(modelFolder('base')), 'config.json', tensors);
    expect(() => checkComputable(config, 'config.json')).not.toThrow();
    expect(() => checkComputable({ ...config, qkNorm: true }, 'config.json')).toThrow(
      /^config\.json: the norm of queries and keys \(qkNorm\) is not computed yet$/,
    );
    // Block-causal masks and heads of any size are.
    for (const change of [{ mask: 'block-causal', blockLength: 4 }, { headDim: 2 * config.headDim }] as const)
      expect(() => checkComputable({ ...config, ...change }, 'config.json')).not.toThrow();
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
