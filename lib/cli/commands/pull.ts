// dultra pull: downloads a model of the hub into the cache.
import type { Command } from 'commander';
import { downloadModel } from '../../index';
import { interruptSignal } from '../errors';
import { reportLoading } from '../model';
import { addOutputOptions, type OutputFlags, printData, printJson } from '../output';
import { given } from '../values';

interface PullFlags extends OutputFlags {
  revision?: string;
}

/** Adds `dultra pull` to the program. */
export function register(program: Command): void {
  const command = program
    .command('pull')
    .summary('download a model of the hub into the cache')
    .description(
      'Downloads a model of the hub into the cache, or what is missing of it, and prints its folder. An interrupted ' +
        'download goes on where it stopped. A model that dultra does not run is refused before its weights.',
    )
    .argument('<id>', 'hub id such as GSAI-ML/LLaDA-8B-Instruct, or org/name@revision')
    .option('--revision <name>', 'branch, tag or commit (default: main)');
  addOutputOptions(command, '{ id, folder }').action(async (id: string, { revision, quiet, json }: PullFlags) => {
    const folder = await reportLoading(quiet, (report) =>
      downloadModel(id, {
        ...given({ revision }),
        signal: interruptSignal,
        onProgress:
          report &&
          (({ file, received, total }) =>
            report({ stage: 'download', file, loadedBytes: received, totalBytes: total })),
      }),
    );
    if (json) printJson({ id, folder });
    else printData(folder);
  });
}
