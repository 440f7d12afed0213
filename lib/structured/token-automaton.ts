// Automata over tokens: which of them may stand where, and what is left then.
import type { ByteAutomaton } from './automaton';
import type { TokenBytes } from './vocabulary';

/** So many tokens at most are listed rather than kept as bits. */
const MOST_LISTED = 256;

/** Most sets of states, and most sets of tokens, that are kept. */
const MOST_SETS = 1 << 13;
const MOST_ALLOWED = 512;
const MOST_PER_TOKEN = 256;
const pairOf = (a: StateSet, b: StateSet): number => a.index * 2 ** 26 + b.index;

/** What a map has for a token and a name, or what is made for them. */
function kept(map: Map<number, Map<number, StateSet>>, token: number, name: number, make: () => StateSet): StateSet {
  const known = map.get(token)?.get(name);
  if (known) return known;
  const set = make();
  const own = map.get(token) ?? new Map<number, StateSet>();
  map.set(token, own);
  if (own.size >= MOST_PER_TOKEN) own.clear();
  own.set(name, set);
  return set;
}

/** Tokens that lead to one state: listed, or as bits. */
type Tokens = { list: number[]; bits: null } | { list: null; bits: Uint32Array };

/** States in ascending order, each set once. */
export interface StateSet {
  readonly index: number;
  readonly states: Int32Array;
  readonly members: ReadonlySet<number>;
}

/** Tokens that may stand at a position. */
export interface AllowedTokens {
  /** Token v: bit v % 32 of word v / 32. */
  readonly bits: Uint32Array;
}

/** Steps of an automaton over bytes by whole tokens, and behind its texts by a token that fills what is left. */
export class TokenAutomaton {
  /** The state behind a token that fills; -1 without one. */
  readonly #end: number;
  readonly #targets: (Map<number, Tokens> | undefined)[] = [];
  readonly #sets = new Map<string, StateSet>();
  #setCount = 0;
  readonly #forward = new Map<number, StateSet>();
  readonly #backward = new Map<number, StateSet>();
  readonly #allowed = new Map<number, AllowedTokens>();
  /** By token. */
  readonly #behind = new Map<number, Map<number, StateSet>>();
  readonly #ahead = new Map<number, Map<number, StateSet>>();
  readonly start: StateSet;
  /** Where a text may end. */
  readonly #accepting: ReadonlySet<number>;

  /** @param filler the token that fills what a text leaves of its place, an end of sequence; null: none */
  constructor(
    readonly tokens: TokenBytes,
    readonly automaton: ByteAutomaton,
    readonly filler: number | null,
  ) {
    const { states, accepts } = automaton;
    this.#end = filler === null ? -1 : states;
    const accepting = [...accepts.keys()].filter((state) => accepts[state] === 1);
    this.#accepting = new Set(filler === null ? accepting : [...accepting, states]);
    this.start = this.setOf(states > 0 ? [0] : []);
  }

  setOf(states: Iterable<number>): StateSet {
    const sorted = Int32Array.from(new Set(states)).sort();
    const name = sorted.join();
    let set = this.#sets.get(name);
    if (!set) {
      if (this.#sets.size >= MOST_SETS) this.#forget();
      set = { index: this.#setCount++, states: sorted, members: new Set(sorted) };
      this.#sets.set(name, set);
    }
    return set;
  }

  /** Sets that are asked for again are made again, with other numbers. */
  #forget(): void {
    for (const kept of [this.#sets, this.#forward, this.#backward, this.#allowed, this.#behind, this.#ahead])
      kept.clear();
  }

  /** The states of a set at which a text may end. */
  accepting({ states }: StateSet): StateSet {
    return this.setOf([...states].filter((state) => this.#accepting.has(state)));
  }

  /** The state behind a token, -1 where there is none. */
  step(state: number, token: number): number {
    const { next, accepts } = this.automaton;
    if (token === this.filler) return state === this.#end || accepts[state] === 1 ? this.#end : -1;
    if (state === this.#end) return -1;
    const { bytes, offsets, places } = this.tokens;
    const place = places.get(token);
    if (place === undefined) return -1;
    let at = state;
    for (let i = offsets[place]; i < offsets[place + 1] && at >= 0; i++) at = next[256 * at + bytes[i]];
    return at;
  }

  /** The tokens of a state by where they lead. */
  #targetsOf(state: number): Map<number, Tokens> {
    let targets = this.#targets[state];
    if (!targets) {
      const lists = state === this.#end ? new Map<number, number[]>() : this.#listed(state);
      if (this.filler !== null && (state === this.#end || this.automaton.accepts[state] === 1))
        lists.set(this.#end, [...(lists.get(this.#end) ?? []), this.filler]);
      targets = new Map([...lists].map(([target, list]) => [target, this.#kept(list)]));
      this.#targets[state] = targets;
    }
    return targets;
  }

  #listed(start: number): Map<number, number[]> {
    const { next } = this.automaton;
    const { ids, bytes, offsets, shared } = this.tokens;
    const lists = new Map<number, number[]>();
    /** States behind the bytes of a token, from 0 of them on. */
    const path = [start];
    /** Bytes of it after which no state is left. */
    let dead = Number.POSITIVE_INFINITY;
    for (let t = 0; t < ids.length; t++) {
      if (shared[t] >= dead) continue;
      dead = Number.POSITIVE_INFINITY;
      const length = offsets[t + 1] - offsets[t];
      let state = path[shared[t]];
      for (let i = shared[t]; i < length; i++) {
        state = next[256 * state + bytes[offsets[t] + i]];
        path[i + 1] = state;
        if (state >= 0) continue;
        dead = i + 1;
        break;
      }
      if (state < 0 || ids[t] === this.filler) continue;
      const list = lists.get(state);
      if (list) list.push(ids[t]);
      else lists.set(state, [ids[t]]);
    }
    return lists;
  }

  #kept(list: number[]): Tokens {
    if (list.length <= MOST_LISTED) return { list, bits: null };
    const bits = new Uint32Array(this.#words);
    for (const id of list) bits[id >>> 5] |= 1 << (id & 31);
    return { list: null, bits };
  }

  get #words(): number {
    return (this.tokens.vocabulary + 31) >>> 5;
  }

  /** States behind any token. */
  after(set: StateSet): StateSet {
    let result = this.#forward.get(set.index);
    if (!result) {
      const states = new Set<number>();
      for (const state of set.states) for (const target of this.#targetsOf(state).keys()) states.add(target);
      result = this.setOf(states);
      this.#forward.set(set.index, result);
    }
    return result;
  }

  /** States behind a token. */
  afterToken(set: StateSet, token: number): StateSet {
    return kept(this.#behind, token, set.index, () =>
      this.setOf([...set.states].map((state) => this.step(state, token)).filter((state) => state >= 0)),
    );
  }

  /** Those of a set from which any token leads into `goal`. */
  before(set: StateSet, goal: StateSet): StateSet {
    const name = pairOf(set, goal);
    let result = this.#backward.get(name);
    if (!result) {
      const leads = (state: number) => {
        for (const target of this.#targetsOf(state).keys()) if (goal.members.has(target)) return true;
        return false;
      };
      result = this.setOf([...set.states].filter(leads));
      this.#backward.set(name, result);
    }
    return result;
  }

  /** Those of a set from which a token leads into `goal`. */
  beforeToken(set: StateSet, token: number, goal: StateSet): StateSet {
    return kept(this.#ahead, token, pairOf(set, goal), () =>
      this.setOf([...set.states].filter((state) => goal.members.has(this.step(state, token)))),
    );
  }

  /** Tokens that lead from a set into `goal`. */
  allowed(set: StateSet, goal: StateSet): AllowedTokens {
    const name = pairOf(set, goal);
    let result = this.#allowed.get(name);
    if (!result) {
      const bits = new Uint32Array(this.#words);
      for (const state of set.states)
        for (const [target, tokens] of this.#targetsOf(state)) {
          if (!goal.members.has(target)) continue;
          if (tokens.list) for (const id of tokens.list) bits[id >>> 5] |= 1 << (id & 31);
          else for (let w = 0; w < bits.length; w++) bits[w] |= tokens.bits[w];
        }
      result = { bits };
      if (this.#allowed.size >= MOST_ALLOWED) this.#allowed.clear();
      this.#allowed.set(name, result);
    }
    return result;
  }

  /** A token that leads from a set into `goal`, the filler where it does. */
  anyToken(set: StateSet, goal: StateSet): number {
    const { bits } = this.allowed(set, goal);
    if (this.filler !== null && bits[this.filler >>> 5] & (1 << (this.filler & 31))) return this.filler;
    const word = bits.findIndex((bits32) => bits32 !== 0);
    return 32 * word + (31 - Math.clz32(bits[word] & -bits[word]));
  }

  /** The fewest tokens of a text; Infinity where no text is made of tokens. */
  get fewest(): number {
    const seen = new Set<number>();
    let set = this.start;
    for (let count = 0; !seen.has(set.index); count++) {
      if (this.accepting(set).states.length > 0) return count;
      seen.add(set.index);
      set = this.after(set);
    }
    return Number.POSITIVE_INFINITY;
  }
}
