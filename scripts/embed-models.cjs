// Puts trained models where the package finds them (lib/model/embedded.ts): of each task the one with its initialised
// planner, before GRPO, and the one after it. Weights are split into base.safetensors and planner.safetensors.
//
//   node scripts/embed-models.cjs world runs/world/planner/final runs/world/grpo-0/final
//   node scripts/embed-models.cjs word-problems runs/tiny-planner/final runs/tiny-grpo/final
const { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { loadModel } = require('../dist/index.js');
const { findSafetensors } = require('../dist/files/weight-files.js');
const { readSafetensors, writeSafetensors } = require('../dist/files/safetensors.js');

const root = path.resolve(__dirname, '..');
const PLANNER = { type: 'planner', select: 'round' };
/**
 * Of each task the names of both, how the weights are stored, and decoding that suits the models: see models/README.md
 * and docs/results.md. The planner's rounded count does not lose a pass where the sum is just below a whole number.
 */
const TASKS = {
  world: {
    names: ['world', 'world-grpo'],
    dtype: 'bfloat16',
    length: 48,
    samplers: [{ type: 'factor', factor: 1 }, PLANNER],
  },
  'word-problems': {
    names: ['word-problems-base', 'word-problems'],
    dtype: 'float32',
    length: 24,
    samplers: [PLANNER, PLANNER],
  },
};

async function embed(from, name, sampler, { dtype, length }) {
  const to = path.join(root, 'models', name);
  // How questions are asked follows from the data, not from the weights.
  const decisions = path.join(to, 'decision.json');
  const asked = existsSync(decisions) ? readFileSync(decisions) : null;
  rmSync(to, { recursive: true, force: true });
  mkdirSync(to, { recursive: true });
  if (asked) writeFileSync(decisions, asked);
  const saved = mkdtempSync(path.join(os.tmpdir(), 'dultra-embed-'));
  const model = await loadModel(from, { device: 'cpu' });
  await model.save(saved, { dtype });
  model.dispose();
  const parts = { base: new Map(), planner: new Map() };
  for (const file of await findSafetensors(saved))
    for (const [key, tensor] of await readSafetensors(file))
      parts[key.startsWith('model.') ? 'base' : 'planner'].set(key, tensor);
  for (const [part, tensors] of Object.entries(parts))
    await writeSafetensors(path.join(to, `${part}.safetensors`), tensors, { format: 'pt' });
  for (const file of ['config.json', 'tokenizer.json', 'tokenizer_config.json'])
    copyFileSync(path.join(saved, file), path.join(to, file));
  rmSync(saved, { recursive: true });
  const generation = { gen_length: length, block_length: length, sampler };
  writeFileSync(path.join(to, 'generation_config.json'), `${JSON.stringify(generation, null, 2)}\n`);
}

async function main() {
  const [task, base, trained] = process.argv.slice(2);
  if (!Object.hasOwn(TASKS, task) || !base || !trained)
    throw new Error(`usage: node scripts/embed-models.cjs ${Object.keys(TASKS).join('|')} PLANNER_MODEL GRPO_MODEL`);
  const { names, samplers } = TASKS[task];
  for (const [i, from] of [base, trained].entries()) await embed(from, names[i], samplers[i], TASKS[task]);
}

main().catch((error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});
