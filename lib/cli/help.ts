// How help is laid out: what most people need first, and no line wider than the terminal.
import type { Command, HelpConfiguration, Option } from 'commander';
import { columnsOf, wrap } from './output';

/** Columns of help, as commander has them: the terminal's, or 80. */
export const HELP_COLUMNS: number = columnsOf(process.stdout) ?? 80;

/** Narrower terminals have no room for two columns. */
const TWO_COLUMNS = 60;

/** In the place of commander's: what an option does, below it where there is no room beside it. */
export const HELP_LAYOUT: HelpConfiguration = {
  showGlobalOptions: false,
  // Every command has options.
  subcommandTerm: (command) => command.name(),
  ...(HELP_COLUMNS < TWO_COLUMNS && {
    formatItem: (term: string, _width: number, description: string) =>
      [`  ${term}`, ...wrap(description, HELP_COLUMNS - 6).map((line) => `      ${line}`)].join('\n'),
  }),
};

/** Options that come first in the help of a command. */
const COMMON: Readonly<Record<string, readonly string[]>> = {
  generate: ['--model', '--chat', '--max-tokens', '--sampler', '--temperature', '--seed', '--stream', '--json'],
  chat: ['--model', '--system', '--max-tokens', '--temperature', '--load'],
  bench: ['--model', '--max-tokens', '--sampler', '--cache', '--runs', '--json'],
  eval: ['--dataset', '--model', '--samplers', '--count', '--report', '--json'],
  distill: ['--dataset', '--model', '--out', '--count'],
  train: ['--config', '--preset', '--dataset', '--model', '--output', '--resume'],
};

/** Puts the options that most people need first, under a heading of their own. */
export function putCommonFirst(command: Command): void {
  const common = COMMON[command.name()];
  if (!common) return;
  const place = (option: Option) => {
    const index = common.indexOf(option.long ?? '');
    return index < 0 ? common.length : index;
  };
  for (const option of command.options) if (place(option) < common.length) option.helpGroupHeading = 'Common options:';
  // Groups come in the order of their first options.
  (command.options as Option[]).sort((a, b) => place(a) - place(b));
}

const HIDDEN_SPACE = '\u00a0';

/** A line that is too wide: a command goes on behind a backslash, anything else below itself. */
function fold(line: string, columns: number): string[] {
  if (line.length <= columns) return [line];
  const text = line.trimStart();
  const indent = ' '.repeat(line.length - text.length);
  if (!/^(dultra|npx|echo|printf) /.test(text)) return wrap(text, columns - indent.length).map((part) => indent + part);
  // Quoted spaces are no places to break at: they are hidden meanwhile.
  const hidden = text.replace(/"[^"]*"|'[^']*'/g, (quoted) => quoted.replaceAll(' ', HIDDEN_SPACE));
  const [first, ...rest] = wrap(hidden, columns - indent.length - 4).map((part) => part.replaceAll(HIDDEN_SPACE, ' '));
  return [indent + first, ...rest.map((part) => `${indent}  ${part}`)].map((part, i) =>
    i < rest.length ? `${part} \\` : part,
  );
}

/** Help with paragraphs and examples broken at the width of the terminal. */
export function layOut(text: string, columns: number = HELP_COLUMNS): string {
  const lines: string[] = [];
  let paragraph: string[] = [];
  const end = () => {
    if (paragraph.length > 0) lines.push(...wrap(paragraph.join(' '), columns));
    paragraph = [];
  };
  for (const line of text.split('\n')) {
    // Unindented lines that follow each other are one paragraph; a heading is none.
    if (/^\S/.test(line) && !line.endsWith(':')) paragraph.push(line);
    else {
      end();
      lines.push(...fold(line, columns));
    }
  }
  end();
  return lines.join('\n');
}
