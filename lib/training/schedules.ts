// Learning rates over a run.

/** Shape of the learning rate after warm-up. */
export type Schedule = 'constant' | 'linear' | 'cosine';

/** A learning-rate schedule; all lengths in optimiser steps. */
export interface ScheduleOptions {
  schedule: Schedule;
  /** The first steps climb linearly; step `warmupSteps` has the full rate. */
  warmupSteps: number;
  /** Length of the run, where the floor is reached. Unused for "constant". */
  totalSteps: number;
  /** Share of the full rate that is left at the end. */
  floor: number;
}

/** Factor on the peak learning rate in step `step` (from 0). */
export function learningRateFactor(
  step: number,
  { schedule, warmupSteps, totalSteps, floor }: ScheduleOptions,
): number {
  if (step < warmupSteps) return (step + 1) / (warmupSteps + 1);
  if (schedule === 'constant') return 1;
  const progress = Math.min(1, (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps));
  const shape = schedule === 'linear' ? 1 - progress : (1 + Math.cos(Math.PI * progress)) / 2;
  return floor + (1 - floor) * shape;
}
