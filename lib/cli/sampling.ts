// The options of generation: sampler, lengths, randomness.
import { type Command, Option } from 'commander';
import { type GenerateOptions, type PlannerSampler, parseCache, parseSampler } from '../index';
import { UsageError } from './errors';
import { integer, number, seed } from './values';

/** Flags of {@link addSamplingOptions}. */
export interface SamplingFlags {
  sampler?: string;
  cache?: string;
  select?: PlannerSampler['select'];
  probabilityScale?: number;
  plannerTemperature?: number;
  genLength?: number;
  blockLength?: number;
  temperature?: number;
  seed?: bigint;
  stopAtEos?: boolean;
  compat?: 'reference';
}

/** How samplers are written on the command line. */
export const SAMPLER_HELP = `
Samplers, which choose the positions that a forward pass decides:
  planner[:1]             the checkpoint's unmasking planner (default where there is one), its probabilities times a number; planner:bernoulli
                          is --select bernoulli
  planner-round[:1]       the planner, with the expected number of positions rounded instead of cut off
  planner-cut[:0.5]       the planner, every position with a probability above 0.5
  confidence[:0.9]        positions with a probability of at least 0.9 (default without a planner)
  factor[:1]              Fast-dLLM's factor rule
  entropy[:0.45]          positions with an entropy below 0.45 nats
  entropy-sum[:0.1]       as many positions by rising entropy as keep their sum, without the largest, at 0.1 nats
  geometric[:0.5]         half of what is left in each pass, the most confident first; geometric:0.5:order=random or left_to_right
  fixed[:16]              16 forward passes in all, the most confident positions first; without a number one token per pass
  random[:16]             as fixed, positions in random order
  d3llm[:0.45]            several blocks in flight, positions with an entropy of at most 0.45 nats; d3llm:0.45:blockAddThreshold=0.1:decodedTokenThreshold=0.95`;

/** How caches are written on the command line. */
export const CACHE_HELP = `
Caches of keys and values between passes, faster and but for none an approximation:
  none                    every pass computes the whole row (default)
  prefix                  a whole pass as a block begins, then everything from the block on (Fast-dLLM)
  dual                    a whole pass as a block begins, then the block alone (Fast-dLLM)
  refresh[:4]             what is masked in the block and what has changed; everything in every 4th pass, or refresh:changed=0.2 when a
                          fifth of the row has changed
  delayed[:1]             finished blocks are cached, 1 pass after (d3LLM); delayed:1:every=3 recomputes everything in every 3rd pass
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
      '-n, --gen-length <n>',
      "tokens to generate (default: the checkpoint's, else 128 or half of the model's maximum)",
      integer,
    )
    .option(
      '-b, --block-length <n>',
      'tokens per block, blocks go left to right (default: 32, or all where 32 does not divide)',
      integer,
    )
    .option('-t, --temperature <x>', 'token temperature, 0 takes the most probable token (default: 0)', number)
    .option('--seed <n>', 'seed of every random choice (default: 0)', seed)
    .option('--stop-at-eos', 'stop where all before an end-of-sequence token is decided (default but for templates)')
    .option('--no-stop-at-eos', 'decide every position')
    .addOption(
      new Option('--compat <mode>', "the reference implementation's exact behaviour, quirks included").choices([
        'reference',
      ]),
    );
}

/** The flags as options of `generate`: only what was given, so that the API's defaults hold. */
export function generateOptions(flags: SamplingFlags): GenerateOptions {
  const { select, probabilityScale, plannerTemperature, genLength, blockLength, temperature, stopAtEos, compat } =
    flags;
  const planner = Object.entries({ select, probabilityScale, plannerTemperature }).filter(
    ([, value]) => value !== undefined,
  );
  let chosen = flags.sampler === undefined ? undefined : parseSampler(flags.sampler);
  if (planner.length > 0) {
    if (chosen && chosen.type !== 'planner')
      throw new UsageError(
        `--select, --probability-scale and --planner-temperature are the planner's; --sampler is ${chosen.type}`,
      );
    chosen = { type: 'planner', ...chosen, ...Object.fromEntries(planner) };
  }
  const cache = flags.cache === undefined ? undefined : parseCache(flags.cache);
  const given = Object.entries({
    sampler: chosen,
    cache,
    genLength,
    blockLength,
    temperature,
    seed: flags.seed,
    stopAtEos,
    compat,
  });
  return Object.fromEntries(given.filter(([, value]) => value !== undefined));
}
