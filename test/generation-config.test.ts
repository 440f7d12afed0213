import { copyFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel } from '../lib';
import { modelFolder, temporaryFolder, withoutPlanner } from './helpers';

const prompt = { promptIds: [5, 17, 3] };

/** The golden model "base" with a generation_config.json. */
function withDefaults(json: unknown, from = modelFolder('base')): string {
  const folder = temporaryFolder();
  for (const file of ['config.json', 'model.safetensors']) copyFileSync(path.join(from, file), path.join(folder, file));
  writeFileSync(path.join(folder, 'generation_config.json'), JSON.stringify(json));
  return folder;
}

test('lengths and sampler are what generate does where it is told nothing', async () => {
  const sampler = { type: 'fixed', steps: 3 } as const;
  const model = await loadModel(withDefaults({ gen_length: 12, block_length: 12, sampler, eos_token_id: 5 }));
  expect(model.generationDefaults).toEqual({ genLength: 12, blockLength: 12, sampler });
  const result = await model.generate(prompt);
  expect(result.ids).toHaveLength(12);
  expect(await model.generate(prompt, { genLength: 12, blockLength: 12, sampler })).toEqual(result);
  // What the caller says comes first; a length of the caller's is not cut into the checkpoint's blocks.
  expect((await model.generate(prompt, { genLength: 7 })).ids).toHaveLength(7);
  expect((await model.generate(prompt, { sampler: { type: 'fixed' }, stopAtEos: false })).nfe).toBe(12);
  expect((await model.generate({ template: [5, 96, 96] }, { sampler: { type: 'fixed' } })).ids).toHaveLength(3);
  model.dispose();
});

test('without the file, and for a planner that is not there, the package decides', async () => {
  const plain = await loadModel(modelFolder('base'));
  expect(plain.generationDefaults).toEqual({});
  plain.dispose();
  const model = await loadModel(
    withDefaults({ gen_length: 8, sampler: { type: 'planner', select: 'round' } }, withoutPlanner('base')),
  );
  expect(model.generationDefaults).toEqual({ genLength: 8 });
  expect((await model.generate(prompt)).ids).toHaveLength(8);
  model.dispose();
});

test.each([
  [{ gen_length: 0 }, /gen_length: .*got 0/],
  [{ gen_length: 8, block_length: 3 }, /gen_length: expected a multiple of block_length \(3\), got 8/],
  [{ block_length: 3 }, /block_length: expected gen_length beside it/],
  [{ sampler: { type: 'planner', select: 'most' } }, /sampler\.select: expected "topk"/],
  [{ sampler: 'planner' }, /sampler: .*got "planner"/],
  [[], /generation_config\.json: .*got \[\]/],
])('%j is a bad checkpoint', async (json, message) => {
  await expect(loadModel(withDefaults(json))).rejects.toMatchObject({
    code: 'BAD_CHECKPOINT',
    message: expect.stringMatching(message),
  });
});
