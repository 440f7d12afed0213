#!/usr/bin/env node
// The command line. Every subcommand is a file in commands/ with one `register(program)`. Data goes to stdout, messages
// and progress to stderr.
import { Command, CommanderError } from 'commander';
import { distributed } from '../index';
import { ExitCode, explain, handleSignals, helpOf, interruptSignal } from './errors';
import { HELP_LAYOUT, layOut, putCommonFirst } from './help';
import { isOtherRank, printFailure } from './job';
import { printable, printHelp, printMessage, showWarnings } from './output';

const { version, description } = require('../../package.json') as { version: string; description: string };

/** What adds each command to a program, in the order of the help. It is loaded where it is asked for: it takes time. */
const COMMANDS: Readonly<Record<string, () => { register(program: Command): void }>> = {
  generate: () => require('./commands/generate'),
  chat: () => require('./commands/chat'),
  decide: () => require('./commands/decide'),
  serve: () => require('./commands/serve'),
  train: () => require('./commands/train'),
  distill: () => require('./commands/distill'),
  eval: () => require('./commands/eval'),
  calibrate: () => require('./commands/calibrate'),
  bench: () => require('./commands/bench'),
  merge: () => require('./commands/merge'),
  quantize: () => require('./commands/quantize'),
  pull: () => require('./commands/pull'),
  models: () => require('./commands/models'),
  info: () => require('./commands/info'),
  verify: () => require('./commands/verify'),
  doctor: () => require('./commands/doctor'),
};

/** Commands that share their work between the processes of a job. */
const SHARED: ReadonlySet<string> = new Set(['train', 'distill', 'eval']);

/**
 * @param only the command that is run; of another name, the program has all
 * @param tell takes what is wrong with a command line, which is printed by itself where this process is alone
 */
function buildProgram(only: string, tell: ((text: string) => void) | null): Command {
  const program = new Command('dultra')
    .description(`${description}.`)
    .version(version, '-V, --version', 'print the version; so does -v')
    .helpOption('-h, --help', 'print this help')
    .helpCommand('help [command]', 'print the help of a command')
    .configureHelp(HELP_LAYOUT)
    // Before the subcommands, which inherit these.
    .exitOverride()
    .configureOutput({
      // All ranks of a job are told the same.
      writeOut: (text) => isOtherRank() || printHelp(layOut(text)),
      ...(tell && { writeErr: tell }),
      outputError: (text, write) =>
        tell ? tell(text.replace(/^error: /, '')) : write(printable(text.replace(/^error: /, 'dultra: '))),
    })
    .addHelpText(
      'after',
      '\nData goes to stdout, progress and messages to stderr. ' +
        'Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n' +
        'Run "dultra help COMMAND" for the options of a command.',
    );
  for (const name of Object.hasOwn(COMMANDS, only) ? [only] : Object.keys(COMMANDS)) COMMANDS[name]().register(program);
  for (const command of program.commands.flatMap((top) => [top, ...top.commands])) {
    putCommonFirst(command);
    command.helpOption('-h, --help', 'print this help');
    command.showHelpAfterError(`Run "${helpOf(command)}" for its options.`);
  }
  program.showHelpAfterError('Run "dultra help" for the commands.');
  return program;
}

/** Whether a command line is one that the processes of a job run together. */
const sharesWork = (args: readonly string[]): boolean =>
  SHARED.has(args[0]) && !args.includes('--help') && !args.includes('-h');

/** The command line with what commander does not know by itself. */
function understood(args: readonly string[], program: Command): readonly string[] {
  const [first, second] = args;
  if (first === '-v') return ['-V', ...args.slice(1)];
  // Help of a command that there is not: the same as that command, which is refused by its name.
  const isKnown = program.commands.some((command) => command.name() === second) || second === 'help';
  return first === 'help' && second !== undefined && !second.startsWith('-') && !isKnown ? [second] : args;
}

/** Runs one command line, without the program's name, and returns its exit code. */
export async function main(args: readonly string[]): Promise<number> {
  let wrong = '';
  const tell = (text: string) => {
    wrong += text;
  };
  const program = buildProgram(args[0] ?? '', distributed.launchedRank() === null ? null : tell);
  // Parsers of values run before the command does.
  let running: Command = program.commands.find((command) => command.name() === args[0]) ?? program;
  program.hook('preAction', (_program, action) => {
    running = action;
  });
  const isShared = sharesWork(args);
  try {
    // Before anything can fail: a process that ends without having joined would, with MPICH, leave all others waiting
    // for it for ever.
    if (isShared) distributed.init();
    await program.parseAsync(understood(args, program), { from: 'user' });
    // A command that has done its work may say that something in it failed.
    const code = Number(process.exitCode ?? ExitCode.done);
    process.exitCode = undefined;
    return code;
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.code === 'commander.unknownOption' && /'-\d/.test(error.message))
        printMessage('A prompt that begins with a dash comes after --, as in: dultra generate -- "-3+5="');
      if (
        error.code === 'commander.unknownOption' &&
        /'(-m|--model)\b/.test(error.message) &&
        running.registeredArguments.some((argument) => argument.name() === 'model')
      )
        printMessage(`The model is an argument here: dultra ${running.name()} MODEL`);
      if (error.exitCode === 0) return ExitCode.done;
      if (wrong !== '' && (isShared || !isOtherRank())) await printFailure(error, wrong.trimEnd());
      return ExitCode.usage;
    }
    const { message, exitCode } = explain(error, running);
    await printFailure(error, message);
    return exitCode;
  }
}

/** Makes this process the command line's. */
function start(): void {
  // EPIPE (dultra … | head -1): the reader has closed the pipe, which is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(ExitCode.done);
    printMessage(`dultra: stdout: ${error.message}`);
    process.exit(ExitCode.failed);
  });
  process.stderr.on('error', () => {});
  handleSignals();
  showWarnings();
  main(process.argv.slice(2)).then((code) => {
    // After Ctrl-C, do not wait for native work that is still stopping. Nor, in a job that has failed, for an exchange
    // with other ranks, which would never end.
    if (interruptSignal.aborted || (code !== ExitCode.done && distributed.launchedRank() !== null)) process.exit(code);
    process.exitCode = code;
  });
}

if (require.main === module) start();
