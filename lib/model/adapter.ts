// Low-rank adapters in the layout of PEFT: adapter_config.json and adapter_model.safetensors.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { syncFolder, writeError, writeFileAtomic } from '../files/atomic';
import { badFile, readJsonObject } from '../files/json';
import { readSafetensors, type TensorValue, writeSafetensors } from '../files/safetensors';
import type { NativeNamedTensor } from '../native';
import { checkChoice } from '../options';
import { LORA_TARGETS, type LoraOptions, type ModelTrainer } from './trainer';

/** PEFT wraps a model twice; both names prefix its tensors. */
const PREFIX = 'base_model.model.';
const CONFIG_FILE = 'adapter_config.json';
const WEIGHTS_FILE = 'adapter_model.safetensors';
/** `target_modules` as written here: the regular expression that PEFT matches full module names with. */
const MODULE_PATTERN = /^model\\\.transformer\\\.blocks\\\.\\d\+\\\.\(([a-z_|]+)\)$/;

/**
 * Writes the adapters of a trainer, and what else it trains (the planner head), into `folder`.
 * @throws DUltraError WRITE_FAILED; RangeError without adapters.
 */
export async function saveAdapter(folder: string, trainer: ModelTrainer, baseModel: string): Promise<void> {
  const { lora } = trainer;
  if (!lora) throw optionError(RangeError, 'saveAdapter', 'expected a trainer with lora, got one without adapters');
  const { tensors } = await trainer.state();
  const parameters = tensors.filter(({ name }) => !name.startsWith('exp_avg.') && !name.startsWith('exp_avg_sq.'));
  const others = parameters
    .filter(({ name }) => !/\.lora_[AB]\.weight$/.test(name))
    .map(({ name }) => name.replace(/\.(weight|bias)$/, ''));
  const config = {
    peft_type: 'LORA',
    base_model_name_or_path: baseModel,
    r: lora.rank,
    lora_alpha: lora.alpha,
    lora_dropout: 0,
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
    target_modules: `model\\.transformer\\.blocks\\.\\d+\\.(${lora.targets.join('|')})`,
    modules_to_save: others.length > 0 ? [...new Set(others)] : null,
    task_type: null,
  };
  const map = new Map<string, TensorValue>(
    parameters.map(({ name, shape, data }) => [PREFIX + name, { dtype: 'F32', shape, data }]),
  );
  try {
    await mkdir(folder, { recursive: true });
    await writeSafetensors(path.join(folder, WEIGHTS_FILE), map, { format: 'pt' });
    await writeFileAtomic(path.join(folder, CONFIG_FILE), `${JSON.stringify(config, null, 2)}\n`);
    await syncFolder(folder);
  } catch (cause) {
    throw writeError(folder, cause);
  }
}

/** What an adapter folder holds. */
export interface AdapterFiles {
  lora: Required<LoraOptions>;
  /** Adapters and other trained tensors, under the names of a trainer's state. */
  tensors: NativeNamedTensor[];
}

/** Reads an adapter folder. @throws DUltraError BAD_CHECKPOINT naming what was expected and what came. */
export async function readAdapter(folder: string): Promise<AdapterFiles> {
  const file = path.join(folder, CONFIG_FILE);
  const bad = (message: string) => badFile(file, message);
  const config = await readJsonObject(file);
  const { peft_type: type, r: rank, lora_alpha: alpha, target_modules: modules } = config;
  if (type !== 'LORA') throw bad(`peft_type: expected "LORA", got ${JSON.stringify(type)}`);
  if (typeof rank !== 'number' || !Number.isInteger(rank) || rank < 1)
    throw bad(`r: expected a positive integer, got ${JSON.stringify(rank)}`);
  if (typeof alpha !== 'number' || !(alpha > 0))
    throw bad(`lora_alpha: expected a positive number, got ${JSON.stringify(alpha)}`);
  for (const unsupported of ['use_rslora', 'use_dora'] as const)
    if (config[unsupported] === true) throw bad(`${unsupported}: expected false, got true`);
  const listed = typeof modules === 'string' ? MODULE_PATTERN.exec(modules)?.[1].split('|') : modules;
  if (!Array.isArray(listed) || listed.length === 0)
    throw bad(`target_modules: expected a list of projections, got ${JSON.stringify(modules)}`);
  try {
    for (const target of listed) checkChoice('target_modules', target, LORA_TARGETS);
  } catch (error) {
    throw bad((error as Error).message);
  }
  const tensors: NativeNamedTensor[] = [];
  for (const [name, { dtype, shape, data }] of await readSafetensors(path.join(folder, WEIGHTS_FILE))) {
    if (!name.startsWith(PREFIX)) throw bad(`${WEIGHTS_FILE}: expected names that begin with "${PREFIX}", got ${name}`);
    if (!(data instanceof Float32Array)) throw bad(`${WEIGHTS_FILE}: tensor ${name}: expected F32, got ${dtype}`);
    tensors.push({ name: name.slice(PREFIX.length), shape: [...shape], data });
  }
  return { lora: { rank, alpha, targets: listed as Required<LoraOptions>['targets'] }, tensors };
}

/** Adapters that are merged into a model's weights until `unmerge`. Made by `model.loadAdapter`. */
export class Adapter {
  readonly #trainer: ModelTrainer;
  /** Rank, alpha and targets. */
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
}

/** Loads an adapter folder's tensors into a new trainer. @throws DUltraError BAD_CHECKPOINT where they do not fit. */
export async function applyAdapter(trainer: ModelTrainer, { tensors }: AdapterFiles, folder: string): Promise<void> {
  const { tensors: state } = await trainer.state();
  const known = new Map(state.map((tensor) => [tensor.name, tensor]));
  const missing = trainer
    .parameters()
    .filter(({ name }) => /\.lora_[AB]\.weight$/.test(name) && !tensors.some((tensor) => tensor.name === name));
  if (missing.length > 0) throw new DUltraError('BAD_CHECKPOINT', `${folder}: tensor ${missing[0].name} is missing`);
  for (const tensor of tensors) {
    const own = known.get(tensor.name);
    if (!own || own.shape.join() !== tensor.shape.join())
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${folder}: tensor ${tensor.name}: expected ${own ? `shape [${own.shape.join(', ')}]` : 'a name of this model'}, got [${tensor.shape.join(', ')}]`,
      );
    known.set(tensor.name, tensor);
  }
  await trainer.loadState({ step: 0, tensors: [...known.values()] });
}
