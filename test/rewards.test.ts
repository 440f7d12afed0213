// Rewards without a task, and those of a teacher model.
import { rewards } from '../lib';
import { newModelFolder, withModel } from './trained-models';
import { grpo } from './trainers';

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
});

describe('rewards', () => {
  test("step penalties, as the reference's", () => {
    // Rows and values that the reference recorded.
    const steps = [[4, 1, 3], [1, 1, 1, 1, 1, 1, 1, 1], [8], [2, 0, 4, 0, 2]].map((counts) =>
      counts.flatMap((count, step) => new Array(count).fill(step + 1) as number[]),
    );
    const expected = {
      sum: [-0.06, -0.16, -0.02, -0.06],
      sqrt: [-4.732050807568877, -8, -2.8284271247461903, -4.82842712474619],
      sqrt_sum: [-0.5915063509461096, -1, -0.3535533905932738, -0.6035533905932737],
    };
    for (const form of ['sum', 'sqrt', 'sqrt_sum'] as const) {
      const values = rewards.stepPenalty({ form })({
        results: steps.map((unmaskedAt) => ({ unmaskedAt })),
      } as never) as number[];
      values.forEach((value, i) => expect(value).toBeCloseTo(expected[form][i], 12));
    }
  });

  const batch = (completions: string[], answers: (string | null)[], nfe = 2) =>
    ({
      completions,
      examples: answers.map((answer) => ({ prompt: 'p', answer, category: '', meta: null })),
      results: completions.map(() => ({ nfe })),
      maxTokens: 8,
      verify: null,
    }) as never;

  test('exactAnswer, fastAnswer, format', async () => {
    expect(await rewards.exactAnswer(batch(['a  b', 'a c', 'x'], ['a b', 'a b', null]))).toEqual([1, 0, null]);
    expect(await rewards.fastAnswer({ weight: 0.4 })(batch(['a', 'b'], ['a', 'a']))).toEqual([1 + 0.4 * 0.75, 0]);
    const tagged = rewards.format(/<answer>.*<\/answer>/g, { reward: 0.5 });
    expect(tagged(batch(['<answer>1</answer>', 'no', '<answer>2</answer>'], [null, null, null]))).toEqual([
      0.5, 0, 0.5,
    ]);
    expect(() => rewards.stepPenalty({ form: 'cube' as never })).toThrow('form');
  });

  test('teacherLogProb is the mean log-probability under the teacher', async () => {
    await withModel(folder, async (teacher) => {
      const results = await teacher.generateBatch(['1 a b c d e f g h', '2 c c d a b f e a'], {
        maxTokens: 8,
        blockLength: 8,
      });
      const judge = rewards.teacherLogProb({ model: teacher, passes: 8, tokenBudget: 40 });
      const values = (await judge({
        results,
        completions: results.map(({ text }) => text),
        examples: [],
        model: teacher,
      } as never)) as number[];
      for (const [row, { promptIds, ids, tokens }] of results.entries()) {
        let sum = 0;
        for (let i = 0; i < tokens; i++) {
          const whole = [...promptIds, ...ids.slice(0, tokens)];
          whole[promptIds.length + i] = teacher.config.maskTokenId;
          const { logits } = await teacher.forward({ ids: whole });
          const v = teacher.config.embeddingSize;
          const at = Array.from(logits!.slice((promptIds.length + i) * v, (promptIds.length + i + 1) * v), (x, id) =>
            id === teacher.config.maskTokenId ? -Infinity : x,
          );
          const top = Math.max(...at);
          sum += at[ids[i]] - top - Math.log(at.reduce((s, x) => s + Math.exp(x - top), 0));
        }
        expect(values[row]).toBeCloseTo(sum / tokens, 4);
      }
    });
  });

  test('a frozen copy can judge while its twin trains', async () => {
    await withModel(folder, (teacher) =>
      withModel(folder, async (model) => {
        const [metrics] = await grpo(model, {
          maxSteps: 1,
          rewards: { teacher: rewards.teacherLogProb({ model: teacher }) },
        });
        expect(metrics.reward).toBeLessThan(0);
      }),
    );
  });
});
