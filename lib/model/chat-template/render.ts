// Chat templates: Jinja's language as transformers sets it up. What a template does here is what it does in Python, or
// it is refused with a TemplateError: a prompt that differs in a space is another prompt.
import { attribute, item, slice } from './access';
import { applyFilter } from './filters';
import { globals } from './globals';
import { arithmetic, signed } from './numbers';
import { parse } from './parser';
import { assignedBy, namesIn, reads, Scope } from './scope';
import type { Arguments, Expression, Signature, Statement, Target } from './syntax';
import { applyTest } from './tests';
import {
  areEqual,
  Callable,
  compare,
  contains,
  fromJson,
  isTrue,
  itemsOf,
  type Keywords,
  keyOf,
  LoopVariable,
  Namespace,
  TemplateError,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values';

export { TemplateError } from './values';

/** Statements that one rendering may run, and characters that it may write. */
const MAX_STATEMENTS = 2_000_000;
const MAX_LENGTH = 2 ** 26;

class Loop extends LoopVariable {
  index0 = 0;
  #last: Value[] | null = null;
  constructor(readonly items: readonly Value[]) {
    super();
  }
  field(name: string): Value {
    const { index0, items } = this;
    const count = items.length;
    switch (name) {
      case 'index':
        return BigInt(index0 + 1);
      case 'index0':
        return BigInt(index0);
      case 'revindex':
        return BigInt(count - index0);
      case 'revindex0':
        return BigInt(count - index0 - 1);
      case 'first':
        return index0 === 0;
      case 'last':
        return index0 === count - 1;
      case 'length':
        return BigInt(count);
      case 'depth':
        return 1n;
      case 'depth0':
        return 0n;
      case 'previtem':
        return index0 === 0 ? new Undefined('loop.previtem') : items[index0 - 1];
      case 'nextitem':
        return index0 === count - 1 ? new Undefined('loop.nextitem') : items[index0 + 1];
      case 'cycle':
        return new Callable('cycle', (args) => {
          if (args.length === 0) throw new TemplateError('cycle: expected items');
          return args[index0 % args.length];
        });
      case 'changed':
        return new Callable('changed', (args) => {
          const isSame = this.#last !== null && areEqual([...args], this.#last);
          this.#last = [...args];
          return !isSame;
        });
      default:
        throw new TemplateError(`loop.${name} is not supported`);
    }
  }
}

/** What ends a pass of a loop early. */
type Jump = 'break' | 'continue' | null;

class Renderer {
  #statements = 0;
  #length = 0;

  /** Runs statements; what they write goes to `out`. */
  run(body: readonly Statement[], scope: Scope, out: string[]): Jump {
    for (const statement of body) {
      if (++this.#statements > MAX_STATEMENTS) throw new TemplateError(`more than ${MAX_STATEMENTS} statements`);
      const jump = this.#runOne(statement, scope, out);
      if (jump !== null) return jump;
    }
    return null;
  }
  /** Text of a part with variables of its own. */
  #textOf(body: readonly Statement[], scope: Scope): { text: string; jump: Jump } {
    const out: string[] = [];
    const jump = this.run(body, scope, out);
    return { text: out.join(''), jump };
  }
  #write(text: string, out: string[]): void {
    this.#length += text.length;
    if (this.#length > MAX_LENGTH) throw new TemplateError(`more than ${MAX_LENGTH} characters`);
    out.push(text);
  }

  #runOne(statement: Statement, scope: Scope, out: string[]): Jump {
    switch (statement.type) {
      case 'text':
        this.#write(statement.value, out);
        return null;
      case 'output':
        this.#write(toText(this.evaluate(statement.expression, scope)), out);
        return null;
      case 'if': {
        const branch = statement.branches.find(({ test }) => test === null || isTrue(this.evaluate(test, scope)));
        return branch ? this.run(branch.body, scope, out) : null;
      }
      case 'for':
        return this.#loop(statement, scope, out);
      case 'set':
        this.#assign(statement.target, this.evaluate(statement.value, scope), scope);
        return null;
      case 'setBlock': {
        const { text, jump } = this.#textOf(statement.body, scope.inner(statement.body));
        if (jump === null) this.#assign(statement.target, this.#filtered(statement.filter, text, scope), scope);
        return jump;
      }
      case 'filterBlock': {
        const { text, jump } = this.#textOf(statement.body, scope.inner(statement.body));
        if (jump === null) this.#write(toText(this.#filtered(statement.filter, text, scope)), out);
        return jump;
      }
      case 'with': {
        const inner = scope.inner(
          statement.body,
          statement.bindings.flatMap(([target]) => assignedBy(target)),
        );
        for (const [target, value] of statement.bindings) this.#assign(target, this.evaluate(value, scope), inner);
        return this.run(statement.body, inner, out);
      }
      case 'generation':
        return this.run(statement.body, scope.inner(statement.body), out);
      case 'macro':
        scope.set(statement.name, this.#macro(statement.name, statement.signature, statement.body, scope));
        return null;
      case 'callBlock': {
        const { callee, args } = statement.call;
        const caller = this.#macro('caller', statement.signature, statement.body, scope);
        const macro = this.evaluate(callee, scope);
        if (!(macro instanceof Callable) || !macro.fields.has('caller'))
          throw new TemplateError('a call block needs a macro');
        this.#write(toText(this.#call(macro, args, scope, [['caller', caller]])), out);
        return null;
      }
      default:
        return statement.type;
    }
  }

  #filtered(filter: Expression | null, text: string, scope: Scope): Value {
    if (filter === null) return text;
    if (filter.type !== 'filter') throw new TemplateError('expected a filter');
    const { positional, keywords } = this.#arguments(filter.args, scope);
    return applyFilter(filter.name, this.#filtered(filter.operand, text, scope), positional, keywords);
  }

  #loop(statement: Statement & { type: 'for' }, scope: Scope, out: string[]): Jump {
    const { target, test, body, otherwise } = statement;
    const names = assignedBy(target);
    let items = itemsOf(this.evaluate(statement.iterable, scope));
    if (test !== null) {
      if (reads([{ type: 'output', expression: test }], 'loop'))
        throw new TemplateError('loop in the test of a loop is not supported');
      items = items.filter((value) => {
        const inner = scope.inner([], names);
        this.#assign(target, value, inner);
        return isTrue(this.evaluate(test, inner));
      });
    }
    const loop = new Loop(items);
    let ended = false;
    for (; loop.index0 < items.length; loop.index0++) {
      const inner = scope.inner(body, [...names, 'loop']);
      inner.set('loop', loop);
      this.#assign(target, items[loop.index0], inner);
      const jump = this.run(body, inner, out);
      if (jump === 'break') break;
      if (jump === null) ended = true;
    }
    // As in Jinja, a loop has had no pass that counts where each was cut short.
    return ended ? null : this.run(otherwise, scope.inner(otherwise), out);
  }

  #assign(target: Target, value: Value, scope: Scope): void {
    if (target.type === 'name') scope.set(target.name, value);
    else if (target.type === 'field') {
      const object = scope.get(target.object);
      if (!(object instanceof Namespace)) throw new TemplateError(`"${target.object}" is no namespace`);
      object.fields.set(target.name, value);
    } else {
      const values = itemsOf(value);
      if (values.length !== target.items.length)
        throw new TemplateError(`${values.length} values for ${target.items.length} names`);
      target.items.forEach((one, i) => {
        this.#assign(one, values[i], scope);
      });
    }
  }

  #macro(name: string, signature: Signature, body: Statement[], scope: Scope): Callable {
    const { parameters, defaults } = signature;
    const [usesCaller, usesRest, usesNames] = ['caller', 'varargs', 'kwargs'].map((special) => reads(body, special));
    // Defaults are read before the body assigns anything.
    const known = [...parameters, 'caller', 'varargs', 'kwargs'];
    for (const value of defaults) namesIn(value, (read) => known.push(read));
    const call = (args: readonly Value[], keywords: Keywords): Value => {
      const inner = scope.inner(body, known);
      const rest = new Map(keywords);
      parameters.forEach((parameter, i) => {
        const given = i < args.length ? args[i] : rest.get(parameter);
        if (i >= args.length) rest.delete(parameter);
        if (given !== undefined) inner.set(parameter, given);
        else {
          const at = i - parameters.length + defaults.length;
          inner.set(parameter, at < 0 ? new Undefined(parameter) : this.evaluate(defaults[at], inner));
        }
      });
      if (usesCaller) inner.set('caller', rest.get('caller') ?? new Undefined('caller'));
      if (usesCaller) rest.delete('caller');
      if (usesNames) inner.set('kwargs', new Map(rest));
      else if (rest.size > 0)
        throw new TemplateError(`macro ${name}: unexpected argument "${rest.keys().next().value}"`);
      if (usesRest) inner.set('varargs', new Tuple(args.slice(parameters.length)));
      else if (args.length > parameters.length)
        throw new TemplateError(`macro ${name}: expected at most ${parameters.length} arguments, got ${args.length}`);
      return this.#textOf(body, inner).text;
    };
    const fields: [string, Value][] = [
      ['name', name],
      ['arguments', new Tuple(parameters)],
      ['caller', usesCaller],
    ];
    return new Callable(name, call, new Map(fields));
  }

  #arguments(args: Arguments, scope: Scope): { positional: Value[]; keywords: Map<string, Value> } {
    const positional = args.positional.map((one) => this.evaluate(one, scope));
    const keywords = new Map(args.keywords.map(([name, one]) => [name, this.evaluate(one, scope)]));
    if (args.spread !== null) positional.push(...itemsOf(this.evaluate(args.spread, scope)));
    if (args.keywordSpread !== null) {
      const more = this.evaluate(args.keywordSpread, scope);
      if (!(more instanceof Map)) throw new TemplateError('** needs a dictionary');
      for (const [name, value] of more) {
        if (typeof name !== 'string' || keywords.has(name))
          throw new TemplateError('** with such keys is not supported');
        keywords.set(name, value);
      }
    }
    return { positional, keywords };
  }
  #call(callee: Callable, args: Arguments, scope: Scope, more: [string, Value][] = []): Value {
    const { positional, keywords } = this.#arguments(args, scope);
    return callee.call(positional, new Map([...keywords, ...more]));
  }

  evaluate(node: Expression, scope: Scope): Value {
    switch (node.type) {
      case 'const':
        return node.value;
      case 'name':
        return scope.get(node.name);
      case 'tuple':
        return new Tuple(node.items.map((one) => this.evaluate(one, scope)));
      case 'list':
        return node.items.map((one) => this.evaluate(one, scope));
      case 'dict':
        return new Map(
          node.pairs.map(([key, value]) => [keyOf(this.evaluate(key, scope)), this.evaluate(value, scope)]),
        );
      case 'concat':
        return node.items.map((one) => toText(this.evaluate(one, scope))).join('');
      case 'conditional':
        if (isTrue(this.evaluate(node.test, scope))) return this.evaluate(node.chosen, scope);
        return node.otherwise === null ? new Undefined('if without else') : this.evaluate(node.otherwise, scope);
      case 'and':
      case 'or': {
        const left = this.evaluate(node.left, scope);
        return isTrue(left) === (node.type === 'or') ? left : this.evaluate(node.right, scope);
      }
      case 'not':
        return !isTrue(this.evaluate(node.operand, scope));
      case 'negative':
      case 'positive':
        return signed(node.type === 'negative' ? '-' : '+', this.evaluate(node.operand, scope));
      case 'arithmetic':
        return arithmetic(node.operator, this.evaluate(node.left, scope), this.evaluate(node.right, scope));
      case 'compare':
        return this.#compare(node, scope);
      case 'attribute':
        return attribute(this.evaluate(node.object, scope), node.name);
      case 'item':
        return item(this.evaluate(node.object, scope), this.evaluate(node.index, scope));
      case 'slice':
        return slice(
          this.evaluate(node.object, scope),
          node.bounds.map((bound) => bound && this.evaluate(bound, scope)),
        );
      case 'call': {
        const callee = this.evaluate(node.callee, scope);
        if (callee instanceof Undefined) throw new TemplateError(`"${callee.name}" is undefined and cannot be called`);
        if (!(callee instanceof Callable))
          throw new TemplateError(`a value of type ${typeName(callee)} cannot be called`);
        return this.#call(callee, node.args, scope);
      }
      case 'filter': {
        if (node.operand === null) throw new TemplateError('a filter of nothing');
        const value = this.evaluate(node.operand, scope);
        const { positional, keywords } = this.#arguments(node.args, scope);
        return applyFilter(node.name, value, positional, keywords);
      }
      case 'test': {
        const value = this.evaluate(node.operand, scope);
        const { positional, keywords } = this.#arguments(node.args, scope);
        return applyTest(node.name, value, positional, keywords);
      }
    }
  }

  #compare(node: Expression & { type: 'compare' }, scope: Scope): boolean {
    let left = this.evaluate(node.left, scope);
    for (const [operator, operand] of node.rest) {
      const right = this.evaluate(operand, scope);
      if (!holds(operator, left, right)) return false;
      left = right;
    }
    return true;
  }
}

function holds(operator: string, left: Value, right: Value): boolean {
  if (operator === '==') return areEqual(left, right);
  if (operator === '!=') return !areEqual(left, right);
  if (operator === 'in') return contains(right, left);
  if (operator === 'not in') return !contains(right, left);
  const order = compare(left, right);
  return operator === '<' ? order < 0 : operator === '<=' ? order <= 0 : operator === '>' ? order > 0 : order >= 0;
}

/** Templates whose statements are kept. */
const MOST_PARSED = 32;
const parsed = new Map<string, Statement[]>();

function statementsOf(template: string): Statement[] {
  let body = parsed.get(template);
  if (!body) {
    body = parse(template);
    if (parsed.size >= MOST_PARSED) parsed.clear();
    parsed.set(template, body);
  }
  return body;
}

/**
 * Text of a template. @param variables as JSON has values; whole numbers are ints in the template
 * @throws TemplateError where the template is wrong, or does what is not known to give Python's text here
 */
export function render(template: string, variables: Readonly<Record<string, unknown>>): string {
  const context = new Map(globals);
  for (const [name, value] of Object.entries(variables)) context.set(name, fromJson(value));
  const body = statementsOf(template);
  const out: string[] = [];
  new Renderer().run(body, new Scope(null, context, body), out);
  return out.join('');
}
