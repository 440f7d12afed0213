// dultra train init: a commented configuration file to begin with.
import { existsSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Command } from 'commander';
import { training } from '../../index';
import { UsageError } from '../errors';
import { printData } from '../output';

/** Where an editor finds a stage's schema, seen from a folder: in the project's own package if it is there. */
function schemaFrom(folder: string, stage: training.Stage): string {
  const file = training.configSchemaFile(stage);
  const own = path.join('node_modules', 'dultra', 'schemas', path.basename(file));
  const relative = existsSync(path.join(folder, own)) ? own : path.relative(folder, file);
  if (path.isAbsolute(relative)) return pathToFileURL(relative).href;
  return `${relative.startsWith('..') ? '' : './'}${relative.split(path.sep).join('/')}`;
}

function init(stageName: string, file: string | undefined): void {
  const stages: readonly string[] = training.STAGES;
  if (!stages.includes(stageName))
    throw new UsageError(`expected a stage (${stages.join(', ')}), got ${JSON.stringify(stageName)}`);
  const stage = stageName as training.Stage;
  const name = file ?? `${stage}.yaml`;
  if (!/\.ya?ml$/i.test(name))
    throw new UsageError(`expected a file such as ${stage}.yaml, got ${JSON.stringify(name)}`);
  const folder = path.dirname(path.resolve(name));
  if (!existsSync(folder)) throw new UsageError(`${name}: ${folder} is no folder`);
  try {
    writeFileSync(name, training.configTemplate(stage, schemaFrom(folder, stage), path.basename(name)), { flag: 'wx' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST')
      throw new UsageError(`${name} is there already and is left as it is; give another name`);
    throw error;
  }
  printData(name);
}

/** Adds `dultra train init` to `dultra train`. */
export function register(train: Command): void {
  train
    .command('init')
    .summary('write a commented configuration file')
    .description(
      'Writes a commented YAML file with every option of a stage, which runs as it is, and prints its name. ' +
        'Editors that know YAML schemas complete and check it.',
    )
    .argument('<stage>', 'sft, dparallel, d3llm, planner or grpo')
    .argument('[file]', 'file to write; one that is there is left as it is (default: STAGE.yaml)')
    .action(init);
}
