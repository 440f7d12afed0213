// The syntax of templates: tokens to statements and expressions. What is not here is refused by name.
import { type Token, tokenize } from './lexer';
import type { Arguments, Expression, Signature, Statement, Target } from './syntax';
import { TemplateError } from './values';

const COMPARISONS = ['==', '!=', '<', '<=', '>', '>='];
const NO_ARGUMENTS: Arguments = { positional: [], keywords: [], spread: null, keywordSpread: null };

class Parser {
  readonly #tokens: Token[];
  #at = 0;
  /** Loops around the statement, in which break and continue are allowed. */
  #loops = 0;

  constructor(tokens: Token[]) {
    this.#tokens = tokens;
  }

  get #token(): Token {
    return this.#tokens[this.#at];
  }
  #is(type: Token['type'], value?: string): boolean {
    return this.#token.type === type && (value === undefined || this.#token.value === value);
  }
  #skip(type: Token['type'], value: string): boolean {
    const found = this.#is(type, value);
    if (found) this.#at++;
    return found;
  }
  #expect(type: Token['type'], value?: string): string {
    if (!this.#is(type, value))
      throw new TemplateError(`expected ${value ?? type}, got ${JSON.stringify(this.#token.value)}`);
    return this.#tokens[this.#at++].value;
  }

  /** Statements up to one of these tags, whose "{%" has been read then; up to the end where there are none. */
  statements(ends: readonly string[] = []): Statement[] {
    const result: Statement[] = [];
    for (;;) {
      if (this.#is('end')) {
        if (ends.length > 0) throw new TemplateError(`missing ${ends.join(' or ')}`);
        return result;
      }
      if (this.#is('data')) result.push({ type: 'text', value: this.#tokens[this.#at++].value });
      else if (this.#skip('output', '{{')) {
        result.push({ type: 'output', expression: this.#tuple() });
        this.#expect('outputEnd');
      } else {
        this.#expect('block');
        if (ends.some((end) => this.#is('name', end))) return result;
        result.push(this.#statement());
        this.#expect('blockEnd');
      }
    }
  }
  /** The body of a tag, after which its end tag has been read but for its "%}". @returns also the end tag's name */
  #body(...ends: string[]): { body: Statement[]; end: string } {
    this.#skip('operator', ':');
    this.#expect('blockEnd');
    const body = this.statements(ends);
    return { body, end: this.#expect('name') };
  }
  /** The body of what is called later, outside of any loop around it. */
  #separateBody(end: string): Statement[] {
    const loops = this.#loops;
    this.#loops = 0;
    const { body } = this.#body(end);
    this.#loops = loops;
    return body;
  }

  #statement(): Statement {
    const tag = this.#expect('name');
    switch (tag) {
      case 'for':
        return this.#for();
      case 'if':
        return this.#if();
      case 'set': {
        const target = this.#target();
        if (this.#skip('operator', '=')) return { type: 'set', target, value: this.#tuple() };
        const filter = this.#filters(null);
        return { type: 'setBlock', target, filter, body: this.#body('endset').body };
      }
      case 'macro': {
        const name = this.#expect('name');
        return { type: 'macro', name, signature: this.#signature(), body: this.#separateBody('endmacro') };
      }
      case 'call': {
        const signature = this.#is('operator', '(') ? this.#signature() : { parameters: [], defaults: [] };
        const call = this.#expression();
        if (call.type !== 'call') throw new TemplateError('expected a call');
        return { type: 'callBlock', signature, call, body: this.#separateBody('endcall') };
      }
      case 'filter': {
        const filter = this.#filters(this.#filter(null))!;
        return { type: 'filterBlock', filter, body: this.#body('endfilter').body };
      }
      case 'with': {
        const bindings: [Target, Expression][] = [];
        while (!this.#is('blockEnd')) {
          if (bindings.length > 0) this.#expect('operator', ',');
          const target = this.#target();
          this.#expect('operator', '=');
          bindings.push([target, this.#expression()]);
        }
        return { type: 'with', bindings, body: this.#body('endwith').body };
      }
      case 'generation':
        return { type: 'generation', body: this.#separateBody('endgeneration') };
      case 'break':
      case 'continue':
        if (this.#loops === 0) throw new TemplateError(`${tag} outside of a loop`);
        return { type: tag };
      default:
        throw new TemplateError(`the tag "${tag}" is not supported`);
    }
  }

  #for(): Statement {
    const target = this.#target();
    if (JSON.stringify(target).includes('"loop"')) throw new TemplateError('"loop" cannot be assigned to');
    this.#expect('name', 'in');
    const iterable = this.#tuple(false, 'recursive');
    const test = this.#skip('name', 'if') ? this.#expression() : null;
    if (this.#is('name', 'recursive')) throw new TemplateError('recursive loops are not supported');
    this.#loops++;
    const { body, end } = this.#body('endfor', 'else');
    this.#loops--;
    return { type: 'for', target, iterable, test, body, otherwise: end === 'else' ? this.#body('endfor').body : [] };
  }

  #if(): Statement {
    const branches: { test: Expression | null; body: Statement[] }[] = [];
    let end = 'elif';
    while (end === 'elif') {
      const test = this.#tuple(false);
      const part = this.#body('elif', 'else', 'endif');
      branches.push({ test, body: part.body });
      end = part.end;
    }
    if (end === 'else') branches.push({ test: null, body: this.#body('endif').body });
    return { type: 'if', branches };
  }

  #target(): Target {
    const items: Target[] = [];
    let isTuple = false;
    do {
      if (this.#is('name', 'in') || this.#is('operator', '=') || this.#is('operator', ')') || this.#is('blockEnd'))
        break;
      if (this.#skip('operator', '(')) {
        items.push(this.#target());
        this.#expect('operator', ')');
      } else {
        const name = this.#expect('name');
        if (/^(true|false|none)$/i.test(name)) throw new TemplateError(`cannot assign to ${name}`);
        if (this.#skip('operator', '.')) items.push({ type: 'field', object: name, name: this.#expect('name') });
        else items.push({ type: 'name', name });
      }
      if (this.#is('operator', ',')) isTuple = true;
    } while (this.#skip('operator', ','));
    if (items.length === 0) throw new TemplateError(`expected a name, got ${JSON.stringify(this.#token.value)}`);
    return isTuple ? { type: 'targets', items } : items[0];
  }

  #signature(): Signature {
    const parameters: string[] = [];
    const defaults: Expression[] = [];
    this.#expect('operator', '(');
    while (!this.#is('operator', ')')) {
      if (parameters.length > 0) this.#expect('operator', ',');
      const name = this.#expect('name');
      if (parameters.includes(name)) throw new TemplateError(`two parameters are named "${name}"`);
      if (/^(caller|varargs|kwargs)$/.test(name)) throw new TemplateError(`a parameter "${name}" is not supported`);
      parameters.push(name);
      if (this.#skip('operator', '=')) defaults.push(this.#expression());
      else if (defaults.length > 0) throw new TemplateError(`parameter "${name}" without a default follows one with`);
    }
    this.#expect('operator', ')');
    return { parameters, defaults };
  }

  /** One expression, or several with commas between them as a tuple. */
  #tuple(withConditional = true, endName = '', inParentheses = false): Expression {
    const items: Expression[] = [];
    let isTuple = false;
    for (;;) {
      if (items.length > 0) this.#expect('operator', ',');
      if (this.#is('outputEnd') || this.#is('blockEnd') || this.#is('operator', ')')) break;
      if (endName !== '' && this.#is('name', endName)) break;
      items.push(withConditional ? this.#expression() : this.#or());
      if (!this.#is('operator', ',')) break;
      isTuple = true;
    }
    if (!isTuple && items.length === 1) return items[0];
    if (items.length === 0 && !inParentheses)
      throw new TemplateError(`expected an expression, got ${JSON.stringify(this.#token.value)}`);
    return { type: 'tuple', items };
  }

  #expression(): Expression {
    let result = this.#or();
    while (this.#skip('name', 'if')) {
      const test = this.#or();
      result = {
        type: 'conditional',
        test,
        chosen: result,
        otherwise: this.#skip('name', 'else') ? this.#expression() : null,
      };
    }
    return result;
  }
  #or(): Expression {
    let left = this.#and();
    while (this.#skip('name', 'or')) left = { type: 'or', left, right: this.#and() };
    return left;
  }
  #and(): Expression {
    let left = this.#not();
    while (this.#skip('name', 'and')) left = { type: 'and', left, right: this.#not() };
    return left;
  }
  #not(): Expression {
    return this.#skip('name', 'not') ? { type: 'not', operand: this.#not() } : this.#compare();
  }
  #compare(): Expression {
    const left = this.#sum();
    const rest: [string, Expression][] = [];
    for (;;) {
      if (this.#token.type === 'operator' && COMPARISONS.includes(this.#token.value))
        rest.push([this.#tokens[this.#at++].value, this.#sum()]);
      else if (this.#skip('name', 'in')) rest.push(['in', this.#sum()]);
      else if (
        this.#is('name', 'not') &&
        this.#tokens[this.#at + 1].type === 'name' &&
        this.#tokens[this.#at + 1].value === 'in'
      ) {
        this.#at += 2;
        rest.push(['not in', this.#sum()]);
      } else return rest.length === 0 ? left : { type: 'compare', left, rest };
    }
  }
  #chain(next: () => Expression, ...operators: string[]): Expression {
    let left = next();
    while (this.#token.type === 'operator' && operators.includes(this.#token.value)) {
      const operator = this.#tokens[this.#at++].value;
      left = { type: 'arithmetic', operator, left, right: next() };
    }
    return left;
  }
  #sum = (): Expression => this.#chain(this.#concat, '+', '-');
  #concat = (): Expression => {
    const items = [this.#product()];
    while (this.#skip('operator', '~')) items.push(this.#product());
    return items.length === 1 ? items[0] : { type: 'concat', items };
  };
  #product = (): Expression => this.#chain(this.#power, '*', '/', '//', '%');
  #power = (): Expression => this.#chain(() => this.#unary(), '**');

  #unary(withFilters = true): Expression {
    let node: Expression;
    if (this.#skip('operator', '-')) node = { type: 'negative', operand: this.#unary(false) };
    else if (this.#skip('operator', '+')) node = { type: 'positive', operand: this.#unary(false) };
    else node = this.#primary();
    node = this.#postfix(node);
    if (!withFilters) return node;
    for (;;) {
      if (this.#is('operator', '|')) node = this.#filters(node)!;
      else if (this.#skip('name', 'is')) node = this.#test(node);
      else if (this.#is('operator', '(')) node = { type: 'call', callee: node, args: this.#arguments() };
      else return node;
    }
  }

  #primary(): Expression {
    const { type, value } = this.#token;
    this.#at++;
    if (type === 'name') {
      if (value === 'true' || value === 'True') return { type: 'const', value: true };
      if (value === 'false' || value === 'False') return { type: 'const', value: false };
      if (value === 'none' || value === 'None') return { type: 'const', value: null };
      return { type: 'name', name: value };
    }
    if (type === 'string') {
      let text = value;
      while (this.#is('string')) text += this.#tokens[this.#at++].value;
      return { type: 'const', value: text };
    }
    if (type === 'number') {
      const digits = value.replaceAll('_', '');
      return { type: 'const', value: /^0[box]|^\d+$/i.test(digits) ? BigInt(digits) : Number(digits) };
    }
    if (type === 'operator' && value === '(') {
      const node = this.#tuple(true, '', true);
      this.#expect('operator', ')');
      return node;
    }
    if (type === 'operator' && value === '[')
      return { type: 'list', items: this.#listed(']', () => this.#expression()) };
    if (type === 'operator' && value === '{')
      return {
        type: 'dict',
        pairs: this.#listed('}', () => {
          const key = this.#expression();
          this.#expect('operator', ':');
          return [key, this.#expression()] as [Expression, Expression];
        }),
      };
    throw new TemplateError(`unexpected ${JSON.stringify(value)}`);
  }
  /** Items with commas between them, and one behind them where there is one, up to a bracket. */
  #listed<T>(close: string, item: () => T): T[] {
    const items: T[] = [];
    while (!this.#is('operator', close)) {
      if (items.length > 0) {
        this.#expect('operator', ',');
        if (this.#is('operator', close)) break;
      }
      items.push(item());
    }
    this.#expect('operator', close);
    return items;
  }

  #postfix(start: Expression): Expression {
    let node = start;
    for (;;) {
      if (this.#skip('operator', '.')) {
        if (this.#is('name')) node = { type: 'attribute', object: node, name: this.#expect('name') };
        else {
          const digits = this.#expect('number');
          if (!/^\d+$/.test(digits)) throw new TemplateError(`expected a name or number, got ${digits}`);
          node = { type: 'item', object: node, index: { type: 'const', value: BigInt(digits) } };
        }
      } else if (this.#skip('operator', '[')) node = this.#subscript(node);
      else if (this.#is('operator', '(')) node = { type: 'call', callee: node, args: this.#arguments() };
      else return node;
    }
  }
  #subscript(object: Expression): Expression {
    const bounds: (Expression | null)[] = [];
    const atEnd = () => this.#is('operator', ':') || this.#is('operator', ']');
    bounds.push(atEnd() ? null : this.#expression());
    if (this.#is('operator', ':')) {
      while (bounds.length < 3 && this.#skip('operator', ':')) bounds.push(atEnd() ? null : this.#expression());
      this.#expect('operator', ']');
      return { type: 'slice', object, bounds };
    }
    if (this.#is('operator', ',')) throw new TemplateError('several indices are not supported');
    this.#expect('operator', ']');
    if (bounds[0] === null) throw new TemplateError('expected an index');
    return { type: 'item', object, index: bounds[0] };
  }

  #arguments(): Arguments {
    this.#expect('operator', '(');
    const args: Arguments = { positional: [], keywords: [], spread: null, keywordSpread: null };
    const ensure = (condition: boolean) => {
      if (!condition) throw new TemplateError('arguments of a call are in the wrong order');
    };
    this.#listed(')', () => {
      if (this.#skip('operator', '*')) {
        ensure(args.spread === null && args.keywordSpread === null);
        args.spread = this.#expression();
      } else if (this.#skip('operator', '**')) {
        ensure(args.keywordSpread === null);
        args.keywordSpread = this.#expression();
      } else if (
        this.#is('name') &&
        this.#tokens[this.#at + 1].type === 'operator' &&
        this.#tokens[this.#at + 1].value === '='
      ) {
        ensure(args.keywordSpread === null);
        const name = this.#expect('name');
        this.#at++;
        if (args.keywords.some(([other]) => other === name))
          throw new TemplateError(`two arguments are named "${name}"`);
        args.keywords.push([name, this.#expression()]);
      } else {
        ensure(args.spread === null && args.keywordSpread === null && args.keywords.length === 0);
        args.positional.push(this.#expression());
      }
    });
    return args;
  }

  #filters(start: Expression | null): Expression | null {
    let node = start;
    while (this.#skip('operator', '|')) node = this.#filter(node);
    return node;
  }
  #filter(operand: Expression | null): Expression {
    const name = this.#expect('name');
    return { type: 'filter', operand, name, args: this.#is('operator', '(') ? this.#arguments() : NO_ARGUMENTS };
  }
  #test(operand: Expression): Expression {
    const isNegated = this.#skip('name', 'not');
    const name = this.#expect('name');
    let args = NO_ARGUMENTS;
    if (this.#is('operator', '(')) args = this.#arguments();
    else if (
      ['name', 'string', 'number'].includes(this.#token.type) ||
      this.#is('operator', '[') ||
      this.#is('operator', '{')
    ) {
      if (this.#is('name', 'is')) throw new TemplateError('tests cannot be chained');
      if (!/^(else|or|and)$/.test(this.#token.value) || this.#token.type !== 'name')
        args = { ...NO_ARGUMENTS, positional: [this.#postfix(this.#primary())] };
    }
    const node: Expression = { type: 'test', operand, name, args };
    return isNegated ? { type: 'not', operand: node } : node;
  }
}

/** The statements of a template. @throws TemplateError */
export const parse = (template: string): Statement[] => new Parser(tokenize(template)).statements();
