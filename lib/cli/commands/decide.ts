// dultra decide: answers with probabilities in place of a text.
import type { Command } from 'commander';
import { Option } from 'commander';
import {
  type DecideOptions,
  type DecisionAnswer,
  type DecisionState,
  type MaskedDiffusionModel,
  parseDecisionFile,
  type Question,
} from '../../index';
import { checkBatch } from '../batch';
import { runDecideBatch } from '../decide-batch';
import { interruptSignal, UsageError } from '../errors';
import { isPiped, readStdin, readTextFile } from '../input';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addOutputOptions, printJson, printLine, printMessage } from '../output';
import { checkParent } from '../paths';
import { given, integer, number } from '../values';

interface Flags extends ModelFlags {
  ask?: string;
  options?: string;
  levels?: string;
  questions?: string;
  state?: string;
  decisionFile?: string;
  calibration: boolean;
  scorer?: DecideOptions['scorer'];
  orders?: 1 | 2;
  prior?: boolean;
  minOptionMass?: number;
  confidence?: DecideOptions['confidence'];
  batch?: string;
  out?: string;
}

const EXAMPLES = `
Examples:
  dultra decide "The soup was awful and the waiter was dreadful."
  dultra decide "The lamp is great." --ask "Will the customer buy again?"
  dultra decide "My parcel never came." --ask "Which team?" --options billing,shipping,repairs,sales
  dultra decide --batch reviews.jsonl --questions questions.json --out answers.jsonl`;

/** Parts of a list that commas separate. */
function parts(flag: string, text: string): string[] {
  const list = text.split(',').map((part) => part.trim());
  if (list.length < 2 || list.includes(''))
    throw new UsageError(`${flag}: expected at least two, separated by commas, got ${JSON.stringify(text)}`);
  return list;
}

/** JSON that a flag gives, or a file that holds it. */
async function readJson(flag: string, value: string): Promise<unknown> {
  let text = value;
  if (!/^\s*[[{]/.test(value)) {
    try {
      text = await readTextFile(value);
    } catch (error) {
      interruptSignal.throwIfAborted();
      throw new UsageError(`${flag}: expected JSON, or a file with it: ${(error as Error).message}`);
    }
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UsageError(`${flag}: expected JSON${text === value ? '' : ` in ${value}`}: ${(error as Error).message}`);
  }
}

/** The questions of the command line; null: those that the model knows. */
async function readQuestions(flags: Flags): Promise<Readonly<Record<string, Question>> | null> {
  const { ask, options, levels, questions } = flags;
  if (questions !== undefined) {
    const other = Object.entries({ '--ask': ask, '--options': options, '--levels': levels }).find(([, text]) => text);
    if (other) throw new UsageError(`${other[0]}: not together with --questions`);
    return (await readJson('--questions', questions)) as Record<string, Question>;
  }
  if (options !== undefined && levels !== undefined) throw new UsageError('--levels: not together with --options');
  if (ask === undefined && options === undefined && levels === undefined) return null;
  const asked = given({ instructions: ask });
  if (options !== undefined) {
    const names = parts('--options', options);
    if (new Set(names).size < names.length)
      throw new UsageError(`--options: expected names that differ, got ${JSON.stringify(options)}`);
    return { answer: { type: 'choice', ...asked, criteria: Object.fromEntries(names.map((name) => [name, null])) } };
  }
  if (levels !== undefined) return { answer: { type: 'score', ...asked, criteria: parts('--levels', levels) } };
  return { answer: { type: 'boolean', ...asked } };
}

/** The state: the argument, --state, or stdin. */
async function readState(text: string | undefined, flags: Flags): Promise<DecisionState> {
  if (flags.state !== undefined) {
    if (text !== undefined) throw new UsageError('--state: not together with an argument');
    return (await readJson('--state', flags.state)) as DecisionState;
  }
  if (text === undefined && !isPiped())
    throw new UsageError('no state: give a text as an argument, "-" to read it from stdin, or --state');
  const state = text === undefined || text === '-' ? await readStdin() : text;
  if (state.trim() === '') throw new UsageError('expected a text that says something');
  return state;
}

const BAR = 24;

/** A line of a probability: its name, number and a bar. */
function bar(name: string, probability: number, width: number): string {
  return `  ${name.padEnd(width)}  ${probability.toFixed(4)}  ${'█'.repeat(Math.round(probability * BAR))}`.trimEnd();
}

function show(name: string, answer: DecisionAnswer): void {
  const mass = `option mass ${answer.optionMass.toFixed(3)}`;
  if (answer.type === 'refusal') {
    printLine(`${name}: refused, ${mass}`, { bold: true });
    return;
  }
  if (answer.type === 'boolean') {
    printLine(`${name}: ${answer.probability > 0.5 ? 'yes' : 'no'} (${mass})`, { bold: true });
    printLine(bar('yes', answer.probability, 3));
    return;
  }
  const [what, rows]: [string, [string, number][]] =
    answer.type === 'choice'
      ? [answer.choice, Object.entries(answer.probabilities)]
      : [
          `${answer.score.toFixed(2)} of ${answer.legend.length - 1}`,
          answer.probabilities.map((p, i) => [`${i} ${answer.legend[i]}`, p]),
        ];
  printLine(`${name}: ${what} (confidence ${answer.confidence.toFixed(3)}, ${mass})`, { bold: true });
  const width = Math.max(...rows.map(([label]) => label.length));
  for (const [label, probability] of rows) printLine(bar(label, probability, width));
}

const NO_QUESTIONS =
  'no questions: give --ask, or --questions; this model knows none of its own, which decision.json would name';

const known = (model: MaskedDiffusionModel): Readonly<Record<string, Question>> | null =>
  Object.keys(model.decisions.questions).length > 0 ? model.decisions.questions : null;

async function decide(text: string | undefined, flags: Flags): Promise<void> {
  const { batch, out, quiet = false, scorer, orders, prior, minOptionMass, confidence, decisionFile } = flags;
  const options: DecideOptions = {
    ...given({ scorer, orders, prior, minOptionMass, confidence }),
    signal: interruptSignal,
  };
  if (decisionFile !== undefined) {
    const { templates, calibration } = parseDecisionFile(await readJson('--decision-file', decisionFile), decisionFile);
    Object.assign(options, given({ template: templates, calibration }));
  }
  if (!flags.calibration) options.calibration = 'none';
  const questions = await readQuestions(flags);
  if (batch !== undefined) {
    const other = Object.entries({ STATE: text, '--state': flags.state, '--json': flags.json }).find(
      ([, value]) => value,
    );
    if (other) throw new UsageError(`${other[0]}: not together with --batch`);
    checkParent('--out', out);
    await checkBatch(batch, out);
    await using model = await openModel(flags);
    const { planner, adapter } = flags;
    const own = questions ?? known(model);
    await runDecideBatch(model, { input: batch, out, questions: own, options, settings: { planner, adapter }, quiet });
    return;
  }
  if (out !== undefined) throw new UsageError('--out: expected together with --batch');
  const state = await readState(text, flags);
  await using model = await openModel(flags);
  const asked = questions ?? known(model);
  if (asked === null) throw new UsageError(NO_QUESTIONS);
  const result = await model.decide(state, asked, options);
  if (flags.json) printJson({ model: model.source, ...result });
  else for (const [name, answer] of Object.entries(result.answers)) show(name, answer);
  if (quiet) return;
  for (const warning of result.warnings) printMessage(warning);
  if (!flags.json)
    printMessage(
      result.calibrated
        ? 'calibrated probabilities'
        : 'not calibrated: "dultra calibrate" measures how often such probabilities are right',
    );
}

/** Adds `dultra decide` to the program. */
export function register(program: Command): void {
  const command = program
    .command('decide')
    .summary('answer questions with probabilities')
    .description(
      'Answers questions about a text: yes or no, one of some options, or a level, with the probability of each, in one ' +
        'pass. Without a question, asks those that the model was trained on.',
    )
    .argument('[state]', 'the text that is asked about; "-", or none behind a pipe, reads stdin')
    .optionsGroup('Question:')
    .option('--ask <text>', 'the question; alone, it is one of yes or no')
    .option('--options <list>', 'what it chooses from, separated by commas')
    .option('--levels <list>', 'levels, from the lowest, separated by commas')
    .option('--questions <file|json>', 'several, by name: {"late":{"type":"boolean","instructions":"Is it late?"}}')
    .option('--state <file|json>', 'a value that the model reads as JSON, or messages, in place of a text')
    .optionsGroup('Answers:')
    .addOption(
      new Option('--scorer <name>', "how options are scored (default: the template's)").choices([
        'token',
        'label',
        'chain',
        'joint',
      ]),
    )
    .option('--orders <n>', '2: ask with the list of options from both ends, and average (default: 1)', integer)
    .option('--prior', "subtract each option's score without the state, at twice the cost")
    .option('--min-option-mass <p>', 'refuse where all options together are less probable (default: 0)', number)
    .addOption(
      new Option('--confidence <form>', 'what the confidence is made of (default: jev)').choices(['jev', 'entropy']),
    )
    .option('--decision-file <file>', "templates and calibration in place of the model's, as calibrate writes them")
    .option('--no-calibration', 'probabilities as the model has them')
    .optionsGroup('Many states:')
    .option('--batch <file>', 'answer every line of a file, or of stdin (-): records with state, and questions or not')
    .option(
      '--out <file>',
      'with --batch: append a record for each line; the same command goes on after an interruption',
    );
  addModelOptions(command);
  addOutputOptions(command, '{ model, answers, usage, calibrated, warnings }')
    .addHelpText('after', EXAMPLES)
    .action(decide);
}
