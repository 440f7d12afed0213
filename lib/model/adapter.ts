// Low-rank adapters in the layout of PEFT: adapter_config.json and adapter_model.safetensors.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { syncFolder, writeError, writeFileAtomic } from '../files/atomic';
import { badFile, readJsonObject } from '../files/json';
import { readSafetensors, type TensorValue, writeSafetensors } from '../files/safetensors';
import type { NativeNamedTensor } from '../native';
import { show } from '../text';
import { type AdapterConfig, moduleName, parseAdapterConfig } from './adapter-config';
import type { ModelConfig } from './config';
import { checkpointNames } from './families';
import { fromBFloat16, fromFloat16 } from './halves';
import { LORA_TARGETS, type LoraOptions, type ModelTrainer } from './trainer';

/** PEFT wraps a model twice; both names prefix its tensors. */
const PREFIX = 'base_model.model.';
const CONFIG_FILE = 'adapter_config.json';
const WEIGHTS_FILE = 'adapter_model.safetensors';

/**
 * Refuses adapters of projections that the checkpoint holds in one tensor with others (LLaDA2's queries, keys and
 * values), which adapter files could not name. @throws RangeError
 */
export function checkAdaptable(config: ModelConfig, targets: readonly string[]): void {
  const { checkpointName, placesOf } = checkpointNames(config);
  const isShared = (target: string) => {
    const tensor = `model.transformer.blocks.0.${target}.weight`;
    return placesOf(tensor).some(({ name }) => name === checkpointName(tensor));
  };
  const shared = targets.filter(isShared);
  if (shared.length > 0)
    throw optionError(
      RangeError,
      'lora.targets',
      `expected others than ${shared.join(', ')}, which the checkpoints of ${config.family} hold in one tensor: adapter files cannot name them`,
    );
}

/**
 * Writes the adapters of a trainer, and what else it trains (the planner head), into `folder`.
 * @param tensors of the trainer's state
 * @throws DUltraError WRITE_FAILED; RangeError without adapters.
 */
export async function saveAdapter(
  folder: string,
  trainer: ModelTrainer,
  tensors: readonly NativeNamedTensor[],
  { source, config }: { source: string; config: ModelConfig },
): Promise<void> {
  const { lora } = trainer;
  if (!lora) throw optionError(RangeError, 'saveAdapter', 'expected a trainer with lora, got one without adapters');
  const parameters = tensors.filter(({ name }) => !name.startsWith('exp_avg.') && !name.startsWith('exp_avg_sq.'));
  const others = parameters
    .filter(({ name }) => !/\.lora_[AB]\.weight$/.test(name))
    .map(({ name }) => name.replace(/\.(weight|bias)$/, ''));
  const { checkpointName } = checkpointNames(config);
  const first = lora.targets.map((target) => moduleName(`model.transformer.blocks.0.${target}`, checkpointName));
  const at = first[0].search(/\.0\./);
  const escaped = (text: string) => text.replaceAll('.', '\\.');
  const inFile = (name: string) => {
    const [, module, rest] = /^(.*)(\.lora_[AB]\.weight)$/.exec(name) ?? [];
    return module === undefined ? checkpointName(name) : moduleName(module, checkpointName) + rest;
  };
  const adapterConfig = {
    peft_type: 'LORA',
    base_model_name_or_path: source,
    r: lora.rank,
    lora_alpha: lora.alpha,
    lora_dropout: 0,
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
    target_modules: `${escaped(first[0].slice(0, at))}\\.\\d+\\.(${first.map((name) => escaped(name.slice(at + 3))).join('|')})`,
    modules_to_save: others.length > 0 ? [...new Set(others)] : null,
    task_type: null,
  };
  const map = new Map<string, TensorValue>(
    parameters.map(({ name, shape, data }) => [PREFIX + inFile(name), { dtype: 'F32', shape, data }]),
  );
  try {
    await mkdir(folder, { recursive: true });
    await writeSafetensors(path.join(folder, WEIGHTS_FILE), map, { format: 'pt' });
    await writeFileAtomic(path.join(folder, CONFIG_FILE), `${JSON.stringify(adapterConfig, null, 2)}\n`);
    await syncFolder(folder);
  } catch (cause) {
    throw writeError(folder, cause);
  }
}

/** What an adapter folder holds, as a trainer takes it. */
export interface AdapterFiles {
  /**
   * Of the trainer: the largest rank, which smaller adapters are padded to. Where modules are scaled in different ways,
   * alpha is that rank, and `lora_B` carries each one's scale.
   */
  lora: Required<LoraOptions>;
  /** Adapters and other trained tensors, under the names of a trainer's state. */
  tensors: NativeNamedTensor[];
}

const LORA_MATRIX = /^(.*)\.lora_([AB])\.weight$/;

/** A tensor's elements as fp32. @throws DUltraError BAD_CHECKPOINT for a type that adapters are not stored in */
function toFloat32({ dtype, data }: TensorValue, where: string): Float32Array {
  if (data instanceof Float32Array) return data;
  if (dtype === 'BF16') return fromBFloat16(data as Uint16Array);
  if (dtype === 'F16') return fromFloat16(data as Uint16Array);
  throw new DUltraError('BAD_CHECKPOINT', `${where}: expected F32, BF16 or F16, got ${dtype}`);
}

/** A matrix [rows, columns] in the corner of a larger one of zeros, times a factor. */
function padded({ shape, data }: NativeNamedTensor, rows: number, columns: number, factor: number): Float32Array {
  const out = new Float32Array(rows * columns);
  const [, width] = shape;
  for (let i = 0; i < data.length; i++) out[Math.floor(i / width) * columns + (i % width)] = factor * data[i];
  return out;
}

/** Whether a tensor belongs to a module that is stored whole: by its full name, or by the end of one. */
function isSaved(tensor: string, modulesToSave: readonly string[]): boolean {
  const parts = tensor.split('.');
  return parts.some((_, last) => {
    const module = parts.slice(0, last + 1).join('.');
    return modulesToSave.some((name) => module === name || module.endsWith(`.${name}`));
  });
}

/** The adapters of every module that should have some. @throws DUltraError BAD_CHECKPOINT */
function fitModules(
  { modules, names: native, common }: AdapterConfig,
  matrices: ReadonlyMap<string, NativeNamedTensor>,
  file: string,
): AdapterFiles {
  const rank = common?.rank ?? Math.max(...[...modules.values()].map((module) => module.rank));
  const tensors: NativeNamedTensor[] = [];
  for (const [module, { rank: own, scale }] of modules)
    for (const letter of ['A', 'B'] as const) {
      const name = `${module}.lora_${letter}.weight`;
      const matrix = matrices.get(name);
      if (!matrix) throw badFile(file, `tensor ${name} is missing`);
      const { shape } = matrix;
      const [rows, columns] = shape;
      const inState = `${native.get(module)}.lora_${letter}.weight`;
      if (shape.length !== 2 || shape[letter === 'A' ? 0 : 1] !== own)
        throw badFile(
          file,
          `tensor ${name}: expected ${letter === 'A' ? `[${own}, inputs]` : `[outputs, ${own}]`} for rank ${own}, got [${shape.join(', ')}]`,
        );
      const put = (shape: number[], data: Float32Array) => tensors.push({ name: inState, shape, data });
      if (common) put(shape, matrix.data);
      else if (letter === 'A') put([rank, columns], padded(matrix, rank, columns, 1));
      else put([rows, rank], padded(matrix, rows, rank, scale));
    }
  const names = new Set([...modules.keys()].map((module) => native.get(module)!.split('.').at(-1)));
  const targets = LORA_TARGETS.filter((target) => names.has(target));
  return { lora: { rank, alpha: common?.alpha ?? rank, targets }, tensors };
}

/**
 * Reads an adapter folder.
 * @throws DUltraError BAD_CHECKPOINT naming what was expected and what came.
 */
export async function readAdapter(folder: string, model: ModelConfig): Promise<AdapterFiles> {
  const configFile = path.join(folder, CONFIG_FILE);
  const config = parseAdapterConfig(await readJsonObject(configFile), configFile, {
    nLayers: model.nLayers,
    checkpointName: checkpointNames(model).checkpointName,
  });
  const file = path.join(folder, WEIGHTS_FILE);
  const { modules, modulesToSave } = config;
  const matrices = new Map<string, NativeNamedTensor>();
  const others: NativeNamedTensor[] = [];
  for (const [fullName, value] of await readSafetensors(file)) {
    if (!fullName.startsWith(PREFIX))
      throw badFile(file, `expected names that begin with "${PREFIX}", got ${show(fullName)}`);
    const name = fullName.slice(PREFIX.length);
    const tensor = { name, shape: [...value.shape], data: toFloat32(value, `${file}: tensor ${show(fullName)}`) };
    const module = LORA_MATRIX.exec(name)?.[1];
    if (module !== undefined && modules.has(module)) matrices.set(name, tensor);
    else if (module === undefined && isSaved(name, modulesToSave)) others.push(tensor);
    else
      throw badFile(
        file,
        `tensor ${show(fullName)}: expected adapters of the modules, and the modules_to_save, that ${CONFIG_FILE} names`,
      );
  }
  for (const saved of modulesToSave)
    if (!others.some(({ name }) => isSaved(name, [saved])))
      throw badFile(file, `expected tensors of ${show(saved)}, which modules_to_save names, got none`);
  const fitted = fitModules(config, matrices, file);
  return { ...fitted, tensors: [...fitted.tensors, ...others] };
}

/** Adapters that are merged into a model's weights until `unmerge`. Made by `model.loadAdapter`. */
export class Adapter {
  readonly #trainer: ModelTrainer;
  /**
   * Rank, alpha and targets as they are merged: where modules have ranks or scales of their own, the largest rank, and
   * alpha equal to it, with the scales in the matrices.
   */
  readonly lora: Required<LoraOptions>;

  /** @internal */
  constructor(trainer: ModelTrainer, lora: Required<LoraOptions>) {
    this.#trainer = trainer;
    this.lora = lora;
  }

  /** Adds the adapters to the model's weights, as after loading. */
  merge(): Promise<void> {
    return this.#trainer.setAdapters('on');
  }

  /** Removes the adapters from the model's weights: the model is the base alone again, with the same bits. */
  unmerge(): Promise<void> {
    return this.#trainer.setAdapters('off');
  }

  /** Frees the adapters; the model keeps its current weights. */
  dispose(): void {
    this.#trainer.dispose();
  }

  /** `dispose()` at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** `dispose()` at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }
}

/** Loads an adapter folder's tensors into a new trainer. @throws DUltraError BAD_CHECKPOINT where they do not fit. */
export async function applyAdapter(trainer: ModelTrainer, { tensors }: AdapterFiles, folder: string): Promise<void> {
  const { tensors: state } = await trainer.state();
  const known = new Map(state.map((tensor) => [tensor.name, tensor]));
  for (const tensor of tensors) {
    const own = known.get(tensor.name);
    if (!own || own.shape.join() !== tensor.shape.join())
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${folder}: tensor ${show(tensor.name)}: expected ${own ? `shape [${own.shape.join(', ')}]` : 'a name of this model'}, got [${tensor.shape.join(', ')}]`,
      );
  }
  const given = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  // Projections without adapters, which others of their kind have: B = 0 adds nothing.
  const absent = (tensor: NativeNamedTensor) =>
    tensor.name.endsWith('.lora_B.weight') ? { ...tensor, data: new Float32Array(tensor.data.length) } : tensor;
  await trainer.loadState({ step: 0, tensors: state.map((tensor) => given.get(tensor.name) ?? absent(tensor)) });
}
