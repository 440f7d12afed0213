// A template as tokens, with the white space removed that the tags remove.
import { TemplateError } from './values';

/** A character that Python takes for white space. */
export const SPACE = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]';
/** Runs of white space. */
export const SPACES = new RegExp(`${SPACE}+`, 'g');
/** White space from the start to the end. */
export const ALL_SPACE = new RegExp(`^${SPACE}+$`);

const IS_SPACE = new RegExp(`^${SPACE}$`);

/** A text without the white space at its start or end. */
export function trimSpace(text: string, left: boolean, right: boolean): string {
  let [start, end] = [0, text.length];
  while (left && start < end && IS_SPACE.test(text[start])) start++;
  while (right && end > start && IS_SPACE.test(text[end - 1])) end--;
  return text.slice(start, end);
}

/** A piece of a template. `operator` has the operator itself as its value. */
export interface Token {
  type: 'data' | 'output' | 'outputEnd' | 'block' | 'blockEnd' | 'name' | 'string' | 'number' | 'operator' | 'end';
  value: string;
}

const OPEN = /\{[%#{]/g;
const RAW = new RegExp(`\\{%([-+]?)${SPACE}*raw${SPACE}*(?:-%\\}${SPACE}*|%\\})`, 'y');
const END_RAW = new RegExp(`\\{%([-+]?)${SPACE}*endraw${SPACE}*(?:\\+%\\}|-%\\}${SPACE}*|%\\}\\n?)`, 'g');
const COMMENT_END = new RegExp(`\\+#\\}|-#\\}${SPACE}*|#\\}\\n?`, 'g');
const BLOCK_END = new RegExp(`\\+%\\}|-%\\}${SPACE}*|%\\}\\n?`, 'y');
const OUTPUT_END = new RegExp(`-\\}\\}${SPACE}*|\\}\\}`, 'y');
const TAG_SPACE = new RegExp(`${SPACE}+`, 'y');
const FLOAT = /(?<!\.)(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?e[+-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)/iy;
const INTEGER = /0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|[1-9](?:_?\d)*|0(?:_?0)*/iy;
const NAME = /[A-Za-z_][A-Za-z0-9_]*/y;
const STRING = /'(?:[^'\\]|\\[\s\S])*'|"(?:[^"\\]|\\[\s\S])*"/y;
const OPERATOR = /\/\/|\*\*|==|!=|>=|<=|[-+/*%~[\](){}><=.:|,;]/y;
/** What stands in a tag, in the order in which it is tried. */
const KINDS: [Token['type'], RegExp][] = [
  ['number', FLOAT],
  ['number', INTEGER],
  ['name', NAME],
  ['string', STRING],
  ['operator', OPERATOR],
];
const CLOSING: Record<string, string> = { '(': ')', '[': ']', '{': '}' };

const SIMPLE_ESCAPES: Record<string, string> = {
  n: '\n',
  t: '\t',
  r: '\r',
  b: '\b',
  f: '\f',
  v: '\v',
  a: '\x07',
  '\\': '\\',
  "'": "'",
  '"': '"',
  '\n': '',
};

/** The text of a string literal without its quotes. */
function textOfLiteral(text: string): string {
  return text.replace(/\\(x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|[0-7]{1,3}|[\s\S])/g, (all, code: string) => {
    if (code.length > 1 && /^[xuU]/.test(code)) return String.fromCodePoint(Number.parseInt(code.slice(1), 16));
    if (/^[0-7]/.test(code)) return String.fromCodePoint(Number.parseInt(code, 8));
    if (Object.hasOwn(SIMPLE_ESCAPES, code)) return SIMPLE_ESCAPES[code];
    // Python refuses cut ones, and \N{…} needs the names of all characters.
    if (/[xuUN]/.test(code) || code > '\x7f') throw new TemplateError(`unsupported escape ${all} in a string`);
    return all;
  });
}

/** Tokens of a template, as Jinja has them with trim_blocks and lstrip_blocks. @throws TemplateError */
export function tokenize(template: string): Token[] {
  const source = template.replace(/\r\n|\r/g, '\n').replace(/\n$/, '');
  const tokens: Token[] = [];
  let position = 0;
  // Whether the next text begins a line.
  let lineStarts = true;

  const take = (pattern: RegExp): string | null => {
    pattern.lastIndex = position;
    const match = pattern.exec(source);
    if (match === null) return null;
    position = match.index + match[0].length;
    return match[0];
  };
  /** Adds the text before a tag, without the white space that the tag takes away. */
  const addText = (text: string, sign: string, isOutput: boolean) => {
    let kept = text;
    if (sign === '-') kept = trimSpace(text, false, true);
    else if (sign !== '+' && !isOutput) {
      const line = text.lastIndexOf('\n') + 1;
      if ((line > 0 || lineStarts) && ALL_SPACE.test(text.slice(line))) kept = text.slice(0, line);
    }
    if (kept !== '') tokens.push({ type: 'data', value: kept });
  };
  const readTag = (end: RegExp, endType: 'blockEnd' | 'outputEnd') => {
    const open: string[] = [];
    for (;;) {
      const closed = open.length === 0 ? take(end) : null;
      if (closed !== null) {
        lineStarts = closed.endsWith('\n');
        tokens.push({ type: endType, value: closed });
        return;
      }
      if (take(TAG_SPACE) !== null) continue;
      const kind = KINDS.find(([, pattern]) => {
        pattern.lastIndex = position;
        return pattern.test(source);
      });
      if (kind === undefined)
        throw new TemplateError(`unexpected ${JSON.stringify(source[position] ?? 'end of the template')}`);
      const [type, pattern] = kind;
      const value = take(pattern)!;
      if (Object.hasOwn(CLOSING, value)) open.push(CLOSING[value]);
      else if (/^[)\]}]$/.test(value) && open.pop() !== value) throw new TemplateError(`unexpected "${value}"`);
      tokens.push({ type, value: type === 'string' ? textOfLiteral(value.slice(1, -1)) : value });
    }
  };

  while (position < source.length) {
    OPEN.lastIndex = position;
    const open = OPEN.exec(source);
    if (open === null) {
      tokens.push({ type: 'data', value: source.slice(position) });
      break;
    }
    const text = source.slice(position, open.index);
    position = open.index;
    const raw = open[0] === '{%' ? take(RAW) : null;
    if (raw !== null) {
      addText(text, raw[2] === '-' || raw[2] === '+' ? raw[2] : '', false);
      lineStarts = raw.endsWith('\n');
      END_RAW.lastIndex = position;
      const end = END_RAW.exec(source);
      if (end === null) throw new TemplateError('missing end of raw');
      addText(source.slice(position, end.index), end[1], false);
      position = end.index + end[0].length;
      lineStarts = end[0].endsWith('\n');
      continue;
    }
    position += 2;
    const sign = source[position] === '-' || source[position] === '+' ? source[position++] : '';
    addText(text, sign, open[0] === '{{');
    if (open[0] === '{#') {
      const end = take(COMMENT_END);
      if (end === null) throw new TemplateError('missing end of a comment');
      lineStarts = end.endsWith('\n');
    } else if (open[0] === '{{') {
      tokens.push({ type: 'output', value: '{{' });
      readTag(OUTPUT_END, 'outputEnd');
    } else {
      tokens.push({ type: 'block', value: '{%' });
      readTag(BLOCK_END, 'blockEnd');
    }
  }
  tokens.push({ type: 'end', value: 'end of the template' });
  return tokens;
}
