// Puts trained models where the package finds them: models/base (pre-trained, with its initialised planner) and
// models/default (after GRPO, what loadModel() loads). Weights are split into base.safetensors and planner.safetensors,
// as fp32.
//
//   node scripts/embed-models.cjs runs/tiny-planner/final runs/tiny-grpo/final
const { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { findSafetensors, readSafetensors, writeSafetensors } = require('../dist/files/safetensors.js');

const root = path.resolve(__dirname, '..');
/**
 * Decoding that suits the model, see docs/results.md; the rounded count does not lose a pass where the sum is just
 * below a whole number.
 */
const GENERATION = { gen_length: 24, block_length: 24, sampler: { type: 'planner', select: 'round' } };

async function embed(from, name) {
  const to = path.join(root, 'models', name);
  rmSync(to, { recursive: true, force: true });
  mkdirSync(to, { recursive: true });
  const parts = { base: new Map(), planner: new Map() };
  for (const file of await findSafetensors(from))
    for (const [key, tensor] of await readSafetensors(file))
      parts[key.startsWith('model.') ? 'base' : 'planner'].set(key, tensor);
  for (const [part, tensors] of Object.entries(parts))
    await writeSafetensors(path.join(to, `${part}.safetensors`), tensors, { format: 'pt' });
  const config = JSON.parse(readFileSync(path.join(from, 'config.json'), 'utf8'));
  writeFileSync(path.join(to, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
  for (const file of ['tokenizer.json', 'tokenizer_config.json'])
    copyFileSync(path.join(from, file), path.join(to, file));
  writeFileSync(path.join(to, 'generation_config.json'), `${JSON.stringify(GENERATION, null, 2)}\n`);
}

async function main() {
  const [base, trained] = process.argv.slice(2);
  if (!base || !trained) throw new Error('usage: node scripts/embed-models.cjs PLANNER_MODEL GRPO_MODEL');
  await embed(base, 'base');
  await embed(trained, 'default');
}

main().catch((error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});
