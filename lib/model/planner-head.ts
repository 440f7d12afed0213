// A planner head by itself: a folder with planner.json and planner.safetensors, for a base model that has none.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { z } from 'zod';
import { DTYPES } from '../dtypes';
import { optionError } from '../errors';
import { writeError, writeFileAtomic } from '../files/atomic';
import { badFile, checkFields, readJsonObject } from '../files/json';
import { readSafetensorsEntries, type TensorEntry, writeSafetensorsFrom } from '../files/safetensors';
import { checkChoice, checkKeys, checkSeed } from '../options';
import { show } from '../text';
import type { ModelConfig } from './config';
import { readConfigJson } from './config';
import { hintsOf } from './config-hints';
import { parseDiffusionCheckpoint } from './families';
import { initialWeights } from './initial-weights';
import { toStored } from './save';
import { expectedTensors } from './tensors';

const DESCRIPTION = 'planner.json';
const WEIGHTS = 'planner.safetensors';

type Planner = NonNullable<ModelConfig['planner']>;

const schema = z.looseObject({
  num_head_layers: z.int().nonnegative().max(1024),
  use_adaln: z.boolean(),
  use_mask_embeddings: z.boolean(),
});

/** Options of {@link createPlanner}. */
export interface CreatePlannerOptions {
  /**
   * "block" (default): the paper's head, a transformer block of the base model's shape and two modulated norms. "small":
   * the norms alone, under 1 % of the parameters of a model of billions.
   */
  size?: 'block' | 'small' | undefined;
  /** How its weights are stored. Default "float32". */
  dtype?: 'float32' | 'bfloat16' | 'float16' | undefined;
  /** Seed of the random weights. Default 0. */
  seed?: number | bigint | undefined;
  /** As for `loadModel`. */
  maskTokenId?: number | undefined;
  /** As for `loadModel`. */
  blockLength?: number | undefined;
}

/** The tensors of a planner head: name to shape. They are called the same in all families. */
const plannerTensors = (config: ModelConfig): [name: string, shape: number[]][] =>
  [...expectedTensors(config)].filter(([name]) => !name.startsWith('model.transformer.'));

/** Writes a planner head into `folder`. @throws DUltraError WRITE_FAILED */
export async function savePlannerHead(
  folder: string,
  config: ModelConfig & { planner: Planner },
  dtype: keyof typeof DTYPES,
  weights: (name: string) => Promise<Float32Array>,
): Promise<void> {
  if (typeof folder !== 'string' || folder === '')
    throw optionError(TypeError, 'folder', `expected a path, got ${show(folder)}`);
  const { numLayers, useAdaln, useMaskEmbeddings } = config.planner;
  const headers = plannerTensors(config).map(([name, shape]) => ({ name, dtype: DTYPES[dtype], shape }));
  const description = {
    num_head_layers: numLayers,
    use_adaln: useAdaln,
    use_mask_embeddings: useMaskEmbeddings,
    base: { family: config.family, d_model: config.dModel },
  };
  try {
    await mkdir(folder, { recursive: true });
    const produce = async (name: string) => toStored(await weights(name), dtype);
    await writeSafetensorsFrom(path.join(folder, WEIGHTS), headers, produce, { format: 'pt' });
    await writeFileAtomic(path.join(folder, DESCRIPTION), `${JSON.stringify(description, null, 2)}\n`);
  } catch (cause) {
    throw writeError(folder, cause);
  }
}

/**
 * Makes a new planner head for a model that has none, in a folder of its own: planner.json and planner.safetensors.
 * `loadModel(source, { planner: folder })` puts it on the model; `trainPlanner` and `GrpoTrainer` train it.
 * @param source folder of the base model @param folder where the head goes
 * @throws TypeError, RangeError for options, and for a model that has a planner; DUltraError BAD_CHECKPOINT, WRITE_FAILED
 */
export async function createPlanner(source: string, folder: string, options: CreatePlannerOptions = {}): Promise<void> {
  checkKeys('options', options, ['size', 'dtype', 'seed', 'maskTokenId', 'blockLength']);
  const { size = 'block', dtype = 'float32' } = options;
  checkChoice('size', size, ['block', 'small'] as const);
  checkChoice('dtype', dtype, ['float32', 'bfloat16', 'float16'] as const);
  const seed = checkSeed('seed', options.seed ?? 0);
  const { file, json } = await readConfigJson(source);
  // Whether the checkpoint has a planner, its weights say, which are read when the head is put on it.
  const { config: base } = parseDiffusionCheckpoint(json, file, new Map(), await hintsOf(source, json, options));
  const planner = { numLayers: size === 'block' ? 1 : 0, useAdaln: true, useMaskEmbeddings: true };
  const config = { ...base, planner };
  const order = [...expectedTensors(config).keys()];
  const shapes = new Map(plannerTensors(config));
  await savePlannerHead(folder, config, dtype, async (name) =>
    initialWeights(name, shapes.get(name)!, {
      nLayers: base.nLayers,
      plannerLayers: planner.numLayers,
      seed,
      stream: order.indexOf(name),
    }),
  );
}

/**
 * A planner head's description and tensors. @param files files before its own, in the numbering of entries
 * @throws DUltraError BAD_CHECKPOINT
 */
export async function readPlannerHead(
  folder: string,
  files: number,
): Promise<{ planner: Planner; file: string; entries: Map<string, TensorEntry> }> {
  const description = path.join(folder, DESCRIPTION);
  const c = checkFields(schema, await readJsonObject(description), description);
  const file = path.join(folder, WEIGHTS);
  const entries = await readSafetensorsEntries([file]);
  for (const [name, entry] of entries) {
    if (name.startsWith('model.')) throw badFile(file, `tensor ${show(name)}: expected those of a planner head alone`);
    entry.file += files;
  }
  return {
    planner: {
      numLayers: c.num_head_layers,
      useAdaln: c.use_adaln,
      useMaskEmbeddings: c.use_mask_embeddings,
    },
    file,
    entries,
  };
}
