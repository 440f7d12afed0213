// How much memory a training run will take, before it takes any.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { DTYPE_BYTES, DTYPES } from '../dtypes';
import { DUltraError, optionError } from '../errors';
import { isBlockType } from '../files/blocks';
import { downloadFiles } from '../hub';
import { readConfigJson, storedDtype } from '../model/config';
import { EMBEDDED_MODELS, embeddedSource } from '../model/embedded';
import {
  type ConfigHints,
  type ParsedCheckpoint,
  parseCausalCheckpoint,
  parseDiffusionCheckpoint,
} from '../model/families';
import { heldType, type LoadModelOptions } from '../model/load-weights';
import { availableMemory } from '../model/memory';
import { openCheckpoint } from '../model/open-checkpoint';
import { readPlannerHead } from '../model/planner-head';
import { QUANTISE } from '../model/quantised-folder';
import { notFolder, resolveSource } from '../model/source';
import { isHeldWide } from '../model/tensors';
import { resolveTrainerOptions, ZERO_STAGES } from '../model/trainer';
import {
  type NativeDType,
  type NativeLoadRequest,
  type NativeMemoryPlan,
  type NativeMemoryRequest,
  type NativeModelConfig,
  type NativeStoredType,
  native,
} from '../native';
import { checkInteger, checkKeys } from '../options';
import { shownSource } from '../package';
import { resolveCache } from '../sampling/caches';
import { newPlanner } from './config';
import type { Stage, TrainConfig } from './presets';
import { checkRoles, parseRoles, rolesOf } from './roles';

/** A part of a run's memory. */
export interface MemoryItem {
  name:
    | 'weights'
    | 'masters'
    | 'gradients'
    | 'moments'
    | 'activations'
    | 'exchange'
    | 'scratch'
    | 'caches'
    | 'reference model'
    | 'teacher';
  bytes: number;
  /** What it is made of. */
  detail: string;
}

/** What each process of the role "teacher" will take. */
export interface TeacherMemory {
  /** Processes of the role. */
  ranks: number;
  items: MemoryItem[];
  bytes: number;
}

/** What a run will take, as {@link planMemory} reckons it: each of its processes. */
export interface MemoryPlan {
  device: string;
  /** Processes that train. */
  ranks: number;
  /** Of the model, those of them that a token passes (fewer in a mixture of experts), and those that train. */
  parameters: number;
  activeParameters: number;
  trainable: number;
  items: MemoryItem[];
  bytes: number;
  /** What `bytes` would be with each `zeroStage`, from 0 on. */
  bytesByZeroStage: number[];
  /** With `roles`: processes that hold the teachers; null: those that train do. */
  teacher: TeacherMemory | null;
  /**
   * Bytes that the run can have on the device: on the CPU what is free now, of a GPU all that it has. null where the
   * device is not there.
   */
  available: number | null;
  /** Whether `bytes` are, and those of a teacher. null where that is not known. */
  fits: boolean | null;
}

/** Whether a tensor is an expert's matrix. */
const isExpert = (name: string): boolean => /\.experts\.\d+\./.test(name);
/** What a CUDA context, its libraries and their workspaces take before anything else does. */
const CUDA_BYTES = 600 * 2 ** 20;
/** Prompt tokens of a rollout whose data set is not open yet. */
const PROMPT_TOKENS = 256;

type ParseCheckpoint = (
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
  hints?: ConfigHints,
) => ParsedCheckpoint<NativeModelConfig>;

/** What the caller says of a checkpoint that its files may not. */
type Hints = Pick<LoadModelOptions, 'maskTokenId' | 'blockLength'>;

interface Shape {
  config: NativeModelConfig;
  /** Storage of a tensor in its file. */
  storageOf: (tensor: string) => NativeStoredType;
  source: string;
}

/** Shapes and storage of the model in a folder, or of a hub id, of which only config.json is fetched. */
async function shapeOfSource(
  source: string,
  parse: ParseCheckpoint,
  hasPlanner: boolean,
  given: Hints = {},
): Promise<Shape> {
  if (existsSync(source) || embeddedSource(source) !== null) {
    const folder = await resolveSource(source, {}, {});
    const opened = await openCheckpoint(folder, given);
    const { file, json, entries, hints } = opened;
    const { config, checkpointName, placesOf } = opened.named(parse(json, file, entries, hints));
    const typeOf = (dtype: string | undefined): NativeStoredType | null =>
      dtype !== undefined && (dtype in DTYPE_BYTES || isBlockType(dtype)) ? (dtype as NativeStoredType) : null;
    const [any] = entries.values();
    const first = typeOf(any?.dtype) ?? 'F32';
    const usual = isBlockType(first) ? 'F32' : first;
    const entryOf = (name: string) =>
      entries.get(placesOf?.(name).find((place) => entries.has(place.name))?.name ?? checkpointName(name));
    return { config, storageOf: (name) => typeOf(entryOf(name)?.dtype) ?? usual, source };
  }
  const [file] = await downloadFiles('model', source, (names) => names.filter((name) => name === 'config.json'), {
    otherwise: notFolder(source),
  });
  if (file === undefined)
    throw new DUltraError('DOWNLOAD_FAILED', `${source}: the repository has no config.json; is it a language model?`);
  const { json } = await readConfigJson(path.dirname(file));
  const storage = storedDtype(json) === 'float32' ? 'F32' : 'BF16';
  // Which files hold a planner is not known before they are here.
  return {
    config: parse(json, file, { has: (name) => hasPlanner && !name.startsWith('block_embedding') }, given).config,
    storageOf: () => storage,
    source,
  };
}

/** What each tensor of the native table is held as. */
const heldTypes = (
  config: NativeModelConfig,
  storageOf: Shape['storageOf'],
  storage: NativeDType | 'auto',
  blocks: NativeLoadRequest['blocks'],
): NativeStoredType[] =>
  native()
    .tensors(config)
    .map(({ name, shape }) => heldType({ name, shape, dtype: storageOf(name) }, storage, blocks));

/** Only GRPO and planner initialisation need a planner. */
const usesPlanner = (stage: Stage): boolean => stage === 'planner' || stage === 'grpo';

/** What new planner heads have beside their blocks. */
const NEW_HEAD = { useAdaln: true, useMaskEmbeddings: true };

/** Shapes and storage of the model that a configuration names. */
async function shapeOf(config: TrainConfig, stage: Stage, given: Hints): Promise<Shape> {
  const { model } = config;
  if (typeof model !== 'object') {
    const source = model ?? EMBEDDED_MODELS[0];
    const size = newPlanner(config);
    const head = config.planner === undefined || size !== null ? null : await readPlannerHead(config.planner, 0);
    const shape = await shapeOfSource(
      source,
      parseDiffusionCheckpoint,
      usesPlanner(stage) && config.planner === undefined,
      given,
    );
    const added = size === null ? head?.planner : { ...NEW_HEAD, numLayers: size === 'block' ? 1 : 0 };
    return added ? { ...shape, config: { ...shape.config, planner: added } } : shape;
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
  const { tokenizer } = model.create;
  // A folder's tokenizer is not read here; a word-level vocabulary is small beside all else.
  const embeddingSize = tokenizer === undefined ? 512 : (typeof tokenizer === 'object' && tokenizer.vocabSize) || 2048;
  const shape = { dModel, nHeads, nKvHeads, nLayers, mlpHiddenSize, embeddingSize, maxSequenceLength, ropeTheta };
  const planner = { ...NEW_HEAD, numLayers: plannerLayers };
  const rules = { rmsNormEps: 1e-5, weightTying: false };
  return { config: { ...shape, ...rules, maskTokenId: 1, planner }, storageOf: () => 'F32', source: 'a new model' };
}

/** Other models that the run holds: of a hub that does not answer, only that they are. */
async function otherModel(
  name: 'reference model' | 'teacher',
  source: string,
  parse: ParseCheckpoint,
  dtype?: LoadModelOptions['dtype'],
): Promise<MemoryItem> {
  try {
    const { config, storageOf } = await shapeOfSource(source, parse, true);
    const storage = dtype === undefined || dtype === 'auto' ? 'auto' : DTYPES[dtype];
    const { weights } = native().planMemory({
      config,
      storage: heldTypes(config, storageOf, storage, storage === 'auto' ? 'keep' : 'decode'),
      onDevice: false,
      compute: 'float32',
      trainer: resolveTrainerOptions({ freezeBase: true, freezePlanner: true }),
      ranks: 1,
      tokens: 0,
    });
    return { name, bytes: weights, detail: `weights of ${source}` };
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

/** What the trainer and its passes take. */
function ofTraining(
  plan: NativeMemoryPlan,
  config: TrainConfig,
  {
    tokens,
    ranks,
    isNarrow,
    isInBlocks,
    isCuda,
  }: { tokens: number; ranks: number; isNarrow: boolean; isInBlocks: boolean; isCuda: boolean },
) {
  const isSplit = (config.zeroStage ?? 0) > 0 && ranks > 1;
  const share = isSplit ? `, of 1/${ranks} of them` : '';
  const kept = config.activationCheckpointing ? 'inputs of blocks alone' : 'all of every block';
  // Of a device, ranks add up whole gradients where they are, or in the host's memory.
  const fixed = plan.fixedPoint;
  const exchange = plan.exchange + (isCuda && config.zeroStage !== 2 ? 0 : plan.underWay);
  const items: MemoryItem[] = [
    {
      name: 'masters',
      bytes: plan.masters,
      detail: isNarrow
        ? `lower halves of fp32 masters, whose upper halves are the weights${share}`
        : `fp32 copies of what trains${config.lora ? (isInBlocks ? ', and scaled ones' : ', and of what has adapters') : share}`,
    },
    {
      name: 'gradients',
      bytes: plan.gradients + fixed,
      detail:
        `fp32, of ${plan.trainable.toLocaleString('en')} trainable parameters` +
        (isSplit && config.zeroStage === 2 ? `: some layers of a micro-batch, and sums of 1/${ranks} of all` : '') +
        (fixed > 0 ? ', and their sums in fixed point (reduction: exact)' : ''),
    },
    {
      name: 'moments',
      bytes: plan.moments,
      detail: `AdamW's first and second, ${config.momentDtype === 'bfloat16' ? 'bf16' : 'fp32'}${share}`,
    },
    {
      name: 'activations',
      bytes: plan.activations,
      detail: `${tokens.toLocaleString('en')} tokens per pass, ${kept}`,
    },
    ...(exchange > 0
      ? [
          {
            name: 'exchange' as const,
            bytes: exchange,
            detail: `gradients on their way${plan.exchange > 0 ? ', updated tensors of one matrix' : ''}, between ranks`,
          },
        ]
      : []),
    {
      name: 'scratch',
      bytes: plan.scratch + (isCuda ? CUDA_BYTES : 0),
      detail: `one block forward and backward, logits of some rows${isCuda ? ', the CUDA context' : ''}`,
    },
  ];
  return items;
}

/** Keys and values of GRPO's rollouts. */
function cacheMemory(stage: Stage, config: TrainConfig, shape: NativeModelConfig, isNarrow: boolean): MemoryItem {
  if (stage !== 'grpo' || resolveCache(config.cache).type === 'none')
    return { name: 'caches', bytes: 0, detail: 'none: rollouts compute whole rows' };
  const rollouts = (config.promptsPerStep ?? 8) * (config.numGenerations ?? 8);
  const length = Math.min(shape.maxSequenceLength, PROMPT_TOKENS + (config.maxTokens ?? PROMPT_TOKENS));
  const options = { dtype: isNarrow ? 'BF16' : 'F32', planner: shape.planner ? 'blocks' : 'none' } as const;
  return {
    name: 'caches',
    bytes: native().cacheBytes(shape, rollouts * length, options),
    detail: `${isNarrow ? 'bf16' : 'fp32'} keys and values of ${rollouts} rollouts of ${length} tokens`,
  };
}

/** The reference model, and models of rewards. */
async function otherModels({ beta, referenceModel, teacher, rewards = {} }: TrainConfig): Promise<MemoryItem[]> {
  const items: MemoryItem[] = [];
  if ((beta ?? 0) > 0 && referenceModel !== undefined)
    items.push(await otherModel('reference model', referenceModel, parseDiffusionCheckpoint));
  if (teacher) items.push(await otherModel('teacher', teacher.model, parseCausalCheckpoint, teacher.dtype));
  for (const { type, options = {} } of Object.values(rewards)) {
    const { model, dtype } = options as { model?: string; dtype?: LoadModelOptions['dtype'] };
    if (type === 'causalLogProb' && typeof model === 'string')
      items.push(await otherModel('teacher', model, parseCausalCheckpoint, dtype));
    if (type === 'teacherLogProb')
      items.push(await otherModel('teacher', model ?? EMBEDDED_MODELS[0], parseDiffusionCheckpoint));
  }
  return items;
}

const sumOf = (items: readonly MemoryItem[]): number => items.reduce((sum, { bytes }) => sum + bytes, 0);

/** Of each process of the role "teacher". */
async function teacherMemory(config: TrainConfig, ranks: number, isCuda: boolean): Promise<TeacherMemory> {
  const items = await otherModels(config);
  if (isCuda) items.push({ name: 'scratch', bytes: CUDA_BYTES, detail: 'the CUDA context' });
  return { ranks, items, bytes: sumOf(items) };
}

/**
 * The memory that a stage will take with a configuration on a device, by what the native core allocates: within a few
 * percent for models of size, where neither Node nor the data count. Loads no weights, and needs no GPU to plan for
 * one.
 * @param options how the model will be loaded, as {@link loadModel}; `ranks`: processes of the run (default 1, or as
 *   many as `config.roles` has), of which the plan is one's share
 * @throws DUltraError BAD_CHECKPOINT, DOWNLOAD_FAILED; TypeError, RangeError for `lora` and options.
 */
export async function planMemory(
  stage: Stage,
  config: TrainConfig,
  options: Pick<LoadModelOptions, 'device' | 'dtype' | 'compute' | 'quantize' | 'maskTokenId' | 'blockLength'> & {
    ranks?: number | undefined;
  } = {},
): Promise<MemoryPlan> {
  checkKeys('options', options, ['device', 'dtype', 'compute', 'quantize', 'maskTokenId', 'blockLength', 'ranks']);
  const { dtype = 'auto', compute, quantize, maskTokenId, blockLength } = options;
  if (options.ranks !== undefined) checkInteger('ranks', options.ranks, { min: 1, max: 1 << 20 });
  checkRoles(stage, config);
  const given = config.roles === undefined ? null : parseRoles(config.roles);
  const roles = given && rolesOf(config, options.ranks ?? given.train + given.teacher);
  const ranks = roles?.train ?? options.ranks ?? given?.train ?? 1;
  const { device, available } = deviceOf(options.device ?? 'auto');
  const { config: shape, storageOf, source } = await shapeOf(config, stage, { maskTokenId, blockLength });
  const table = native().tensors(shape);
  const isCuda = device !== 'cpu';
  const as = compute === 'bfloat16' ? 'BF16' : dtype === 'auto' ? 'auto' : DTYPES[dtype];
  // As loadModel chooses: a GPU multiplies weights in bf16 that are stored in bf16, or in blocks.
  const isNarrow =
    isCuda &&
    compute !== 'float32' &&
    table.every((tensor) => {
      const stored = as === 'auto' ? storageOf(tensor.name) : as;
      return isHeldWide(tensor) || stored === 'BF16' || isBlockType(stored);
    });
  const blocks = quantize !== undefined ? QUANTISE[quantize] : dtype === 'auto' ? 'keep' : 'decode';
  // A GPU multiplies experts in plain numbers alone.
  const storage = heldTypes(shape, storageOf, as, blocks).map((held, i) =>
    isCuda && isBlockType(held) && isExpert(table[i].name) ? (isNarrow ? 'BF16' : 'F32') : held,
  );
  const { activationCheckpointing, lora, momentDtype, reduction, zeroStage = 0 } = config;
  const tokens = config.tokenBudget ?? 8192;
  const request: NativeMemoryRequest = {
    config: shape,
    storage,
    onDevice: isCuda,
    compute: isNarrow ? 'bfloat16' : 'float32',
    trainer: resolveTrainerOptions({
      // With adapters the base is frozen, and resolveTrainerOptions refuses to be told so.
      freezeBase: lora ? false : (config.freezeBase ?? stage === 'planner'),
      freezePlanner: config.freezePlanner ?? !usesPlanner(stage),
      ...(activationCheckpointing === undefined ? {} : { activationCheckpointing }),
      ...(momentDtype === undefined ? {} : { momentDtype }),
      ...(reduction === undefined ? {} : { reduction }),
      zeroStage,
      lora: lora ?? null,
    }),
    ranks,
    tokens,
  };
  const plan = native().planMemory(request);
  const { parameters, active: activeParameters, trainable } = plan;
  const passed = activeParameters < parameters ? ` (${activeParameters.toLocaleString('en')} of them active)` : '';
  const isInBlocks = storage.some(isBlockType);
  const stored = isInBlocks ? 'blocks of 8 bits and fewer' : isNarrow ? 'bf16' : 'the type that they are held in';
  const run = { tokens, ranks, isNarrow: isNarrow && !isInBlocks, isInBlocks, isCuda };
  const items: MemoryItem[] = [
    {
      name: 'weights',
      bytes: plan.weights,
      detail: `${parameters.toLocaleString('en')} parameters${passed} of ${shownSource(source)}, matrices in ${stored}`,
    },
    ...ofTraining(plan, config, run),
    cacheMemory(stage, config, shape, isNarrow),
    ...(roles ? [] : await otherModels(config)),
  ];
  const bytes = sumOf(items);
  const bytesByZeroStage = ZERO_STAGES.map((stage) => {
    const other = native().planMemory({ ...request, trainer: { ...request.trainer, zeroStage: stage } });
    return bytes + sumOf(ofTraining(other, config, run)) - sumOf(ofTraining(plan, config, run));
  });
  const teacher = roles && (await teacherMemory(config, roles.teacher, isCuda));
  const most = Math.max(bytes, teacher?.bytes ?? 0);
  const fits = available === null ? null : most <= available;
  return {
    device,
    ranks,
    parameters,
    activeParameters,
    trainable,
    items,
    bytes,
    bytesByZeroStage,
    teacher,
    available,
    fits,
  };
}
