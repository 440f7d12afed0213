// A user's own data: records in the shapes that such data usually has, from lists and files, as prompts with answers.
import { existsSync, statSync } from 'node:fs';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { checkInteger, checkKeys } from '../options';
import { numberText, reasonOf, show } from '../text';
import type { ChatMessage } from '../types';
import { sampleFinite } from './benchmarks';
import type { Dataset, Example, ExamplePrompt } from './dataset';
import { locateSplit, readRecords } from './records';
import { hash, type Split } from './splits';

/** An example of a user's own data. */
export interface TrainingExample {
  /** Text, or chat messages for the checkpoint's chat template. */
  prompt: string | ChatMessage[];
  /** A right answer. Fine-tuning and planner initialisation need it; GRPO only where a reward does. */
  answer?: string;
  /** For tables. Default "". */
  category?: string;
  /** Whatever a verifier or a reward needs. Default: the fields of the record that are named nowhere here. */
  meta?: unknown;
}

/** Chat messages, or parts of them as OpenAI's API has them. */
type Messages = readonly { readonly role: string; readonly content: unknown }[];

/**
 * A record in one of the usual shapes. One of `messages`, `prompt`, `question`, `instruction` or `input` is the prompt.
 * The answer is `answer`, `completion`, `output` or `response`, or the last of `messages` where it is the assistant's. A
 * field of null is absent; an answer may be a number.
 */
export interface DataRecord {
  /** OpenAI's and trl's chats. */
  messages?: Messages | null;
  prompt?: string | Messages | null;
  question?: string | null;
  /** Alpaca's; its `input` comes behind it after an empty line. */
  instruction?: string | null;
  input?: string | null;
  /** A system message before the prompt, which becomes a chat. */
  system?: string | null;
  answer?: string | number | null;
  completion?: string | number | Messages | null;
  output?: string | number | null;
  response?: string | number | null;
  category?: string | null;
  meta?: unknown;
}

/** A user's own data set. */
export interface ExampleData {
  /** Default: the name of the file, or "examples". */
  name?: string;
  /** Records, or a file or folder of them (JSON lines, a JSON array, Parquet). */
  examples: string | Iterable<TrainingExample | DataRecord>;
  /**
   * Held-out examples; evaluation during training needs them: records, a file, or a share of the examples (0.1), which
   * is taken from them. Equal prompts stay together, and the choice depends on the prompts and `splitSeed` alone.
   */
  validation?: string | number | Iterable<TrainingExample | DataRecord>;
  /** Of a share for `validation`. Default 0. */
  splitSeed?: number;
  /** Whether a completion's text is a right answer. Default: that it is `answer`, white space aside. */
  verify?(example: TrainingExample, completion: string): boolean | Promise<boolean>;
  /** Tokens that an answer is given. Default: the option `genLength` of what uses it. */
  genLength?: number;
  /** Default: the option `blockLength` of what uses it. */
  blockLength?: number;
}

/** A record as everything else sees it. */
export type OwnExample = Example<ExamplePrompt, string | null>;

/** What is wrong with a field of a record. */
class FieldError extends Error {
  constructor(
    readonly field: string,
    readonly text: string,
  ) {
    super(`field "${field}": ${text}`);
  }
}

const PROMPTS = ['messages', 'prompt', 'question', 'instruction', 'input'] as const;
const ANSWERS = ['answer', 'completion', 'output', 'response'] as const;
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
    prompt = messagesOf(field, value);
    const last = prompt[prompt.length - 1];
    if (field === 'messages' && last.role === 'assistant') {
      prompt.pop();
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
function exampleOf(record: unknown): OwnExample {
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

/** Records of a list. @param name of the option, for errors @throws TypeError, RangeError naming the record's index */
export function listExamples(name: string, records: unknown): OwnExample[] {
  if (typeof records !== 'object' || records === null || !(Symbol.iterator in records))
    throw optionError(TypeError, name, `expected examples that can be iterated over, got ${show(records)}`);
  const examples: OwnExample[] = [];
  for (const record of records as Iterable<unknown>) {
    const at = `${name}[${examples.length}]`;
    try {
      examples.push(exampleOf(record));
    } catch (error) {
      if (error instanceof FieldError) throw optionError(TypeError, `${at}.${error.field}`, error.text);
      throw optionError(TypeError, at, reasonOf(error));
    }
  }
  if (examples.length === 0) throw optionError(RangeError, name, 'expected at least one example, got none');
  return examples;
}

/** Records of files. @throws DUltraError BAD_DATASET naming file and line */
async function readExamples(files: readonly string[]): Promise<OwnExample[]> {
  const examples: OwnExample[] = [];
  for (const file of files)
    for await (const { value, where } of readRecords(file)) {
      try {
        examples.push(exampleOf(value));
      } catch (cause) {
        throw new DUltraError('BAD_DATASET', `${where}: ${reasonOf(cause)}`, { cause });
      }
    }
  if (examples.length === 0)
    throw new DUltraError('BAD_DATASET', `${files.join(', ')}: expected at least one example, got none`);
  return examples;
}

/** Examples that are all there, by split. */
type Splits = Partial<Record<Split, readonly OwnExample[]>>;

/** What a file or a folder with a file for each split (train.jsonl …) holds. */
async function readSplits(source: string): Promise<Splits> {
  if (!statSync(source).isDirectory()) return { train: await readExamples([source]) };
  const splits: Splits = {};
  for (const split of ['train', 'validation', 'test'] as const) {
    const files = await locateSplit({ source, config: null }, split);
    if (files.length > 0) splits[split] = await readExamples(files);
  }
  if (Object.keys(splits).length === 0)
    throw new DUltraError('BAD_DATASET', `${source}: expected files such as train.jsonl and test.jsonl, got none`);
  return splits;
}

function checkFile(name: string, file: string): void {
  if (!existsSync(file)) throw optionError(RangeError, name, `expected a file that exists, got ${show(file)}`);
}

/** Takes a share of the examples for validation: the prompts whose hashes are lowest. */
function splitByShare(examples: readonly OwnExample[], share: number, seed: number): Splits {
  if (!(share > 0 && share < 1))
    throw optionError(
      RangeError,
      'validation',
      `expected a share greater than 0 and less than 1, a file or examples, got ${share}`,
    );
  const keyOf = ({ prompt }: OwnExample) => JSON.stringify(prompt);
  const order = [...new Set(examples.map(keyOf))]
    .map((key) => ({ key, rank: hash(`${seed} ${key}`) }))
    .sort((a, b) => a.rank - b.rank || (a.key < b.key ? -1 : 1));
  if (order.length < 2)
    throw optionError(RangeError, 'validation', 'expected two different prompts at least for a share, got one');
  const count = Math.min(order.length - 1, Math.max(1, Math.round(share * order.length)));
  const held = new Set(order.slice(0, count).map(({ key }) => key));
  return {
    train: examples.filter((example) => !held.has(keyOf(example))),
    validation: examples.filter((example) => held.has(keyOf(example))),
  };
}

const normalise = (text: string) => text.trim().replace(/\s+/g, ' ');

const EXAMPLE_KEYS = ['name', 'examples', 'validation', 'splitSeed', 'verify', 'genLength', 'blockLength'];

/** Checks what {@link ExampleData} says of splits and lengths. */
function checkExampleData(data: ExampleData): void {
  checkKeys('dataset', data, EXAMPLE_KEYS);
  const { name, splitSeed = 0, verify, genLength, blockLength } = data;
  if (name !== undefined && typeof name !== 'string')
    throw optionError(TypeError, 'dataset.name', `expected text, got ${show(name)}`);
  if (verify !== undefined && typeof verify !== 'function')
    throw optionError(TypeError, 'dataset.verify', `expected a function, got ${show(verify)}`);
  checkInteger('splitSeed', splitSeed, { min: 0, max: Number.MAX_SAFE_INTEGER });
  if (genLength !== undefined) checkInteger('dataset.genLength', genLength, { min: 1, max: 2 ** 30 });
  if (blockLength !== undefined) checkInteger('dataset.blockLength', blockLength, { min: 1, max: 2 ** 30 });
}

/** A data set of examples that are all there. */
function fromSplits(data: ExampleData, given: Splits, held: readonly OwnExample[] | number | undefined): Dataset {
  const { splitSeed = 0, verify, genLength = null, blockLength = null } = data;
  const { train = [] } = given;
  let finite = given;
  if (typeof held === 'number') finite = { ...given, ...splitByShare(train, held, splitSeed) };
  else if (held !== undefined) finite = { ...given, validation: held };
  // A list of which nothing is held out is what can be trained and evaluated on.
  else if (!given.test && !given.validation) finite = { train, test: train };
  const file = typeof data.examples === 'string' ? data.examples : null;
  const name = data.name ?? (file === null ? 'examples' : path.basename(file));
  const judge = verify ? 'a verifier of its own' : 'exact match of the answer';
  return {
    name,
    genLength,
    blockLength,
    finite,
    exactMatch: verify === undefined,
    source: {
      data: file ?? `a list of ${train.length}`,
      judge,
      ...(typeof held === 'number' && { share: held, splitSeed }),
    },
    get vocabulary() {
      const texts = Object.values(finite).flatMap((examples) =>
        examples.flatMap(({ prompt, answer }) => [
          ...(typeof prompt === 'string' ? [prompt] : prompt.map(({ content }) => content)),
          answer ?? '',
        ]),
      );
      return [...new Set(texts.join(' ').split(/\s+/))].filter((word) => word !== '').sort();
    },
    sample: (split, count, seed) => sampleFinite(name, finite, split, count, seed),
    verify(example, completion) {
      if (verify) return verify.call(data, withoutNull(example), completion);
      return example.answer !== null && normalise(example.answer) === normalise(completion);
    },
  };
}

function withoutNull({ prompt, answer, category, meta }: OwnExample): TrainingExample {
  return answer === null ? { prompt, category, meta } : { prompt, answer, category, meta };
}

/** Whether data have to be read from files first: {@link openExamples} does, {@link examplesDataset} cannot. */
export const needsFiles = (data: ExampleData): boolean =>
  typeof data.examples === 'string' || typeof data.validation === 'string';

/** A data set of lists. @throws TypeError, RangeError naming what is wrong */
export function examplesDataset(data: ExampleData): Dataset {
  checkExampleData(data);
  const { validation } = data;
  const examples = listExamples('dataset.examples', data.examples);
  const held =
    validation === undefined || typeof validation === 'number'
      ? validation
      : listExamples('dataset.validation', validation);
  return fromSplits(data, { train: examples }, held);
}

/** A data set of lists and files. @throws as {@link examplesDataset}; DUltraError BAD_DATASET naming file and line */
export async function openExamples(data: ExampleData): Promise<Dataset> {
  if (!needsFiles(data)) return examplesDataset(data);
  checkExampleData(data);
  const { examples, validation } = data;
  for (const [name, value] of Object.entries({ dataset: examples, validation }))
    if (typeof value === 'string') checkFile(name, value);
  const splits =
    typeof examples === 'string' ? await readSplits(examples) : { train: listExamples('dataset.examples', examples) };
  if (typeof validation === 'string') return fromSplits(data, splits, await readExamples([validation]));
  const held =
    validation === undefined || typeof validation === 'number'
      ? validation
      : listExamples('dataset.validation', validation);
  return fromSplits(data, splits, held);
}
