// Plain tagged objects as short text, for command lines and config files: a name, then values after colons.

import { optionError } from '../errors';
import { checkChoice } from '../options';
import { show } from '../text';

/**
 * How one name is written: the object that it stands for, the option that a bare value sets, and the options that can
 * follow as name=value.
 */
export interface Form<T> {
  base: T;
  /** The option that a value without a name sets. Without it, every value needs its name. */
  main?: string;
  /** Another one, for values that are numbers. */
  mainNumber?: string;
  options: Readonly<Record<string, 'number' | 'boolean' | 'text'>>;
  /** For the command line's help: how it is written, and what it does. */
  help: readonly [form: string, text: string];
}

/** Forms by name. */
export type Forms<T> = Readonly<Record<string, Form<T>>>;

function parseValue(name: string, text: string, kind: 'number' | 'boolean' | 'text'): number | boolean | string {
  if (kind === 'text') return text;
  if (kind === 'boolean') {
    checkChoice(name, text, ['true', 'false'] as const);
    return text === 'true';
  }
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (Number.isNaN(value)) throw optionError(RangeError, name, `expected a number, got ${JSON.stringify(text)}`);
  return value;
}

/**
 * The object that a short form stands for, with what was written and nothing else.
 * @param what names it in messages, such as "sampler" @param example a name with a value
 * @throws TypeError, RangeError naming the part, what was expected and what came.
 */
export function parseForm<T>(what: string, text: string, forms: Forms<T>, example: string): T {
  const [name, ...parts] = text.trim().split(':');
  if (!Object.hasOwn(forms, name))
    throw optionError(
      RangeError,
      what,
      `expected ${Object.keys(forms).join(', ')}, with a value as in ${JSON.stringify(example)} where wanted, got ${JSON.stringify(text)}`,
    );
  const { base, main, mainNumber, options } = forms[name];
  const given: Record<string, unknown> = {};
  for (const part of parts) {
    const equals = part.indexOf('=');
    const bare = mainNumber && part.trim() !== '' && !Number.isNaN(Number(part)) ? mainNumber : main;
    const option = equals < 0 ? (bare ?? part) : part.slice(0, equals);
    if (!Object.hasOwn(options, option))
      throw optionError(
        RangeError,
        what,
        `${name} takes ${Object.keys(options).join(', ') || 'no options'}; got ${JSON.stringify(option)} in ${JSON.stringify(text)}`,
      );
    if (Object.hasOwn(given, option))
      throw optionError(RangeError, what, `${option} is given twice in ${JSON.stringify(text)}`);
    given[option] = parseValue(`${what}.${option}`, part.slice(equals + 1), options[option]);
  }
  return { ...base, ...given } as T;
}

/**
 * Forms by the names that tables show: an object of them, or a list of short forms, which are names too.
 * @param toObject the object that a short form stands for @throws TypeError, RangeError naming `what`
 */
export function namedForms<T>(
  what: string,
  given: Readonly<Record<string, T>> | readonly string[],
  toObject: (form: T | string, name: string) => T,
): Record<string, T> {
  if (typeof given !== 'object' || given === null)
    throw optionError(TypeError, what, `expected an object or an array of short forms, got ${show(given)}`);
  const named = new Map<string, T>();
  for (const [key, form] of Object.entries<T | string>(given)) {
    if (Array.isArray(given) && typeof form !== 'string')
      throw optionError(
        TypeError,
        `${what}[${key}]`,
        `expected a short form, since others need a name, as in { ${what}: { name: … } }, got ${show(form)}`,
      );
    const name = Array.isArray(given) ? (form as string) : key;
    if (named.has(name)) throw optionError(RangeError, what, `${JSON.stringify(name)} is given twice`);
    named.set(name, toObject(form, `${what}${Array.isArray(given) ? `[${key}]` : `.${key}`}`));
  }
  if (named.size === 0) throw optionError(RangeError, what, 'expected at least one, got none');
  return Object.fromEntries(named);
}
