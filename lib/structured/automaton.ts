// Deterministic automata over bytes, made of languages.
import { type CharacterSet, EVERY_CHARACTER, intersection, type Language } from './language';

/** Most states of an automaton. */
const MOST_STATES = 20_000;
/** Most states of what it is made of. */
const MOST_PARTS = 400_000;

/** A language that an automaton would need too much memory for. */
export class TooLarge extends Error {}

/** A deterministic automaton over bytes. State 0 is its start; each of its states leads to an accepting one. */
export interface ByteAutomaton {
  /** Number of states; 0: the language is empty. */
  readonly states: number;
  /** (states × 256) State behind a byte; -1: none. */
  readonly next: Int32Array;
  /** (states) 1 where a text may end. */
  readonly accepts: Uint8Array;
}

interface Edge {
  from: number;
  to: number;
  /** State behind it. */
  target: number;
}

/** A nondeterministic automaton under construction. */
class Parts {
  readonly edges: Edge[][] = [];
  readonly free: number[][] = [];

  state(): number {
    if (this.edges.length >= MOST_PARTS) throw new TooLarge();
    this.edges.push([]);
    this.free.push([]);
    return this.edges.length - 1;
  }

  /** Adds a language between a state and the one that it returns. */
  add(language: Language, start: number): number {
    switch (language.kind) {
      case 'bytes': {
        let at = start;
        for (const byte of language.bytes) at = this.#range(at, byte, byte);
        return at;
      }
      case 'set': {
        const end = this.state();
        this.#set(language.set, start, end);
        return end;
      }
      case 'sequence':
        return language.parts.reduce((at, part) => this.add(part, at), start);
      case 'choice': {
        const end = this.state();
        for (const option of language.options) {
          // A state of its own: what is repeated leads back to where it began.
          const begin = this.state();
          this.free[start].push(begin);
          this.free[this.add(option, begin)].push(end);
        }
        return end;
      }
      case 'repeat':
        return this.#repeat(language.part, language.min, language.max, start);
      case 'separated': {
        const again = this.state();
        this.free[start].push(again);
        const end = this.add(language.part, again);
        this.free[this.add(language.separator, end)].push(again);
        return end;
      }
      case 'automaton':
        return this.#copy(language.automaton, start);
      default:
        throw new Error('the start and the end of a text are resolved before');
    }
  }

  #range(start: number, from: number, to: number): number {
    const target = this.state();
    this.edges[start].push({ from, to, target });
    return target;
  }

  #repeat(part: Language, min: number, max: number, start: number): number {
    let at = start;
    for (let i = 0; i < min; i++) at = this.add(part, at);
    if (max === Number.POSITIVE_INFINITY) {
      const loop = this.state();
      this.free[at].push(loop);
      this.free[this.add(part, loop)].push(loop);
      const end = this.state();
      this.free[loop].push(end);
      return end;
    }
    const end = this.state();
    this.free[at].push(end);
    for (let i = min; i < max; i++) {
      at = this.add(part, at);
      this.free[at].push(end);
    }
    return end;
  }

  #copy({ states, next, accepts }: ByteAutomaton, start: number): number {
    const end = this.state();
    const copies = Array.from({ length: states }, () => this.state());
    if (states > 0) this.free[start].push(copies[0]);
    for (let s = 0; s < states; s++) {
      if (accepts[s]) this.free[copies[s]].push(end);
      for (let byte = 0; byte < 256; ) {
        const target = next[256 * s + byte];
        let to = byte;
        while (to < 255 && next[256 * s + to + 1] === target) to++;
        if (target >= 0) this.edges[copies[s]].push({ from: byte, to, target: copies[target] });
        byte = to + 1;
      }
    }
    return end;
  }

  /** The characters of a set as bytes of UTF-8. */
  #set(set: CharacterSet, start: number, end: number): void {
    for (const [from, to] of intersection(set, EVERY_CHARACTER)) {
      for (const [low, high] of [
        [0, 0x7f],
        [0x80, 0x7ff],
        [0x800, 0xffff],
        [0x10000, 0x10ffff],
      ])
        if (Math.max(from, low) <= Math.min(to, high))
          this.#sameLength(Math.max(from, low), Math.min(to, high), start, end);
    }
  }

  /** Characters `from` to `to`, whose bytes are equally many. */
  #sameLength(from: number, to: number, start: number, end: number): void {
    const low = new TextEncoder().encode(String.fromCodePoint(from));
    const high = new TextEncoder().encode(String.fromCodePoint(to));
    this.#between(Array.from(low), Array.from(high), start, end);
  }

  #between(low: number[], high: number[], start: number, end: number): void {
    const [a, ...restLow] = low;
    const [b, ...restHigh] = high;
    if (restLow.length === 0) {
      this.edges[start].push({ from: a, to: b, target: end });
      return;
    }
    if (a === b) {
      this.#between(restLow, restHigh, this.#range(start, a, a), end);
      return;
    }
    const least = restLow.map(() => 0x80);
    const most = restLow.map(() => 0xbf);
    const first = restLow.some((byte) => byte !== 0x80) ? a + 1 : a;
    const last = restHigh.some((byte) => byte !== 0xbf) ? b - 1 : b;
    if (first > a) this.#between(restLow, most, this.#range(start, a, a), end);
    if (first <= last) this.#between(least, most, this.#range(start, first, last), end);
    if (last < b) this.#between(least, restHigh, this.#range(start, b, b), end);
  }

  /** A state and all that it leads to without a byte. */
  closure(states: Iterable<number>): number[] {
    const seen = new Set(states);
    for (const state of seen) for (const other of this.free[state]) seen.add(other);
    return [...seen].sort((a, b) => a - b);
  }
}

/** The automaton of a language. @throws TooLarge */
export function automatonOf(language: Language): ByteAutomaton {
  const parts = new Parts();
  const start = parts.state();
  const end = parts.add(language, start);
  const sets: number[][] = [];
  const known = new Map<string, number>();
  const numberOf = (states: Iterable<number>): number => {
    // Of states without bytes only the end tells sets apart.
    const set = parts.closure(states).filter((state) => state === end || parts.edges[state].length > 0);
    const name = set.join();
    let index = known.get(name);
    if (index === undefined) {
      index = sets.length;
      if (index >= MOST_STATES) throw new TooLarge();
      known.set(name, index);
      sets.push(set);
    }
    return index;
  };
  numberOf([start]);
  const rows: Int32Array[] = [];
  for (let s = 0; s < sets.length; s++) {
    const edges = sets[s].flatMap((state) => parts.edges[state]);
    const row = new Int32Array(256).fill(-1);
    const borders = new Set([0, 256]);
    for (const { from, to } of edges) borders.add(from).add(to + 1);
    const cuts = [...borders].sort((a, b) => a - b);
    for (let i = 0; i + 1 < cuts.length; i++) {
      const targets = edges.filter(({ from, to }) => from <= cuts[i] && to >= cuts[i]).map(({ target }) => target);
      if (targets.length > 0) row.fill(numberOf(targets), cuts[i], cuts[i + 1]);
    }
    rows.push(row);
  }
  return trimmed(
    rows,
    sets.map((set) => set.includes(end)),
  );
}

/** Without the states that lead to no accepting one. */
function trimmed(rows: readonly Int32Array[], accepts: readonly boolean[]): ByteAutomaton {
  const before: number[][] = rows.map(() => []);
  rows.forEach((row, s) => {
    for (const target of new Set(row)) if (target >= 0) before[target].push(s);
  });
  const alive = new Set<number>();
  accepts.forEach((isEnd, s) => {
    if (isEnd) alive.add(s);
  });
  for (const s of alive) for (const other of before[s]) alive.add(other);
  if (!alive.has(0)) return { states: 0, next: new Int32Array(0), accepts: new Uint8Array(0) };
  const kept = [...alive].sort((a, b) => a - b);
  const place = new Map(kept.map((s, i) => [s, i]));
  const next = new Int32Array(256 * kept.length);
  kept.forEach((s, i) => {
    for (let byte = 0; byte < 256; byte++) next[256 * i + byte] = place.get(rows[s][byte]) ?? -1;
  });
  return { states: kept.length, next, accepts: Uint8Array.from(kept, (s) => Number(accepts[s])) };
}

/** The texts of both. @throws TooLarge */
export function intersect(a: ByteAutomaton, b: ByteAutomaton): ByteAutomaton {
  if (a.states === 0 || b.states === 0) return trimmed([new Int32Array(256).fill(-1)], [false]);
  const pairs: [number, number][] = [[0, 0]];
  const known = new Map<number, number>([[0, 0]]);
  const rows: Int32Array[] = [];
  for (let s = 0; s < pairs.length; s++) {
    const [p, q] = pairs[s];
    const row = new Int32Array(256).fill(-1);
    for (let byte = 0; byte < 256; byte++) {
      const left = a.next[256 * p + byte];
      const right = b.next[256 * q + byte];
      if (left < 0 || right < 0) continue;
      const name = left * b.states + right;
      let index = known.get(name);
      if (index === undefined) {
        index = pairs.length;
        if (index >= MOST_STATES) throw new TooLarge();
        known.set(name, index);
        pairs.push([left, right]);
      }
      row[byte] = index;
    }
    rows.push(row);
  }
  return trimmed(
    rows,
    pairs.map(([p, q]) => a.accepts[p] === 1 && b.accepts[q] === 1),
  );
}

/** The state behind bytes, -1 where there is none. */
export function walk({ next }: ByteAutomaton, from: number, bytes: ArrayLike<number>): number {
  let state = from;
  for (let i = 0; i < bytes.length && state >= 0; i++) state = next[256 * state + bytes[i]];
  return state;
}

/** Whether a text is of the language. */
export function accepts(automaton: ByteAutomaton, value: string): boolean {
  if (automaton.states === 0) return false;
  const state = walk(automaton, 0, new TextEncoder().encode(value));
  return state >= 0 && automaton.accepts[state] === 1;
}

/** Bytes of the longest text; Infinity where there is none. */
export function longestText({ states, next, accepts: ends }: ByteAutomaton): number {
  // Depth first: 0 new, 1 on the path, 2 done.
  const mark = new Uint8Array(states);
  const longest = new Float64Array(states);
  const path: { state: number; byte: number }[] = states > 0 ? [{ state: 0, byte: 0 }] : [];
  if (states > 0) mark[0] = 1;
  while (path.length > 0) {
    const top = path[path.length - 1];
    if (top.byte === 256) {
      mark[top.state] = 2;
      path.pop();
      continue;
    }
    const target = next[256 * top.state + top.byte];
    if (target < 0) top.byte++;
    else if (mark[target] === 1) return Number.POSITIVE_INFINITY;
    else if (mark[target] === 0) {
      mark[target] = 1;
      path.push({ state: target, byte: 0 });
    } else {
      longest[top.state] = Math.max(longest[top.state], 1 + longest[target]);
      top.byte++;
    }
  }
  return states === 0 || ends.length === 0 ? 0 : longest[0];
}
