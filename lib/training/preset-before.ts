// Presets whose stages begin where the stage before ended.
import { type EmbeddedModel, embeddedFolder } from '../model/embedded';
import { PRESETS, STAGES, type Stage } from './presets';

/** The models before GRPO that are in the package. */
const EMBEDDED_BASES: Readonly<Record<string, EmbeddedModel>> = { tiny: 'word-problems-base', world: 'world' };

/**
 * What a stage of a preset begins with, where that is the model of the stage before it: that stage, the model's folder,
 * and the embedded model that can take its place. null: the preset names another model, or makes a new one.
 */
export function presetBefore(stage: Stage, preset: string): { stage: Stage; model: string; embedded: string } | null {
  const model = PRESETS[stage][preset]?.model;
  const before = STAGES.find((other) => `${PRESETS[other][preset]?.outputDir}/final` === model);
  if (before === undefined || typeof model !== 'string' || !Object.hasOwn(EMBEDDED_BASES, preset)) return null;
  return { stage: before, model, embedded: embeddedFolder(EMBEDDED_BASES[preset]) };
}
