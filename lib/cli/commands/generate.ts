// dultra generate: one prompt, one completion.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import {
  type ChatMessage,
  datasets,
  type GenerateOptions,
  type GenerateResult,
  type MaskedDiffusionModel,
  type Prompt,
  type StreamEvent,
  systemInfo,
} from '../../index';
import { BATCH_SIZE, checkBatch, runBatch } from '../batch';
import { interruptSignal, UsageError } from '../errors';
import { isPiped, readStdin, readTextFile } from '../input';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, columnsOf, oneLine, printData, printJson, printLine, printMessage, wrap } from '../output';
import { checkParent } from '../paths';
import { completionText, drawsSeed, generateWatched, summary } from '../result';
import { type Cell, RowDisplay } from '../row-display';
import { addSamplingOptions, CACHE_TEXT, generateOptions, SAMPLER_TEXT, type SamplingFlags } from '../sampling';
import { given, ids, integer, maskedIds, number } from '../values';

interface Flags extends ModelFlags, SamplingFlags {
  chat?: boolean;
  messages?: string;
  promptIds?: number[];
  template?: string;
  templateIds?: (number | null)[];
  splitSpecialTokens?: boolean;
  schema?: string;
  pattern?: string;
  stream?: boolean;
  progress: boolean;
  delay?: number;
  batch?: string;
  out?: string;
  seeds?: number;
  batchSize?: number;
}

const EXAMPLES = `
Examples:
  dultra generate -m GSAI-ML/LLaDA-8B-Instruct --dtype bfloat16 --chat --stream "Why is the sky blue?"
  dultra generate -m ./checkpoint --chat --batch prompts.jsonl --out answers.jsonl
  dultra generate -m ./checkpoint --prompt-ids 5,17,3 --max-tokens 64 --sampler confidence:0.9 --json
  echo "12+7*3=" | dultra generate -m ./checkpoint --select bernoulli --seed 7 -`;

/** --schema: a file with a JSON schema, and --pattern. */
async function readStructure({ schema, pattern }: Flags): Promise<Pick<GenerateOptions, 'schema' | 'pattern'>> {
  if (schema === undefined || schema === 'object') return given({ schema, pattern });
  let value: unknown;
  try {
    value = JSON.parse(await readTextFile(schema));
  } catch (error) {
    interruptSignal.throwIfAborted();
    throw new UsageError(`--schema: expected a file with a JSON schema, or "object": ${(error as Error).message}`);
  }
  return given({ schema: value as GenerateOptions['schema'], pattern });
}

/** --messages: JSON, or the file that holds it, or "-". */
async function readMessages(value: string): Promise<ChatMessage[]> {
  let text = value;
  if (value === '-') text = await readStdin();
  else if (!value.trimStart().startsWith('[')) {
    try {
      text = await readTextFile(value);
    } catch (error) {
      interruptSignal.throwIfAborted();
      throw new UsageError(
        '--messages: expected JSON such as [{"role":"user","content":"Hi"}], ' +
          `or a file with it: ${(error as Error).message}`,
      );
    }
  }
  const where = text === value ? '' : ` in ${value === '-' ? 'stdin' : value}`;
  let messages: unknown;
  try {
    messages = JSON.parse(text);
  } catch (error) {
    throw new UsageError(`--messages: expected JSON${where}: ${(error as Error).message}`);
  }
  const fits = (message: unknown) => {
    const { role, content } = (message ?? {}) as Partial<Record<keyof ChatMessage, unknown>>;
    return typeof role === 'string' && typeof content === 'string';
  };
  if (!Array.isArray(messages) || messages.length === 0 || !messages.every(fits))
    throw new UsageError(`--messages: expected an array of { "role": …, "content": … }, both strings${where}`);
  if (messages.every(({ content }: ChatMessage) => content.trim() === ''))
    throw new UsageError(`--messages: expected messages that say something${where}, got none that does`);
  return messages;
}

const NO_PROMPT =
  'no prompt: give one as an argument, "-" to read it from stdin, or --messages, --prompt-ids or --template';

/** The text of the prompt; undefined and "-" stand for stdin. @throws UsageError where it says nothing */
async function readPromptText(argument: string | undefined): Promise<string> {
  const isStdin = argument === undefined || argument === '-';
  const prompt = isStdin ? await readStdin() : argument;
  if (prompt.trim() !== '') return prompt;
  if (argument === undefined) throw new UsageError(NO_PROMPT);
  const got = prompt === '' ? 'nothing' : 'only white space';
  throw new UsageError(`expected a prompt${isStdin ? ' on stdin' : ''}, got ${got}`);
}

/** The prompt, in the form that was given. Masks in --template-ids become ids when the model is known. */
async function readPrompt(text: string | undefined, flags: Flags): Promise<(model: MaskedDiffusionModel) => Prompt> {
  const { messages, promptIds, template, templateIds, chat } = flags;
  const forms = {
    PROMPT: text,
    '--messages': messages,
    '--prompt-ids': promptIds,
    '--template': template,
    '--template-ids': templateIds,
  };
  const named = Object.entries(forms).filter(([, value]) => value !== undefined);
  if (named.length === 0 && !isPiped()) throw new UsageError(NO_PROMPT);
  if (named.length > 1) throw new UsageError(`expected one prompt, got ${named.map(([name]) => name).join(' and ')}`);
  const [name] = named[0] ?? ['PROMPT'];
  if (chat && name !== 'PROMPT') throw new UsageError('--chat: expected the prompt as an argument or from stdin');
  if (name.startsWith('--template') && flags.splitSpecialTokens)
    throw new UsageError('--split-special-tokens: not allowed with a template, whose masks are special tokens');
  if (name.startsWith('--template') && flags.maxTokens !== undefined)
    throw new UsageError('--max-tokens: not allowed with a template, whose masks say what to fill');
  if (messages !== undefined) {
    const list = await readMessages(messages);
    return () => list;
  }
  if (promptIds) return () => ({ promptIds });
  if (template !== undefined) return () => ({ template });
  if (templateIds) return (model) => ({ template: templateIds.map((id) => id ?? model.config.maskTokenId) });
  const prompt = await readPromptText(text);
  return () => (chat ? [{ role: 'user', content: prompt }] : prompt);
}

/** The row of a stream, as cells. */
class StreamedRow {
  readonly cells: Cell[];
  readonly #model: MaskedDiffusionModel;

  constructor(model: MaskedDiffusionModel, first: StreamEvent) {
    this.#model = model;
    const decided = new Set(first.unmasked.map(({ position }) => position));
    this.cells = Array.from(first.ids, (id, position) => {
      const given = id !== model.config.maskTokenId && !decided.has(position);
      return given ? { text: this.#text(id, position), step: 0 } : { text: '', step: null };
    });
  }

  apply(event: StreamEvent): void {
    for (const { position, token, text } of event.unmasked)
      if (token !== this.#model.config.maskTokenId)
        this.cells[position] = { text: this.#model.tokenizer ? text : `${token} `, step: event.step };
  }

  /** The row in one line without colours. */
  line(): string {
    const words = this.cells.map(({ text, step }) => (step === null ? (this.#model.tokenizer ? '░' : '_ ') : text));
    return oneLine(words.join('').trimEnd().replaceAll('\n', '\\n').replaceAll('\t', '\\t'));
  }

  #text(id: number, position: number): string {
    const { tokenizer } = this.#model;
    if (!tokenizer) return `${id} `;
    const alone = tokenizer.decode([id], { skipSpecialTokens: true });
    // Tokenizers of words put the space between two tokens, and some drop the one that a token begins with at the start
    // of a text.
    return position === 0 ? alone : tokenizer.decode([id, id], { skipSpecialTokens: true }).slice(alone.length);
  }
}

/** Generates with the row on stdout as it fills: in place in a terminal, else a line per step. */
async function showStream(
  model: MaskedDiffusionModel,
  prompt: Prompt,
  options: GenerateOptions,
  delay: number,
): Promise<GenerateResult> {
  const inPlace = process.stdout.isTTY && process.env.TERM !== 'dumb';
  const display = inPlace ? new RowDisplay(process.stdout) : null;
  let row: StreamedRow | null = null;
  let result: GenerateResult | null = null;
  try {
    for await (const event of model.generateStream(prompt, options)) {
      row ??= new StreamedRow(model, event);
      row.apply(event);
      const left = `${event.remaining} of ${row.cells.length} left`;
      if (display) display.update(row.cells, `step ${event.step}, ${left}`);
      else printLine(`step ${event.step}, ${left}: ${row.line()}`);
      if (event.result) result = event.result;
      else if (delay > 0)
        await sleep(delay, undefined, { signal: interruptSignal }).catch(() => interruptSignal.throwIfAborted());
    }
  } catch (error) {
    display?.abandon();
    throw error;
  }
  if (!row || !result) throw new Error('the stream ended without a result');
  if (!display) printData(completionText(model, result));
  else {
    const shown = row.cells.slice(0, result.tokens).filter(({ step }) => step !== null);
    // Tokens one by one may be only parts of characters.
    const whole = !model.tokenizer || shown.map(({ text }) => text).join('') === result.text;
    display.finish(whole ? shown : [{ text: result.text, step: 0 }]);
  }
  return result;
}

/** For prompts from outside the embedded model's world. */
const EMBEDDED_HINT = `The embedded model knows ${datasets.WORLD_TOPICS}, and declines everything else; -m MODEL names another model.`;

/** What a batch cannot do beside its own work. */
const NOT_IN_BATCH = ['messages', 'promptIds', 'template', 'templateIds', 'stream', 'delay', 'json'] as const;

/** Completes the prompts of a file. */
async function generateBatch(batch: string, text: string | undefined, flags: Flags, command: Command): Promise<void> {
  const { chat = false, quiet = false, seeds = 1, batchSize = BATCH_SIZE, out, splitSpecialTokens } = flags;
  const other = NOT_IN_BATCH.find((name) => flags[name] !== undefined);
  if (text !== undefined || other !== undefined) {
    const name = command.options.find((option) => option.attributeName() === other)?.long ?? 'PROMPT';
    throw new UsageError(`${name}: not together with --batch`);
  }
  if (seeds < 1) throw new UsageError(`--seeds: expected at least 1, got ${seeds}`);
  if (batchSize < 1) throw new UsageError(`--batch-size: expected at least 1, got ${batchSize}`);
  const options: GenerateOptions = {
    ...generateOptions(flags),
    ...(await readStructure(flags)),
    splitSpecialTokens,
    signal: interruptSignal,
  };
  checkParent('--out', out);
  await checkBatch(batch, out);
  await using model = await openModel(flags);
  const { planner, adapter } = flags;
  const settings = { chat, planner, adapter };
  await runBatch(model, { input: batch, out, chat, seeds, batchSize, options, settings, quiet });
}

async function generate(text: string | undefined, flags: Flags, command: Command): Promise<void> {
  if (flags.batch !== undefined) {
    await generateBatch(flags.batch, text, flags, command);
    return;
  }
  const only = (['out', 'seeds', 'batchSize'] as const).find((name) => flags[name] !== undefined);
  if (only !== undefined)
    throw new UsageError(`--${only === 'batchSize' ? 'batch-size' : only}: expected together with --batch`);
  const { splitSpecialTokens } = flags;
  const options: GenerateOptions = {
    ...generateOptions(flags),
    ...(await readStructure(flags)),
    splitSpecialTokens,
    signal: interruptSignal,
  };
  const makePrompt = await readPrompt(text, flags);
  if (flags.delay !== undefined && !flags.stream) throw new UsageError('--delay: expected together with --stream');
  await using model = await openModel(flags);
  const prompt = makePrompt(model);
  let result: GenerateResult;
  const steps: Omit<StreamEvent, 'result'>[] = [];
  if (flags.stream && !flags.json) result = await showStream(model, prompt, options, flags.delay ?? 0);
  else if (flags.stream) {
    let last: GenerateResult | null = null;
    for await (const { result: final, ...step } of model.generateStream(prompt, options)) {
      steps.push(step);
      last = final;
    }
    if (!last) throw new Error('the stream ended without a result');
    result = last;
  } else
    result =
      flags.quiet || !flags.progress
        ? await model.generate(prompt, options)
        : await generateWatched(model, prompt, options);
  const { seconds, tokensPerSecond } = result;
  if (flags.json) {
    const { signal: _, ...written } = options;
    const { device, isa, threads } = model.info;
    printJson({
      version: systemInfo().version,
      model: model.source,
      device,
      isa,
      threads,
      options: written,
      seconds,
      tokensPerSecond,
      result,
      ...(flags.stream ? { steps } : {}),
    });
  } else if (!flags.stream) printData(completionText(model, result));
  if (flags.quiet) return;
  if (!flags.json) printMessage(summary(result, drawsSeed(options)));
  if (flags.model === undefined && result.text.trim() === datasets.WORLD_REFUSAL)
    printMessage(wrap(EMBEDDED_HINT, columnsOf(process.stderr) ?? 80).join('\n'));
}

/** Adds `dultra generate` to the program. */
export function register(program: Command): void {
  const command = program
    .command('generate')
    .summary('complete a prompt')
    .description(
      'Completes a prompt by parallel unmasking. Prints the text, or token ids for a checkpoint without a tokenizer.',
    )
    .argument('[prompt]', 'text to continue; "-", or none behind a pipe, reads stdin, all of it one prompt')
    .optionsGroup('Prompt (one of them, or the argument):')
    .option('--chat', "put the prompt into the checkpoint's chat template, as the user's message")
    .option('--messages <file|json>', 'chat messages: [{"role":"user","content":"Hi"}], or a file with them')
    .option('--prompt-ids <ids>', 'token ids, as in 5,17,3', ids)
    .option(
      '--template <text>',
      'text whose masks are filled in place: [MASK], {{8}} for eight, or the mask token itself; with \\ before, it is text',
    )
    .option('--template-ids <ids>', 'token ids with _ where a mask stands, as in 5,_,_,3', maskedIds)
    .option('--split-special-tokens', 'special tokens written in the prompt or the messages are text like any other');
  command
    .optionsGroup('Many prompts:')
    .option(
      '--batch <file>',
      'complete every line of a file, or of stdin (-): records with prompt or messages, or prompts as they are',
    )
    .option(
      '--out <file>',
      'with --batch: append a record for each line; the same command goes on after an interruption',
    )
    .option('--seeds <n>', 'with --batch: so many completions of each line, from --seed on (default: 1)', integer)
    .option('--batch-size <n>', `with --batch: lines that are computed together (default: ${BATCH_SIZE})`, integer);
  addModelOptions(command);
  addSamplingOptions(command);
  command
    .optionsGroup('Structured output:')
    .option('--schema <file>', 'the answer is a value of the JSON schema in this file; "object": any JSON object')
    .option('--pattern <regexp>', 'the answer matches this regular expression as a whole');
  addOutputOptions(
    command,
    '{ version, model, options, seconds, tokensPerSecond, result }, with --stream also the steps',
  )
    .option('--stream', 'show the row as it fills, a colour per step; a line per step where stdout is no terminal')
    .option('--no-progress', 'do not show the passes on a terminal while they are computed')
    .option('--delay <ms>', 'with --stream: wait after each step, to watch a small model', number)
    .addHelpText('after', `${SAMPLER_TEXT}\n${CACHE_TEXT}\n${EXAMPLES}`)
    .action(generate);
}
