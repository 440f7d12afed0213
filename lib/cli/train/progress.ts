// Progress of a training on stderr.
import type { training } from '../../index';
import { printMessage } from '../output';
import { ProgressBar } from '../progress';

/** Metrics of any stage, by name. */
export type Metrics = training.StageMetrics & Record<string, number | undefined>;

/** Seconds between two lines of progress without a terminal. */
const LINE_SECONDS = 5;

/** One line of metrics: loss, reward, NFE, speed. */
function summary(metrics: Metrics): string {
  const parts = [`loss ${metrics.loss.toFixed(4)}`];
  const add = (label: string, value: number | undefined, digits: number) => {
    if (value !== undefined) parts.push(`${label} ${value.toFixed(digits)}`);
  };
  add('reward', metrics.reward, 3);
  add('accuracy', metrics.accuracy, 3);
  add('NFE', metrics.nfe, 2);
  add('agreement', metrics.agreement, 3);
  parts.push(`${Math.round(metrics.tokensPerSecond)} tokens/s`);
  return parts.join(', ');
}

/** The held-out part of a step's metrics, or "". */
function evaluation(metrics: Metrics): string {
  const names = {
    evalLoss: 'loss',
    evalAgreement: 'agreement',
    evalReward: 'reward',
    evalAccuracy: 'accuracy',
    evalNfe: 'NFE',
  };
  return Object.entries(names)
    .flatMap(([key, label]) => (metrics[key] === undefined ? [] : [`${label} ${metrics[key].toFixed(4)}`]))
    .join(', ');
}

/** Progress on stderr: a bar in a terminal, else a line every few seconds. */
export class Progress {
  readonly #bar = new ProgressBar('{bar} {value}/{total} {summary}, {eta_formatted} left', 16);
  #lastLine = 0;
  /** First step of this process, later than 1 in a resumed run. */
  #first: { step: number; time: number } | null = null;
  readonly #start = performance.now();
  readonly #quiet: boolean;

  constructor(quiet: boolean) {
    this.#quiet = quiet;
  }

  update(metrics: Metrics): void {
    if (this.#quiet) return;
    const { step, maxSteps } = metrics;
    this.#first ??= { step: step - 1, time: this.#start };
    const held = evaluation(metrics);
    if (!process.stderr.isTTY) {
      const now = performance.now();
      if (held === '' && step !== maxSteps && now - this.#lastLine < LINE_SECONDS * 1000) return;
      this.#lastLine = now;
      const left = step < maxSteps ? `, ${this.#secondsLeft(step, maxSteps).toFixed(0)} s left` : '';
      printMessage(`step ${step}/${maxSteps}: ${summary(metrics)}${left}${held === '' ? '' : `; held out: ${held}`}`);
      return;
    }
    this.#bar.update(step, maxSteps, { summary: summary(metrics) }, step - 1);
    if (held === '') return;
    this.stop();
    printMessage(`step ${step}: held out: ${held}`);
  }

  #secondsLeft(step: number, maxSteps: number): number {
    const { step: first, time } = this.#first ?? { step: 0, time: this.#start };
    return ((performance.now() - time) / 1000 / (step - first)) * (maxSteps - step);
  }

  stop(): void {
    this.#bar.stop();
  }
}
