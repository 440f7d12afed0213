// dultra calibrate: how good the probabilities of decide are, and temperatures that make them better.
import { existsSync } from 'node:fs';
import { readFile, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import {
  type CalibrationReport,
  calibrate,
  calibrationPage,
  type DecisionExample,
  type DecisionFile,
  datasets,
  EMBEDDED_MODELS,
  type MaskedDiffusionModel,
  parseDecisionFile,
} from '../../index';
import { interruptSignal, UsageError } from '../errors';
import { readTextFile } from '../input';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, printColumns, printJson, printLine, printMessage } from '../output';
import { checkFile, checkParent } from '../paths';
import { ProgressBar } from '../progress';
import { given, integer, seed } from '../values';

interface Flags extends ModelFlags {
  data: string;
  count?: number;
  out?: string;
  report?: string;
  decisionFile?: string;
  seed?: bigint;
}

/** Decisions of the world that are drawn where none are given. */
const COUNT = 2000;

const EXAMPLES = `
Examples:
  dultra calibrate --data world --out decision.json --report calibration.html
  dultra calibrate -m ./checkpoint --data labelled.jsonl

A line of the data: {"state": "…", "questions": {"late": {"type": "boolean",
"instructions": "Is it late?"}}, "answers": {"late": true}}`;

/** The labelled decisions of a file, or those of the world. */
async function readExamples(data: string, { count, seed: given = 0n }: Flags): Promise<DecisionExample[]> {
  if (data === 'world' && !existsSync(data))
    return datasets.worldDecisions('validation', count ?? COUNT, Number(given % 2n ** 32n));
  const lines = (await readTextFile(data)).split('\n');
  const examples = lines.flatMap((line, i): DecisionExample[] => {
    if (line.trim() === '') return [];
    try {
      return [JSON.parse(line)];
    } catch (error) {
      throw new UsageError(`--data: ${data}, line ${i + 1}: expected JSON: ${(error as Error).message}`);
    }
  });
  if (examples.length === 0) throw new UsageError(`--data: expected labelled decisions in ${data}, got none`);
  return count === undefined ? examples : examples.slice(0, count);
}

/** Where the temperatures go. @throws UsageError where the weights lie in a folder that is not the user's */
function outOf(flags: Flags, model: MaskedDiffusionModel): string | null {
  if (flags.out !== undefined) return flags.out;
  const { model: source } = flags;
  const isEmbedded = source === undefined || EMBEDDED_MODELS.some((name) => name === source);
  const isOwn = !isEmbedded && existsSync(source) && path.resolve(source) === path.resolve(model.source);
  return isOwn ? path.join(model.source, 'decision.json') : null;
}

/** Writes the calibration into a decision.json, beside what else is there. */
async function writeDecisions(file: string, model: MaskedDiffusionModel, found: CalibrationReport): Promise<void> {
  const before: DecisionFile | null = existsSync(file)
    ? parseDecisionFile(JSON.parse(await readFile(file, 'utf8')), file)
    : null;
  const json: DecisionFile = {
    version: 1,
    templates: found.templates,
    questions: before?.questions ?? model.decisions.questions,
    calibration: found.calibration,
  };
  const temporary = `${file}.${process.pid}.tmp`;
  await writeFile(temporary, `${JSON.stringify(json, null, 2)}\n`);
  await rename(temporary, file);
}

const HEAD = ['questions', '', 'answers', 'majority', 'accuracy', 'NLL', 'Brier', 'ECE', 'ECE, 95 %', 'option mass'];

function print({ types }: CalibrationReport): void {
  const rows = Object.entries(types).flatMap(([type, { answers, majority, optionMass, before, after, temperature }]) =>
    [before, after].flatMap((figures, i) => {
      if (!figures) return [];
      const { accuracy, nll, brier, ece } = figures;
      const figure = ({ value }: { value: number }) => value.toFixed(4);
      return [
        [
          i === 0 ? type : '',
          i === 0 ? 'at temperature 1' : `calibrated (${temperature!.toFixed(3)})`,
          i === 0 ? String(answers) : '',
          i === 0 ? majority.toFixed(4) : '',
          figure(accuracy),
          figure(nll),
          figure(brier),
          figure(ece),
          `${ece.low.toFixed(4)} to ${ece.high.toFixed(4)}`,
          i === 0 ? optionMass.toFixed(4) : '',
        ],
      ];
    }),
  );
  printColumns(HEAD, rows, 2);
  for (const [type, { orderBias, distance, knownEce }] of Object.entries(types)) {
    if (orderBias)
      printLine(
        `${type}: with the list from the back, ${(100 * orderBias.changed).toFixed(1)} % of the answers change, and the probability by ${orderBias.difference.toFixed(4)}`,
      );
    if (distance)
      printLine(
        `${type}: mean distance from the known probabilities ${distance.before.toFixed(4)}${distance.after === null ? '' : `, calibrated ${distance.after.toFixed(4)}`}`,
      );
    if (knownEce)
      printLine(
        `${type}: ECE against them ${knownEce.before.toFixed(4)}${knownEce.after === null ? '' : `, calibrated ${knownEce.after.toFixed(4)}`}; against as many labels their own is ${knownEce.perfect.toFixed(4)}`,
      );
  }
}

async function run(flags: Flags): Promise<void> {
  const { data, report, out, decisionFile, quiet = false } = flags;
  checkFile('--report', report, 'calibration.html');
  checkParent('--out', out);
  if (flags.count !== undefined && flags.count < 1)
    throw new UsageError(`--count: expected at least 1, got ${flags.count}`);
  const template =
    decisionFile === undefined
      ? undefined
      : parseDecisionFile(JSON.parse(await readTextFile(decisionFile)), decisionFile).templates;
  const examples = await readExamples(data, flags);
  await using model = await openModel(flags);
  const bar = new ProgressBar('{bar} {value}/{total} examples');
  let found: CalibrationReport;
  try {
    found = await calibrate(model, examples, {
      ...given({ template, seed: flags.seed }),
      signal: interruptSignal,
      ...(process.stderr.isTTY && !quiet && { onProgress: (done, total) => bar.update(done, total, {}) }),
    });
  } finally {
    bar.stop();
  }
  if (flags.json) printJson({ model: model.source, ...found });
  else print(found);
  const file = outOf(flags, model);
  if (file !== null) await writeDecisions(file, model, found);
  const title = `Calibration of ${flags.model ?? EMBEDDED_MODELS[0]}`;
  if (report !== undefined) await writeFile(report, calibrationPage(title, found));
  if (quiet) return;
  if (Object.keys(found.calibration.types).length === 0)
    printMessage('no type of question has 100 labelled answers: nothing is calibrated');
  printMessage(
    file === null
      ? 'nothing was written: --out FILE keeps the temperatures'
      : `templates and temperatures are in ${file}`,
  );
}

/** Adds `dultra calibrate` to the program. */
export function register(program: Command): void {
  const command = program
    .command('calibrate')
    .summary('measure the probabilities of decide, and make them fit')
    .description(
      'Compares the probabilities of decide with labelled answers, and finds a temperature for each type of question. ' +
        'Figures are of answers that had no part in the temperature. Writes decision.json beside the weights, or --out.',
    )
    .optionsGroup('Data:')
    .requiredOption(
      '--data <file>',
      'labelled decisions, one JSON object a line; "world": drawn from the embedded world',
    )
    .option('--count <n>', `use so many of them (default: all; ${COUNT} of the world)`, integer)
    .option('--seed <n>', 'seed of halves, intervals and of what is drawn (default: 0)', seed)
    .option('--decision-file <file>', "templates in place of the model's, as in decision.json")
    .optionsGroup('Results:')
    .option('--out <file>', 'where templates and temperatures go (default: decision.json beside the weights)')
    .option('--report <file>', 'also write the figures and pictures as one HTML file');
  addModelOptions(command);
  addOutputOptions(command, '{ model, types, templates, calibration }').addHelpText('after', EXAMPLES).action(run);
}
