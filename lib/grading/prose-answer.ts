// Finds the answer in prose: the value that "the answer is …" names, else the last number, each as a whole: 3/4 is not
// 4, 1.5e3 is not 3, √5 is not 5, and the minus of "3-5" is no sign.

import { MAX_ANSWER_LENGTH } from './math/work';

/** What is read of a text, from its end: bounds the cost. */
const WINDOW = 2 * MAX_ANSWER_LENGTH;

const BRACED = String.raw`\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}`;
/** Between groups of three digits, as people and LaTeX write them. */
const GROUPING = String.raw`(?:,|\{,\}|,\\!\s?|\\,|['’_ \u00a0\u2009\u202f])`;
const SEPARATOR = new RegExp(`(?<=\\d)${GROUPING.replace(',|', '')}(?=\\d{3}(?!\\d))`, 'g');
const DIGITS = String.raw`(?:\d{1,3}(?:${GROUPING}\d{3})+(?![\d,]*\d)|\d+(?:[.:,]\d+)*)`;
const TIMES_TEN = String.raw`(?:\s?(?:×|\*|·|x|\\times|\\cdot)\s?10(?=\s?\^|\*\*))`;
const EXPONENT = String.raw`(?:\s?(?:\^|\*\*)\s?(?:${BRACED}|\(-?\w+\)|-?\d+|[a-z](?![a-zA-Z])))`;
const CURRENCY = String.raw`(?:\\?\$|[£€¥])`;
const NUMBER = String.raw`(?:${CURRENCY}\s?-?)?(?:${DIGITS}(?:\.\d+)?|(?<![\w.)])\.\d+)(?:[eE][+-]?\d+(?![\w.]\w))?${TIMES_TEN}?`;
const AFTER = String.raw`(?:\s?\\?%|\s?[£€¥]|\\?\$(?![\d(\\]))?`;
const COMMAND = String.raw`\\[a-zA-Z]+(?:\[[^\]\n]*\])?(?:${BRACED})+`;
const FRACTION = String.raw`\\frac(?:${BRACED}|\s*\d)(?:${BRACED}|\s*\d)`;
const FUNCTION = String.raw`\\?(?<![a-zA-Z])(?:log|ln|lg|exp|sin|cos|tan|cot|sec|csc|arc(?:sin|cos|tan))(?:_(?:${BRACED}|\w))?\s?(?:\([^()\n]*\)|${BRACED}|\d+(?:\.\d+)?)`;
const ROOT = String.raw`(?:\\sqrt\s*\d|(?:√|\bsqrt)\s?(?:\d+(?:\.\d+)?|\([^()\n]*\)|${BRACED}))`;
const CONSTANT = String.raw`(?:\\pi(?![a-zA-Z])|π|pi\b|(?<![\w\\])e(?=\s?\^))`;
/** A letter as a variable: none of a word. "a" and "I" are words where they stand alone. */
const VARIABLE = String.raw`(?<![\w\\])[a-z](?![a-zA-Z])`;
const GROUP = String.raw`\((?:[^()a-zA-Z\n\\,;]|\\[a-zA-Z]+|(?<![a-zA-Z])[a-z](?![a-zA-Z]))+\)`;
const FACTOR = `(?:${FRACTION}|${ROOT}|${FUNCTION}|${COMMAND}|${CONSTANT}|${NUMBER}|${GROUP})`;
/** What can stand behind a factor without a sign of multiplication. */
const FOLLOWING = String.raw`(?:\s?(?:${FRACTION}|${ROOT}|${COMMAND}|\\pi(?![a-zA-Z])|π|pi\b)|[a-z](?![a-zA-Z])|${GROUP})`;
const TERM = `${FACTOR}${EXPONENT}?(?:${FOLLOWING}${EXPONENT}?)*${AFTER}`;
const OPERATOR = String.raw`(?:[ \t]?(?:[*/·×÷+-]|\\cdot|\\times|\\div|\\pm|±)[ \t]?|[ \t]x[ \t]|(?<=\d)x(?=\d))`;
/** An expression of numbers, roots, fractions …; a variable only with an operator. */
const EXPRESSION = String.raw`(?:(?:${VARIABLE}${EXPONENT}?${OPERATOR})?(?:-|±[ \t]?|\\pm[ \t]?)?(?:\d+ \d+\/\d+(?![\d/])${AFTER}|${TERM})(?:${OPERATOR}(?:-?${TERM}|${VARIABLE}${EXPONENT}?))*)`;
/** Pairs, intervals, sets: numbers in brackets. */
const TUPLE = String.raw`(?:\\left)?(?:[([]|\\\{)\s?(?=[^\n()[\]]*[,;])(?:${EXPRESSION}\s?(?:[,;]\s?|(?=\\|[)\]])))+(?:\\right)?(?:[)\]]|\\\})`;
/** What a variable is compared with is no value by itself. */
const INEQUALITY = String.raw`(?:-?${NUMBER}\s?(?:[<>]=?|[≤≥])\s?)?${VARIABLE}\s?(?:[<>]=?|[≤≥])\s?${EXPRESSION}`;
/** Not within a word, a number, an index, an exponent, or the argument of f. */
const BEFORE = String.raw`(?<![A-Za-z\u0370-\u03ff\d_^\\]|[_^][{(\s-]|[_^]\{-|\d[.,:]|\b[a-zA-Z]\()`;
/** The number of an item of a list. */
const ITEM = String.raw`(?<=^[ \t]*)\d{1,2}[.)][ \t]+\S`;
const VALUE = new RegExp(`${BEFORE}(?!${ITEM})(?:${TUPLE}|${INEQUALITY}|${EXPRESSION})`, 'gm');
const VALUE_HERE = new RegExp(`(?:${TUPLE}|${INEQUALITY}|${EXPRESSION})`, 'y');
/** x = 5. */
const NAME = /(?:[a-zA-Z]\s?=\s?)?/y;
const AND = /\s?(?:,\s?(?:and\s|or\s)?|\s(?:and|or)\s)\s?/y;
const EQUAL = /\s*(?:=|≈|\\approx(?![a-zA-Z]))\s*/y;

const SUPERSCRIPTS = '⁰¹²³⁴⁵⁶⁷⁸⁹';
const POWERS: Readonly<Record<string, number>> = {
  hundred: 2,
  thousand: 3,
  k: 3,
  million: 6,
  m: 6,
  billion: 9,
  b: 9,
  trillion: 12,
};
const FUNCTIONS = /\b(?:sin|cos|tan|log|exp|mod|lim|max|min|sqrt|and)\b/g;
/** The model takes back what it said. */
export const DOUBT =
  /\b(?:wait|hmm+|actually|oops|sorry|correction|mistake|wrong|(?:let me|let's) (?:re|double|check|verify|correct))|(?:^|[.!?\n])\s*(?:but|no|however)\b/i;

const ANSWER =
  /\b(?:answers?|solutions?|result)\b(?:\s(?:to|of|for)\s[^.:?\n]{1,80}?)?[*_ \t]{0,4}(?:\s(?:is|are|was|were|would be|will be|must be|should be|equals)\b|:|=)[*_ \t]{0,4}:?\s*(?:(?:therefore|thus|then|simply|just|approximately|about|equal to|:)\s)?[\s*_`"':]{0,8}/gi;
/** What makes the value before it a part of something that is computed. */
const CONTINUES = /^\s?(?:times|plus|minus|divided|multiplied|(?:more|less|fewer|greater) than|or (?:more|less))\b/i;

/** Writes signs, digits and fractions of Unicode as ASCII. */
function plain(text: string): string {
  return (
    text
      .replace(/[\u2010-\u2013\u2212\ufe63\uff0d]/g, '-')
      .replace(/[⁄∕]/g, '/')
      .replace(/⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+/g, (digits) => {
        const sign = digits[0] === '⁻' ? '-' : '';
        return `^{${sign}${Array.from(digits.replace('⁻', ''), (digit) => SUPERSCRIPTS.indexOf(digit)).join('')}}`;
      })
      .replace(/(\d?)([\u00bc-\u00be\u2150-\u215e])/g, (_all, whole: string, fraction: string) => {
        const ratio = fraction.normalize('NFKC').replace('⁄', '/');
        return whole === '' ? ratio : `${whole} ${ratio}`;
      })
      .replace(/[\uff10-\uff19\uff0e\uff0c\uff05\uff04\uff0f]/g, (character) => character.normalize('NFKC'))
      .replace(/\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}/g, '$1')
      .replace(/\\[dtc]frac(?![a-zA-Z])/g, '\\frac')
      // 1.450,50.
      .replace(/(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d{1,2}(?![\d,]|\.\d)/g, (number) =>
        number.replace(/[.,]/g, (mark) => (mark === ',' ? '.' : '')),
      )
      .replace(/\\left(?![a-zA-Z])|\\right(?![a-zA-Z])/g, '')
      .replace(/(?<!\w)_{1,3}([^_\s][^_\n]{0,60})_{1,3}(?!\w)/g, '$1')
      .replace(/\*\*(?!\d)|(?<!\d)\*\*/g, '')
      .replace(/\b(?:USD|EUR|GBP|INR|US|Rs\.?)\s?(?=[$\d])/g, '')
      .replace(/\b(?:negative|minus)\s(?=[$\d.\\√])/gi, '-')
      .replace(/(?<=\d)\s(?:percent|per cent)\b/gi, '%')
      .replace(/(?<=\d)(?:\s(hundred|thousand|million|billion|trillion)\b|([kKMB])\b)/g, (_all, word, letter) => {
        return `e${POWERS[(word ?? letter).toLowerCase()]}`;
      })
      .replace(/∛\s?(?:(\d+)|\(([^()]*)\))/g, (_all, number, group) => `\\sqrt[3]{${number ?? group}}`)
  );
}

/** An expression in the form in which answers are compared. */
function tidy(value: string): string {
  let text = value.trim();
  const range = text.match(/^[^-+*/\s]*\d%?-([$£€¥]?[\d.,]+%?)$/);
  // 3-5 without spaces is rather a range than a difference: its last number.
  if (range) text = range[1];
  if (/^\([^,;]*\)$/.test(text) && !/[()]/.test(text.slice(1, -1))) text = text.slice(1, -1).trim();
  return text
    .replace(SEPARATOR, '')
    .replace(/^(-?\d+) (\d+)\/(\d+)/, '$1\\frac{$2}{$3}')
    .replace(/\s?(?:×|\*|·|x|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?[{(]?(-?\d{1,3})[})]?(?=[%$]?$)/, 'e$1')
    .replace(/\*\*/g, '^')
    .replace(/\s?\^\s?\(?(-?\w+)\)?/g, '^{$1}')
    .replace(/(?<=\d)\s?x\s?(?=\d)|\s?×\s?/g, '\\times ')
    .replace(
      /(?:√|(?<![a-z\\])sqrt)\s?(?:\(([^()]*)\)|(\d+(?:\.\d+)?))/g,
      (_all, group, number) => `\\sqrt{${group ?? number}}`,
    )
    .replace(/π|(?<![a-z\\])pi\b/g, '\\pi')
    .replace(/\s%/g, '%')
    .replace(/±\s?/g, '\\pm ');
}

/** Whether the minus at `at` is a sign: nothing stands before it from which the value could be taken. */
function isSign(text: string, at: number): boolean {
  const before = text.slice(Math.max(0, at - 8), at);
  return !/[\w)\]}]$/.test(before) && !/(?:^|[^\w])(?:[\d.]*\d|[b-hj-z])\s$/.test(before) && !/[)\]}]\s$/.test(before);
}

/** The content of LaTeX's math delimiters, as [begin, end, content]. */
function mathSpans(text: string): { begin: number; end: number; content: string }[] {
  const spans: { begin: number; end: number; content: string }[] = [];
  const delimiters =
    /\$\$([^$]+)\$\$|(?<![\\$\d])\$(?![\s$])((?:\\[^\n]|[^$\\\n])+)(?<!\s)\$(?![\d$])|\\\(([\s\S]+?)\\\)|\\\[([\s\S]+?)\\\]/g;
  for (const match of text.matchAll(delimiters)) {
    const content = (match[1] ?? match[2] ?? match[3] ?? match[4]).trim();
    // "$5 for a shirt and 15$" is money.
    if (/[a-zA-Z]{3,}/.test(content.replace(/\\[a-zA-Z]+/g, ' ').replace(FUNCTIONS, ' '))) continue;
    spans.push({ begin: match.index, end: match.index + match[0].length, content });
  }
  return spans;
}

/** What stands behind the last = of a formula; a list of equations is kept. */
function rightSide(formula: string): string {
  const text = formula.replace(/[.,;]$/, '').trim();
  if (/[,;]\s/.test(text) && text.includes('=')) return text;
  const parts = text.split(/(?<![<>!\\:])=|≈|\\approx(?![a-zA-Z])/);
  return parts[parts.length - 1].trim();
}

/** The value at a place, with what it is said to be equal to: the last side counts. */
function valueAt(text: string, at: number): { value: string; end: number } | null {
  const span = mathSpans(text.slice(at)).find(({ begin }) => begin === 0);
  if (span) return { value: rightSide(span.content), end: at + span.end };
  const choice = text.slice(at).match(/^\(?[A-J]\)?(?=[\s.*]*$|[.*]*[\s.*]*\n)/);
  if (choice) return { value: choice[0], end: at + choice[0].length };
  let found: { value: string; end: number } | null = null;
  NAME.lastIndex = at;
  NAME.test(text);
  for (let begin = NAME.lastIndex; begin < text.length; begin = EQUAL.lastIndex) {
    VALUE_HERE.lastIndex = begin;
    const match = VALUE_HERE.exec(text);
    if (!match) break;
    found = { value: tidy(match[0]), end: VALUE_HERE.lastIndex };
    EQUAL.lastIndex = found.end;
    if (!EQUAL.test(text)) break;
  }
  return found;
}

/** The value that the last "the answer is …" names; null where there is none, or where it is taken back. */
function namedAnswer(text: string): string | null {
  const last = [...text.matchAll(ANSWER)].pop();
  if (!last) return null;
  const first = valueAt(text, last.index + last[0].length);
  if (!first) return null;
  const values = [first.value];
  let { end } = first;
  // "The answers are 2 and 3".
  while (/\b(?:are|were)\b/i.test(last[0])) {
    AND.lastIndex = end;
    const next = AND.test(text) ? valueAt(text, AND.lastIndex) : null;
    if (!next) break;
    values.push(next.value);
    end = next.end;
  }
  const rest = text.slice(end);
  return CONTINUES.test(rest) || DOUBT.test(rest) ? null : values.join(', ');
}

/** What is said not to be the answer. */
const DENIED = /\b(?:not|instead of|rather than)\s\(?$/i;

/** The first or the last number of a text, as a whole. */
function numberOf(text: string, which: 'first' | 'last'): string | null {
  const end = which === 'first' ? 0 : -1;
  const span = mathSpans(text)
    .filter(({ content }) => /\d|\\pi|\\infty/.test(content) && !/^[_^]/.test(content))
    .at(end);
  const all = [...text.matchAll(VALUE)].filter(({ 0: value }) => /\d|π|\\pi/.test(value));
  const found =
    all.filter(({ index }) => !DENIED.test(text.slice(Math.max(0, index - 12), index))).at(end) ?? all.at(end);
  if (!found) return span ? rightSide(span.content) : null;
  if (span && found.index < span.end && found.index + found[0].length > span.begin) {
    const percent = /^\s?\\?%/.test(text.slice(span.end)) ? '%' : '';
    return `${rightSide(span.content)}${percent}`;
  }
  const value = found[0].startsWith('-') && !isSign(text, found.index) ? found[0].slice(1) : found[0];
  return tidy(value);
}

/** The first number of a text, as a whole; null for none. */
export const firstNumber = (text: string): string | null => numberOf(plain(text.slice(0, WINDOW)), 'first');

/** The answer that a text without any mark ends in; null for none. */
export function proseAnswer(text: string): string | null {
  const window = plain(text.slice(-WINDOW));
  return namedAnswer(window) ?? numberOf(window, 'last');
}

/** The value that a text begins with, and what stands behind it; null where it begins with words. */
export function leadingValue(text: string): { value: string; rest: string } | null {
  const window = plain(text.slice(0, WINDOW));
  const found = valueAt(window, window.search(/[^\s*_`]|$/));
  return found && { value: found.value, rest: window.slice(found.end) };
}
