// decide --batch: a file of states in, a file of answers out, resumable after it was ended at any moment.
import { createHash } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { createReadStream } from 'node:fs';
import {
  type DecideOptions,
  type DecisionState,
  isDUltraError,
  isOptionError,
  type MaskedDiffusionModel,
  type Question,
} from '../index';
import { BatchProgress, countLines } from './batch';
import { BatchOutput, type BatchRecord } from './batch-output';
import { Interruption, UsageError } from './errors';
import { type Line, readLines } from './lines';
import { printMessage } from './output';

/** Lines that are asked together. */
const TOGETHER = 32;

/** What a batch is asked for. */
export interface DecideBatch {
  /** File of records, or "-" for stdin. */
  input: string;
  /** File of answers, which is appended to; without it, they are printed. */
  out: string | undefined;
  /** Of lines that have none of their own; null: every line has. */
  questions: Readonly<Record<string, Question>> | null;
  options: DecideOptions;
  /** What of the command line the answers depend on beside questions and `options`. */
  settings: object;
  quiet: boolean;
}

/** A line that cannot be asked. */
class BadLine extends Error {}

interface Asked {
  state: DecisionState;
  questions: Readonly<Record<string, Question>>;
  id: unknown;
}

/** @throws BadLine saying what was expected */
function askedOf(line: Line, questions: DecideBatch['questions']): Asked {
  if ('error' in line) throw new BadLine(line.error);
  let record: unknown;
  try {
    record = JSON.parse(line.text);
  } catch (error) {
    throw new BadLine(`expected JSON such as {"state": "…"}: ${(error as Error).message}`);
  }
  if (typeof record !== 'object' || record === null || !('state' in record))
    throw new BadLine('expected an object such as {"state": "…"}');
  const own = (record as { questions?: Asked['questions'] | null }).questions ?? questions;
  if (own === null) throw new BadLine('expected "questions" beside "state"; the command line has none');
  return { state: record.state as DecisionState, questions: own, id: (record as { id?: unknown }).id };
}

/** Whether an error is about one line, so that the others can go on. */
const isOfLine = (error: unknown): error is Error =>
  error instanceof BadLine ||
  (isOptionError(error) && /^(state|questions)/.test(error.option)) ||
  isDUltraError(error, 'NO_TOKENIZER') ||
  isDUltraError(error, 'BAD_CHECKPOINT');

/** Answers every line of a file. @throws UsageError */
export async function runDecideBatch(model: MaskedDiffusionModel, request: DecideBatch): Promise<void> {
  const { input, out, questions, options, settings, quiet } = request;
  const { signal: _, ...rest } = options;
  // One listener for each line that is being asked.
  if (options.signal) setMaxListeners(0, options.signal);
  const basis = JSON.stringify([await model.weightsHash(), model.decisions.templates, questions, rest, settings]);
  const keyOf = (text: string) => createHash('sha256').update(basis).update(text).digest('hex').slice(0, 16);
  const output = new BatchOutput(out);
  const total = quiet || input === '-' || !process.stderr.isTTY ? null : await countLines(input);
  await output.open();
  const before = output.size - output.failed;
  const progress = new BatchProgress(total, 'lines');
  let lines = 0;
  let waiting: Line[] = [];

  const answer = async (line: Line): Promise<BatchRecord> => {
    const key = keyOf('text' in line ? line.text : line.error);
    let id: unknown;
    try {
      const asked = askedOf(line, questions);
      id = asked.id;
      const { answers, usage, calibrated, warnings } = await model.decide(asked.state, asked.questions, options);
      return {
        line: line.number,
        ...(id !== undefined && { id }),
        key,
        answers,
        calibrated,
        ...(warnings.length > 0 && { warnings }),
        usage,
      };
    } catch (error) {
      if (!isOfLine(error)) throw error;
      return { line: line.number, ...(id !== undefined && { id }), key, error: error.message };
    }
  };
  const flush = async () => {
    const together = waiting;
    waiting = [];
    const missing = together.filter(
      (line) => !output.has(line.number, 0, keyOf('text' in line ? line.text : line.error)),
    );
    if (missing.length > 0) {
      progress.begin();
      // Lines of a moment go through the model together.
      await output.write(await Promise.all(missing.map(answer)));
    }
    progress.add(together.length, missing.length > 0);
  };

  try {
    const stream = input === '-' ? process.stdin : createReadStream(input);
    for await (const line of readLines(stream, input === '-' ? 'stdin' : input)) {
      if ('text' in line && line.text.trim() === '') continue;
      lines++;
      waiting.push(line);
      if (waiting.length >= TOGETHER) await flush();
    }
    await flush();
  } catch (error) {
    if (error instanceof Interruption && out !== undefined) {
      progress.stop();
      printMessage(`answers to ${output.size} lines are in ${out}; the same command goes on`);
    }
    throw error;
  } finally {
    progress.stop();
    await output.close();
  }
  if (lines === 0) throw new UsageError(`--batch: expected states in ${input === '-' ? 'stdin' : input}, got none`);
  const { failed } = output;
  if (!quiet) {
    const had = before > 0 ? `, ${before} of them from before` : '';
    const where = out === undefined ? '' : ` in ${out}`;
    printMessage(
      `answers to ${output.size - failed} lines${where}${had}${failed > 0 ? `; ${failed} line${failed === 1 ? '' : 's'} failed, and say${failed === 1 ? 's' : ''} why` : ''}`,
    );
  }
  if (failed > 0) process.exitCode = 1;
}
