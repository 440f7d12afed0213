// Recorded decoding of the families Dream, SDAR and Fast-dLLM v2: replayed with the recorded random numbers. What
// every pass may decide, decides and writes must be equal.

/** Uniforms whose Gumbel noise is that of recorded numbers of Exp(1): q = -ln u. Where none is recorded, any. */
const uniformsOf = (draws) => Float64Array.from(draws, (q) => Math.min(Math.exp(-q), 1 - 2 ** -53) || 2.3e-308);

const filtersOf = ({ top_k: topK, top_p: topP }) => ({
  ...(topK && { topK }),
  ...(topP !== null && topP !== undefined && topP < 1 && { topP }),
});

/** Settings of a run of Fast-dLLM v2. */
const subBlocksOf = (args) => ({
  sampler: {
    type: 'sub-blocks',
    threshold: args.threshold,
    length: args.small_block_size,
    partCache: args.use_block_cache,
  },
  cache: { type: 'blocks' },
  maxTokens: args.max_new_tokens,
  temperature: args.temperature,
  stopAtEos: true,
  research: { compat: 'reference' },
});

/** The recorded draws of a pass's candidates, from those of every position of its window. */
function windowDraws(draws, starts) {
  const [, block, vocabulary] = draws.shape;
  return ({ step, positions }) => {
    const token = new Float64Array(positions.length * vocabulary);
    positions.forEach((p, i) => {
      const from = (step * block + p - Number(starts.data[step])) * vocabulary;
      token.set(uniformsOf(draws.data.subarray(from, from + vocabulary)), i * vocabulary);
    });
    return { token };
  };
}

/** Place of each entry of an index tensor (N, width), by its numbers joined. */
function placesOf(index) {
  const [n, width] = index.shape;
  const places = new Map();
  for (let i = 0; i < n; i++) places.set(Array.from(index.data.subarray(i * width, (i + 1) * width)).join(), i);
  return places;
}

/** Token uniforms of candidates from recorded draws (N, V) and their places. */
function tokenUniforms(draws, places, keys) {
  const vocabulary = draws.shape.at(-1);
  const out = new Float64Array(keys.length * vocabulary).fill(0.5);
  keys.forEach((key, i) => {
    const at = places.get(key);
    if (at !== undefined)
      out.set(uniformsOf(draws.data.subarray(at * vocabulary, (at + 1) * vocabulary)), i * vocabulary);
  });
  return out;
}

/** Prompts without their padding, and how much of it each has. */
function promptsOf({ batch, prompt_length: length }, { prompt_ids: ids, attention_mask: mask }) {
  return Array.from({ length: batch }, (_, b) => {
    const isReal = (i) => !mask || Number(mask.data[b * mask.shape[1] + i]) === 1;
    const all = Array.from(ids.data.subarray(b * length, (b + 1) * length), Number);
    const padding = all.findIndex((_id, i) => isReal(i));
    return { promptIds: all.slice(padding), padding };
  });
}

const DREAM_ALGS = ['entropy', 'maskgit_plus', 'topk_margin', 'origin'];

/** Dream's plain decoding, and Fast-dLLM's threshold in it. */
async function dreamCase(model, { description, inputs, expected }, check) {
  const { args, kind, tolerance, batch } = description;
  const [steps, , length] = expected.x_before.shape;
  const prompts = promptsOf(description, inputs);
  const isOrigin = args.alg === 'origin';
  const sampler =
    kind === 'dream_gen_threshold'
      ? { type: 'confidence', threshold: args.threshold, steps: args.steps }
      : { type: 'dream', alg: args.alg, steps: args.steps, algTemp: args.alg_temp ?? 0, eps: args.eps };
  const drawn = inputs.token_exp && placesOf(inputs.token_exp_index);
  const keyOf = (step, b, p) => (inputs.token_exp_index.shape[1] === 3 ? [step, b, p] : [step, p]).join();
  const at = (step, b, p) => (step * batch + b) * length + p;
  const recorded = ({ step, row, positions }) => {
    const { padding } = prompts[row];
    const places = Array.from(positions, (p) => at(step, row, p + padding));
    return {
      ...(drawn && {
        token: tokenUniforms(
          inputs.token_exp,
          drawn,
          Array.from(positions, (p) => keyOf(step, row, p + padding)),
        ),
      }),
      ...(inputs.rand_u && { position: Float64Array.from(places, (i) => inputs.rand_u.data[i]) }),
      // All 0 where nothing was drawn.
      ...(inputs.alg_exp && { position: uniformsOf(places.map((i) => inputs.alg_exp.data[i])) }),
    };
  };
  const hasDraws = drawn || inputs.rand_u || inputs.alg_exp;
  const run = model.denoise(
    prompts.map(({ promptIds }) => ({ promptIds })),
    {
      sampler,
      maxTokens: args.max_new_tokens,
      blockLength: args.max_new_tokens,
      temperature: args.temperature,
      ...filtersOf(args),
      research: { compat: 'reference' },
    },
    hasDraws ? recorded : undefined,
  );
  const ids = prompts.map(({ promptIds, padding }) => [
    ...Array.from(inputs.prompt_ids.data.subarray(0, 0)),
    ...new Array(padding).fill(null),
    ...promptIds,
    ...new Array(args.max_new_tokens).fill(args.mask_token_id),
  ]);
  const compareIds = (what, offset, b) => {
    for (let i = prompts[b].padding; i < length; i++)
      check.exact(`${what} row ${b} position ${i}`, ids[b][i], Number(expected[what].data[offset + b * length + i]));
  };
  let pass = 0;
  for (let next = await run.next(); !next.done; next = await run.next(), pass++) {
    if (pass >= steps) {
      check.exact('passes', 'more', steps);
      await run.return([]);
      return;
    }
    for (let b = 0; b < batch; b++) {
      compareIds('x_before', pass * batch * length, b);
      const row = next.value.rows.find((one) => one.row === b);
      const { padding } = prompts[b];
      const place = new Map(Array.from(row?.positions ?? [], (p, c) => [p + padding, c]));
      for (let i = padding; i < length; i++) {
        const where = `pass ${pass} row ${b} position ${i}`;
        const c = place.get(i);
        const n = at(pass, b, i);
        const selected = Number(expected.transfer_index.data[n]);
        check.exact(`mask_index ${where}`, Number(c !== undefined), Number(expected.mask_index.data[n]));
        check.exact(`transfer_index ${where}`, c === undefined ? 0 : row.selected[c], selected);
        if (c === undefined || (isOrigin && !selected)) continue;
        check.exact(`x0 ${where}`, row.tokens[c], Number(expected.x0.data[n]));
        if (isOrigin) continue;
        const score =
          args.alg === 'entropy' ? -row.entropies[c] : args.alg === 'topk_margin' ? row.margins[c] : row.confidences[c];
        check.close('confidence', where, score, expected.confidence.data[n], tolerance.confidence);
      }
      if (row) ids[b].splice(padding, length - padding, ...row.ids);
      compareIds('x_after', pass * batch * length, b);
    }
  }
  check.exact('passes', pass, steps);
  for (let b = 0; b < batch; b++) compareIds('x_final', 0, b);
}

/** SDAR: `generate.py`, its evaluation, and its engine. */
function sdarSettings({ variant = '', args }) {
  const isEngine = variant.startsWith('engine');
  const isEvaluation = variant.startsWith('evaluation');
  if (!isEngine && !isEvaluation && !variant.startsWith('generate.py')) return null;
  const steps = args.denoising_steps;
  const threshold = args.threshold ?? args.confidence_threshold ?? args.dynamic_threshold;
  const strategy = args.remasking_strategy ?? (threshold < 1 ? 'low_confidence_dynamic' : 'low_confidence_static');
  const samplers = {
    low_confidence_dynamic: { type: 'dynamic', threshold, steps },
    low_confidence_static: { type: 'dynamic', threshold: 1, steps },
    sequential: { type: 'dynamic', order: 'left_to_right', steps },
    entropy_bounded: { type: 'entropy-sum', gamma: args.eb_threshold, largest: 'included' },
  };
  if (!Object.hasOwn(samplers, strategy)) return null;
  // Top-k 1 is greedy.
  const topK = args.top_k ?? args.topk ?? 0;
  return {
    sampler: samplers[strategy],
    maxTokens: args.gen_length ?? args.max_tokens,
    temperature: args.temperature,
    confidence: isEvaluation ? 'tempered' : 'filtered',
    ...filtersOf({ top_k: topK, top_p: args.top_p ?? args.topp }),
    stopAtEos: isEngine || Boolean(args.stopping_criteria_idx),
  };
}

/**
 * SDAR's generate.py takes as many positions as its schedule says where fewer are masked, and so writes over known tokens:
 * which of them is not defined (their confidences are equal, minus infinity). dultra writes masks alone. Such a pass
 * decides its block; the run goes on behind what is recorded of it, so that every other decision is compared.
 */
const OVERWRITTEN = 'known tokens that the reference writes over are taken from the record: which ones, it leaves open';

/** Positions of the window that a pass writes over although they are known. */
function overwrittenIn(expected, pass, block) {
  const at = (i) => pass * block + i;
  return Array.from({ length: block }, (_, i) => i).filter(
    (i) => Number(expected.transfer_index.data[at(i)]) && !Number(expected.mask_index.data[at(i)]),
  );
}

async function sdarCase(model, { description, inputs, expected }, check) {
  const { args, tolerance } = description;
  const { block_length: block } = args;
  const settings = sdarSettings(description);
  const vocabulary = model.config.embeddingSize;
  const promptIds = Array.from(inputs.prompt_ids.data, Number);
  const start = (pass) => Number(expected.block_start.data[pass]);
  const recorded = inputs.exp_draws
    ? windowDraws(inputs.exp_draws, expected.block_start)
    : // Greedy: with top-k 1 no draw matters.
      ({ positions }) => ({ token: new Float64Array(positions.length * vocabulary).fill(0.5) });
  const rowLength = Math.ceil((promptIds.length + settings.maxTokens) / block) * block;
  const runFrom = (prompt, maxTokens, first) =>
    model.denoise(
      [{ promptIds: prompt }],
      { ...settings, maxTokens, cache: { type: 'blocks' }, research: { compat: 'reference' } },
      ({ step, ...rest }) => recorded({ step: step + first, ...rest }),
    );
  let run = runFrom(promptIds, settings.maxTokens, 0);
  // The whole row, or what of it is the window.
  const windowed = !expected.x_before;
  const before = expected.x_before ?? expected.block_before;
  const after = expected.x_after ?? expected.block_after;
  const width = before.shape.at(-1);
  const passes = before.shape[0];
  let ids = [...promptIds, ...new Array(rowLength - promptIds.length).fill(args.mask_id)];
  const compareIds = (what, tensor, pass) => {
    const offset = windowed ? start(pass) : 0;
    for (let i = 0; i < width; i++)
      check.exact(`${what} pass ${pass} position ${i}`, ids[offset + i], Number(tensor.data[pass * width + i]));
  };
  let pass = 0;
  let next = await run.next();
  for (; !next.done; next = await run.next(), pass++) {
    if (pass >= passes) {
      check.exact('passes', 'more', passes);
      await run.return([]);
      return;
    }
    const [row] = next.value.rows;
    compareIds('before', before, pass);
    ids = Array.from(row.ids);
    const overwritten = overwrittenIn(expected, pass, block);
    for (const i of overwritten)
      ids[start(pass) + i] = Number(after.data[pass * width + i + (windowed ? 0 : start(pass))]);
    compareIds('after', after, pass);
    let c = 0;
    for (let i = 0; i < block; i++) {
      const n = pass * block + i;
      const where = `pass ${pass} position ${i}`;
      const isMask = row.positions[c] === start(pass) + i;
      check.exact(`mask_index ${where}`, Number(isMask), Number(expected.mask_index.data[n]));
      if (!isMask) continue;
      check.exact(`x0 ${where}`, row.tokens[c], Number(expected.x0.data[n]));
      check.exact(`transfer_index ${where}`, row.selected[c], Number(expected.transfer_index.data[n]));
      check.close('confidence', where, row.confidences[c], expected.confidence.data[n], tolerance.confidence);
      if (expected.entropy)
        check.close(
          'entropy',
          where,
          row.entropies[c],
          expected.entropy.data[n],
          tolerance.entropy ?? tolerance.confidence,
        );
      c++;
    }
    check.exact(`candidates of pass ${pass}`, c, row.positions.length);
    // A pass computes its block, the prompt's or the last block's final tokens the first time, and nothing behind it.
    check.exact(`computed in pass ${pass}`, row.computed.at(-1), start(pass) + block - 1);
    check.exact(`own positions of pass ${pass}`, row.computed.at(-block), start(pass));
    if (overwritten.length > 0) check.note(OVERWRITTEN);
    const done = start(pass) + block;
    if (overwritten.length > 0 && pass + 1 < passes && done < rowLength) {
      await run.return([]);
      run = runFrom(ids.slice(0, done), rowLength - done, pass + 1);
    }
  }
  check.exact('passes', pass, passes);
  const final = expected.x_final ?? expected.x_row_final;
  if (final) ids.forEach((id, i) => check.exact(`x_final position ${i}`, id, Number(final.data[i])));
  if (expected.completion) {
    const wanted = Array.from(expected.completion.data, Number);
    const [result] = next.value;
    const got = ids.slice(promptIds.length, promptIds.length + settings.maxTokens);
    const end = got.indexOf(args.eos_token_id);
    check.exact('completion', (end < 0 ? got : got.slice(0, end + 1)).join(), wanted.join());
    check.exact('completion tokens', Math.min(result.tokens, settings.maxTokens), wanted.length);
    expected.first_unmask_steps?.data.forEach((step, i) =>
      check.exact(`first_unmask_steps ${i}`, result.unmaskedAt[i], Number(step)),
    );
  }
}

/** Fast-dLLM v2's `generate`. */
async function subBlocksCase(model, { description, inputs, expected }, check) {
  const { args, tolerance } = description;
  const [passes, , width] = expected.x_before.shape;
  const vocabulary = model.config.embeddingSize;
  const promptIds = Array.from(inputs.prompt_ids.data, Number);
  const drawn = inputs.token_exp && placesOf(inputs.token_exp_index);
  const recorded = drawn
    ? ({ step, positions }) => ({
        token: tokenUniforms(
          inputs.token_exp,
          drawn,
          Array.from(positions, (p) => [step, p].join()),
        ),
      })
    : undefined;
  const places = placesOf(expected.cand_index);
  const run = model.denoise(
    [{ promptIds }],
    { ...subBlocksOf(args), ...(args.temperature > 0 && filtersOf(args)) },
    recorded,
  );
  const block = args.block_size;
  const length = Math.ceil((promptIds.length + args.max_new_tokens) / block) * block;
  let ids = [...promptIds, ...new Array(length - promptIds.length).fill(args.mask_id)];
  const cache = await model.createCache([length]);
  const source = new Array(length).fill(-1);
  let pass = 0;
  let checked = 0;
  try {
    for (let next = await run.next(); !next.done; next = await run.next(), pass++) {
      if (pass >= passes) {
        check.exact('passes', 'more', passes);
        await run.return([]);
        return;
      }
      const [row] = next.value.rows;
      const computed = new Set(row.computed);
      for (const p of row.computed) source[p] = pass;
      const place = new Map(Array.from(row.positions, (p, c) => [p, c]));
      const at = pass * width;
      const before = ids;
      ids = Array.from(row.ids);
      for (let i = 0; i < width; i++) {
        const where = `pass ${pass} position ${i}`;
        // -1: behind the end of the row.
        for (const [what, of] of [
          ['x_before', before],
          ['x_after', ids],
        ]) {
          const wanted = Number(expected[what].data[at + i]);
          if (wanted >= 0) check.exact(`${what} ${where}`, of[i], wanted);
        }
        check.exact(`query ${where}`, Number(computed.has(i)), Number(expected.query.data[at + i]));
        const from = Number(expected.kv_source_pass.data[at + i]);
        if (from >= 0) check.exact(`kv_source_pass ${where}`, source[i], from);
        const c = place.get(i);
        check.exact(`mask_index ${where}`, Number(c !== undefined), Number(expected.mask_index.data[at + i]));
        const selected = Number(expected.transfer_index.data[at + i]);
        check.exact(`transfer_index ${where}`, c === undefined ? 0 : row.selected[c], selected);
        if (c === undefined) continue;
        check.exact(`x0 ${where}`, row.tokens[c], Number(expected.x0.data[at + i]));
        check.close('confidence', where, row.confidences[c], expected.confidence.data[at + i], tolerance.confidence);
      }
      const inputIds = Array.from(row.computed, (p) => before[p]);
      const { logits } = await model.forward({ ids: inputIds, positions: row.computed, cache });
      const rowOf = new Map(Array.from(row.computed, (p, k) => [p, k]));
      for (const p of row.positions) {
        const n = places.get([pass, p].join());
        if (n === undefined) continue;
        const k = rowOf.get(p - 1) ?? rowOf.get(p);
        checked++;
        for (let v = 0; v < vocabulary; v++)
          check.close(
            'cand_logits',
            `pass ${pass} position ${p}`,
            logits[k * vocabulary + v],
            expected.cand_logits.data[n * vocabulary + v],
            tolerance.cand_logits,
          );
      }
    }
    check.exact('passes', pass, passes);
    check.exact('forward_passes', pass, description.forward_passes);
    check.exact('candidates with logits', checked, expected.cand_index.shape[0]);
    expected.x_final.data.forEach((id, i) => check.exact(`x_final position ${i}`, ids[i], Number(id)));
  } finally {
    cache.dispose();
  }
}

const KINDS = {
  fastdllm2_gen: () => subBlocksCase,
  dream_gen: ({ args }) => (DREAM_ALGS.includes(args.alg) ? dreamCase : null),
  dream_gen_threshold: ({ args }) => (args.alg === 'confidence_threshold' ? dreamCase : null),
  sdar_gen: (description) => (sdarSettings(description) ? sdarCase : null),
};

module.exports = { KINDS, filtersOf, placesOf, subBlocksOf, windowDraws };
