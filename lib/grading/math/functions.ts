// The names in expressions: functions, constants, Greek letters.

import { call, type Node, negate, num, power, product, quotient, sum } from './ast';
import { exactValue } from './evaluate';
import { gcd } from './rational';
import { table } from './table';
import { type Token, Unreadable } from './tokens';
import { lcmInt } from './whole-numbers';

/** π, e, i or infinity. */
export const constant = (name: 'pi' | 'e' | 'i' | 'infinity'): Node => ({ kind: 'constant', name });
const half = num(1, 2);
/** 1 / node. */
export const inverse = (node: Node): Node => power(node, num(-1));
const exponential = (node: Node): Node => power(constant('e'), node);
/** A root; of index 2 where no other is given. */
export const root = (base: Node, index: Node = num(2)): Node => ({ kind: 'root', base, index });
const tangent = (node: Node) => quotient(call('sin', node), call('cos', node));
const hyperbolic = (node: Node, sign: 1 | -1) =>
  product(half, sum(exponential(node), product(num(sign), exponential(negate(node)))));

/** Functions of one argument, in terms of few. */
export const FUNCTIONS = table<(x: Node) => Node>({
  sin: (x) => call('sin', x),
  cos: (x) => call('cos', x),
  tan: tangent,
  cot: (x) => quotient(call('cos', x), call('sin', x)),
  sec: (x) => inverse(call('cos', x)),
  csc: (x) => inverse(call('sin', x)),
  cosec: (x) => inverse(call('sin', x)),
  arcsin: (x) => call('asin', x),
  arccos: (x) => call('acos', x),
  arctan: (x) => call('atan', x),
  arccot: (x) => sum(product(half, constant('pi')), negate(call('atan', x))),
  arcsec: (x) => call('acos', inverse(x)),
  arccsc: (x) => call('asin', inverse(x)),
  sinh: (x) => hyperbolic(x, -1),
  cosh: (x) => hyperbolic(x, 1),
  tanh: (x) => quotient(hyperbolic(x, -1), hyperbolic(x, 1)),
  coth: (x) => quotient(hyperbolic(x, 1), hyperbolic(x, -1)),
  exp: exponential,
  ln: (x) => call('ln', x),
  log: (x) => quotient(call('ln', x), call('ln', num(10))),
  lg: (x) => quotient(call('ln', x), call('ln', num(10))),
  sqrt: (x) => root(x),
  cbrt: (x) => root(x, num(3)),
  usqrt: (x) => root(x),
  ucbrt: (x) => root(x, num(3)),
  abs: (x) => call('abs', x),
  floor: (x) => call('floor', x),
  ceil: (x) => call('ceil', x),
  factorial: (x) => call('factorial', x),
  Re: (x) => call('re', x),
  Im: (x) => call('im', x),
  cis: (x) => sum(call('cos', x), product(constant('i'), call('sin', x))),
});
const ALIASES = table<string>({
  asin: 'arcsin',
  acos: 'arccos',
  atan: 'arctan',
  acot: 'arccot',
  ceiling: 'ceil',
  log10: 'lg',
  root: 'sqrt',
  Exp: 'exp',
  Log: 'log',
  Ln: 'ln',
  Sqrt: 'sqrt',
  Sin: 'sin',
  Cos: 'cos',
  Tan: 'tan',
});
/** Functions that the exponent -1 inverts. */
export const INVERSES = table<string>({
  sin: 'arcsin',
  cos: 'arccos',
  tan: 'arctan',
  cot: 'arccot',
  sec: 'arcsec',
  csc: 'arccsc',
});
/** Functions of several arguments. */
export const MANY = table<(args: Node[]) => Node>({
  max: (args) => call('max', ...args),
  min: (args) => call('min', ...args),
  gcd: (args) => num(integers(args).reduce((a, b) => gcd(a, b))),
  lcm: (args) => num(integers(args).reduce((a, b) => lcmInt(a, b))),
  binom: (args) => pair('binomial', args),
  binomial: (args) => pair('binomial', args),
  comb: (args) => pair('binomial', args),
});
function pair(name: string, args: Node[]): Node {
  if (args.length !== 2) throw new Unreadable();
  return call(name, ...args);
}
function integers(args: Node[]): bigint[] {
  return args.map((arg) => {
    const value = exactValue(arg, new Map());
    if (value?.d !== 1n) throw new Unreadable();
    return value.n;
  });
}

/** Words for constants. */
export const CONSTANT_WORDS = table<'pi' | 'infinity'>({
  pi: 'pi',
  Pi: 'pi',
  PI: 'pi',
  infinity: 'infinity',
  inf: 'infinity',
  Infinity: 'infinity',
  oo: 'infinity',
  infty: 'infinity',
});
/** Greek letters that are variables. */
export const GREEK = new Set(
  'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar'.split(
    ' ',
  ),
);
/** Marks on a name: \overline{AB}, \vec{v}. */
export const MARKS = new Set([
  'overline',
  'bar',
  'vec',
  'hat',
  'widehat',
  'tilde',
  'dot',
  'ddot',
  'overrightarrow',
  'mathbb',
  'overarc',
  'wideparen',
]);
/** One name for a function that has several. */
export const nameOf = (name: string) => ALIASES[name] ?? name;
/** Whether a word is the name of a function. */
export const isFunction = (name: string) => nameOf(name) in FUNCTIONS || name in MANY;

/** sinx. */
const GLUED = /^(sin|cos|tan|ln|log|sqrt)([a-zA-Z])$/;
/** Whether a word of plain text is the name of a function, a constant or a Greek letter. */
export const isMathWord = (word: string): boolean =>
  (isFunction(word) && word.length > 1) || word in CONSTANT_WORDS || GREEK.has(word) || GLUED.test(word);

/** Letters of words that are no names of functions stand for themselves. */
export function splitWords(tokens: readonly Token[]): Token[] {
  return tokens.flatMap((token) => {
    if (token.kind === 'text' && isFunction(token.text))
      return [{ ...token, kind: 'command' as const, text: nameOf(token.text) }];
    if (token.kind !== 'word') return [token];
    const { text, spaced } = token;
    if (isFunction(text) && text.length > 1) return [{ ...token, kind: 'command' as const, text: nameOf(text) }];
    if (text in CONSTANT_WORDS || GREEK.has(text)) return [{ ...token, kind: 'command' as const }];
    // AB is a length or a product of matrices, which BA is not.
    if (/^[A-Z]{2,}'*$/.test(text)) return [token];
    const glued = text.match(GLUED);
    if (glued)
      return [
        { kind: 'command' as const, text: glued[1], spaced },
        { kind: 'word' as const, text: glued[2], spaced: false },
      ];
    return [...text.matchAll(/[a-zA-Z]'*/g)].map(([letter], i) => ({
      kind: 'word' as const,
      text: letter,
      spaced: spaced && i === 0,
    }));
  });
}
