// Recorded runs of the families that were made of autoregressive decoders: forward passes, with and without a cache, and
// decoding by blocks.

const { filtersOf, windowDraws } = require('./sampled.cjs');

/** Numbers of a result against a recorded tensor. */
function compareNumbers(check, quantity, actual, wanted, { atol, rtol }, isCompared = () => true) {
  check.exact(`${quantity} size`, actual.length, wanted.data.length);
  const width = wanted.shape.at(-1);
  for (let i = 0; i < wanted.data.length; i++)
    if (isCompared(Math.floor(i / width))) check.close(quantity, `[${i}]`, actual[i], wanted.data[i], atol, rtol);
}

/** States after the final norm. */
const lastHidden = ({ config }, expected) => expected[`hidden_${config.nLayers}`] ?? expected.hidden;

const rowOffsetsOf = ([batch, length]) => Array.from({ length: batch + 1 }, (_, i) => i * length);

/** Rows at once; those that are padded are computed without their padding. */
async function paddedForwardCase(model, { description, inputs, expected }, check) {
  const tolerance = description.tolerance.fp32;
  const [batch, length] = inputs.ids.shape;
  const isReal = (i) => !inputs.attention_mask || Number(inputs.attention_mask.data[i]) === 1;
  const offsets = [0];
  const ids = [];
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < length; i++) if (isReal(b * length + i)) ids.push(Number(inputs.ids.data[b * length + i]));
    offsets.push(ids.length);
  }
  const { hidden, logits } = await model.forward({ ids, rowOffsets: offsets });
  // Back to their places, so that the recorded tensors are compared as they are.
  const spread = (values, width) => {
    const out = new Float32Array(batch * length * width);
    let from = 0;
    for (let i = 0; i < batch * length; i++)
      if (isReal(i)) out.set(values.subarray(from * width, ++from * width), i * width);
    return out;
  };
  const compare = (quantity, values, wanted) =>
    compareNumbers(check, quantity, spread(values, wanted.shape.at(-1)), wanted, tolerance, isReal);
  compare('hidden', hidden, lastHidden(model, expected));
  compare('logits', logits, expected.logits);
}

async function blockForwardCase(model, { description, inputs, expected }, check) {
  const { hidden, logits } = await model.forward({ ids: inputs.ids.data, rowOffsets: rowOffsetsOf(inputs.ids.shape) });
  compareNumbers(check, 'hidden', hidden, lastHidden(model, expected), description.tolerance.fp32);
  compareNumbers(check, 'logits', logits, expected.logits, description.tolerance.fp32);
}

/** The passes of a block diffusion decoder on its cache: the prompt, a block that is not final, its final tokens, the next. */
async function blockCacheCase(model, { description, inputs, expected }, check) {
  const { prefill, block_length: block } = description.args;
  const { fp32 } = description.tolerance;
  const ids = Array.from(inputs.ids.data, Number);
  const cache = await model.createCache([ids.length]);
  const pass = async (name, of, begin) => {
    const positions = of.map((_, i) => begin + i);
    const { logits } = await model.forward({ ids: of, rowOffsets: [0, of.length], cache, positions });
    compareNumbers(check, name, logits, expected[name], fp32);
  };
  const given = (name) => Array.from(inputs[name].data, Number);
  await pass('prefill_logits', ids.slice(0, prefill), 0);
  await pass('denoise_1_logits', given('denoise_1_ids'), prefill);
  await pass('commit_1_logits', ids.slice(prefill, prefill + block), prefill);
  await pass('denoise_2_logits', given('denoise_2_ids'), prefill + block);
  const { nKvHeads: heads, headDim } = model.config;
  for (let layer = 0; layer < model.config.nLayers; layer++) {
    const { keys, values } = await cache.read(layer);
    for (const [name, held] of [
      ['k_cache', keys],
      ['v_cache', values],
    ]) {
      const wanted = expected[`${name}_${layer}`];
      const committed = wanted.shape[2];
      for (let h = 0; h < heads; h++)
        for (let p = 0; p < committed; p++)
          for (let d = 0; d < headDim; d++)
            check.close(
              name,
              `layer ${layer} head ${h} position ${p}`,
              held[(p * heads + h) * headDim + d],
              wanted.data[(h * committed + p) * headDim + d],
              fp32.atol,
              fp32.rtol,
            );
    }
  }
  cache.dispose();
}

/** Fast-dLLM v2: the prompt, a block, its two halves on what the block's pass left in the cache, its final tokens. */
async function subBlockCacheCase(model, { description, inputs, expected }, check) {
  const { fp32 } = description.tolerance;
  const [batch, prompt] = inputs.prefill_ids.shape;
  const { block_size: block, small_block_size: part } = description.args;
  const cache = await model.createCache(new Array(batch).fill(prompt + block));
  const pass = async (name, begin) => {
    const { data, shape } = inputs[`${name}_ids`];
    const positions = Array.from(data, (_, i) => begin + (i % shape[1]));
    return model.forward({ ids: data, rowOffsets: rowOffsetsOf(shape), cache, positions });
  };
  const first = await pass('prefill', 0);
  compareNumbers(check, 'hidden', first.hidden, expected.prefill_hidden, fp32);
  compareNumbers(check, 'logits', first.logits, expected.prefill_logits, fp32);
  for (const [name, begin] of [
    ['block', prompt],
    ['sub_block', prompt],
    ['sub_block_2', prompt + part],
    ['commit', prompt],
  ])
    compareNumbers(check, `${name}_logits`, (await pass(name, begin)).logits, expected[`${name}_logits`], fp32);
  cache.dispose();
}

/**
 * Runs a block diffusion sampler on the case's prompt and compares every pass: the row before and after, and what was
 * sampled and written at the positions of the window that it decides.
 */
async function windowsCase(model, { description, inputs, expected }, check, options) {
  const { args, tolerance } = description;
  const { block_length: block } = args;
  const settings = {
    maxTokens: args.gen_length,
    cache: { type: 'blocks' },
    // Drawn at temperature 0 means without a temperature.
    ...(inputs.exp_draws && { temperature: args.temperature || 1, ...filtersOf(args) }),
    // The mask token counts among the predictions.
    research: { compat: 'reference' },
    ...options,
  };
  const prompts = [{ promptIds: Array.from(inputs.prompt_ids.data, Number) }];
  const run = model.denoise(prompts, settings, inputs.exp_draws && windowDraws(inputs.exp_draws, expected.block_start));
  const length = expected.x_before.shape[1];
  let ids = Array.from(expected.x_before.data.subarray(0, length), Number);
  let pass = 0;
  const compareIds = (what, at) =>
    ids.forEach((id, i) => check.exact(`${what} pass ${pass} position ${i}`, id, Number(expected[what].data[at + i])));
  let next = await run.next();
  for (; !next.done && pass < expected.x_before.shape[0]; next = await run.next(), pass++) {
    const [row] = next.value.rows;
    compareIds('x_before', pass * length);
    const before = ids;
    ids = Array.from(row.ids);
    compareIds('x_after', pass * length);
    const start = Number(expected.block_start.data[pass]);
    const last = row.positions.at(-1);
    for (let i = 0; i < block; i++) {
      const at = pass * block + i;
      const where = `pass ${pass} position ${i}`;
      const isMask = before[start + i] === model.config.maskTokenId;
      check.exact(`mask_index ${where}`, Number(isMask), Number(expected.mask_index.data[at]));
      const candidate = row.positions.indexOf(start + i);
      const selected = Number(expected.transfer_index.data[at]) || Number(expected.edit_index?.data[at] ?? 0);
      check.exact(`written ${where}`, candidate < 0 ? 0 : row.selected[candidate], selected);
      if (candidate < 0) {
        check.exact(`a candidate at ${where}`, isMask, false);
        continue;
      }
      check.exact(`x0 ${where}`, row.tokens[candidate], Number(expected.x0.data[at]));
      // A token that is decided has no confidence in some references.
      if (Number.isFinite(expected.confidence.data[at]))
        check.close(
          'confidence',
          where,
          row.confidences[candidate],
          expected.confidence.data[at],
          tolerance.confidence,
        );
    }
    check.exact(`last candidate of pass ${pass} in the block`, last < start + block, true);
    // A pass computes its block, the prompt's or the last block's final tokens the first time, and nothing behind it.
    check.exact(`computed in pass ${pass}`, row.computed.at(-1), start + block - 1);
    check.exact(`own positions of pass ${pass}`, row.computed.at(-block), start);
  }
  check.exact('passes', pass, expected.x_before.shape[0]);
  check.exact('the run ends', next.done, true);
  compareIds(expected.x_final ? 'x_final' : 'x_row_final', 0);
}

/** LLaDA2.0; a threshold that no confidence is above is one of 1. */
const llada2Case = (model, files, check) => {
  const { threshold, steps } = files.description.args;
  return windowsCase(model, files, check, {
    sampler: { type: 'dynamic', threshold: Math.min(1, threshold), steps },
    ...(files.description.args.eos_early_stop && { stopAtEos: true }),
  });
};

/** LLaDA2.1, with edits. */
const llada21Case = (model, files, check) => {
  const { args } = files.description;
  return windowsCase(model, files, check, {
    sampler: {
      type: 'editing',
      threshold: args.threshold,
      editingThreshold: args.editing_threshold,
      maxPostSteps: args.max_post_steps,
      numToTransfer: args.num_to_transfer,
    },
    ...(args.eos_early_stop && { stopAtEos: true }),
  });
};

/** LLaDA's sampler on LLaDA-MoE: rows that are padded on the left are computed without their padding. */
async function lladaMoeCase(model, { description, inputs, expected }, check) {
  const { batch, prompt_length: promptLength, args, tolerance } = description;
  const length = promptLength + args.gen_length;
  const vocabulary = inputs.gumbel_u?.shape[3];
  const prompts = [];
  const pads = [];
  for (let b = 0; b < batch; b++) {
    const ids = Array.from(inputs.prompt_ids.data.subarray(b * promptLength, (b + 1) * promptLength), Number);
    const mask = inputs.attention_mask?.data;
    pads.push(mask ? ids.filter((_, i) => Number(mask[b * (mask.length / batch) + i]) === 0).length : 0);
    prompts.push({ promptIds: ids.slice(pads[b]) });
  }
  const recorded = ({ step, row, positions }) => {
    const at = (p) => (step * batch + row) * length + pads[row] + p;
    const draws = {};
    // The native rule takes the lowest uniforms, the reference the highest.
    if (inputs.rand_u) draws.position = Float64Array.from(positions, (p) => 1 - inputs.rand_u.data[at(p)]);
    if (inputs.gumbel_u) {
      draws.token = new Float64Array(positions.length * vocabulary);
      positions.forEach((p, i) => {
        const from = at(p) * vocabulary;
        draws.token.set(inputs.gumbel_u.data.subarray(from, from + vocabulary), i * vocabulary);
      });
    }
    return draws;
  };
  const run = model.denoise(
    prompts,
    {
      maxTokens: args.gen_length,
      blockLength: args.block_length,
      temperature: args.temperature,
      sampler: {
        type: 'fixed',
        steps: args.steps,
        ...(args.remasking === 'random' && { remasking: 'random' }),
      },
      research: { compat: 'reference' },
    },
    recorded,
  );
  const ids = prompts.map(({ promptIds }) => [...promptIds, ...new Array(args.gen_length).fill(args.mask_id)]);
  const compareIds = (what, step) =>
    ids.forEach((row, b) =>
      row.forEach((id, i) =>
        check.exact(
          `${what} step ${step} row ${b} position ${i}`,
          id,
          Number(expected[what].data[(step * batch + b) * length + pads[b] + i]),
        ),
      ),
    );
  let step = 0;
  for (let next = await run.next(); !next.done; next = await run.next(), step++) {
    if (step >= description.steps) break;
    compareIds('x_before', step);
    for (const row of next.value.rows) ids[row.row] = Array.from(row.ids);
    compareIds('x_after', step);
    for (const row of next.value.rows)
      for (let p = 0; p < length - pads[row.row]; p++) {
        const at = (step * batch + row.row) * length + pads[row.row] + p;
        const where = `step ${step} row ${row.row} position ${p}`;
        const candidate = row.positions.indexOf(p);
        const written = candidate < 0 ? 0 : row.selected[candidate];
        check.exact(`transfer_index ${where}`, written, Number(expected.transfer_index.data[at]));
        if (candidate < 0) continue;
        check.exact(`x0 ${where}`, row.tokens[candidate], Number(expected.x0.data[at]));
        if (!inputs.rand_u)
          check.close(
            'confidence',
            where,
            row.confidences[candidate],
            expected.confidence.data[at],
            tolerance.confidence,
          );
      }
  }
  check.exact('steps', step, description.steps);
  compareIds('x_final', 0);
}

/** Kind to what replays it, by its description; null: a variant that is not known. */
module.exports = {
  dream_forward: () => paddedForwardCase,
  lladamoe_forward: () => paddedForwardCase,
  llada2_forward: () => blockForwardCase,
  sdar_forward: () => blockForwardCase,
  sdar_forward_cached: () => blockCacheCase,
  fastdllm2_forward: () => subBlockCacheCase,
  lladamoe_gen: () => lladaMoeCase,
  llada2_gen: () => llada2Case,
  llada21_gen: () => llada21Case,
};
