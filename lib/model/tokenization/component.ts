// The parts of a tokenizer.json: each table names the kinds that are supported and their options; all else is refused.
import { z } from 'zod';
import { show } from '../../text';

/** One kind of a part: its options, and what they make. */
export interface Component<T> {
  schema: z.ZodType;
  make: (options: never, path: string) => T;
}

/** An entry of a table. `options`: those beside "type"; others are refused by name. */
export function component<Shape extends z.ZodRawShape, T>(
  options: Shape,
  make: (options: z.infer<z.ZodObject<Shape>>, path: string) => T,
): Component<T> {
  return { schema: z.strictObject({ type: z.string(), ...options }), make: make as Component<T>['make'] };
}

/**
 * Makes the part that a JSON object describes. @param path where it stands in tokenizer.json, for errors
 * @throws Error naming the kind or option that is not supported
 */
export function build<T>(table: Readonly<Record<string, Component<T>>>, json: unknown, path: string): T {
  const type = (json as { type?: unknown } | null)?.type;
  if (typeof type !== 'string' || !Object.hasOwn(table, type))
    throw new Error(`${path}: ${show(type)} is not supported; expected one of ${Object.keys(table).join(', ')}`);
  const { schema, make } = table[type];
  const parsed = schema.safeParse(json);
  if (parsed.success) return make(parsed.data as never, `${path} (${type})`);
  const [{ path: keys, message }] = parsed.error.issues;
  throw new Error(`${[`${path} (${type})`, ...keys].join('.')}: ${message}`);
}

/** `pattern` of Split and Replace. */
export const patternSchema = z.union([
  z.strictObject({ String: z.string().min(1) }),
  z.strictObject({ Regex: z.string().min(1) }),
]);
/** A single character. */
export const characterSchema = z.string().refine((text) => Array.from(text).length === 1, 'expected one character');
