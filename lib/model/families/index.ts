// The families of checkpoints. A new one is a file here and an entry in a list.
import { DUltraError, isDUltraError } from '../../errors';
import { badFile } from '../../files/json';
import { show } from '../../text';
import type { CausalConfig, ModelConfig } from '../config';
import { a2dQwen2, a2dQwen3 } from './a2d';
import { checkConfigKeys } from './config-keys';
import type { ConfigHints, DiffusionFamily, Family } from './definition';
import { dream } from './dream';
import { fastDllmV2 } from './fast-dllm-v2';
import { llada } from './llada';
import { llama } from './llama';
import { qwen2 } from './qwen2';
import { qwen3 } from './qwen3';
import { sdar } from './sdar';

/** Masked diffusion models. */
const DIFFUSION: readonly DiffusionFamily[] = [llada, dream, sdar, fastDllmV2, a2dQwen3, a2dQwen2];
/** Autoregressive models. */
const CAUSAL: readonly Family<CausalConfig>[] = [qwen3, qwen2, llama];

export type { ConfigHints } from './definition';

/** The config of a checkpoint, and the names of its tensors. */
export interface ParsedCheckpoint<Config> {
  config: Config;
  checkpointName: (tensor: string) => string;
}

const typesOf = (families: readonly { modelTypes: readonly string[] }[], separator: string) =>
  families.flatMap(({ modelTypes }) => modelTypes.map((name) => JSON.stringify(name))).join(separator);

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

function parse<Config extends ModelConfig | CausalConfig>(
  families: readonly Family<Config>[],
  others: readonly Family<ModelConfig | CausalConfig>[],
  kind: string,
  hint: string,
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
  hints: ConfigHints = {},
): ParsedCheckpoint<Config> {
  const { model_type: type } = json;
  const answers = ({ modelTypes }: { modelTypes: readonly string[] }) => modelTypes.includes(type as string);
  const architecture = architectureOf(json);
  const family = families.find(answers);
  if (!family) {
    if (others.some(answers)) throw badFile(file, `model_type: expected ${kind}, got ${show(type)}, ${hint}`);
    throw unknownFamily(file, type ?? architecture);
  }
  let config: Config;
  try {
    config = family.parseConfig(json, file, tensors, hints);
    checkConfigKeys(json, file, family.keys);
  } catch (error) {
    if (!isDUltraError(error, 'BAD_CHECKPOINT')) throw error;
    if (architecture === null || family.architectures.includes(architecture))
      throw new DUltraError('BAD_CHECKPOINT', `${error.message} (of a model of the type ${show(type)})`, {
        cause: error,
      });
    // Mixtures of experts and others give the model_type of the family that they come from.
    throw unknownFamily(file, architecture, error);
  }
  return { config, checkpointName: family.checkpointName };
}

/**
 * The config of a masked diffusion model's checkpoint.
 * @param tensors names of the checkpoint's tensors
 * @throws DUltraError BAD_CHECKPOINT for an unknown `model_type`, for a field that is wrong, for a setting or a key that
 * is not known and may be a setting.
 */
export const parseDiffusionCheckpoint = (
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
  hints: ConfigHints = {},
): ParsedCheckpoint<ModelConfig> =>
  parse(
    DIFFUSION,
    CAUSAL,
    'a masked diffusion model',
    'an autoregressive model, which loadCausalModel loads',
    json,
    file,
    tensors,
    hints,
  );

/** The config of an autoregressive model's checkpoint. @throws as {@link parseDiffusionCheckpoint} */
export const parseCausalCheckpoint = (
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
  hints: ConfigHints = {},
): ParsedCheckpoint<CausalConfig> =>
  parse(
    CAUSAL,
    DIFFUSION,
    'an autoregressive model',
    'a masked diffusion model, which loadModel loads',
    json,
    file,
    tensors,
    hints,
  );

/** The config of a checkpoint of either kind. @throws as {@link parseDiffusionCheckpoint} */
export const parseCheckpoint = (
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
  hints: ConfigHints = {},
): ParsedCheckpoint<ModelConfig | CausalConfig> =>
  parse([...DIFFUSION, ...CAUSAL] as Family<ModelConfig | CausalConfig>[], [], '', '', json, file, tensors, hints);

/** The family of a masked diffusion model's config. */
export function familyOf({ family: name }: ModelConfig): DiffusionFamily {
  const family = DIFFUSION.find((one) => one.name === name);
  if (!family) throw new DUltraError('INTERNAL', `there is no family ${show(name)}`);
  return family;
}
