// Which family reads a checkpoint, and what its tensors are called.
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadCausalModel, loadModel } from '../lib';
import { checkComputable, parseCausalCheckpoint, parseDiffusionCheckpoint } from '../lib/model/families';
import { expectedTensors } from '../lib/model/tensors';
import { modelFolder, temporaryFolder, variant } from './helpers';

const causalFolder = (name: string) => path.join(__dirname, 'fixtures', 'causal', name);
const configOf = (folder: string) =>
  JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8')) as Record<string, unknown>;
const tensors = { has: () => true };

describe('the registry', () => {
  test.each([
    ['gpt2', /config\.json: model_type: expected "llada", got "gpt2"$/],
    [null, /config\.json: model_type: expected "llada", got null$/],
    ['Dream', /config\.json: model_type: expected "llada", got "Dream"$/],
  ])('model_type %j is unknown', async (type, message) => {
    const folder = variant('base', {
      config: (config) => {
        config.model_type = type;
      },
    });
    await expect(loadModel(folder)).rejects.toMatchObject({
      code: 'BAD_CHECKPOINT',
      message: expect.stringMatching(message),
    });
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

test('a Llama with biases of attention is refused, a Qwen2 has them without saying so', async () => {
  const folder = temporaryFolder();
  cpSync(causalFolder('llama'), folder, { recursive: true });
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify({ ...configOf(folder), attention_bias: true }));
  await expect(loadCausalModel(folder)).rejects.toThrow('attention_bias: expected false or null, got true');
  await using model = await loadCausalModel(causalFolder('qwen2'));
  expect(model.config).toMatchObject({
    family: 'qwen2',
    qkvBias: true,
    attnOutBias: false,
    mask: 'causal',
    headDim: 12,
  });
});
