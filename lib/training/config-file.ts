// What describes a configuration file from outside: its JSON Schema, and a commented file to begin with.
import { stringify } from 'yaml';
import { packageFile } from '../package';
import { configKeys, defaultOf, type JsonSchema, keyOf } from './config-keys';
import type { Stage, TrainConfig } from './presets';

/** The JSON Schema (draft 7) of a stage's configuration files. */
export function configSchema(stage: Stage): JsonSchema {
  const properties = configKeys(stage).map((key) => {
    const { description, schema } = keyOf(key, stage);
    const value = defaultOf(key, stage);
    return [key, { description, ...schema, ...(value !== undefined && { default: value }) }];
  });
  return {
    $schema: 'http://json-schema.org/draft-07/schema#',
    title: `Configuration of dultra train ${stage}`,
    type: 'object',
    properties: { $schema: { type: 'string' }, ...Object.fromEntries(properties) },
    additionalProperties: false,
  };
}

/** The file of {@link configSchema} in this package. */
export const configSchemaFile = (stage: Stage): string => packageFile('schemas', `train-${stage}.json`);

/** What a new configuration file sets: a run of a minute or two on the word problems "st1". */
const BEGINNINGS: Readonly<Record<Stage, TrainConfig>> = {
  sft: {
    model: { create: { dModel: 64, nHeads: 4, nLayers: 3, maxSequenceLength: 64 } },
    dataset: 'st1',
    maxSteps: 500,
    batchSize: 64,
    learningRate: 3e-3,
    evalEvery: 100,
    evalSampler: 'confidence:0.9',
  },
  dparallel: {
    dataset: 'st1',
    maxSteps: 100,
    batchSize: 32,
    blockLength: 8,
    learningRate: 3e-4,
    evalEvery: 50,
    evalSampler: 'entropy:0.45',
  },
  d3llm: {
    dataset: 'st1',
    maxSteps: 100,
    batchSize: 32,
    windows: [8, 12, 16],
    learningRate: 3e-4,
    evalEvery: 50,
    evalSampler: 'entropy:0.45',
  },
  planner: { dataset: 'st1', maxSteps: 100, batchSize: 64, learningRate: 1e-3, minSpan: 24, evalEvery: 50 },
  grpo: {
    dataset: 'st1',
    maxSteps: 50,
    promptsPerStep: 8,
    numGenerations: 8,
    rewards: { fast: { type: 'fastAnswer', weight: 1, options: { weight: 2 } } },
    learningRate: 1e-4,
    plannerLearningRate: 3e-4,
    evalEvery: 10,
  },
};

/** A value on the line of its key. */
const inLine = (value: unknown): string => stringify(value, { collectionStyle: 'flow', lineWidth: 0 }).trimEnd();

/**
 * A commented YAML file of a stage that runs as it is, with every key. @param schema where its editor finds the schema
 * @param name of the file, for the command line in it
 */
export function configTemplate(stage: Stage, schema: string, name: string): string {
  const set = BEGINNINGS[stage] as Readonly<Record<string, unknown>>;
  const lines = configKeys(stage).flatMap((key) => {
    const { description, example } = keyOf(key, stage);
    const isSet = Object.hasOwn(set, key);
    const value = isSet ? set[key] : (defaultOf(key, stage) ?? example ?? null);
    return ['', `# ${description}`, `${isSet ? '' : '#'}${key}: ${inLine(value)}`];
  });
  return [
    `# yaml-language-server: $schema=${schema}`,
    `# ${name}: dultra train ${stage} --config ${name}`,
    '# Keys behind a "#" are not set: what stands there is the default, or an example.',
    ...lines,
    '',
  ].join('\n');
}
