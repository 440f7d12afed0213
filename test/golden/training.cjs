// The training kinds: losses and gradients of masked-diffusion fine-tuning, planner initialisation and GRPO, AdamW, and
// the rollout step. Everything comes from case.json and the tensors; the arithmetic under test is the package's
// (`training.*`, `model.createTrainer`).

const { compareGradients, rowsRequest, withTrainer } = require('./gradients.cjs');

const range = (n) => Array.from({ length: n }, (_, i) => i);

async function sftCase(dultra, model, { description, inputs, expected, grads }, check) {
  const { args, tolerance } = description;
  const [batch, length] = inputs.input_ids.shape;
  const { maskRow, maskedDiffusionLoss } = dultra.training;
  const row = (array, b) => array.slice(b * length, (b + 1) * length);

  const run = async (trainer, pretraining) => {
    const masked = range(batch).map((b) =>
      maskRow(Int32Array.from(row(inputs.input_ids.data, b)), {
        begin: pretraining ? 0 : inputs.prompt_lengths.data[b],
        t: inputs.u_t.data[b],
        epsilon: args.eps,
        uniforms: row(inputs.u_mask.data, b),
        maskTokenId: args.mask_id,
      }),
    );
    masked.forEach((part, b) => {
      const wanted = row((pretraining ? expected.pretrain_noisy : expected.noisy).data, b);
      part.ids.forEach((id, i) => check.exact(`noisy row ${b} position ${i}`, id, wanted[i]));
      row(expected.p_mask.data, b).forEach((p, i) =>
        check.close('p_mask', `row ${b} position ${i}`, part.maskProbability, p, 1e-6),
      );
    });
    const request = rowsRequest(
      masked.flatMap((part) => Array.from(part.ids)),
      batch,
      length,
      masked.map((part) => Array.from(part.positions)),
      { tokens: Int32Array.from(masked.flatMap((part) => Array.from(part.tokens))) },
    );
    const { logProbs } = await trainer.score(request);
    let loss = 0;
    const gradient = [];
    masked.forEach((part, b) => {
      const answer = pretraining ? batch * length : (length - inputs.prompt_lengths.data[b]) * batch;
      const begin = request.candidateOffsets[b];
      const values = logProbs.slice(begin, request.candidateOffsets[b + 1]);
      const result = maskedDiffusionLoss(values, 1 / (part.maskProbability * answer));
      loss += result.loss;
      gradient.push(...result.dLogProbs);
    });
    const { atol, rtol } = tolerance.loss;
    const wanted = pretraining ? expected.pretrain_loss.data[0] : expected.loss.data[0];
    check.close(pretraining ? 'pretrain_loss' : 'loss', '', loss, wanted, atol, rtol);
    return Float32Array.from(gradient);
  };

  await withTrainer(model, {}, async (trainer) => {
    await run(trainer, true);
    await trainer.backward({ dLogProbs: await run(trainer, false) });
    compareGradients(check, await trainer.gradients(), grads);
  });
}

async function plannerInitCase(dultra, model, { description, inputs, expected, grads }, check) {
  const { args, tolerance } = description;
  const [batch, length] = inputs.input_ids.shape;
  const { factorTargets, positiveWeight, binaryCrossEntropy } = dultra.training;
  const ids = Array.from(inputs.input_ids.data);
  const candidates = range(batch).map((b) => range(length).filter((i) => inputs.block_index.data[b * length + i]));
  const timestep = Float32Array.from(range(batch), (b) => {
    const masks = ids.slice(b * length, (b + 1) * length).filter((id) => id === args.mask_id).length;
    return 1 - Math.fround(masks / length);
  });
  timestep.forEach((t, b) => check.close('timestep', `row ${b}`, t, expected.timestep.data[b], 1e-6));
  await withTrainer(model, { freezeBase: true }, async (trainer) => {
    const request = rowsRequest(ids, batch, length, candidates, {
      confidences: true,
      planner: { timestep, maskIndex: Uint8Array.from(inputs.block_index.data) },
    });
    const { confidences, plannerLogits } = await trainer.score(request);
    // The reference's targets: the last pair goes together, and the mask token is a legal prediction.
    const targets = candidates.map((_, b) =>
      factorTargets(confidences.slice(request.candidateOffsets[b], request.candidateOffsets[b + 1]), args.factor, {
        lastPair: true,
      }),
    );
    candidates.forEach((positions, b) => {
      for (let i = 0; i < length; i++) {
        const at = positions.indexOf(i);
        check.exact(
          `target row ${b} position ${i}`,
          at < 0 ? 0 : targets[b][at],
          expected.targets.data[b * length + i],
        );
      }
    });
    const flat = Uint8Array.from(targets.flatMap((part) => Array.from(part)));
    const positives = flat.reduce((sum, target) => sum + target, 0);
    check.exact('positives', positives, description.positives);
    check.exact('negatives', flat.length - positives, description.negatives);
    const { loss, dLogits } = binaryCrossEntropy(
      plannerLogits,
      flat,
      positiveWeight(positives, flat.length),
      flat.length > 0 ? 1 / flat.length : 0,
    );
    check.close('loss', '', loss, expected.loss.data[0], tolerance.loss.atol, tolerance.loss.rtol);
    await trainer.backward({ dPlannerLogits: dLogits });
    compareGradients(check, await trainer.gradients(), grads);
  });
}

async function grpoCase(dultra, model, { description, inputs, expected, grads }, check) {
  const {
    args,
    batch,
    prompt_length: promptLength,
    num_steps: steps,
    sampling_traj: trajectory,
    tolerance,
  } = description;
  const { referenceGrpoLoss } = dultra.training;
  const maxTokens = args.max_completion_length;
  const length = promptLength + maxTokens;
  const chunkRows = Math.floor(batch / 2);
  const chunks = expected.loss_per_step.shape[0];
  const sliced = !/^NOT sliced/i.test(description.reference_log_probabilities ?? '');
  const advantages = Array.from(inputs.advantages.data, (a) => (a < args.advantage_min_clip ? 0 : a));
  const dense = (tensor, b, s) => tensor.data.slice((b * steps + s) * length, (b * steps + s + 1) * length);
  const rowIds = range(batch).map((b) => [
    ...inputs.prompt_ids.data.subarray(b * promptLength, (b + 1) * promptLength),
    ...new Array(maxTokens).fill(args.mask_id),
  ]);
  // All rows stand in the same block, which ends when no row has a mask in it.
  let block = 0;
  const windowEnd = () => promptLength + Math.min(maxTokens, (block + 1) * args.block_length);
  let total = 0;
  await withTrainer(model, {}, async (trainer) => {
    for (let s = 0; s < steps; s++) {
      while (windowEnd() < length && rowIds.every((ids) => !ids.slice(0, windowEnd()).includes(args.mask_id))) block++;
      const candidates = rowIds.map((ids) => range(windowEnd()).filter((i) => ids[i] === args.mask_id));
      rowIds.forEach((ids, b) => {
        ids.forEach((id, i) =>
          check.exact(`cur_input row ${b} step ${s} position ${i}`, id, dense(expected.cur_input, b, s)[i]),
        );
      });
      const request = rowsRequest(rowIds.flat(), batch, length, candidates, {
        tokens: Int32Array.from(
          candidates.flatMap((positions, b) => positions.map((i) => dense(inputs.x0_hist, b, s)[i])),
        ),
        excludedToken: args.mask_id,
        planner: {
          timestep: Float32Array.from(
            rowIds,
            (ids) => 1 - Math.fround(ids.filter((id) => id === args.mask_id).length / length),
          ),
          maskIndex: Uint8Array.from(
            rowIds.flatMap((ids, b) => ids.map((_, i) => (candidates[b].includes(i) ? 1 : 0))),
          ),
        },
        policy: {
          selected: Uint8Array.from(
            candidates.flatMap((positions, b) => positions.map((i) => (trajectory[b][s].includes(i) ? 1 : 0))),
          ),
          forced: new Uint8Array(batch),
          plannerTemperature: 1,
          probabilityScale: 1,
          referenceLikelihood: true,
        },
      });
      const { logLikelihoods, plannerLogits } = await trainer.score(request);
      const idle = trajectory.map((row) => row[s].length === 0);
      const current = candidates.map((positions, b) => {
        const values = new Float32Array(length);
        if (!idle[b]) positions.forEach((i, at) => (values[i] = logLikelihoods[request.candidateOffsets[b] + at]));
        return values;
      });
      const gradient = new Float32Array(logLikelihoods.length);
      for (let chunk = 0; chunk < chunks; chunk++) {
        const members = range(batch).filter((b) => Math.floor(b / chunkRows) === chunk);
        const dummy = members.every((b) => idle[b]);
        check.exact(`dummy_step chunk ${chunk} step ${s}`, dummy ? 1 : 0, expected.dummy_step.data[chunk * steps + s]);
        const rows = members.map((b) => ({
          advantage: advantages[b],
          idle: idle[b],
          logLikelihoods: current[b],
          oldLogLikelihoods: dense(inputs.old_per_token_logps, b, s),
          references:
            args.beta > 0 ? (sliced ? [b] : range(batch)).map((r) => dense(inputs.ref_per_token_logps, r, s)) : [],
        }));
        const result = referenceGrpoLoss(rows, {
          clipEpsilonLow: args.epsilon_low,
          clipEpsilonHigh: args.epsilon_high,
          delta: args.delta,
          beta: args.beta,
          maxTokens,
          accumulation: args.gradient_accumulation_steps,
        });
        total += result.loss;
        const { atol, rtol } = tolerance.loss_per_step;
        const where = `chunk ${chunk} step ${s}`;
        check.close('loss_per_step', where, result.loss, expected.loss_per_step.data[chunk * steps + s], atol, rtol);
        members.forEach((b, r) => {
          const at = b * steps + s;
          if (!dummy)
            check.close(
              'ratio',
              `row ${b} step ${s}`,
              result.ratios[r],
              expected.ratio.data[at],
              0,
              tolerance.ratio.rtol,
            );
          candidates[b].forEach((i, k) => (gradient[request.candidateOffsets[b] + k] = result.dLogLikelihoods[r][i]));
        });
      }
      current.forEach((values, b) => {
        values.forEach((value, i) => {
          const where = `row ${b} step ${s} position ${i}`;
          check.close(
            'per_token_logps',
            where,
            value,
            dense(expected.per_token_logps, b, s)[i],
            tolerance.per_token_logps,
          );
        });
        candidates[b].forEach((i, k) => {
          if (idle[b]) return;
          const p = 1 / (1 + Math.exp(-plannerLogits[request.candidateOffsets[b] + k]));
          check.close(
            'unmasking_prob',
            `row ${b} step ${s} position ${i}`,
            p,
            dense(expected.unmasking_prob, b, s)[i],
            1e-4,
          );
        });
      });
      await trainer.backward({ dLogLikelihoods: gradient });
      trajectory.forEach((row, b) => {
        for (const i of row[s]) rowIds[b][i] = inputs.completion_ids.data[b * maxTokens + i - promptLength];
      });
    }
    check.close(
      'total_loss',
      '',
      total,
      expected.total_loss.data[0],
      tolerance.total_loss.atol,
      tolerance.total_loss.rtol,
    );
    compareGradients(check, await trainer.gradients(), grads);
  });
}

async function gradFullCase(_dultra, model, { description, inputs, expected, grads }, check) {
  const { tolerance } = description;
  const [batch, length] = inputs.ids.shape;
  await withTrainer(model, {}, async (trainer) => {
    const request = rowsRequest(inputs.ids.data, batch, length, new Array(batch).fill(range(length)), {
      logits: true,
      planner: { timestep: inputs.timestep.data, maskIndex: Uint8Array.from(inputs.mask_index.data) },
    });
    const { logits, plannerLogits } = await trainer.score(request);
    let objective = 0;
    logits.forEach((x, i) => {
      check.close('logits', `[${i}]`, x, expected.logits.data[i], tolerance.logits);
      objective += x * inputs.upstream_logits.data[i];
    });
    plannerLogits.forEach((x, i) => {
      check.close('planner_logits', `[${i}]`, x, expected.planner_logits.data[i], tolerance.planner_logits);
      objective += x * inputs.upstream_planner.data[i];
    });
    check.close(
      'objective',
      '',
      objective,
      expected.objective.data[0],
      tolerance.objective.atol,
      tolerance.objective.rtol,
    );
    await trainer.backward({
      dLogits: inputs.upstream_logits.data,
      dPlannerLogits: inputs.upstream_planner.data,
    });
    compareGradients(check, await trainer.gradients(), grads);
  });
}

async function gradPlannerCase(_dultra, model, { description, inputs, expected, grads }, check) {
  const { tolerance } = description;
  const [batch, length] = inputs.mask_index.shape;
  await withTrainer(model, { freezeBase: true }, async (trainer) => {
    const request = rowsRequest(
      new Array(batch * length).fill(0),
      batch,
      length,
      new Array(batch).fill(range(length)),
      {
        hidden: inputs.hidden.data,
        planner: { timestep: inputs.timestep.data, maskIndex: Uint8Array.from(inputs.mask_index.data) },
      },
    );
    const { plannerLogits } = await trainer.score(request);
    let objective = 0;
    plannerLogits.forEach((x, i) => {
      check.close('planner_logits', `[${i}]`, x, expected.planner_logits.data[i], tolerance.planner_logits);
      objective += x * inputs.upstream.data[i];
    });
    check.close(
      'objective',
      '',
      objective,
      expected.objective.data[0],
      tolerance.objective.atol,
      tolerance.objective.rtol,
    );
    const { dHidden } = await trainer.backward({ dPlannerLogits: inputs.upstream.data });
    const wanted = { ...grads, hidden: expected.grad_hidden };
    compareGradients(check, [...(await trainer.gradients()), { name: 'hidden', data: dHidden }], wanted);
  });
}

async function adamwCase(dultra, _model, { description, inputs, expected }, check) {
  const { args, tolerance } = description;
  const names = Object.keys(inputs)
    .filter((name) => name.startsWith('param.'))
    .map((name) => name.slice('param.'.length));
  const state = names.map((name) => ({
    parameter: inputs[`param.${name}`].data,
    expAvg: new Float32Array(inputs[`param.${name}`].data.length),
    expAvgSq: new Float32Array(inputs[`param.${name}`].data.length),
  }));
  const steps = args.lr_per_step?.length ?? description.global_grad_norm_per_step.length;
  for (let s = 0; s < steps; s++) {
    const gradients = names.map((name) => inputs[`step${s}.grad.${name}`].data);
    const norm = Math.sqrt(gradients.reduce((sum, g) => sum + g.reduce((part, x) => part + x * x, 0), 0));
    check.close('global_grad_norm', `step ${s}`, norm, description.global_grad_norm_per_step[s], 1e-6, 1e-5);
    const gradientScale = Math.min(1, args.max_grad_norm / (norm + 1e-6));
    for (let k = 0; k < names.length; k++) {
      const [beta1, beta2] = args.betas;
      const lr = args.lr_per_step?.[s] ?? args.lr;
      const weightDecay = args.weight_decay;
      state[k] = await dultra.kernels.adamw(
        { ...state[k], gradient: gradients[k] },
        { step: s + 1, lr, beta1, beta2, eps: args.eps, weightDecay, gradientScale },
      );
      const clipped = expected[`step${s}.clipped_grad.${names[k]}`];
      const compare = (quantity, actual, wanted, { atol, rtol }) =>
        wanted?.data.forEach((value, i) =>
          check.close(quantity, `${names[k]} step ${s} [${i}]`, actual[i], value, atol, rtol),
        );
      compare(
        'clipped_grad',
        gradients[k].map((g) => g * gradientScale),
        clipped,
        { atol: 1e-7, rtol: 1e-5 },
      );
      compare('param', state[k].parameter, expected[`step${s}.param.${names[k]}`], tolerance.param);
      if (s + 1 < steps) continue;
      compare('exp_avg', state[k].expAvg, expected[`final.exp_avg.${names[k]}`], tolerance.exp_avg);
      compare(
        'exp_avg_sq',
        state[k].expAvgSq,
        expected[`final.exp_avg_sq.${names[k]}`],
        tolerance.exp_avg_sq ?? tolerance.exp_avg,
      );
    }
  }
}

async function rolloutCase(dultra, model, { description, inputs, expected }, check) {
  const { args, batch, num_steps: steps, sampling_traj: trajectory, tolerance } = description;
  const { totalRewards, computeAdvantages } = dultra.training;
  const promptLength = inputs.prompt_ids.shape[1];
  const maxTokens = args.max_completion_length;
  const length = promptLength + maxTokens;
  const vocabulary = inputs.gumbel_u.shape[3];
  // Padded prompts, replayed with the pads as ordinary tokens, which is what the reference's attention makes of them.
  const prompts = range(batch).map((b) => ({
    promptIds: Array.from(inputs.prompt_ids.data.subarray(b * promptLength, (b + 1) * promptLength)),
  }));
  const recorded = ({ step, row, positions }) => {
    const at = (step * batch + row) * length;
    const token = new Float64Array(positions.length * vocabulary);
    positions.forEach((p, i) => {
      const uniforms = inputs.gumbel_u.data.subarray((at + p) * vocabulary, (at + p + 1) * vocabulary);
      token.set(
        uniforms.map((u) => Math.max(u, 2.3e-308)),
        i * vocabulary,
      );
    });
    return { token, position: Float64Array.from(positions, (p) => inputs.rand_u.data[at + p]) };
  };
  const options = {
    maxTokens,
    blockLength: args.block_length,
    temperature: args.temperature,
    research: { compat: 'reference' },
    sampler: { type: 'planner', select: 'bernoulli' },
  };
  const run = model.denoise(prompts, options, recorded);
  let next = await run.next();
  for (let s = 0; !next.done; s++, next = await run.next()) {
    check.exact(`step ${s} is recorded`, s < steps, true);
    if (s >= steps) break;
    for (let b = 0; b < batch; b++) {
      const row = next.value.rows.find((candidate) => candidate.row === b);
      const picked = row ? Array.from(row.positions.filter((_, i) => row.selected[i])) : [];
      check.exact(`sampling_traj row ${b} step ${s}`, JSON.stringify(picked), JSON.stringify(trajectory[b][s]));
      const values = new Float32Array(length);
      row?.positions.forEach((p, i) => {
        values[p] = row.logLikelihoods[i];
        check.exact(
          `x0_hist row ${b} step ${s} position ${p}`,
          row.tokens[i],
          expected.x0_hist.data[(b * steps + s) * length + p],
        );
      });
      values.forEach((value, i) => {
        const wanted = expected.old_per_token_logps.data[(b * steps + s) * length + i];
        check.close(
          'old_per_token_logps',
          `row ${b} step ${s} position ${i}`,
          value,
          wanted,
          tolerance.old_per_token_logps,
        );
      });
    }
  }
  const results = next.value;
  results?.forEach((result, b) => {
    const eos = result.ids.indexOf(args.eos_token_id);
    result.ids.forEach((id, i) => {
      check.exact(`completion_ids row ${b} position ${i}`, id, expected.completion_ids.data[b * maxTokens + i]);
      const counts = eos < 0 || i <= eos ? 1 : 0;
      check.exact(`completion_mask row ${b} position ${i}`, counts, expected.completion_mask.data[b * maxTokens + i]);
    });
  });
  const functions = inputs.rewards_per_func.shape[1];
  const columns = range(functions).map((k) => ({
    values: range(batch).map((b) => inputs.rewards_per_func.data[b * functions + k]),
    weight: args.reward_weights[k],
  }));
  // The reference counts a row that every function left out as 0.
  const totals = totalRewards(columns, batch).map((total) => (Number.isNaN(total) ? 0 : total));
  for (const scaleRewards of ['none', 'group', 'batch']) {
    const advantages = computeAdvantages(totals, {
      groupSize: args.num_generations,
      scaleRewards,
      advantageMinClip: null,
    });
    const { atol, rtol } = tolerance.advantages;
    advantages.forEach((a, b) =>
      check.close(
        'advantages',
        `${scaleRewards} row ${b}`,
        a,
        expected[`advantages.${scaleRewards}`].data[b],
        atol,
        rtol,
      ),
    );
  }
}

module.exports = {
  sft_loss: sftCase,
  planner_init: plannerInitCase,
  grpo_loss: grpoCase,
  grad_full: gradFullCase,
  grad_planner: gradPlannerCase,
  adamw: adamwCase,
  rollout_advantages: rolloutCase,
};
