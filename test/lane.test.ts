// Whose turn it is, and where keys and values lie: the parts of the scheduler by themselves.
import type { NativeCache } from '../lib/native';
import { Slab } from '../lib/sampling/kv-arena';
import { Lane, type LaneRow } from '../lib/sampling/lane';
import type { RowTask } from '../lib/sampling/pass';
import { random } from './checkpoints';

const newRow = (cost: number, more: { weight?: number; rule?: object; begin?: number; slab?: Slab } = {}): LaneRow => ({
  task: { rule: more.rule ?? null, begin: more.begin ?? 0 } as unknown as RowTask,
  weight: more.weight ?? 1,
  cost,
  virtualTime: 0,
  slab: more.slab ?? null,
});

const laneOf = (rows: readonly LaneRow[], storage: Lane['storage'] = null) => {
  const lane = new Lane('lane', storage);
  for (const row of rows) lane.add(row);
  return lane;
};
/** A pass. */
const pass = (lane: Lane, budget: number) => {
  const chosen = lane.choose(budget);
  lane.charge(chosen);
  return chosen;
};

test('passes keep to the budget and use it, and no row waits for longer than its share takes', () => {
  const next = random(11);
  for (let round = 0; round < 30; round++) {
    const rows = Array.from({ length: 1 + Math.floor(next() * 20) }, () => newRow(1 + Math.floor(next() * 60)));
    const budget = 60 + Math.floor(next() * 100);
    const lane = laneOf(rows);
    const all = rows.reduce((sum, { cost }) => sum + cost, 0);
    const waited = new Map(rows.map((row) => [row, 0]));
    const wrong: string[] = [];
    for (let i = 0; i < 300; i++) {
      const chosen = pass(lane, budget);
      const cost = chosen.reduce((sum, row) => sum + row.cost, 0);
      if (cost > budget) wrong.push(`${cost} of ${budget}`);
      for (const row of rows) {
        const isChosen = chosen.includes(row);
        // What is left has room for none of the others.
        if (!isChosen && cost + row.cost <= budget) wrong.push(`no ${row.cost} beside ${cost} of ${budget}`);
        const passes = isChosen ? 0 : waited.get(row)! + 1;
        waited.set(row, passes);
        // Others get as much as it does, each up to a turn more; a pass is at least half full.
        const most = Math.ceil((2 * (rows.length * row.cost + all)) / budget);
        if (passes > most) wrong.push(`${passes} passes without ${row.cost}, at most ${most}`);
      }
    }
    expect(wrong).toEqual([]);
  }
});

test('a row larger than the budget goes alone, and gets no more of the work than others', () => {
  const [large, ...small] = [newRow(1000), ...Array.from({ length: 10 }, () => newRow(10))];
  const lane = laneOf([large, ...small]);
  let [turns, smallWork] = [0, 0];
  for (let i = 0; i < 2000; i++) {
    const chosen = pass(lane, 50);
    if (chosen.includes(large)) {
      expect(chosen).toEqual([large]);
      turns++;
    } else smallWork += 10 * chosen.length;
  }
  expect((turns * 1000) / (smallWork / small.length)).toBeCloseTo(1, 1);
});

test('work is shared by weight', () => {
  const [heavy, light] = [newRow(10, { weight: 4 }), newRow(10)];
  const lane = laneOf([heavy, light]);
  const turns = new Map<LaneRow, number>();
  for (let i = 0; i < 1000; i++) for (const row of pass(lane, 10)) turns.set(row, (turns.get(row) ?? 0) + 1);
  expect(turns.get(heavy)! / turns.get(light)!).toBeCloseTo(4, 1);
});

test('a new row begins where the others are', () => {
  const old = newRow(10);
  const lane = laneOf([old]);
  for (let i = 0; i < 100; i++) pass(lane, 10);
  const young = newRow(10);
  lane.add(young);
  const turns = Array.from({ length: 20 }, () => pass(lane, 10)[0]);
  expect(turns.filter((row) => row === old)).toHaveLength(10);
});

test('rows of one rule stand together, cached ones by where they lie, of one memory', () => {
  const [a, b] = [{ name: 'a' }, { name: 'b' }];
  const mixed = [newRow(1, { rule: a }), newRow(1, { rule: b }), newRow(1, { rule: a })];
  expect(laneOf(mixed).choose(10)).toEqual([mixed[0], mixed[2], mixed[1]]);
  const [slab, other] = [new Slab({} as NativeCache, 100, 'f'), new Slab({} as NativeCache, 100, 'f')];
  const storage = { dtype: 'float32', planner: false } as unknown as Lane['storage'];
  const cached = [30, 10, 20].map((begin) => newRow(10, { begin, slab }));
  const foreign = newRow(10, { begin: 0, slab: other });
  const lane = laneOf([...cached, foreign], storage);
  expect(pass(lane, 100)).toEqual([cached[1], cached[2], cached[0]]);
  expect(pass(lane, 100)).toEqual([foreign]);
});

test('ranges of a slab never meet, and are whole again once all are given back', () => {
  const next = random(3);
  const capacity = 64;
  const slab = new Slab({} as NativeCache, capacity, 'f');
  const taken: { begin: number; length: number }[] = [];
  let wrong = 0;
  for (let i = 0; i < 3000; i++) {
    if (next() < 0.55) {
      const length = 1 + Math.floor(next() * 20);
      const isFree = (begin: number) =>
        begin + length <= capacity &&
        taken.every((other) => other.begin + other.length <= begin || begin + length <= other.begin);
      const begin = slab.take(length);
      // The first that is free; none only where there is none.
      if (begin !== (Array.from({ length: capacity }, (_, at) => at).find(isFree) ?? -1)) wrong++;
      if (begin >= 0) taken.push({ begin, length });
    } else if (taken.length > 0) {
      const [{ begin, length }] = taken.splice(Math.floor(next() * taken.length), 1);
      slab.give(begin, length);
    }
    const used = taken.reduce((sum, { length }) => sum + length, 0);
    if (slab.used !== used || slab.isEmpty !== (used === 0)) wrong++;
  }
  expect(wrong).toBe(0);
  for (const { begin, length } of taken) slab.give(begin, length);
  expect([slab.isEmpty, slab.take(capacity)]).toEqual([true, 0]);
});
