// Recorded runs of Fast-dLLM v2's batch_sample: rows of different lengths that grow by blocks together.
const { placesOf, subBlocksOf } = require('./sampled.cjs');

/** Kinds of passes. */
const FINAL = 3;

/**
 * Every pass of every row: which positions it computes, decides and writes, which pass the keys and values that it reads
 * are of, and the logits. The reference computes a finished row once more with the others before it leaves, to no effect,
 * and fills it behind its end; here it leaves at once, and what stands behind its end is not compared.
 */
async function batchCase(model, { description, inputs, expected }, check) {
  const { args, batch, prompt_lengths: lengths, tolerance } = description;
  const [passes, , width] = expected.x_before.shape;
  const vocabulary = model.config.embeddingSize;
  const longest = inputs.prompt_ids.shape[1];
  const ids = lengths.map((length, b) => {
    const prompt = Array.from(inputs.prompt_ids.data.subarray(b * longest, b * longest + length), Number);
    return [...prompt, ...new Array(width + 1 - length).fill(args.mask_id)];
  });
  const run = model.denoise(
    lengths.map((length, b) => ({ promptIds: ids[b].slice(0, length) })),
    subBlocksOf(args),
  );
  const places = placesOf(expected.cand_index);
  const endOf = (b) => ids[b].indexOf(args.stop_token, lengths[b]);
  const source = lengths.map(() => new Array(width).fill(-1));
  const cache = await model.createCache(lengths.map(() => width + args.block_size));
  const finished = new Set();
  let pass = 0;
  try {
    for (let next = await run.next(); !next.done; next = await run.next(), pass++) {
      if (pass >= passes) {
        check.exact('passes', 'more', passes);
        await run.return([]);
        return;
      }
      const { rows } = next.value;
      const before = ids.map((row) => row.slice());
      const kind = Number(expected.kind_code.data[pass]);
      for (let b = 0; b < batch; b++) {
        const row = rows.find((one) => one.row === b);
        const isActive = Number(expected.row_active.data[pass * batch + b]) === 1;
        if (!row) {
          const leaves = isActive && !finished.has(b) && kind === FINAL && endOf(b) >= 0;
          check.exact(`row ${b} takes part in pass ${pass}`, false, isActive && !leaves);
          finished.add(b);
          continue;
        }
        check.exact(`row ${b} takes part in pass ${pass}`, true, isActive);
        ids[b] = Array.from(row.ids);
        const computed = new Set(row.computed);
        for (const p of row.computed) source[b][p] = pass;
        const place = new Map(Array.from(row.positions, (p, c) => [p, c]));
        for (let i = 0; i < width; i++) {
          const at = (pass * batch + b) * width + i;
          const where = `pass ${pass} row ${b} position ${i}`;
          check.exact(`query ${where}`, Number(computed.has(i)), Number(expected.query.data[at]));
          const from = Number(expected.kv_source_pass.data[at]);
          if (from >= 0) check.exact(`kv_source_pass ${where}`, source[b][i], from);
          const c = place.get(i);
          // The token that a row's longer prompt takes the place of is recorded, and never used.
          if (kind === FINAL && c === undefined && Number(expected.mask_index.data[at])) continue;
          // -1: behind the end of the row.
          for (const [what, of] of [
            ['x_before', before[b]],
            ['x_after', ids[b]],
          ]) {
            const wanted = Number(expected[what].data[at]);
            if (wanted >= 0) check.exact(`${what} ${where}`, of[i], wanted);
          }
          check.exact(`mask_index ${where}`, Number(c !== undefined), Number(expected.mask_index.data[at]));
          const selected = Number(expected.transfer_index.data[at]);
          check.exact(`transfer_index ${where}`, c === undefined ? 0 : row.selected[c], selected);
          if (c === undefined) continue;
          check.exact(`x0 ${where}`, row.tokens[c], Number(expected.x0.data[at]));
          check.close('confidence', where, row.confidences[c], expected.confidence.data[at], tolerance.confidence);
        }
      }
      const all = lengths.map((_, b) => rows.find((one) => one.row === b));
      const rowOffsets = [0];
      for (const row of all) rowOffsets.push(rowOffsets.at(-1) + (row?.computed.length ?? 0));
      const { logits } = await model.forward({
        ids: all.flatMap((row, b) => Array.from(row?.computed ?? [], (p) => before[b][p])),
        positions: all.flatMap((row) => Array.from(row?.computed ?? [])),
        rowOffsets,
        cache,
      });
      all.forEach((row, b) => {
        const rowOf = new Map(Array.from(row?.computed ?? [], (p, k) => [p, rowOffsets[b] + k]));
        for (const p of row?.positions ?? []) {
          const n = places.get([pass, b, p].join());
          check.exact(`logits of pass ${pass} row ${b} position ${p} are recorded`, n !== undefined, true);
          if (n === undefined) continue;
          const k = rowOf.get(p - 1) ?? rowOf.get(p);
          for (let v = 0; v < vocabulary; v++)
            check.close(
              'cand_logits',
              `pass ${pass} row ${b} position ${p}`,
              logits[k * vocabulary + v],
              expected.cand_logits.data[n * vocabulary + v],
              tolerance.cand_logits,
            );
        }
      });
    }
    check.exact('passes', pass, passes);
    check.exact('forward_passes', pass, description.forward_passes);
    for (let b = 0; b < batch; b++) {
      const end = endOf(b);
      const compared = Math.min(Number(expected.x_final_len.data[b]), end < 0 ? Infinity : end + 1);
      for (let i = 0; i < compared; i++)
        check.exact(`x_final row ${b} position ${i}`, ids[b][i], Number(expected.x_final.data[b * width + i]));
    }
  } finally {
    cache.dispose();
  }
}

/** Kind to what replays it, by its description; null: a variant that is not known. */
module.exports = { fastdllm2_batch: ({ args }) => (args.temperature === 0 ? batchCase : null) };
