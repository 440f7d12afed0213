// The syntax of templates: expressions, targets of assignments and statements.
import type { Value } from './values';

/** Arguments of a call, a filter or a test. */
export interface Arguments {
  positional: Expression[];
  keywords: [string, Expression][];
  spread: Expression | null;
  keywordSpread: Expression | null;
}

export type Expression =
  | { type: 'const'; value: Value }
  | { type: 'name'; name: string }
  | { type: 'tuple' | 'list' | 'concat'; items: Expression[] }
  | { type: 'dict'; pairs: [Expression, Expression][] }
  | { type: 'conditional'; test: Expression; chosen: Expression; otherwise: Expression | null }
  | { type: 'or' | 'and'; left: Expression; right: Expression }
  | { type: 'not' | 'negative' | 'positive'; operand: Expression }
  | { type: 'compare'; left: Expression; rest: [string, Expression][] }
  | { type: 'arithmetic'; operator: string; left: Expression; right: Expression }
  | { type: 'attribute'; object: Expression; name: string }
  | { type: 'item'; object: Expression; index: Expression }
  | { type: 'slice'; object: Expression; bounds: (Expression | null)[] }
  | { type: 'call'; callee: Expression; args: Arguments }
  | { type: 'filter'; operand: Expression | null; name: string; args: Arguments }
  | { type: 'test'; operand: Expression; name: string; args: Arguments };

/** What a value is assigned to: a name, a field of a namespace, or several of them. */
export type Target =
  | { type: 'name'; name: string }
  | { type: 'field'; object: string; name: string }
  | { type: 'targets'; items: Target[] };

export interface Signature {
  parameters: string[];
  /** Of the last parameters. */
  defaults: Expression[];
}

export type Statement =
  | { type: 'text'; value: string }
  | { type: 'output'; expression: Expression }
  | {
      type: 'for';
      target: Target;
      iterable: Expression;
      test: Expression | null;
      body: Statement[];
      otherwise: Statement[];
    }
  | { type: 'if'; branches: { test: Expression | null; body: Statement[] }[] }
  | { type: 'set'; target: Target; value: Expression }
  | { type: 'setBlock'; target: Target; filter: Expression | null; body: Statement[] }
  | { type: 'macro'; name: string; signature: Signature; body: Statement[] }
  | { type: 'callBlock'; signature: Signature; call: Expression & { type: 'call' }; body: Statement[] }
  | { type: 'filterBlock'; filter: Expression; body: Statement[] }
  | { type: 'with'; bindings: [Target, Expression][]; body: Statement[] }
  | { type: 'generation'; body: Statement[] }
  | { type: 'break' | 'continue' };
