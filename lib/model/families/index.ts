// The families of checkpoints. A new one is a file here and an entry in a list.
import { DUltraError, isDUltraError } from '../../errors';
import { badFile } from '../../files/json';
import { show } from '../../text';
import type { CausalConfig, ModelConfig } from '../config';
import { a2dQwen2, a2dQwen3 } from './a2d';
import { checkConfigKeys } from './config-keys';
import type { ConfigHints, DiffusionFamily, Family, NewShape, TensorPlace } from './definition';
import { dream } from './dream';
import { fastDllmV2 } from './fast-dllm-v2';
import { illada } from './illada';
import { llada } from './llada';
import { lladaMoe } from './llada-moe';
import { llada2 } from './llada2';
import { llama } from './llama';
import { qwen2 } from './qwen2';
import { qwen3 } from './qwen3';
import { sdar } from './sdar';

/** Masked diffusion models. */
const DIFFUSION: readonly DiffusionFamily[] = [
  llada,
  illada,
  dream,
  sdar,
  fastDllmV2,
  a2dQwen3,
  a2dQwen2,
  lladaMoe,
  llada2,
];
/** Autoregressive models. */
const CAUSAL: readonly Family<CausalConfig>[] = [qwen3, qwen2, llama];

export type { ConfigHints, TensorPlace } from './definition';

/** What a checkpoint calls the tensors of the native table, and which of its tensors may hold one among others. */
export interface TensorNames {
  checkpointName: (tensor: string) => string;
  placesOf: (tensor: string) => TensorPlace[];
}

/** The config of a checkpoint, and the names of its tensors. */
export interface ParsedCheckpoint<Config> extends TensorNames {
  config: Config;
}

/** The names of a family's checkpoint of this config. */
const namesOf = <Config extends ModelConfig | CausalConfig>(family: Family<Config>, config: Config): TensorNames => ({
  checkpointName: (tensor) => family.checkpointName(tensor, config),
  placesOf: (tensor) => family.placesOf?.(tensor, config) ?? [],
});

const typesOf = (families: readonly { modelTypes: readonly string[] }[], separator: string) =>
  families.flatMap(({ modelTypes }) => modelTypes.map((name) => JSON.stringify(name))).join(separator);

/** Whether a family answers to a `model_type`. */
const answersTo =
  (type: unknown) =>
  ({ modelTypes }: { modelTypes: readonly string[] }): boolean =>
    modelTypes.includes(type as string);

/** What config.json calls the model's class, such as "LLaDAModelLM"; null: it does not say. */
function architectureOf({ architectures }: Record<string, unknown>): string | null {
  const [first] = Array.isArray(architectures) ? (architectures as unknown[]) : [];
  return typeof first === 'string' ? first : null;
}

/** Refuses a model of another family by its name. */
function unknownFamily(file: string, name: unknown, cause?: Error): DUltraError {
  const detail = cause ? ` (${cause.message.replace(`${file}: `, '')})` : '';
  return badFile(
    file,
    `the model is of the family ${show(name)}, which dultra does not run${detail}; it runs the masked diffusion models ` +
      `${typesOf(DIFFUSION, ', ')} and, with loadCausalModel, the autoregressive ones ${typesOf(CAUSAL, ', ')}`,
    cause,
  );
}

/** Reads the config of a checkpoint. @throws as {@link parseDiffusionCheckpoint} */
type Parser<Config> = (
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
  hints?: ConfigHints,
) => ParsedCheckpoint<Config>;

/** A parser of some families. @param expected what they are, and what the others are, for an error */
function parserOf<Config extends ModelConfig | CausalConfig>(
  families: readonly Family<Config>[],
  others: readonly Family<ModelConfig | CausalConfig>[],
  expected: { these: string; others: string },
): Parser<Config> {
  return (json, file, tensors, hints = {}) => {
    const { model_type: type } = json;
    const architecture = architectureOf(json);
    const family = families.find(answersTo(type));
    if (!family) {
      if (others.some(answersTo(type)))
        throw badFile(file, `model_type: expected ${expected.these}, got ${show(type)}, ${expected.others}`);
      throw unknownFamily(file, type ?? architecture);
    }
    try {
      const config = family.parseConfig(json, file, tensors, hints);
      checkConfigKeys(json, file, family.keys);
      return { config, ...namesOf(family, config) };
    } catch (error) {
      if (!isDUltraError(error, 'BAD_CHECKPOINT')) throw error;
      if (architecture === null || family.architectures.includes(architecture))
        throw new DUltraError('BAD_CHECKPOINT', `${error.message} (of a model of the type ${show(type)})`, {
          cause: error,
        });
      // Mixtures of experts and others give the model_type of the family that they come from.
      throw unknownFamily(file, architecture, error);
    }
  };
}

/**
 * The config of a masked diffusion model's checkpoint.
 * @param tensors names of the checkpoint's tensors
 * @throws DUltraError BAD_CHECKPOINT for an unknown `model_type`, for a field that is wrong, and for a setting or a key
 * that is not known and may be a setting.
 */
export const parseDiffusionCheckpoint: Parser<ModelConfig> = parserOf(DIFFUSION, CAUSAL, {
  these: 'a masked diffusion model',
  others: 'an autoregressive model, which loadCausalModel loads',
});

/** The config of an autoregressive model's checkpoint. @throws as {@link parseDiffusionCheckpoint} */
export const parseCausalCheckpoint: Parser<CausalConfig> = parserOf(CAUSAL, DIFFUSION, {
  these: 'an autoregressive model',
  others: 'a masked diffusion model, which loadModel loads',
});

/** The config of a checkpoint of either kind. @throws as {@link parseDiffusionCheckpoint} */
export const parseCheckpoint: Parser<ModelConfig | CausalConfig> = parserOf(
  [...DIFFUSION, ...CAUSAL] as Family<ModelConfig | CausalConfig>[],
  [],
  { these: 'a model', others: '' },
);

/** Whether a config.json is that of a masked diffusion model, by its `model_type`. */
export const isDiffusion = ({ model_type: type }: Readonly<Record<string, unknown>>): boolean =>
  DIFFUSION.some(answersTo(type));

/** Families that new models can be of. */
export const NEW_FAMILIES: readonly string[] = DIFFUSION.filter(({ newJson }) => newJson).map(({ name }) => name);

/** config.json of a new model of one of {@link NEW_FAMILIES}, and what it says. */
export function newCheckpoint(
  name: string,
  shape: NewShape,
  hints: Pick<ConfigHints, 'blockLength'>,
): { json: Record<string, unknown>; config: ModelConfig } {
  const family = DIFFUSION.find((one) => one.name === name);
  if (!family?.newJson) throw new DUltraError('INTERNAL', `there are no new models of a family ${show(name)}`);
  const tensors = new Set(['mask_linear.weight', 'lm_head.weight']);
  const fresh = family.newJson(shape);
  const json = family.configJson(family.parseConfig(fresh, 'config.json', tensors, hints), fresh);
  // As it will be read: what config.json does not keep is not in force.
  return { json, config: family.parseConfig(json, 'config.json', tensors) };
}

/** The names of a checkpoint of either kind. */
export function checkpointNames(config: ModelConfig | CausalConfig): TensorNames {
  const all: readonly Family<ModelConfig | CausalConfig>[] = [...DIFFUSION, ...CAUSAL] as never;
  const family = all.find((one) => one.name === config.family);
  if (!family) throw new DUltraError('INTERNAL', `there is no family ${show(config.family)}`);
  return namesOf(family, config);
}

/** The family of a masked diffusion model's config. */
export function familyOf({ family: name }: ModelConfig): DiffusionFamily {
  const family = DIFFUSION.find((one) => one.name === name);
  if (!family) throw new DUltraError('INTERNAL', `there is no family ${show(name)}`);
  return family;
}
