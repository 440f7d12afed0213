// A training run in a process of its own, for test/resume.test.ts to kill. Arguments: stage, model folder, run folder,
// and optionally the step after which it waits for ever.
const path = require('node:path');
const { datasets, GrpoTrainer, loadModel, rewards, trainMaskedDiffusion, trainPlanner } = require('../dist/index.js');

/**
 * Runs of the three trainers with everything that a checkpoint has to remember: schedules, evaluation, several updates
 * per batch.
 */
function start(stage, model, outputDir) {
  const dataset = datasets.byName('free8');
  const shared = {
    dataset,
    outputDir,
    resume: true,
    maxSteps: 24,
    saveEvery: 4,
    keepLast: 2,
    evalEvery: 6,
    evalExamples: 8,
    seed: 11,
  };
  const rates = { learningRate: 3e-3, schedule: 'cosine', warmupSteps: 5 };
  switch (stage) {
    case 'sft':
      return trainMaskedDiffusion(model, { ...shared, ...rates, batchSize: 16, gradientAccumulation: 2 });
    case 'examples':
      return trainMaskedDiffusion(model, {
        ...shared,
        ...rates,
        lora: { rank: 2 },
        dataset: {
          examples: dataset.sample('train', 37, 1),
          validation: dataset.sample('validation', 8, 1),
          genLength: 8,
        },
        batchSize: 16,
      });
    case 'mixture':
      return trainMaskedDiffusion(model, {
        ...shared,
        ...rates,
        dataset: { examples: dataset.sample('train', 60, 1), validation: dataset.sample('validation', 20, 1) },
        mixture: [{ steps: 7, shares: { copy: 1 } }, { steps: 6 }, { shares: { copy: 1, sort: 2.5, swap: 0 } }],
        padding: { share: 0.5, min: 10, max: 14, tail: 3 },
        lossPer: 'token',
        evalSampler: { type: 'confidence', threshold: 0.9 },
        maxTokens: 12,
        batchSize: 8,
        gradientAccumulation: 2,
      });
    case 'planner':
      return trainPlanner(model, { ...shared, ...rates, batchSize: 16, minSpan: 4, momentDtype: 'bfloat16' });
    case 'grpo':
      return new GrpoTrainer(model, {
        ...shared,
        ...rates,
        promptsPerStep: 4,
        numGenerations: 4,
        numIterations: 2,
        rewards: { steps: rewards.stepPenalty({ form: 'sqrt' }) },
      }).train();
    default:
      throw new Error(`unknown stage ${stage}`);
  }
}

async function main([stage, folder, outputDir, hold]) {
  const model = await loadModel(folder);
  for await (const { step } of start(stage, model, path.resolve(outputDir))) {
    process.stdout.write(`${step}\n`);
    if (step === Number(hold)) await new Promise(() => setInterval(() => {}, 1000));
  }
  model.dispose();
}

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error.code ?? ''} ${error.stack}\n`);
  process.exitCode = 1;
});
