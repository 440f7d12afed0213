// The kinds of distillation (dParallel, d3LLM) and of the objectives that score tokens (diffu-GRPO, TraceRL): masks,
// losses and gradients from recorded draws, and a teacher's trajectories. The arithmetic under test is the package's
// (`training.*`, `model.createTrainer`).
const { compareGradients, rowsRequest, withTrainer } = require('./gradients.cjs');

const range = (n) => Array.from({ length: n }, (_, i) => i);
const numbers = (tensor) => Array.from(tensor.data, Number);
const rowOf = (tensor, b) => {
  const width = tensor.shape.at(-1);
  return tensor.data.subarray(b * width, (b + 1) * width);
};

/** Compares a row of a recorded tensor, entry by entry. */
function exactRow(check, what, actual, tensor, b) {
  rowOf(tensor, b).forEach((wanted, i) =>
    check.exact(`${what} row ${b} position ${i}`, Number(actual[i]), Number(wanted)),
  );
}

/**
 * A pass over rows, with what a certainty loss reads of it: the label at p is scored by the logits at p − 1 where tokens
 * are shifted, so that the first position has no score.
 */
async function scoreViews(trainer, rows, { tokenShift, temperature }) {
  const scored = rows.map(({ positions }) => Array.from(positions).filter((p) => !tokenShift || p > 0));
  const tokens = rows.flatMap(({ labels }, b) => scored[b].map((p) => labels[p]));
  const shifted = scored.map((positions) => positions.map((p) => (tokenShift ? p - 1 : p)));
  const request = rowsRequest(
    rows.flatMap(({ ids }) => Array.from(ids)),
    rows.length,
    rows[0].ids.length,
    shifted,
    { tokens: Int32Array.from(tokens), confidences: true, entropyTemperature: temperature },
  );
  const { logProbs, entropies, argmax } = await trainer.score(request);
  return { logProbs, entropies, correct: Uint8Array.from(argmax, (id, i) => Number(id === tokens[i])), scored };
}

/** What both losses compare, from the views of all rows. */
async function certaintyCase(dultra, model, { description, expected, grads }, check, views, labels, options) {
  const { args, tolerance } = description;
  const { atol, rtol } = tolerance.loss;
  const passOf = { tokenShift: args.token_shift, temperature: args.temperature };
  const rowsOf = (ids, positions) =>
    views.map((view, b) => ({ ids: view[ids], positions: view[positions], labels: labels[b] }));
  const compareView = ({ entropies, correct, scored }, suffix) => {
    let at = 0;
    scored.forEach((positions, b) => {
      const wantedEntropies = expected[`entropy${suffix}`] && rowOf(expected[`entropy${suffix}`], b);
      const wantedCorrect = expected[`correct${suffix}`] && rowOf(expected[`correct${suffix}`], b);
      for (const p of positions) {
        const where = `row ${b} position ${p}`;
        if (wantedEntropies) check.close(`entropy${suffix}`, where, entropies[at], wantedEntropies[p], atol, rtol);
        if (wantedCorrect) check.exact(`correct${suffix} ${where}`, correct[at], Number(wantedCorrect[p]));
        at++;
      }
    });
  };
  await withTrainer(model, {}, async (trainer) => {
    const first = rowsOf('ids', 'positions');
    const second = options.complement ? rowsOf('complementIds', 'complementPositions') : null;
    const whole = await scoreViews(trainer, [...first, ...(second ?? [])], passOf);
    const cut = whole.scored.slice(0, first.length).reduce((sum, { length }) => sum + length, 0);
    const part = (from, to) => ({
      ...Object.fromEntries(['logProbs', 'entropies', 'correct'].map((name) => [name, whole[name].subarray(from, to)])),
    });
    const view = { ...part(0, cut), scored: whole.scored.slice(0, first.length) };
    const complement = second && { ...part(cut, undefined), scored: whole.scored.slice(first.length) };
    compareView(view, '');
    if (complement) compareView(complement, '_rev');
    const result = dultra.training.certaintyLoss(view, complement, options);
    const components = {
      ce_loss: result.crossEntropy,
      ce_loss_rev: result.complementCrossEntropy,
      entropy_loss: result.entropy,
      entropy_loss_rev: result.complementEntropy,
      loss: result.loss,
    };
    for (const [name, value] of Object.entries(components))
      if (expected[name]) check.close(name, '', value, Number(expected[name].data[0]), atol, rtol);
    const flat = (name) => Float32Array.from(result.gradients.flatMap((gradient) => Array.from(gradient[name])));
    await trainer.backward({ dLogProbs: flat('dLogProbs'), dEntropies: flat('dEntropies') });
    compareGradients(check, await trainer.gradients(), grads);
  });
}

/** Compares noisy rows and masks of both views. */
function compareMasks(check, views, expected) {
  const parts = [
    ['noisy', 'masked', 'ids', 'positions'],
    ['noisy_rev', 'masked_rev', 'complementIds', 'complementPositions'],
  ];
  views.forEach((view, b) => {
    for (const [noisy, masked, ids, positions] of parts) {
      if (expected[noisy]) exactRow(check, noisy, view[ids], expected[noisy], b);
      const flags = new Uint8Array(view.ids.length);
      for (const position of view[positions]) flags[position] = 1;
      if (expected[masked]) exactRow(check, masked, flags, expected[masked], b);
    }
  });
}

async function dparallelCase(dultra, model, files, check) {
  const { description, inputs, expected } = files;
  const { args, block_index: index, segment: wanted, batch } = description;
  const { segmentAt, segmentViews, randomMask } = dultra.training;
  check.exact('batch', batch ?? 1, 1);
  const ids = Int32Array.from(rowOf(inputs.input_ids, 0), Number);
  const begin = Number(inputs.prompt_lengths.data[0]);
  const range = { begin, answer: ids.length - begin, length: ids.length };
  const segment =
    args.region === 'response' ? { begin, end: ids.length } : segmentAt(range, args.block_size, Number(index));
  if (wanted) check.exact('segment', [segment.begin, segment.end].join(), wanted.join());
  const isMasked = randomMask(rowOf(inputs.u_mask, 0), { probability: args.mask_probability, epsilon: args.eps });
  const views = [segmentViews(ids, segment, isMasked, args.mask_id)];
  compareMasks(check, views, expected);
  await certaintyCase(dultra, model, files, check, views, [ids], {
    entropyWeight: args.entropy_weight,
    entropyOnComplement: true,
    divisor: 1,
    complement: true,
  });
}

async function d3llmCase(dultra, model, files, check) {
  const { description, inputs, expected } = files;
  const { args, rows: wanted = [] } = description;
  const { segmentAt, segmentViews, randomMask, trajectoryMask, trajectoryOfStates } = dultra.training;
  const [batch, length] = inputs.input_ids.shape;
  const maskRatio = Number(inputs.mask_ratio?.data[0] ?? description.mask_ratio);
  const steps = inputs.trajectory_steps && numbers(inputs.trajectory_steps);
  const widths = inputs.trajectory_width && numbers(inputs.trajectory_width);
  const labels = range(batch).map((b) => Int32Array.from(rowOf(inputs.input_ids, b), Number));
  const views = range(batch).map((b) => {
    const begin = Number(inputs.prompt_lengths.data[b]);
    const text = args.variant === 'dream' ? length : Number(inputs.full_lengths.data[b]);
    const segment = segmentAt(
      { begin, answer: text - begin, length },
      args.block_size,
      Number(inputs.block_index.data[b]),
    );
    let isMasked;
    let state = null;
    if (steps && steps[b] > 0) {
      const [, most, width] = inputs.trajectories.shape;
      const states = range(steps[b]).map((s) => {
        const at = (b * most + s) * width;
        return inputs.trajectories.data.subarray(at, at + widths[b]);
      });
      const trajectory = trajectoryOfStates(
        states.map((ids) => Array.from(ids, Number)),
        args.mask_id,
        0,
      );
      ({ isMasked, state } = trajectoryMask(trajectory, segment, { maskRatio, begin, shift: 0 }));
    } else isMasked = randomMask(rowOf(inputs.u_mask, b), { probability: maskRatio, epsilon: args.eps });
    const view = segmentViews(labels[b], segment, isMasked, args.mask_id);
    if (wanted[b]) {
      check.exact(`segment row ${b}`, [segment.begin, segment.end].join(), wanted[b].segment.join());
      check.exact(`state row ${b}`, state, wanted[b].trajectory_index);
      check.exact(`masked row ${b}`, view.positions.length, wanted[b].num_masked);
    }
    return view;
  });
  compareMasks(check, views, expected);
  if (files.schedule) scheduleCase(dultra, files.schedule, check);
  await certaintyCase(dultra, model, files, check, views, labels, {
    entropyWeight: args.entropy_weight,
    entropyOnComplement: args.entropy_on_complement,
    divisor: args.divisor,
    complement: args.use_complementary_loss,
  });
}

/** The curriculum of d3LLM at recorded steps. */
function scheduleCase(dultra, schedule, check) {
  const { curriculumWindow, curriculumNoise } = dultra.training;
  const noise = { min: schedule.min_mask_ratio, max: schedule.max_mask_ratio };
  for (const { step, epoch, block_size: size, mask_ratio_low: low, mask_ratio_high: high } of schedule.points) {
    check.exact(`window in step ${step}`, curriculumWindow(schedule.progressive_block_sizes, epoch), size);
    check.close('noise', `in step ${step}`, curriculumNoise(noise, step, schedule.max_steps), low, 1e-12);
    check.exact(`most noise in step ${step}`, noise.max, high);
  }
}

async function trajectoryCase(dultra, model, { description, inputs, expected }, check) {
  const { args, prompt_length: promptLength, num_states: count } = description;
  const { trajectoryOf, trajectoryOfStates, stateOf } = dultra.training;
  const promptIds = Int32Array.from(rowOf(inputs.prompt_ids, 0), Number);
  const vocabulary = inputs.u?.shape.at(-1);
  const recorded = ({ step, positions }) => {
    if (!inputs.u) return {};
    const token = new Float64Array(positions.length * vocabulary);
    positions.forEach((p, i) => {
      const at = (step * args.gen_length + p - promptLength) * vocabulary;
      token.set(
        inputs.u.data.subarray(at, at + vocabulary).map((u) => Math.max(u, 2.3e-308)),
        i * vocabulary,
      );
    });
    return { token };
  };
  const sampler =
    args.threshold === null || args.threshold === undefined
      ? { type: 'fixed', steps: args.steps, remasking: args.remasking }
      : { type: 'confidence', threshold: args.threshold };
  const options = {
    sampler,
    maxTokens: args.gen_length,
    blockLength: args.block_length,
    temperature: args.temperature,
    research: { compat: 'reference' },
  };
  const run = model.denoise([{ promptIds }], options, recorded);
  let next = await run.next();
  while (!next.done) next = await run.next();
  const [result] = next.value;
  const final = Int32Array.from([...promptIds, ...result.ids]);
  exactRow(check, 'final', final, expected.final, 0);
  const trajectory = trajectoryOf(promptIds.length, result.unmaskedAt);
  check.exact('states', trajectory.states, count);
  exactRow(check, 'reveal_step', trajectory.shownFrom.subarray(promptIds.length), expected.reveal_step, 0);
  const states = range(count).map((s) => Array.from(rowOf(expected.states, s), Number));
  states.forEach((_, s) => exactRow(check, 'states', stateOf(trajectory, final, s, args.mask_id), expected.states, s));
  const read = trajectoryOfStates(states, args.mask_id, promptIds.length);
  check.exact('stored states give the same', read.shownFrom.join(), trajectory.shownFrom.join());
}

/** Runs scored rows through an objective; compares log-probabilities, loss and gradients. */
async function tokensCase(model, rows, length, { loss, body, tolerance, grads }, check) {
  await withTrainer(model, {}, async (trainer) => {
    const request = rowsRequest(
      rows.flatMap(({ ids }) => Array.from(ids)),
      rows.length,
      length,
      rows.map(({ positions }) => Array.from(positions)),
      { tokens: Int32Array.from(rows.flatMap(({ tokens }) => Array.from(tokens))) },
    );
    const { logProbs } = await trainer.score(request);
    let total = 0;
    const gradient = rows.flatMap((row, b) => {
      const result = body(row, b, logProbs.subarray(request.candidateOffsets[b], request.candidateOffsets[b + 1]));
      total += result.loss;
      return Array.from(result.dLogProbs);
    });
    check.close('loss', '', total, loss, tolerance.loss.atol, tolerance.loss.rtol);
    await trainer.backward({ dLogProbs: Float32Array.from(gradient) });
    compareGradients(check, await trainer.gradients(), grads);
  });
}

async function diffuGrpoCase(dultra, model, { description, inputs, expected, grads }, check) {
  const { args, batch, prompt_length: begin, completion_length: completion, tolerance } = description;
  const { oneStepRow, diffuGrpoLoss } = dultra.training;
  check.exact('cfg_scale', args.cfg_scale ?? 0, 0);
  const steps = new Array(completion).fill(1);
  const counts = range(batch).map((b) => numbers({ data: rowOf(inputs.completion_mask, b) }));
  const rows = range(batch).map((b) => {
    const ids = Int32Array.from([...rowOf(inputs.prompt_ids, b), ...rowOf(inputs.completion_ids, b)], Number);
    const row = oneStepRow(
      { ids, begin, counted: completion, steps },
      { promptMask: args.p_mask_prompt, uniforms: rowOf(inputs.u_mask, b), maskTokenId: args.mask_id },
    );
    exactRow(check, 'noisy', row.ids, expected.noisy, b);
    return row;
  });
  const tokens = counts.flat().reduce((sum, counted) => sum + counted, 0);
  const options = {
    clipEpsilonLow: args.epsilon,
    clipEpsilonHigh: args.epsilon,
    beta: args.beta,
    klTo: 'reference',
    lossPer: 'token',
  };
  const body = (_row, b, logProbs) => {
    const old = rowOf(inputs.old_per_token_logps, b);
    logProbs.forEach((value, i) => {
      const where = `row ${b} token ${i}`;
      const { per_token_logps: near, ratio } = tolerance;
      check.close('per_token_logps', where, value, rowOf(expected.per_token_logps, b)[i], near.atol, near.rtol);
      check.close('ratio', where, Math.exp(value - old[i]), rowOf(expected.ratio, b)[i], ratio.atol, ratio.rtol);
    });
    // What stands behind the end of a completion does not count.
    const counted = counts[b].flatMap((counts, i) => (counts === 1 ? [i] : []));
    const take = (values) => Float32Array.from(counted, (i) => values[i]);
    const result = diffuGrpoLoss(
      {
        logProbs: take(logProbs),
        oldLogProbs: take(old),
        referenceLogProbs: args.beta > 0 ? take(rowOf(inputs.ref_per_token_logps, b)) : null,
        advantage: inputs.advantages.data[b],
      },
      { tokens, rows: batch },
      options,
    );
    const dLogProbs = new Float32Array(logProbs.length);
    counted.forEach((i, at) => (dLogProbs[i] = result.dLogProbs[at]));
    return { loss: result.loss, dLogProbs };
  };
  const loss = Number(expected.loss.data[0]);
  await tokensCase(model, rows, begin + completion, { loss, body, tolerance, grads }, check);
}

async function traceCase(dultra, model, { description, inputs, expected, grads }, check) {
  const { args, samples, tolerance } = description;
  const { traceRows, traceLoss } = dultra.training;
  const begin = args.start_pos;
  const [, length] = inputs.input_ids.shape;
  const rows = range(samples).flatMap((sample) => {
    const ids = Int32Array.from(rowOf(inputs.input_ids, sample), Number);
    const steps = numbers({ data: rowOf(inputs.step_map, sample) });
    const options = {
      shrink: args.shrink,
      maskTokenId: args.mask_id,
      padId: args.pad_id,
      keptPads: args.post_num ?? Number.POSITIVE_INFINITY,
    };
    return traceRows({ ids, begin, counted: steps.length, steps }, options).map((row) => ({ ...row, sample }));
  });
  check.exact('rows', rows.length, expected.row_owner.data.length);
  rows.forEach((row, r) => {
    exactRow(check, 'noisy', row.ids, expected.noisy, r);
    const scored = new Uint8Array(length);
    for (const position of row.positions) scored[position] = 1;
    exactRow(check, 'p_mask', scored, expected.p_mask, r);
    check.exact(`row_owner ${r}`, row.sample, Number(expected.row_owner.data[r]));
  });
  const options = {
    clipEpsilonLow: args.eps,
    clipEpsilonHigh: args.eps,
    beta: args.beta,
    klTo: 'old',
    klEstimator: args.use_kl_estimator_k3 ? 'k3' : 'k1',
    lossPer: 'row',
  };
  const tokens = rows.reduce((sum, { positions }) => sum + positions.length, 0);
  const sum = { policy: 0, kl: 0 };
  const body = ({ positions, sample }, r, logProbs) => {
    const at = (tensor) => Float32Array.from(positions, (p) => rowOf(tensor, r)[p]);
    at(expected.logp).forEach((wanted, i) =>
      check.close('logp', `row ${r} token ${i}`, logProbs[i], wanted, tolerance.logp.atol, tolerance.logp.rtol),
    );
    const row = {
      logProbs: Float32Array.from(logProbs),
      oldLogProbs: at(inputs.old_logp),
      referenceLogProbs: null,
      advantage: inputs.reward.data[sample],
    };
    const batch = { tokens, rows: rows.length };
    const result = traceLoss(row, batch, options);
    const policy = traceLoss(row, batch, { ...options, beta: 0 }).loss;
    sum.policy += policy;
    sum.kl += result.loss - policy;
    return result;
  };
  const loss = Number(expected.loss.data[0]);
  await tokensCase(model, rows, length, { loss, body, tolerance, grads }, check);
  const { atol, rtol } = tolerance.loss;
  for (const [name, value] of Object.entries({ policy_loss: sum.policy, kl_loss: sum.kl }))
    if (expected[name]) check.close(name, '', value, Number(expected[name].data[0]), atol, rtol);
}

module.exports = {
  dparallel_loss: dparallelCase,
  d3llm_loss: d3llmCase,
  d3llm_trajectory: trajectoryCase,
  diffugrpo_loss: diffuGrpoCase,
  tracerl_loss: traceCase,
};
