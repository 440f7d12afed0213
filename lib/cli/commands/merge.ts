// dultra merge: an adapter becomes part of its model's weights.
import { readdir } from 'node:fs/promises';
import type { Command } from 'commander';
import { UsageError } from '../errors';
import { addCheckpointOptions, addDeviceOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, printData, printJson } from '../output';

/** Refuses a folder that holds something: files of another model would mix with the new ones. */
async function checkEmpty(folder: string): Promise<void> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw new UsageError(`OUT: expected a new folder: ${error.message}`);
  });
  if (names.length > 0) throw new UsageError(`OUT: expected a new or empty folder, got ${folder}, which is not`);
}

async function merge(source: string, adapter: string, out: string, flags: ModelFlags): Promise<void> {
  await checkEmpty(out);
  await using model = await openModel({ ...flags, model: source, adapter });
  // As exact as the base is stored, or held.
  const held = flags.dtype === undefined || flags.dtype === 'auto' ? model.storedDtype : flags.dtype;
  const dtype = held === 'bfloat16' || held === 'float16' ? held : 'float32';
  await model.save(out, { dtype });
  if (flags.json) printJson({ model: model.source, adapter, folder: out, dtype });
  else printData(out);
}

/** Adds `dultra merge` to the program. */
export function register(program: Command): void {
  const command = program
    .command('merge')
    .summary("merge an adapter into its model's weights")
    .description(
      "Merges a low-rank adapter into its model's weights, writes the model into a folder and prints the folder. The " +
        'weights are stored as those of the model are, or as --dtype says.',
    )
    .argument('<model>', 'the base model: checkpoint folder, run folder or hub id')
    .argument('<adapter>', 'adapter folder, in the layout of PEFT')
    .argument('<out>', 'new folder of the merged model');
  addDeviceOptions(addCheckpointOptions(command.optionsGroup('Model:')));
  addOutputOptions(command, '{ model, adapter, folder, dtype }').action(merge);
}
