// generation_config.json: a checkpoint's defaults of generation.
import { z } from 'zod';
import { badFile, checkFields } from '../files/json';
import type { GenerationFile } from '../model/generation-file';
import { resolveSampler, type SamplerObject } from '../sampling/samplers';

/** Defaults of `generate` from a checkpoint. */
export interface GenerationDefaults {
  maxTokens?: number | undefined;
  blockLength?: number | undefined;
  sampler?: SamplerObject | undefined;
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
 * `gen_length`, `block_length` and `sampler` of a checkpoint's generation_config.json.
 * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came.
 */
export function generationDefaults({ file, json }: GenerationFile, hasPlanner: boolean): GenerationDefaults {
  const fields = checkFields(schema, json, file);
  const { gen_length: maxTokens, block_length: blockLength, sampler } = fields;
  const bad = (message: string, cause?: unknown) => badFile(file, message, cause);
  if (typeof blockLength === 'number' && typeof maxTokens !== 'number')
    throw bad('block_length: expected gen_length beside it, got none');
  if (typeof blockLength === 'number' && maxTokens! % blockLength !== 0)
    throw bad(`gen_length: expected a multiple of block_length (${blockLength}), got ${maxTokens}`);
  const defaults: GenerationDefaults = {};
  if (typeof maxTokens === 'number') defaults.maxTokens = maxTokens;
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
