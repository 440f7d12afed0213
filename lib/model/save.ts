// A model as files in the Hugging Face layout.

import { existsSync } from 'node:fs';
import { copyFile, mkdir, readdir } from 'node:fs/promises';
import path from 'node:path';
import { DTYPES } from '../dtypes';
import { optionError } from '../errors';
import { syncFile, syncFolder, writeError, writeFileAtomic } from '../files/atomic';
import { type TensorData, writeSafetensorsFrom } from '../files/safetensors';
import { INDEX_FILE } from '../files/weight-files';
import { checkChoice, checkKeys } from '../options';
import { concatenate } from '../packing';
import type { ModelConfig } from './config';
import { checkpointNames, familyOf } from './families';
import { ggufTokenizerFiles, isGgufPath } from './gguf';
import { toBFloat16, toFloat16 } from './halves';
import { expectedTensors } from './tensors';

/** Options of `model.save`. */
export interface SaveOptions {
  /** How weights are stored. Default "float32", which is exact. */
  dtype?: 'float32' | 'bfloat16' | 'float16' | undefined;
}

/** A model as {@link saveModel} needs it. */
export interface SavableModel {
  config: ModelConfig;
  /** config.json as it was read: fields that are not understood here are kept. */
  configJson: Readonly<Record<string, unknown>>;
  /** Folder that the tokenizer's files are copied from. */
  source: string;
  /** One tensor in fp32. */
  weights(name: string): Promise<Float32Array>;
}

/** Files that a tokenizer is read from. */
export const TOKENIZER_FILES = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
];

/** Files that say how a model is used. */
export const SETTINGS_FILES = ['generation_config.json', 'decision.json'];

/** fp32 numbers as they are stored. */
export function toStored(values: Float32Array, dtype: keyof typeof DTYPES): TensorData {
  if (dtype === 'float32') return values;
  return dtype === 'bfloat16' ? toBFloat16(values) : toFloat16(values);
}

/** The checkpoint's tensors: the shape of each, and the tensors of the native table that it is made of, in order. */
function storedTensors(config: ModelConfig): Map<string, { shape: number[]; parts: string[] }> {
  const { checkpointName, placesOf } = checkpointNames(config);
  const tensors = new Map<string, { shape: number[]; parts: string[] }>();
  for (const [tensor, shape] of expectedTensors(config)) {
    const name = checkpointName(tensor);
    const place = placesOf(tensor).find((one) => one.name === name);
    const stored = tensors.get(name);
    if (stored) stored.parts.push(tensor);
    else tensors.set(name, { shape: place?.shape ?? shape, parts: [tensor] });
  }
  return tensors;
}

/**
 * Writes a model into `folder`, which is made where it is missing. @throws DUltraError WRITE_FAILED, RangeError,
 * TypeError
 */
export async function saveModel(folder: string, model: SavableModel, options: SaveOptions = {}): Promise<void> {
  if (typeof folder !== 'string' || folder === '')
    throw optionError(TypeError, 'folder', `expected a path, got ${JSON.stringify(folder)}`);
  checkKeys('options', options, ['dtype']);
  const { dtype = 'float32' } = options;
  checkChoice('dtype', dtype, ['float32', 'bfloat16', 'float16'] as const);
  if (existsSync(path.join(folder, INDEX_FILE)))
    throw optionError(
      RangeError,
      'folder',
      `${folder} holds a checkpoint in several files (${INDEX_FILE}); expected a folder of its own`,
    );
  const family = familyOf(model.config);
  const tensors = storedTensors(model.config);
  const headers = [...tensors].map(([name, { shape }]) => ({ name, dtype: DTYPES[dtype], shape }));
  const produce = async (name: string): Promise<TensorData> => {
    const parts: Float32Array[] = [];
    for (const part of tensors.get(name)!.parts) parts.push(await model.weights(part));
    return toStored(parts.length === 1 ? parts[0] : concatenate(parts, Float32Array), dtype);
  };
  try {
    await mkdir(folder, { recursive: true });
    await writeSafetensorsFrom(path.join(folder, 'model.safetensors'), headers, produce, { format: 'pt' });
    const json = { ...family.configJson(model.config, model.configJson), torch_dtype: dtype };
    // The name of transformers 5 comes first there, and must not say what was.
    if ('dtype' in json) Object.assign(json, { dtype });
    await writeFileAtomic(path.join(folder, 'config.json'), `${JSON.stringify(json, null, 2)}\n`);
    if (isGgufPath(model.source)) {
      for (const [name, text] of await ggufTokenizerFiles(model.source))
        await writeFileAtomic(path.join(folder, name), text);
    } else if (path.resolve(folder) !== path.resolve(model.source) && existsSync(model.source)) {
      const present = new Set(await readdir(model.source));
      for (const name of [...TOKENIZER_FILES, ...SETTINGS_FILES]) {
        if (!present.has(name)) continue;
        await copyFile(path.join(model.source, name), path.join(folder, name));
        await syncFile(path.join(folder, name));
      }
    }
    await syncFolder(folder);
  } catch (cause) {
    throw writeError(folder, cause);
  }
}
