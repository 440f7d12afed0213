// What requests may have in their bodies: the only description of it.
import { z } from 'zod';
import { similarName } from '../options';
import { ApiError } from './errors';

/** JSON's null stands for a field that is absent. */
export const optional = <T extends z.ZodType>(type: T) => type.nullish().transform((value) => value ?? undefined);

export const ignored = optional(z.unknown());
/** What OpenAI's clients may send to any endpoint, and what changes nothing here. */
export const IGNORED = {
  user: ignored,
  metadata: ignored,
  store: ignored,
  safety_identifier: ignored,
  service_tier: ignored,
  prompt_cache_key: ignored,
  prompt_cache_retention: ignored,
};
const integer = (min: number, max: number) => optional(z.int().min(min).max(max));
const seed = optional(
  z.union(
    [z.int(), z.string().regex(/^-?\d{1,100}$/)],
    'expected a whole number of up to 100 digits, as such or as text',
  ),
);
const named = optional(z.union([z.string(), z.record(z.string(), z.unknown())], 'expected a short form or an object'));

/** Fields with the only values that are what happens without them. */
const neutral = (what: string, isNeutral: (value: unknown) => boolean) =>
  optional(
    z.unknown().refine((value) => value === null || value === undefined || isNeutral(value), {
      params: { unsupported: true },
      error: `${what} is not supported`,
    }),
  );
const isEmpty = (value: unknown) => Array.isArray(value) && value.length === 0;

/** Messages of a request, and parts of a message. */
const MOST_ITEMS = 2048;
const MOST_PROMPTS = 64;
/** Characters of a key that may have been meant otherwise. */
const LONGEST_KEY = 64;

/** A list of 1 to 2048 items. After the first that is wrong none is looked at: a body of a megabyte has many. */
const list = <T extends z.ZodType>(item: T) =>
  z.unknown().transform((value, context): z.output<T>[] => {
    const refuse = (message: string) => {
      context.addIssue({ code: 'custom', message });
      return z.NEVER;
    };
    if (!Array.isArray(value)) return refuse('expected a list');
    if (value.length < 1 || value.length > MOST_ITEMS)
      return refuse(`expected 1 to ${MOST_ITEMS} items, got ${value.length}`);
    const items: z.output<T>[] = [];
    for (const [i, one] of value.entries()) {
      const parsed = item.safeParse(one, { reportInput: true });
      if (!parsed.success) {
        for (const issue of parsed.error.issues) context.addIssue({ ...issue, path: [i, ...issue.path] } as never);
        return z.NEVER;
      }
      items.push(parsed.data);
    }
    return items;
  });

/** What /v1/completions completes: a text, texts, token ids, or lists of them. */
type CompletionPrompt = string | string[] | number[] | number[][];

const areIds = (value: unknown): value is number[] =>
  Array.isArray(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0);

function isPrompt(value: unknown): value is CompletionPrompt {
  if (typeof value === 'string') return true;
  if (!Array.isArray(value) || value.length === 0) return false;
  if (typeof value[0] === 'number') return areIds(value);
  if (value.length > MOST_PROMPTS) return false;
  return value.every((one) => typeof one === 'string') || value.every(areIds);
}

const prompt = z.unknown().transform((value, context): CompletionPrompt => {
  if (isPrompt(value)) return value;
  context.addIssue({
    code: 'custom',
    message: `expected a text, up to ${MOST_PROMPTS} texts, token ids, or up to ${MOST_PROMPTS} lists of token ids`,
  });
  return z.NEVER;
});

/** How a text is decoded: `dultra` of a request. */
const DECODING = {
  sampler: named,
  cache: named,
  block_length: integer(1, 2 ** 30),
  steps: integer(1, 2 ** 30),
  max_nfe: integer(1, 1e9),
};

/** `dultra` of a request. */
const DULTRA = {
  ...DECODING,
  seed,
  frames: optional(z.boolean()),
  stop_at_eos: optional(z.boolean()),
  priority: integer(0, 9),
  deadline_ms: integer(1, 2 ** 31 - 1),
  on_deadline: optional(z.enum(['fail', 'finish'])),
  template: optional(z.boolean()),
  hole: optional(z.literal('search')),
};

/** What every route that generates takes. */
const GENERATING = {
  model: optional(z.string()),
  temperature: optional(z.number().min(0).max(2)),
  top_p: optional(z.number().gt(0).max(1)),
  top_k: integer(1, 2 ** 30),
  seed,
  stream: optional(z.boolean()),
  ...DECODING,
  num_denoising_steps: integer(1, 2 ** 30),
  dultra: optional(z.strictObject(DULTRA)),
  ...IGNORED,
  parallel_tool_calls: ignored,
};

/** What chats and completions take besides. */
const COMMON = {
  ...GENERATING,
  max_tokens: integer(1, 2 ** 30),
  n: integer(1, 16),
  stop: optional(
    z.union(
      [z.string().min(1), z.array(z.string().min(1)).max(4)],
      'expected a text, or up to four, none of them empty',
    ),
  ),
  stream_options: optional(z.strictObject({ include_usage: optional(z.boolean()), include_obfuscation: ignored })),
  stream_mode: optional(z.enum(['text', 'denoise'])),
  diffusing: optional(z.boolean()),
  frequency_penalty: neutral('a frequency penalty', (value) => value === 0),
  presence_penalty: neutral('a presence penalty', (value) => value === 0),
  logit_bias: neutral(
    'a bias of logits',
    (value) => typeof value === 'object' && value !== null && Object.keys(value).length === 0,
  ),
  verbosity: ignored,
  reasoning_effort: ignored,
};

const text = z.strictObject({ type: z.literal('text'), text: z.string() });

/** What a schema is sent with. The strict subset is what there is, whatever `strict` says. */
const NAMED_SCHEMA = {
  name: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'expected up to 64 letters, digits, _ and -'),
  description: optional(z.string()),
  schema: z.record(z.string(), z.unknown()),
  strict: optional(z.boolean()),
};
const PLAIN_FORMATS = [
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
] as const;

/** POST /v1/chat/completions */
export const chatBody = z.strictObject({
  ...COMMON,
  messages: list(
    z.strictObject({
      role: z.enum(['system', 'developer', 'user', 'assistant']),
      content: z.union([z.string(), list(text)], 'expected a text, or a list of parts of type "text"'),
      name: ignored,
    }),
  ),
  max_completion_tokens: integer(1, 2 ** 30),
  logprobs: optional(z.boolean()),
  top_logprobs: integer(0, 20),
  response_format: optional(
    z.discriminatedUnion('type', [
      ...PLAIN_FORMATS,
      z.strictObject({ type: z.literal('json_schema'), json_schema: z.strictObject(NAMED_SCHEMA) }),
    ]),
  ),
  tools: neutral('a tool', isEmpty),
  functions: neutral('a function', isEmpty),
  tool_choice: neutral('a choice of tools other than "none"', (value) => value === 'none'),
  function_call: neutral('a choice of functions other than "none"', (value) => value === 'none'),
});

/** POST /v1/completions */
export const completionBody = z.strictObject({
  ...COMMON,
  prompt,
  suffix: optional(z.string()),
  echo: optional(z.boolean()),
  best_of: neutral('a choice of the best of several texts', (value) => value === 1),
  logprobs: integer(0, 5),
});

const part = (type: string) => z.strictObject({ type: z.literal(type), text: z.string(), annotations: ignored });

/** POST /v1/responses */
export const responseBody = z.strictObject({
  ...GENERATING,
  /** A text has become the message of a user. */
  input: list(
    z.strictObject({
      type: optional(z.literal('message')),
      role: z.enum(['system', 'developer', 'user', 'assistant']),
      content: z.union(
        [z.string(), list(z.union([part('input_text'), part('output_text')]))],
        'expected a text, or a list of parts of type "input_text"',
      ),
      id: ignored,
      status: ignored,
    }),
  ),
  instructions: optional(z.string()),
  max_output_tokens: integer(1, 2 ** 30),
  text: optional(
    z.strictObject({
      format: optional(
        z.discriminatedUnion('type', [
          ...PLAIN_FORMATS,
          z.strictObject({ type: z.literal('json_schema'), ...NAMED_SCHEMA }),
        ]),
      ),
      verbosity: ignored,
    }),
  ),
  tools: neutral('a tool', isEmpty),
  tool_choice: neutral(
    'a choice of tools other than "none" or "auto"',
    (value) => value === 'none' || value === 'auto',
  ),
  include: neutral('an inclusion', isEmpty),
  truncation: neutral('a truncation', (value) => value === 'disabled'),
  background: neutral('a response in the background', (value) => value === false),
  previous_response_id: neutral('a previous response: the server keeps none; send all messages', () => false),
  conversation: neutral('a conversation: the server keeps none; send all messages', () => false),
  prompt: neutral('a stored prompt', () => false),
  top_logprobs: neutral('a list of the most probable tokens', (value) => value === 0),
  max_tool_calls: ignored,
  reasoning: ignored,
});

/** What every request has that generates, checked. */
export type CommonBody = Pick<z.infer<typeof completionBody>, Exclude<keyof typeof GENERATING, 'user'>> &
  Partial<Pick<z.infer<typeof completionBody>, 'n' | 'stop' | 'stream_options' | 'stream_mode' | 'diffusing'>>;
/** A chat request, checked. */
export type ChatBody = z.infer<typeof chatBody>;
/** A completion request, checked. */
export type CompletionBody = z.infer<typeof completionBody>;
/** A request of /v1/responses, checked. */
export type ResponseBody = z.infer<typeof responseBody>;

const pathOf = (path: readonly PropertyKey[]): string =>
  path.reduce<string>(
    (text, key) => (typeof key === 'number' ? `${text}[${key}]` : text ? `${text}.${String(key)}` : String(key)),
    '',
  );

/** Checks a body. @param own what `dultra` of it may have @throws ApiError naming the field */
export function checkBody<T extends z.ZodObject>(schema: T, value: unknown, own: object = DULTRA): z.infer<T> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new ApiError(400, 'invalid_value', 'expected a JSON object');
  const parsed = schema.safeParse(value, { reportInput: true });
  if (parsed.success) return parsed.data as z.infer<T>;
  const [issue] = parsed.error.issues;
  const at = pathOf(issue.path);
  if (issue.code === 'unrecognized_keys') {
    const [key] = issue.keys;
    const known = Object.keys(issue.path[0] === 'dultra' ? own : schema.shape);
    const guess = key.length > LONGEST_KEY ? null : similarName(key, known);
    const name = at ? `${at}.${key}` : key;
    const hint = guess === null ? '' : `: did you mean "${guess}"?`;
    throw new ApiError(400, 'unknown_parameter', `${name} is not a parameter${hint}`, name);
  }
  const isMissing = issue.path.length === 1 && !(String(issue.path[0]) in value);
  const code = isMissing
    ? 'missing_required_parameter'
    : issue.code === 'custom' && issue.params?.unsupported
      ? 'unsupported_parameter'
      : isUnsupported(at)
        ? 'unsupported_value'
        : 'invalid_value';
  const message = isMissing ? 'required, but missing' : issue.message;
  throw new ApiError(400, code, `${at}: ${message}`, at);
}

/** Roles and parts of messages that other models have. */
const isUnsupported = (at: string): boolean => /^(messages|input)\[\d+\]\.(role|content|type)/.test(at);
