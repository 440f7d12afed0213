// dultra eval: accuracy and forward passes of samplers on a task.
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { type Command, Option } from 'commander';
import {
  type CachePolicy,
  type Campaign,
  type CausalModel,
  compareDecisions,
  type DecisionComparison,
  datasets,
  distributed,
  EMBEDDED_MODELS,
  type Evaluation,
  type EvaluationConfig,
  evaluateCampaign,
  evaluationMaxTokens,
  type GenerateOptions,
  type GridEntry,
  type LoadModelOptions,
  loadCausalModel,
  type MaskedDiffusionModel,
  type MaskedPerplexity,
  maskedPerplexity,
  parseCache,
  parseSampler,
  type ReportRun,
  samplerGrid,
  writeReport,
} from '../../index';
import { interruptSignal, UsageError } from '../errors';
import { addJobOptions, type JobFlags, joinJob } from '../job';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, oneLine, printColumns, printJson, printLine, printMessage } from '../output';
import { checkFile, checkFolder } from '../paths';
import { ProgressBar } from '../progress';
import { CACHE_TEXT, SAMPLER_TEXT } from '../sampling';
import { given, integer, number, shareOrFile } from '../values';

interface Flags extends ModelFlags, Pick<JobFlags, 'logRanks'> {
  dataset: string;
  prompts?: datasets.PromptStyle;
  import?: string[];
  models?: string;
  autoregressive?: string;
  seeds?: number;
  output?: string;
  compat?: 'reference';
  split?: 'train' | 'validation' | 'test';
  validation?: number | string;
  samplers?: string;
  caches?: string;
  grid?: 'quick' | 'full';
  count?: number;
  seed?: number;
  batchSize?: number;
  maxTokens?: number;
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
  dultra eval -m word-problems-base -d st1 --samplers entropy-sum:0.1,confidence:0.9,fixed:24 --split validation
  dultra eval --dataset st1 --grid full --out results.json --json
  dultra eval --samplers planner,confidence:0.9 --caches none,prefix,dual,refresh:4
  dultra eval -d own.jsonl -m runs/sft/final --validation 0.1
  dultra eval -d gsm8k:test.jsonl --samplers planner,confidence:0.9,fixed:128 --models A,B --seeds 5 \\
    --output runs/gsm8k --report report.html

Data sets: the tasks above; gsm8k, math500, dapo17k, humaneval, mbpp, mbpp-sanitized, apps, from the hub, or NAME:PATH
for a file (JSON lines, JSON, Parquet), a folder with a file per split, or another hub id. Or a file or folder of your
own examples (train --help), which are right where the completion is the answer, white space aside. Code is run in a
sandbox, which needs the package pyodide. A module given by --import can register more (datasets.register).
With --output, the result of every prompt is written to samples.jsonl at once, and the same command continues after an
interruption.`;

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

/** What was evaluated, and how it was judged where that is not the task's own. */
function describeConfig({ count, split, dataset, seed, score, maxTokens }: EvaluationConfig): string {
  const judged = score === 'exact match' ? `; ${maxTokens} tokens, right: the answer exactly, white space aside` : '';
  return `${count} prompts of the ${split} split of ${dataset}, seed ${seed}${judged}`;
}

/** Prints a table of all settings, and one by category. */
function printResults({ config, results }: Evaluation): void {
  // Without a cache every pass is a full one.
  const isCached = results.some(({ nfe, fullForwards }) => fullForwards.mean !== nfe.mean);
  const lines = results.map(
    ({ name, accuracy, accuracyError, nfe, fullForwards, tokensPerForward, tokensPerSecond }) => [
      name,
      `${(100 * accuracy).toFixed(1)} ± ${(100 * accuracyError).toFixed(1)} %`,
      nfe.mean.toFixed(2),
      ...(isCached ? [fullForwards.mean.toFixed(2)] : []),
      tokensPerForward.generated.toFixed(2),
      tokensPerForward.untilEos.toFixed(2),
      tokensPerSecond.toFixed(0),
    ],
  );
  const full = isCached ? ['full passes'] : [];
  const head = ['sampler', 'right', 'NFE', ...full, 'tokens/pass', 'up to the end', 'tokens/s'];
  printColumns(head, lines, 1);
  const categories = [...new Set(results.flatMap((result) => Object.keys(result.categories)))];
  if (categories.length < 2) {
    if (config.score === 'exact match') printLine(`\n${describeConfig(config)}`);
    return;
  }
  printLine('\nBy kind of prompt (right @ NFE)', { bold: true });
  const rows = results.map(({ name, categories: parts }) => [
    name,
    ...categories.map((key) => {
      const part = parts[key];
      return part ? `${(100 * part.accuracy).toFixed(1)} % @ ${part.nfe.toFixed(2)}` : '';
    }),
  ]);
  printColumns(['sampler', ...categories], rows, 1);
  printLine(`\n${describeConfig(config)}`);
}

/** A bar in a terminal; elsewhere a line per sampler. */
class EvalProgress {
  readonly #bar = new ProgressBar('{bar} {value}/{total} prompts, {eta_formatted} left, {sampler}');
  #sampler = '';

  update({ sampler, done, total }: { sampler: string; done: number; total: number }): void {
    if (!process.stderr.isTTY) {
      if (sampler !== this.#sampler) printMessage(sampler);
      this.#sampler = sampler;
      return;
    }
    this.#bar.update(done, total, { sampler });
  }

  stop(): void {
    this.#bar.stop();
  }
}

/** Prints means ± standard deviations over the seeds. */
function printCampaign({ rows, curves, config, models, seeds }: Campaign): void {
  const spread = ({ mean, sd }: { mean: number; sd: number }, digits: number, scale = 1) =>
    `${(scale * mean).toFixed(digits)}${seeds.length > 1 ? ` ± ${(scale * sd).toFixed(digits)}` : ''}`;
  const lines = rows.map(({ model, sampler, accuracy, nfe, tokensPerForward, tokensPerSecond }) => [
    model,
    sampler,
    `${spread(accuracy, 1, 100)} %`,
    spread(nfe, 2),
    spread(tokensPerForward.generated, 2),
    spread(tokensPerForward.untilEos, 2),
    spread(tokensPerSecond, 0),
  ]);
  const head = ['model', 'sampler', 'right', 'NFE', 'tokens/pass', 'up to the end', 'tokens/s'];
  const widths = printColumns(head, lines, 2);
  printLine('\nAccuracy under parallelism (AUP)', { bold: true });
  for (const { model, group, aup } of curves)
    printLine(`${oneLine(model).padEnd(widths[0])}  ${oneLine(group).padEnd(widths[1])}  ${aup.toFixed(1)}`);
  printLine(
    `\n${config.count} prompts of the ${config.split} split of ${config.dataset}, ` +
      `${models.length} model${models.length === 1 ? '' : 's'}, seed${seeds.length === 1 ? '' : 's'} ${seeds.join(', ')}`,
  );
}

/** The models that the flags name, by their names in tables. */
function modelsOf(flags: Flags): Record<string, () => Promise<MaskedDiffusionModel | CausalModel>> {
  const models = diffusionModelsOf(flags);
  for (const source of flags.autoregressive?.split(',') ?? []) {
    const name = path.basename(path.resolve(source.trim()));
    if (name in models)
      throw new UsageError(
        `--autoregressive: expected other names than those of --models, got ${JSON.stringify(name)}`,
      );
    const { device, dtype, compute, threads } = flags;
    const options: LoadModelOptions = { ...given({ device, dtype, compute, threads }), signal: interruptSignal };
    models[name] = () => loadCausalModel(source.trim(), options);
  }
  return models;
}

/** Masked-diffusion models of --models or --model. */
function diffusionModelsOf(flags: Flags): Record<string, () => Promise<MaskedDiffusionModel | CausalModel>> {
  if (flags.models === undefined) return { [flags.model ?? EMBEDDED_MODELS[0]]: () => openModel(flags) };
  if (flags.model !== undefined) throw new UsageError('expected --model or --models, got both');
  const sources = flags.models.split(',').map((text) => text.trim());
  const twice = sources.find((text, i) => text === '' || sources.indexOf(text) !== i);
  if (twice !== undefined)
    throw new UsageError(`--models: expected different folders or ids, got ${JSON.stringify(flags.models)}`);
  // The last part of a path, where that tells them apart.
  const short = sources.map((source) => path.basename(path.resolve(source)));
  const names = new Set(short).size === sources.length ? short : sources;
  return Object.fromEntries(
    sources.map((source, i) => [names[i], () => openModel({ ...flags, ...quantisedSource(source) })]),
  );
}

/** A model of --models, which may end with ":q8" or ":q4". */
function quantisedSource(text: string): Pick<Flags, 'model' | 'quantize'> {
  const [, source, quantize] = /^(.*):(q8|q4)$/.exec(text) ?? [null, text, undefined];
  return {
    model: source,
    ...(quantize !== undefined && { quantize: quantize as 'q8' | 'q4' }),
  };
}

/** A quantised model beside what it was quantised from. */
interface Decisions extends DecisionComparison {
  model: string;
  reference: string;
  /** Of both models, over the same masks. */
  perplexity: { model: MaskedPerplexity[]; reference: MaskedPerplexity[] };
}

/** Prompts over which decisions are compared. */
const COMPARED = 64;

/** Decisions of every model of --models that ends with ":q8" or ":q4" and stands beside its own. */
async function comparedDecisions(
  flags: Flags,
  dataset: datasets.Dataset,
  { split, seed, count, maxTokens, blockLength }: EvaluationConfig,
  sampler: GenerateOptions['sampler'],
): Promise<Decisions[]> {
  const names = (flags.models ?? '').split(',').map((text) => text.trim());
  const compared: Decisions[] = [];
  for (const model of names) {
    const reference = model.replace(/:q[84]$/, '');
    if (reference === model || !names.includes(reference)) continue;
    await using exact = await openModel({ ...flags, ...quantisedSource(reference) });
    await using other = await openModel({ ...flags, ...quantisedSource(model) });
    const examples = dataset.sample(split as 'test', Math.min(count, COMPARED), seed);
    const prompts = examples.map(({ prompt }) => prompt);
    const masked = examples.flatMap(({ prompt, answer }) => (answer === null ? [] : [{ prompt, completion: answer }]));
    const masks = { seed, ...(exact.config.eosTokenId !== null && { fillTo: maxTokens }) };
    compared.push({
      model,
      reference,
      ...(await compareDecisions(exact, other, prompts, { sampler, maxTokens, blockLength })),
      perplexity: {
        model: await maskedPerplexity(other, masked, masks),
        reference: await maskedPerplexity(exact, masked, masks),
      },
    });
  }
  return compared;
}

function printDecisions(decisions: readonly Decisions[]): void {
  for (const { model, reference, tokens, differingTokens, steps, differingSteps, perplexity } of decisions) {
    const share = (part: number, of: number) => `${((100 * part) / Math.max(1, of)).toFixed(2)} %`;
    printLine(
      `${oneLine(model)} decides ${share(differingTokens, tokens)} of ${tokens} tokens otherwise than ` +
        `${oneLine(reference)}, in ${share(differingSteps, steps)} of ${steps} steps`,
    );
    const ratios = perplexity.model.map(
      (own, i) =>
        `${own.perplexity.toFixed(3)} (${perplexity.reference[i].perplexity.toFixed(3)}) of ${Math.round(100 * own.ratio)} %`,
    );
    printLine(`  perplexity where a share of an answer is masked (and of ${oneLine(reference)}): ${ratios.join(', ')}`);
  }
}

async function run(own: Flags): Promise<void> {
  const { group, flags } = await joinJob(own);
  checkFile('--out', flags.out, 'results.json');
  checkFile('--report', flags.report, 'report.html');
  checkFolder('--output', flags.output);
  const named = namedSamplers(flags);
  const caches = namedCaches(flags.caches);
  const models = modelsOf(flags);
  const { seeds: seedCount = 1, seed = 0 } = flags;
  if (seedCount < 1) throw new UsageError(`--seeds: expected at least 1, got ${seedCount}`);
  for (const file of flags.import ?? []) await import(pathToFileURL(path.resolve(file)).href);
  const { count, batchSize, maxTokens, blockLength, temperature, stopAtEos, prompts, compat, validation } = flags;
  // What is held out of own examples is what they are evaluated on.
  const split = flags.split ?? (validation === undefined ? undefined : 'validation');
  // What is to be downloaded is downloaded once, and so are models.
  const dataset = await distributed.firstAlone(group, () =>
    datasets.open(flags.dataset, {
      splits: [split ?? 'test'],
      ...(validation !== undefined && { validation }),
      ...(prompts && { prompts }),
      ...(compat && { compat }),
    }),
  );
  if (group.size > 1)
    for (const [name, open] of Object.entries(models)) models[name] = () => distributed.firstAlone(group, open);
  let entries = named;
  if (!entries) {
    // The grid depends on whether the first model has a planner.
    const [[name, open]] = Object.entries(models);
    const model = (await open()) as MaskedDiffusionModel;
    models[name] = async () => model;
    entries = samplerGrid({
      size: flags.grid ?? 'quick',
      planner: model.hasPlanner,
      maxTokens: maxTokens ?? evaluationMaxTokens(model, dataset, given({ split })),
    });
  }
  const groups = new Map<string, string>();
  for (const { name, group } of entries)
    for (const [cache, { type }] of Object.entries(caches))
      if (type === 'none') groups.set(name, group);
      else groups.set(`${name} + ${cache}`, `${group} + ${cache}`);
  const traces = flags.traces ?? (flags.report === undefined ? undefined : REPORT_TRACES);
  const progress = new EvalProgress();
  let campaign: Campaign;
  try {
    campaign = await evaluateCampaign({
      ...given({ split, count, batchSize, maxTokens, blockLength, temperature, stopAtEos, traces }),
      dataset,
      samplers: Object.fromEntries(entries.map(({ name, sampler }) => [name, sampler])),
      caches,
      models,
      seeds: Array.from({ length: seedCount }, (_, i) => seed + i),
      group: (name) => groups.get(name) ?? name,
      signal: interruptSignal,
      ...(flags.output !== undefined && { outputDir: flags.output }),
      ...(!flags.quiet && { onProgress: (state) => progress.update(state) }),
    });
  } finally {
    progress.stop();
  }
  if (group.rank > 0) return;
  const isSingle = campaign.evaluations.length === 1;
  const result = isSingle ? campaign.evaluations[0].evaluation : campaign;
  if (flags.out !== undefined) await writeFile(flags.out, `${JSON.stringify(result, null, 1)}\n`);
  if (flags.report !== undefined) {
    // The first seed of each model in the charts; all of them in the table of means.
    const first = campaign.evaluations.filter((entry) => entry.seed === seed);
    const runs: ReportRun[] = first.map(({ model, evaluation }) => ({
      label: isSingle ? path.basename(evaluation.config.model.source) : model,
      evaluation,
      group: (name) => groups.get(name) ?? null,
      emphasis: (group) => group.startsWith('planner'),
    }));
    const labels = runs.map(({ label }) => label).join(', ');
    await writeReport(flags.report, {
      title: `dultra: ${dataset.name}`,
      summary:
        `Samplers of ${runs.length > 1 ? 'the models' : 'the model'} ${labels} on ${dataset.name}: ` +
        'how many forward passes they need, and what is right.',
      runs,
      campaign,
      commands: [`dultra ${process.argv.slice(2).join(' ')}`],
    });
  }
  const decisions = await comparedDecisions(flags, dataset, campaign.config, entries[0].sampler);
  if (flags.json) printJson(decisions.length > 0 ? { ...result, decisions } : result);
  else if (isSingle) printResults(campaign.evaluations[0].evaluation);
  else printCampaign(campaign);
  if (!flags.json) printDecisions(decisions);
  if (!flags.quiet && flags.report !== undefined) printMessage(`report: ${flags.report}`);
}

/** Adds `dultra eval` to the program. */
export function register(program: Command): void {
  const command = program
    .command('eval')
    .summary('measure samplers on a task')
    .description('Decodes held-out prompts of a task with every sampler and prints accuracy and forward passes.')
    .optionsGroup('Task:')
    .option(
      '-d, --dataset <name|file>',
      `world, ${datasets.TASK_NAMES.join(', ')}, gsm8k, humaneval …, or a file of own examples, see below`,
      'world',
    )
    .addOption(
      new Option('--prompts <style>', "data sets: the reference's prompts (default: evaluation)").choices(
        datasets.PROMPT_STYLES,
      ),
    )
    .addOption(
      new Option('--compat <mode>', "data sets: judge answers as the reference's evaluation does").choices([
        'reference',
      ]),
    )
    .option(
      '--import <file>',
      'a module to load first, which may register data sets',
      (file: string, before: string[] = []) => [...before, file],
    )
    .addOption(
      new Option(
        '--split <name>',
        'which prompts: of the world also names, outside; choose settings on validation (default: test)',
      ).choices(['train', 'validation', 'test', 'names', 'outside']),
    )
    .option(
      '--validation <file|share>',
      'own examples: evaluate on those of a file, or on the share that train --validation holds out',
      shareOrFile,
    )
    .option('-c, --count <n>', 'prompts (default: 512; data sets: all)', integer)
    .option('--seed <n>', 'seed of the prompts and of samplers that draw (default: 0)', integer)
    .option('--seeds <n>', 'so many seeds, from --seed on: mean and standard deviation (default: 1)', integer);
  addModelOptions(command);
  command
    .option(
      '--models <list>',
      'several checkpoint folders or hub ids, separated by commas, in place of --model; A:q8 and A:q4 are A quantised',
    )
    .option(
      '--autoregressive <list>',
      'also these models of the Llama family (Qwen2.5 …), token by token, as a baseline',
    )
    .optionsGroup('Sampling:')
    .option('-s, --samplers <list>', 'samplers, separated by commas, see below (default: the quick grid)')
    .option(
      '--caches <list>',
      'caches of keys and values, separated by commas, see below; every sampler runs with each (default: none)',
    )
    .addOption(
      new Option('--grid <size>', 'the usual settings of every sampler, or a sweep of each').choices(['quick', 'full']),
    )
    .option('-n, --max-tokens <n>', "tokens to generate (default: the task's)", integer)
    .option('-b, --block-length <n>', "tokens per block (default: the task's)", integer)
    .option('-t, --temperature <x>', 'token temperature (default: 0)', number)
    .option('--no-stop-at-eos', 'count passes until every position is decided')
    .option('--batch-size <n>', 'prompts per native call; the result does not depend on it (default: 256)', integer);
  addJobOptions(
    addOutputOptions(
      command,
      '{ config, results }, with every prompt; of several models or seeds { config, rows, curves, evaluations }',
    ),
  )
    .option('--out <file>', 'also write that JSON to a file')
    .option('-o, --output <folder>', 'write samples.jsonl, config.json and summary.json; goes on with what is there')
    .option('--report <file>', 'write a self-contained HTML page: chart, tables, a step-by-step view')
    .option('--traces <n>', 'keep each step of the first n prompts (default: 8 with --report, else 0)', integer)
    .addHelpText('after', `${SAMPLER_TEXT}\n${CACHE_TEXT}\n${EXAMPLES}`)
    .action(run);
}
