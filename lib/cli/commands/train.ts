// dultra train: fine-tuning, planner initialisation, GRPO.
import { existsSync, mkdirSync, readdirSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { type Command, Option } from 'commander';
import { type datasets, distributed, training } from '../../index';
import { Interruption, interruptSignal, nameOptions, UsageError } from '../errors';
import { addJobOptions, type JobFlags, joinJob } from '../job';
import {
  addAdapterOption,
  addCheckpointOptions,
  addDeviceOptions,
  loadOptions,
  type ModelFlags,
  openModel,
} from '../model';
import {
  addOutputOptions,
  columnsOf,
  formatBytes,
  printData,
  printJson,
  printMessage,
  printTable,
  wrap,
} from '../output';
import { checkFolder } from '../paths';
import { duration, type Metrics, Progress, printSamples, printStart } from '../train/progress';
import { absolute, ConfigFile, type FlagValues, Settings, setting } from '../train/settings';
import { given, integer, number, seed, shareOrFile } from '../values';
import { register as registerInit } from './train-init';

type Flags = JobFlags &
  ModelFlags &
  FlagValues & { resume?: string; dryRun?: boolean; ranks?: number; samples?: boolean };

/** How the model of a run is loaded, where that decides what is computed. */
type LoadFlags = Pick<
  ModelFlags,
  'dtype' | 'compute' | 'quantize' | 'revision' | 'maskTokenId' | 'attendedBlock' | 'adapter'
>;

/** A run that is about to begin or to go on; of a new one, but for `isNew`, what {@link LAUNCH_FILE} holds. */
interface Launch {
  isNew: boolean;
  stage: training.Stage;
  config: training.TrainConfig & { outputDir: string };
  load: LoadFlags;
  /** What the user is told before it begins. */
  notes: string[];
}

/** The stored launch of a run, for --resume. */
const LAUNCH_FILE = 'train.json';

const EXAMPLES = `
Examples:
  dultra train sft --preset tiny
  dultra train planner --model Dream-org/Dream-v0-Instruct-7B --planner new:small --dataset gsm8k --max-tokens 256
  dultra train planner --preset tiny
  dultra train dparallel -d answers.jsonl --max-tokens 24 --set blockLength=8
  dultra train grpo --preset tiny --set objective=trace
  dultra train grpo --preset tiny --set temperature=0.3
  dultra train grpo --preset tiny --set 'cache={type: refresh}'
  dultra train init grpo run.yaml
  dultra train grpo --config run.yaml --output runs/mine --max-steps 500
  dultra train --resume runs/mine
  dultra train grpo --preset gsm8k --dry-run
  mpirun -n 2 dultra train sft --preset tiny
  mpirun -n 8 dultra train grpo --config run.yaml --roles train:6,teacher:2

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

/** Whether a run has saved anything; without checkpoints it can begin again without loss. */
function hasCheckpoints(folder: string): boolean {
  const checkpoints = path.join(folder, 'checkpoints');
  return existsSync(checkpoints) && readdirSync(checkpoints).some((name) => name.startsWith('step-'));
}

/** The first of "runs/sft", "runs/sft-2" … that holds no run, and in which no other process has begun one. */
function freeFolder(folder: string): string {
  const isFree = (candidate: string) => !hasCheckpoints(candidate) && !existsSync(path.join(candidate, '.lock'));
  for (let number = 1; ; number++) {
    const candidate = number === 1 ? folder : `${folder}-${number}`;
    if (isFree(candidate)) return candidate;
  }
}

/** The embedded model, where a preset begins with one that is not there. */
function standIn(stage: training.Stage, preset: string): { model: string; note: string } | null {
  const before = training.presetBefore(stage, preset);
  if (!before || existsSync(before.model)) return null;
  const { model, embedded } = before;
  return { model: embedded, note: `${model} is not there: ${stage} begins with the embedded model of that stage` };
}

/** @throws UsageError where a distillation's file of own answers is not there */
function checkAnswers(stage: training.Stage, dataset: training.TrainConfig['dataset']): void {
  if (stage !== 'dparallel' && stage !== 'd3llm') return;
  if (typeof dataset !== 'string' || !/\.jsonl$/.test(dataset) || existsSync(dataset)) return;
  throw new UsageError(
    `${dataset} is not there: write the model's own answers first, as "dultra distill -d st1 --count 4000 -o ${dataset}" ` +
      'does, or give other examples with --dataset',
  );
}

/** A new run. @throws UsageError; TypeError, RangeError for options */
function newLaunch(stage: training.Stage, flags: Flags, command: Command): Launch {
  const settings = Settings.launch(stage, flags, command);
  nameOptions(command, settings);
  const { preset, dtype, compute, quantize, revision, maskTokenId, attendedBlock } = flags;
  // Absolute: the run may be resumed from another working directory.
  const adapter = flags.adapter && path.resolve(flags.adapter);
  const asGiven = settings.config();
  if (Object.hasOwn(asGiven, 'resume'))
    throw new UsageError(`${settings.option('resume')}: a new run cannot; --resume FOLDER goes on with one`);
  // Whatever names the data set: a misspelt key is said first, which may have been meant to name it.
  training.checkConfig(stage, asGiven.dataset === undefined ? { ...asGiven, dataset: 'world' } : asGiven);
  if (asGiven.dataset === undefined)
    throw new UsageError('no data set: give one with --dataset, or a --preset or --config that names it');
  checkAnswers(stage, asGiven.dataset);
  const notes: string[] = [];
  const before = preset !== undefined && !settings.isOwn('model') ? standIn(stage, preset) : null;
  if (before) notes.push(before.note);
  const wanted = asGiven.outputDir ?? `runs/${stage}`;
  checkFolder(settings.option('outputDir') ?? '--output', wanted);
  const outputDir = settings.isOwn('outputDir') ? wanted : freeFolder(wanted);
  if (hasCheckpoints(outputDir))
    throw new UsageError(
      `${settings.option('outputDir')}: ${outputDir} holds a run already: go on with it by --resume ${outputDir}, or ` +
        'name another folder',
    );
  if (outputDir !== wanted)
    notes.push(`${wanted} holds a run already (--resume ${wanted} goes on with it); this one is ${outputDir}`);
  const config = { ...settings.config(before ? { model: before.model } : {}), outputDir };
  const load = given({ dtype, compute, quantize, revision, maskTokenId, attendedBlock, adapter });
  return { isNew: true, stage, config, load, notes };
}

/** The launch of a run that goes on. @throws UsageError; TypeError, RangeError for options */
function resumed(folder: string, stageName: string | undefined, flags: Flags, command: Command): Launch {
  const file = path.join(folder, LAUNCH_FILE);
  if (!existsSync(file))
    throw new UsageError(`--resume: ${folder} holds no run of dultra train (${LAUNCH_FILE} is missing)`);
  const launch = new ConfigFile(file, '--resume', ['config']);
  const stage = launch.get('stage') as training.Stage;
  if (!training.STAGES.includes(stage))
    throw new UsageError(`--resume: ${file}: expected a stage (${training.STAGES.join(', ')}), got ${stage}`);
  if (stageName !== undefined && stageName !== stage)
    throw new UsageError(`--resume: ${folder} holds a run of ${stage}, not of ${stageName}`);
  const settings = Settings.resume(launch, flags, command);
  nameOptions(command, settings);
  const config = { ...settings.config(), outputDir: folder };
  training.checkConfig(stage, config);
  const load = (launch.get('load') ?? {}) as LoadFlags;
  return { isNew: false, stage, config, load, notes: [] };
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

/** Prints the memory plan as a table. */
function printPlan(stage: training.Stage, config: training.TrainConfig, plan: training.MemoryPlan): void {
  const line = (name: string, bytes: number, detail: string) =>
    [name, `${formatBytes(bytes)}${detail === '' ? '' : `  ${detail}`}`] as const;
  printTable([
    ['stage', stage],
    ['data set', typeof config.dataset === 'string' ? config.dataset : `a list of ${config.dataset?.length}`],
    ['device', plan.device],
    ...(plan.ranks > 1 || plan.teacher
      ? [['processes', `${plan.ranks}${plan.teacher ? ' that train' : ''}; what follows is of each`] as const]
      : []),
    ...plan.items.map(({ name, bytes, detail }) => line(name, bytes, detail)),
    line('in all', plan.bytes, ''),
    ...(plan.ranks > 1
      ? [
          [
            'zeroStage',
            plan.bytesByZeroStage.map((bytes, stage) => `${stage}: ${formatBytes(bytes)}`).join('  '),
          ] as const,
        ]
      : []),
    ...(plan.teacher
      ? [
          ['teachers', `${plan.teacher.ranks} ${plan.teacher.ranks === 1 ? 'process' : 'processes, of each'}`] as const,
          ...plan.teacher.items.map(({ name, bytes, detail }) => line(name, bytes, detail)),
          line('in all', plan.teacher.bytes, ''),
        ]
      : []),
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

async function train(stageName: string | undefined, own: Flags, command: Command): Promise<void> {
  const { group, flags } = await joinJob(own);
  const stages = training.STAGES.join(', ');
  if (stageName === undefined && flags.resume === undefined)
    throw new UsageError(`expected a stage (${stages}), or --resume FOLDER`);
  if (stageName !== undefined && !(training.STAGES as readonly string[]).includes(stageName))
    throw new UsageError(`expected a stage (${stages}), got ${JSON.stringify(stageName)}`);
  const launch =
    flags.resume === undefined
      ? newLaunch(stageName as training.Stage, flags, command)
      : resumed(flags.resume, stageName, flags, command);
  const { isNew, stage, config, load, notes } = launch;
  if (flags.ranks !== undefined && !flags.dryRun)
    throw new UsageError('--ranks: expected with --dry-run alone; mpirun or srun starts several processes');
  if (!flags.quiet) for (const note of notes) printMessage(wrap(note, columnsOf(process.stderr) ?? 120).join('\n'));
  if (flags.dryRun) {
    const { device, dtype, compute, quantize, maskTokenId, blockLength } = loadOptions({ ...flags, ...load });
    const ranks = flags.ranks ?? (group.size > 1 ? group.size : undefined);
    const options = { ...given({ ranks, device, dtype, compute, quantize, maskTokenId, blockLength }) };
    const plan = await training.planMemory(stage, config, options);
    if (group.rank > 0) return;
    if (flags.json) printJson({ stage, config, plan });
    else printPlan(stage, config, plan);
    if (plan.fits === false) process.exitCode = 1;
    return;
  }
  const role = training.roleOf(config);
  // A free folder is one for all.
  const [{ outputDir }] = await distributed.gatherJson(group, { outputDir: config.outputDir });
  const output = path.resolve(outputDir);
  if (role === 'teacher') return await teach(launch, flags, group);
  const data = await distributed.firstAlone(group, () => training.openDataset(config));
  const isFirst = group.rank === 0;
  const made = isFirst ? mkdirSync(output, { recursive: true }) : undefined;
  try {
    await runIn(output, launch, data, flags, group);
  } catch (error) {
    if (isNew && isFirst) takeBack(output, made);
    throw error;
  }
}

/** What an interruption leaves, and the command line that goes on. @param done steps that are saved */
function describeInterruption(folder: string, done: number, maxSteps: number | null): string {
  const name = /^[\w./:\\-]+$/.test(folder) ? folder : JSON.stringify(folder);
  const of = maxSteps === null ? '' : ` of ${maxSteps}`;
  const saved = done === 0 ? 'interrupted before the first step' : `interrupted: step ${done}${of} is saved in ${name}`;
  return `${saved}\nGo on with: dultra train --resume ${name}`;
}

/** Whether the model of a run is on this machine, or is made here. */
const isHere = ({ model }: training.TrainConfig): boolean => typeof model !== 'string' || existsSync(model);

/** Scores for the processes that train, whose data set and model this one has no use for. */
async function teach({ config, load }: Launch, flags: Flags, group: distributed.ProcessGroup): Promise<void> {
  const { device, threads } = loadOptions({ ...flags, ...load });
  // Meanwhile the others open the data set and prepare their model, and download it where it is not here.
  for (let turn = isHere(config) ? 2 : 3; turn > 0; turn--) await group.barrier();
  await training.serveTeachers(config, given({ device, threads }));
}

/** Trains in the run folder of a launch. */
async function runIn(
  output: string,
  launch: Launch,
  data: datasets.Dataset,
  flags: Flags,
  group: distributed.ProcessGroup,
): Promise<void> {
  const { isNew, stage, config, load } = launch;
  const isFirst = group.rank === 0;
  // Left by a launch that was killed.
  if (isNew && isFirst) rmSync(path.join(output, 'initial'), { recursive: true, force: true });
  const { revision, maskTokenId, blockLength } = loadOptions(load);
  const { source, planner } = await distributed.firstAlone(group, async () => {
    const initial = path.join(output, 'initial');
    const made = await training.prepareModel(config, data, initial);
    const head = path.join(initial, 'planner');
    const hints = given({ revision, maskTokenId, blockLength });
    return { source: made, planner: await training.preparePlanner(config, made, head, hints) };
  });
  if (isNew && isFirst) {
    // Absolute: the run may be resumed from another working directory.
    const where = source !== undefined && existsSync(source) ? path.resolve(source) : source;
    const { dataset, validation, referenceModel, trajectories, teacher } = config;
    const stored = {
      ...config,
      ...(where !== undefined && { model: where }),
      ...given({
        dataset: absolute(dataset, existsSync),
        validation: absolute(validation, existsSync),
        planner: planner && path.resolve(planner),
        referenceModel: absolute(referenceModel, existsSync),
        trajectories: absolute(trajectories, existsSync),
        teacher: teacher && { ...teacher, model: absolute(teacher.model, existsSync) },
      }),
      outputDir: output,
    };
    const text = (_: string, value: unknown) => (typeof value === 'bigint' ? value.toString() : value);
    writeFileSync(path.join(output, LAUNCH_FILE), `${JSON.stringify({ stage, config: stored, load }, text, 2)}\n`);
  }
  const open = () => openModel({ ...flags, ...load, model: source, ...given({ planner }) });
  // What is to be downloaded is downloaded once.
  await using model = await (isHere(config) ? open() : distributed.firstAlone(group, open));
  const progress = new Progress(flags.quiet ?? false);
  const start = performance.now();
  let last: Metrics | null = null;
  let done = 0;
  const onStart = (run: training.RunStart) => {
    done = run.step;
    if (!flags.quiet) printStart(stage, model, run, config);
    progress.start(run.step);
  };
  const onSamples = flags.samples ? printSamples : undefined;
  try {
    for await (const metrics of training.runConfig(
      stage,
      model,
      { ...config, outputDir: output, resume: true },
      { signal: interruptSignal, onStart, onSamples },
    )) {
      last = metrics as Metrics;
      done = last.step;
      progress.update(last);
    }
  } catch (error) {
    if (!(error instanceof Interruption)) throw error;
    throw new Interruption(error.exitCode, describeInterruption(config.outputDir, done, last?.maxSteps ?? null));
  } finally {
    progress.stop();
  }
  if (!isFirst) return;
  const final = path.join(output, 'final');
  await model.save(final);
  const seconds = (performance.now() - start) / 1000;
  if (flags.json) printJson({ stage, output, model: final, steps: last?.step ?? null, seconds, metrics: last });
  else printData(final);
  if (!flags.quiet && !flags.json)
    printMessage(last ? `${last.step} steps, ${duration(seconds)}` : `nothing left to do: ${done} steps are done`);
}

/** Adds `dultra train` to the program. */
export function register(program: Command): void {
  const command = program
    .command('train')
    .summary('train a model: sft, dparallel, d3llm, planner or grpo')
    .description(
      'Trains a model: sft (masked-diffusion fine-tuning), dparallel or d3llm (distillation from its own answers), ' +
        'planner (planner initialisation) or grpo (reinforcement learning, by several objectives). ' +
        'Prints the trained model’s folder.',
    )
    .argument('[stage]', 'sft, dparallel, d3llm, planner or grpo; with --resume the run knows')
    .optionsGroup('Run:')
    .option('-c, --config <file>', 'options in YAML or JSON')
    .option(
      '--preset <name>',
      'ready-made options: tiny, world; dparallel, d3llm: llada; grpo: gsm8k, math500, apps, diffu-grpo, trace',
    )
    .option('-o, --output <folder>', 'run folder (default: runs/STAGE)')
    .option('--resume <folder>', 'go on with a run, bit for bit as if it had never stopped')
    .option('--dry-run', 'print what memory the run would take, and stop')
    .option('--ranks <n>', 'with --dry-run: of each of n processes under mpirun or srun', integer)
    .option('--roles <map>', 'grpo: processes that train and those that hold the teachers, as train:6,teacher:2')
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
    .option('--batch-size <n>', 'but for grpo: examples per batch', integer)
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
  registerInit(command);
  addDeviceOptions(addCheckpointOptions(addAdapterOption(command)));
  command
    .optionsGroup('Output:')
    .option('--samples', 'show a few completions on stderr, of rollouts and evaluations, as samples.jsonl gets them');
  addJobOptions(addOutputOptions(command, '{ stage, output, model, steps, seconds, metrics }'))
    .addHelpText('after', EXAMPLES)
    .action(train);
}
