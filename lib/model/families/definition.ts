// What a family of checkpoints is made of.
import { z } from 'zod';
import { badFile } from '../../files/json';
import { show } from '../../text';
import type { CausalConfig, ModelConfig } from '../config';

/** A family: which checkpoints it reads, what their config.json says, and what their tensors are called. */
export interface Family<Config extends ModelConfig | CausalConfig> {
  readonly name: string;
  /** Values of `model_type` in config.json that it answers to. */
  readonly modelTypes: readonly string[];
  /** Names of the model's class in config.json that it is known to read; others are tried too. */
  readonly architectures: readonly string[];
  /**
   * Checks config.json and fills in defaults.
   * @param file named in errors @param tensors names of the checkpoint's tensors
   * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came.
   */
  parseConfig(json: Record<string, unknown>, file: string, tensors: { has(name: string): boolean }): Config;
  /** The checkpoint's name of a tensor of native/model/tensors. @throws DUltraError INTERNAL for one that it lacks. */
  checkpointName(tensor: string): string;
}

/** A family of masked diffusion models, which can be saved. */
export interface DiffusionFamily extends Family<ModelConfig> {
  /** config.json: the fields that `parseConfig` reads as they are in force, others as they were. */
  configJson(config: ModelConfig, json: Readonly<Record<string, unknown>>): Record<string, unknown>;
}

/** Bounds as the native core has them: far above every model, and small enough that no product overflows. */
export const count = (max: number) => z.int().positive().max(max);
export const LIMITS = { width: 2 ** 20, heads: 2 ** 16, layers: 2 ** 16, mlp: 2 ** 24, ids: 2 ** 30 } as const;

/** A field, its value, and the values with which the model is computed here; absent and null are always accepted. */
export type Requirement = readonly [field: string, value: unknown, accepted: readonly unknown[]];

/** Refuses settings that change the arithmetic to what is not computed here. @throws DUltraError BAD_CHECKPOINT */
export function requireValues(file: string, requirements: readonly Requirement[]): void {
  for (const [field, value, accepted] of requirements) {
    if (value === undefined || value === null || accepted.includes(value)) continue;
    const expected = [...accepted, null].map((item) => JSON.stringify(item)).join(' or ');
    throw badFile(file, `${field}: expected ${expected}, got ${show(value)}`);
  }
}
