// generation_config.json: a checkpoint's defaults of generation.
import { z } from 'zod';
import { badFile, checkFields } from '../files/json';
import { type GenerationFile, readStopStrings } from '../model/generation-file';
import { resolveSampler, type SamplerObject, samplerObject } from '../sampling/samplers';

/** Defaults of `generate` from a checkpoint. */
export interface GenerationDefaults {
  maxTokens?: number | undefined;
  blockLength?: number | undefined;
  sampler?: SamplerObject | undefined;
  /** Stop strings; not of templates and forms, nor with `research.compat`. */
  stop?: readonly string[] | undefined;
}

const length = z
  .int()
  .positive()
  .max(2 ** 30);
const schema = z.looseObject({
  gen_length: length.nullish(),
  block_length: length.nullish(),
  sampler: z.union([z.string(), z.looseObject({ type: z.string() })]).nullish(),
});

/** What the defaults depend on beside the file. */
interface Parts {
  hasPlanner: boolean;
  hasTokenizer: boolean;
}

/**
 * `gen_length`, `block_length`, `sampler` (an object, or its short form such as "confidence:0.9") and `stop_strings` of a
 * checkpoint's generation_config.json.
 * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came.
 */
export function generationDefaults(
  generation: GenerationFile,
  { hasPlanner, hasTokenizer }: Parts,
): GenerationDefaults {
  const { file, json } = generation;
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
  const stop = readStopStrings(generation);
  if (stop.length > 0 && hasTokenizer) defaults.stop = stop;
  if (typeof sampler === 'string' || (typeof sampler === 'object' && sampler !== null)) {
    try {
      const chosen = samplerObject<SamplerObject>(sampler as unknown as SamplerObject | string);
      // A planner's sampler is ignored in a checkpoint whose planner was removed.
      if (chosen.type !== 'planner' || hasPlanner) {
        resolveSampler(chosen, hasPlanner);
        defaults.sampler = chosen;
      }
    } catch (cause) {
      throw bad((cause as Error).message, cause);
    }
  }
  return defaults;
}
