// The trainer's two calls (score, backward) and its optimiser, with the public API's errors.
import {
  fromNative,
  type NativeBackwardRequest,
  type NativeNamedTensor,
  type NativeOptimizerStep,
  type NativeScoreRequest,
  type NativeScoreResult,
  type NativeTrainer,
  type NativeTrainerOptions,
} from '../native';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSeed } from '../options';

/** The projections that adapters can sit on. */
export const LORA_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out'] as const;

/** Low-rank adapters on projections of every block of the base model. */
export interface LoraOptions {
  /** Rank. */
  rank: number;
  /** The adapters' product counts alpha / rank times. Default: twice the rank. */
  alpha?: number;
  /** Default: q_proj, k_proj, v_proj and attn_out. */
  targets?: readonly (typeof LORA_TARGETS)[number][];
}

/** What of a model trains, and how. */
export interface ModelTrainerOptions {
  /** The base model stays as it is. With `lora`, its own weights always do. Default false. */
  freezeBase?: boolean;
  /** The planner head stays as it is; gradients still run through it. Default false. */
  freezePlanner?: boolean;
  /** Recompute each layer's activations in the backward pass instead of keeping them: less memory, about a third more time. Default false. */
  activationCheckpointing?: boolean;
  /** Train adapters in place of the base model's weights. Default null. */
  lora?: LoraOptions | null;
  /** Seed of the adapters' first values. Default 0. */
  seed?: number | bigint;
}

/** Checks {@link LoraOptions} and fills in defaults. */
export function resolveLora(lora: LoraOptions): Required<LoraOptions> {
  checkKeys('lora', lora, ['rank', 'alpha', 'targets']);
  checkInteger('lora.rank', lora.rank, { min: 1, max: 65536 });
  const { rank, alpha = 2 * rank, targets = ['q_proj', 'k_proj', 'v_proj', 'attn_out'] } = lora;
  checkNumber('lora.alpha', alpha, { minExclusive: 0, max: 1e6 });
  if (!Array.isArray(targets) || targets.length === 0) throw new TypeError('lora.targets: expected a list of projections');
  for (const target of targets) checkChoice('lora.targets', target, LORA_TARGETS);
  return { rank, alpha, targets: [...new Set(targets as Required<LoraOptions>['targets'])] };
}

/** Checks {@link ModelTrainerOptions}. @throws TypeError, RangeError naming the option. */
export function resolveTrainerOptions(options: ModelTrainerOptions): NativeTrainerOptions {
  checkKeys('options', options, ['freezeBase', 'freezePlanner', 'activationCheckpointing', 'lora', 'seed']);
  const { freezeBase = false, freezePlanner = false, activationCheckpointing = false, lora = null, seed = 0 } = options;
  checkChoice('freezeBase', freezeBase, [true, false] as const);
  checkChoice('freezePlanner', freezePlanner, [true, false] as const);
  checkChoice('activationCheckpointing', activationCheckpointing, [true, false] as const);
  const adapters = lora && resolveLora(lora);
  if (adapters && freezeBase) throw new RangeError('freezeBase: expected false with lora, whose adapters are the base that trains');
  return {
    freezeBase,
    freezePlanner,
    checkpointing: activationCheckpointing,
    lora: adapters && { ...adapters, targets: [...adapters.targets], seed: checkSeed('seed', seed) },
  };
}

/** Made by `model.createTrainer`. One call at a time; free it with `dispose()`. */
export class ModelTrainer {
  readonly #native: NativeTrainer;
  /** The adapters that train, or null. */
  readonly lora: NativeTrainerOptions['lora'];

  /** @internal */
  constructor(native: NativeTrainer, lora: NativeTrainerOptions['lora']) {
    this.#native = native;
    this.lora = lora;
  }

  /** Names, shapes and groups of what trains. */
  parameters(): { name: string; shape: number[]; group: 'base' | 'planner' }[] {
    return this.#native.parameters();
  }

  /** A forward pass over packed rows; `keep: true` keeps what {@link backward} needs. */
  score(request: NativeScoreRequest): Promise<NativeScoreResult> {
    return fromNative(() => this.#native.score(request));
  }

  /** Adds the gradients of the last kept forward pass. */
  backward(request: NativeBackwardRequest): Promise<{ dHidden: Float32Array | null }> {
    return fromNative(() => this.#native.backward(request));
  }

  /** Clears the gradients. */
  zeroGrad(): Promise<void> {
    return fromNative(() => this.#native.zeroGrad());
  }

  /** Global L2 norm of the gradients as they stand. */
  gradNorm(): Promise<number> {
    return fromNative(() => this.#native.gradNorm());
  }

  /** One AdamW update; clears the gradients. @throws DUltraError NON_FINITE (and changes nothing) for a norm that is not finite. */
  step(request: NativeOptimizerStep): Promise<{ gradNorm: number; step: number }> {
    return fromNative(() => this.#native.step(request));
  }

  /** Gradients as they stand. */
  gradients(): Promise<NativeNamedTensor[]> {
    return fromNative(() => this.#native.gradients());
  }

  /** Parameters (fp32 masters), moments as "exp_avg.<name>" and "exp_avg_sq.<name>", and the number of updates. */
  state(): Promise<{ step: number; tensors: NativeNamedTensor[] }> {
    return fromNative(() => this.#native.state());
  }

  /** Takes what {@link ModelTrainer.state} gave. */
  loadState(state: { step: number; tensors: NativeNamedTensor[] }): Promise<void> {
    return fromNative(() => this.#native.loadState(state));
  }

  /** Merges the adapters into the weights ("on", as after creation) or takes them out ("off"). */
  setAdapters(mode: 'on' | 'off'): Promise<void> {
    return fromNative(() => this.#native.setAdapters(mode));
  }

  /** Frees masters, gradients and moments; the model keeps its weights as they are. */
  dispose(): void {
    this.#native.dispose();
  }
}
