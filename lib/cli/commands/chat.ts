// dultra chat: a conversation with a model.
import type { Command } from 'commander';
import { type ChatSession, datasets, isDUltraError, isOptionError, type MaskedDiffusionModel } from '../../index';
import { COMMAND_WORDS, Conversation, readChat } from '../chat-loop';
import { explain, interruptSignal, UsageError } from '../errors';
import { readLines, TerminalLines } from '../lines';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addQuietOption, columnsOf, printMessage, wrap } from '../output';
import { addSamplingOptions, generateOptions, SAMPLER_TEXT, type SamplingFlags } from '../sampling';

interface Flags extends ModelFlags, SamplingFlags {
  system?: string;
  load?: string;
}

const EXAMPLES = `
On a terminal, /help lists the commands: /reset, /system, /save, /load, /stats,
/exit. Ctrl-C stops an answer, twice leaves. Through a pipe, every line is a
message or a command, and every answer is printed as it comes.

Examples:
  dultra chat -m GSAI-ML/LLaDA-8B-Instruct --dtype bfloat16 -n 256
  dultra chat -m ./checkpoint --system "Answer in one sentence."
  printf 'Hi\\nAnd you?\\n' | dultra chat -m ./checkpoint -q`;

async function openSession(model: MaskedDiffusionModel, { system, load }: Flags): Promise<ChatSession> {
  if (!model.tokenizer?.hasChatTemplate)
    throw new UsageError(
      `--model: ${model.source} has no chat template, so that it cannot chat; "dultra generate" completes a prompt, ` +
        'and a chat_template.jinja in its folder makes it chat, where it was trained to',
    );
  const messages = load === undefined ? undefined : await readChat(load);
  return model.chat({ ...(system !== undefined && { system }), ...(messages && { messages }) });
}

/** Reads from a terminal: what is wrong with a line is said, and the next one is asked for. */
async function talk(conversation: Conversation, command: Command): Promise<void> {
  let presses = 0;
  const output = process.stdout.isTTY ? process.stdout : process.stderr;
  const onInterrupt = (wasTyping: boolean) => {
    presses = wasTyping ? 1 : presses + 1;
    if (presses > 1) {
      if (conversation.isAnswering) process.exit(130);
      lines.close();
    } else if (!conversation.stop() && !wasTyping) {
      printMessage('\n(Ctrl-C again, Ctrl-D or /exit leaves)');
      lines.redraw();
    }
  };
  const lines = new TerminalLines(process.stdin, output, { prompt: '> ', words: COMMAND_WORDS, onInterrupt });
  const close = () => lines.close();
  interruptSignal.addEventListener('abort', close);
  try {
    for (let line = await lines.next(); line !== null; line = await lines.next()) {
      presses = 0;
      try {
        if (!(await conversation.take(line))) return;
      } catch (error) {
        interruptSignal.throwIfAborted();
        const isExpected = error instanceof UsageError || isOptionError(error) || isDUltraError(error);
        if (!isExpected && !(error as NodeJS.ErrnoException).code?.startsWith('E')) throw error;
        printMessage(error instanceof UsageError ? error.message : explain(error, command).message);
      }
    }
    interruptSignal.throwIfAborted();
  } finally {
    interruptSignal.removeEventListener('abort', close);
    lines.close();
  }
}

async function chat(flags: Flags, command: Command): Promise<void> {
  const options = generateOptions(flags);
  await using model = await openModel(flags);
  const session = await openSession(model, flags);
  if (flags.model === undefined && !flags.quiet)
    printMessage(
      wrap(`The embedded model knows ${datasets.WORLD_TOPICS}.`, columnsOf(process.stderr) ?? 80).join('\n'),
    );
  const conversation = new Conversation(model, session, options, flags.quiet ?? false);
  if (process.stdin.isTTY) {
    if (!flags.quiet) printMessage('/help lists the commands; Ctrl-D leaves');
    await talk(conversation, command);
    return;
  }
  for await (const line of readLines(process.stdin, 'stdin')) {
    if ('error' in line) throw new UsageError(line.error);
    if (!(await conversation.take(line.text))) break;
  }
}

/** Adds `dultra chat` to the program. */
export function register(program: Command): void {
  const command = program
    .command('chat')
    .summary('talk with a model')
    .description(
      'Talks with a model by its chat template. Answers appear as they become final, and the messages are kept.',
    )
    .optionsGroup('Chat:')
    .option('--system <text>', 'the system message')
    .option('--load <file>', 'go on with a chat that /save has written');
  addModelOptions(command);
  addSamplingOptions(command);
  addQuietOption(command).addHelpText('after', `${EXAMPLES}\n${SAMPLER_TEXT}`).action(chat);
}
