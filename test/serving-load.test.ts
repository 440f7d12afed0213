// A server under load and with faults: bench/serving.cjs in its short form, whose figures say nothing here.
const { run } = require('../bench/serving.cjs') as {
  run(options: { only: string[]; scale: number }): Promise<Record<string, { pass: boolean }>>;
};

test("answers are the library's under load, clients may leave, nonsense is refused, and an end is orderly", async () => {
  const only = ['mixed', 'leaving', 'silent', 'nonsense', 'overflow', 'terminate', 'broken'];
  const results = await run({ only, scale: 0.05 });
  expect(Object.keys(results)).toEqual(only);
  expect(Object.fromEntries(Object.entries(results).filter(([, { pass }]) => !pass))).toEqual({});
});

test('the faults that are planted in the scheduler have their places', () => {
  const { checkFaults } = require('../scripts/suites/faults.cjs') as { checkFaults(): void };
  expect(checkFaults).not.toThrow();
});
