// Recorded runs of the families that were made of autoregressive decoders: forward passes, with and without a cache, and
// decoding by blocks.

/** Numbers of a result against a recorded tensor. */
function compareNumbers(check, quantity, actual, wanted, { atol, rtol }, isCompared = () => true) {
  check.exact(`${quantity} size`, actual.length, wanted.data.length);
  const width = wanted.shape.at(-1);
  for (let i = 0; i < wanted.data.length; i++)
    if (isCompared(Math.floor(i / width))) check.close(quantity, `[${i}]`, actual[i], wanted.data[i], atol, rtol);
}

const rowOffsetsOf = ([batch, length]) => Array.from({ length: batch + 1 }, (_, i) => i * length);

/** Rows at once; those that the left of is padded are computed without their padding. */
async function dreamForwardCase(model, { description, inputs, expected }, check) {
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
  compare('hidden', hidden, expected.hidden);
  compare('logits', logits, expected.logits);
}

async function blockForwardCase(model, { description, inputs, expected }, check) {
  const { hidden, logits } = await model.forward({ ids: inputs.ids.data, rowOffsets: rowOffsetsOf(inputs.ids.shape) });
  const last = expected[`hidden_${model.config.nLayers}`] ?? expected.hidden;
  compareNumbers(check, 'hidden', hidden, last, description.tolerance.fp32);
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

/** SDAR's evaluation sampler without draws: confidences before top-k, which keeps the most probable token alone. */
async function greedyBlocksCase(model, { description, inputs, expected }, check) {
  const { args, tolerance } = description;
  const { block_length: block, denoising_steps: steps } = args;
  const run = model.denoise([{ promptIds: Array.from(inputs.prompt_ids.data, Number) }], {
    maxTokens: args.gen_length,
    sampler: { type: 'dynamic', threshold: args.threshold, steps },
    cache: { type: 'blocks' },
    // The mask token counts among the predictions.
    research: { compat: 'reference' },
  });
  const length = expected.x_before.shape[1];
  let ids = Array.from(expected.x_before.data.subarray(0, length), Number);
  let pass = 0;
  const compareIds = (what, at) =>
    ids.forEach((id, i) => check.exact(`${what} pass ${pass} position ${i}`, id, Number(expected[what].data[at + i])));
  let next = await run.next();
  for (; !next.done && pass < expected.x_before.shape[0]; next = await run.next(), pass++) {
    const [row] = next.value.rows;
    compareIds('x_before', pass * length);
    ids = Array.from(row.ids);
    compareIds('x_after', pass * length);
    const start = Number(expected.block_start.data[pass]);
    let candidate = 0;
    for (let i = 0; i < block; i++) {
      const at = pass * block + i;
      const isMask = row.positions[candidate] === start + i;
      check.exact(`mask_index pass ${pass} position ${i}`, Number(isMask), Number(expected.mask_index.data[at]));
      if (!isMask) continue;
      check.exact(`x0 pass ${pass} position ${i}`, row.tokens[candidate], Number(expected.x0.data[at]));
      const selected = Number(expected.transfer_index.data[at]);
      check.exact(`transfer_index pass ${pass} position ${i}`, row.selected[candidate], selected);
      const where = `pass ${pass} position ${i}`;
      check.close('confidence', where, row.confidences[candidate], expected.confidence.data[at], tolerance.confidence);
      candidate++;
    }
    // A pass computes its block, the prompt's or the last block's final tokens the first time, and nothing behind it.
    check.exact(`computed in pass ${pass}`, row.computed.at(-1), start + block - 1);
    check.exact(`own positions of pass ${pass}`, row.computed.at(-block), start);
  }
  check.exact('passes', pass, expected.x_before.shape[0]);
  check.exact('the run ends', next.done, true);
  compareIds('x_final', 0);
}

const isGreedy = ({ variant = '', args }) => variant.startsWith('evaluation') && args.top_k === 1;

/** Kind to what replays it; null: not yet. */
module.exports = {
  dream_forward: () => dreamForwardCase,
  sdar_forward: () => blockForwardCase,
  sdar_forward_cached: () => blockCacheCase,
  fastdllm2_forward: () => subBlockCacheCase,
  sdar_gen: (_name, description) => (isGreedy(description) ? greedyBlocksCase : null),
};
