// What commands print: data on stdout, everything else on stderr.
import type { Command } from 'commander';
import pc from 'picocolors';

/** Flags of {@link addOutputOptions}. */
export interface OutputFlags {
  json?: boolean;
  quiet?: boolean;
}

/** Adds --quiet. */
export const addQuietOption = (command: Command): Command =>
  command.optionsGroup('Output:').option('-q, --quiet', 'no progress and no summary on stderr');

/** Adds --json and --quiet, which every command has that prints a result. */
export function addOutputOptions(command: Command, json: string): Command {
  command
    .optionsGroup('Output:')
    .option('--json', `print exactly one JSON document: ${json}; on failure stdout stays empty`);
  return addQuietOption(command);
}

/** Colours for a stream: where it is a terminal and NO_COLOR is not set, or where FORCE_COLOR asks for them. */
export function colorsFor(stream: NodeJS.WriteStream): ReturnType<typeof pc.createColors> {
  const { NO_COLOR, FORCE_COLOR } = process.env;
  return pc.createColors(!NO_COLOR && (stream.isTTY ? pc.isColorSupported : !!FORCE_COLOR));
}

/** What could move the cursor, change its colours or reorder the line, or is not to be seen at all. */
const UNPRINTABLE =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones that are meant
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/**
 * Text for a terminal. What a model writes, and what messages quote of files, data sets, names and answers of the hub,
 * is not to be trusted: its control characters become visible ones; newlines and tabs stay.
 */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code < 0xa0 ? '\u2421' : `<U+${code.toString(16).toUpperCase().padStart(4, '0')}>`;
  });
}

/** {@link printable} text in one line. */
export const oneLine = (text: string): string => printable(text).replaceAll('\n', '\u240a').replaceAll('\t', '\u2409');

/** Characters of a message; what is longer quotes something that nobody reads in a terminal. */
const MAX_MESSAGE = 4000;

/** Removes the line of the terminal that is written over, where there is one. */
let clearStatus: (() => void) | null = null;

/** Tells how the line that is written over goes: a message takes its place. null: there is none. */
export function setStatus(clear: (() => void) | null): void {
  clearStatus = clear;
}

/** Stands before every message of a process that is one of several. */
let messagePrefix = '';

/** Sets what stands before every message. */
export function setMessagePrefix(prefix: string): void {
  messagePrefix = prefix;
}

/** Prints a message on stderr. All messages go through here, which makes them {@link printable}. */
export function printMessage(text: string): void {
  const left = text.length - MAX_MESSAGE;
  const shown = left > 0 ? `${text.slice(0, MAX_MESSAGE)}… (${left} more characters)` : text;
  clearStatus?.();
  process.stderr.write(`${messagePrefix}${printable(shown)}\n`);
}

/**
 * Shows the process warnings of this package as messages, without the process's number and advice on Node.js. Nothing
 * changes for others, nor where Node.js was told to show none.
 */
export function showWarnings(): void {
  const shown = process.listeners('warning');
  if (shown.length === 0) return;
  process.removeAllListeners('warning');
  process.on('warning', (warning) => {
    if (!/^dultrawarning$/i.test(warning.name)) for (const show of shown) show.call(process, warning);
    else printMessage(wrap(`warning: ${warning.message}`, columnsOf(process.stderr) ?? 120).join('\n'));
  });
}

/** Prints a line for people on stdout, {@link printable}. */
export function printLine(text: string, { bold = false } = {}): void {
  const shown = printable(text);
  process.stdout.write(`${bold ? colorsFor(process.stdout).bold(shown) : shown}\n`);
}

/** Prints what a command is asked for on stdout: as it is for a pipe or a file, {@link printable} in a terminal. */
export function printData(text: string): void {
  process.stdout.write(`${process.stdout.isTTY ? printable(text) : text}\n`);
}

/** Prints help on stdout. */
export function printHelp(text: string): void {
  process.stdout.write(text);
}

/** Prints a piece of a text that grows on stdout, as {@link printData}, without a new line. */
export function printPiece(text: string): void {
  process.stdout.write(process.stdout.isTTY ? printable(text) : text);
}

/**
 * Prints a value as the one JSON document of a command: typed arrays as arrays, big integers as numbers where exact,
 * else strings.
 */
export function printJson(value: unknown): void {
  const plain = (_key: string, item: unknown) => {
    if (ArrayBuffer.isView(item)) return Array.from(item as unknown as ArrayLike<number>);
    if (typeof item === 'bigint') return Number.isSafeInteger(Number(item)) ? Number(item) : item.toString();
    return item;
  };
  // Lists of numbers take one line each. Outside its strings, JSON has no character that a terminal could mind but
  // newlines.
  const text = JSON.stringify(value, plain, 2)
    .replace(/\[\s+(-?\d[-\d.eE+,\s]*?)\s+\]/g, (_, list: string) => `[${list.replace(/\s+/g, ' ')}]`)
    .replace(UNPRINTABLE, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
  process.stdout.write(`${text}\n`);
}

/** Columns of the terminal that a stream is; null elsewhere, where lines are as long as they are. */
export const columnsOf = (stream: NodeJS.WriteStream): number | null => (stream.isTTY ? stream.columns || 80 : null);

/** The parts of a word that is longer than a line: it ends behind a colon, comma or slash, or is left whole. */
function partsOf(word: string, columns: number): string[] {
  if (word.length <= columns) return [word];
  const at = Math.max(...[':', ',', '/'].map((mark) => word.lastIndexOf(mark, columns - 1)));
  return at <= 0 ? [word] : [word.slice(0, at + 1), ...partsOf(word.slice(at + 1), columns)];
}

/** Breaks a line between words into lines of at most so many columns, or of one word. */
export function wrap(text: string, columns: number): string[] {
  const lines: string[] = [];
  let line: string | null = null;
  for (const word of text.split(' ').flatMap((word) => partsOf(word, columns))) {
    if (line !== null && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = null;
    }
    line = line === null ? word : `${line} ${word}`;
  }
  return [...lines, line ?? ''];
}

/** Least columns for values beside their names; a narrower terminal gets them below. */
const VALUE_COLUMNS = 24;

/** A name and, beside it, lines that are broken where they are wider than the terminal. */
export function besideName(name: string, lines: readonly string[], width: number, columns: number | null): string[] {
  const beside = columns === null ? Number.POSITIVE_INFINITY : columns - width - 2;
  const isBelow = beside < VALUE_COLUMNS && lines.some((line) => line.length > beside);
  const room = isBelow ? columns! - 2 : beside;
  const parts = lines.flatMap((line) => wrap(line, room));
  if (isBelow) return [name, ...parts.map((part) => `  ${part}`)];
  return parts.map((part, i) => `${(i === 0 ? name : '').padEnd(width)}  ${part}`.trimEnd());
}

/**
 * Prints "name  value" lines, names aligned and in bold; a value may have several lines.
 * @param paint of what stands beside a name, once it is laid out
 */
export function printTable(
  rows: readonly (readonly [name: string, ...lines: string[]])[],
  paint: (text: string) => string = (text) => text,
): void {
  const width = Math.max(...rows.map(([name]) => name.length));
  const { bold } = colorsFor(process.stdout);
  const columns = columnsOf(process.stdout);
  for (const [name, ...values] of rows) {
    const [first, ...others] = besideName(oneLine(name), values.map(oneLine), width, columns);
    const rest = first.slice(name.length);
    process.stdout.write(`${[bold(first.slice(0, name.length)) + paint(rest), ...others.map(paint)].join('\n')}\n`);
  }
}

/** A title in two lines, broken where the longer of them is shortest; ["", title] where it has no place to break. */
function inTwoLines(title: string): [string, string] {
  const breaks = [...title.matchAll(/ |(?<=\/)/g)].map(({ index }) => index);
  const halves = breaks.map((at): [string, string] => [title.slice(0, at), title.slice(at).trimStart()]);
  const width = ([first, second]: [string, string]) => Math.max(first.length, second.length);
  return halves.reduce((best, half) => (width(half) < width(best) ? half : best), ['', title]);
}

/**
 * Prints rows below a bold head, in columns: the first `texts` of them aligned left, the others right. Where the
 * terminal is too narrow, titles take two lines, and where that is not enough, every row is a list of its cells.
 * @returns the widths
 */
export function printColumns(head: string[], rows: readonly string[][], texts: number): number[] {
  const shown = rows.map((row) => row.map(oneLine));
  const columns = columnsOf(process.stdout) ?? Number.POSITIVE_INFINITY;
  const widthsBelow = (titles: readonly string[][]) =>
    head.map((_, i) => Math.max(...titles.map((line) => line[i].length), ...shown.map((row) => row[i].length)));
  const fits = (widths: readonly number[]) => widths.reduce((sum, width) => sum + width + 2, -2) <= columns;
  const halves = head.map(inTwoLines);
  let titles = [head];
  if (!fits(widthsBelow(titles))) titles = [halves.map(([first]) => first), halves.map(([, second]) => second)];
  const widths = widthsBelow(titles);
  if (!fits(widths)) {
    printLists(head, shown, texts, columns);
    return widths;
  }
  const line = (cells: string[]) =>
    cells
      .map((cell, i) => (i < texts ? cell.padEnd(widths[i]) : cell.padStart(widths[i])))
      .join('  ')
      .trimEnd();
  for (const title of titles) printLine(line(title), { bold: true });
  for (const row of shown) printLine(line(row));
  return widths;
}

/** Every row as its texts, and below them a line for each of the other cells. */
function printLists(head: readonly string[], rows: readonly string[][], texts: number, columns: number): void {
  const width = 2 + Math.max(...head.slice(texts).map((title) => title.length));
  for (const row of rows) {
    printLine(row.slice(0, texts).filter(Boolean).join(', '), { bold: true });
    head.slice(texts).forEach((title, i) => {
      for (const line of besideName(`  ${title}`, [row[texts + i]], width, columns)) printLine(line);
    });
  }
}

/** A number of bytes for people: "1.5 GB". */
export function formatBytes(bytes: number): string {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  const power = bytes < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3));
  return `${power === 0 ? bytes : (bytes / 1000 ** power).toFixed(1)} ${units[power]}`;
}
