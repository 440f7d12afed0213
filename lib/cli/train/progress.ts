// What a training says on stderr: what is about to begin, how far it is, and what its model writes.
import type { MaskedDiffusionModel, training } from '../../index';
import { besideName, columnsOf, oneLine, printMessage, wrap } from '../output';
import { StatusLine } from '../progress';

/** Metrics of any stage, by name. */
export type Metrics = training.StageMetrics & Record<string, number | undefined>;

/** Seconds between two lines of progress without a terminal. */
const LINE_SECONDS = 5;

/** A time for people: "45s", "12m05s", "3h20m". */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (value: number) => String(value).padStart(2, '0');
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
}

/** As many of the parts as a line has room for, the first ones first; none is cut. */
export function fitLine(parts: readonly string[], columns: number): string {
  let line = '';
  for (const part of parts) {
    const longer = line === '' ? part : `${line}, ${part}`;
    if (longer.length > columns && line !== '') break;
    line = longer;
  }
  return line;
}

/** Metrics of a step, the most telling ones first. */
function summary(metrics: Metrics): string[] {
  const parts = [`loss ${metrics.loss.toFixed(4)}`];
  const add = (label: string, value: number | undefined, digits: number) => {
    if (value !== undefined) parts.push(`${label} ${value.toFixed(digits)}`);
  };
  add('reward', metrics.reward, 3);
  add('accuracy', metrics.accuracy, 3);
  add('NFE', metrics.nfe, 2);
  add('agreement', metrics.agreement, 3);
  parts.push(`${Math.round(metrics.tokensPerSecond)} tokens/s`);
  return parts;
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

/** Prints "name  value" lines on stderr, values broken at the width of the terminal. */
function printFacts(rows: readonly (readonly [name: string, value: string])[]): void {
  const columns = columnsOf(process.stderr);
  const width = Math.max(...rows.map(([name]) => name.length));
  for (const [name, value] of rows) {
    const room = columns === null ? Number.POSITIVE_INFINITY : columns - width - 2;
    const lines = columns === null ? [oneLine(value)] : wrap(oneLine(value), Math.max(room, 10));
    printMessage(besideName(name, lines, width, columns).join('\n'));
  }
}

/** How many processes there are, and how they add up gradients. */
function describeExchange({ processes, nccl, reason }: NonNullable<training.RunStart['exchange']>): string {
  const way = nccl ? `NCCL ${nccl}` : `MPI${reason ? `, through the host's memory: ${reason}` : ''}`;
  return `${processes}, connected by ${way}`;
}

/** What a run works with, before its first step. */
export function printStart(
  stage: training.Stage,
  model: MaskedDiffusionModel,
  { step, maxSteps, dataset, parameters, trainable, exchange }: training.RunStart,
  { evalEvery = 0, saveEvery, outputDir }: training.TrainConfig,
): void {
  const count = (value: number) => value.toLocaleString('en');
  const { name, size, skipped, heldOut } = dataset;
  const { device, isa, threads } = model.info;
  printFacts([
    [
      'data',
      [
        `${name}: ${size === null ? 'examples without end' : `${count(size)} examples`}`,
        ...(heldOut > 0 ? [`${count(heldOut)} held out`] : []),
        ...(skipped > 0 ? [`${count(skipped)} do not fit and are left out`] : []),
      ].join(', '),
    ],
    ['model', `${model.source}: ${count(parameters)} parameters, ${count(trainable)} train`],
    ['device', `${device}${device === 'cpu' ? `, ${isa}, ${threads} thread${threads === 1 ? '' : 's'}` : ''}`],
    ...(exchange ? [['processes', describeExchange(exchange)] as [string, string]] : []),
    [
      stage,
      [
        step < maxSteps ? `steps ${count(step + 1)} to ${count(maxSteps)}` : `none of ${count(maxSteps)} steps left`,
        ...(evalEvery > 0 ? [`evaluated every ${evalEvery}`] : []),
        ...(saveEvery === 0 ? ['saved at the end'] : saveEvery === undefined ? [] : [`saved every ${saveEvery}`]),
      ].join(', '),
    ],
    ['folder', outputDir ?? ''],
  ]);
}

const text = (prompt: training.CompletionSample['prompt']): string =>
  typeof prompt === 'string' ? prompt : prompt.map(({ role, content }) => `${role}: ${content}`).join(' ');

/** Prints completions with what they answer. */
export function printSamples(samples: readonly training.CompletionSample[]): void {
  for (const { step, split, prompt, answer, completion, nfe, right, reward } of samples) {
    const judged = [
      ...(reward === undefined ? [] : [`reward ${reward.toFixed(3)}`]),
      ...(right === undefined || right === null ? [] : [right ? 'right' : 'wrong']),
      `${nfe} passes`,
    ];
    printMessage(`step ${step}, ${split === 'train' ? 'rollout' : 'held out'}: ${judged.join(', ')}`);
    printFacts([
      ['  prompt', text(prompt)],
      ...(answer === null ? [] : [['  answer', answer] as const]),
      ['  wrote', completion],
    ]);
  }
}

/** How far a training is: a line of a terminal, elsewhere a line every few seconds. */
export class Progress {
  readonly #line = new StatusLine(process.stderr);
  readonly #quiet: boolean;
  #lastLine = 0;
  /** Steps that were done before this process, and when it began with the next. */
  #done = 0;
  #begin = performance.now();

  constructor(quiet: boolean) {
    this.#quiet = quiet;
  }

  /** The first step begins now. @param done steps of an earlier process */
  start(done: number): void {
    this.#done = done;
    this.#begin = performance.now();
    if (!this.#quiet) this.#line.update(`step ${done + 1} …`);
  }

  update(metrics: Metrics): void {
    if (this.#quiet) return;
    const { step, maxSteps } = metrics;
    const held = evaluation(metrics);
    const left = step < maxSteps ? [`${duration(this.#secondsLeft(step, maxSteps))} left`] : [];
    const columns = columnsOf(process.stderr);
    if (columns === null) {
      const now = performance.now();
      if (held === '' && step !== maxSteps && now - this.#lastLine < LINE_SECONDS * 1000) return;
      this.#lastLine = now;
      const parts = [...summary(metrics), ...left].join(', ');
      printMessage(`step ${step}/${maxSteps}: ${parts}${held === '' ? '' : `; held out: ${held}`}`);
      return;
    }
    if (held !== '') printMessage(`step ${step}: held out: ${held}`);
    this.#line.update(fitLine([`${step}/${maxSteps}`, ...left, ...summary(metrics)], columns - 1));
  }

  /** By the mean of the steps of this process, evaluations and checkpoints included. */
  #secondsLeft(step: number, maxSteps: number): number {
    return ((performance.now() - this.#begin) / 1000 / (step - this.#done)) * (maxSteps - step);
  }

  stop(): void {
    this.#line.clear();
  }
}
