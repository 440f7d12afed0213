// How much memory a training run will take, before it takes any.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { DUltraError } from '../errors';
import { type ModelConfig, parseModelConfig, readConfigJson } from '../model/config';
import { downloadFiles } from '../model/download';
import { availableMemory } from '../model/memory';
import { findSafetensors, readSafetensorsEntries } from '../model/safetensors';
import { EMBEDDING, expectedTensors, PLANNER_MARK } from '../model/tensors';
import { resolveLora } from '../model/trainer';
import type { Stage, TrainConfig } from './presets';

/** A part of a run's memory. */
export interface MemoryItem {
  name: 'weights' | 'masters' | 'gradients' | 'moments' | 'activations' | 'scratch' | 'caches' | 'reference model';
  bytes: number;
  /** What it is made of. */
  detail: string;
}

/** What a run will take, as {@link planMemory} reckons it. */
export interface MemoryPlan {
  device: string;
  /** Of the model, and those of them that train. */
  parameters: number;
  trainable: number;
  items: MemoryItem[];
  bytes: number;
  /** Bytes that are free on the device now. */
  available: number;
  fits: boolean;
}

/** Memory that the output head's logits may take at a time, as the native core bounds it. */
const HEAD_BYTES = 64 * 2 ** 20;
/** Rows of the MLP that a pass without gradients computes at a time. */
const MLP_ROWS = 1024;

const BYTES = { F32: 4, BF16: 2, F16: 2 } as const;

interface Shape {
  config: ModelConfig;
  /** Bytes of an element as the weights are held. */
  bytesOf: (tensor: string) => number;
  source: string;
}

/** Shapes and storage of the model that a configuration names; of a hub id only config.json is fetched. */
async function shapeOf(config: TrainConfig, stage: Stage): Promise<Shape> {
  const { model } = config;
  if (typeof model === 'object') {
    const { dModel = 64, nHeads = 4, nLayers = 3, plannerLayers = 1, maxSequenceLength = 128, ropeTheta = 100, ...rest } = model.create;
    const { nKvHeads = nHeads, mlpHiddenSize = 3 * dModel } = rest;
    // A word-level vocabulary: small beside all else.
    const shape = { dModel, nHeads, nKvHeads, nLayers, mlpHiddenSize, vocabSize: 512, embeddingSize: 512, maxSequenceLength, ropeTheta };
    const ids = { maskTokenId: 1, eosTokenId: 0, padTokenId: 0 };
    const planner = { numLayers: plannerLayers, useAdaln: true, useMaskEmbeddings: true };
    return {
      config: { ...shape, ...ids, rmsNormEps: 1e-5, weightTying: false, qkvBias: false, linearBias: false, causal: false, planner },
      bytesOf: () => 4,
      source: 'a new model',
    };
  }
  const folder = model ?? path.join(__dirname, '..', '..', 'models', 'default');
  if (existsSync(folder)) {
    const { file, json } = await readConfigJson(folder);
    const entries = await readSafetensorsEntries(await findSafetensors(folder));
    const dtype = (name: string) => entries.get(name)?.dtype as keyof typeof BYTES | undefined;
    const parsed = parseModelConfig(json, file, entries.has(PLANNER_MARK));
    return { config: parsed, bytesOf: (name) => BYTES[dtype(name) ?? 'F32'] ?? 4, source: folder };
  }
  const [file] = await downloadFiles('model', folder, (names) => names.filter((name) => name === 'config.json'));
  if (file === undefined) throw new DUltraError('DOWNLOAD_FAILED', `${folder}: the repository has no config.json; is it a language model?`);
  const json = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
  const bytes = json.torch_dtype === 'float32' ? 4 : 2;
  // Only GRPO and planner initialisation need a planner; which files hold one is not known before they are here.
  return { config: parseModelConfig(json, file, stage !== 'sft'), bytesOf: () => bytes, source: folder };
}

/**
 * The memory that a stage will take with a configuration, by what the native core allocates: within a few percent for models of size, where
 * neither Node nor the data count. Loads no weights.
 * @throws DUltraError BAD_CHECKPOINT, DOWNLOAD_FAILED; TypeError, RangeError for `lora`.
 */
export async function planMemory(stage: Stage, config: TrainConfig): Promise<MemoryPlan> {
  const { config: shape, bytesOf, source } = await shapeOf(config, stage);
  const { dModel: c, nHeads, nKvHeads, nLayers, mlpHiddenSize: f, embeddingSize: v } = shape;
  const kv = (c / nHeads) * nKvHeads;
  const lora = config.lora ? resolveLora(config.lora) : null;
  const freezeBase = config.freezeBase ?? stage === 'planner';
  const freezePlanner = config.freezePlanner ?? stage === 'sft';
  const baseTrains = !freezeBase || lora !== null;
  let weights = 0;
  let parameters = 0;
  let held = 0;
  let trainable = 0;
  for (const [name, dimensions] of expectedTensors(shape)) {
    const count = dimensions.reduce((product, n) => product * n, 1);
    const isPlanner = !name.startsWith('model.');
    parameters += count;
    weights += count * bytesOf(name) * (shape.weightTying && name === EMBEDDING ? 2 : 1);
    if (!isPlanner && !baseTrains) continue;
    held += count;
    if (isPlanner ? !freezePlanner : !freezeBase && !lora) trainable += count;
    if (lora && dimensions.length === 2 && lora.targets.some((target) => name.includes('.blocks.') && name.endsWith(`.${target}.weight`))) {
      const adapter = lora.rank * (dimensions[0] + dimensions[1]);
      held += adapter;
      trainable += adapter;
    }
  }
  const tokens = config.tokenBudget ?? 8192;
  const perBlock = 5 * c + 2 * kv + 2 * c + nHeads + 3 * f;
  const layers = (baseTrains ? nLayers : 0) + (freezePlanner ? 0 : (shape.planner?.numLayers ?? 0));
  const activations = 4 * tokens * (config.activationCheckpointing ? layers * c + perBlock : layers * perBlock);
  const forward = 4 * (tokens * (3 * c + 2 * kv + 2 * c) + Math.min(tokens, MLP_ROWS) * 3 * f);
  const backward = 4 * tokens * (3 * f + 5 * c + 2 * kv);
  const rows = Math.max(16, Math.floor(HEAD_BYTES / (4 * v)));
  const scratch = forward + backward + 3 * Math.min(tokens, rows) * v * 4;
  const items: MemoryItem[] = [
    { name: 'weights', bytes: weights, detail: `${parameters.toLocaleString('en')} parameters of ${source}, as they are stored` },
    { name: 'masters', bytes: 4 * held, detail: 'fp32 copies of what gradients pass through' },
    { name: 'gradients', bytes: 4 * trainable, detail: `fp32, of ${trainable.toLocaleString('en')} trainable parameters` },
    { name: 'moments', bytes: 8 * trainable, detail: "AdamW's first and second, fp32" },
    {
      name: 'activations',
      bytes: activations,
      detail: `${tokens.toLocaleString('en')} tokens per pass${config.activationCheckpointing ? ', inputs of blocks alone' : ', all of every block'}`,
    },
    { name: 'scratch', bytes: scratch, detail: 'one block forward and backward, logits of some rows' },
    { name: 'caches', bytes: 0, detail: 'none: rollouts compute whole rows' },
  ];
  if ((config.beta ?? 0) > 0 && config.referenceModel !== undefined)
    items.push({ name: 'reference model', bytes: weights, detail: `${config.referenceModel}, taken to be of the same shape` });
  const bytes = items.reduce((sum, item) => sum + item.bytes, 0);
  const available = availableMemory();
  return { device: 'cpu', parameters, trainable, items, bytes, available, fits: bytes <= available };
}
