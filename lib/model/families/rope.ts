// The rotary embedding in config.json. transformers 4 has `rope_theta` and `rope_scaling`; transformers 5 has both in
// `rope_parameters`, there for the whole model or for each type of layer.

import { badFile } from '../../files/json';
import { checkKeyTable, isEmpty, type KeyTable, refuseUnknown } from '../../files/key-table';
import { show } from '../../text';

/** Keys of config.json that {@link readRopeTheta} reads. */
export const ROPE_KEYS = ['rope_theta', 'rope_scaling', 'rope_parameters'] as const;

/** The only type that is computed here has no parameters of its own. */
const TABLE: KeyTable = {
  read: ['rope_theta'],
  accepted: {
    rope_type: ['default'],
    type: ['default'],
    factor: [1],
    attention_factor: [1],
    partial_rotary_factor: [1],
  },
  harmless: ['original_max_position_embeddings'],
};

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

/**
 * The base of the rotary embedding, which may stand in several places as long as they agree.
 * @throws DUltraError BAD_CHECKPOINT for places that disagree, for a base out of bounds, and for every type of scaling
 *   (linear, dynamic, llama3, yarn, longrope …) and parameter that is not computed here, by its name
 */
export function readRopeTheta(json: Readonly<Record<string, unknown>>, file: string, byDefault: number): number {
  const found: [place: string, theta: number][] = [];
  const note = (place: string, theta: unknown) => {
    if (theta === undefined || theta === null) return;
    if (typeof theta !== 'number' || !(theta >= 1e-6 && theta <= 1e12))
      throw badFile(file, `${place}: expected a number from 1e-6 to 1e12, got ${show(theta)}`);
    found.push([place, theta]);
  };
  note('rope_theta', json.rope_theta);
  for (const [name, object] of parameterObjects(json, file)) {
    const parameters = object as Record<string, unknown>;
    refuseUnknown(parameters, file, checkKeyTable(parameters, file, TABLE, `${name}.`), `${name}.`);
    note(`${name}.rope_theta`, parameters.rope_theta);
  }
  if (found.length === 0) return byDefault;
  const [[place, theta]] = found;
  for (const [other, value] of found)
    if (value !== theta) throw badFile(file, `${other}: expected ${theta} as in ${place}, got ${value}`);
  return theta;
}
