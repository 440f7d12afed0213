// The watch over a program's time, with clocks of the test's own: only the order of events counts.
import { defaultWallSeconds, TimeLimit } from '../lib/grading/time-limit';

/** The reason for which a limit ends a program whose CPU clock shows these values, the last of them for ever. */
const reasonFor = (readings: (number | null)[], cpuSeconds: number, wallSeconds: number): Promise<string> =>
  new Promise((resolve) => {
    const rest = [...readings];
    const clock = async () => (rest.length > 1 ? rest.shift()! : rest[0]);
    void new TimeLimit(clock, { cpuSeconds, wallSeconds }, resolve).start();
  });

test('CPU time counts from the start; what was used before does not', async () => {
  expect(await reasonFor([7, 7.5], 0.05, 1000)).toBe('more than 0.05 s of CPU time');
  expect(await reasonFor([7, 7, 7.02, 7.04, 7.5], 0.05, 1000)).toBe('more than 0.05 s of CPU time');
});

test('a program that uses no CPU time ends at the wall limit', async () => {
  expect(await reasonFor([7], 0.01, 0.1)).toBe('longer than 0.1 s');
});

test('without a clock, or when its process is gone, the wall limit alone counts', async () => {
  expect(await reasonFor([null], 0.01, 0.05)).toBe('longer than 0.05 s');
  expect(await reasonFor([7, null], 0.01, 0.05)).toBe('longer than 0.05 s');
});

test('a program that ends by itself is not ended', async () => {
  const onEnd = jest.fn();
  const limit = new TimeLimit(async () => 0, { cpuSeconds: 0.01, wallSeconds: 0.02 }, onEnd);
  await limit.start();
  limit.stop();
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(onEnd).not.toHaveBeenCalled();
});

test('the wall limit leaves room for a busy machine', () => {
  expect([0.1, 2, 10].map(defaultWallSeconds)).toEqual([60, 60, 100]);
});
