// The rotary embedding in config.json. transformers 4 has `rope_theta` and `rope_scaling`; transformers 5 has both in
// `rope_parameters`, there for the whole model or for each type of layer.

import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { badFile, checkFields } from '../../files/json';
import { checkKeyTable, isEmpty, type KeyTable, refuseUnknown } from '../../files/key-table';
import type { NativeRopeScaling } from '../../native';
import { show } from '../../text';

/** Keys of config.json that {@link readRope} reads. */
export const ROPE_KEYS = ['rope_theta', 'rope_scaling', 'rope_parameters'] as const;

/** Of every type. */
const ACCEPTED_PARAMETERS = { attention_factor: [1], partial_rotary_factor: [1] };

const positive = z.number().positive().max(1e9);

/** A type of scaling that is computed here: the keys of its parameters, and what they say. */
interface RopeType {
  keys: KeyTable;
  read(parameters: Record<string, unknown>, file: string): NativeRopeScaling | null;
}

const TYPES = {
  default: {
    keys: {
      read: ['rope_theta', 'rope_type', 'type'],
      accepted: { ...ACCEPTED_PARAMETERS, factor: [1] },
      harmless: ['original_max_position_embeddings'],
    },
    read: () => null,
  },
  linear: {
    keys: {
      read: ['rope_theta', 'rope_type', 'type', 'factor'],
      accepted: ACCEPTED_PARAMETERS,
      harmless: ['original_max_position_embeddings'],
    },
    read(parameters: Record<string, unknown>, file: string) {
      const { factor } = checkFields(z.looseObject({ factor: positive }), parameters, file);
      return factor === 1 ? null : { type: 'linear' as const, factor };
    },
  },
  llama3: {
    keys: {
      read: [
        'rope_theta',
        'rope_type',
        'type',
        'factor',
        'low_freq_factor',
        'high_freq_factor',
        'original_max_position_embeddings',
      ],
      accepted: ACCEPTED_PARAMETERS,
      harmless: [],
    },
    read(parameters: Record<string, unknown>, file: string) {
      const schema = z.looseObject({
        factor: positive,
        low_freq_factor: positive,
        high_freq_factor: positive,
        original_max_position_embeddings: positive,
      });
      const c = checkFields(schema, parameters, file);
      if (c.high_freq_factor <= c.low_freq_factor)
        throw badFile(
          file,
          `high_freq_factor: expected more than low_freq_factor (${c.low_freq_factor}), got ${c.high_freq_factor}`,
        );
      return {
        type: 'llama3' as const,
        factor: c.factor,
        lowFreqFactor: c.low_freq_factor,
        highFreqFactor: c.high_freq_factor,
        originalMaxPositionEmbeddings: c.original_max_position_embeddings,
      };
    },
  },
} satisfies Record<string, RopeType>;

export type RopeTypeName = keyof typeof TYPES;

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Every object with parameters: one that a key holds, or those that it holds for the types of layers. */
function parameterObjects(json: Readonly<Record<string, unknown>>, file: string): [place: string, object: object][] {
  return ROPE_KEYS.slice(1).flatMap((key) => {
    const value = json[key];
    if (isEmpty(value)) return [];
    if (!isObject(value)) throw badFile(file, `${key}: expected an object or null, got ${show(value)}`);
    const groups = Object.entries(value).filter(([name, group]) => /_attention$/.test(name) && isObject(group));
    if (groups.length === 0) return [[key, value]];
    const rest = Object.fromEntries(
      Object.entries(value).filter(([name]) => !groups.some(([other]) => other === name)),
    );
    return [[key, rest], ...groups.map(([name, group]): [string, object] => [`${key}.${name}`, group as object])];
  });
}

/** The rotary embedding of a config.json. */
export interface RopeSettings {
  ropeTheta: number;
  ropeScaling: NativeRopeScaling | null;
}

/** One of the places' settings of one kind, which must not disagree. */
function agreed<T>(found: readonly (readonly [place: string, value: T])[], file: string): T | undefined {
  if (found.length === 0) return undefined;
  const [[place, first]] = found;
  for (const [other, value] of found)
    if (!isDeepStrictEqual(value, first))
      throw badFile(file, `${other}: expected ${show(first)} as in ${place}, got ${show(value)}`);
  return first;
}

/**
 * The base of the rotary embedding and its scaling, which may stand in several places as long as they agree.
 * @param options the base where none is said (10000), and the types of scaling that the family computes (all that are
 *   computed here)
 * @throws DUltraError BAD_CHECKPOINT for places that disagree, for a base out of bounds, and for every other type
 *   (dynamic, yarn, longrope …) and parameter that is not computed here, by its name
 */
export function readRope(
  json: Readonly<Record<string, unknown>>,
  file: string,
  { theta = 10000, types = Object.keys(TYPES) as RopeTypeName[] }: { theta?: number; types?: RopeTypeName[] } = {},
): RopeSettings {
  const thetas: [place: string, theta: number][] = [];
  const scalings: [place: string, scaling: NativeRopeScaling | null][] = [];
  const note = (place: string, theta: unknown) => {
    if (theta === undefined || theta === null) return;
    if (typeof theta !== 'number' || !(theta >= 1e-6 && theta <= 1e12))
      throw badFile(file, `${place}: expected a number from 1e-6 to 1e12, got ${show(theta)}`);
    thetas.push([place, theta]);
  };
  note('rope_theta', json.rope_theta);
  for (const [name, object] of parameterObjects(json, file)) {
    const parameters = object as Record<string, unknown>;
    const where = `${file}: ${name}`;
    const named = { read: Object.keys(parameters), accepted: { rope_type: types, type: types }, harmless: [] };
    checkKeyTable(parameters, file, named, `${name}.`);
    const type = agreed(
      ['rope_type', 'type'].flatMap((key) =>
        isEmpty(parameters[key]) ? [] : [[`${name}.${key}`, parameters[key] as RopeTypeName] as const],
      ),
      file,
    );
    const { keys, read }: RopeType = TYPES[type ?? 'default'];
    refuseUnknown(parameters, file, checkKeyTable(parameters, file, keys, `${name}.`), `${name}.`);
    note(`${name}.rope_theta`, parameters.rope_theta);
    if (!isEmpty(parameters)) scalings.push([name, read(parameters, where)]);
  }
  return { ropeTheta: agreed(thetas, file) ?? theta, ropeScaling: agreed(scalings, file) ?? null };
}
