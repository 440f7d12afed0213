// Replays every recorded run of the reference implementation that this version knows.
import { readdirSync } from 'node:fs';
import path from 'node:path';
import * as dultra from '../lib';

type Result = { name: string; status: 'passed' | 'failed' | 'skipped'; detail: string };
const { runGolden } = require('./golden/runner.cjs') as {
  runGolden(api: typeof dultra, root: string, options: { only?: (name: string) => boolean }): Promise<Result[]>;
};

const folder = path.join(__dirname, 'fixtures', 'golden');
const cases = readdirSync(folder).filter((name) =>
  /^(forward|gen|fastdllm|cached_attention|dparallel|d3llm|sft|planner_init|grpo|grad|adamw|rollout|dream|sdar|fastdllm2|lladamoe|llada2|llada21)_/.test(
    name,
  ),
);

test('the fixtures are there', () => expect(cases.length).toBeGreaterThanOrEqual(72));

test.each(cases)('%s', async (name) => {
  const [result] = await runGolden(dultra, folder, { only: (candidate: string) => candidate === name });
  expect(result).toMatchObject({ name, status: 'passed' });
});
