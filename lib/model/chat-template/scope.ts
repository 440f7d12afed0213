// Which names a part of a template sees. Jinja decides that before it renders: a name that a part assigns before it
// reads it is a variable of that part from its start, and hides a variable of the same name that was passed in.
import type { Expression, Statement, Target } from './syntax';
import type { Value } from './values';
import { Undefined } from './values';

type Use = 'read' | 'assigned';

/** Calls `found` for every name in an expression. */
export function namesIn(node: unknown, found: (name: string) => void): void {
  if (typeof node !== 'object' || node === null) return;
  const { type, name } = node as { type?: unknown; name?: unknown };
  if (type === 'name') found(name as string);
  for (const child of Object.values(node)) if (typeof child === 'object') namesIn(child, found);
}

function targetNames(target: Target, uses: Map<string, Use>): void {
  const add = (name: string, use: Use) => uses.has(name) || uses.set(name, use);
  if (target.type === 'name') add(target.name, 'assigned');
  else if (target.type === 'field') add(target.object, 'read');
  else for (const item of target.items) targetNames(item, uses);
}

/** How each name is first used in a part, without the parts inside it. */
function firstUses(body: readonly Statement[], uses: Map<string, Use>): void {
  const read = (expression: Expression | null) =>
    namesIn(expression, (name) => uses.has(name) || uses.set(name, 'read'));
  for (const statement of body) {
    if (statement.type === 'output') read(statement.expression);
    else if (statement.type === 'for') read(statement.iterable);
    else if (statement.type === 'set') {
      read(statement.value);
      targetNames(statement.target, uses);
    } else if (statement.type === 'setBlock') targetNames(statement.target, uses);
    else if (statement.type === 'macro') uses.has(statement.name) || uses.set(statement.name, 'assigned');
    else if (statement.type === 'callBlock') read(statement.call);
    else if (statement.type === 'filterBlock') read(statement.filter);
    else if (statement.type === 'with') for (const [, value] of statement.bindings) read(value);
    else if (statement.type === 'if') ifUses(statement.branches, uses);
  }
}
function ifUses(branches: (Statement & { type: 'if' })['branches'], uses: Map<string, Use>): void {
  const parts = branches.map(({ test, body }) => {
    namesIn(test, (name) => uses.has(name) || uses.set(name, 'read'));
    const part = new Map(uses);
    firstUses(body, part);
    return part;
  });
  const isWhole = branches.length > 2 && branches.at(-1)!.test === null;
  for (const part of parts)
    for (const [name, use] of part) {
      // What only some branches assign is looked up outside where they do not.
      const everywhere = isWhole && parts.every((other) => other.get(name) === 'assigned');
      if (!uses.has(name)) uses.set(name, use === 'assigned' && everywhere ? 'assigned' : 'read');
    }
}

const known = new WeakMap<readonly Statement[], Map<string, Use>>();
function usesOf(body: readonly Statement[]): Map<string, Use> {
  let uses = known.get(body);
  if (uses === undefined) {
    uses = new Map();
    firstUses(body, uses);
    known.set(body, uses);
  }
  return uses;
}

/** Whether a name is read anywhere in a part, also in the parts inside it. */
export function reads(body: readonly Statement[], wanted: string): boolean {
  let isRead = false;
  namesIn(body, (name) => {
    isRead ||= name === wanted;
  });
  return isRead;
}

/** The variables of a part of a template, and of those around it. */
export class Scope {
  readonly #values = new Map<string, Value>();
  readonly #uses: Map<string, Use>;
  readonly #parameters: ReadonlySet<string>;

  /** @param context what is passed in, for the outermost @param parameters names that the part is entered with */
  constructor(
    readonly parent: Scope | null,
    readonly context: ReadonlyMap<string, Value>,
    body: readonly Statement[],
    parameters: readonly string[] = [],
  ) {
    this.#uses = usesOf(body);
    this.#parameters = new Set(parameters);
    for (const [name, use] of this.#uses)
      if (use === 'assigned' && !this.#parameters.has(name) && !Scope.#isKnown(parent, name))
        this.#values.set(name, new Undefined(name));
  }
  static #isKnown(start: Scope | null, name: string): boolean {
    for (let scope = start; scope !== null; scope = scope.parent)
      if (scope.#uses.has(name) || scope.#parameters.has(name)) return true;
    return false;
  }
  /** A scope inside this one. */
  inner(body: readonly Statement[], parameters: readonly string[] = []): Scope {
    return new Scope(this, this.context, body, parameters);
  }
  get(name: string): Value {
    for (let scope: Scope | null = this; scope !== null; scope = scope.parent) {
      const value = scope.#values.get(name);
      if (value !== undefined) return value;
    }
    return this.context.get(name) ?? (this.context.has(name) ? null : new Undefined(name));
  }
  set(name: string, value: Value): void {
    this.#values.set(name, value);
  }
}

/** Names that a target assigns to. */
export function assignedBy(target: Target): string[] {
  if (target.type === 'name') return [target.name];
  return target.type === 'targets' ? target.items.flatMap(assignedBy) : [];
}
