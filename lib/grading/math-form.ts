// Parses an answer into a value, tuple, set, interval, matrix, equation or text, and compares two of them; the caller
// compares single values. The cost is linear in the length of the texts or bounded, so that a hostile text cannot stall
// grading.

/** Longer answers are equal only if their texts are the same. */
export const MAX_ANSWER_LENGTH = 2000;
/** Longest list that is parsed. */
const MAX_PARTS = 64;
/** Deepest nesting that is parsed. */
const MAX_DEPTH = 8;
/** Longest number that is compared exactly. */
const MAX_DIGITS = 1000;

/** A parsed answer. */
type Form =
  | { kind: 'value'; latex: string; percent: boolean }
  | { kind: 'text'; text: string }
  /** Also an interval: `open` and `close` are the brackets. Order counts here, not in sets, lists and unions. */
  | { kind: 'tuple'; open: string; close: string; parts: Form[] }
  | { kind: 'set' | 'union'; parts: Form[] }
  | { kind: 'matrix'; rows: Form[][] }
  /** a = b, a < b ≤ c …; `operators` has one entry less than `parts`. */
  | { kind: 'relation'; operators: string[]; parts: Form[] };

/** Whether two values are equal; null: unknown. */
export type CompareValues = (a: string, b: string) => boolean | null;

const SPACING =
  /(?<!\\)\\[!,;:> ]|\\(?:quad|qquad|displaystyle|textstyle|limits|nolimits|phantom\{[^{}]*\})(?![a-zA-Z])|~/g;
const SIZES = /\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|Biggl?|Biggr?)(?![a-zA-Z])\.?/g;
const WORDS = /\\(?:text|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}/g;

/**
 * Normalises LaTeX: removes spacing, sizes, currency and degrees, writes {,} as a comma, and gives \frac and \sqrt
 * braces.
 */
function clean(answer: string): string {
  let text = answer
    .trim()
    .replace(/^\$+|\$+$|^\\[([]|\\[)\]]$/g, '')
    // A doubled backslash before a command; first, since later replacements remove backslashes.
    .replace(/\\\\(?=[a-zA-Z])/g, '\\')
    .replace(/\{,\}/g, ',')
    .replace(SPACING, ' ')
    .replace(SIZES, '')
    .replace(/\\[dtc]frac/g, '\\frac')
    .replace(/\\?\$|\\(?:pounds|euro)(?![a-zA-Z])|[£€¥]/g, '')
    .replace(/\^\s*\{?\s*(?:\\circ|\\degree|°)\s*\}?|°|\\degree(?![a-zA-Z])/g, '')
    .replace(/\\%/g, '%')
    .replace(/−|–/g, '-')
    .replace(/π/g, '\\pi ')
    .replace(/∞/g, '\\infty ')
    .replace(/√/g, '\\sqrt ')
    .replace(/\\(?:leqslant|leq|le)(?![a-zA-Z])|≤/g, '\\le ')
    .replace(/\\(?:geqslant|geq|ge)(?![a-zA-Z])|≥/g, '\\ge ')
    .replace(/\\lt(?![a-zA-Z])/g, '<')
    .replace(/\\gt(?![a-zA-Z])/g, '>')
    .replace(/∪/g, '\\cup ')
    .replace(/\\(?:lbrace|\{)(?![a-zA-Z])/g, '\\{')
    .replace(/\\(?:rbrace|\})(?![a-zA-Z])/g, '\\}')
    .trim()
    .replace(/\.$/, '');
  // \frac12, \frac1{2}, \sqrt3.
  text = text
    .replace(/\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])/g, '\\frac{$1}{$2}')
    .replace(/\\frac\s*([0-9a-zA-Z])\s*\{/g, '\\frac{$1}{');
  text = text
    .replace(/(\\frac\s*\{[^{}]*\})\s*([0-9a-zA-Z])/g, '$1{$2}')
    .replace(/\\sqrt\s*([0-9a-zA-Z])/g, '\\sqrt{$1}');
  return text.replace(/\s+/g, ' ').trim();
}

const plainWords = (text: string) =>
  text
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, ' ')
    .trim();

/** Splits at separators that are outside of brackets and groups. `separators` must be sticky. */
function splitTop(text: string, separators: RegExp): { parts: string[]; found: string[] } {
  const parts: string[] = [];
  const found: string[] = [];
  let depth = 0;
  let begin = 0;
  for (let i = 0; i < text.length; i++) {
    separators.lastIndex = i;
    const match = depth === 0 ? separators.exec(text) : null;
    if (match && match[0] !== '') {
      parts.push(text.slice(begin, i));
      found.push(match[0].trim());
      i += match[0].length - 1;
      begin = i + 1;
    } else if (text[i] === '\\' && i + 1 < text.length && !/[a-zA-Z]/.test(text[i + 1])) {
      if (text[i + 1] === '{') depth++;
      if (text[i + 1] === '}') depth--;
      i++;
    } else if ('([{'.includes(text[i])) depth++;
    else if (')]}'.includes(text[i])) depth--;
  }
  parts.push(text.slice(begin));
  return { parts, found };
}

/** The bracket pair that encloses the whole text, with its content; null if there is none. */
function enclosing(text: string): { open: string; close: string; content: string } | null {
  const open = text.startsWith('\\{') ? '\\{' : text[0];
  if (open !== '\\{' && open !== '(' && open !== '[') return null;
  const close = open === '\\{' ? '\\}' : text[text.length - 1];
  if (!text.endsWith(close) || !['\\}', ')', ']'].includes(close) || text.length < open.length + close.length)
    return null;
  // The last bracket must close the first one.
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    const escaped = text[i] === '\\';
    const bracket = escaped ? text[++i] : text[i];
    if (escaped && bracket !== '{' && bracket !== '}') continue;
    if ('([{'.includes(bracket)) depth++;
    else if (')]}'.includes(bracket) && --depth === 0 && i < text.length - 1) return null;
  }
  return depth === 0 ? { open, close, content: text.slice(open.length, text.length - close.length) } : null;
}

const COMMA = /,|\s+(?:\\text\{\s*)?(?:or|and)(?:\s*\})?\s+/y;
const UNION = /\\cup(?![a-zA-Z])/y;
const RELATION = /=|<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\neq?(?![a-zA-Z])|\\in(?![a-zA-Z])/y;
const MATRIX = /^\\begin\s*\{([pbvBV]?matrix|smallmatrix|array)\}(?:\s*\{[^{}]*\})?([\s\S]*)\\end\s*\{\1\}$/;
const THOUSANDS = /(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])/g;

/** Parses an answer. */
function parseForm(answer: string, depth: number): Form {
  let text = clean(answer);
  if (depth > MAX_DEPTH) return { kind: 'value', latex: text, percent: false };
  const part = (piece: string) => parseForm(piece, depth + 1);
  const matrix = text.match(MATRIX);
  if (matrix) {
    const rows = matrix[2].split('\\\\').map((row) => row.trim());
    if (rows[rows.length - 1] === '') rows.pop();
    const cells = rows.map((row) => row.split('&'));
    if (cells.flat().length <= MAX_PARTS) return { kind: 'matrix', rows: cells.map((row) => row.map(part)) };
  }
  text = text.replace(/(?<=\s|\})\\text\s*\{\s*(or|and)\s*\}(?=\s|\S)/g, ' $1 ');
  const unions = splitTop(text, UNION).parts;
  if (unions.length > 1 && unions.length <= MAX_PARTS) return { kind: 'union', parts: unions.map(part) };
  // "1,234" is a number, but "(1,234)" is a pair.
  const whole = text.replace(THOUSANDS, (number) => number.replaceAll(',', ''));
  const brackets = enclosing(text);
  if (brackets) {
    const { open, close, content } = brackets;
    const { parts } = splitTop(content, COMMA);
    if (open === '\\{' && parts.length <= MAX_PARTS)
      return { kind: 'set', parts: content.trim() === '' ? [] : parts.map(part) };
    if (parts.length > 1 && parts.length <= MAX_PARTS) return { kind: 'tuple', open, close, parts: parts.map(part) };
  } else {
    const { parts } = splitTop(whole, COMMA);
    if (parts.length > 1 && parts.length <= MAX_PARTS && parts.every((piece) => piece.trim() !== ''))
      return { kind: 'set', parts: parts.map(part) };
  }
  const relation = splitTop(whole, RELATION);
  if (
    relation.found.length > 0 &&
    relation.parts.length <= MAX_PARTS &&
    relation.parts.every((piece) => piece.trim() !== '')
  )
    return { kind: 'relation', operators: relation.found, parts: relation.parts.map(part) };
  return value(whole);
}

/** Parses a value, whose unit is removed, or a text. */
function value(text: string): Form {
  const words = [...text.matchAll(WORDS)].map((match) => match[1]);
  const bare = text.replace(WORDS, ' ').trim();
  if (words.length > 0) {
    // Words next to a value are its unit, which may have an exponent, as in cm^2.
    const rest = text.replace(new RegExp(`${WORDS.source}(?:\\s*\\^\\s*(?:\\{[^{}]*\\}|\\S))?`, 'g'), ' ').trim();
    if (!/[0-9a-zA-Z]/.test(bare)) return { kind: 'text', text: plainWords(words.join(' ')) };
    return value(rest);
  }
  if (/^[\p{L}][\p{L}\s'-]+$/u.test(text) && text.length > 2) return { kind: 'text', text: plainWords(text) };
  const percent = /%\s*$/.test(text);
  let latex = text.replace(/\s*%\s*$/, '');
  // Removes the unit of "5 meters", and of "12cm" for common units.
  latex = latex.replace(
    /^(-?[\d.,/]+)(?:\s+[a-zA-Z]{2,}(?:\s+[a-zA-Z]+)*\.?|\s*(?:cm|mm|km|kg|m|g|s|h|ft|in|lb|mph)(?:\^\{?\d\}?)?)$/,
    '$1',
  );
  // 2\frac{1}{3} is a mixed number.
  latex = latex.replace(/^(-?)\s*(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}$/, '$1($2+\\frac{$3}{$4})');
  return { kind: 'value', latex: latex.trim(), percent };
}

/** A decimal number or a ratio of two as a fraction of integers; null for anything else. */
function exactNumber(latex: string): { numerator: bigint; denominator: bigint } | null {
  const text = latex.replace(/\s+/g, '').replace(/^\((-?[\d.]+)\)$/, '$1');
  if (text.length > MAX_DIGITS) return null;
  const decimal = text.match(/^([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,3}))?$/);
  if (decimal && (decimal[2] || decimal[3])) {
    const fraction = decimal[3] ?? '';
    const exponent = Number(decimal[4] ?? 0) - fraction.length;
    const digits = BigInt(`${decimal[2]}${fraction}`) * (decimal[1] === '-' ? -1n : 1n);
    const power = 10n ** BigInt(Math.abs(exponent));
    return exponent >= 0 ? { numerator: digits * power, denominator: 1n } : { numerator: digits, denominator: power };
  }
  const ratio = text.match(/^([+-]?)(?:\\frac\{([+-]?[\d.]+)\}\{([+-]?[\d.]+)\}|([\d.]+)\/([\d.]+))$/);
  if (!ratio) return null;
  const [above, below] = [exactNumber(ratio[2] ?? ratio[4]), exactNumber(ratio[3] ?? ratio[5])];
  if (!above || !below || below.numerator === 0n) return null;
  const sign = ratio[1] === '-' ? -1n : 1n;
  return { numerator: sign * above.numerator * below.denominator, denominator: above.denominator * below.numerator };
}

/** Compares numbers exactly, and decides on equal texts, single letters and empty texts; null (unknown) otherwise. */
export function compareNumbers(a: string, b: string): boolean | null {
  const [x, y] = [exactNumber(a), exactNumber(b)];
  if (x && y) return x.numerator * y.denominator === y.numerator * x.denominator;
  const same = (text: string) => text.replace(/\s+/g, '').replace(/([_^])\{(\w)\}/g, '$1$2');
  if (same(a) === same(b)) return true;
  // A single letter names a choice or a variable: it equals no other letter and no number, but perhaps an expression.
  if (/^\(?[a-zA-Z]\)?$/.test(a) || /^\(?[a-zA-Z]\)?$/.test(b))
    return a.replace(/[()]/g, '') === b.replace(/[()]/g, '') ? true : /[+*/^\\(]/.test(a + b) ? null : false;
  return a === '' || b === '' ? false : null;
}

const and = (results: Iterable<boolean | null>): boolean | null => {
  let unsure = false;
  for (const result of results) {
    if (result === false) return false;
    unsure ||= result === null;
  }
  return unsure ? null : true;
};
const or = (a: boolean | null, b: () => boolean | null): boolean | null => {
  if (a === true) return true;
  const second = b();
  return second === true ? true : a === null || second === null ? null : false;
};

/** Whether the elements of two lists can be paired; null if that depends on a pair whose equality is unknown. */
function sameElements(a: Form[], b: Form[], equal: CompareValues): boolean | null {
  if (a.length !== b.length) return false;
  const free = [...b];
  const unsure: Form[] = [];
  for (const element of a) {
    const at = free.findIndex((other) => compareForms(element, other, equal) === true);
    if (at >= 0) free.splice(at, 1);
    else unsure.push(element);
  }
  return and(
    unsure.map((element) => (free.some((other) => compareForms(element, other, equal) === null) ? null : false)),
  );
}

const latexOf = (form: Form): string | null =>
  form.kind === 'value' && !form.percent ? form.latex : form.kind === 'text' ? form.text : null;
const isName = (form: Form) =>
  form.kind === 'text' || (form.kind === 'value' && /^\\?[a-zA-Z]\w*(?:_\{?\w+\}?)?(?:\([a-z]\))?$/.test(form.latex));
const FLIPPED: Readonly<Record<string, string>> = {
  '<': '>',
  '>': '<',
  '\\le': '\\ge',
  '\\ge': '\\le',
  '=': '=',
  '\\ne': '\\ne',
  '\\neq': '\\neq',
};

function compareRelations(
  a: Form & { kind: 'relation' },
  b: Form & { kind: 'relation' },
  equal: CompareValues,
): boolean | null {
  const inOrder = (operators: string[], parts: Form[]) =>
    operators.length === b.operators.length && operators.every((operator, i) => operator === b.operators[i])
      ? and(parts.map((part, i) => compareForms(part, b.parts[i], equal)))
      : false;
  const flipped = () =>
    inOrder(a.operators.map((operator) => FLIPPED[operator] ?? operator).reverse(), [...a.parts].reverse());
  const direct = or(inOrder(a.operators, a.parts), flipped);
  if (direct !== false || a.operators.join() !== '=' || b.operators.join() !== '=') return direct;
  // y = 2x + 1 and 2x - y + 1 = 0: the differences of the sides are equal up to the sign.
  const sides = [...a.parts, ...b.parts].map(latexOf);
  if (sides.includes(null) || a.parts.concat(b.parts).every(isName)) return false;
  const [l1, r1, l2, r2] = sides.map((side) => `(${side})`);
  return or(equal(`${l1}-${r1}`, `${l2}-${r2}`), () => equal(`${l1}-${r1}`, `${r2}-${l2}`));
}

function compareForms(a: Form, b: Form, equal: CompareValues): boolean | null {
  if (a.kind === 'relation' && b.kind === 'relation') return compareRelations(a, b, equal);
  // "x = 5" or "x \in ..." equals its right-hand side alone.
  for (const [named, other] of [
    [a, b],
    [b, a],
  ]) {
    if (named.kind !== 'relation') continue;
    const { operators, parts } = named;
    return operators.length === 1 && ['=', '\\in'].includes(operators[0]) && isName(parts[0])
      ? compareForms(parts[1], other, equal)
      : false;
  }
  if (a.kind === 'text' || b.kind === 'text') {
    const [x, y] = [a, b].map((form) =>
      form.kind === 'text' ? form.text : form.kind === 'value' ? plainWords(form.latex) : null,
    );
    return x !== null && x !== '' && x === y;
  }
  if (a.kind === 'value' && b.kind === 'value') {
    const direct = equal(a.latex, b.latex);
    if (a.percent === b.percent) return direct;
    const [share, plain] = a.percent ? [a.latex, b.latex] : [b.latex, a.latex];
    return or(direct, () => equal(`\\frac{${share}}{100}`, plain));
  }
  if (a.kind === 'tuple' && b.kind === 'tuple')
    return a.open === b.open && a.close === b.close && a.parts.length === b.parts.length
      ? and(a.parts.map((part, i) => compareForms(part, b.parts[i], equal)))
      : false;
  if (a.kind === 'matrix' && b.kind === 'matrix')
    return a.rows.length === b.rows.length && a.rows.every((row, i) => row.length === b.rows[i].length)
      ? and(a.rows.flat().map((cell, i) => compareForms(cell, b.rows.flat()[i], equal)))
      : false;
  if ((a.kind === 'set' && b.kind === 'set') || (a.kind === 'union' && b.kind === 'union'))
    return sameElements(a.parts, b.parts, equal);
  // A set of one element equals the element.
  if (a.kind === 'set' && a.parts.length === 1) return compareForms(a.parts[0], b, equal);
  if (b.kind === 'set' && b.parts.length === 1) return compareForms(a, b.parts[0], equal);
  return false;
}

/** Whether two answers are equal; null if that depends on values for which `equal` returns null. */
export function compareAnswers(a: string, b: string, equal: CompareValues): boolean | null {
  if (a.trim() === b.trim()) return a.trim() !== '';
  if (a.length > MAX_ANSWER_LENGTH || b.length > MAX_ANSWER_LENGTH) return false;
  return compareForms(parseForm(a, 0), parseForm(b, 0), equal);
}
