// A row of tokens that fills in place in a terminal, each step in a colour of its own.
import { colorsFor, printable } from './output';

/** One position of a row. */
export interface Cell {
  text: string;
  /** Step, from 1, that decided it; 0 where it was given; null while it is masked. */
  step: number | null;
}

/** A piece of a line in one colour. */
interface Segment {
  text: string;
  step: number | null;
}

const MASK = '░';
const COLORS = ['cyan', 'green', 'yellow', 'magenta', 'blue', 'red'] as const;
const WIDE =
  /\p{Emoji_Presentation}|\p{Script=Han}|\p{Script=Hangul}|\p{Script=Hiragana}|\p{Script=Katakana}|[\u3000-\u303f\uff01-\uff60]/u;

/** Terminal columns that a character takes. */
function widthOf(character: string): number {
  if (/^[\p{Mark}\p{Default_Ignorable_Code_Point}]$/u.test(character)) return 0;
  return WIDE.test(character) ? 2 : 1;
}

/**
 * Breaks a row into lines of at most `columns` columns; newlines in tokens break too. A mask is one "░".
 * @returns lines of coloured segments; `open` is the first line with a mask, or the number of lines.
 */
export function layout(cells: readonly Cell[], columns: number): { lines: Segment[][]; open: number } {
  const lines: Segment[][] = [[]];
  let width = 0;
  let open = -1;
  for (const { text, step } of cells) {
    for (const character of step === null ? MASK : printable(text.replaceAll('\t', '    '))) {
      const w = character === '\n' ? 0 : widthOf(character);
      if (character === '\n' || width + w > columns) {
        lines.push([]);
        width = 0;
      }
      if (character === '\n') continue;
      if (step === null && open < 0) open = lines.length - 1;
      const line = lines[lines.length - 1];
      const last = line.at(-1);
      if (last && last.step === step) last.text += character;
      else line.push({ text: character, step });
      width += w;
    }
  }
  return { lines, open: open < 0 ? lines.length : open };
}

/** Redraws a row in the same place. */
export class RowDisplay {
  readonly #stream: NodeJS.WriteStream;
  readonly #colors: ReturnType<typeof colorsFor>;
  /** Columns that each line on the screen takes. */
  #drawn: number[] = [];

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
    this.#colors = colorsFor(stream);
    stream.write('\x1b[?25l');
  }

  /** Shows the current row, with a status line below. */
  update(cells: readonly Cell[], status: string): void {
    const columns = this.#columns();
    const { lines, open } = layout(cells, columns);
    // Lines that scroll away cannot be redrawn: show only the part that still has masks.
    const room = Math.max(1, (this.#stream.rows || 24) - 2);
    const first = Math.max(0, Math.min(open - (room >> 1), lines.length - room));
    const shown = lines.slice(first, first + room);
    this.#draw(
      [...shown.map((line) => this.#paint(line)), this.#colors.dim(status.slice(0, columns))],
      [
        ...shown.map((line) => line.reduce((sum, { text }) => sum + [...text].reduce((n, c) => n + widthOf(c), 0), 0)),
        Math.min(status.length, columns),
      ],
    );
  }

  /** Replaces the display by the whole row, which stays. */
  finish(cells: readonly Cell[]): void {
    this.#draw(
      layout(cells, Number.POSITIVE_INFINITY).lines.map((line) => this.#paint(line)),
      [],
    );
    this.#stream.write('\n\x1b[?25h');
  }

  /** Leaves the screen as it is. */
  abandon(): void {
    this.#stream.write(`${this.#drawn.length > 0 ? '\n' : ''}\x1b[?25h`);
  }

  #columns(): number {
    return Math.max(1, (this.#stream.columns || 80) - 1);
  }

  #draw(lines: string[], widths: number[]): void {
    // A terminal that has become narrower has wrapped what was drawn before.
    const columns = this.#columns() + 1;
    const height = this.#drawn.reduce((sum, width) => sum + Math.max(1, Math.ceil(width / columns)), 0);
    this.#stream.write(`\r${height > 1 ? `\x1b[${height - 1}A` : ''}\x1b[J${lines.join('\n')}`);
    this.#drawn = widths;
  }

  #paint(line: readonly Segment[]): string {
    return line
      .map(({ text, step }) => {
        if (step === null) return this.#colors.dim(text);
        return step === 0 ? text : this.#colors[COLORS[(step - 1) % COLORS.length]](text);
      })
      .join('');
  }
}
