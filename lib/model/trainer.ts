// Options of a model's trainer, and the memory that a trainer takes.
import { optionError } from '../errors';
import type { NativeModel, NativeTrainer, NativeTrainerOptions } from '../native';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSeed } from '../options';

/** The projections that can have adapters. */
export const LORA_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out'] as const;

/** Low-rank adapters on projections of every block of the base model. */
export interface LoraOptions {
  /** Rank. */
  rank: number;
  /** The product of the adapters is scaled by alpha / rank. Default: twice the rank. */
  alpha?: number | undefined;
  /** Default: q_proj, k_proj, v_proj and attn_out. */
  targets?: readonly (typeof LORA_TARGETS)[number][] | undefined;
}

/** What of a model trains, and how. */
export interface ModelTrainerOptions {
  /** Do not train the base model. With `lora`, its own weights are never trained. Default false. */
  freezeBase?: boolean | undefined;
  /** Do not train the planner head; gradients still flow through it. Default false. */
  freezePlanner?: boolean | undefined;
  /**
   * Recompute each layer's activations in the backward pass instead of keeping them: less memory, about a third more
   * time. Default false.
   */
  activationCheckpointing?: boolean | undefined;
  /** Train adapters in place of the base model's weights. Default null. */
  lora?: LoraOptions | null | undefined;
  /**
   * How AdamW's two moments are stored: "float32" or "bfloat16", which takes 4 bytes less per parameter that trains.
   * bfloat16 is rounded up or down at random, so that the mean is exact: a beta2 of 0.99 moves the second moment by 1 %
   * per step and bfloat16 resolves 0.4 %, so that rounding to nearest would never change it. The draws depend only on
   * the seed, the optimiser step, the element and the moment. Arithmetic is fp32 either way. Default "float32".
   */
  momentDtype?: MomentDtype | undefined;
  /**
   * How gradients are added over micro-batches, and over the processes of a job (`distributed.init`): "sum", in fp32; or
   * "exact", in fixed point, whose bits do not depend on the order, and so not on the number of processes: 8 bytes of
   * memory per parameter that trains, and twice the traffic. Default "sum".
   */
  reduction?: Reduction | undefined;
  /**
   * What of the optimiser's state the processes of a job split among them, by the stages of ZeRO (Rajbhandari et al.
   * 2020): 0, nothing; 1, masters and moments: each process updates a part of the parameters, with the reduced gradients
   * of that part alone, and gives the others their new weights, in the type that the model holds them in; 2, gradients,
   * too: they are exchanged in every backward pass, and a process keeps the sums of its part alone. With the exact
   * reduction it gives the bits of one process; on a CPU whose model holds bf16, backward passes then read that, and not
   * the masters. `state`, `loadState` and `step` are then calls that every process makes, and `state` gives its tensors
   * to the first process alone; with 2, `backward` is one, too (`joinBackward` where a process has no micro-batch for
   * it), and `gradNorm` and `gradients` are refused. Default 0.
   */
  zeroStage?: ZeroStage | undefined;
  /** Seed of the adapters' first values, and of the rounding of bfloat16 moments. Default 0. */
  seed?: number | bigint | undefined;
}

/** See {@link ModelTrainerOptions.momentDtype}. */
export type MomentDtype = 'float32' | 'bfloat16';
/** How AdamW's moments can be stored. */
export const MOMENT_DTYPES: readonly MomentDtype[] = ['float32', 'bfloat16'];

/** See {@link ModelTrainerOptions.reduction}. */
export type Reduction = 'sum' | 'exact';
/** See {@link ModelTrainerOptions.zeroStage}. */
export type ZeroStage = 0 | 1 | 2;
/** What can be split. */
export const ZERO_STAGES: readonly ZeroStage[] = [0, 1, 2];
/** How gradients can be added. */
export const REDUCTIONS: readonly Reduction[] = ['sum', 'exact'];

/** Checks {@link LoraOptions} and fills in defaults. */
export function resolveLora(lora: LoraOptions): Required<LoraOptions> {
  checkKeys('lora', lora, ['rank', 'alpha', 'targets']);
  checkInteger('lora.rank', lora.rank, { min: 1, max: 65536 });
  const { rank, alpha = 2 * rank, targets = ['q_proj', 'k_proj', 'v_proj', 'attn_out'] } = lora;
  checkNumber('lora.alpha', alpha, { minExclusive: 0, max: 1e6 });
  if (!Array.isArray(targets) || targets.length === 0)
    throw optionError(TypeError, 'lora.targets', 'expected a list of projections');
  for (const target of targets) checkChoice('lora.targets', target, LORA_TARGETS);
  return { rank, alpha, targets: [...new Set(targets as Required<LoraOptions>['targets'])] };
}

/** Checks {@link ModelTrainerOptions}. @throws TypeError, RangeError naming the option. */
export function resolveTrainerOptions(options: ModelTrainerOptions): NativeTrainerOptions {
  checkKeys('options', options, [
    'freezeBase',
    'freezePlanner',
    'activationCheckpointing',
    'lora',
    'momentDtype',
    'reduction',
    'zeroStage',
    'seed',
  ]);
  const { freezeBase = false, freezePlanner = false, activationCheckpointing = false, lora = null, seed = 0 } = options;
  const { momentDtype = 'float32', reduction = 'sum', zeroStage = 0 } = options;
  checkChoice('freezeBase', freezeBase, [true, false] as const);
  checkChoice('freezePlanner', freezePlanner, [true, false] as const);
  checkChoice('activationCheckpointing', activationCheckpointing, [true, false] as const);
  checkChoice('momentDtype', momentDtype, MOMENT_DTYPES);
  checkChoice('reduction', reduction, REDUCTIONS);
  checkInteger('zeroStage', zeroStage, { min: 0, max: 2 });
  const adapters = lora && resolveLora(lora);
  if (adapters && freezeBase)
    throw optionError(RangeError, 'freezeBase', 'expected false with lora, whose adapters are the base that trains');
  return {
    freezeBase,
    freezePlanner,
    checkpointing: activationCheckpointing,
    lora: adapters && { ...adapters, targets: [...adapters.targets] },
    moments: momentDtype,
    reduction,
    zeroStage,
    seed: checkSeed('seed', seed),
  };
}

/**
 * Forward passes that keep their activations, backward passes and the optimiser, over fp32 masters of one model. Made
 * by `model.createTrainer`. One call at a time; free it with `dispose()` or `using`, after which the model keeps its
 * current weights.
 */
export interface ModelTrainer extends NativeTrainer, Disposable, AsyncDisposable {
  /** The adapters that train, or null. */
  readonly lora: NativeTrainerOptions['lora'];
}

/** Checks the options and allocates what trains. @throws as `model.createTrainer`. */
export async function openTrainer(model: NativeModel, options: ModelTrainerOptions): Promise<ModelTrainer> {
  const resolved = resolveTrainerOptions(options);
  const trainer = await model.createTrainer(resolved);
  return Object.assign(trainer, {
    lora: resolved.lora,
    [Symbol.dispose]: () => trainer.dispose(),
    [Symbol.asyncDispose]: async () => trainer.dispose(),
  });
}
