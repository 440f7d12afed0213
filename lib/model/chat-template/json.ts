// The filter tojson: Python's json.dumps.
import { compare, floatText, TemplateError, Tuple, typeName, type Value } from './values';

export interface JsonOptions {
  isAscii: boolean;
  /** White space of one level, null for one line. */
  indent: string | null;
  separators: readonly [string, string];
  sortKeys: boolean;
}

const SHORT: Record<string, string> = {
  '"': '\\"',
  '\\': '\\\\',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\f': '\\f',
  '\b': '\\b',
};

function quoted(text: string, isAscii: boolean): string {
  const special = isAscii ? /["\\]|[^ -~]/g : /["\\]|[^ -\u{10ffff}]/gu;
  return `"${text.replace(special, (unit) => SHORT[unit] ?? `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)}"`;
}

function numberText(value: number): string {
  if (Number.isFinite(value)) return floatText(value);
  return Number.isNaN(value) ? 'NaN' : value > 0 ? 'Infinity' : '-Infinity';
}

/** A value as JSON. @throws TemplateError for what JSON has no form of */
export function toJson(value: Value, options: JsonOptions, depth = 0): string {
  if (value === null) return 'null';
  if (typeof value === 'boolean' || typeof value === 'bigint') return String(value);
  if (typeof value === 'number') return numberText(value);
  if (typeof value === 'string') return quoted(value, options.isAscii);
  let parts: string[];
  let brackets = '[]';
  if (Array.isArray(value) || value instanceof Tuple)
    parts = (Array.isArray(value) ? value : value.items).map((item) => toJson(item, options, depth + 1));
  else if (value instanceof Map) {
    brackets = '{}';
    const entries = Array.from(value);
    if (options.sortKeys) entries.sort(([a], [b]) => compare(a, b));
    parts = entries.map(([key, item]) => {
      const name = typeof key === 'string' ? quoted(key, options.isAscii) : `"${key === null ? 'null' : String(key)}"`;
      return name + options.separators[1] + toJson(item, options, depth + 1);
    });
  } else throw new TemplateError(`tojson of a value of type ${typeName(value)} is not supported`);
  if (parts.length === 0) return brackets;
  const line = (level: number) => (options.indent === null ? '' : `\n${options.indent.repeat(level)}`);
  return (
    brackets[0] + line(depth + 1) + parts.join(options.separators[0] + line(depth + 1)) + line(depth) + brackets[1]
  );
}
