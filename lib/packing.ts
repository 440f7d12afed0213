// Rows of different lengths, laid end to end with offsets.

/** Splits rows, in their order, into groups of at most `budget` tokens; a longer row is a group of its own. */
export function packRows<T>(rows: readonly T[], length: (row: T) => number, budget: number): T[][] {
  const groups: T[][] = [];
  let tokens = 0;
  for (const row of rows) {
    const size = length(row);
    if (groups.length === 0 || tokens + size > budget) {
      groups.push([]);
      tokens = 0;
    }
    groups[groups.length - 1].push(row);
    tokens += size;
  }
  return groups;
}

/** The numbers from `begin` to before `end`. */
export function range(begin: number, end: number): Int32Array {
  const out = new Int32Array(end - begin);
  for (let i = 0; i < out.length; i++) out[i] = begin + i;
  return out;
}

/** A number of each item. A loop: `from` of a typed array takes several times as long, which steps of small models feel. */
export function numbersOf<Item, T extends Numbers>(
  items: readonly Item[],
  Type: new (length: number) => T,
  numberOf: (item: Item) => number,
): T {
  const out = new Type(items.length);
  for (let i = 0; i < items.length; i++) out[i] = numberOf(items[i]);
  return out;
}

/** Row lengths as offsets: 0 first, the total last. */
export function offsetsOf(lengths: readonly number[]): Int32Array {
  const offsets = new Int32Array(lengths.length + 1);
  lengths.forEach((length, i) => {
    offsets[i + 1] = offsets[i] + length;
  });
  return offsets;
}

/** An array of numbers of one type. */
type Numbers = Int32Array | Uint32Array | Uint8Array | Float32Array | Float64Array;

/** Arrays laid end to end. */
export function concatenate<T extends Numbers>(parts: readonly T[], Type: new (length: number) => T): T {
  const out = new Type(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Lists of in-row positions laid end to end, with their offsets. */
export function packPositions(lists: readonly Int32Array[]): { offsets: Int32Array; positions: Int32Array } {
  return { offsets: offsetsOf(lists.map(({ length }) => length)), positions: concatenate(lists, Int32Array) };
}

/** Ids and candidates of rows laid end to end, as a score takes them. */
export function packed(rows: readonly { ids: Int32Array; positions: Int32Array }[]) {
  const ids = packPositions(rows.map((row) => row.ids));
  const candidates = packPositions(rows.map((row) => row.positions));
  return {
    ids: ids.positions,
    offsets: ids.offsets,
    candidateOffsets: candidates.offsets,
    positions: candidates.positions,
  };
}

/**
 * Values of the candidates of several rows, laid end to end, mapped row by row.
 * @param fn gets a row's part of the values, and returns as many numbers
 */
export function mapRows<R extends { positions: Int32Array }, T extends Numbers>(
  values: Float32Array,
  rows: readonly R[],
  Type: new (length: number) => T,
  fn: (part: Float32Array, row: R, index: number) => T,
): T {
  const out = new Type(values.length);
  let at = 0;
  rows.forEach((row, index) => {
    const end = at + row.positions.length;
    out.set(fn(values.subarray(at, end), row, index), at);
    at = end;
  });
  return out;
}
