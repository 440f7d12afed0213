// GRPO with a custom reward: node examples/custom-reward.mjs [steps]
import { datasets, GrpoTrainer, loadModel, rewards } from 'dultra';

const maxSteps = Number(process.argv[2] ?? 30);
// An embedded model for word problems, before GRPO. Training changes it in memory; model.save(folder) writes it.
const model = await loadModel('word-problems-base');

/**
 * A reward is a function: it takes a batch of rollouts and returns one number for each, or null to leave it out.
 * This one is higher for fewer words.
 */
const short = ({ completions }) => completions.map((text) => (text === '' ? null : -text.split(' ').length / 10));

const trainer = new GrpoTrainer(model, {
  dataset: datasets.byName('st1'),
  maxSteps,
  promptsPerStep: 8,
  numGenerations: 8,
  learningRate: 3e-4,
  rewards: { right: { fn: rewards.exactAnswer, weight: 2 }, short },
});
for await (const metrics of trainer.train()) {
  const words = -10 * metrics['reward/short'];
  const { step, reward, accuracy, nfe } = metrics;
  console.log(
    `step ${step}: reward ${reward.toFixed(2)}, ${(100 * accuracy).toFixed(0)} % right, ${words.toFixed(1)} words, ${nfe.toFixed(1)} passes`,
  );
}
await trainer.dispose();
model.dispose();
