// dultra eval: accuracy and forward passes of samplers on a task.
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { SingleBar } from 'cli-progress';
import { type Command, Option } from 'commander';
import {
  type CachePolicy,
  datasets,
  type EvaluateOptions,
  type Evaluation,
  evaluate,
  type GridEntry,
  parseCache,
  parseSampler,
  type ReportRun,
  samplerGrid,
  writeReport,
} from '../../index';
import { interruptSignal, UsageError } from '../errors';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, colorsFor, printJson } from '../output';
import { CACHE_HELP, SAMPLER_HELP } from '../sampling';
import { integer, number } from '../values';

interface Flags extends ModelFlags {
  dataset: datasets.TaskName;
  split: 'train' | 'validation' | 'test';
  samplers?: string;
  caches?: string;
  grid?: 'quick' | 'full';
  count?: number;
  seed?: number;
  batchSize?: number;
  genLength?: number;
  blockLength?: number;
  temperature?: number;
  stopAtEos?: boolean;
  out?: string;
  report?: string;
  traces?: number;
}

/** Prompts of the report's step-by-step view. */
const REPORT_TRACES = 8;

const EXAMPLES = `
Examples:
  dultra eval --count 512 --report report.html
  dultra eval -m models/base --samplers entropy-sum:0.1,confidence:0.9,fixed:24 --split validation
  dultra eval --samplers planner,confidence:0.9 --caches none,prefix,dual,refresh:4
  dultra eval --dataset st1 --grid full --out results.json --json`;

/** The samplers that the flags name, null where they ask for a grid. */
function namedSamplers(flags: Flags): GridEntry[] | null {
  if (flags.samplers === undefined) return null;
  if (flags.grid !== undefined) throw new UsageError('expected --samplers or --grid, got both');
  const texts = flags.samplers.split(',').map((text) => text.trim());
  const entries = texts.map((name) => ({ name, group: name.split(':')[0], sampler: parseSampler(name) }));
  const twice = texts.find((text, i) => texts.indexOf(text) !== i);
  if (twice !== undefined) throw new UsageError(`--samplers: ${twice} is given twice`);
  return entries;
}

/** The caches that the flags name; by default none alone. */
function namedCaches(list = 'none'): Record<string, CachePolicy> {
  const texts = list.split(',').map((text) => text.trim());
  const twice = texts.find((text, i) => texts.indexOf(text) !== i);
  if (twice !== undefined) throw new UsageError(`--caches: ${twice} is given twice`);
  return Object.fromEntries(texts.map((text) => [text, parseCache(text)]));
}

/** A table for people. The header is "name  right  NFE …"; numbers are aligned. */
function printResults({ config, results }: Evaluation): void {
  const { bold } = colorsFor(process.stdout);
  const lines = results.map(({ name, accuracy, accuracyError, nfe, fullForwards, tokensPerForward, tokensPerSecond }) => [
    name,
    `${(100 * accuracy).toFixed(1)} ± ${(100 * accuracyError).toFixed(1)} %`,
    nfe.mean.toFixed(2),
    fullForwards.mean.toFixed(2),
    tokensPerForward.generated.toFixed(2),
    tokensPerForward.untilEos.toFixed(2),
    tokensPerSecond.toFixed(0),
  ]);
  const head = ['sampler', 'right', 'NFE', 'full passes', 'tokens/pass', 'up to the end', 'tokens/s'];
  const widths = head.map((title, i) => Math.max(title.length, ...lines.map((line) => line[i].length)));
  const show = (cells: string[]) => cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ');
  process.stdout.write(`${bold(show(head))}\n${lines.map((line) => `${show(line)}\n`).join('')}`);
  const categories = [...new Set(results.flatMap((result) => Object.keys(result.categories)))];
  if (categories.length < 2) return;
  process.stdout.write(`\n${bold('By kind of prompt (right @ NFE)')}\n`);
  for (const { name, categories: parts } of results) {
    const texts = Object.entries(parts).map(([key, { accuracy, nfe }]) => `${key} ${(100 * accuracy).toFixed(1)} % @ ${nfe.toFixed(2)}`);
    process.stdout.write(`${name.padEnd(widths[0])}  ${texts.join('  ')}\n`);
  }
  process.stdout.write(`\n${config.count} prompts of the ${config.split} split of ${config.dataset}, seed ${config.seed}\n`);
}

/** A bar in a terminal; elsewhere a line per sampler. */
class EvalProgress {
  #bar: SingleBar | null = null;
  #sampler = '';

  update({ sampler, done, total }: { sampler: string; done: number; total: number }): void {
    if (!process.stderr.isTTY) {
      if (sampler !== this.#sampler) process.stderr.write(`${sampler}\n`);
      this.#sampler = sampler;
      return;
    }
    if (!this.#bar) {
      this.#bar = new SingleBar({
        stream: process.stderr,
        format: '{bar} {value}/{total} prompts, {eta_formatted} left, {sampler}',
        barsize: 24,
        hideCursor: true,
        gracefulExit: false,
      });
      this.#bar.start(total, done, { sampler });
    }
    this.#bar.update(done, { sampler });
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = null;
  }
}

function checkWritable(flag: string, file: string | undefined): void {
  if (file !== undefined && !existsSync(path.dirname(path.resolve(file))))
    throw new UsageError(`${flag}: ${path.dirname(file)} is no folder`);
}

async function run(flags: Flags): Promise<void> {
  checkWritable('--out', flags.out);
  checkWritable('--report', flags.report);
  const named = namedSamplers(flags);
  const caches = namedCaches(flags.caches);
  await using model = await openModel(flags);
  const gridLength = flags.genLength ?? datasets.byName(flags.dataset).genLength;
  const entries = named ?? samplerGrid({ size: flags.grid ?? 'quick', planner: model.hasPlanner, genLength: gridLength });
  const { split, count, seed, batchSize, genLength, blockLength, temperature, stopAtEos } = flags;
  const traces = flags.traces ?? (flags.report === undefined ? undefined : REPORT_TRACES);
  const given = Object.entries({ count, seed, batchSize, genLength, blockLength, temperature, stopAtEos, traces });
  const progress = new EvalProgress();
  let evaluation: Evaluation;
  try {
    evaluation = await evaluate(model, {
      ...(Object.fromEntries(given.filter(([, value]) => value !== undefined)) as Partial<EvaluateOptions>),
      dataset: datasets.byName(flags.dataset),
      split,
      samplers: Object.fromEntries(entries.map(({ name, sampler }) => [name, sampler])),
      caches,
      signal: interruptSignal,
      onProgress: flags.quiet ? undefined : (state) => progress.update(state),
    });
  } finally {
    progress.stop();
  }
  if (flags.out !== undefined) await writeFile(flags.out, `${JSON.stringify(evaluation, null, 1)}\n`);
  if (flags.report !== undefined) {
    const groups = new Map<string, string>();
    for (const { name, group } of entries)
      for (const [cache, { type }] of Object.entries(caches))
        if (type === 'none') groups.set(name, group);
        else groups.set(`${name} + ${cache}`, `${group} + ${cache}`);
    const label = path.basename(evaluation.config.model.source);
    const report: ReportRun = {
      label,
      evaluation,
      group: (name) => groups.get(name) ?? null,
      emphasis: (group) => group.startsWith('planner'),
    };
    await writeReport(flags.report, {
      title: `dultra: ${flags.dataset}`,
      summary: `Samplers of the model ${label} on ${flags.dataset}: how many forward passes they need, and what is right.`,
      runs: [report],
      commands: [`dultra ${process.argv.slice(2).join(' ')}`],
    });
  }
  if (flags.json) printJson(evaluation);
  else printResults(evaluation);
  if (!flags.quiet && flags.report !== undefined) process.stderr.write(`report: ${flags.report}\n`);
}

/** Adds `dultra eval` to the program. */
export function register(program: Command): void {
  const command = program
    .command('eval')
    .summary('measure samplers on a task')
    .description('Decodes held-out prompts of a task with every sampler and prints accuracy and forward passes.')
    .optionsGroup('Task:')
    .addOption(
      new Option('-d, --dataset <name>', 'the task; the embedded model speaks st1').choices(datasets.TASK_NAMES).default('st1' as const),
    )
    .addOption(
      new Option('--split <name>', 'which prompts; choose settings on validation')
        .choices(['train', 'validation', 'test'])
        .default('test' as const),
    )
    .option('-c, --count <n>', 'prompts (default: 512)', integer)
    .option('--seed <n>', 'seed of the prompts and of samplers that draw (default: 0)', integer);
  addModelOptions(command);
  command
    .optionsGroup('Sampling:')
    .option('-s, --samplers <list>', 'samplers, separated by commas, see below (default: the quick grid)')
    .option('--caches <list>', 'caches of keys and values, separated by commas, see below; every sampler runs with each (default: none)')
    .addOption(new Option('--grid <size>', 'the usual settings of every sampler, or a sweep of each').choices(['quick', 'full']))
    .option('-n, --gen-length <n>', "tokens to generate (default: the task's)", integer)
    .option('-b, --block-length <n>', "tokens per block (default: the task's)", integer)
    .option('-t, --temperature <x>', 'token temperature (default: 0)', number)
    .option('--no-stop-at-eos', 'count passes until every position is decided')
    .option('--batch-size <n>', 'prompts per native call; the result does not depend on it (default: 256)', integer);
  addOutputOptions(command, '{ config, results }, with every prompt')
    .option('-o, --out <file>', 'also write that JSON to a file')
    .option('--report <file>', 'write a self-contained HTML page: chart, tables, a step-by-step view')
    .option('--traces <n>', 'keep each step of the first n prompts (default: 8 with --report, else 0)', integer)
    .addHelpText('after', `${SAMPLER_HELP}\n${CACHE_HELP}\n${EXAMPLES}`)
    .action(run);
}
