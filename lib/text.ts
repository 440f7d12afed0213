// Text: values as parts of messages, and indentation.

/** The message of what was thrown. */
export const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** A number of bytes, as in "1.5 GiB". */
export const formatGiB = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

const MAX_SHOWN = 80;

/** A hostile value for a message: neither long, nor so deep that JSON.stringify overflows the stack. */
export function show(value: unknown): string {
  const isFlat =
    Array.isArray(value) && value.length <= 8 && value.every((item) => typeof item !== 'object' || item === null);
  if (typeof value === 'object' && value !== null && !isFlat)
    return Array.isArray(value) ? `an array of ${value.length}` : 'an object';
  const text = JSON.stringify(value) ?? String(value);
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
}

/**
 * Removes the white space that all lines begin with, as Python's textwrap.dedent; lines of white space alone become
 * empty.
 */
export function dedent(text: string): string {
  const lines = text.split('\n').map((line) => (/^[ \t]+$/.test(line) ? '' : line));
  let margin: string | null = null;
  for (const line of lines) {
    if (line === '') continue;
    const indent = line.match(/^[ \t]*/)![0];
    if (margin === null) margin = indent;
    else {
      let common = 0;
      while (common < margin.length && margin[common] === indent[common]) common++;
      margin = margin.slice(0, common);
    }
  }
  return margin
    ? lines.map((line) => (line.startsWith(margin) ? line.slice(margin.length) : line)).join('\n')
    : lines.join('\n');
}
