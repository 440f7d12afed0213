// Options of generation: sampler, lengths, randomness.
import { type Command, Option } from 'commander';
import {
  CACHE_HELP,
  type GenerateOptions,
  type PlannerSampler,
  parseCache,
  parseSampler,
  SAMPLER_HELP,
} from '../index';
import { UsageError } from './errors';
import { HELP_COLUMNS } from './help';
import { besideName } from './output';
import { given, integer, number, seed } from './values';

/** Flags of {@link addSamplingOptions}. */
export interface SamplingFlags {
  sampler?: string;
  cache?: string;
  select?: PlannerSampler['select'];
  probabilityScale?: number;
  plannerTemperature?: number;
  maxTokens?: number;
  blockLength?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  seed?: bigint;
  stopAtEos?: boolean;
  stop?: string[];
  compat?: 'reference';
}

/** Lines of help: a form, and what it does beside it. */
function describe(entries: readonly (readonly [form: string, text: string])[]): string {
  const width = Math.max(...entries.map(([form]) => form.length));
  return entries
    .flatMap(([form, text]) => besideName(form, [text], width, HELP_COLUMNS - 2))
    .map((line) => `  ${line}`)
    .join('\n');
}

/** How samplers are written on the command line. */
export const SAMPLER_TEXT = `
Samplers, which choose the positions that a forward pass decides:
${describe(SAMPLER_HELP)}`;

/** How caches are written on the command line. */
export const CACHE_TEXT = `
Caches of keys and values between passes, faster and but for none an approximation:
${describe(CACHE_HELP)}
  each takes dtype=bfloat16, and planner=fresh or cached`;

/** Adds --sampler and its kin. */
export function addSamplingOptions(command: Command): Command {
  return command
    .optionsGroup('Sampling:')
    .option('-s, --sampler <name[:value]>', 'planner, confidence:0.9, entropy-sum:0.1, fixed:16 …, see below')
    .option('--cache <name[:value]>', 'none, prefix, dual, refresh:4, delayed:1 …, see below (default: none)')
    .addOption(
      new Option(
        '--select <rule>',
        'planner: which positions (default: topk, the expected number of the most probable)',
      ).choices(['topk', 'round', 'threshold', 'bernoulli']),
    )
    .option(
      '--probability-scale <x>',
      'planner: multiplies the unmasking probabilities, above 1 is faster (default: 1)',
      number,
    )
    .option('--planner-temperature <x>', "planner: divides the planner's logits (default: 1)", number)
    .option(
      '-n, --max-tokens <n>',
      "tokens to generate (default: the checkpoint's, else 128 or half of the model's maximum)",
      integer,
    )
    .option(
      '-b, --block-length <n>',
      'tokens per block, blocks go left to right (default: 32, or all where 32 does not divide)',
      integer,
    )
    .option('-t, --temperature <x>', 'token temperature, 0 takes the most probable token (default: 0)', number)
    .option('--top-k <n>', 'draw tokens among the n most probable ones (default: all)', integer)
    .option(
      '--top-p <x>',
      'draw tokens among the most probable ones that together have more than this probability (default: 1, all)',
      number,
    )
    .option('--seed <n>', 'seed of every random choice (default: another each time with a temperature, else 0)', seed)
    .option('--stop-at-eos', 'stop where all before an end-of-sequence token is decided (default but for templates)')
    .option('--no-stop-at-eos', 'decide every position')
    .option(
      '--stop <text>',
      'end the text before the first of these; may be given several times',
      (text: string, before: string[] = []) => [...before, text],
    )
    .addOption(
      new Option('--compat <mode>', "the reference implementation's exact behaviour, quirks included").choices([
        'reference',
      ]),
    );
}

/** The flags as options of `generate`: only what was given, so that the API's defaults hold. */
export function generateOptions(flags: SamplingFlags): GenerateOptions {
  const { select, probabilityScale, plannerTemperature, maxTokens, blockLength, temperature } = flags;
  const { topK, topP, stopAtEos, stop, compat } = flags;
  const planner = given({ select, probabilityScale, plannerTemperature });
  let chosen = flags.sampler === undefined ? undefined : parseSampler(flags.sampler);
  if (Object.keys(planner).length > 0) {
    if (chosen && chosen.type !== 'planner')
      throw new UsageError(
        `--select, --probability-scale and --planner-temperature are the planner's; --sampler is ${chosen.type}`,
      );
    chosen = { type: 'planner', ...chosen, ...planner };
  }
  const cache = flags.cache === undefined ? undefined : parseCache(flags.cache);
  const { seed } = flags;
  const research = compat && { compat };
  return given({
    sampler: chosen,
    cache,
    maxTokens,
    blockLength,
    temperature,
    topK,
    topP,
    seed,
    stopAtEos,
    stop,
    research,
  });
}
