// Errors as people at a terminal read them: in the words of the command line, with the exit code that they mean.
import type { Command } from 'commander';
import { isDUltraError } from '../index';

/** Exit codes of every command. */
export const ExitCode = { done: 0, failed: 1, usage: 2, interrupted: 130, terminated: 143 } as const;

/** The command line asks for something that cannot be. */
export class UsageError extends Error {}

/** A signal ended the command: the reason that {@link interruptSignal} aborts with. */
export class Interruption extends Error {
  constructor(readonly exitCode: number) {
    super('interrupted');
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
    setTimeout(() => process.stderr.write('dultra: stopping; press Ctrl-C again to stop at once\n'), 1000).unref();
  };
  process.on('SIGINT', stop(ExitCode.interrupted));
  process.on('SIGTERM', stop(ExitCode.terminated));
}

/** The API's way to say something, and how it is said here. */
const WORDING: readonly [RegExp, string][] = [
  [/pass \{ promptIds: \[\.\.\.\] \} instead/, 'give the prompt as ids with --prompt-ids 5,17,3 instead'],
  [/\{ type: "(\w+)" \}/g, '--sampler $1'],
  [/\bdtype: "(\w+)"/g, '--dtype $1'],
];

/** Options that stand for an API name beside the one of that name. */
const ALIASES: Readonly<Record<string, string[]>> = { source: ['model'], template: ['template', 'templateIds'] };

/**
 * An API message with option names as flags: "genLength: expected a multiple of blockLength" becomes "--gen-length: …of
 * --block-length".
 */
function inFlags(message: string, command: Command): string {
  const flags = new Map(command.options.map((option) => [option.attributeName(), option]));
  let text = message;
  const path = /^([A-Za-z]+)((?:\.\w+)*)(?=[[:])/.exec(message);
  if (path) {
    const names = [
      ALIASES[path[1]]?.find((name) => command.getOptionValueSource(name)) ?? path[1],
      ...path[2].split('.').slice(1),
    ];
    // "sampler.probabilityScale" is --probability-scale where that was given, else part of --sampler.
    const last = names.findLastIndex(
      (name, i) => flags.has(name) && (i === 0 || command.getOptionValueSource(name) === 'cli'),
    );
    if (last >= 0) {
      const rest = names.slice(last + 1).map((name) => ` ${name}`);
      text = `${flags.get(names[last])?.long}${rest.join('')}${message.slice(path[0].length)}`;
    }
  }
  for (const [pattern, replacement] of WORDING) text = text.replace(pattern, replacement);
  return text.replace(/\b[a-z]+(?:[A-Z][a-z]+)+\b/g, (word) => flags.get(word)?.long ?? word);
}

/** What to print for an error, without a stack unless it is a bug of ours, and the exit code. */
export function explain(error: unknown, command: Command): { message: string; exitCode: number } {
  if (error instanceof Interruption) return { message: error.message, exitCode: error.exitCode };
  if (error instanceof UsageError) {
    return {
      message: `${error.message}\nRun "dultra help ${command.name()}" for its options.`,
      exitCode: ExitCode.usage,
    };
  }
  if (isDUltraError(error) && error.code !== 'INTERNAL') {
    const hint = error.code === 'BAD_CHECKPOINT' && command.opts().model === undefined ? '; --model names it' : '';
    return { message: inFlags(error.message, command) + hint, exitCode: ExitCode.failed };
  }
  // Wrong arguments, which the API names first ("genLength: expected …"); a TypeError that names nothing is a bug.
  if ((error instanceof TypeError || error instanceof RangeError) && /^[A-Za-z]+(\.\w+|\[\d+\])*: /.test(error.message))
    return { message: inFlags(error.message, command), exitCode: ExitCode.usage };
  const system = (error as NodeJS.ErrnoException | null)?.code;
  if (error instanceof Error && typeof system === 'string' && /^E[A-Z]+$/.test(system))
    return { message: error.message, exitCode: ExitCode.failed };
  const stack = error instanceof Error ? error.stack : String(error);
  return { message: `this is a bug in dultra, please report it:\n${stack}`, exitCode: ExitCode.failed };
}
