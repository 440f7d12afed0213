// Presets whose stages begin where the stage before ended.
import { packageFile } from '../package';
import { PRESETS, STAGES, type Stage } from './presets';

/** The model that GRPO of "tiny" begins with, which is in the package. */
const EMBEDDED_BASE = ['models', 'base'] as const;

/**
 * What a stage of a preset begins with, where that is the model of the stage before it: that stage, the model's folder,
 * and the embedded model that can take its place. null: the preset names another model, or makes a new one.
 */
export function presetBefore(
  stage: Stage,
  preset: string,
): { stage: Stage; model: string; embedded: string | null } | null {
  const model = PRESETS[stage][preset]?.model;
  const before = STAGES.find((other) => `${PRESETS[other][preset]?.outputDir}/final` === model);
  if (before === undefined || typeof model !== 'string') return null;
  return { stage: before, model, embedded: preset === 'tiny' ? packageFile(...EMBEDDED_BASE) : null };
}
