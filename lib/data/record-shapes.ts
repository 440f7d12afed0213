// Records of a user's own data, in the shapes that such data usually has, as prompts with answers.
import { numberText, reasonOf, show } from '../text';
import type { ChatMessage } from '../types';
import type { Example, ExamplePrompt } from './dataset';

/** An example of a user's own data. */
export interface TrainingExample {
  /** Text, or chat messages for the checkpoint's chat template. */
  prompt: string | readonly ChatMessage[];
  /** A right answer. Fine-tuning and planner initialisation need it; GRPO only where a reward does. */
  answer?: string | undefined;
  /** For tables. Default "". */
  category?: string | undefined;
  /** Whatever a verifier or a reward needs. Default: the fields of the record that are named nowhere here. */
  meta?: unknown;
}

/**
 * A record in one of the usual shapes. One of `messages`, `prompt`, `question`, `instruction` or `input` is the prompt.
 * The answer is `answer`, `completion`, `output`, `response` or `llm_response`, or the last of `messages` where it is the
 * assistant's. A field of null is absent; an answer may be a number.
 */
export interface DataRecord {
  /** OpenAI's and trl's chats. */
  messages?: readonly { readonly role: string; readonly content: unknown }[] | null | undefined;
  prompt?: string | readonly { readonly role: string; readonly content: unknown }[] | null | undefined;
  question?: string | null | undefined;
  /** Alpaca's; its `input` comes behind it after an empty line. */
  instruction?: string | null | undefined;
  input?: string | null | undefined;
  /** A system message before the prompt, which becomes a chat. */
  system?: string | null | undefined;
  answer?: string | number | null | undefined;
  completion?: string | number | readonly { readonly role: string; readonly content: unknown }[] | null | undefined;
  output?: string | number | null | undefined;
  response?: string | number | null | undefined;
  /** dParallel's, and that of `dultra distill`: the model's own answer. */
  llm_response?: string | number | null | undefined;
  category?: string | null | undefined;
  meta?: unknown;
}

/** A record as everything else sees it. */
export type OwnExample = Example<ExamplePrompt, string | null>;

/** What is wrong with a field of a record. */
export class FieldError extends Error {
  constructor(
    readonly field: string,
    readonly text: string,
  ) {
    super(`field "${field}": ${text}`);
  }
}

const PROMPTS = ['messages', 'prompt', 'question', 'instruction', 'input'] as const;
const ANSWERS = ['answer', 'completion', 'output', 'response', 'llm_response'] as const;
const USED: readonly string[] = [...PROMPTS, ...ANSWERS, 'system', 'category', 'meta'];

const isBlank = (text: string): boolean => text.trim() === '';

function textOf(field: string, value: unknown): string {
  if (typeof value !== 'string') throw new FieldError(field, `expected text, got ${show(value)}`);
  if (isBlank(value)) throw new FieldError(field, 'expected text, got an empty one');
  return value;
}

/** Chat messages; their content may be in parts, of text alone. */
function messagesOf(field: string, value: unknown): ChatMessage[] {
  if (!Array.isArray(value)) throw new FieldError(field, `expected text or chat messages, got ${show(value)}`);
  if (value.length === 0) throw new FieldError(field, 'expected at least one message, got none');
  return value.map((message: unknown, i) => {
    const at = `${field}[${i}]`;
    const { role, content } = (message ?? {}) as { role?: unknown; content?: unknown };
    if (typeof role !== 'string') throw new FieldError(`${at}.role`, `expected text, got ${show(role)}`);
    if (typeof content === 'string') return { role, content };
    if (!Array.isArray(content)) throw new FieldError(`${at}.content`, `expected text, got ${show(content)}`);
    const parts = content.map((part: unknown, j) => {
      const { text } = (part ?? {}) as { text?: unknown };
      if (typeof text !== 'string') throw new FieldError(`${at}.content[${j}]`, 'expected a part of text, got another');
      return text;
    });
    return { role, content: parts.join('') };
  });
}

/** The field of several that a record has. @throws FieldError for two */
function only<F extends string>(record: Readonly<Record<string, unknown>>, fields: readonly F[]): F | null {
  const given = fields.filter((field) => record[field] !== undefined && record[field] !== null);
  if (given.length > 1) throw new FieldError(given[1], `expected "${given[0]}" or "${given[1]}", got both`);
  return given[0] ?? null;
}

function answerOf(field: string, value: unknown): string {
  if (typeof value === 'number') {
    try {
      return numberText(value);
    } catch (error) {
      throw new FieldError(field, reasonOf(error));
    }
  }
  if (!Array.isArray(value)) return textOf(field, value);
  const messages = messagesOf(field, value);
  if (messages.length !== 1 || messages[0].role !== 'assistant')
    throw new FieldError(field, `expected text or one message of the assistant, got ${show(value)}`);
  return textOf(`${field}[0].content`, messages[0].content);
}

/** The prompt, and the answer where it is the last of the messages. */
function promptOf(record: Readonly<Record<string, unknown>>): { prompt: ExamplePrompt; answer: string | null } {
  const hasInstruction = record.instruction !== undefined && record.instruction !== null;
  const field = only(record, hasInstruction ? PROMPTS.filter((name) => name !== 'input') : PROMPTS);
  if (field === null) throw new FieldError('prompt', `expected one of ${PROMPTS.join(', ')}, got none of them`);
  const value = record[field];
  let prompt: ExamplePrompt;
  let answer: string | null = null;
  if (field === 'messages' || (field === 'prompt' && typeof value !== 'string')) {
    const messages = messagesOf(field, value);
    prompt = messages;
    const last = messages[messages.length - 1];
    if (field === 'messages' && last.role === 'assistant') {
      messages.pop();
      if (prompt.length === 0)
        throw new FieldError(field, "expected a message before the assistant's, which is the answer, got none");
      answer = textOf(`${field}[${prompt.length}].content`, last.content);
    }
    if (prompt.every(({ content }) => isBlank(content)))
      throw new FieldError(field, 'expected messages that say something, got none that does');
  } else prompt = textOf(field, value);
  if (hasInstruction && typeof record.input === 'string' && !isBlank(record.input))
    prompt = `${prompt as string}\n\n${record.input}`;
  const { system } = record;
  if (system === undefined || system === null || system === '') return { prompt, answer };
  const chat = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt;
  if (chat[0].role === 'system') throw new FieldError('system', 'expected one system message, got two');
  return { prompt: [{ role: 'system', content: textOf('system', system) }, ...chat], answer };
}

/** A record of any of the usual shapes ({@link DataRecord}). @throws FieldError, or Error for what is no record */
export function exampleOf(record: unknown): OwnExample {
  if (typeof record !== 'object' || record === null || Array.isArray(record))
    throw new Error(`expected an object with a prompt, got ${show(record)}`);
  const fields = record as Readonly<Record<string, unknown>>;
  const { prompt, answer: last } = promptOf(fields);
  const field = only(fields, ANSWERS);
  if (field !== null && last !== null)
    throw new FieldError(field, "expected none beside the assistant's last message, which is the answer");
  const { category, meta } = fields;
  if (category !== undefined && category !== null && typeof category !== 'string')
    throw new FieldError('category', `expected text, got ${show(category)}`);
  const others = Object.entries(fields).filter(([name]) => !USED.includes(name));
  return {
    prompt,
    answer: field === null ? last : answerOf(field, fields[field]),
    category: category ?? '',
    meta: meta !== undefined || others.length === 0 ? meta : Object.fromEntries(others),
  };
}
