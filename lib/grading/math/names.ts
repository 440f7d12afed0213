// The names before a sign of equality.
import { closing, isToken, keyOf, splitTokens, type Token } from './tokens';

/** Words that people write before the sign of equality. */
const QUANTITIES =
  /^(?:area|perimeter|volume|answer|ans|sum|product|difference|total|length|width|height|base|depth|speed|distance|time|probability|prob|mean|median|mode|average|range|variance|price|cost|profit|number|value|result|ratio|radius|diameter|slope|angle|age|weight|mass|rate|final|surface|circumference|of|the|in)$/i;

/** The text of a name: x, x_1, f(x), P(A), AB, \angle ABC, words; null for anything else. */
export function nameOf(tokens: readonly Token[]): string | null {
  const key = keyOf(tokens);
  const [first] = tokens;
  if (tokens.every(({ kind }) => kind === 'text' || kind === 'word')) {
    // e and i are numbers, and xy is a product; AB is a length.
    const isNamed = ({ kind, text }: Token) =>
      kind === 'text' || /^(?:[a-zA-Z]|[A-Z]{2,4})'*$/.test(text) || QUANTITIES.test(text);
    return key === 'e' ||
      key === 'i' ||
      !tokens.every(isNamed) ||
      (tokens.length > 1 && tokens.some(({ text }) => text.length === 1))
      ? null
      : key;
  }
  // m\angle ABC, \triangle ABC, \overline{AB}.
  if (/^\\frac \{ d \S+ \} \{ d \S+ \}$|^\\frac \{ d[a-z] \} \{ d[a-z] \}$|^\| [A-Z]{2} \|$|^\\lim _ /.test(key))
    return key;
  const marks = ['angle', 'triangle', 'overline', 'vec', 'widehat', 'mathbb', 'measuredangle', 'operatorname', 'Pr'];
  const start = first.kind === 'word' && first.text === 'm' && isToken(tokens[1], 'angle') ? 1 : 0;
  if (tokens[start].kind === 'command' && marks.includes(tokens[start].text)) {
    const rest = tokens.slice(start + 1);
    return rest.every(
      ({ kind, text }) => kind === 'word' || kind === 'text' || '{}()_'.includes(text) || kind === 'number',
    )
      ? key
      : null;
  }
  const greek = first.kind === 'command' && /^[a-zA-Z]+$/.test(first.text) && tokens.length === 1;
  if (greek) return ['pi', 'infty', 'emptyset'].includes(first.text) ? null : key;
  if (first.kind !== 'word' && first.kind !== 'text' && first.kind !== 'command')
    return tupleOfNames(tokens) ? key : null;
  if (first.kind === 'command' && !/^[a-zA-Z]+$/.test(first.text)) return null;
  // An index, then the arguments of a function.
  let at = 1;
  if (isToken(tokens[at], '_')) at = isToken(tokens[at + 1], '{') ? closing(tokens, at + 1) + 1 : at + 2;
  if (at > 1 && at === tokens.length) return key;
  if (first.kind === 'command' || !isToken(tokens[at], '(')) return null;
  // x(x + 1) is a product; f(x + 1), P(A) and T(n) are not.
  const isSimple = closing(tokens, at) === at + 2 && tokens[at + 1].kind !== 'sign';
  const isFunction =
    first.kind === 'text' || /^[fghFGHPQE]'*$/.test(first.text) || (isSimple && /^[pyuvwTSVACNR]'*$/.test(first.text));
  return isFunction && closing(tokens, at) === tokens.length - 1 ? key : null;
}

/** (x, y). */
function tupleOfNames(tokens: readonly Token[]): boolean {
  if (!isToken(tokens[0], '(') || closing(tokens, 0) !== tokens.length - 1) return false;
  const { parts } = splitTokens(tokens.slice(1, -1), (token) => isToken(token, ','));
  return parts.length > 1 && parts.every((part) => part.length > 0 && part[0].kind === 'word' && nameOf(part) !== null);
}
