// Finds the final answer in the text of a completion: what is marked as such, else what its prose ends in.
import { MAX_ANSWER_LENGTH } from './math/work';
import { DOUBT, firstNumber, leadingValue, proseAnswer } from './prose-answer';

/** Deepest nesting of boxes and tags that is read. */
const MAX_DEPTH = 8;

/** An answer that is marked by a box, a tag or "####". */
interface Mark {
  begin: number;
  end: number;
  /** null: the end of the completion cuts the answer off. */
  text: string | null;
  kind: 'box' | 'tag' | 'hash';
}

/** What a model thinks before it answers, in the tags of the model families. */
const THINKING =
  /<(\/?)(?:think(?:ing)?|thoughts?|reasoning|scratchpad)\s*>|\[(\/?)THINK\]|◁(\/?)think▷|<\|(begin|end)_of_thought\|>/gi;

/**
 * The text without its drafts; null where the end cuts one off. A closing tag without an opening one ends a draft that
 * the prompt began.
 */
function withoutThinking(completion: string): string | null {
  let text = '';
  let end = 0;
  let inside = false;
  for (const match of completion.matchAll(THINKING)) {
    const closes = [match[1], match[2], match[3]].includes('/') || match[4]?.toLowerCase() === 'end';
    if (closes) {
      if (!inside) text = '';
      inside = false;
    } else {
      if (!inside) text += `${completion.slice(end, match.index)}\n`;
      inside = true;
    }
    end = match.index + match[0].length;
  }
  return inside ? null : text + completion.slice(end);
}

/** For each brace that opens a group, the index after the group. */
function groupEnds(text: string): Map<number, number> {
  const ends = new Map<number, number>();
  const open: number[] = [];
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '\\') i++;
    else if (text[i] === '{') open.push(i);
    else if (text[i] === '}' && open.length > 0) ends.set(open.pop()!, i + 1);
  }
  return ends;
}

/** Nothing to compare: "\boxed{}" or "\boxed{...}" where a model speaks of its format. */
const isEmpty = (text: string) => /^(?:[\s.?…_$]|\\[cl]?dots|\\ldots)*$/.test(text);

function boxes(text: string): Mark[] {
  const ends = groupEnds(text);
  const marks: Mark[] = [];
  for (const match of text.matchAll(/\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*/g)) {
    const { index } = match;
    const begin = index + match[0].length;
    if (text[begin] === '{') {
      const end = ends.get(begin);
      const content = end === undefined ? null : text.slice(begin + 1, end - 1);
      if (content === null || !isEmpty(content))
        marks.push({ begin: index, end: end ?? text.length, text: content, kind: 'box' });
    } else {
      const bare = text.slice(begin, begin + 200).split(/\n|(?!^)\$/, 1)[0];
      const value = leadingValue(bare)?.value ?? bare.match(/^(?:\\[a-zA-Z]+(?:\{[^{}]*\})*|[^\s$.,;<\\])+/)?.[0];
      if (value !== undefined) marks.push({ begin: index, end: begin + value.length, text: value, kind: 'box' });
      else if (begin === text.length) marks.push({ begin: index, end: begin, text: null, kind: 'box' });
    }
  }
  return marks;
}

function tags(text: string): Mark[] {
  return [...text.matchAll(/<((?:final_)?answer)\s*>/gi)].map((match) => {
    const begin = match.index + match[0].length;
    const rest = text.slice(begin);
    const close = rest.search(/<\/?(?:final_)?answer\s*>/i);
    const content = close < 0 ? rest : rest.slice(0, close);
    return { begin: match.index, end: begin + content.length, text: content, kind: 'tag' };
  });
}

const EMPHASIS = /^[\s*_`]+|[\s*_`]+$/g;
const withoutEmphasis = (text: string) => text.replace(EMPHASIS, '');

/** Without the delimiters of mathematics, emphasis and the end of a sentence. */
function bareValue(text: string): string {
  const bare = withoutEmphasis(text).replace(/(?<=[\p{L}\p{N})}\]$%])\.$/u, '');
  const formula = bare.match(/^\$\$([^$]+)\$\$$|^\$([^$]+)\$$|^\\\(([^$]+)\\\)$|^\\\[([^$]+)\\\]$/);
  return formula ? bareValue(formula[1] ?? formula[2] ?? formula[3] ?? formula[4]) : bare;
}

const LABEL = String.raw`(?:(?:so|thus|hence|therefore),?\s)?(?:the\s|my\s|our\s)?(?:final\s|correct\s)?(?:answers?|results?|solutions?|total)`;
const LABEL_ALONE = new RegExp(String.raw`^(?:\d+[.)]\s)?${LABEL}(?:\sis)?\s?:?$`, 'i');
const LABELLED = new RegExp(
  String.raw`^(?:\d+[.)]\s)?${LABEL}(?:\s(?:is|are|equals)|[*_\s]*[:=])[*_\s]*:?\s*(\S[\s\S]*)$`,
  'i',
);
const NUMBERED = /^\d+(?:[.):]\s*\p{L}|\s+\p{Lu}\p{Ll}+\s+\p{L})/u;
const HEADING =
  /^(?:steps?|part|case|phase|stage|section|problem|question|example|method|approach|option|explanation|verification|check|conclusion|summary|calculations?|reasoning|analysis|given|notes?|proof|understanding|breakdown|thoughts?|review|solution|answers?|results?)\b/i;

/** An expression, list or choice without prose: its words are functions, "and", "or". */
const isFormula = (text: string) =>
  !/[a-zA-Z]{2,}|[a-zA-Z]'/.test(
    text
      .replace(/\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*\}/g, ' ')
      .replace(/\\[a-zA-Z]+/g, ' ')
      .replace(/\b(?:and|or|pi|sqrt|sin|cos|tan|log|ln|exp|mod|infinity|inf)\b/gi, ' '),
  ) && /[\p{L}\p{N}∅∞]/u.test(text);

/** The first lines behind a heading that says "Answer". */
function section(text: string): { content: string; length: number } {
  const skipped = text.match(/^\s*/)![0].length;
  const content = text.slice(skipped).split(/\n[ \t]*\n|\n#{1,6}\s|<[/|]/, 1)[0];
  return { content, length: skipped + content.length };
}

/**
 * The answer in a section's text: its first line where that is a value, else the number in bold, else what its last
 * sentence with a number says.
 */
function sectionAnswer(content: string): string | null {
  const line = withoutEmphasis(content.split('\n', 1)[0]);
  if (isFormula(line)) return line;
  const bold = [...content.matchAll(/\*\*([^*\n]+)\*\*/g)].map((match) => bareValue(match[1])).filter(isFormula);
  if (bold.length > 0) return bold[bold.length - 1];
  const sentence = content
    .split(/(?<=[.!?])\s+|\n/)
    .filter((text) => /\d/.test(text))
    .pop();
  const said = sentence === undefined ? '' : withoutWords(sentence);
  return isFormula(said) ? said : (proseAnswer(content) ?? (line === '' ? null : line));
}

/**
 * "#### 18", as GSM8K marks its answers, and headings that say "Answer", of any level or in bold. Other headings are no
 * marks; a text is one only where nothing follows it.
 */
function hashes(text: string): Mark[] {
  const marks: Mark[] = [];
  const lines = /(#{4,})(?!#)((?:(?!<[/|])[^\n])*)|(?<=^|\n)[ \t]*(?:#{1,3}\s|\*\*|__)([^\n]*)/g;
  for (const match of text.matchAll(lines)) {
    const { index } = match;
    const end = index + match[0].length;
    const line = withoutEmphasis((match[2] ?? match[3]).replace(/\s#+\s*$/, ''));
    const behind = text.slice(end);
    const add = (content: string | null, stop = end) =>
      marks.push({ begin: index, end: stop, text: content, kind: 'hash' });
    if (LABEL_ALONE.test(line) || (match[1] && line === '')) {
      const { content, length } = section(behind);
      const answer = sectionAnswer(content);
      // A bare "####" may be a rule between parts.
      if (answer !== null && (line !== '' || isFormula(answer))) add(answer, end + length);
      else if (content === '' && (line !== '' || marks.length === 0)) add(null);
      continue;
    }
    if (!match[1]) continue;
    const labelled = line.match(LABELLED)?.[1];
    const value = labelled ?? (HEADING.test(line) ? line : line.replace(/^[^:\d]{1,60}:\s+/, ''));
    if (NUMBERED.test(value)) continue;
    const leading = leadingValue(value);
    if (isFormula(value)) add(value);
    // One word behind a number is its unit.
    else if (leading) add(/^\s?\S+(?:\s\S+)?\s*$/.test(leading.rest) ? value : leading.value);
    else if (labelled && /answer/i.test(line)) add(/\d/.test(value) ? value : sectionAnswer(section(behind).content));
    else if (!HEADING.test(line) && marks.length === 0 && behind.trim() === '') add(value);
  }
  return marks;
}

/** A line that begins a new problem, or another turn of a chat. */
const NEW_PROBLEM =
  /\n[ \t]*(?:#{1,6}[ \t]*|[*_>]{1,3}[ \t]*)?(?:(?:new|next|another)\s)?(?:question|problem|exercise|q|user|human|instruction|example)\b[ \t]*(?:#?\d+)?[*_ \t]*[:.)]|<\|im_start\|>|<\|start_header_id\|>|\[INST\]/i;
const ASKS = /\b(?:how|what|which|who|when|where)\b[^.?!]{0,300}\?/i;

/**
 * The last mark that is in no other one. What a model writes behind its answer, when it goes on with a problem of its
 * own, is no answer to the one it was given: the marks end at the first that a new problem follows.
 */
function finalMark(text: string): Mark | null {
  const all = [...boxes(text), ...tags(text), ...hashes(text)].sort((a, b) => a.begin - b.begin || b.end - a.end);
  const marks: Mark[] = [];
  for (const [i, mark] of all.entries()) {
    // An unclosed box is cut off, unless another mark begins behind it: then a brace is missing.
    if (mark.text === null && i < all.length - 1) continue;
    if (mark.end > (marks.at(-1)?.end ?? -1)) marks.push(mark);
  }
  for (let i = 0; i < marks.length - 1; i++) {
    const between = text.slice(marks[i].end, marks[i + 1].begin);
    if (NEW_PROBLEM.test(between)) return marks[i];
    if (marks[i].kind === 'hash' && ASKS.test(between) && !DOUBT.test(between)) return marks[i];
  }
  return marks.at(-1) ?? null;
}

/** Words that make a number in their sentence something else than its answer. */
const HEDGES = /\b(?:except|not|no|if|when|unless|any|all|multiples?|least|most|more|less|than|other|between|or)\b/i;

/** Behind a value: it is said that this is the answer, or why. */
const ASIDE =
  /^\s*(?:\([a-zA-Z]{2,}|,\s*(?:not|since|because|as|which|so)\b|(?:is|was|are|were|because|since|not|instead|rather)\b)/i;
const VERB =
  /\b(?:is|are|was|were|equals|ha[sd]|have|makes?|made|costs?|gets?|got|earns?|earned|spends?|spent|needs?|needed|pays?|paid|takes?|took|keeps?|kept|sells?|sold|saves?|saved|bought|buys?)\b\s*:?/i;

/** What a mark's words say: "The answer is 18", "Tom has 18 apples". Other words are themselves the answer. */
function withoutWords(content: string): string {
  if (content.length > MAX_ANSWER_LENGTH) return content.trim();
  const text = bareValue(content);
  const flat = text
    .replace(/\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}/g, '$1')
    .replace(/[~\s]+/g, ' ')
    .trim();
  // 7 + 5 = 12.
  const sum = flat.match(/^[^a-zA-Z]*\d[^a-zA-Z]*=\s*([^=]+)$/);
  if (sum) return bareValue(sum[1]);
  if (isFormula(flat)) return text;
  const said =
    flat.match(LABELLED)?.[1] ?? flat.match(/^(?:so|thus|hence|therefore|then|finally|altogether),?\s+(.+)$/i)?.[1];
  const bare = bareValue(
    said ??
      flat.match(/^\p{L}[\p{L}\s]{1,60}:\s*(\S.*)$/u)?.[1] ??
      flat.match(/^\p{L}{3}[\p{L}\s-]{0,60}\(([^()]+)\)$/u)?.[1] ??
      flat,
  );
  if (bare !== flat && isFormula(bare)) return bare;
  // "18, not 20", "18 is the answer"; behind "the answer is" any value.
  const leading = leadingValue(bare);
  if (leading && (ASIDE.test(leading.rest) || LABELLED.test(flat))) return leading.value;
  const words = bare.replace(/\\[a-zA-Z]+/g, ' ').match(/[a-zA-Z]{2,}/g) ?? [];
  const verb = bare.match(VERB);
  const isSentence = /^\p{L}{2,}/u.test(bare) && words.length >= (verb || said ? 2 : 3);
  if (!isSentence || HEDGES.test(bare)) return text;
  const object = verb ? bare.slice(verb.index! + verb[0].length) : bare;
  // Of "has 18 apples in 3 boxes" the first number is what the verb says; a calculation ends in its result.
  const isPlain = verb && !/=|\b(?:so|then|thus|therefore|leaving|makes|total)\b/i.test(object);
  return (isPlain ? firstNumber(object) : proseAnswer(object)) ?? text;
}

/**
 * The final answer of a completion, as LaTeX or plain text; null if there is none.
 *
 * Sections of thinking (`<think>` …) are left out; where the end cuts one off, there is no answer. Of the marks
 * `\boxed{…}`, `<answer>` and `#### …` the last counts, before a new problem that the model sets itself; a box that the
 * end cuts off is no answer. A heading is no mark, unless it says "Answer". Words around the value of a mark ("The
 * answer is 18") are taken off. Without a mark it is the value behind the last "the answer is", else the last number:
 * with its sign, fraction, exponent, root and percent, never a part of it.
 */
export function extractAnswer(completion: string): string | null {
  const text = withoutThinking(completion);
  if (text === null) return null;
  const mark = finalMark(text);
  if (!mark) return proseAnswer(beforeNewProblem(text));
  // A box inside an answer tag or inside another box.
  let content = mark.text;
  for (let depth = 0; content !== null && depth < MAX_DEPTH; depth++) {
    const inner = finalMark(content);
    if (!inner) break;
    content = inner.text;
  }
  return content === null || content.trim() === '' ? null : withoutWords(content);
}

/** What stands before a new problem, where an answer stands there. */
function beforeNewProblem(text: string): string {
  const next = text.match(NEW_PROBLEM);
  if (!next) return text;
  const before = text.slice(0, next.index);
  const answer = before.search(/\banswers?\b/i);
  return answer >= 0 && /\d/.test(before.slice(answer)) ? before : text;
}
