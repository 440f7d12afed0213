// dultra models: what the cache of the hub holds, and deleting it.
import type { Command } from 'commander';
import { type CachedModel, deleteCachedModel, listCachedModels } from '../../index';
import { UsageError } from '../errors';
import { addOutputOptions, formatBytes, type OutputFlags, printColumns, printJson, printMessage } from '../output';

interface ModelsFlags extends OutputFlags {
  delete?: string;
  yes?: boolean;
}

const HEAD = ['model', 'revision', 'commit', 'state', 'size'];

/** A row for every revision; one for a model of which only parts have arrived. */
function rowsOf({ id, revisions, bytes }: CachedModel): string[][] {
  if (revisions.length === 0) return [[id, '', '', 'incomplete', formatBytes(bytes)]];
  return revisions.map(({ commit, refs, isComplete, bytes: size }) => [
    id,
    refs.join(', '),
    commit.slice(0, 8),
    isComplete ? 'complete' : 'incomplete',
    formatBytes(size),
  ]);
}

async function list({ json, quiet }: ModelsFlags): Promise<void> {
  const models = await listCachedModels();
  if (json) {
    printJson({ models });
    return;
  }
  if (models.length > 0) printColumns(HEAD, models.flatMap(rowsOf), 4);
  if (quiet) return;
  const total = formatBytes(models.reduce((sum, { bytes }) => sum + bytes, 0));
  printMessage(`${models.length} model${models.length === 1 ? '' : 's'} in the cache, ${total}`);
}

async function remove(source: string, { yes, json, quiet }: ModelsFlags): Promise<void> {
  const bytes = await deleteCachedModel(source, { dryRun: !yes });
  if (!yes) throw new UsageError(`deleting ${source} would free ${formatBytes(bytes)}: --yes deletes it`);
  if (json) printJson({ deleted: source, bytes });
  else if (!quiet) printMessage(`deleted ${source}: ${formatBytes(bytes)} are free`);
}

/** Adds `dultra models` to the program. */
export function register(program: Command): void {
  const command = program
    .command('models')
    .summary('list the models in the cache of the hub, or delete one')
    .description('Lists the models in the cache of the hub, also those that other programs have downloaded.')
    .option('--delete <id>', 'delete a model, or with org/name@revision one revision and what only it has; needs --yes')
    .option('-y, --yes', 'delete without asking again');
  addOutputOptions(command, '{ models }, or { deleted, bytes }').action(async (flags: ModelsFlags) => {
    if (flags.delete !== undefined) await remove(flags.delete, flags);
    else if (flags.yes) throw new UsageError('--yes: expected together with --delete');
    else await list(flags);
  });
}
