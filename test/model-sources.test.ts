// What -m and loadModel take for a model beside a checkpoint folder: runs, and models with an adapter.
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel } from '../lib';
import { loadFailure } from './checkpoints';
import { inOneProcess } from './command-line';
import { type FixtureTensor, modelFolder, temporaryFolder, variant, writeTensors } from './helpers';

/** A run folder with a model in each of these places. */
function runWith(places: string[]): string {
  const folder = temporaryFolder();
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify({ kind: 'sft', options: {} }));
  mkdirSync(path.join(folder, 'checkpoints'));
  for (const place of places) cpSync(modelFolder('base'), path.join(folder, place), { recursive: true });
  return folder;
}

/** An adapter of the model "base" for the queries of its first block. */
function adapterFolder(): string {
  const folder = temporaryFolder();
  const tensors: Record<string, FixtureTensor> = {};
  const module = 'base_model.model.model.transformer.blocks.0.q_proj';
  for (const [name, shape] of [
    ['lora_A', [2, 64]],
    ['lora_B', [64, 2]],
  ] as const) {
    const data = Float32Array.from({ length: 128 }, (_, i) => Math.sin(i + shape[0]) / 4);
    const raw = Buffer.from(data.buffer);
    tensors[`${module}.${name}.weight`] = { dtype: 'F32', shape: [...shape], data, raw };
  }
  writeTensors(path.join(folder, 'adapter_model.safetensors'), tensors);
  const config = { peft_type: 'LORA', r: 2, lora_alpha: 4, target_modules: ['q_proj'], layers_to_transform: [0] };
  writeFileSync(path.join(folder, 'adapter_config.json'), JSON.stringify(config));
  return folder;
}

describe('run folders', () => {
  test('a finished run is its final model', async () => {
    const folder = runWith(['final', 'checkpoints/step-00000002']);
    await using model = await loadModel(folder);
    expect(model.source).toBe(path.join(folder, 'final'));
  });

  test('one that is not finished names its newest checkpoint', async () => {
    const folder = runWith([
      'checkpoints/step-00000009',
      'checkpoints/step-00000100',
      'checkpoints/.step-00000200.tmp',
    ]);
    const newest = path.join(folder, 'checkpoints', 'step-00000100');
    const { message } = await loadFailure(folder);
    expect(message).toBe(
      `${folder}: a run without its final model, since it has not come to its end; its newest checkpoint is ${newest}`,
    );
    await using model = await loadModel(newest);
    expect(model.source).toBe(newest);
    expect((await loadFailure(runWith([]))).message).toMatch(/not come to its end; it has no checkpoint yet$/);
  });

  test('weights beside them come first', async () => {
    const folder = runWith(['.', 'final']);
    await using model = await loadModel(folder);
    expect(model.source).toBe(folder);
  });
});

test('an adapter is no model', async () => {
  expect((await loadFailure(adapterFolder())).message).toMatch(
    /expected a model, got an adapter, which goes on its base/,
  );
});

test('a name that is no folder, and that the hub does not have, is both in the message', () => {
  for (const { code, stderr } of inOneProcess([
    ['info', 'nothing'],
    ['generate', '-m', 'runs/nothing', 'x'],
  ])) {
    expect(stderr).toMatch(/^dultra: no folder \.\/(runs\/)?nothing, and the hub: /);
    expect(code).toBe(1);
  }
});

test('a name near that of an embedded model names it', () => {
  for (const { code, stderr } of inOneProcess([
    ['info', 'wrld'],
    ['train', 'sft', '-d', 'st1', '-m', 'word-problem', '--dry-run'],
  ])) {
    expect(stderr).toMatch(
      /^dultra: no folder \.\/(wrld|word-problem) \(did you mean the embedded model "wor(ld|d-problems)"\?\), and/,
    );
    expect(code).toBe(1);
  }
});

describe('an adapter', () => {
  const base = modelFolder('base');
  const prompt = ['--prompt-ids', '5,17,3', '-n', '16', '--json'];
  const idsOf = ({ stdout }: { stdout: string }) => JSON.parse(stdout).result.ids as number[];

  test('--adapter merges it, and merge writes the model with it', async () => {
    const adapter = adapterFolder();
    const out = path.join(temporaryFolder(), 'merged');
    const [merge, plain, adapted, merged, info] = inOneProcess([
      ['merge', base, adapter, out],
      ['generate', '-m', base, ...prompt],
      ['generate', '-m', base, '--adapter', adapter, ...prompt],
      ['generate', '-m', out, ...prompt],
      ['info', base, '--adapter', adapter],
    ]);
    expect(merge).toEqual({ code: 0, stdout: `${out}\n`, stderr: '' });
    await using model = await loadModel(base);
    (await model.loadAdapter(adapter)).dispose();
    const ids = [...(await model.generate({ promptIds: [5, 17, 3] }, { maxTokens: 16 })).ids];
    expect(idsOf(adapted)).toEqual(ids);
    expect(idsOf(merged)).toEqual(ids);
    expect(idsOf(plain)).not.toEqual(ids);
    expect(info.code).toBe(0);
    await using fromDisk = await loadModel(out);
    expect((await fromDisk.forward({ ids: [5, 17, 3] })).logits).toEqual(
      (await model.forward({ ids: [5, 17, 3] })).logits,
    );
  });

  test('weights are stored as those of the model, or as --dtype says', () => {
    const narrow = temporaryFolder();
    const adapter = adapterFolder();
    const [first, second] = ['a', 'b'].map((name) => path.join(temporaryFolder(), name));
    const outcomes = inOneProcess([
      ['merge', base, adapter, narrow, '--dtype', 'bfloat16', '--json'],
      ['merge', narrow, adapter, first, '-q'],
      ['merge', narrow, adapter, second, '--dtype', 'float32'],
      ['info', first],
      ['info', first, '--dtype', 'float32', '--json'],
      ['info', first, '--dtype', 'float32'],
    ]);
    expect(outcomes.map(({ code, stderr }) => [code, stderr])).toEqual(outcomes.map(() => [0, '']));
    expect(JSON.parse(outcomes[0].stdout)).toEqual({ model: base, adapter, folder: narrow, dtype: 'bfloat16' });
    const typesOf = (folder: string) => {
      const bytes = readFileSync(path.join(folder, 'model.safetensors'));
      const header = JSON.parse(bytes.toString('utf8', 8, 8 + bytes.readUInt32LE(0))) as Record<
        string,
        { dtype?: string }
      >;
      return new Set(Object.values(header).flatMap(({ dtype }) => dtype ?? []));
    };
    expect([narrow, first, second].map((folder) => [...typesOf(folder)])).toEqual([['BF16'], ['BF16'], ['F32']]);
    expect(outcomes[3].stdout).toMatch(/^weights +.*, stored as bfloat16$/m);
    expect(JSON.parse(outcomes[4].stdout).model.storedDtype).toBe('bfloat16');
    expect(outcomes[5].stdout).toMatch(/^weights +.*, stored as bfloat16, held as float32$/m);
  });

  test('a folder that holds something is left as it is, and a wrong adapter leaves none', () => {
    const full = variant('base', {});
    const before = readFileSync(path.join(full, 'config.json'), 'utf8');
    const out = path.join(temporaryFolder(), 'out');
    const [occupied, file, wrong, missing] = inOneProcess([
      ['merge', base, adapterFolder(), full],
      ['merge', base, adapterFolder(), path.join(full, 'config.json')],
      ['merge', base, base, out],
      ['generate', '-m', base, '--adapter', './nowhere', ...prompt],
    ]);
    expect([occupied.code, occupied.stderr]).toEqual([
      2,
      expect.stringMatching(/^dultra: OUT: expected a new or empty folder/),
    ]);
    expect([file.code, file.stderr]).toEqual([
      2,
      expect.stringMatching(/^dultra: OUT: expected a new folder: ENOTDIR/),
    ]);
    expect([wrong.code, wrong.stderr]).toEqual([1, expect.stringMatching(/adapter_config\.json/)]);
    expect([missing.code, missing.stderr]).toEqual([1, expect.stringMatching(/nowhere.*adapter_config\.json/)]);
    expect(readFileSync(path.join(full, 'config.json'), 'utf8')).toBe(before);
    expect(existsSync(out)).toBe(false);
  });
});

test('what a checkpoint does not say of itself', async () => {
  const source = modelFolder('a2d_qwen3');
  const plain = ['generate', '-m', source, '--prompt-ids', '5,17,3', '--max-tokens', '8', '--json'];
  const [unnamed, named, wrong] = inOneProcess([
    plain,
    [...plain, '--mask-token-id', '95', '--attended-block', '4'],
    [...plain, '--mask-token-id', '95', '--attended-block', '0'],
  ]);
  expect(unnamed.stderr).toMatch(/--mask-token-id/);
  await using model = await loadModel(source, { maskTokenId: 95, blockLength: 4 });
  expect(model.config.mask).toBe('block-causal');
  const { ids } = await model.generate({ promptIds: [5, 17, 3] }, { maxTokens: 8 });
  expect(JSON.parse(named.stdout).result.ids).toEqual([...ids]);
  expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringMatching(/^dultra: --attended-block: expected/)]);
});
