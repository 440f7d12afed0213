// dultra train: fine-tuning, planner initialisation, GRPO.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { type Command, Option } from 'commander';
import { parse as parseYaml } from 'yaml';
import { type datasets, decodeText, training } from '../../index';
import { interruptSignal, UsageError } from '../errors';
import { addDeviceOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, formatBytes, printData, printJson, printMessage, printTable } from '../output';
import { ProgressBar } from '../progress';
import { given, integer, number, seed, shareOrFile } from '../values';

type Metrics = training.StageMetrics & Record<string, number | undefined>;

interface Flags extends ModelFlags {
  config?: string;
  preset?: string;
  resume?: string;
  dryRun?: boolean;
  output?: string;
  dataset?: string;
  validation?: number | string;
  maxSteps?: number;
  epochs?: number;
  learningRate?: number;
  plannerLearningRate?: number;
  batchSize?: number;
  maxTokens?: number;
  evalEvery?: number;
  saveEvery?: number;
  seed?: bigint;
  set?: [key: string, value: unknown][];
}

/** The stored launch of a run, for --resume. */
interface Launch {
  stage: training.Stage;
  config: training.TrainConfig;
}

const LAUNCH_FILE = 'train.json';
/** Seconds between two lines of progress without a terminal. */
const LINE_SECONDS = 5;

const EXAMPLES = `
Examples:
  dultra train sft --preset tiny
  dultra train planner --model Dream-org/Dream-v0-Instruct-7B --planner new:small --dataset gsm8k --max-tokens 256
  dultra train planner --preset tiny
  dultra train grpo --preset tiny --set temperature=0.3
  dultra train grpo --preset tiny --set 'cache={type: refresh}'
  dultra train grpo --config run.yaml --output runs/mine --max-steps 500
  dultra train --resume runs/mine
  dultra train grpo --preset gsm8k --dry-run

A config file (YAML or JSON) holds the options of the stage's trainer by their API names, and
  model       folder or hub id, or { create: { dModel: 64, nLayers: 3 } } for a new model
              (tokenizer: { vocabSize: 2048 } in it learns one from the data set)
  dataset     a data set (gsm8k, math500, dapo17k, apps …, NAME:PATH for files), a task (world, st1, s1, t12, free8,
              free12, sudoku4 …), a module that exports one (./task.mjs), or own examples: a file or folder, or a list,
              of { "prompt": …, "answer": … }, question and answer, prompt and completion, instruction, input and
              output, or { "messages": [ … ] }
  validation  of own examples: a second file or list, or a share of them such as 0.1
  datasetOptions  { prompts: thinking } and the like, of a data set
  rewards     grpo: { name: { type: fastAnswer, weight: 1, options: { weight: 0.5 } } }
Later ones win: preset, config file, flags. A run is resumed with the options that it began with.`;

/** Parses --set key=value, the value in YAML, as in a config file. */
function setting(text: string, before: [string, unknown][] = []): [string, unknown][] {
  const at = text.indexOf('=');
  if (at < 1) throw new UsageError(`--set: expected key=value, got ${JSON.stringify(text)}`);
  try {
    return [...before, [text.slice(0, at), parseYaml(text.slice(at + 1))]];
  } catch (error) {
    throw new UsageError(`--set ${text.slice(0, at)}: ${(error as Error).message}`);
  }
}

function readConfigFile(file: string): Record<string, unknown> {
  let config: unknown;
  try {
    // Every JSON document is a YAML document.
    config = parseYaml(decodeText(readFileSync(file), file));
  } catch (error) {
    const { message } = error as Error;
    throw new UsageError(`--config: ${message.startsWith(file) ? message : `${file}: ${message}`}`);
  }
  if (typeof config !== 'object' || config === null || Array.isArray(config))
    throw new UsageError(`--config: ${file}: expected options by name, such as "maxSteps: 200"`);
  return config as Record<string, unknown>;
}

/** Preset, config file and flags as one configuration. */
function configure(stage: training.Stage, flags: Flags): training.TrainConfig {
  const { preset, config: file, model, output, dataset, validation, set = [] } = flags;
  const { maxSteps, epochs, learningRate, plannerLearningRate, batchSize, maxTokens, evalEvery, saveEvery } = flags;
  const presets = training.PRESETS[stage];
  if (preset !== undefined && !Object.hasOwn(presets, preset))
    throw new UsageError(
      `--preset: expected one of ${Object.keys(presets).join(', ')} for ${stage}, got ${JSON.stringify(preset)}`,
    );
  const short = {
    model,
    planner: flags.planner,
    dataset,
    validation,
    outputDir: output,
    maxSteps,
    epochs,
    learningRate,
    plannerLearningRate,
    batchSize,
    maxTokens,
    evalEvery,
    saveEvery,
  };
  const merged: Record<string, unknown> = {
    ...(preset !== undefined && presets[preset]),
    ...(file !== undefined && readConfigFile(file)),
    ...given(short),
    // JSON has no big integers.
    ...(flags.seed !== undefined && {
      seed: Number.isSafeInteger(Number(flags.seed)) ? Number(flags.seed) : flags.seed,
    }),
    ...Object.fromEntries(set),
  };
  if (epochs !== undefined && maxSteps === undefined) delete merged.maxSteps;
  if (merged.dataset === undefined)
    throw new UsageError('no data set: give one with --dataset, or a --preset or --config that names it');
  return { outputDir: `runs/${stage}`, ...merged } as training.TrainConfig;
}

/** Whether a run has saved anything; without checkpoints it can begin again without loss. */
function hasCheckpoints(folder: string): boolean {
  const checkpoints = path.join(folder, 'checkpoints');
  return existsSync(checkpoints) && readdirSync(checkpoints).some((name) => name.startsWith('step-'));
}

/**
 * Removes what a launch that was refused has put into its folder, and the folders from `made` on that it has made for
 * it; nothing of a run that has begun, which --resume goes on with.
 */
function takeBack(folder: string, made: string | undefined): void {
  if (existsSync(path.join(folder, 'config.json'))) return;
  for (const name of [LAUNCH_FILE, 'initial']) rmSync(path.join(folder, name), { recursive: true, force: true });
  if (made === undefined) return;
  try {
    for (let at = folder; at.startsWith(made); at = path.dirname(at)) rmdirSync(at);
  } catch {
    // Something else is in it by now.
  }
}

/** The launch of a run to resume, with the flags that may change. */
function resumed(folder: string, stage: string | undefined, flags: Flags): Launch {
  const file = path.join(folder, LAUNCH_FILE);
  if (!existsSync(file))
    throw new UsageError(`--resume: ${folder} holds no run of dultra train (${LAUNCH_FILE} is missing)`);
  const launch = JSON.parse(readFileSync(file, 'utf8')) as Launch;
  // Seeds above 2^53 are stored as text.
  if (typeof launch.config.seed === 'string') launch.config.seed = BigInt(launch.config.seed);
  if (stage !== undefined && stage !== launch.stage)
    throw new UsageError(`--resume: ${folder} holds a run of ${launch.stage}, not of ${stage}`);
  for (const name of ['config', 'preset', 'model', 'planner', 'output', 'dataset', 'validation'] as const)
    if (flags[name] !== undefined)
      throw new UsageError(`--${name}: not together with --resume, which goes on with what the run began with`);
  const { maxSteps, epochs, saveEvery, set = [] } = flags;
  const changed = given({ maxSteps, epochs, saveEvery });
  return {
    stage: launch.stage,
    config: { ...launch.config, ...changed, ...Object.fromEntries(set), outputDir: folder },
  };
}

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
class Progress {
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

/** Prints the memory plan as a table. */
function printPlan(stage: training.Stage, config: training.TrainConfig, plan: training.MemoryPlan): void {
  const line = (name: string, bytes: number, detail: string) =>
    [name, `${formatBytes(bytes)}${detail === '' ? '' : `  ${detail}`}`] as const;
  printTable([
    ['stage', stage],
    ['data set', typeof config.dataset === 'string' ? config.dataset : `a list of ${config.dataset?.length}`],
    ['device', plan.device],
    ...plan.items.map(({ name, bytes, detail }) => line(name, bytes, detail)),
    line('in all', plan.bytes, ''),
    plan.available === null
      ? ['free', `not known: this machine has no ${plan.device}`]
      : line(
          plan.device === 'cpu' ? 'free' : 'memory',
          plan.available,
          plan.fits
            ? ''
            : 'not enough: a smaller tokenBudget, activationCheckpointing, momentDtype bfloat16, lora or ' +
                'freezeBase need less',
        ),
  ]);
}

/** The path of a file from every working directory, also behind "gsm8k:"; anything else as it is. */
function absolute<T>(value: T): T | string {
  if (typeof value !== 'string') return value;
  if (existsSync(value)) return path.resolve(value);
  const [name, ...rest] = value.split(':');
  const file = rest.join(':');
  return file !== '' && existsSync(file) ? `${name}:${path.resolve(file)}` : value;
}

/**
 * Refuses to train the embedded model, which nobody has asked for, on words that it lacks: it would learn its token for
 * unknown words in their place.
 */
async function checkWords(flags: Flags, { name, vocabulary }: datasets.Dataset): Promise<void> {
  if (vocabulary.length === 0) return;
  await using model = await openModel({ ...flags, model: undefined });
  const { tokenizer } = model;
  const unknownId = tokenizer?.tokenId('<unk>') ?? null;
  if (!tokenizer || unknownId === null) return;
  const unknown = vocabulary.filter((word) => tokenizer.encode(word).includes(unknownId));
  if (unknown.length > 0)
    throw new UsageError(
      `--model: expected one for the words of ${name}: the embedded model, the default, lacks ${unknown.length} of its ` +
        `${vocabulary.length} words (${unknown.slice(0, 5).join(', ')}${unknown.length > 5 ? ', …' : ''}); give a folder ` +
        "or hub id, or a new model: --set 'model={create: {dModel: 64, nLayers: 3}}'",
    );
}

async function train(stageName: string | undefined, flags: Flags): Promise<void> {
  if (stageName === undefined && flags.resume === undefined)
    throw new UsageError(`expected a stage (${training.STAGES.join(', ')}), or --resume FOLDER`);
  if (stageName !== undefined && !(training.STAGES as readonly string[]).includes(stageName))
    throw new UsageError(`expected a stage (${training.STAGES.join(', ')}), got ${JSON.stringify(stageName)}`);
  const { stage, config } =
    flags.resume === undefined
      ? { stage: stageName as training.Stage, config: configure(stageName as training.Stage, flags) }
      : resumed(flags.resume, stageName, flags);
  if (flags.dryRun) {
    const { device, dtype, compute } = flags;
    const plan = await training.planMemory(stage, config, given({ device, dtype, compute }));
    if (flags.json) printJson({ stage, config, plan });
    else printPlan(stage, config, plan);
    if (plan.fits === false) process.exitCode = 1;
    return;
  }
  const output = path.resolve(config.outputDir as string);
  const isNew = flags.resume === undefined;
  if (isNew && hasCheckpoints(output))
    throw new UsageError(
      `${output} holds a run already: go on with it by --resume ${config.outputDir}, or give another --output`,
    );
  const data = await training.openDataset(config);
  if (config.model === undefined) await checkWords(flags, data);
  const made = mkdirSync(output, { recursive: true });
  try {
    await runIn(output, { stage, config }, data, flags);
  } catch (error) {
    if (isNew) takeBack(output, made);
    throw error;
  }
}

/** Trains in the run folder of a launch. */
async function runIn(output: string, { stage, config }: Launch, data: datasets.Dataset, flags: Flags): Promise<void> {
  const isNew = flags.resume === undefined;
  // Left by a launch that was killed.
  if (isNew) rmSync(path.join(output, 'initial'), { recursive: true, force: true });
  const source = await training.prepareModel(config, data, path.join(output, 'initial'));
  const planner = await training.preparePlanner(
    config,
    source,
    path.join(output, 'initial', 'planner'),
    flags.revision,
  );
  if (isNew) {
    // Absolute: the run may be resumed from another working directory.
    const where = source !== undefined && existsSync(source) ? path.resolve(source) : source;
    const launch: Launch = {
      stage,
      config: {
        ...config,
        ...(where !== undefined && { model: where }),
        ...given({
          dataset: absolute(config.dataset),
          validation: absolute(config.validation),
          planner: planner && path.resolve(planner),
        }),
        outputDir: output,
      },
    };
    writeFileSync(
      path.join(output, LAUNCH_FILE),
      `${JSON.stringify(launch, (_, value) => (typeof value === 'bigint' ? value.toString() : value), 2)}\n`,
    );
  }
  await using model = await openModel({ ...flags, model: source, ...given({ planner }) });
  const progress = new Progress(flags.quiet ?? false);
  const start = performance.now();
  let last: Metrics | null = null;
  try {
    for await (const metrics of training.runConfig(
      stage,
      model,
      { ...config, outputDir: output, resume: true },
      { signal: interruptSignal },
    )) {
      last = metrics as Metrics;
      progress.update(last);
    }
  } finally {
    progress.stop();
  }
  const final = path.join(output, 'final');
  await model.save(final);
  const seconds = (performance.now() - start) / 1000;
  if (flags.json) printJson({ stage, output, model: final, steps: last?.step ?? null, seconds, metrics: last });
  else printData(final);
  if (!flags.quiet && !flags.json)
    printMessage(`${last ? `${last.step} steps` : 'nothing left to do'}, ${seconds.toFixed(1)} s`);
}

/** Adds `dultra train` to the program. */
export function register(program: Command): void {
  const command = program
    .command('train')
    .summary('train a model: sft, planner or grpo')
    .description(
      'Trains a model: sft (masked-diffusion fine-tuning), planner (planner initialisation) or grpo. ' +
        'Prints the trained model’s folder.',
    )
    .argument('[stage]', 'sft, planner or grpo; with --resume the run knows')
    .optionsGroup('Run:')
    .option('-c, --config <file>', 'options in YAML or JSON')
    .option('--preset <name>', 'ready-made options: tiny, world; grpo: gsm8k, math500, apps')
    .option('-o, --output <folder>', 'run folder (default: runs/STAGE)')
    .option('--resume <folder>', 'go on with a run, bit for bit as if it had never stopped')
    .option('--dry-run', 'print what memory the run would take, and stop')
    .option(
      '-d, --dataset <task|file>',
      'a task such as st1, a data set such as gsm8k or gsm8k:train.jsonl, or a file or folder of own examples',
    )
    .option(
      '--validation <file|share>',
      'own examples: a file of held-out ones, or a share such as 0.1 to hold out',
      shareOrFile,
    )
    .optionsGroup('Training:')
    .option('--max-steps <n>', 'optimiser steps', integer)
    .option('--epochs <n>', 'passes over a file of examples', number)
    .option('--batch-size <n>', 'sft and planner: examples per batch', integer)
    .option('-n, --max-tokens <n>', "tokens of an answer (default: the data set's; sft and planner: its own)", integer)
    .option('--learning-rate <x>', 'peak learning rate', number)
    .option('--planner-learning-rate <x>', 'grpo: peak learning rate of the planner', number)
    .option('--eval-every <n>', 'evaluate on held-out examples every n steps', integer)
    .option('--save-every <n>', 'save a checkpoint every n steps', integer)
    .option('--seed <n>', 'seed of every random choice', seed)
    .addOption(
      new Option('--set <key=value>', 'any other option, by its API name; may be given several times').argParser(
        setting,
      ),
    )
    .optionsGroup('Model:')
    .option(
      '-m, --model <folder|id>',
      'checkpoint folder, or hub id (default: what preset or config name, else the embedded model)',
    )
    .option(
      '--planner <new|folder>',
      "planner head for a model that has none: new (the paper's block), new:small, or a folder",
    );
  addDeviceOptions(command);
  addOutputOptions(command, '{ stage, output, model, steps, seconds, metrics }')
    .addHelpText('after', EXAMPLES)
    .action(train);
}
