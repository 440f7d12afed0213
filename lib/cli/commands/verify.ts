// dultra verify: whether a checkpoint works here.
import type { Command } from 'commander';
import { systemInfo, type Verification, verifyModel } from '../../index';
import { interruptSignal } from '../errors';
import { addCheckpointOptions, addDeviceOptions, loadOptions, type ModelFlags, reportLoading } from '../model';
import { addOutputOptions, formatBytes, printJson, printLine, printTable } from '../output';
import { given, integer } from '../values';
import { describeForIssue } from './info';

interface VerifyFlags extends ModelFlags {
  maxTokens?: number;
}

/** Names of unused tensors that are shown. */
const NAMED = 5;

/** What was found, as rows of a table. */
function describe({
  source,
  kind,
  family,
  parameters,
  device,
  loadSeconds,
  ...found
}: Verification): [string, string][] {
  const { tensors, text, completions, tokensPerSecond, nfe, weightBytes, peakBytes, problems } = found;
  const { unused } = tensors;
  const rest = unused.length > NAMED ? ` and ${unused.length - NAMED} more` : '';
  const isDiffusion = kind === 'diffusion';
  return [
    ['model', source],
    ['family', `${family} (${isDiffusion ? 'masked diffusion' : kind})`],
    ['parameters', parameters.toLocaleString('en')],
    ['device', device],
    ['loaded in', `${loadSeconds.toFixed(1)} s`],
    [
      'tensors',
      `${tensors.used} used, ${unused.length === 0 ? 'all of the files' : `not used: ${unused.slice(0, NAMED).join(', ')}${rest}`}`,
    ],
    [
      'text',
      `${text.tokens} tokens: ${isDiffusion ? 'bound on the ' : ''}perplexity ${text.perplexity.toPrecision(4)} ` +
        `(${text.nats.toFixed(3)} nats per token; chance ${text.chance.toFixed(3)})`,
    ],
    [
      'generation',
      `${tokensPerSecond.toFixed(1)} tokens/s, ${nfe.toFixed(1)} forward passes per completion of ${completions.length}`,
    ],
    ['held', `weights ${formatBytes(weightBytes)}, process at most ${formatBytes(peakBytes)}`],
    ['problems', problems.length === 0 ? 'none' : problems.join('; ')],
  ];
}

/** Adds `dultra verify` to the program. */
export function register(program: Command): void {
  const command = program
    .command('verify')
    .summary('load a checkpoint and check it: tensors, a text, completions')
    .description(
      'Loads a checkpoint of any family (downloads a hub id), and checks it: whether every tensor of its files is used, ' +
        'how likely a fixed text is to it, and what it writes for three prompts. Prints a block for an issue. ' +
        'Exits with 1 where something is wrong.',
    )
    .argument('<model>', 'checkpoint or run folder, or hub id')
    .option('-n, --max-tokens <n>', 'tokens of each completion (default: 32, or what fits)', integer)
    .option('--planner <folder>', "planner head for a model that has none (default: the checkpoint's own)");
  addDeviceOptions(addCheckpointOptions(command));
  addOutputOptions(command, '{ verification, system }').action(async (source: string, flags: VerifyFlags) => {
    const { maxTokens } = flags;
    const verification = await reportLoading(flags.quiet, (onProgress) =>
      verifyModel(source, {
        ...loadOptions(flags),
        ...given({ maxTokens }),
        signal: interruptSignal,
        onProgress,
      }),
    );
    if (verification.problems.length > 0) process.exitCode = 1;
    const system = systemInfo();
    if (flags.json) {
      printJson({ verification, system });
      return;
    }
    for (const { prompt, text, ids } of verification.completions) {
      printLine(prompt ?? 'ids', { bold: true });
      printLine(text ?? ids.join(' '));
    }
    const rows = describe(verification);
    printTable(rows);
    printLine('\nFor an issue:\n');
    printLine(describeForIssue(system, rows));
  });
}
