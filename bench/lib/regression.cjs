// Whether something has become slower beside its contender, which ran in turns with it: a ratio says that on any
// machine and in any minute, where a time says how busy the machine was.

/**
 * A ratio may fall by this share before it counts: two runs of the same code differ too, most of all on a busy machine.
 */
const TOLERANCE = 0.15;

const keyOf = ({ shape, threads, contender }) => `${shape}, ${threads} thread${threads === 1 ? '' : 's'}: ${contender}`;

/**
 * Compares two results of bench/run.cjs, row by row where both have a ratio.
 * @returns { compared, slower: [{ key, before, now }] }
 */
function compareRatios(before, now) {
  const old = new Map();
  for (const { name, rows } of before.sections)
    for (const row of rows) if (row.ratio !== undefined) old.set(`${name}: ${keyOf(row)}`, row.ratio);
  let compared = 0;
  const slower = [];
  for (const { name, rows } of now.sections)
    for (const row of rows) {
      const key = `${name}: ${keyOf(row)}`;
      if (row.ratio === undefined || !old.has(key)) continue;
      compared++;
      if (row.ratio < old.get(key) * (1 - TOLERANCE)) slower.push({ key, before: old.get(key), now: row.ratio });
    }
  return { compared, slower };
}

module.exports = { compareRatios, TOLERANCE };
