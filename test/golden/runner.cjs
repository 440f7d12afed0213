// Replays cases that the reference implementation recorded (test/fixtures/golden/README.md describes the folder)
// through the public API. Discrete results must be equal; numbers must lie within the tolerance that the case states.
const { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { readTensors, writeTensors } = require('./safetensors.cjs');
const CACHED = require('./cached.cjs');
const FAMILIES = require('./families.cjs');
const { ggufCase } = require('./gguf.cjs');
const { listCases, unknownOf } = require('./known.cjs');
const { tablesCase, TABLES } = require('./tables.cjs');
const { KINDS: SAMPLED } = require('./sampled.cjs');
const A2D = require('./a2d.cjs');
const DISTILLATION = require('./distillation.cjs');
const SUB_BLOCKS_BATCH = require('./sub-blocks-batch.cjs');
const TRAINING = require('./training.cjs');

class Mismatch extends Error {}

const MAX_REPORTED = 3;

/** Collects what differs in one case, and the largest deviation per quantity. */
class Checker {
  problems = [];
  deviations = {};
  compared = 0;
  notes = new Set();

  exact(what, actual, expected) {
    this.compared++;
    if (actual !== expected) this.problems.push(`${what}: expected ${expected}, got ${actual}`);
  }

  /** |actual - expected| <= atol + rtol |expected| */
  close(quantity, where, actual, expected, atol, rtol = 0) {
    this.compared++;
    const difference = actual === expected ? 0 : Math.abs(actual - expected);
    this.deviations[quantity] = Math.max(
      this.deviations[quantity] ?? 0,
      Number.isNaN(difference) ? Infinity : difference,
    );
    if (!(difference <= atol + rtol * Math.abs(expected)))
      this.problems.push(`${quantity} ${where}: expected ${expected}, got ${actual}`);
  }

  /** Says with the result what of the case was not replayed, and why. */
  note(text) {
    this.notes.add(text);
  }

  finish() {
    if (this.problems.length > 0) {
      const more = this.problems.length - MAX_REPORTED;
      throw new Mismatch(this.problems.slice(0, MAX_REPORTED).join('; ') + (more > 0 ? `; and ${more} more` : ''));
    }
    const deviations = Object.entries(this.deviations).map(([name, value]) => `${name} ${value.toExponential(1)}`);
    return [...deviations, ...this.notes].join(', ');
  }
}

/** The case's model folder, with the case's replacement weights and end-of-sequence token where it has some. */
async function withModel(dultra, root, folder, description, options, body) {
  let directory = path.join(root, description.model);
  let temporary = null;
  const { args } = description;
  const eos = args?.early_stop ? args.eos_token_id : (args?.stopping_criteria_idx ?? args?.stop_token ?? undefined);
  if (description.weight_overrides || eos !== undefined) {
    temporary = mkdtempSync(path.join(os.tmpdir(), 'dultra-golden-'));
    const weights = path.join(directory, 'model.safetensors');
    const own = path.join(temporary, 'model.safetensors');
    if (description.weight_overrides)
      writeTensors(own, { ...readTensors(weights), ...readTensors(path.join(folder, description.weight_overrides)) });
    else copyFileSync(weights, own);
    const config = JSON.parse(readFileSync(path.join(directory, 'config.json'), 'utf8'));
    writeFileSync(
      path.join(temporary, 'config.json'),
      JSON.stringify(eos === undefined ? config : { ...config, eos_token_id: eos }),
    );
    directory = temporary;
  }
  try {
    const { mask_id: maskTokenId, block_length: blockLength = args?.block_size } = args ?? {};
    const isBlockwise = /^(sdar|fastdllm2|llada2)/.test(description.kind) || description.sampler === 'bd3lm';
    const model = await dultra.loadModel(directory, {
      ...options,
      // Forward passes have no use for it, but their configs do not name it.
      ...(/^llada(moe|2)_forward/.test(description.kind) && { maskTokenId: 0 }),
      ...(maskTokenId !== undefined && { maskTokenId }),
      ...(isBlockwise && blockLength !== undefined && { blockLength }),
    });
    try {
      return await body(model);
    } finally {
      model.dispose();
    }
  } finally {
    if (temporary) rmSync(temporary, { recursive: true, force: true });
  }
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

async function forwardCase(model, { description, inputs, expected }, check) {
  const { atol, rtol } = description.tolerance.fp32;
  const [batch, length] = inputs.ids.shape;
  const rowOffsets = Array.from({ length: batch + 1 }, (_, i) => i * length);
  const compare = (quantity, actual, wanted) => {
    check.exact(`${quantity} size`, actual.length, wanted.data.length);
    for (let i = 0; i < wanted.data.length; i++) check.close(quantity, `[${i}]`, actual[i], wanted.data[i], atol, rtol);
  };
  for (const name of ['planner_a', 'planner_b']) {
    const planner = { timestep: inputs[`${name}.timestep`].data, maskIndex: inputs[`${name}.mask_index`].data };
    const output = await model.forward({ ids: inputs.ids.data, rowOffsets, planner });
    compare('hidden', output.hidden, expected.hidden);
    compare('logits', output.logits, expected.logits);
    compare(`${name}.logits`, output.plannerLogits, expected[`${name}.logits`]);
    if (expected[`${name}.prob`]) compare(`${name}.prob`, output.plannerLogits.map(sigmoid), expected[`${name}.prob`]);
  }
}

/**
 * Runs the loop on the case's prompts and hands each step to `onStep(step, rows, idsBefore, ids)`; checks x_before,
 * x_after, x_final.
 */
async function replay(model, { description, inputs, expected }, check, options, recorded, onStep) {
  const { batch, prompt_length: promptLength, args } = description;
  const length = promptLength + args.gen_length;
  const prompts = Array.from({ length: batch }, (_, b) => ({
    promptIds: Array.from(inputs.prompt_ids.data.subarray(b * promptLength, (b + 1) * promptLength)),
  }));
  const settings = {
    maxTokens: args.gen_length,
    blockLength: args.block_length,
    temperature: args.temperature,
    research: { compat: 'reference' },
    ...options,
  };
  const ids = prompts.map(({ promptIds }) => [...promptIds, ...new Array(args.gen_length).fill(args.mask_id)]);
  const compareIds = (what, offset) => {
    for (let b = 0; b < batch; b++)
      for (let i = 0; i < length; i++)
        check.exact(`${what} row ${b} position ${i}`, ids[b][i], expected[what].data[offset + b * length + i]);
  };
  const recordedSteps = expected.x_before.shape[0];
  const run = model.denoise(prompts, settings, recorded);
  let steps = 0;
  for (let next = await run.next(); !next.done; next = await run.next()) {
    const { step, rows } = next.value;
    if (step >= recordedSteps) throw new Mismatch(`expected ${recordedSteps} steps, got more`);
    const at = step * batch * length;
    compareIds('x_before', at);
    const before = ids.map((row) => row.slice());
    for (const row of rows) ids[row.row] = Array.from(row.ids);
    compareIds('x_after', at);
    for (let b = 0; b < batch; b++) {
      const row = rows.find((candidate) => candidate.row === b) ?? null;
      onStep(step, b, row, before[b], (step * batch + b) * length, length);
    }
    steps++;
  }
  check.exact('steps', steps, recordedSteps);
  compareIds('x_final', 0);
}

async function generateCase(model, files, check) {
  const { description, inputs, expected } = files;
  const { args, batch, prompt_length: promptLength, tolerance } = description;
  const length = promptLength + args.gen_length;
  const bernoulli = args.mode === 'training';
  const sampler = { type: 'planner', select: bernoulli ? 'bernoulli' : 'topk', probabilityScale: args.factor ?? 1 };
  if (args.planner_temperature !== null && args.planner_temperature !== undefined)
    sampler.plannerTemperature = args.planner_temperature;
  const vocabulary = inputs.gumbel_u?.shape[3];
  const recorded = ({ step, row, positions }) => {
    const draws = {};
    const at = (step * batch + row) * length;
    if (inputs.rand_u) draws.position = Float64Array.from(positions, (p) => inputs.rand_u.data[at + p]);
    if (inputs.gumbel_u) {
      draws.token = new Float64Array(positions.length * vocabulary);
      positions.forEach((p, i) => {
        // A recorded 0 has infinitely negative noise; the smallest normal double stands in for it.
        const uniforms = inputs.gumbel_u.data
          .subarray((at + p) * vocabulary, (at + p + 1) * vocabulary)
          .map((u) => Math.max(u, 2.3e-308));
        draws.token.set(uniforms, i * vocabulary);
      });
    }
    return draws;
  };
  await replay(model, files, check, { sampler }, recorded, (step, b, row, before, at, size) => {
    const where = (i) => `step ${step} row ${b} position ${i}`;
    const masks = before.filter((id) => id === args.mask_id).length;
    const timestep = row ? row.timestep : Math.fround(1 - Math.fround(masks / size));
    check.close(
      'timestep',
      `step ${step} row ${b}`,
      timestep,
      expected.timestep.data[step * batch + b],
      tolerance.timestep,
    );
    check.exact(`forced step ${step} row ${b}`, row?.forced ? 1 : 0, expected.forced.data[step * batch + b]);
    if (row) check.exact(`block step ${step}`, row.block, expected.block.data[step]);
    let candidate = 0;
    for (let i = 0; i < size; i++) {
      const isCandidate = row !== null && row.positions[candidate] === i;
      check.exact(`mask_index ${where(i)}`, isCandidate ? 1 : 0, expected.mask_index.data[at + i]);
      check.exact(
        `unmasking_index ${where(i)}`,
        isCandidate ? row.selected[candidate] : 0,
        expected.unmasking_index.data[at + i],
      );
      const probability = isCandidate ? row.probabilities[candidate] : 0;
      check.close(
        'unmasking_prob',
        where(i),
        probability,
        expected.unmasking_prob.data[at + i],
        tolerance.unmasking_prob,
      );
      if (expected.sequence_logp) {
        const part = isCandidate ? row.logLikelihoods[candidate] : 0;
        check.close('sequence_logp', where(i), part, expected.sequence_logp.data[at + i], tolerance.sequence_logp);
      }
      if (!isCandidate) continue;
      check.exact(`x0 ${where(i)}`, row.tokens[candidate], expected.x0.data[at + i]);
      check.close(
        'planner_logits',
        where(i),
        row.plannerLogits[candidate],
        expected.planner_logits.data[at + i],
        tolerance.planner_logits,
      );
      if (expected.x0_logp)
        check.close('x0_logp', where(i), row.logProbs[candidate], expected.x0_logp.data[at + i], tolerance.x0_logp);
      candidate++;
    }
    check.exact(`candidates step ${step} row ${b}`, candidate, row ? row.positions.length : 0);
  });
}

async function fastDllmCase(model, files, check) {
  const { description, expected } = files;
  const { args, batch, tolerance } = description;
  let sampler;
  if (args.factor !== null && args.factor !== undefined) sampler = { type: 'factor', factor: args.factor };
  else if (args.threshold !== null && args.threshold !== undefined)
    sampler = { type: 'confidence', threshold: args.threshold };
  else sampler = { type: 'fixed', steps: args.steps, remasking: args.remasking };
  await replay(model, files, check, { sampler }, undefined, (step, b, row, _before, at, size) => {
    const where = (i) => `step ${step} row ${b} position ${i}`;
    let candidate = 0;
    for (let i = 0; i < size; i++) {
      const isCandidate = row !== null && row.positions[candidate] === i;
      check.exact(`mask_index ${where(i)}`, isCandidate ? 1 : 0, expected.mask_index.data[at + i]);
      check.exact(
        `transfer_index ${where(i)}`,
        isCandidate ? row.selected[candidate] : 0,
        expected.transfer_index.data[at + i],
      );
      if (!isCandidate) continue;
      check.exact(`x0 ${where(i)}`, row.tokens[candidate], expected.x0.data[at + i]);
      check.close(
        'confidence',
        where(i),
        row.confidences[candidate],
        expected.confidence.data[at + i],
        tolerance.confidence,
      );
      candidate++;
    }
  });
  check.exact('nfe', expected.x_before.shape[0], description.nfe);
  check.exact('batch', batch, expected.x_before.shape[1]);
}

/** Kind to what runs a case of it, by its description; null: a variant that is not known. */
const KINDS = {
  forward: () => forwardCase,
  generate: ({ args }) => (args.mode === 'training' || args.mode === 'inference' ? generateCase : null),
  fastdllm: () => fastDllmCase,
  gguf: () => ggufCase,
  ...CACHED,
  ...FAMILIES,
  ...SAMPLED,
  ...A2D,
  ...SUB_BLOCKS_BATCH,
  ...Object.fromEntries(
    Object.entries({ ...TRAINING, ...DISTILLATION, tables: tablesCase }).map(([kind, run]) => [
      kind,
      () => (model, files, check, dultra) => run(dultra, model, files, check),
    ]),
  ),
};

const detailOf = (error) => (error instanceof Mismatch ? error.message : `${error.stack ?? error}`);

/** Runs one case. @returns what was compared @throws Mismatch, or what the package under test throws */
async function runCase(dultra, root, name, load) {
  const folder = path.join(root, name);
  const description = JSON.parse(readFileSync(path.join(folder, 'case.json'), 'utf8'));
  const unknown = unknownOf(folder, description, KINDS);
  if (unknown !== null) throw new Mismatch(unknown);
  const run = KINDS[description.kind](description);
  if (!run) {
    const { kind, variant, sampler, rule, cache, args } = description;
    throw new Mismatch(
      `kind ${kind}: this variant is not known: ${JSON.stringify({ variant, sampler, rule, cache, args })}`,
    );
  }
  const check = new Checker();
  if (description.kind === 'tables') {
    const tables = Object.fromEntries(
      TABLES.map((table) => [table, JSON.parse(readFileSync(path.join(folder, `${table}.json`), 'utf8'))]),
    );
    await run(null, { description, tables }, check, dultra);
    return check.finish();
  }
  if (description.kind === 'gguf') {
    await run(
      dultra,
      { description, folder, load, expected: readTensors(path.join(folder, 'expected.safetensors')) },
      check,
    );
    if (check.compared === 0) throw new Mismatch('nothing was compared');
    return check.finish();
  }
  const tensors = (file) => (existsSync(path.join(folder, file)) ? readTensors(path.join(folder, file)) : null);
  const json = (file) => {
    const where = path.join(folder, file);
    return existsSync(where) ? JSON.parse(readFileSync(where, 'utf8')) : null;
  };
  const files = {
    description,
    inputs: readTensors(path.join(folder, 'inputs.safetensors')),
    expected: readTensors(path.join(folder, 'expected.safetensors')),
    grads: tensors('grads.safetensors'),
    schedule: json('schedule.json'),
  };
  if (description.model)
    await withModel(dultra, root, folder, description, load, (model) => run(model, files, check, dultra));
  else await run(null, files, check, dultra);
  if (check.compared === 0) throw new Mismatch('nothing was compared');
  return check.finish();
}

/**
 * Runs every case of a folder. What it does not know has failed: a kind, a variant of one, a setting, a file.
 * @param {typeof import('../../lib/index')} dultra the package under test
 * @param {string} root folder with case folders and models/
 * @param {{ only?: (name: string) => boolean, load?: object, log?: (line: string) => void }} [options]
 * @returns {Promise<{ name: string, status: 'passed' | 'failed', detail: string }[]>}
 */
async function runGolden(dultra, root, { only = () => true, load = {}, log = () => {} } = {}) {
  const results = [];
  const report = (name, status, detail) => {
    results.push({ name, status, detail });
    log(`${status === 'passed' ? 'ok  ' : 'FAIL'} ${name}  ${detail}`);
  };
  const { names, problems } = listCases(root);
  for (const { name, detail } of problems) if (only(name)) report(name, 'failed', detail);
  for (const name of names.filter(only)) {
    try {
      report(name, 'passed', await runCase(dultra, root, name, load));
    } catch (error) {
      report(name, 'failed', detailOf(error));
    }
  }
  return results;
}

/** A run in a line, and its exit code: 0 only where something has passed and nothing failed. */
function verdictOf(results) {
  const count = (status) => results.filter((result) => result.status === status).length;
  const [passed, failed] = [count('passed'), count('failed')];
  const text = `${passed} passed, ${failed} failed`;
  return { text: results.length === 0 ? `no case is there: ${text}` : text, code: failed > 0 || passed === 0 ? 1 : 0 };
}

module.exports = { runGolden, verdictOf };
