// adapter_config.json of PEFT: which modules have adapters, and how each one is scaled.
import { runInNewContext } from 'node:vm';
import { badFile } from '../files/json';
import { checkKeyTable, isEmpty, type KeyTable, refuseUnknown } from '../files/key-table';
import { show } from '../text';
import { LORA_TARGETS } from './trainer';

type Json = Readonly<Record<string, unknown>>;

/** A key that is not here may change what an adapter computes: PEFT writes every setting that it has. */
const KEYS: KeyTable = {
  read: [
    'peft_type',
    'r',
    'lora_alpha',
    'use_rslora',
    'rank_pattern',
    'alpha_pattern',
    'target_modules',
    'exclude_modules',
    'layers_to_transform',
    'layers_pattern',
    'modules_to_save',
  ],
  accepted: {
    use_dora: [false],
    fan_in_fan_out: [false],
    bias: ['none'],
    lora_bias: [false],
    trainable_token_indices: [],
    target_parameters: [],
    layer_replication: [],
    use_qalora: [false],
    alora_invocation_tokens: [],
    arrow_config: [],
    ensure_weight_tying: [false],
    megatron_config: [],
    // Those that leave the base model's weights as they were. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them.
    init_lora_weights: [true, false, 'gaussian', 'eva', 'orthogonal'],
    loftq_config: [],
    corda_config: [],
  },
  harmless: [
    'task_type',
    'auto_mapping',
    'base_model_name_or_path',
    'revision',
    'inference_mode',
    'lora_dropout',
    'eva_config',
    'megatron_core',
    'qalora_group_size',
    'runtime_config',
    'peft_version',
  ],
};

/** An adapter of a module. */
export interface ModuleAdapter {
  /** Rank. */
  rank: number;
  /** What the product of its matrices is multiplied with. */
  scale: number;
}

/** What adapter_config.json says. */
export interface AdapterConfig {
  /** Name of a module in the checkpoint, such as "model.layers.0.self_attn.q_proj", to its adapter. */
  modules: ReadonlyMap<string, ModuleAdapter>;
  /** Names of all projections in the checkpoint to those of a trainer's state. */
  names: ReadonlyMap<string, string>;
  /** Rank and alpha of all modules; null where modules differ, or alpha / rank is not the scale. */
  common: { rank: number; alpha: number } | null;
  /** Modules that are stored whole: full names, or their last parts. */
  modulesToSave: readonly string[];
}

const MAX_ALPHA = 1e6;
const MAX_RANK = 65536;
const isRank = (value: unknown): value is number =>
  Number.isInteger(value) && (value as number) >= 1 && (value as number) <= MAX_RANK;
const isAlpha = (value: unknown): value is number => typeof value === 'number' && value > 0 && value <= MAX_ALPHA;
const isName = (value: unknown): value is string => typeof value === 'string' && value !== '';

/** Parts of regular expressions that Python and JavaScript read in the same way. */
const SHARED_SYNTAX = /^(?:\w|[-.^$|)[\]*+?]|\((?!\?)|\(\?[:=!]|\\[.dwb_-]|\{\d+(?:,\d*)?\})*$/;
/** For all modules: a file may hold an expression that takes exponential time. */
const MATCH_TIMEOUT_MS = 5000;

/**
 * The modules that a regular expression of a file matches, each with what it captured as "layer", else with the match.
 * @param whole the expression around the file's text
 * @throws DUltraError BAD_CHECKPOINT for one that is not evaluated here
 */
function matchesOf(
  source: string,
  { file, key, modules }: { file: string; key: string; modules: readonly string[] },
  whole: (source: string) => string,
): Map<string, string> {
  try {
    // Python reads "]" as a member of a set where JavaScript ends it.
    if (!SHARED_SYNTAX.test(source) || /\[\^?\]/.test(source)) throw new Error('unknown syntax');
    const found: (string | null)[] = runInNewContext(
      'const pattern = new RegExp(source); modules.map((name) => { const m = pattern.exec(name); return m && (m.groups?.layer ?? m[0]); })',
      { source: whole(source), modules },
      { timeout: MATCH_TIMEOUT_MS },
    );
    return new Map(modules.flatMap((module, i) => (found[i] === null ? [] : [[module, found[i]]])));
  } catch (cause) {
    throw badFile(
      file,
      `${key}: expected names, or a regular expression that Python and JavaScript read alike, got ${show(source)}`,
      cause,
    );
  }
}

/** Where a setting stands, and the modules that it is about. */
interface Setting {
  file: string;
  key: string;
  modules: readonly string[];
}

/** Modules by their names as PEFT lists them: full, or the last parts; or by one regular expression of full names. */
function named(value: unknown, setting: Setting): Set<string> {
  if (typeof value === 'string') return new Set(matchesOf(value, setting, (source) => `^(?:${source})$`).keys());
  if (!Array.isArray(value) || !value.every(isName))
    throw badFile(setting.file, `${setting.key}: expected a list of names or a regular expression, got ${show(value)}`);
  return new Set(
    setting.modules.filter((module) => value.some((name) => module === name || module.endsWith(`.${name}`))),
  );
}

/** Modules of the layers that `layers_to_transform` and `layers_pattern` choose. */
function inLayers(json: Json, file: string, modules: readonly string[]): Set<string> {
  const { layers_to_transform: layers, layers_pattern: pattern } = json;
  if (isEmpty(layers)) {
    if (isEmpty(pattern)) return new Set(modules);
    throw badFile(file, `layers_pattern: expected layers_to_transform beside it, got ${show(layers)}`);
  }
  if (typeof json.target_modules === 'string')
    throw badFile(
      file,
      `layers_to_transform: expected none beside a regular expression of target_modules, got ${show(layers)}`,
    );
  const chosen: unknown[] = Array.isArray(layers) ? layers : [layers];
  if (!chosen.every((layer) => Number.isInteger(layer)))
    throw badFile(file, `layers_to_transform: expected a layer or a list of layers, got ${show(layers)}`);
  const names: unknown[] = isEmpty(pattern) ? ['\\w*'] : Array.isArray(pattern) ? pattern : [pattern];
  if (!names.every(isName))
    throw badFile(file, `layers_pattern: expected a name or a list of names, got ${show(pattern)}`);
  const numbers = names.map((name) =>
    matchesOf(name, { file, key: 'layers_pattern', modules }, (source) => `^.*\\.${source}\\.(?<layer>\\d+)\\.`),
  );
  return new Set(
    modules.filter((module) => {
      const layer = numbers.map((found) => found.get(module)).find((number) => number !== undefined);
      return layer !== undefined && chosen.includes(Number(layer));
    }),
  );
}

/** A module's value in `rank_pattern` or `alpha_pattern`: of the first key that matches the end of its name. */
function patternOf<T>(
  value: unknown,
  setting: Setting,
  byDefault: T,
  isValid: (value: unknown) => value is T,
): (module: string) => T {
  if (isEmpty(value)) return () => byDefault;
  const { file, key } = setting;
  if (typeof value !== 'object' || Array.isArray(value))
    throw badFile(file, `${key}: expected an object of names to numbers, got ${show(value)}`);
  const rules = Object.entries(value as Record<string, unknown>).map(([source, number]) => {
    if (!isValid(number))
      throw badFile(file, `${key}: ${show(source)}: expected a positive number, got ${show(number)}`);
    return [matchesOf(source, setting, (pattern) => `^(?:.*\\.)?(?:${pattern})$`), number] as const;
  });
  return (module) => rules.find(([found]) => found.has(module))?.[1] ?? byDefault;
}

/** The base model: its blocks, and what its checkpoint calls a tensor of the native table. */
export interface AdapterBase {
  nLayers: number;
  checkpointName: (tensor: string) => string;
}

/** A projection's name in the checkpoint. @param module of the native table */
export const moduleName = (module: string, checkpointName: AdapterBase['checkpointName']): string =>
  checkpointName(`${module}.weight`).replace(/\.weight$/, '');

/** The projections of every block: their names in the checkpoint to those of the native table. */
const projections = ({ nLayers, checkpointName }: AdapterBase): Map<string, string> =>
  new Map(
    Array.from({ length: nLayers }, (_, layer) =>
      LORA_TARGETS.map((target): [string, string] => {
        const module = `model.transformer.blocks.${layer}.${target}`;
        return [moduleName(module, checkpointName), module];
      }),
    ).flat(),
  );

/** What names of modules end with, for messages. */
const lastParts = (modules: readonly string[]): string =>
  [...new Set(modules.map((module) => module.split('.').at(-1)))].map((name) => JSON.stringify(name)).join(' or ');

/** Checks that every name of a list is of a projection. */
function checkTargets(targets: unknown, file: string, modules: readonly string[]): void {
  if (!Array.isArray(targets)) return;
  for (const name of targets)
    if (!modules.some((module) => module === name || module.endsWith(`.${name}`)))
      throw badFile(file, `target_modules: expected ${lastParts(modules)}, got ${show(name)}`);
}

/**
 * Reads adapter_config.json.
 * @throws DUltraError BAD_CHECKPOINT for a setting that is wrong, that is not applied here, or that is not known
 */
export function parseAdapterConfig(json: Json, file: string, base: AdapterBase): AdapterConfig {
  const bad = (message: string) => badFile(file, message);
  const { peft_type: type, r: rank, lora_alpha: alpha, target_modules: targets, use_rslora: isStabilised } = json;
  if (type !== 'LORA') throw bad(`peft_type: expected "LORA", got ${show(type)}`);
  refuseUnknown(json, file, checkKeyTable(json, file, KEYS));
  if (!isRank(rank)) throw bad(`r: expected a positive integer, got ${show(rank)}`);
  if (!isAlpha(alpha)) throw bad(`lora_alpha: expected a positive number up to ${MAX_ALPHA}, got ${show(alpha)}`);
  if (!isEmpty(isStabilised) && typeof isStabilised !== 'boolean')
    throw bad(`use_rslora: expected true or false, got ${show(isStabilised)}`);
  if (isEmpty(targets)) throw bad(`target_modules: expected a list of projections, got ${show(targets)}`);
  const names = projections(base);
  const all = [...names.keys()];
  const at = (key: string): Setting => ({ file, key, modules: all });
  checkTargets(targets, file, all);
  const excluded = isEmpty(json.exclude_modules) ? new Set() : named(json.exclude_modules, at('exclude_modules'));
  const layers = inLayers(json, file, all);
  const chosen = [...named(targets, at('target_modules'))].filter(
    (module) => !excluded.has(module) && layers.has(module),
  );
  if (chosen.length === 0)
    throw bad(
      `target_modules: expected projections of the model's ${base.nLayers} blocks, got none of them by ${show(targets)}`,
    );
  const rankOf = patternOf(json.rank_pattern, at('rank_pattern'), rank, isRank);
  const alphaOf = patternOf(json.alpha_pattern, at('alpha_pattern'), alpha, isAlpha);
  const modules = new Map(
    chosen.map((module) => {
      const own = rankOf(module);
      return [module, { rank: own, scale: alphaOf(module) / (isStabilised ? Math.sqrt(own) : own) }];
    }),
  );
  const isCommon = !isStabilised && isEmpty(json.rank_pattern) && isEmpty(json.alpha_pattern);
  const saved = json.modules_to_save ?? [];
  if (!Array.isArray(saved) || !saved.every(isName))
    throw bad(`modules_to_save: expected a list of names, got ${show(saved)}`);
  return { modules, names, common: isCommon ? { rank, alpha } : null, modulesToSave: saved };
}
