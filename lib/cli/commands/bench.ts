// dultra bench: how fast a model generates on this machine.
import type { Command } from 'commander';
import {
  type GenerateOptions,
  type GenerateResult,
  type MaskedDiffusionModel,
  type Prompt,
  systemInfo,
} from '../../index';
import { interruptSignal, UsageError } from '../errors';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, formatBytes, type OutputFlags, printJson, printTable } from '../output';
import { StatusLine } from '../progress';
import { addSamplingOptions, CACHE_TEXT, generateOptions, SAMPLER_TEXT, type SamplingFlags } from '../sampling';
import { integer } from '../values';

interface Flags extends ModelFlags, SamplingFlags, OutputFlags {
  chat?: boolean;
  promptTokens?: number;
  runs: number;
}

const EXAMPLES = `
Tokens per second depend on the prompt where the sampler does: random ids, the
default, are no text, and the passes that they take say little. Give a prompt of
your own for them; milliseconds per pass depend on lengths alone.

Examples:
  dultra bench -m ./checkpoint --chat "Why is the sky blue?" -n 256
  dultra bench -m ./checkpoint --cache dual -s confidence:0.9 --prompt-tokens 512
  dultra bench --json`;

/** Length of the prompt where nothing says another. */
const PROMPT_TOKENS = 64;

/** Median and extremes of a figure. */
interface Spread {
  median: number;
  min: number;
  max: number;
}

function spreadOf(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const median = sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  return { median, min: sorted[0], max: sorted[sorted.length - 1] };
}

/** What the embedded model is for: random ids are nothing to it. */
const EMBEDDED_PROMPT = 'Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.';

/** Ids that are no special tokens, the same for each model of a vocabulary. */
function randomIds({ config }: MaskedDiffusionModel, count: number): number[] {
  const special = new Set([config.maskTokenId, ...config.eosTokenIds]);
  let state = 1;
  return Array.from({ length: count }, () => {
    for (;;) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const id = Math.floor((state / 2 ** 32) * config.vocabSize);
      if (!special.has(id)) return id;
    }
  });
}

/** The sampler that a model decodes with where none is given. */
const defaultSampler = ({ generationDefaults, hasPlanner }: MaskedDiffusionModel): string =>
  generationDefaults.sampler?.type ?? (hasPlanner ? 'planner' : 'confidence');

/** A number of three significant digits, or all digits before the point. */
const digits = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));

const describe = ({ median, min, max }: Spread): string => `${digits(median)} (${digits(min)} to ${digits(max)})`;

/** Generates several times, after once to warm up. */
async function measure(
  model: MaskedDiffusionModel,
  prompt: Prompt,
  options: GenerateOptions,
  { runs, quiet }: Flags,
): Promise<GenerateResult[]> {
  const status = new StatusLine(process.stderr);
  const results: GenerateResult[] = [];
  try {
    for (let run = 0; run <= runs; run++) {
      if (!quiet) status.update(run === 0 ? 'warming up' : `run ${run} of ${runs}`);
      const result = await model.generate(prompt, options);
      if (run > 0) results.push(result);
    }
  } finally {
    status.clear();
  }
  return results;
}

async function bench(text: string | undefined, flags: Flags): Promise<void> {
  const { runs, chat } = flags;
  if (runs < 1) throw new UsageError(`--runs: expected at least 1, got ${runs}`);
  if (flags.promptTokens !== undefined && flags.promptTokens < 1)
    throw new UsageError(`--prompt-tokens: expected at least 1, got ${flags.promptTokens}`);
  if (flags.promptTokens !== undefined && text !== undefined)
    throw new UsageError('--prompt-tokens: expected without a prompt, which has tokens of its own');
  if (chat && text === undefined) throw new UsageError('--chat: expected a prompt beside it');
  const givenOptions = generateOptions(flags);
  // Whole rows: what is measured does not depend on where a text ends.
  const options: GenerateOptions = {
    ...givenOptions,
    stopAtEos: givenOptions.stopAtEos ?? false,
    seed: givenOptions.seed ?? 0,
    signal: interruptSignal,
  };
  await using model = await openModel(flags);
  const { promptTokens = Math.min(PROMPT_TOKENS, model.config.maxSequenceLength >> 2) } = flags;
  const isEmbedded = flags.model === undefined && flags.promptTokens === undefined;
  const written = text ?? (isEmbedded ? EMBEDDED_PROMPT : undefined);
  const prompt: Prompt =
    written === undefined
      ? { promptIds: randomIds(model, promptTokens) }
      : chat
        ? [{ role: 'user', content: written }]
        : written;
  const results = await measure(model, prompt, options, flags);
  const [first] = results;
  // All positions that were decided: ends of sequence are computed like any other.
  const tokens = givenOptions.stopAtEos ? first.tokens : first.ids.length;
  const tokensPerSecond = spreadOf(results.map((result) => tokens / result.seconds));
  const msPerPass = spreadOf(results.map(({ seconds, nfe }) => (1000 * seconds) / nfe));
  const seconds = spreadOf(results.map((result) => result.seconds));
  const system = systemInfo();
  const { info } = model;
  const { signal: _, ...shown } = options;
  if (flags.json) {
    printJson({
      system,
      model: { source: model.source, ...info },
      options: shown,
      promptTokens: first.usage.promptTokens,
      tokens,
      passes: first.nfe,
      fullForwards: first.fullForwards,
      runs,
      tokensPerSecond,
      msPerPass,
      seconds,
    });
    return;
  }
  const gpu = /^cuda:(\d+)$/.exec(info.device);
  const where = gpu ? system.gpus[Number(gpu[1])] : `${system.cpu}, ${info.isa}, ${info.threads} threads`;
  const weighted = first.fullForwards < first.nfe ? `, worth ${first.fullForwards.toFixed(2)} full ones` : '';
  printTable([
    ['machine', `${where}; dultra ${system.version}, Node.js ${system.node}, ${system.platform}`],
    ['model', `${model.source}, ${info.parameters.toLocaleString('en')} parameters, ${formatBytes(info.weightBytes)}`],
    ['sampler', flags.sampler ?? `${defaultSampler(model)} (default)`],
    ['cache', flags.cache ?? `${model.config.mask === 'block-causal' ? 'blocks' : 'none'} (default)`],
    [
      'row',
      `${first.usage.promptTokens} tokens of ${written === undefined ? 'random ids' : 'a prompt'}, then ${tokens} generated`,
    ],
    ['passes', `${first.nfe} (${(tokens / first.nfe).toFixed(2)} tokens per pass)${weighted}`],
    ['tokens/s', `${describe(tokensPerSecond)}`],
    ['ms per pass', describe(msPerPass)],
    [
      'seconds',
      `${describe(seconds)}; median (least to most) of ${runs} run${runs === 1 ? '' : 's'} after one to warm up`,
    ],
  ]);
}

/** Adds `dultra bench` to the program. */
export function register(program: Command): void {
  const command = program
    .command('bench')
    .summary('measure how fast a model generates on this machine')
    .description('Generates several times and prints tokens per second and milliseconds per forward pass.')
    .argument('[prompt]', 'text to continue (default: random ids; for the embedded model a question of its kind)')
    .optionsGroup('Measurement:')
    .option('--runs <n>', 'measured runs; one before them warms up', integer, 5)
    .option(
      '--prompt-tokens <n>',
      `length of the prompt of random ids (default: ${PROMPT_TOKENS}, or a quarter of the model's maximum)`,
      integer,
    )
    .option('--chat', "put the prompt into the checkpoint's chat template, as the user's message");
  addModelOptions(command);
  addSamplingOptions(command);
  addOutputOptions(command, '{ system, model, options, tokensPerSecond, msPerPass, … }')
    .addHelpText('after', `${EXAMPLES}\n${SAMPLER_TEXT}\n${CACHE_TEXT}`)
    .action(bench);
}
