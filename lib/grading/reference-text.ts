/**
 * The reference's answer parsing and text rewards, value for value: string functions with the corners that its Python
 * has. They are here to reproduce its runs (`compat: "reference"`); what they get wrong, `mathEqual` gets right.
 *
 * Source: chinsengi/dUltra-os, diffu_grpo/reward_func.py, diffu_grpo/math500_utils.py, eval_math/parsers.py,
 * parse_and_get_acc.py, eval_coding/lm_eval/tasks/humaneval/utils.py, eval_coding/lm_eval/tasks/mbpp/utils.py.
 * @module
 */
import { dedent } from '../text';

/** Where the reference's Python raises; `name` is the exception's type. */
export class ReferenceFailure extends Error {
  /** An exception of Python's, by its name. */
  constructor(name: 'IndexError' | 'AssertionError' | 'ValueError' | 'TypeError') {
    super(`the reference raises ${name} here`);
    this.name = name;
  }
}

// What Python's str.strip() takes for white space: not the byte order mark, but the four separators.
const SPACE = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]';
const EDGES = new RegExp(`^${SPACE}+|${SPACE}+$`, 'g');
const WHITE = new RegExp(`${SPACE}+`);
const strip = (text: string) => text.replace(EDGES, '');

const occurrences = (text: string, part: string) => text.split(part).length - 1;
const codePoints = (text: string) => Array.from(text).length;
/** What stands behind the first occurrence; all of it where there is none. */
const afterFirst = (text: string, mark: string) => {
  const at = text.indexOf(mark);
  return at < 0 ? text : text.slice(at + mark.length);
};
const beforeFirst = (text: string, mark: string) => text.split(mark, 1)[0];
const afterLast = (text: string, mark: string) =>
  text.slice(text.lastIndexOf(mark) < 0 ? 0 : text.lastIndexOf(mark) + mark.length);

/**
 * The last \boxed{…} (or \fbox{…}) with its command; the text itself without one, null where its braces do not close.
 */
export function lastBoxed(text: string): string | null {
  if (text.includes('\\boxed ')) return `\\boxed ${beforeFirst(afterLast(text, '\\boxed '), '$')}`;
  let begin = text.lastIndexOf('\\boxed');
  if (begin < 0) begin = text.lastIndexOf('\\fbox');
  if (begin < 0) return text;
  let open = 0;
  for (let i = begin; i < text.length; i++) {
    if (text[i] === '{') open++;
    if (text[i] === '}' && --open === 0) return text.slice(begin, i + 1);
  }
  return null;
}

/** The content of what {@link lastBoxed} gives. @throws ReferenceFailure */
export function removeBoxed(text: string | null): string {
  if (text === null) throw new ReferenceFailure('TypeError');
  if (text.includes('\\boxed ')) {
    if (!text.startsWith('\\boxed ')) throw new ReferenceFailure('AssertionError');
    return text.slice('\\boxed '.length);
  }
  return text.startsWith('\\boxed{') && text.endsWith('}') ? text.slice('\\boxed{'.length, -1) : text;
}

/** Content of the last <answer> tag, else of what precedes </answer>, else the text. */
export const xmlAnswer = (text: string): string => strip(beforeFirst(afterLast(text, '<answer>'), '</answer>'));

/** What stands between the first "####" and the next; null without one. */
export const hashAnswer = (text: string): string | null =>
  text.includes('####') ? strip(text.split('####')[1]) : null;

/** \frac12 → \frac{1}{2}. @throws ReferenceFailure */
export function fixFractions(text: string): string {
  const [first, ...parts] = text.split('\\frac');
  let out = first;
  for (const part of parts) {
    out += '\\frac';
    if (part === '') throw new ReferenceFailure('IndexError');
    const [a, b, ...rest] = Array.from(part);
    if (a === '{') {
      out += part;
      continue;
    }
    if (b === undefined) return text;
    out += b === '{' ? `{${a}}${b}${rest.join('')}` : `{${a}}{${b}}${rest.join('')}`;
  }
  return out;
}

/** 1/2 → \frac{1}{2}, for two whole numbers. @throws ReferenceFailure */
export function fixSlash(text: string): string {
  const parts = text.split('/');
  if (parts.length !== 2) return text;
  const [a, b] = parts.map((part) => {
    const digits = strip(part);
    if (!/^[+-]?\d+(_\d+)*$/.test(digits)) throw new ReferenceFailure('ValueError');
    return BigInt(digits.replace(/[+_]/g, '')).toString();
  });
  return text === `${a}/${b}` ? `\\frac{${a}}{${b}}` : text;
}

/** Cuts "\text{ unit}" off. @throws ReferenceFailure */
export function removeUnits(text: string): string {
  const parts = text.split('\\text{ ');
  if (parts.length > 2) throw new ReferenceFailure('AssertionError');
  return parts[0];
}

/** \sqrt3 → \sqrt{3}. @throws ReferenceFailure */
export function fixRoots(text: string): string {
  const [first, ...parts] = text.split('\\sqrt');
  let out = first;
  for (const part of parts) {
    if (part === '') throw new ReferenceFailure('IndexError');
    const [a, ...rest] = Array.from(part);
    out += a === '{' ? `\\sqrt${part}` : `\\sqrt{${a}}${rest.join('')}`;
  }
  return out;
}

/** The form in which the reference compares two answers. @throws ReferenceFailure */
export function normalise(text: string): string {
  let out = text
    .replaceAll('\n', '')
    .replaceAll('\\!', '')
    .replaceAll('\\\\', '\\')
    .replaceAll('tfrac', 'frac')
    .replaceAll('dfrac', 'frac');
  out = out
    .replaceAll('\\left', '')
    .replaceAll('\\right', '')
    .replaceAll('^{\\circ}', '')
    .replaceAll('^\\circ', '')
    .replaceAll('\\$', '');
  out = removeUnits(out).replaceAll('\\%', '').replaceAll(' .', ' 0.').replaceAll('{.', '{0.');
  if (out === '') return out;
  if (out.startsWith('.')) out = `0${out}`;
  const sides = out.split('=');
  if (sides.length === 2 && codePoints(sides[0]) <= 2) out = sides[1];
  out = fixFractions(fixRoots(out).replaceAll(' ', ''));
  return fixSlash(out === '0.5' ? '\\frac{1}{2}' : out);
}

/** Whether two answers are the same string once normalised; where normalising fails, as they stand. */
export function isEquivalent(a: unknown, b: unknown): boolean {
  if (a === null || b === null) return a === b;
  if (typeof a !== 'string' || typeof b !== 'string') return a === b;
  try {
    return normalise(a) === normalise(b);
  } catch {
    return a === b;
  }
}

/** Python's str.split(): the words between white space. */
export const pythonWords = (text: string): string[] => text.split(WHITE).filter((word) => word !== '');

/** Python's float(): null where it raises. */
export function pythonFloat(text: string): number | null {
  const word = strip(text);
  if (/^[+-]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][+-]?\d+(_\d+)*)?$/.test(word))
    return Number(word.replaceAll('_', ''));
  if (/^[+-]?nan$/i.test(word)) return Number.NaN;
  if (/^[+-]?inf(inity)?$/i.test(word)) return word.startsWith('-') ? -Infinity : Infinity;
  return null;
}

/** {@link isEquivalent} of the reference's evaluation, which compares numbers within 1e-6. */
export function isEquivalentInEvaluation(a: unknown, b: unknown): boolean {
  if (typeof a !== 'number' && typeof b !== 'number') return isEquivalent(a, b);
  const [x, y] = [a, b].map((value) =>
    typeof value === 'number' ? value : typeof value === 'string' ? pythonFloat(value) : null,
  );
  return x !== null && y !== null && Math.abs(x - y) < 1e-6;
}

const NUMBERS = /-?\d+(?:\.\d+)?/g;
const lastNumber = (text: string): number | null => {
  const found = text.match(NUMBERS);
  return found ? Number(found[found.length - 1]) : null;
};

/** A value as a number: the whole text, else the last number in it; null without one. */
export function toNumber(value: unknown): number | null {
  if (value === null || value === undefined) return null;
  if (typeof value === 'number') return value;
  const text = strip(String(value)).replaceAll(',', '');
  return text === '' ? null : (pythonFloat(text) ?? lastNumber(text));
}

/** The non-negative number behind the first "####" that one follows; null without one. */
export function hashNumber(text: string): number | null {
  const match = text.match(/####\s*\$?([\d,]+(?:\.\d+)?)/);
  return match ? pythonFloat(match[1].replaceAll(',', '')) : null;
}

/** Content of the last box; the text where there is none, or where it is broken. */
export function boxedAnswer(text: string): string {
  try {
    return removeBoxed(lastBoxed(text));
  } catch {
    return text;
  }
}

/** The number that an answer to GSM8K ends in: box, "####", answer tag, last number. */
export function gsm8kNumber(text: string): number | null {
  if (text === '') return null;
  const tag = text.match(/<answer>([\s\S]*?)<\/answer>/);
  return toNumber(boxedAnswer(text)) ?? hashNumber(text) ?? (tag ? toNumber(tag[1]) : null) ?? lastNumber(text);
}

/** Whether an answer to GSM8K counts as right in the reference's evaluation. */
export function isRightGsm8k(completion: string, gold: unknown): boolean {
  const [found, truth] = [gsm8kNumber(completion), toNumber(gold)];
  return found !== null && truth !== null && Math.abs(found - truth) < 1e-5;
}

/** What the reference's evaluation of MATH500 takes for the answer; null for none. */
export function mathEvaluationAnswer(completion: string): string | null {
  const box = lastBoxed(completion);
  let answer: string | null = null;
  if (box) {
    try {
      answer = removeBoxed(box);
    } catch {
      answer = box;
    }
  }
  if (answer) return answer;
  const tag = completion.match(/<answer>([\s\S]*?)<\/answer>/);
  return tag ? strip(tag[1]) : answer;
}

/** 2 for a right answer, else 0 (`correctness_reward_func_math`). */
export function mathReward(completion: string, gold: string): number {
  let truth: string;
  try {
    truth = removeBoxed(lastBoxed(gold));
  } catch {
    // The reference ends its run here.
    return 0;
  }
  return isEquivalent(boxedAnswer(completion), truth) ? 2 : 0;
}

/**
 * 0.25 to 1: a box and an answer tag count half a point each, no box a quarter (`boxed_and_answer_tags_format_reward`).
 */
export function boxedFormatReward(completion: string): number {
  const parts = completion.split('<answer>');
  const tagged = parts.length > 1;
  const body = tagged ? beforeFirst(parts[1], '</answer>') : completion;
  return 0.5 * ((tagged ? 1 : 0) + (body.includes('\\boxed') ? 1 : 0.5));
}

/** 0.5 where both think tags occur, in whatever order (`soft_format_reward_func`). */
export const thinkTagsReward = (completion: string): number =>
  completion.includes('<think>') && completion.includes('</think>') ? 0.5 : 0;

/** 0.5 for exactly <think>, one line, </think>, <answer>, one line, </answer>, each on lines of their own. */
export const strictFormatReward = (completion: string): number =>
  /^<think>\n[^\n]*?\n<\/think>\n<answer>\n[^\n]*?\n<\/answer>\n$/.test(completion) ? 0.5 : 0;

/** 0.5 where the tagged answer is digits alone. */
export const integerReward = (completion: string): number => (/^\p{Nd}+$/u.test(xmlAnswer(completion)) ? 0.5 : 0);

/** 0 to 0.5 for think and answer tags on lines of their own, less 0.001 per character behind them. */
export function tagCountReward(completion: string): number {
  const tail = (mark: string) => codePoints(afterLast(completion, mark));
  let count = 0;
  if (occurrences(completion, '<think>\n') === 1) count += 0.125;
  if (occurrences(completion, '\n</think>\n') === 1) count += 0.125;
  if (occurrences(completion, '\n<answer>\n') === 1) count += 0.125 - tail('\n</answer>\n') * 0.001;
  if (occurrences(completion, '\n</answer>') === 1) count += 0.125 - (tail('\n</answer>') - 1) * 0.001;
  return count;
}

/** 0 to 1 for a fenced Python block with nothing behind it. */
export function codeFenceReward(completion: string): number {
  if (completion === '') return 0;
  const text = strip(completion);
  const suffix = text.includes('```') ? strip(afterLast(text, '```')) : '';
  let score = suffix === '' ? 0.25 : -Math.min(codePoints(suffix), 200) * 0.001;
  if (completion.includes('```')) score += 0.25;
  if (completion.toLowerCase().includes('```python')) score += 0.25;
  if (occurrences(completion, '```') >= 2) score += 0.25;
  return Math.max(0, Math.min(1, score));
}

/** A text without the fence that it begins with. */
export function stripCodeFence(text: string): string {
  const body = strip(text);
  if (!body.startsWith('```')) return body;
  const lines = body.split('\n');
  if (lines.length < 2) return body;
  lines.shift();
  if (strip(lines[lines.length - 1]).startsWith('```')) lines.pop();
  return strip(lines.join('\n'));
}

/**
 * The program in an answer: of the first answer tag, of the first ```python fence, of the first fence, else the text.
 */
export function programOf(completion: string): string {
  let body = completion;
  if (body.includes('<answer>')) body = beforeFirst(afterFirst(body, '<answer>'), '</answer>');
  for (const fence of ['```python\n', '```python', '```']) {
    if (!body.includes(fence)) continue;
    body = afterFirst(body, fence);
    break;
  }
  return strip(dedent(beforeFirst(body, '```')));
}

/** The program in an answer to HumanEval, without the head of its function: behind the first ```python fence. */
export const humanEvalProgramOf = (completion: string): string =>
  beforeFirst(afterFirst(completion, '```python\n'), '```');

/** The program in an answer to MBPP: of the first ```python fence, else the text before a fence. */
export const mbppProgramOf = (completion: string): string =>
  completion.includes('```') ? strip(beforeFirst(afterFirst(completion, '```python'), '```')) : completion;

/** A program as the tests call it: a method of a class "Solution" becomes a function. */
export function callableProgram(program: string, functionName: string): string {
  const clean = strip(dedent(program));
  if (!clean.includes('class Solution') || functionName === '') return clean;
  return `${clean}\n\ndef ${functionName}(*args, **kwargs):\n    return Solution().${functionName}(*args, **kwargs)\n`;
}
