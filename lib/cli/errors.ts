// Errors in the words of the command line, with their exit codes.
import type { Command } from 'commander';
import { distributed, isDUltraError, isOptionError } from '../index';
import { printMessage } from './output';

/** Exit codes of every command. */
export const ExitCode = { done: 0, failed: 1, usage: 2, interrupted: 130, terminated: 143 } as const;

/** The command line asks for something that cannot be. */
export class UsageError extends Error {}

/** A signal ended the command: the reason that {@link interruptSignal} aborts with. */
export class Interruption extends Error {
  /** @param text what has become of the work */
  constructor(
    readonly exitCode: number,
    text = 'interrupted',
  ) {
    super(text);
  }
}

const controller = new AbortController();

/** Aborts at the first Ctrl-C (SIGINT) or SIGTERM. Commands hand it to everything that takes a signal. */
export const interruptSignal: AbortSignal = controller.signal;

/** The first SIGINT or SIGTERM asks the command to stop, the second one ends the process. Called once, by main. */
export function handleSignals(): void {
  const stop = (exitCode: number) => () => {
    if (controller.signal.aborted) process.exit(exitCode);
    controller.abort(new Interruption(exitCode));
    // Where MPI ends a job, all of its processes get the signal.
    if ((distributed.launchedRank() ?? 0) > 0) return;
    setTimeout(() => printMessage('dultra: stopping; press Ctrl-C again to stop at once'), 1000).unref();
  };
  process.on('SIGINT', stop(ExitCode.interrupted));
  process.on('SIGTERM', stop(ExitCode.terminated));
}

/** How the user of a command has written the options of the API. */
export interface Naming {
  /** An option, with its parts, as it was written: "learningRate" as "--learning-rate"; null: as in other commands. */
  option(name: string): string | null;
  /** An option that the message about another, `name`, mentions. */
  mention(word: string, name: string): string;
}

const namings = new WeakMap<Command, Naming>();

/** Lets errors of a command name options as its user has written them. */
export function nameOptions(command: Command, naming: Naming): void {
  namings.set(command, naming);
}

/** Hints of the API, in values of options, and their form here; those with a flag are for commands that have it. */
const WORDING: readonly [pattern: RegExp, flag: string | null, replacement: string][] = [
  [/pass \{ promptIds: \[\.\.\.\] \} instead/, 'promptIds', 'give the prompt as ids with --prompt-ids 5,17,3 instead'],
  [/; pass \{ promptIds: \[\.\.\.\] \} instead/, null, ''],
  [/\{ type: "(\w+)" \}/g, 'sampler', '--sampler $1'],
  [/\{ type: "(\w+)" \}/g, 'samplers', '--samplers $1'],
  [/loadModel takes it as maskTokenId/, 'maskTokenId', 'give it with --mask-token-id'],
  [/\bdtype: "(\w+)"/g, 'dtype', '--dtype $1'],
  [/\b(with|which) loadCausalModel\b/g, null, '$1 "dultra eval --autoregressive"'],
];

/** Options that stand for an API name beside the one of that name. */
const ALIASES: Readonly<Record<string, string[]>> = {
  source: ['model', 'delete'],
  template: ['template', 'templateIds'],
  sampler: ['sampler', 'samplers'],
  cache: ['cache', 'caches'],
  blockLength: ['blockLength', 'attendedBlock'],
  outputDir: ['output'],
};

/** The flag of an option of the API, "sampler.threshold" as "--sampler threshold"; null: the command has none. */
function flagOf(option: string, command: Command, flags: ReadonlyMap<string, string>): string | null {
  const [first = '', ...rest]: string[] = option.match(/\w+|\[\d+\]/g) ?? [];
  const names = [ALIASES[first]?.find((name) => command.getOptionValueSource(name)) ?? first, ...rest];
  // "sampler.probabilityScale" is --probability-scale if that was given, else part of --sampler.
  const isFlag = (name: string, i: number) =>
    flags.has(name) && (i === 0 || command.getOptionValueSource(name) === 'cli');
  const last = names.findLastIndex(isFlag);
  const below = names.slice(last + 1).map((name) => (name.startsWith('[') ? name : ` ${name}`));
  return last < 0 ? null : `${flags.get(names[last])}${below.join('')}`;
}

/** The message of an error, with the option that it names, and options that its text mentions, as flags. */
function inFlags(error: Error, command: Command): string {
  const flags = new Map(command.options.map((option) => [option.attributeName(), option.long ?? option.flags]));
  const { option = '' } = error as { option?: string };
  const naming = namings.get(command);
  const argument = option === 'source' ? command.registeredArguments[0]?.name() : undefined;
  const flag = (option && naming?.option(option)) || (flagOf(option, command, flags) ?? argument ?? option);
  let text = error.message.slice(option.length);
  for (const [pattern, needed, replacement] of WORDING)
    if (needed === null || flags.has(needed)) text = text.replace(pattern, replacement);
  // Lists of keys are those of the API or of a configuration.
  if (/\bunknown key\b/.test(text)) return flag + text;
  const mention = (word: string) => naming?.mention(word, option) ?? flags.get(word) ?? word;
  // Names of one word are words of the text, too.
  return flag + text.replace(/\b[a-z]+(?:[A-Z][a-z]+)+\b/g, mention);
}

/** The command line that prints a command's help. */
export function helpOf(command: Command): string {
  const { parent } = command;
  if (!parent) return 'dultra help';
  return parent.parent ? `dultra ${parent.name()} ${command.name()} --help` : `dultra help ${command.name()}`;
}

/** The message to print for an error, with a stack only for a bug, and the exit code. */
export function explain(error: unknown, command: Command): { message: string; exitCode: number } {
  if (error instanceof Interruption) return { message: error.message, exitCode: error.exitCode };
  if (error instanceof UsageError) {
    return {
      message: `${error.message}\nRun "${helpOf(command)}" for its options.`,
      exitCode: ExitCode.usage,
    };
  }
  if (isDUltraError(error) && error.code !== 'INTERNAL')
    return { message: inFlags(error, command), exitCode: ExitCode.failed };
  // A TypeError that names no option is a bug.
  if (isOptionError(error)) return { message: inFlags(error, command), exitCode: ExitCode.usage };
  const system = (error as NodeJS.ErrnoException | null)?.code;
  if (error instanceof Error && typeof system === 'string' && /^E[A-Z]+$/.test(system))
    return { message: error.message, exitCode: ExitCode.failed };
  const stack = error instanceof Error ? error.stack : String(error);
  return { message: `this is a bug in dultra, please report it:\n${stack}`, exitCode: ExitCode.failed };
}
