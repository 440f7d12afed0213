// dultra distill: a model's own answers, from which distillation learns.
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import type { Command } from 'commander';
import { parseSampler, training } from '../../index';
import { interruptSignal } from '../errors';
import { addJobOptions, type JobFlags, joinJob } from '../job';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, printData, printJson, printMessage } from '../output';
import { ProgressBar } from '../progress';
import { given, integer, number, seed } from '../values';

interface Flags extends ModelFlags, JobFlags {
  dataset: string;
  out: string;
  count?: number;
  sampler?: string;
  maxTokens?: number;
  blockLength?: number;
  temperature?: number;
  retries?: number;
  keepWrong?: boolean;
  seed?: bigint;
}

const EXAMPLES = `
Examples:
  dultra distill -m runs/tiny-sft/final -d st1 --count 4000 -o runs/tiny-answers.jsonl
  dultra distill -m GSAI-ML/LLaDA-8B-Instruct -d gsm8k -n 256 --retries 4 -o answers.jsonl
  dultra train dparallel -m GSAI-ML/LLaDA-8B-Instruct -d answers.jsonl

A file that is there is gone on with. Each line has question, llm_response and gt_answer, as dParallel's data, and the step
that decided each token (reveal_step), from which d3llm takes its masks.`;

async function distill(own: Flags): Promise<void> {
  const { group, flags } = await joinJob(own);
  const { out, count, maxTokens, blockLength, temperature, retries, keepWrong, quiet } = flags;
  await using model = await openModel(flags);
  mkdirSync(path.dirname(path.resolve(out)), { recursive: true });
  const bar = quiet ? null : new ProgressBar('answers {bar} {percentage}%, {written} written, {eta_formatted} left');
  let last: training.DistillAnswersProgress | null = null;
  try {
    for await (const progress of training.distillAnswers(model, {
      dataset: flags.dataset,
      output: out,
      signal: interruptSignal,
      ...given({ count, maxTokens, blockLength, temperature, retries, keepWrong, seed: flags.seed }),
      ...(flags.sampler !== undefined && { sampler: parseSampler(flags.sampler) }),
    })) {
      last = progress;
      bar?.update(progress.done, progress.count, { written: String(progress.written) });
    }
  } finally {
    bar?.stop();
  }
  if (group.rank > 0) return;
  if (flags.json) printJson({ file: out, ...last });
  else printData(out);
  if (!quiet && !flags.json)
    printMessage(
      last ? `${last.written} answers of ${last.count} prompts` : 'nothing left to do: every prompt is done',
    );
}

/** Adds `dultra distill` to the program. */
export function register(program: Command): void {
  const command = program
    .command('distill')
    .summary("write a model's own answers, to distil from")
    .description(
      "Writes a model's own answers to the prompts of a data set into a file of JSON lines, with the order in which it " +
        'decided their tokens; where the data set can tell, right ones alone. Prints the file.',
    )
    .requiredOption('-d, --dataset <task|file>', 'a task such as st1, a data set such as gsm8k, or own examples')
    .requiredOption('-o, --out <file>', 'file that records are appended to')
    .option('--count <n>', 'prompts to answer (default: all; a task without end needs it)', integer)
    .optionsGroup('Decoding:')
    .option('-s, --sampler <name[:value]>', 'how answers are decoded (default: fixed, a token per pass)')
    .option('-n, --max-tokens <n>', "tokens of an answer (default: the data set's)", integer)
    .option('-b, --block-length <n>', "tokens per block (default: the data set's, else 32)", integer)
    .option('-t, --temperature <x>', 'token temperature of the first attempt (default: 0)', number)
    .option('--retries <n>', 'further attempts at a wrong answer, each hotter by 0.1 (default: 0)', integer)
    .option('--keep-wrong', 'also write answers that are wrong after the last attempt')
    .option('--seed <n>', 'seed of prompts and draws (default: 0)', seed);
  addModelOptions(command);
  addJobOptions(addOutputOptions(command, '{ file, done, count, written }'))
    .addHelpText('after', EXAMPLES)
    .action(distill);
}
