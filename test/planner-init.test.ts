// Planner initialisation, through the public API.
import { newModelFolder, weightsOf, withModel } from './trained-models';
import { planner } from './trainers';

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
});

describe('planner initialisation', () => {
  test('learns the rule, and leaves the base bit for bit as it was', async () => {
    await withModel(folder, async (model) => {
      const before = await weightsOf(model);
      const metrics = await planner(model, { maxSteps: 60, batchSize: 32, learningRate: 1e-2, evalEvery: 60 });
      expect(metrics[59].evalLoss).toBeLessThan(0.9 * metrics[0].loss);
      expect(metrics[59].agreement).toBeGreaterThan(0.5);
      const after = await weightsOf(model);
      for (const [name, { raw }] of Object.entries(after))
        expect([name, raw.equals(before[name].raw)]).toEqual([name, name.startsWith('model.')]);
    });
  });
});
