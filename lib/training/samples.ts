// Completions that a training has written, for people to read.
import { optionError } from '../errors';
import type { GenerateResult } from '../generation/types';
import { show } from '../text';
import type { ChatMessage } from '../types';
import type { TrainingRow } from './data';

/** A completion that was written while training: a line of samples.jsonl. */
export interface CompletionSample {
  /** Updates done when it was written, its own included. */
  step: number;
  /** "train": a rollout; "validation": of an evaluation. */
  split: 'train' | 'validation';
  prompt: string | readonly ChatMessage[];
  /** null where the data set has none. */
  answer: string | null;
  completion: string;
  /** Forward passes. */
  nfe: number;
  /** Whether it is right; null where nothing can tell. In an evaluation of `trainMaskedDiffusion`, and of GRPO with a verifier. */
  right?: boolean | null;
  /** GRPO: weighted sum of the rewards, and each of them. */
  reward?: number;
  rewards?: Readonly<Record<string, number | null>>;
}

/** What is known of a run before its first step. */
export interface RunStart {
  /** Updates that are done already, in a run that goes on, and those of the whole run. */
  step: number;
  maxSteps: number;
  /** `size`: null for a task without end; `skipped`: examples that do not fit; `heldOut`: examples of an evaluation, 0: there is none. */
  dataset: { name: string; size: number | null; skipped: number; heldOut: number };
  /** Numbers of the model, and of those that train, adapters included. */
  parameters: number;
  trainable: number;
  /**
   * How processes add up gradients; null: there is one alone. `nccl`: its version, null: through the host's memory, by
   * MPI. `reason`: why GPUs do not do it by NCCL, else null.
   */
  exchange: { processes: number; nccl: string | null; reason: string | null } | null;
  outputDir: string | null;
}

/** Functions that a trainer calls on the way; what they throw ends the training. */
export interface TrainingCallbacks {
  /** Before the first step. */
  onStart?: ((run: RunStart) => void) | undefined;
  /** A few completions, in the steps that write samples.jsonl. */
  onSamples?: ((samples: readonly CompletionSample[]) => void) | undefined;
}

/** Keys of {@link TrainingCallbacks}. */
export const CALLBACKS = ['onStart', 'onSamples'] as const;

/** The callbacks of some options. @throws TypeError */
export function callbacksOf(options: TrainingCallbacks): TrainingCallbacks {
  const callbacks: TrainingCallbacks = {};
  for (const name of CALLBACKS) {
    const value: unknown = options[name];
    if (value === undefined) continue;
    if (typeof value !== 'function') throw optionError(TypeError, name, `expected a function, got ${show(value)}`);
    Object.assign(callbacks, { [name]: value });
  }
  return callbacks;
}

/** Completions of a step that are shown. */
const SHOWN = 4;

/** Samples of a batch whose rows come in groups of one prompt: one of each of the first groups. */
export function samplesOf(
  examples: readonly TrainingRow[],
  results: readonly GenerateResult[],
  groupSize: number,
  judged: (row: number) => Pick<CompletionSample, 'right' | 'reward' | 'rewards'>,
): Omit<CompletionSample, 'step' | 'split'>[] {
  const rows = Math.min(SHOWN, Math.ceil(results.length / groupSize));
  return Array.from({ length: rows }, (_, i) => {
    const row = i * groupSize;
    const { prompt, answer } = examples[row];
    const { text: completion, nfe } = results[row];
    return { prompt, answer, completion, nfe, ...judged(row) };
  });
}
