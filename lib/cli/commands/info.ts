// dultra info: the version, the machine's processor and devices, and the configuration of a checkpoint.
import os from 'node:os';
import type { Command } from 'commander';
import { type MaskedDiffusionModel, type SystemInfo, systemInfo, weightMemory } from '../../index';
import { UsageError } from '../errors';
import { addAdapterOption, addCheckpointOptions, addDeviceOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, formatBytes, printJson, printLine, printTable } from '../output';

type Experts = MaskedDiffusionModel['config']['experts'];

interface InfoFlags extends ModelFlags {
  report?: boolean;
}

function describeSystem(system: SystemInfo): [string, string][] {
  const { version, node, platform, cpu, threads, cpuIsas, gpus, gpuReason } = system;
  const { mpi, mpiReason, nccl, ncclReason } = system;
  return [
    ['dultra', version],
    ['node', node],
    ['platform', platform],
    ['cpu', cpu],
    ['threads', String(threads)],
    ['isa', `${cpuIsas.at(-1)} (of ${cpuIsas.join(', ')})`],
    [
      'gpu',
      gpus.length > 0
        ? gpus.map((gpu, index) => `cuda:${index}: ${gpu}`).join('; ')
        : `none: ${gpuReason}; every model runs on the CPU`,
    ],
    ['mpi', mpi ? `${mpi.version} (${mpi.file})` : `none: ${mpiReason}; needed for several processes alone`],
    ['nccl', nccl ? `NCCL ${nccl.version} (${nccl.file})` : `none: ${ncclReason}; needed for several GPUs alone`],
  ];
}

/**
 * A block of Markdown for an issue: describes the machine, without paths, which could name a user.
 * @param more further rows
 */
export function describeForIssue(system: SystemInfo, more: readonly [string, string][] = []): string {
  const rows: [string, string][] = [
    ...describeSystem(system),
    ['system', `${os.type()} ${os.release()}`],
    ['memory', formatBytes(os.totalmem())],
    ...more,
  ];
  const withoutPaths = (value: string) => value.replace(/(^|[\s"'(=])(~?\/|[A-Za-z]:[\\/])[^\s"':;,)]+/g, '$1<path>');
  return ['```text', ...rows.map(([name, value]) => `${name}: ${withoutPaths(value)}`), '```'].join('\n');
}

/** What is in the layers that have experts. */
function describeExperts({ count, perToken, hiddenSize, sharedHiddenSize, layers }: NonNullable<Experts>): string {
  const shared = sharedHiddenSize > 0 ? `, a shared one of ${sharedHiddenSize}` : '';
  return `${perToken} of ${count} for each token in ${layers.filter(Boolean).length} layers, of width ${hiddenSize}${shared}`;
}

/** Whether weights are held otherwise than stored. */
const isHeld = (dtype: string | undefined) => dtype !== undefined && dtype !== 'auto';

function describeModel(model: MaskedDiffusionModel, dtype: string | undefined): [string, string][] {
  const { config: c, info, source, tokenizer } = model;
  const heads = c.nKvHeads === c.nHeads ? `${c.nHeads} heads` : `${c.nHeads} heads on ${c.nKvHeads} key/value heads`;
  const { planner } = c;
  const ends = c.eosTokenIds.map((id) => ['eos', id] as const);
  const special = [...ends, ['mask', c.maskTokenId] as const];
  return [
    ['source', source],
    ['device', `${info.device}, ${info.isa}, ${info.threads} thread${info.threads === 1 ? '' : 's'}`],
    [
      'parameters',
      `${info.parameters.toLocaleString('en')}, ` +
        (info.activeParameters < info.parameters ? `${info.activeParameters.toLocaleString('en')} active, ` : '') +
        `of which the planner has ${info.plannerParameters.toLocaleString('en')}`,
    ],
    [
      'weights',
      `${formatBytes(info.weightBytes)}, stored as ${model.storedDtype}${isHeld(dtype) ? `, held as ${dtype}` : ''}`,
    ],
    [
      'weights held as',
      Object.entries(weightMemory(c))
        .map(([form, bytes]) => `${form} ${formatBytes(bytes)}`)
        .join(', '),
    ],
    ['transformer', `${c.nLayers} layers of width ${c.dModel}, ${heads}, feed-forward ${c.mlpHiddenSize}`],
    ...(c.experts ? [['experts', describeExperts(c.experts)] as [string, string]] : []),
    ['longest row', `${c.maxSequenceLength} tokens`],
    ['cache', `${formatBytes(model.cacheBytes(c.maxSequenceLength))} of keys and values for a row of that length`],
    [
      'vocabulary',
      `${c.vocabSize} ids in tables of ${c.embeddingSize}; ${special.map(([name, id]) => `${name} ${id}`).join(', ')}`,
    ],
    [
      'planner',
      planner === null
        ? 'none: use the samplers confidence, factor, entropy, fixed or random'
        : `${planner.numLayers} layer${planner.numLayers === 1 ? '' : 's'}${planner.useAdaln ? ', AdaLN' : ''}`,
    ],
    [
      'tokenizer',
      tokenizer === null
        ? 'none: prompts are token ids (--prompt-ids 5,17,3)'
        : `${tokenizer.size} ids, ${tokenizer.hasChatTemplate ? 'with' : 'no'} chat template` +
          `${tokenizer.maskToken ? `, mask token ${tokenizer.maskToken}` : ''}`,
    ],
  ];
}

/** Adds `dultra info` to the program. */
export function register(program: Command): void {
  const command = program
    .command('info')
    .summary('version, processor and devices; with a model, its configuration')
    .description(
      'Shows the version, the processor and the devices. With a model, loads it and shows its configuration.',
    )
    .argument('[model]', 'checkpoint or run folder, or hub id');
  command.option('--report', 'print a block for an issue: versions, system, processor and devices; no paths, no names');
  addDeviceOptions(addCheckpointOptions(addAdapterOption(command)));
  addOutputOptions(command, '{ system, model }').action(async (source: string | undefined, flags: InfoFlags) => {
    const system = systemInfo();
    if (flags.report) {
      if (source !== undefined) throw new UsageError('--report describes the machine: leave the model out');
      printLine(describeForIssue(system));
      return;
    }
    if (source === undefined) {
      if (flags.json) printJson({ system, model: null });
      else printTable(describeSystem(system));
      return;
    }
    await using model = await openModel({ ...flags, model: source });
    const { config, info, tokenizer } = model;
    if (flags.json) {
      const words = tokenizer && {
        size: tokenizer.size,
        maskToken: tokenizer.maskToken,
        hasChatTemplate: tokenizer.hasChatTemplate,
      };
      printJson({
        system,
        model: { source: model.source, storedDtype: model.storedDtype, ...info, config, tokenizer: words },
      });
      return;
    }
    printTable(describeSystem(system));
    printLine('');
    printTable(describeModel(model, flags.dtype));
  });
}
