// A small model of every family, trained from nothing on the word problems st1 and decoded: accuracy and forward passes.
// The table of docs/models.md is its output: node bench/studies/families.cjs [--steps 1600] [--only sdar,dream] [--threads 1]
const { mkdtempSync, rmSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { createModel, datasets, evaluate, loadModel, trainMaskedDiffusion, trainPlanner } = require('../..');

const FAMILIES = ['llada', 'illada', 'dream', 'sdar', 'fast-dllm-v2', 'a2d-qwen3', 'a2d-qwen2'];
const SAMPLERS = ['confidence:0.9', 'planner', 'fixed'];
const SHAPE = { dModel: 64, nHeads: 4, nLayers: 3, mlpHiddenSize: 192, maxSequenceLength: 64, ropeTheta: 100, seed: 1 };
/** Of the published checkpoints SDAR's is 4 and Fast-dLLM v2's 32, which the answers of the task do not fill. */
const BLOCKS = { sdar: 4, 'fast-dllm-v2': 8 };

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '1600' },
    count: { type: 'string', default: '256' },
    threads: { type: 'string', default: '1' },
    only: { type: 'string' },
  },
});
const [steps, count, threads] = [values.steps, values.count, values.threads].map(Number);

async function run(family, dataset, folder) {
  const blockLength = BLOCKS[family];
  await createModel(folder, { ...SHAPE, family, blockLength, vocabulary: dataset.vocabulary });
  const model = await loadModel(folder, { threads });
  try {
    const sft = { dataset, maxSteps: steps, batchSize: 32, learningRate: 3e-3, maskEpsilon: 0.02, warmupSteps: 50 };
    for await (const _ of trainMaskedDiffusion(model, sft));
    const planner = { dataset, maxSteps: Math.ceil(steps / 16), batchSize: 64, learningRate: 1e-3, minSpan: 8 };
    for await (const _ of trainPlanner(model, planner));
    const { results } = await evaluate(model, { dataset, samplers: SAMPLERS, count });
    const cells = results.map(({ accuracy, nfe }) => `${(100 * accuracy).toFixed(1)} % at ${nfe.mean.toFixed(1)}`);
    const parameters = model.info.parameters.toLocaleString('en');
    console.log(
      `| ${family}${blockLength ? `, blocks of ${blockLength}` : ''} | ${parameters} | ${cells.join(' | ')} |`,
    );
  } finally {
    model.dispose();
  }
}

async function main() {
  const dataset = datasets.byName('st1');
  const root = mkdtempSync(path.join(os.tmpdir(), 'dultra-families-'));
  const wanted = values.only?.split(',') ?? FAMILIES;
  console.log(`| family | parameters | ${SAMPLERS.map((name) => `\`${name}\``).join(' | ')} |`);
  console.log(`| --- | --- | ${SAMPLERS.map(() => '---').join(' | ')} |`);
  try {
    for (const family of wanted) await run(family, dataset, path.join(root, family));
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

main();
