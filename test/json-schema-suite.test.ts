// The JSON Schema Test Suite: no schema of the subset accepts a value that is invalid. fixtures/json-schema-suite has the
// groups of draft 2020-12 that can be said in the subset, as they are in github.com/json-schema-org/JSON-Schema-Test-Suite
// at 44401e0c (MIT); DULTRA_SCHEMA_SUITE=CHECKOUT reads all of them.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { isOptionError } from '../lib/errors';
import { accepts, automatonOf, type ByteAutomaton } from '../lib/structured/automaton';
import { type JsonSchema, languageOf, shapeOf } from '../lib/structured/json-schema';

interface Group {
  file: string;
  description: string;
  schema: unknown;
  tests: { description: string; data: unknown; valid: boolean }[];
}

const CHECKOUT = process.env.DULTRA_SCHEMA_SUITE;
const FORMATS = ['date', 'time', 'date-time', 'uuid'].map((name) => `optional/format/${name}.json`);

function groups(): Group[] {
  if (CHECKOUT === undefined)
    return readFileSync(path.join(__dirname, 'fixtures', 'json-schema-suite', 'groups.jsonl'), 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
  const root = path.join(CHECKOUT, 'tests', 'draft2020-12');
  const files = readdirSync(root).filter((name) => name.endsWith('.json'));
  return [...files, ...FORMATS, 'optional/ecmascript-regex.json']
    .filter((file) => existsSync(path.join(root, file)))
    .flatMap((file) =>
      JSON.parse(readFileSync(path.join(root, file), 'utf8')).map((group: object) => ({ file, ...group })),
    );
}

const KEYWORDS = {
  number: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'],
  string: ['minLength', 'maxLength', 'pattern', 'format'],
  array: ['items', 'minItems', 'maxItems'],
  object: ['properties', 'required', 'additionalProperties'],
};
const isSchema = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * A schema with the types that the subset wants to be told, its objects closed and their properties required. That only
 * takes values away: what was invalid is so still.
 */
function narrowed(schema: unknown): unknown {
  if (!isSchema(schema)) return schema;
  const own: Record<string, unknown> = { ...schema };
  for (const key of ['properties', '$defs', 'definitions'])
    if (isSchema(own[key]))
      own[key] = Object.fromEntries(Object.entries(own[key]).map(([name, value]) => [name, narrowed(value)]));
  if (isSchema(own.items)) own.items = narrowed(own.items);
  if (Array.isArray(own.anyOf)) own.anyOf = own.anyOf.map(narrowed);
  if (!['type', 'enum', 'const', 'anyOf', '$ref'].some((key) => key in own)) {
    const found = Object.entries(KEYWORDS).find(([, keys]) => keys.some((key) => key in own));
    if (found) [own.type] = found;
  }
  if (own.type === 'array') own.items ??= { type: 'integer' };
  if (own.type !== 'object') return own;
  own.properties ??= {};
  const names = Object.keys(own.properties as object);
  if (((own.required as string[] | undefined) ?? []).every((name) => names.includes(name))) own.required = names;
  own.additionalProperties ??= false;
  return own;
}

/** null: not of the subset, and named so. */
function automaton(schema: unknown): ByteAutomaton | null {
  try {
    return automatonOf(languageOf(shapeOf(narrowed(schema) as JsonSchema)));
  } catch (error) {
    if (isOptionError(error)) return null;
    throw error;
  }
}

test('no value that is invalid is accepted, and most that are valid', () => {
  const counts = { groups: 0, refused: 0, valid: 0, accepted: 0, invalid: 0 };
  const wrong: string[] = [];
  for (const { file, description, schema, tests } of groups()) {
    counts.groups++;
    const own = automaton(schema);
    if (!own) {
      counts.refused++;
      continue;
    }
    for (const { description: what, data, valid } of tests) {
      const isAccepted = accepts(own, JSON.stringify(data));
      if (valid) {
        counts.valid++;
        counts.accepted += Number(isAccepted);
      } else {
        counts.invalid++;
        if (isAccepted) wrong.push(`${file}: ${description}: ${what}`);
      }
    }
  }
  expect(wrong).toEqual([]);
  // Values of types that the suite ignores are not accepted, nor leap seconds and other orders of properties.
  const found = { valid: 276, accepted: 180, invalid: 306 };
  if (CHECKOUT === undefined) expect(counts).toEqual({ groups: 107, refused: 0, ...found });
  else expect(counts.groups - counts.refused).toBeGreaterThanOrEqual(107);
});
