// The process group above gradients: alone, and with a second process's rows in GRPO's step.
import { datasets, loadModel, rewards } from '../lib';
import { type ProcessGroup, SINGLE_PROCESS } from '../lib/distributed/process-group';
import { DecisionGradient } from '../lib/training/grpo/decision-gradient';
import { resolveGrpo } from '../lib/training/grpo/options';
import { GrpoStage } from '../lib/training/grpo/stage';
import { newModelFolder } from './trained-models';

test('a single process gathers its own values', async () => {
  const values = Float64Array.of(1, 2);
  expect(await SINGLE_PROCESS.allGather(values)).toEqual([values]);
  expect([SINGLE_PROCESS.rank, SINGLE_PROCESS.size]).toEqual([0, 1]);
  await SINGLE_PROCESS.barrier();
});

test('metrics of GRPO are those of the rows of every process', async () => {
  const model = await loadModel(await newModelFolder());
  const options = {
    dataset: datasets.byName('free8'),
    rewards: { steps: rewards.stepPenalty() },
    promptsPerStep: 2,
    numGenerations: 4,
    maxSteps: 1,
  };
  const { training, data, own } = resolveGrpo(model, options, options.dataset);
  const measure = async (group: ProcessGroup) => {
    const trainer = await model.createTrainer({});
    try {
      const context = { model, trainer, data, training, maxSteps: 1, group, show: () => {} };
      return await new GrpoStage(context, own, new DecisionGradient(context, own, null)).accumulate(0);
    } finally {
      trainer.dispose();
    }
  };
  const alone = await measure(SINGLE_PROCESS);
  // The other process has the same rewards, each one higher.
  const other = (values: Float64Array) => values.map((value) => value + 1);
  const both = await measure({ ...SINGLE_PROCESS, rank: 1, size: 2, allGather: async (own) => [other(own), own] });
  expect(both.reward).toBeCloseTo(alone.reward + 0.5, 12);
  expect(both.nfe).toBeCloseTo(alone.nfe + 0.5, 12);
  // Advantages are those of its own groups.
  expect([both.loss, both.zeroAdvantage]).toEqual([alone.loss, alone.zeroAdvantage]);
  model.dispose();
});
