// Reads an expression from tokens: LaTeX or plain text. What can be read in two ways (1/2x with letters, sin x/2, a mixed
// number with an improper fraction) is not read at all, so that it equals its own text alone.
import { call, type Node, negate, num, numberNode, power, product, quotient, sum } from './ast';
import { exactValue } from './evaluate';
import {
  CONSTANT_WORDS,
  constant,
  FUNCTIONS,
  GREEK,
  INVERSES,
  inverse,
  isFunction,
  MANY,
  MARKS,
  nameOf,
  root,
  splitWords,
} from './functions';
import { type Rational, rational } from './rational';
import { isToken, keyOf, type Token, Unreadable } from './tokens';

const MAX_DEPTH = 60;
/** Longest sum or product that is written out. */
const MAX_TERMS = 500;

const decimal = (text: string): Rational => {
  const [, whole, fraction = '', exponent = '0'] = text.match(/^(\d*)\.?(\d*)(?:[eE]([+-]?\d+))?$/)!;
  const shift = Number(exponent) - fraction.length;
  if (Math.abs(shift) > 10_000) throw new Unreadable();
  const digits = BigInt(`${whole}${fraction}` || '0');
  return shift >= 0 ? rational(digits * 10n ** BigInt(shift)) : rational(digits, 10n ** BigInt(-shift));
};

class Parser {
  readonly #tokens: readonly Token[];
  #at = 0;
  #depth = 0;
  #bars = 0;
  /** Whether the innermost bracket is that of a group. */
  #inGroup = false;
  /** Values of the running index of a sum. */
  readonly #bound = new Map<string, Node>();

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  whole(): Node {
    const node = this.#sumOrChoice();
    if (this.#at < this.#tokens.length) throw new Unreadable();
    return node;
  }

  get #next(): Token | undefined {
    return this.#tokens[this.#at];
  }
  #is(text: string, offset = 0): boolean {
    return isToken(this.#tokens[this.#at + offset], text);
  }
  #skip(text: string): boolean {
    if (!this.#is(text)) return false;
    this.#at++;
    return true;
  }
  #expect(text: string): void {
    if (!this.#skip(text)) throw new Unreadable();
  }
  #nested<T>(read: () => T): T {
    if (++this.#depth > MAX_DEPTH) throw new Unreadable();
    const result = read();
    this.#depth--;
    return result;
  }

  #sum(): Node {
    return this.#nested(() => {
      const terms: Node[] = [];
      for (;;) {
        let minus = false;
        let signs = 0;
        for (; this.#is('+') || this.#is('-'); signs++) if (this.#tokens[this.#at++].text === '-') minus = !minus;
        if (signs > 2) throw new Unreadable();
        const term = this.#product();
        terms.push(minus ? negate(term) : term);
        if (!this.#is('+') && !this.#is('-')) return sum(...terms);
      }
    });
  }

  #product(): Node {
    const factors: Node[] = [];
    let begin = this.#at;
    factors.push(this.#signed());
    for (;;) {
      if (this.#skip('cdot') || this.#skip('*')) factors.push(this.#signed());
      else if (this.#skip('/')) {
        const isNumber = this.#at - begin === 2 && this.#tokens[begin].kind === 'number';
        const from = this.#at;
        const below = this.#signed();
        // 1/2 x is (1/2) x; a/bc can be read in two ways.
        if (this.#startsFactor() && !(isNumber && this.#at - from === 1 && this.#tokens[from].kind === 'number'))
          throw new Unreadable();
        factors.push(inverse(below));
        if (factors.length === 2 && factors[0].kind === 'number' && below.kind === 'number') {
          if (below.value.n === 0n) continue;
          factors.splice(0, 2, quotient(factors[0], below));
        }
      } else if (this.#startsFactor()) {
        const { kind } = this.#next!;
        // Numbers are not multiplied by standing behind another number or a name; 2^x 3^x is a product.
        const isClosed = [')', '}', ']', '!'].some((close) => this.#is(close, -1));
        const isExponent = this.#is('^', -2) && (this.#tokens[this.#at - 1].kind === 'word' || this.#next!.spaced);
        // 2^{3}3^{2} is one too; 2^{10}0 is rather a slip.
        const isSlip = this.#endsExponent() && !this.#is('^', 1);
        if (kind === 'number' && ((!isClosed && !isExponent) || isSlip)) throw new Unreadable();
        factors.push(this.#power());
      } else return product(...factors);
      begin = -1;
    }
  }

  /** Whether the tokens before are ^{…} of a number. */
  #endsExponent(): boolean {
    if (!this.#is('}', -1)) return false;
    return this.#tokens[this.#at - 2].kind === 'number' && this.#is('{', -3) && this.#is('^', -4);
  }

  #signed(): Node {
    if (this.#skip('-')) return this.#nested(() => negate(this.#signed()));
    if (this.#skip('+')) return this.#nested(() => this.#signed());
    return this.#power();
  }

  /** Whether the next token can begin a factor. */
  #startsFactor(): boolean {
    const token = this.#next;
    if (!token) return false;
    if (token.kind === 'number' || token.kind === 'word') return true;
    if (token.kind === 'text') return false;
    if (token.kind === 'sign') return '([{'.includes(token.text) || (token.text === '|' && this.#bars === 0);
    return (
      ['frac', 'lfloor', 'lceil', 'vulgar', 'sum', 'prod'].includes(token.text) ||
      token.text in CONSTANT_WORDS ||
      isFunction(token.text) ||
      GREEK.has(token.text) ||
      MARKS.has(token.text)
    );
  }

  #power(): Node {
    let node = this.#postfix(this.#primary());
    if (this.#skip('^')) {
      if (this.#isDegree()) return product(node, quotient(constant('pi'), num(180)));
      node = power(node, this.#exponent());
      if (this.#is('!') || this.#is('^')) throw new Unreadable();
    }
    return node;
  }

  #postfix(node: Node): Node {
    if (!this.#skip('!')) return node;
    if (this.#is('!')) throw new Unreadable();
    return call('factorial', node);
  }

  /** After "^": \circ or {\circ}, which is skipped. */
  #isDegree(): boolean {
    if (this.#skip('circ')) return true;
    if (!this.#is('{') || !this.#is('circ', 1) || !this.#is('}', 2)) return false;
    this.#at += 3;
    return true;
  }

  /** What stands behind "^". */
  #exponent(): Node {
    return this.#nested(() => {
      if (this.#skip('-')) return negate(this.#exponent());
      if (this.#skip('+')) return this.#exponent();
      const token = this.#next;
      if (token?.kind === 'number') {
        this.#at++;
        return numberNode(decimal(token.text));
      }
      const base = this.#primary();
      return this.#skip('^') ? power(base, this.#exponent()) : base;
    });
  }

  /** What a bracket, or a group, holds. */
  #inside(isGroup: boolean): Node {
    const [bars, inGroup] = [this.#bars, this.#inGroup];
    this.#bars = 0;
    this.#inGroup = isGroup;
    const node = this.#sumOrChoice();
    this.#bars = bars;
    this.#inGroup = inGroup;
    return node;
  }

  /** {…}. */
  #group(): Node {
    this.#expect('{');
    const node = this.#inside(true);
    this.#expect('}');
    return node;
  }

  /** An argument of \frac or \sqrt: a group, else one digit or letter, or a command. */
  #argument(): Node {
    if (this.#is('{')) return this.#group();
    const token = this.#next;
    if (token?.kind === 'number' && !token.text.includes('.') && token.text.length === 1) {
      this.#at++;
      return num(Number(token.text));
    }
    if (token?.kind === 'word' || token?.kind === 'command') return this.#primary();
    throw new Unreadable();
  }

  #primary(): Node {
    return this.#nested(() => {
      const token = this.#next;
      if (!token) throw new Unreadable();
      if (token.kind === 'number') return this.#number();
      if (token.kind === 'word') return this.#name();
      if (token.kind === 'text') throw new Unreadable();
      this.#at++;
      switch (token.text) {
        case '(':
        case '[': {
          const node = this.#inside(false);
          this.#expect(token.text === '(' ? ')' : ']');
          return node;
        }
        case '{':
          this.#at--;
          return this.#group();
        case '|': {
          this.#bars++;
          const node = this.#sum();
          this.#expect('|');
          this.#bars--;
          return call('abs', node);
        }
        case 'lfloor':
        case 'lceil': {
          const node = this.#sum();
          this.#expect(token.text === 'lfloor' ? 'rfloor' : 'rceil');
          return call(token.text === 'lfloor' ? 'floor' : 'ceil', node);
        }
        case 'frac':
          return this.#fraction();
        case 'vulgar':
          return this.#group();
        case 'sum':
        case 'prod':
          return this.#series(token.text);
      }
      if (token.kind !== 'command') throw new Unreadable();
      if (token.text in CONSTANT_WORDS) return constant(CONSTANT_WORDS[token.text]);
      if (isFunction(token.text)) return this.#function(token.text);
      if (GREEK.has(token.text)) return this.#subscripted(token.text);
      if (MARKS.has(token.text)) {
        const from = this.#at;
        this.#skipGroup();
        return this.#subscripted(keyOf([token, ...this.#tokens.slice(from, this.#at)]));
      }
      throw new Unreadable();
    });
  }

  #skipGroup(): void {
    if (!this.#skip('{')) {
      this.#at++;
      return;
    }
    for (let depth = 1; depth > 0; this.#at++) {
      if (!this.#next) throw new Unreadable();
      if (this.#is('{')) depth++;
      else if (this.#is('}')) depth--;
    }
  }

  /** A sum, or n \choose k. */
  #sumOrChoice(): Node {
    const above = this.#sum();
    return this.#skip('choose') ? call('binomial', above, this.#sum()) : above;
  }

  #fraction(): Node {
    const token = this.#next;
    // \frac12: the digits of one token are the two arguments.
    if (token?.kind === 'number' && /^\d{2}$/.test(token.text)) {
      this.#at++;
      return this.#divided(num(Number(token.text[0])), num(Number(token.text[1])));
    }
    return this.#divided(this.#argument(), this.#argument());
  }
  #divided(a: Node, b: Node): Node {
    return b.kind === 'number' && b.value.n === 0n ? product(a, inverse(b)) : quotient(a, b);
  }

  #number(): Node {
    const token = this.#tokens[this.#at++];
    const { text } = token;
    let value = decimal(text);
    const repeats = ['overline', 'bar', 'dot'].some((mark) => this.#is(mark));
    if (text.includes('.') && repeats && !/e/i.test(text)) return this.#repeating(text);
    // Thousands where no list can be: inside of a group.
    let digits = text;
    while (
      this.#inGroup &&
      /^[1-9]\d{0,2}(?:\d{3})*$/.test(digits) &&
      this.#is(',') &&
      !this.#next!.spaced &&
      /^\d{3}(?:\.\d+)?$/.test(this.#tokens[this.#at + 1]?.text ?? '') &&
      !this.#tokens[this.#at + 1].spaced
    ) {
      digits += this.#tokens[this.#at + 1].text;
      value = decimal(digits);
      this.#at += 2;
    }
    // 1011_2 is no decimal number.
    if (this.#is('_')) return this.#subscripted(`number ${digits}`);
    if (/[.e]/i.test(text)) {
      if (this.#isMixed()) throw new Unreadable();
      return numberNode(value);
    }
    if (!this.#isMixed()) return numberNode(value);
    const from = this.#at;
    const part = this.#mixedPart();
    if (!part || part.n >= part.d) {
      if (!part && from === this.#at) return numberNode(value);
      throw new Unreadable();
    }
    if (this.#is('^')) throw new Unreadable();
    return numberNode(rational(value.n * part.d + part.n, part.d));
  }

  /** Whether a fraction follows a number. */
  #isMixed(): boolean {
    return this.#is('frac') || this.#is('vulgar') || (this.#next?.kind === 'number' && this.#is('/', 1));
  }

  /** The fraction of a mixed number; null, and nothing is read, where it is none of whole numbers. */
  #mixedPart(): Rational | null {
    const from = this.#at;
    if (this.#next!.kind === 'number') {
      const [above, , below] = this.#tokens.slice(this.#at, this.#at + 3);
      const isWhole = [above, below].every((token) => token?.kind === 'number' && /^\d+$/.test(token.text));
      // 1 300/400 may be 1300/400.
      if (!isWhole || !above.spaced || above.text.length === 3) throw new Unreadable();
      this.#at += 3;
      if (this.#startsFactor() || this.#is('^') || this.#is('/') || BigInt(below.text) === 0n) throw new Unreadable();
      return { n: BigInt(above.text), d: BigInt(below.text) };
    }
    const node = this.#primary();
    const text = this.#tokens.slice(from + 1, this.#at);
    const isPlain = text.every((token) => token.kind === 'number' || '{}/'.includes(token.text));
    if (node.kind !== 'number' || !isPlain) {
      this.#at = from;
      return null;
    }
    const digits = text.filter(({ kind }) => kind === 'number').map((token) => token.text);
    const [above, below] = digits.length === 1 ? [...digits[0]] : digits;
    if (digits.length > 2 || below === undefined) throw new Unreadable();
    if (above.includes('.') || below.includes('.')) throw new Unreadable();
    return { n: BigInt(above), d: BigInt(below) };
  }

  /** 0.1\overline{6}. */
  #repeating(head: string): Node {
    this.#at++;
    const isGroup = this.#skip('{');
    const token = this.#tokens[this.#at++];
    if (token?.kind !== 'number' || !/^\d+$/.test(token.text) || (!isGroup && token.text.length > 1))
      throw new Unreadable();
    if (isGroup) this.#expect('}');
    if (this.#next?.kind === 'number') throw new Unreadable();
    const places = head.length - head.indexOf('.') - 1;
    const scale = 10n ** BigInt(places);
    const period = rational(BigInt(token.text), (10n ** BigInt(token.text.length) - 1n) * scale);
    return sum(numberNode(decimal(head)), numberNode(period));
  }

  #name(): Node {
    const { text } = this.#tokens[this.#at++];
    const bound = this.#bound.get(text);
    if (bound && !this.#is('_')) return bound;
    if (text === 'e' && !this.#is('_')) return constant('e');
    if (text === 'i' && !this.#is('_')) return constant('i');
    return this.#subscripted(text);
  }

  /** A variable, perhaps with an index, or applied as a function: f(2). */
  #subscripted(name: string): Node {
    const from = this.#at;
    if (this.#skip('_')) {
      if (this.#is('{')) this.#skipGroup();
      else if (this.#next && this.#next.kind !== 'sign') this.#at++;
      else throw new Unreadable();
    }
    // f^{-1}(x).
    const isInverse = this.#is('^') && this.#is('{', 1) && this.#is('-', 2) && this.#is('(', 5);
    if (/^[fghFGPQ]'*$/.test(name)) {
      if (isInverse) this.#at += 5;
      if (this.#is('(')) {
        for (let depth = 0; ; this.#at++) {
          if (!this.#next) throw new Unreadable();
          if (this.#is('(')) depth++;
          else if (this.#is(')') && --depth === 0) break;
        }
        this.#at++;
      }
    }
    const index = keyOf(this.#tokens.slice(from, this.#at));
    return { kind: 'variable', name: index === '' ? name : `${name} ${index}` };
  }

  #function(name: string): Node {
    if (name === 'sqrt' || name === 'usqrt' || name === 'ucbrt') return this.#root(name);
    let exponent: Node | null = null;
    let base: Node | null = null;
    if (name === 'log' && this.#skip('_')) base = this.#index();
    if (this.#skip('^')) exponent = this.#exponent();
    if (name === 'log' && !base && this.#skip('_')) base = this.#index();
    if (name in MANY) {
      if (exponent) throw new Unreadable();
      return MANY[name](name.startsWith('binom') && this.#is('{') ? [this.#group(), this.#group()] : this.#args());
    }
    const inverted = exponent?.kind === 'number' && exponent.value.n === -1n && exponent.value.d === 1n;
    const applied = inverted ? (INVERSES[name] ?? null) : name;
    if (applied === null) throw new Unreadable();
    const arg = this.#functionArgument();
    const value = base ? quotient(call('ln', arg), call('ln', base)) : FUNCTIONS[nameOf(applied)](arg);
    return exponent && !inverted ? power(value, exponent) : value;
  }

  #root(name: string): Node {
    let index: Node = num(name === 'ucbrt' ? 3 : 2);
    if (this.#skip('[')) {
      index = this.#sum();
      this.#expect(']');
    }
    const next = this.#next;
    if (next?.kind === 'number') {
      // \sqrt12 is √1·2 in LaTeX, and meant as √12: only one digit is sure.
      if (name === 'sqrt' && next.text.length > 1) throw new Unreadable();
      this.#at++;
      return root(numberNode(decimal(next.text)), index);
    }
    if (!this.#is('(') && !this.#is('{') && next?.kind !== 'word' && next?.kind !== 'command') throw new Unreadable();
    return root(this.#primary(), index);
  }

  /** The index of \log_2. */
  #index(): Node {
    if (this.#is('{')) return this.#group();
    const token = this.#next;
    if (token?.kind === 'number') {
      this.#at++;
      return numberNode(decimal(token.text));
    }
    return this.#primary();
  }

  /** (a, b, …) or \{a, b, …\}. */
  #args(): Node[] {
    const isSet = this.#skip('lbrace');
    if (!isSet) this.#expect('(');
    const args: Node[] = [];
    do args.push(this.#inside(false));
    while (this.#skip(','));
    this.#expect(isSet ? 'rbrace' : ')');
    return args;
  }

  /** The argument of sin and others: in brackets, else the product that follows. */
  #functionArgument(): Node {
    if (this.#is('(') || this.#is('[') || this.#is('{') || this.#is('|')) return this.#primary();
    return this.#nested(() => {
      const minus = this.#skip('-');
      const factors = [this.#power()];
      while (
        this.#startsFactor() &&
        !this.#is('(') &&
        !this.#is('[') &&
        !this.#is('|') &&
        !isFunction(this.#next!.text)
      ) {
        if (this.#next!.kind === 'number') throw new Unreadable();
        factors.push(this.#power());
      }
      if (this.#is('/') || this.#is('(')) throw new Unreadable();
      return minus ? negate(product(...factors)) : product(...factors);
    });
  }

  /** \sum_{k=1}^{5} k^2, written out. */
  #series(name: string): Node {
    this.#expect('_');
    this.#expect('{');
    const index = this.#next;
    this.#at++;
    if (index?.kind !== 'word' || !this.#skip('=')) throw new Unreadable();
    const low = this.#sum();
    this.#expect('}');
    this.#expect('^');
    const high = this.#is('{') ? this.#group() : this.#exponent();
    const [from, to] = [low, high].map((node) => exactValue(node, new Map()));
    if (!from || !to || from.d !== 1n || to.d !== 1n || to.n - from.n > MAX_TERMS || to.n < from.n)
      throw new Unreadable();
    const begin = this.#at;
    const terms: Node[] = [];
    for (let k = from.n; k <= to.n; k++) {
      this.#at = begin;
      this.#bound.set(index.text, num(k));
      terms.push(this.#product());
    }
    this.#bound.delete(index.text);
    return { kind: name === 'sum' ? 'sum' : 'product', args: terms };
  }
}

/** The expression that tokens are. @throws Unreadable */
export function parseExpression(tokens: readonly Token[]): Node {
  // Matrices do not commute: P^{-1}AP is not A.
  const capitals = new Set(tokens.flatMap(({ kind, text }) => (kind === 'word' ? (text.match(/[A-Z]/g) ?? []) : [])));
  if (capitals.size > 1 && /[A-Z] \^ (?:\{ )?(?:- 1|T(?![a-z])|\\top)/.test(keyOf(tokens))) throw new Unreadable();
  return new Parser(splitWords(tokens)).whole();
}
