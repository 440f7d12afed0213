// The slots of a row: runs of positions whose tokens make a text of a language, in whatever order they are decided.
import type { RowConstraint } from '../sampling/rows/row';
import type { AllowedTokens, StateSet, TokenAutomaton } from './token-automaton';

/** Positions `begin` to before `end` of a row, which hold a text of an automaton. */
export interface Slot {
  begin: number;
  end: number;
  automaton: TokenAutomaton;
}

/** What of a slot is still possible: the states before each position, forwards and those of them that reach an end. */
interface Reach {
  forward: StateSet[];
  backward: StateSet[];
}

/** Slots of a row. It holds nothing of the row: whatever stands in it counts. */
export class Slots implements RowConstraint {
  readonly #maskTokenId: number;

  /** @param slots ascending */
  constructor(
    readonly slots: readonly Slot[],
    maskTokenId: number,
  ) {
    this.#maskTokenId = maskTokenId;
  }

  /** @param open a position that counts as masked */
  #reach({ begin, end, automaton }: Slot, ids: Int32Array, open = -1): Reach {
    const forward = [automaton.start];
    const isMask = (at: number) => ids[at] === this.#maskTokenId || at === open;
    for (let at = begin; at < end; at++) {
      const before = forward[at - begin];
      forward.push(isMask(at) ? automaton.after(before) : automaton.afterToken(before, ids[at]));
    }
    const backward = new Array<StateSet>(forward.length);
    backward[end - begin] = automaton.accepting(forward[end - begin]);
    for (let at = end - 1; at >= begin; at--) {
      const [before, goal] = [forward[at - begin], backward[at - begin + 1]];
      backward[at - begin] = isMask(at) ? automaton.before(before, goal) : automaton.beforeToken(before, ids[at], goal);
    }
    return { forward, backward };
  }

  #slotOf(position: number): Slot | undefined {
    return this.slots.find(({ begin, end }) => begin <= position && position < end);
  }

  /** What may stand at positions, each by itself; null: anything. */
  allowed(ids: Int32Array, positions: Int32Array): (AllowedTokens | null)[] {
    let slot: Slot | undefined;
    let reach: Reach | null = null;
    return Array.from(positions, (position) => {
      if (!slot || position < slot.begin || position >= slot.end) {
        slot = this.#slotOf(position);
        reach = null;
      }
      if (!slot) return null;
      if (ids[position] === this.#maskTokenId) reach ??= this.#reach(slot, ids);
      const own = ids[position] === this.#maskTokenId ? reach! : this.#reach(slot, ids, position);
      const at = position - slot.begin;
      return slot.automaton.allowed(own.forward[at], own.backward[at + 1]);
    });
  }

  /** Whether a token may stand at a position of the row as it is. */
  fits(ids: Int32Array, position: number, token: number): boolean {
    const slot = this.#slotOf(position);
    if (!slot) return true;
    const { forward, backward } = this.#reach(slot, ids, position);
    const at = position - slot.begin;
    return slot.automaton.beforeToken(forward[at], token, backward[at + 1]).states.length > 0;
  }

  /** Fills every mask of the slots with what makes texts of them. */
  complete(ids: Int32Array): void {
    for (const slot of this.slots)
      for (let at = slot.begin; at < slot.end; at++) {
        if (ids[at] !== this.#maskTokenId) continue;
        const { forward, backward } = this.#reach(slot, ids);
        ids[at] = slot.automaton.anyToken(forward[at - slot.begin], backward[at - slot.begin + 1]);
      }
  }
}
