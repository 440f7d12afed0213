// dllm's samplers of the models that it made of autoregressive ones (a2d): mdlm, which sees whole rows, and bd3lm, which
// goes by blocks.

/**
 * The recorded draws of a pass's candidates. Tensors are (passes, rows, positions), of the row or of the block that
 * begins at `start`.
 */
function drawsOf({ gumbel_u: gumbel, rand_u: order }, batch, start = () => 0) {
  if (!gumbel && !order) return undefined;
  return ({ step, row, positions }) => {
    const place = ({ shape }, p) => (step * batch + row) * shape[2] + p - start(step, row);
    const draws = {};
    // The native rule takes the lowest uniforms, the reference the highest.
    if (order) draws.position = Float64Array.from(positions, (p) => 1 - order.data[place(order, p)]);
    if (gumbel) {
      const vocabulary = gumbel.shape[3];
      draws.token = new Float64Array(positions.length * vocabulary);
      positions.forEach((p, i) => {
        const from = place(gumbel, p) * vocabulary;
        // A recorded 0 has infinitely negative noise; the smallest normal double stands in for it.
        const uniforms = gumbel.data.subarray(from, from + vocabulary).map((u) => Math.max(u, 2.3e-308));
        draws.token.set(uniforms, i * vocabulary);
      });
    }
    return draws;
  };
}

const settingsOf = ({ args }) => ({
  sampler: {
    type: 'fixed',
    steps: args.steps,
    schedule: 'linear',
    ...(args.remasking === 'random' && { remasking: 'random' }),
  },
  maxTokens: args.max_new_tokens,
  temperature: args.temperature,
  research: { compat: 'reference' },
});

/** What a pass decides of a row against what is recorded of it from number `at` on. Returns how many it writes. */
function compareRow(check, row, { expected, isRandom, tolerance, at, positions, where }) {
  const place = new Map(Array.from(row?.positions ?? [], (p, c) => [p, c]));
  let written = 0;
  positions.forEach((p, i) => {
    const c = place.get(p);
    const selected = c === undefined ? 0 : row.selected[c];
    check.exact(`transfer_index ${where} position ${p}`, selected, Number(expected.transfer_index.data[at + i]));
    if (c === undefined) return;
    written += selected;
    check.exact(`x0 ${where} position ${p}`, row.tokens[c], Number(expected.x0.data[at + i]));
    // Of random order the recorded confidences are the draws.
    if (!isRandom)
      check.close(
        'confidence',
        `${where} position ${p}`,
        row.confidences[c],
        expected.confidence.data[at + i],
        tolerance,
      );
  });
  return written;
}

const promptsOf = ({ prompt_lengths: lengths }, inputs) =>
  lengths.map((_, b) => ({ promptIds: Array.from(inputs[`prompt_${b}`].data, Number) }));

/** Rows of different lengths, which wait for each other. */
async function mdlmCase(model, { description, inputs, expected }, check) {
  const { args, batch, tolerance } = description;
  const [passes, , width] = expected.x_before.shape;
  const prompts = promptsOf(description, inputs);
  const run = model.denoise(
    prompts,
    { ...settingsOf(description), blockLength: args.block_size },
    drawsOf(inputs, batch),
  );
  const ids = prompts.map(({ promptIds }) => [...promptIds, ...new Array(args.max_new_tokens).fill(args.mask_id)]);
  const compareIds = (what, offset) =>
    ids.forEach((row, b) =>
      row.forEach((id, i) =>
        check.exact(`${what} row ${b} position ${i}`, id, Number(expected[what].data[offset + b * width + i])),
      ),
    );
  let pass = 0;
  for (let next = await run.next(); !next.done; next = await run.next(), pass++) {
    if (pass >= passes) {
      check.exact('passes', 'more', passes);
      await run.return([]);
      return;
    }
    compareIds('x_before', pass * batch * width);
    for (const row of next.value.rows) ids[row.row] = Array.from(row.ids);
    compareIds('x_after', pass * batch * width);
    for (let b = 0; b < batch; b++) {
      const written = compareRow(
        check,
        next.value.rows.find((one) => one.row === b),
        {
          expected,
          isRandom: args.remasking === 'random',
          tolerance: tolerance.confidence,
          at: (pass * batch + b) * width,
          positions: Array.from(ids[b].keys()),
          where: `pass ${pass} row ${b}`,
        },
      );
      check.exact(`num_transfer pass ${pass} row ${b}`, written, Number(expected.num_transfer.data[pass * batch + b]));
    }
  }
  check.exact('passes', pass, passes);
  compareIds('x_final', 0);
}

/**
 * Rows whose completions begin with a block: the reference pads prompts on the left, to whole blocks of one length, with
 * tokens that nothing sees. Here a row has none, and its first block is what is left of it. The reference goes on with
 * rows that have their end until all have it; here they are finished, and what it writes behind them is not compared.
 */
async function bd3lmCase(model, { description, inputs, expected }, check) {
  const { args, batch, tolerance } = description;
  const [passes, , block] = expected.block_before.shape;
  const prompts = promptsOf(description, inputs);
  const longest = Math.max(...prompts.map(({ promptIds }) => promptIds.length));
  const padded = Math.ceil(longest / block) * block;
  const pads = prompts.map(({ promptIds }) => padded - promptIds.length);
  const start = (pass) => Number(expected.block_start.data[pass]);
  const run = model.denoise(
    prompts,
    { ...settingsOf(description), cache: { type: 'blocks' }, stopAtEos: true },
    drawsOf(inputs, batch, (pass, row) => start(pass) - pads[row]),
  );
  const ids = prompts.map(({ promptIds }) => [...promptIds, ...new Array(args.max_new_tokens).fill(args.mask_id)]);
  const finished = new Set();
  let pass = 0;
  for (let next = await run.next(); !next.done; next = await run.next(), pass++) {
    if (pass >= passes) {
      check.exact('passes', 'more', passes);
      await run.return([]);
      return;
    }
    for (let b = 0; b < batch; b++) {
      if (finished.has(b)) continue;
      const at = (pass * batch + b) * block;
      const begin = start(pass) - pads[b];
      const where = `pass ${pass} row ${b}`;
      const compareIds = (what) => {
        for (let i = 0; i < block; i++)
          check.exact(
            `${what} ${where} position ${begin + i}`,
            ids[b][begin + i] ?? -1,
            Number(expected[what].data[at + i]),
          );
      };
      compareIds('block_before');
      const row = next.value.rows.find((one) => one.row === b);
      if (row) {
        ids[b] = Array.from(row.ids);
        // A pass computes its block, what no pass has computed of the blocks before it, and nothing behind it.
        check.exact(`computed ${where}`, row.computed.at(-1), Math.min(ids[b].length, begin + block) - 1);
      }
      compareIds('block_after');
      const written = compareRow(check, row, {
        expected,
        isRandom: args.remasking === 'random',
        tolerance: tolerance.confidence,
        at,
        positions: Array.from({ length: Math.min(block, ids[b].length - begin) }, (_, i) => begin + i),
        where,
      });
      check.exact(`num_transfer ${where}`, written, Number(expected.num_transfer.data[pass * batch + b]));
      if (row?.finished) finished.add(b);
    }
  }
  check.exact('passes', pass, passes);
  const width = expected.x_final.shape[1];
  ids.forEach((row, b) => {
    const end = row.indexOf(args.eos_id, prompts[b].promptIds.length);
    const compared = end < 0 ? row : row.slice(0, end + 1);
    compared.forEach((id, i) =>
      check.exact(`x_final row ${b} position ${i}`, id, Number(expected.x_final.data[b * width + pads[b] + i])),
    );
  });
}

/** Kind to what replays it, by its description; null: a variant that is not known. */
module.exports = {
  a2d_gen: ({ sampler, args }) =>
    ['low_confidence', 'random'].includes(args.remasking)
      ? ({ mdlm: mdlmCase, bd3lm: bd3lmCase }[sampler] ?? null)
      : null,
};
