// What commands print: data on stdout, everything else on stderr.
import type { Command } from 'commander';
import pc from 'picocolors';

/** Flags of {@link addOutputOptions}. */
export interface OutputFlags {
  json?: boolean;
  quiet?: boolean;
}

/** Adds --json and --quiet, which every command has. */
export function addOutputOptions(command: Command, json: string): Command {
  return command
    .optionsGroup('Output:')
    .option('--json', `print exactly one JSON document: ${json}; on failure stdout stays empty`)
    .option('-q, --quiet', 'no progress and no summary on stderr');
}

/** Colours for a stream: where it is a terminal and NO_COLOR is not set, or where FORCE_COLOR asks for them. */
export function colorsFor(stream: NodeJS.WriteStream): ReturnType<typeof pc.createColors> {
  const { NO_COLOR, FORCE_COLOR } = process.env;
  return pc.createColors(!NO_COLOR && (stream.isTTY ? pc.isColorSupported : !!FORCE_COLOR));
}

/** Text for a terminal: control characters of a model's output, which could move the cursor, become visible ones. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones that are meant
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : '\u2421';
  });
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
  // Lists of numbers take one line each.
  const text = JSON.stringify(value, plain, 2).replace(
    /\[\s+(-?\d[-\d.eE+,\s]*?)\s+\]/g,
    (_, list: string) => `[${list.replace(/\s+/g, ' ')}]`,
  );
  process.stdout.write(`${text}\n`);
}

/** Prints "name  value" lines, names aligned. */
export function printTable(rows: readonly (readonly [name: string, value: string])[]): void {
  const width = Math.max(...rows.map(([name]) => name.length));
  const { bold } = colorsFor(process.stdout);
  for (const [name, value] of rows) process.stdout.write(`${bold(name.padEnd(width))}  ${printable(value)}\n`);
}

/**
 * Prints rows below a bold head, in columns: the first `texts` of them aligned left, the others right.
 * @returns the widths
 */
export function printColumns(head: string[], rows: readonly string[][], texts: number): number[] {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i].length)));
  const line = (cells: string[]) =>
    cells.map((cell, i) => (i < texts ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ');
  const { bold } = colorsFor(process.stdout);
  process.stdout.write(`${bold(line(head))}\n${rows.map((row) => `${line(row)}\n`).join('')}`);
  return widths;
}

/** A number of bytes for people: "1.5 GB". */
export function formatBytes(bytes: number): string {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  const power = bytes < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3));
  return `${power === 0 ? bytes : (bytes / 1000 ** power).toFixed(1)} ${units[power]}`;
}
