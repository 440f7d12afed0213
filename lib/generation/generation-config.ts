// generation_config.json: a checkpoint's defaults of generation.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { badFile, checkFields, readJsonObject } from '../files/json';
import { resolveSampler, type SamplerObject } from '../sampling/samplers';

/** Defaults of `generate` from a checkpoint. */
export interface GenerationDefaults {
  genLength?: number;
  blockLength?: number;
  sampler?: SamplerObject;
}

const length = z
  .int()
  .positive()
  .max(2 ** 30);
const schema = z.looseObject({
  gen_length: length.nullish(),
  block_length: length.nullish(),
  sampler: z.looseObject({ type: z.string() }).nullish(),
});

/**
 * Reads `gen_length`, `block_length` and `sampler` of a folder's generation_config.json; other fields are for other
 * programs. Empty where there is no such file.
 * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came.
 */
export async function readGenerationDefaults(folder: string, hasPlanner: boolean): Promise<GenerationDefaults> {
  const file = path.join(folder, 'generation_config.json');
  if (!existsSync(file)) return {};
  const fields = checkFields(schema, await readJsonObject(file), file);
  const { gen_length: genLength, block_length: blockLength, sampler } = fields;
  const bad = (message: string, cause?: unknown) => badFile(file, message, cause);
  if (typeof blockLength === 'number' && typeof genLength !== 'number')
    throw bad('block_length: expected gen_length beside it, got none');
  if (typeof blockLength === 'number' && genLength! % blockLength !== 0)
    throw bad(`gen_length: expected a multiple of block_length (${blockLength}), got ${genLength}`);
  const defaults: GenerationDefaults = {};
  if (typeof genLength === 'number') defaults.genLength = genLength;
  if (typeof blockLength === 'number') defaults.blockLength = blockLength;
  // A planner's sampler is ignored in a checkpoint whose planner was removed.
  if (sampler && (sampler.type !== 'planner' || hasPlanner)) {
    try {
      resolveSampler(sampler as unknown as SamplerObject, hasPlanner);
    } catch (cause) {
      throw bad((cause as Error).message, cause);
    }
    defaults.sampler = sampler as unknown as SamplerObject;
  }
  return defaults;
}
