// Which keys of a known file are read, which are accepted with certain values only, and which change nothing here.
import { show } from '../text';
import { badFile } from './json';

/** The keys of a file. */
export interface KeyTable {
  /** Keys whose values are checked where they are read. */
  read: readonly string[];
  /**
   * Keys that change the results, with the values for which there is nothing to do. null and empty lists and objects
   * always are such.
   */
  accepted: Readonly<Record<string, readonly unknown[]>>;
  /** Keys, or patterns of keys, that do not change the results. */
  harmless: readonly (string | RegExp)[];
}

/** Whether a value says nothing: null, or an empty text, list or object. */
export const isEmpty = (value: unknown): boolean =>
  value === undefined ||
  value === null ||
  value === '' ||
  (typeof value === 'object' && Object.keys(value as object).length === 0);

/** A key for a message: as it is, or quoted where it is no plain name. */
export const showKey = (key: string): string => (/^[\w.-]{1,80}$/.test(key) ? key : show(key));

/**
 * Checks the keys with accepted values, and returns those that the table lacks and that say something: neither empty
 * nor false.
 * @param place of the object within its file, such as "rope_parameters."
 * @throws DUltraError BAD_CHECKPOINT naming the key, the accepted values and what came
 */
export function checkKeyTable(
  json: Readonly<Record<string, unknown>>,
  file: string,
  { read, accepted, harmless }: KeyTable,
  place = '',
): string[] {
  // In the table's order, so that an error names the setting that others belong to.
  for (const [key, values] of Object.entries(accepted)) {
    const value = Object.hasOwn(json, key) ? json[key] : null;
    if (isEmpty(value) || values.includes(value)) continue;
    const expected = [...values, null].map((item) => JSON.stringify(item)).join(' or ');
    throw badFile(file, `${place}${key}: expected ${expected}, got ${show(value)}`);
  }
  const isKnown = (key: string) =>
    Object.hasOwn(accepted, key) ||
    read.includes(key) ||
    harmless.some((one) => (typeof one === 'string' ? one === key : one.test(key)));
  return Object.entries(json)
    .filter(([key, value]) => !isEmpty(value) && value !== false && !isKnown(key))
    .map(([key]) => key);
}

/** Refuses keys that are not known. @throws DUltraError BAD_CHECKPOINT naming the first and its value */
export function refuseUnknown(
  json: Readonly<Record<string, unknown>>,
  file: string,
  keys: readonly string[],
  place = '',
): void {
  if (keys.length === 0) return;
  const [key] = keys;
  throw badFile(
    file,
    `${showKey(`${place}${key}`)}: a key that is not known here and may change the results: expected none, null or false, got ${show(json[key])}`,
  );
}
