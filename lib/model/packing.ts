// Rows into micro-batches.

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

/** Row lengths as offsets: 0 first, the total last. */
export function offsetsOf(lengths: readonly number[]): Int32Array {
  const offsets = new Int32Array(lengths.length + 1);
  lengths.forEach((length, i) => {
    offsets[i + 1] = offsets[i] + length;
  });
  return offsets;
}

/** Ids and candidates of rows laid end to end, as a score takes them. */
export function packed(rows: readonly { ids: Int32Array; positions: Int32Array }[]) {
  return {
    ids: concatenate(
      rows.map(({ ids }) => ids),
      Int32Array,
    ),
    offsets: offsetsOf(rows.map(({ ids }) => ids.length)),
    candidateOffsets: offsetsOf(rows.map(({ positions }) => positions.length)),
    positions: concatenate(
      rows.map(({ positions }) => positions),
      Int32Array,
    ),
  };
}

/** Arrays laid end to end. */
export function concatenate<T extends Int32Array | Uint8Array | Float32Array>(
  parts: readonly T[],
  Type: new (length: number) => T,
): T {
  const out = new Type(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
