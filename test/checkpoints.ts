// Random checkpoints of any shape, written to folders, together with their weights as doubles.

import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { type DUltraError, loadModel } from '../lib';
import { checkpointNames, newCheckpoint } from '../lib/model/families';
import { type FixtureTensor, temporaryFolder, writeTensors } from './helpers';
import { type ReferenceConfig, type ReferenceWeights, tensorShapes } from './reference-model';

/** A generator of its own, so that a failing seed is the same everywhere (mulberry32). */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A small model: grouped heads, a padded vocabulary, a planner with two layers. */
export const smallConfig: ReferenceConfig = {
  d_model: 24,
  n_heads: 6,
  n_kv_heads: 2,
  n_layers: 2,
  mlp_hidden_size: 40,
  vocab_size: 45,
  embedding_size: 48,
  max_sequence_length: 64,
  rope_theta: 500000,
  rms_norm_eps: 1e-5,
  weight_tying: false,
  mask_token_id: 44,
  eos_token_id: 43,
  use_adaln: true,
  use_mask_embeddings: true,
  num_head_layers: 1,
};

/** What stands in the config.json of a LLaDA checkpoint beside the shapes. */
const SETTINGS = {
  architectures: ['LLaDAModelLM'],
  model_type: 'llada',
  activation_type: 'silu',
  block_type: 'llama',
  layer_norm_type: 'rms',
  rope: true,
  alibi: false,
  include_bias: false,
  include_qkv_bias: false,
  bias_for_layer_norm: false,
};

export type StorageType = 'F32' | 'BF16' | 'F16';

/** Random weights of up to 8 significant bits, which every storage type holds exactly. */
export function randomWeights(config: ReferenceConfig, planner: boolean, seed: number): ReferenceWeights {
  const next = random(seed);
  const weights: ReferenceWeights = new Map();
  for (const [name, shape] of tensorShapes(config, planner)) {
    const data = new Float64Array(shape.reduce((product, n) => product * n, 1));
    const isNorm = /norm\.weight|ln_f|norm_out_2\.weight/.test(name);
    const inputs = shape.at(-1)!;
    // Wide enough for confidences all over 0..1 and for attention that is not uniform.
    const gain = /ff_out\.weight$|mask_linear/.test(name) && shape[0] !== config.d_model ? 4 : 1.5;
    const exponent = Math.round(
      Math.log2(gain / (73 * Math.sqrt(shape.length === 1 || name.includes('wte') ? 1 : inputs))),
    );
    for (let i = 0; i < data.length; i++) {
      const k = Math.floor(next() * 255) - 127;
      data[i] = isNorm ? 1 + Math.trunc(k / 4) / 128 : k * 2 ** exponent;
    }
    weights.set(name, { shape, data });
  }
  return weights;
}

/** IEEE half of a number that it holds exactly. */
function halfBits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (magnitude < 2 ** -14) return sign | (magnitude * 2 ** 24);
  const exponent = Math.floor(Math.log2(magnitude));
  return sign | ((exponent + 15) << 10) | ((magnitude / 2 ** exponent - 1) * 1024);
}

/** Bytes of numbers in a storage type that holds them exactly. */
export function encode(data: Float64Array, dtype: StorageType): Buffer {
  if (dtype === 'F32') return Buffer.from(Float32Array.from(data).buffer);
  if (dtype === 'F16') return Buffer.from(Uint16Array.from(data, halfBits).buffer);
  const bits = new Uint32Array(Float32Array.from(data).buffer);
  return Buffer.from(Uint16Array.from(bits, (word) => word >>> 16).buffer);
}

export interface CheckpointOptions {
  /** Over {@link smallConfig}. */
  config?: Partial<ReferenceConfig>;
  /** Another family than LLaDA, of what `config` says. */
  family?: string;
  /** Default true. */
  planner?: boolean;
  /** One for all, or one for each tensor. Default F32. */
  dtype?: StorageType | ((name: string) => StorageType);
  seed?: number;
  /** More than 1: so many files and an index. */
  shards?: number;
}

export interface MadeCheckpoint {
  folder: string;
  config: ReferenceConfig;
  weights: ReferenceWeights;
}

/** config.json of a model of another family, and its names of tensors. */
function ofFamily(family: string, config: ReferenceConfig) {
  const { json, config: parsed } = newCheckpoint(
    family,
    {
      dModel: config.d_model,
      nHeads: config.n_heads,
      nKvHeads: config.n_kv_heads,
      nLayers: config.n_layers,
      mlpHiddenSize: config.mlp_hidden_size,
      vocabSize: config.embedding_size,
      maxSequenceLength: config.max_sequence_length,
      ropeTheta: config.rope_theta,
      maskTokenId: config.mask_token_id,
      eosTokenId: config.eos_token_id,
      padTokenId: null,
      plannerLayers: config.num_head_layers,
    },
    { blockLength: config.block_length },
  );
  const { rms_norm_eps, weight_tying: tie_word_embeddings, head_dim = json.head_dim } = config;
  return {
    json: { ...json, rms_norm_eps, tie_word_embeddings, head_dim },
    nameOf: checkpointNames(parsed).checkpointName,
  };
}

/** Writes a random checkpoint. */
export function makeCheckpoint(options: CheckpointOptions = {}): MadeCheckpoint {
  const { planner = true, dtype = 'F32', seed = 1, shards = 1 } = options;
  const config = { ...smallConfig, ...options.config };
  const weights = randomWeights(config, planner, seed);
  const folder = temporaryFolder();
  const { json, nameOf: tensorName } = options.family
    ? ofFamily(options.family, config)
    : { json: { ...SETTINGS, ...config }, nameOf: (name: string) => name };
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(json));
  const files: Record<string, FixtureTensor>[] = Array.from({ length: shards }, () => ({}));
  const map: Record<string, string> = {};
  const nameOf = (shard: number) =>
    `model-${String(shard + 1).padStart(5, '0')}-of-${String(shards).padStart(5, '0')}.safetensors`;
  [...weights].forEach(([name, { shape, data }], i) => {
    const type = typeof dtype === 'function' ? dtype(name) : dtype;
    files[i % shards][tensorName(name)] = { dtype: type, shape, data, raw: encode(data, type) };
    map[tensorName(name)] = nameOf(i % shards);
  });
  if (shards === 1) {
    writeTensors(path.join(folder, 'model.safetensors'), files[0]);
  } else {
    files.forEach((tensors, shard) => {
      writeTensors(path.join(folder, nameOf(shard)), tensors);
    });
    writeFileSync(path.join(folder, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map: map }));
  }
  return { folder, config, weights };
}

/** The error of loading a folder. */
export async function loadFailure(folder: string): Promise<DUltraError> {
  const error = await loadModel(folder, { threads: 1 }).then(
    (model) => {
      model.dispose();
      throw new Error('it loaded');
    },
    (reason) => reason,
  );
  expect(error).toMatchObject({ name: 'DUltraError' });
  return error;
}
