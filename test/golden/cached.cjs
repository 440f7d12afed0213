// The kinds of cached and multi-block decoding: one row each, replayed through the public API with compat "reference".
// What every pass computes, takes from which earlier pass, may decide and decides must be equal; the candidates' logits
// come from replaying the passes through model.forward on a cache.

const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

/** Compares (rows, width) numbers with a tensor of the same count. */
function compareAll(check, quantity, actual, expected, tolerance) {
  check.exact(`${quantity} size`, actual.length, expected.data.length);
  for (let i = 0; i < expected.data.length; i++)
    check.close(quantity, `[${i}]`, actual[i], expected.data[i], tolerance);
}

/** Keys (length, heads, D) turned by the angles of their positions, in double. */
function rotate(keys, length, heads, headDim, theta) {
  const out = new Float64Array(keys.length);
  const half = headDim / 2;
  for (let p = 0; p < length; p++)
    for (let h = 0; h < heads; h++)
      for (let j = 0; j < half; j++) {
        const at = (p * heads + h) * headDim + j;
        const angle = p * theta ** ((-2 * j) / headDim);
        out[at] = keys[at] * Math.cos(angle) - keys[at + half] * Math.sin(angle);
        out[at + half] = keys[at + half] * Math.cos(angle) + keys[at] * Math.sin(angle);
      }
  return out;
}

async function cachedAttentionCase(model, { description, inputs, expected }, check) {
  const { tolerance, row_length: length } = description;
  const active = Array.from(inputs.active.data);
  const cache = await model.createCache([length]);
  try {
    const first = await model.forward({ ids: inputs.row_first.data, cache });
    compareAll(check, 'logits_first', first.logits, expected.logits_first, tolerance.logits);
    const [layers, heads, , headDim] = expected.v_cache.shape;
    for (let layer = 0; layer < layers; layer++) {
      const { keys, values } = await cache.read(layer);
      // Ours are (position, head, D), theirs (head, position, D).
      const theirs = (tensor) => {
        const out = new Float64Array(length * heads * headDim);
        for (let h = 0; h < heads; h++)
          for (let p = 0; p < length; p++)
            for (let d = 0; d < headDim; d++)
              out[(p * heads + h) * headDim + d] = tensor.data[((layer * heads + h) * length + p) * headDim + d];
        return out;
      };
      const compare = (name, actual, wanted) => {
        for (let i = 0; i < wanted.length; i++)
          check.close(name, `layer ${layer} [${i}]`, actual[i], wanted[i], tolerance.caches);
      };
      compare('v_cache', values, theirs(expected.v_cache));
      compare('k_cache_rotated', keys, theirs(expected.k_cache_rotated));
      const turned = rotate(theirs(expected.k_cache_unrotated), length, heads, headDim, model.config.ropeTheta);
      compare('k_cache_unrotated', keys, turned);
    }
    const full = await model.forward({ ids: inputs.row_second.data });
    compareAll(check, 'logits_second_full', full.logits, expected.logits_second_full, tolerance.logits);
    for (const [name, row] of [
      ['logits_dual', inputs.row_second],
      ['logits_dual_third', inputs.row_third],
    ]) {
      if (!expected[name]) continue;
      const dual = await model.forward({ ids: active.map((p) => row.data[p]), positions: active, cache });
      compareAll(check, name, dual.logits, expected[name], tolerance.logits);
    }
    if (expected.logits_prefix) {
      await model.forward({ ids: inputs.row_first.data, cache });
      const positions = range(active[0], length);
      const prefix = await model.forward({ ids: positions.map((p) => inputs.row_second.data[p]), positions, cache });
      compareAll(check, 'logits_prefix', prefix.logits, expected.logits_prefix, tolerance.logits);
    }
  } finally {
    cache.dispose();
  }
}

/** Runs a case's prompt and compares every pass with the recorded one. */
async function traceCase(model, { description, inputs, expected }, check, options) {
  const { args, tolerance, prompt_length: promptLength } = description;
  const [steps, , length] = expected.x_before.shape;
  const vocabulary = model.config.embeddingSize;
  const score = expected.confidence ? 'confidence' : 'entropy';
  const candidates = new Map();
  for (let n = 0; n < expected.cand_index.shape[0]; n++)
    candidates.set(`${expected.cand_index.data[2 * n]}:${expected.cand_index.data[2 * n + 1]}`, n);
  const prompt = { promptIds: Array.from(inputs.prompt_ids.data) };
  const cache = await model.createCache([length]);
  const source = new Array(length).fill(-1);
  let seen = 0;
  let checked = 0;
  try {
    const run = model.denoise([prompt], {
      temperature: args.temperature,
      research: { compat: 'reference' },
      ...options,
    });
    let next = await run.next();
    for (; !next.done; next = await run.next()) {
      const { step, rows } = next.value;
      if (step >= steps) {
        check.exact('passes', 'more', steps);
        await run.return();
        return;
      }
      const [row] = rows;
      const at = step * length;
      const where = (i) => `pass ${step} position ${i}`;
      const before = Array.from(expected.x_before.data.subarray(at, at + length));
      for (const p of row.computed) source[p] = step;
      const computed = new Set(row.computed);
      const place = new Map(Array.from(row.positions, (p, i) => [p, i]));
      for (let i = 0; i < length; i++) {
        check.exact(`query ${where(i)}`, computed.has(i) ? 1 : 0, expected.query.data[at + i]);
        check.exact(`kv_cached ${where(i)}`, computed.has(i) ? 0 : 1, expected.kv_cached.data[at + i]);
        check.exact(`kv_source_pass ${where(i)}`, source[i], expected.kv_source_pass.data[at + i]);
        const c = place.get(i);
        check.exact(`mask_index ${where(i)}`, c === undefined ? 0 : 1, expected.mask_index.data[at + i]);
        check.exact(
          `transfer_index ${where(i)}`,
          c === undefined ? 0 : row.selected[c],
          expected.transfer_index.data[at + i],
        );
        check.exact(`x_after ${where(i)}`, row.ids[i], expected.x_after.data[at + i]);
        if (expected.forced)
          check.exact(`forced ${where(i)}`, row.forcedPosition === i ? 1 : 0, expected.forced.data[at + i]);
        if (c === undefined) continue;
        check.exact(`x0 ${where(i)}`, row.tokens[c], expected.x0.data[at + i]);
        // Dream's confidence by entropy is the negative entropy, but in the first pass of a block.
        const isNegative = options.sampler.alg === 'entropy' && computed.size < length;
        const value = score === 'entropy' ? row.entropies[c] : isNegative ? -row.entropies[c] : row.confidences[c];
        check.close(score, where(i), value, expected[score].data[at + i], tolerance[score]);
      }
      const ids = Array.from(row.computed, (p) => before[p]);
      const { logits } = await model.forward({ ids, positions: row.computed, cache });
      const rowOf = new Map(Array.from(row.computed, (p, k) => [p, k]));
      for (const p of row.computed) {
        const n = candidates.get(`${step}:${p}`);
        if (n === undefined) continue;
        // A head that is a position ahead: the position before, or where the pass lacks it the position's own state.
        const k = (model.config.shiftLogits ? rowOf.get(p - 1) : undefined) ?? rowOf.get(p);
        checked++;
        for (let v = 0; v < vocabulary; v++)
          check.close(
            'cand_logits',
            where(p),
            logits[k * vocabulary + v],
            expected.cand_logits.data[n * vocabulary + v],
            tolerance.cand_logits,
          );
      }
      seen++;
    }
    check.exact('passes', seen, steps);
    check.exact('forward_passes', seen, description.forward_passes);
    check.exact('candidates with logits', checked, expected.cand_index.shape[0]);
    const [result] = next.value;
    const final = [...result.promptIds, ...result.ids];
    for (let i = 0; i < length; i++) check.exact(`x_final position ${i}`, final[i], expected.x_final.data[i]);
    check.exact('prompt length', result.promptIds.length, promptLength);
    check.close(
      'fullForwards',
      '',
      result.fullForwards,
      expected.query.data.reduce((sum, q) => sum + q, 0) / length,
      1e-9,
    );
  } finally {
    cache.dispose();
  }
}

const given = (value) => value !== null && value !== undefined;

async function fastDllmCachedCase(model, files, check) {
  const { args, cache: type, nfe, forward_passes: passes } = files.description;
  let sampler = { type: 'fixed', steps: args.steps };
  if (given(args.factor)) sampler = { type: 'factor', factor: args.factor };
  else if (given(args.threshold)) sampler = { type: 'confidence', threshold: args.threshold };
  // dUltra's copy, the one that knows a factor, makes no pass for a finished block.
  const cache = 'factor' in args ? { type, emptyPass: false } : { type };
  await traceCase(model, files, check, { sampler, cache, maxTokens: args.gen_length, blockLength: args.block_length });
  check.exact('nfe', nfe, passes);
}

async function dparallelCase(model, files, check) {
  const { args, cache: type, nfe, forward_passes: passes } = files.description;
  const remasking = type === 'none' ? 'low_confidence' : 'low_entropy';
  const sampler = given(args.threshold)
    ? { type: 'entropy', threshold: args.threshold }
    : { type: 'fixed', steps: args.steps, remasking };
  await traceCase(model, files, check, {
    sampler,
    cache: { type },
    maxTokens: args.gen_length,
    blockLength: args.block_length,
  });
  check.exact('nfe', nfe, passes);
}

async function d3llmCase(model, files, check) {
  const { args } = files.description;
  const {
    block_add_threshold: blockAddThreshold,
    decoded_token_threshold: decodedTokenThreshold,
    cache_delay_iter: delay,
  } = args;
  const sampler = { type: 'd3llm', threshold: args.threshold ?? 999, blockAddThreshold, decodedTokenThreshold };
  const cache = given(delay) ? { type: 'delayed', delay, every: args.refresh_interval } : { type: 'none' };
  await traceCase(model, files, check, {
    sampler,
    cache,
    maxTokens: args.max_new_tokens,
    blockLength: args.block_size,
    stopAtEos: args.early_stop,
  });
}

/** Fast-dLLM's and d3LLM's cached decoders for Dream. */
async function dreamCachedCase(model, files, check) {
  const { args, cache, rule, nfe, forward_passes: passes } = files.description;
  if (cache === 'd3llm_kv') return d3llmCase(model, files, check);
  const sampler =
    rule === 'confidence_threshold'
      ? { type: 'confidence', threshold: args.threshold }
      : { type: 'dream', alg: 'entropy', steps: args.steps, eps: args.eps };
  await traceCase(model, files, check, {
    sampler,
    cache: { type: cache },
    maxTokens: args.max_new_tokens,
    blockLength: args.block_length,
  });
  check.exact('nfe', nfe, passes);
}

const isPlain = ({ args }) => !args.top_p && !args.top_k && !args.alg_temp && args.temperature === 0;
const isDreamCached = ({ cache, rule }) =>
  cache === 'd3llm_kv'
    ? rule === 'entropy_threshold'
    : ['prefix', 'dual'].includes(cache) && ['confidence_threshold', 'entropy'].includes(rule);

module.exports = {
  dream_cached: (description) => (isPlain(description) && isDreamCached(description) ? dreamCachedCase : null),
  cached_attention: () => cachedAttentionCase,
  fastdllm_prefix: () => fastDllmCachedCase,
  fastdllm_dual: () => fastDllmCachedCase,
  dparallel: () => dparallelCase,
  d3llm: () => d3llmCase,
};
