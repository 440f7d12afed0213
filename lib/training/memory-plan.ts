// How much memory a training run will take, before it takes any.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { DTYPE_BYTES, DTYPES } from '../dtypes';
import { DUltraError, optionError } from '../errors';
import { findSafetensors, readSafetensorsEntries } from '../files/safetensors';
import { downloadFiles } from '../hub';
import { readConfigJson } from '../model/config';
import { type ParsedCheckpoint, parseCausalCheckpoint, parseDiffusionCheckpoint } from '../model/families';
import type { LoadModelOptions } from '../model/load-weights';
import { availableMemory } from '../model/memory';
import { EMBEDDING, expectedTensors } from '../model/tensors';
import { resolveLora, trainerBytes } from '../model/trainer';
import { type NativeDType, type NativeModelConfig, native } from '../native';
import { checkKeys } from '../options';
import type { Stage, TrainConfig } from './presets';

/** A part of a run's memory. */
export interface MemoryItem {
  name:
    | 'weights'
    | 'masters'
    | 'gradients'
    | 'moments'
    | 'activations'
    | 'scratch'
    | 'caches'
    | 'reference model'
    | 'teacher';
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
  /**
   * Bytes that the run can have on the device: on the CPU what is free now, of a GPU all that it has. null where the
   * device is not there.
   */
  available: number | null;
  /** Whether `bytes` are. null where that is not known. */
  fits: boolean | null;
}

/** Memory that the output head's logits may take at a time, as the native core bounds it. */
const HEAD_BYTES = 64 * 2 ** 20;
/** Rows of the MLP that a pass without gradients computes at a time. */
const MLP_ROWS = 1024;
/** What a CUDA context, its libraries and their workspaces take before anything else does. */
const CUDA_BYTES = 600 * 2 ** 20;
/** Prompt tokens of a rollout whose data set is not open yet. */
const PROMPT_TOKENS = 256;

const DEFAULT_MODEL = path.join(__dirname, '..', '..', 'models', 'default');

type ParseCheckpoint = (
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
) => ParsedCheckpoint<NativeModelConfig>;

interface Shape {
  config: NativeModelConfig;
  /** Bytes of an element as its file holds it. */
  bytesOf: (tensor: string) => number;
  source: string;
}

const sizeOf = (dimensions: readonly number[]) => dimensions.reduce((product, n) => product * n, 1);

/** Shapes and storage of the model in a folder, or of a hub id, of which only config.json is fetched. */
async function shapeOfSource(source: string, parse: ParseCheckpoint, hasPlanner: boolean): Promise<Shape> {
  if (existsSync(source)) {
    const { file, json } = await readConfigJson(source);
    const entries = await readSafetensorsEntries(await findSafetensors(source));
    const [any] = entries.values();
    const usual = DTYPE_BYTES[any?.dtype as NativeDType] ?? 4;
    return {
      config: parse(json, file, entries).config,
      bytesOf: (name) => DTYPE_BYTES[entries.get(name)?.dtype as NativeDType] ?? usual,
      source,
    };
  }
  const [file] = await downloadFiles('model', source, (names) => names.filter((name) => name === 'config.json'));
  if (file === undefined)
    throw new DUltraError('DOWNLOAD_FAILED', `${source}: the repository has no config.json; is it a language model?`);
  const { json } = await readConfigJson(path.dirname(file));
  const bytes = (json as { torch_dtype?: unknown }).torch_dtype === 'float32' ? 4 : 2;
  // Which files hold a planner is not known before they are here.
  return { config: parse(json, file, { has: () => hasPlanner }).config, bytesOf: () => bytes, source };
}

/** Shapes and storage of the model that a configuration names. */
async function shapeOf({ model }: TrainConfig, stage: Stage): Promise<Shape> {
  // Only GRPO and planner initialisation need a planner.
  if (typeof model !== 'object') {
    const source = model ?? DEFAULT_MODEL;
    return shapeOfSource(source, parseDiffusionCheckpoint, stage !== 'sft');
  }
  const {
    dModel = 64,
    nHeads = 4,
    nLayers = 3,
    plannerLayers = 1,
    maxSequenceLength = 128,
    ropeTheta = 100,
    ...rest
  } = model.create;
  const { nKvHeads = nHeads, mlpHiddenSize = 3 * dModel } = rest;
  // A word-level vocabulary: small beside all else.
  const shape = { dModel, nHeads, nKvHeads, nLayers, mlpHiddenSize, embeddingSize: 512, maxSequenceLength, ropeTheta };
  const planner = { numLayers: plannerLayers, useAdaln: true, useMaskEmbeddings: true };
  const rules = { rmsNormEps: 1e-5, weightTying: false };
  return { config: { ...shape, ...rules, maskTokenId: 1, planner }, bytesOf: () => 4, source: 'a new model' };
}

/** Bytes of a model's weights, as `bytesOf` holds its tensors. */
function weightBytes(config: NativeModelConfig, bytesOf: (tensor: string) => number): number {
  let bytes = 0;
  // Vectors are held in fp32; a tied table is held once more as the head.
  for (const [name, dimensions] of expectedTensors(config))
    bytes +=
      sizeOf(dimensions) *
      (dimensions.length === 1 ? 4 : bytesOf(name)) *
      (config.weightTying && name === EMBEDDING ? 2 : 1);
  return bytes;
}

/** Other models that the run holds: of a hub that does not answer, only that they are. */
async function otherModel(
  name: 'reference model' | 'teacher',
  source: string,
  parse: ParseCheckpoint,
  dtype?: LoadModelOptions['dtype'],
): Promise<MemoryItem> {
  try {
    const { config, bytesOf } = await shapeOfSource(source, parse, true);
    const held = dtype === undefined || dtype === 'auto' ? null : DTYPE_BYTES[DTYPES[dtype]];
    return { name, bytes: weightBytes(config, (tensor) => held ?? bytesOf(tensor)), detail: `weights of ${source}` };
  } catch (error) {
    if (!(error instanceof DUltraError)) throw error;
    return { name, bytes: 0, detail: `not counted, since its size is not known here: ${error.message}` };
  }
}

/** The device that a name stands for, and the memory that it has. */
function deviceOf(device: string): { device: string; available: number | null } {
  const { memory } = native().cudaDevices();
  const chosen = device === 'auto' ? (memory.length > 0 ? 'cuda:0' : 'cpu') : device === 'cuda' ? 'cuda:0' : device;
  const isKnown = /^(cpu|cuda:\d+)$/.test(chosen);
  if (!isKnown)
    throw optionError(
      RangeError,
      'device',
      `expected "auto", "cpu", "cuda" or "cuda:N", got ${JSON.stringify(device)}`,
    );
  return {
    device: chosen,
    available: chosen === 'cpu' ? availableMemory() : (memory[Number(chosen.slice(5))] ?? null),
  };
}

/** A run as its memory depends on it. */
interface RunShape {
  stage: Stage;
  config: TrainConfig;
  shape: NativeModelConfig;
  source: string;
  tensors: [name: string, dimensions: readonly number[]][];
  /** Bytes of an element as the model stores it. */
  bytesOf: (tensor: string) => number;
  isCuda: boolean;
  /** Matrices are stored in bf16, and products read their operands in bf16. */
  isNarrow: boolean;
  freezeBase: boolean;
  freezePlanner: boolean;
  lora: ReturnType<typeof resolveLora> | null;
}

/** Parameters of the model, those that train, and bytes of what the trainer allocates per parameter. */
function trainerMemory(run: RunShape): { parameters: number; trainable: number; items: MemoryItem[] } {
  const { config, shape, tensors, bytesOf, isNarrow, freezeBase, freezePlanner, lora } = run;
  const per = trainerBytes(config.momentDtype ?? 'float32');
  const isSplit = (name: string, dimensions: readonly number[]) =>
    dimensions.length === 2 && bytesOf(name) === 2 && (name === EMBEDDING ? !shape.weightTying : isNarrow);
  const hasAdapter = (name: string) =>
    lora?.targets.some((target) => name.includes('.blocks.') && name.endsWith(`.${target}.weight`));
  let parameters = 0;
  let masters = 0;
  let trainable = 0;
  for (const [name, dimensions] of tensors) {
    const count = sizeOf(dimensions);
    const isPlanner = !name.startsWith('model.');
    parameters += count;
    if (!isPlanner && freezeBase && !lora) continue;
    const trains = isPlanner ? !freezePlanner : !freezeBase && !lora;
    if (trains) trainable += count;
    masters += count * (isSplit(name, dimensions) ? (trains ? per.low : 0) : per.copy);
    if (lora && dimensions.length === 2 && hasAdapter(name)) {
      const adapter = lora.rank * (dimensions[0] + dimensions[1]);
      // A and B themselves, and as products take them.
      masters += (per.copy + 4) * adapter + count * (isSplit(name, dimensions) ? per.frozenCopySplit : per.frozenCopy);
      trainable += adapter;
    }
  }
  const items: MemoryItem[] = [
    {
      name: 'masters',
      bytes: masters,
      detail: isNarrow
        ? 'lower halves of fp32 masters, whose upper halves are the weights'
        : 'fp32 copies of what gradients pass through',
    },
    {
      name: 'gradients',
      bytes: per.gradient * trainable,
      detail: `fp32, of ${trainable.toLocaleString('en')} trainable parameters`,
    },
    {
      name: 'moments',
      bytes: per.moments * trainable,
      detail: `AdamW's first and second, ${config.momentDtype === 'bfloat16' ? 'bf16' : 'fp32'}`,
    },
  ];
  return { parameters, trainable, items };
}

/** Bytes of an activation as products and attention read it; the residual stream is fp32. */
const operandBytes = ({ isNarrow }: RunShape) => (isNarrow ? 2 : 4);

/** Elements of a position's keys, and of its values. */
const keyElements = ({ dModel, nHeads, nKvHeads }: NativeModelConfig) => (dModel / nHeads) * nKvHeads;

/** Activations that the backward pass reads, and the scratch of one block and the output head. */
function passMemory(run: RunShape): MemoryItem[] {
  const { config, shape, isCuda, freezeBase, freezePlanner, lora } = run;
  const { dModel: c, nHeads, nLayers, mlpHiddenSize: f, embeddingSize: v } = shape;
  const kv = keyElements(shape);
  const tokens = config.tokenBudget ?? 8192;
  const perBlock = operandBytes(run) * (5 * c + 2 * kv + 3 * f) + 4 * (2 * c + nHeads);
  const layers = (!freezeBase || lora ? nLayers : 0) + (freezePlanner ? 0 : (shape.planner?.numLayers ?? 0));
  const activations = tokens * (config.activationCheckpointing ? layers * 4 * c + perBlock : layers * perBlock);
  const forward = 4 * (tokens * (3 * c + 2 * kv + 2 * c) + Math.min(tokens, MLP_ROWS) * 3 * f);
  const backward = 4 * tokens * (3 * f + 5 * c + 2 * kv);
  const headRows = Math.min(tokens, Math.max(16, Math.floor(HEAD_BYTES / (4 * v))));
  const kept = config.activationCheckpointing ? 'inputs of blocks alone' : 'all of every block';
  return [
    {
      name: 'activations',
      bytes: activations,
      detail: `${tokens.toLocaleString('en')} tokens per pass, ${kept}`,
    },
    {
      name: 'scratch',
      bytes: forward + backward + 3 * headRows * v * 4 + (isCuda ? CUDA_BYTES : 0),
      detail: `one block forward and backward, logits of some rows${isCuda ? ', the CUDA context' : ''}`,
    },
  ];
}

/** Keys and values of GRPO's rollouts. */
function cacheMemory(run: RunShape): MemoryItem {
  const { stage, config, shape, isNarrow } = run;
  if (stage !== 'grpo' || config.cache === undefined || config.cache.type === 'none')
    return { name: 'caches', bytes: 0, detail: 'none: rollouts compute whole rows' };
  const rollouts = (config.promptsPerStep ?? 8) * (config.numGenerations ?? 8);
  const length = Math.min(shape.maxSequenceLength, PROMPT_TOKENS + (config.genLength ?? PROMPT_TOKENS));
  const layers = shape.nLayers + (shape.planner?.numLayers ?? 0);
  return {
    name: 'caches',
    bytes: operandBytes(run) * rollouts * length * 2 * keyElements(shape) * layers,
    detail: `${isNarrow ? 'bf16' : 'fp32'} keys and values of ${rollouts} rollouts of ${length} tokens`,
  };
}

/** The reference model, and models of rewards. */
async function otherModels({ beta, referenceModel, rewards = {} }: TrainConfig): Promise<MemoryItem[]> {
  const items: MemoryItem[] = [];
  if ((beta ?? 0) > 0 && referenceModel !== undefined)
    items.push(await otherModel('reference model', referenceModel, parseDiffusionCheckpoint));
  for (const { type, options = {} } of Object.values(rewards)) {
    const { model, dtype } = options as { model?: string; dtype?: LoadModelOptions['dtype'] };
    if (type === 'causalLogProb' && typeof model === 'string')
      items.push(await otherModel('teacher', model, parseCausalCheckpoint, dtype));
    if (type === 'teacherLogProb')
      items.push(await otherModel('teacher', model ?? DEFAULT_MODEL, parseDiffusionCheckpoint));
  }
  return items;
}

/**
 * The memory that a stage will take with a configuration on a device, by what the native core allocates: within a few
 * percent for models of size, where neither Node nor the data count. Loads no weights, and needs no GPU to plan for
 * one.
 * @param options how the model will be loaded, as {@link loadModel}
 * @throws DUltraError BAD_CHECKPOINT, DOWNLOAD_FAILED; TypeError, RangeError for `lora` and options.
 */
export async function planMemory(
  stage: Stage,
  config: TrainConfig,
  options: Pick<LoadModelOptions, 'device' | 'dtype' | 'compute'> = {},
): Promise<MemoryPlan> {
  checkKeys('options', options, ['device', 'dtype', 'compute']);
  const { dtype = 'auto', compute } = options;
  const { device, available } = deviceOf(options.device ?? 'auto');
  const { config: shape, bytesOf: inFile, source } = await shapeOf(config, stage);
  const tensors = [...expectedTensors(shape)];
  const bytesOf = (name: string) =>
    compute === 'bfloat16' ? 2 : dtype === 'auto' ? inFile(name) : DTYPE_BYTES[DTYPES[dtype]];
  const isCuda = device !== 'cpu';
  // As loadModel chooses: a GPU multiplies weights in bf16 that are stored in bf16.
  const isNarrow = isCuda && compute !== 'float32' && tensors.every(([name]) => bytesOf(name) === 2);
  const lora = config.lora ? resolveLora(config.lora) : null;
  const freezeBase = config.freezeBase ?? stage === 'planner';
  const freezePlanner = config.freezePlanner ?? stage === 'sft';
  const run = { stage, config, shape, source, tensors, bytesOf, isCuda, isNarrow, freezeBase, freezePlanner, lora };
  const { parameters, trainable, items: ofTrainer } = trainerMemory(run);
  const storage = isNarrow ? 'bf16' : 'the type that they are held in';
  const items: MemoryItem[] = [
    {
      name: 'weights',
      bytes: weightBytes(shape, bytesOf),
      detail: `${parameters.toLocaleString('en')} parameters of ${source}, matrices in ${storage}`,
    },
    ...ofTrainer,
    ...passMemory(run),
    cacheMemory(run),
    ...(await otherModels(config)),
  ];
  const bytes = items.reduce((sum, item) => sum + item.bytes, 0);
  const fits = available === null ? null : bytes <= available;
  return { device, parameters, trainable, items, bytes, available, fits };
}
