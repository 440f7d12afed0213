// Rewards as a configuration names them.
import { optionError, within } from '../errors';
import { loadModel } from '../generation/load-model';
import { loadCausalModel } from '../model/load-causal-model';
import type { LoadModelOptions } from '../model/load-weights';
import { checkChoice, checkKeys } from '../options';
import {
  boxedFormat,
  causalLogProb,
  codeFence,
  codeTests,
  exactAnswer,
  fastAnswer,
  format,
  mathCorrect,
  type RewardFunction,
  stepPenalty,
  type TeacherOptions,
  teacherLogProb,
  thinkTags,
} from '../rewards';
import { reasonOf, show } from '../text';
import { REWARD_TYPES, type RewardConfig, type TrainConfig } from './presets';

/** Options of the models of rewards, which are loaded for them. */
const TEACHER_KEYS: Partial<Readonly<Record<RewardConfig['type'], readonly string[]>>> = {
  causalLogProb: ['model', 'dtype', 'tokenBudget'],
  teacherLogProb: ['model', 'passes', 'tokenBudget'],
};

/** The reward of a configuration; null: a model has to be loaded for it. @throws TypeError, RangeError */
function plainReward({ type, options = {} }: RewardConfig): RewardFunction | null {
  switch (type) {
    case 'exactAnswer':
      checkKeys('options', options, []);
      return exactAnswer;
    case 'fastAnswer':
      return fastAnswer(options);
    case 'stepPenalty':
      return stepPenalty(options);
    case 'format': {
      checkKeys('options', options, ['pattern', 'flags', 'reward']);
      const { pattern, flags, ...rest } = options as { pattern: string; flags?: string; reward?: number };
      return format(patternOf(pattern, flags), rest);
    }
    case 'mathCorrect':
      return mathCorrect(options);
    case 'codeTests':
      checkKeys('options', options, ['compat']);
      return codeTests(options);
    case 'boxedFormat':
    case 'thinkTags':
    case 'codeFence':
      checkKeys('options', options, []);
      return { boxedFormat, thinkTags, codeFence }[type]();
    default:
      checkKeys('options', options, TEACHER_KEYS[type] ?? []);
      if (type === 'causalLogProb' && typeof (options as { model?: unknown }).model !== 'string')
        throw optionError(
          TypeError,
          'model',
          `expected a folder or a hub id, got ${show((options as { model?: unknown }).model)}`,
        );
      return null;
  }
}

/** The regular expression of a reward "format". */
function patternOf(pattern: unknown, flags: string | undefined): RegExp {
  if (typeof pattern !== 'string') throw optionError(TypeError, 'pattern', `expected a string, got ${show(pattern)}`);
  try {
    return new RegExp(pattern, flags);
  } catch (cause) {
    throw optionError(RangeError, 'pattern', `expected a regular expression, got ${show(pattern)}: ${reasonOf(cause)}`);
  }
}

/** Checks rewards by name. @throws TypeError, RangeError naming the reward */
export function checkRewardConfigs(rewards: TrainConfig['rewards'] = {}): Readonly<Record<string, RewardConfig>> {
  if (typeof rewards !== 'object' || rewards === null || Array.isArray(rewards))
    throw optionError(TypeError, 'rewards', `expected rewards by name, got ${show(rewards)}`);
  for (const [name, config] of Object.entries(rewards)) {
    const at = `rewards.${name}`;
    checkKeys(at, config, ['type', 'weight', 'options']);
    checkChoice(`${at}.type`, config.type, REWARD_TYPES);
    within(`${at}.options`, 'options', () => plainReward(config));
  }
  return rewards;
}

/**
 * The reward of a configuration. @param teachers `others` gets what has to be disposed of in the end, `device` is where
 * models of rewards compute @throws TypeError, RangeError; as `loadModel`
 */
export async function makeReward(
  name: string,
  config: RewardConfig,
  { others, device }: { others: { dispose(): void }[]; device: Pick<LoadModelOptions, 'device' | 'threads'> },
): Promise<RewardFunction> {
  const { type, options = {} } = config;
  const reward = within(`rewards.${name}.options`, 'options', () => plainReward(config));
  if (reward) return reward;
  if (type === 'causalLogProb') {
    const { model, dtype, tokenBudget } = options as {
      model: string;
      dtype?: LoadModelOptions['dtype'];
      tokenBudget?: number;
    };
    const teacher = await loadCausalModel(model, { ...device, ...(dtype && { dtype }) });
    others.push(teacher);
    return causalLogProb({ model: teacher, ...(tokenBudget !== undefined && { tokenBudget }) });
  }
  const { model, ...rest } = options as Omit<TeacherOptions, 'model'> & { model?: string };
  const teacher = await loadModel(model, device);
  others.push(teacher);
  return teacherLogProb({ ...rest, model: teacher });
}
