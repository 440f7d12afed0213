// Files of weights: every way of storing the same weights, and everything that may be wrong with one.
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel } from '../lib';
import { type CheckpointOptions, encode, loadFailure, makeCheckpoint, type StorageType } from './checkpoints';
import { exceptOnWindows, type FixtureTensor, temporaryFolder, writeTensors } from './helpers';
import { referenceHidden, referenceLogits, referencePlanner } from './reference-model';

const WEIGHTS = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const ids = [5, 17, 3, 44, 44, 30, 44];
const planner = { timestep: [0.4], maskIndex: [0, 0, 0, 1, 1, 0, 1] };
const options = { maxTokens: 12, blockLength: 6, temperature: 0.7, seed: 5 };

/** Loads a folder, runs it, lets it go. */
async function use(folder: string, load: Parameters<typeof loadModel>[1] = {}) {
  const model = await loadModel(folder, { threads: 2, ...load });
  try {
    const { hidden, logits, plannerLogits } = await model.forward({ ids, ...(model.hasPlanner ? { planner } : {}) });
    const { ids: generated, logLikelihood } = await model.generate({ promptIds: [5, 17, 3] }, options);
    return { info: model.info, hidden, logits: logits!, plannerLogits, generated, logLikelihood };
  } finally {
    model.dispose();
  }
}

/** The same without what depends on how weights are held. */
async function outputs(folder: string, load?: Parameters<typeof loadModel>[1]) {
  const { hidden, logits, plannerLogits, generated, logLikelihood } = await use(folder, load);
  return { hidden, logits, plannerLogits, generated, logLikelihood };
}

describe('storage', () => {
  const single = makeCheckpoint;
  let expected: Awaited<ReturnType<typeof outputs>>;
  beforeAll(async () => {
    expected = await outputs(single().folder);
  });

  const mixed = (name: string): StorageType => (name.length % 3 === 0 ? 'BF16' : name.length % 3 === 1 ? 'F16' : 'F32');
  // The weights are exact in every type, and so are the widened numbers that are multiplied: the bits are the same.
  const same: [string, CheckpointOptions][] = [
    ['bf16', { dtype: 'BF16' }],
    ['fp16', { dtype: 'F16' }],
    ['mixed types', { dtype: mixed }],
    ['2 shards', { shards: 2 }],
    ['7 shards of bf16', { shards: 7, dtype: 'BF16' }],
  ];
  test.each(same)('%s gives the bits of one fp32 file', async (_name, how) => {
    expect(await outputs(single(how).folder)).toEqual(expected);
  });

  test.each(['float32', 'bfloat16', 'float16'] as const)('held as %s, whatever the file has', async (dtype) => {
    for (const stored of ['F32', 'BF16', 'F16'] as const) {
      const { folder, config, weights } = single({ dtype: stored });
      const { info, ...rest } = await use(folder, { dtype });
      expect(rest).toEqual(expected);
      // The big matrices at least are held as asked for (their rows are padded to whole panels).
      const elements = [...weights.values()].reduce((sum, { data }) => sum + data.length, 0);
      expect(info.parameters).toBe(elements);
      if (dtype === 'float32') expect(info.weightBytes).toBeGreaterThanOrEqual(3.5 * elements);
      expect(config.d_model).toBe(24);
    }
  });

  test('the numbers are those of the reference', async () => {
    const { config, weights } = single();
    const hidden = referenceHidden(config, weights, ids);
    const close = (actual: ArrayLike<number>, wanted: number[]) =>
      wanted.forEach((value, i) => {
        expect(Math.abs(actual[i] - value)).toBeLessThan(1e-4);
      });
    close(
      expected.hidden,
      hidden.flatMap((row) => Array.from(row)),
    );
    close(
      expected.logits,
      referenceLogits(config, weights, hidden).flatMap((row) => Array.from(row)),
    );
    close(
      expected.plannerLogits!,
      Array.from(referencePlanner(config, weights, hidden, planner.timestep[0], planner.maskIndex)),
    );
  });

  const kinds: [string, CheckpointOptions][] = [
    ['tied weights', { config: { weight_tying: true } }],
    ['tied weights in bf16', { config: { weight_tying: true }, dtype: 'BF16' }],
    ['one key/value head', { config: { n_kv_heads: 1 } }],
    ['a head for each query head', { config: { n_kv_heads: 6 } }],
    ['no AdaLN', { config: { use_adaln: false } }],
    ['no mask embeddings', { config: { use_mask_embeddings: false } }],
    ['three planner layers', { config: { num_head_layers: 3 } }],
    ['no planner layers', { config: { num_head_layers: 0 } }],
    ['no planner', { planner: false }],
    ['no blocks', { config: { n_layers: 0 } }],
  ];
  test.each(kinds)('%s', async (_name, how) => {
    const { folder, config, weights } = single(how);
    const output = await use(folder);
    const hidden = referenceHidden(config, weights, ids);
    const logits = referenceLogits(config, weights, hidden).flatMap((row) => Array.from(row));
    logits.forEach((value, i) => {
      expect(Math.abs(output.logits[i] - value)).toBeLessThan(1e-4);
    });
    if (how.planner === false) {
      expect(output.plannerLogits).toBeNull();
      expect(output.info.plannerParameters).toBe(0);
    } else {
      const wanted = referencePlanner(config, weights, hidden, planner.timestep[0], planner.maskIndex);
      wanted.forEach((value, i) => {
        expect(Math.abs(output.plannerLogits![i] - value)).toBeLessThan(1e-4);
      });
    }
    expect(output.generated).toHaveLength(12);
  });

  test('data that is not aligned to its elements, and tensors nobody asked for', async () => {
    const { folder, weights } = single();
    const tensors: Record<string, FixtureTensor> = {
      'rotary.inv_freq': { dtype: 'F64', shape: [1], data: new Float64Array(1), raw: Buffer.alloc(8) },
      odd: { dtype: 'U8', shape: [3], data: new Uint8Array(3), raw: Buffer.alloc(3) },
      empty: { dtype: 'F32', shape: [0, 4], data: new Float32Array(0), raw: Buffer.alloc(0) },
    };
    for (const [name, { shape, data }] of weights)
      tensors[name] = { dtype: 'F32', shape, data, raw: encode(data, 'F32') };
    writeTensors(path.join(folder, WEIGHTS), tensors);
    expect(await outputs(folder)).toEqual(expected);
  });

  test('links, as in the cache of a hub; names that are not ASCII', async () => {
    const { folder } = single({ shards: 2 });
    const linked = path.join(temporaryFolder(), 'Prüfung 模型 🙂');
    mkdirSync(linked);
    for (const name of readdirSync(folder)) symlinkSync(path.join(folder, name), path.join(linked, name));
    expect(await outputs(linked)).toEqual(expected);
    expect(await outputs(path.relative(process.cwd(), linked))).toEqual(expected);
  });

  test('shards without an index, all *.safetensors are read', async () => {
    const { folder } = single({ shards: 3 });
    rmSync(path.join(folder, INDEX));
    expect(await outputs(folder)).toEqual(expected);
  });
});

describe('weights', () => {
  /** A checkpoint whose tensors are changed before they are written. */
  function changed(change: (tensors: Record<string, FixtureTensor>) => void, how: CheckpointOptions = {}): string {
    const { folder, weights } = makeCheckpoint(how);
    const dtype = (how.dtype ?? 'F32') as StorageType;
    const tensors: Record<string, FixtureTensor> = {};
    for (const [name, { shape, data }] of weights) tensors[name] = { dtype, shape, data, raw: encode(data, dtype) };
    change(tensors);
    writeTensors(path.join(folder, WEIGHTS), tensors);
    return folder;
  }
  const Q = 'model.transformer.blocks.1.q_proj.weight';

  const wrong: [string, (tensors: Record<string, FixtureTensor>) => void, RegExp][] = [
    ['a missing tensor', (t) => delete t[Q], /missing tensors model\.transformer\.blocks\.1\.q_proj\.weight$/],
    [
      'a missing head',
      (t) => delete t['model.transformer.ff_out.weight'],
      /missing tensors model\.transformer\.ff_out\.weight$/,
    ],
    [
      'a shape the other way round',
      (t) => Object.assign(t['model.transformer.blocks.0.ff_out.weight'], { shape: [40, 24] }),
      /ff_out\.weight: expected shape \[24, 40\], got \[40, 24\]/,
    ],
    ['a flat shape', (t) => Object.assign(t[Q], { shape: [576] }), /expected shape \[24, 24\], got \[576\]/],
    [
      'another rank',
      (t) => Object.assign(t[Q], { shape: [1, 24, 24] }),
      /expected shape \[24, 24\], got \[1, 24, 24\]/,
    ],
    ['integers', (t) => Object.assign(t[Q], { dtype: 'I32' }), /q_proj\.weight: expected F32, BF16 or F16, got "I32"/],
    [
      'a type that is not known',
      (t) => Object.assign(t[Q], { dtype: 'F3_E1M1' }),
      /q_proj\.weight: expected F32, BF16 or F16, got "F3_E1M1"/,
    ],
    [
      'a type that is a property of objects',
      (t) => Object.assign(t[Q], { dtype: 'constructor' }),
      /expected F32, BF16 or F16, got "constructor"/,
    ],
    ['no type', (t) => Object.assign(t[Q], { dtype: null }), /q_proj\.weight": expected a dtype, got null/],
    ...Object.entries({
      F4: 0.5,
      F6_E2M3: 0.75,
      F6_E3M2: 0.75,
      F8_E8M0: 1,
      F8_E4M3FNUZ: 1,
      F8_E5M2FNUZ: 1,
      C64: 8,
    }).map(([dtype, bytes]): (typeof wrong)[number] => [
      `${dtype} where weights are needed`,
      (t) => Object.assign(t[Q], { dtype, raw: Buffer.alloc(576 * bytes) }),
      new RegExp(`q_proj\\.weight: expected F32, BF16 or F16, got "${dtype}"`),
    ]),
    [
      'too few bytes',
      (t) => Object.assign(t[Q], { raw: t[Q].raw.subarray(4) }),
      /needs 2304 bytes, its range has 2300/,
    ],
  ];
  test.each(wrong)('%s is refused', async (_name, change, message) => {
    const folder = changed(change);
    const error = await loadFailure(folder);
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(message);
    expect(error.message).toContain(folder);
  });

  test.each([
    ['F8_E8M0', 1],
    ['F8_E4M3FNUZ', 1],
    ['F8_E5M2FNUZ', 1],
    ['F8_E4M3', 1],
    ['F6_E2M3', 0.75],
    ['F6_E3M2', 0.75],
    ['F4', 0.5],
    ['C64', 8],
    ['I64', 8],
    // Not known here: the size of its elements cannot be checked.
    ['F2_E1M0', 1 / 16],
    ['POSIT16', 3],
  ])('a tensor of %s that nobody needs is skipped', async (dtype, bytes) => {
    const shape = [8, 4];
    const raw = Buffer.alloc(32 * bytes, 255);
    const folder = changed((tensors) => {
      tensors['quantizer.scale'] = { dtype, shape, data: new Uint8Array(0), raw };
    });
    const { folder: plain } = makeCheckpoint();
    expect(await outputs(folder)).toEqual(await outputs(plain));
  });

  test.each([
    ['F8_E8M0', [8], 9, /"quantizer\.scale": shape \[8\] of F8_E8M0 needs 8 bytes, its range has 9/],
    ['F4', [5], 3, /"quantizer\.scale": shape \[5\] of F4 needs 2\.5 bytes, its range has 3/],
    ['F6_E3M2', [4, 2], 8, /needs 6 bytes, its range has 8/],
    ['C64', [3], 12, /needs 24 bytes, its range has 12/],
  ])('%s of shape %j in %i bytes is refused, needed or not', async (dtype, shape, bytes, message) => {
    const folder = changed((tensors) => {
      tensors['quantizer.scale'] = { dtype, shape, data: new Uint8Array(0), raw: Buffer.alloc(bytes) };
    });
    expect((await loadFailure(folder)).message).toMatch(message);
  });

  const NON_FINITE = {
    F32: { nan: [0, 0, 0xc0, 0x7f], infinite: [0, 0, 0x80, 0xff] },
    BF16: { nan: [0xc0, 0x7f], infinite: [0x80, 0xff] },
    F16: { nan: [1, 0x7c], infinite: [0, 0xfc] },
  };
  const places = [
    'model.transformer.wte.weight',
    Q,
    'model.transformer.ln_f.weight',
    'mask_head.0.up_proj.weight',
    'mask_linear.bias',
    'norm_out_2.modulation.weight',
  ];
  test.each(['F32', 'BF16', 'F16'] as const)(
    'NaN and infinity in %s: the error names the tensor and the place',
    async (dtype) => {
      for (const [kind, bytes] of Object.entries(NON_FINITE[dtype]))
        for (const name of places) {
          let last = 0;
          const folder = changed(
            (tensors) => {
              const { raw } = tensors[name];
              raw.set(bytes, raw.length - bytes.length);
              last = raw.length / bytes.length - 1;
            },
            { dtype },
          );
          const error = await loadFailure(folder);
          expect({ kind, name, code: error.code }).toEqual({ kind, name, code: 'NON_FINITE' });
          expect(error.message).toBe(
            `${path.join(folder, WEIGHTS)}: tensor ${name} holds NaN or infinity (first at element ${last})`,
          );
        }
    },
  );

  test('the largest finite numbers are not taken for infinity', async () => {
    for (const [dtype, bytes] of [
      ['F32', [0xff, 0xff, 0x7f, 0x7f]],
      ['BF16', [0x7f, 0x7f]],
      ['F16', [0xff, 0x7b]],
    ] as const) {
      const folder = changed((tensors) => tensors['model.transformer.wte.weight'].raw.set(bytes, 0), { dtype });
      const model = await loadModel(folder);
      expect((await model.forward({ ids: [1, 2] })).logits!.every(Number.isFinite)).toBe(true);
      model.dispose();
    }
  });

  test('a planner that is half there', async () => {
    const folder = changed((tensors) => {
      for (const name of Object.keys(tensors)) if (name.startsWith('time_embedding')) delete tensors[name];
    });
    expect((await loadFailure(folder)).message).toMatch(
      /missing tensors time_embedding\.mlp\.0\.weight, time_embedding/,
    );
  });

  describe('files', () => {
    const { folder: base } = makeCheckpoint();
    const bytes = readFileSync(path.join(base, WEIGHTS));
    const headerLength = Number(bytes.readBigUInt64LE(0));
    const withBytes = (content: Buffer): string => {
      const folder = temporaryFolder();
      copyFileSync(path.join(base, 'config.json'), path.join(folder, 'config.json'));
      writeFileSync(path.join(folder, WEIGHTS), content);
      return folder;
    };
    const withHeader = (
      change: (header: Record<string, { data_offsets: unknown; shape: unknown; dtype: unknown }>) => void,
    ) => {
      const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength));
      change(header);
      const text = Buffer.from(JSON.stringify(header));
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(text.length));
      return Buffer.concat([length, text, bytes.subarray(8 + headerLength)]);
    };
    const length = (value: bigint) => {
      const prefix = Buffer.alloc(8);
      prefix.writeBigUInt64LE(value);
      return Buffer.concat([prefix, bytes.subarray(8)]);
    };
    const offsets = (value: unknown) => withHeader((header) => Object.assign(header[Q], { data_offsets: value }));
    const cases: [string, () => Buffer, RegExp][] = [
      ['an empty file', () => Buffer.alloc(0), /expected a safetensors file, got 0 bytes/],
      ['seven bytes', () => bytes.subarray(0, 7), /got 7 bytes/],
      ['a length alone', () => bytes.subarray(0, 8), /its header claims \d+ bytes, the file has 8/],
      ['half a header', () => bytes.subarray(0, 8 + headerLength / 2), /its header claims/],
      ['a header alone', () => bytes.subarray(0, 8 + headerLength), /ends at byte \d+ of 0: the file is truncated/],
      ['the last byte missing', () => bytes.subarray(0, -1), /the file is truncated or its header is wrong/],
      ['a header of 2^64 - 1 bytes', () => length(2n ** 64n - 1n), /claims 18446744073709551615 bytes/],
      ['a header of 2^63 bytes', () => length(2n ** 63n), /claims 9223372036854775808 bytes/],
      ['a header one byte short', () => length(BigInt(headerLength) - 1n), /not JSON|take \d+ bytes, the file has/],
      ['a header of 0 bytes', () => length(0n), /the safetensors header is not JSON/],
      ['text', () => Buffer.from('the weights are elsewhere, see below\n'), /not a safetensors file/],
      [
        'a pointer of Git LFS',
        () =>
          Buffer.from(`version https://git-lfs.github.com/spec/v1\noid sha256:${'5e'.repeat(32)}\nsize 16060522888\n`),
        /model\.safetensors: a Git LFS pointer, not the file itself; "git lfs pull"/,
      ],
      [
        'a pointer of an early Git LFS',
        () => Buffer.from('version https://hawser.github.com/spec/v1\noid sha256:0\nsize 1\n'),
        /a Git LFS pointer/,
      ],
      [
        'a header that is a list',
        () => Buffer.concat([Buffer.from([2, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('[]')]),
        /header is not an object/,
      ],
      [
        'a header that is not UTF-8',
        () => Buffer.concat([Buffer.from([4, 0, 0, 0, 0, 0, 0, 0]), Buffer.from([0x7b, 0xff, 0xfe, 0x7d])]),
        /not UTF-8/,
      ],
      [
        'a tensor that is null',
        () => withHeader((header) => Object.assign(header, { [Q]: null })),
        /q_proj\.weight": expected an object, got null/,
      ],
      ['a hole', () => Buffer.concat([bytes, Buffer.alloc(4)]), /take \d+ bytes, the file has \d+/],
      ['overlapping ranges', () => offsets([4, 2308]), /overlap/],
      ['a negative offset', () => offsets([-4, 2300]), /expected data_offsets \[begin, end\], got \[-4,2300\]/],
      ['offsets the wrong way round', () => offsets([2304, 0]), /expected data_offsets/],
      ['offsets of 2^60', () => offsets([2 ** 60, 2 ** 60 + 2304]), /expected data_offsets/],
      ['offsets beyond the file', () => offsets([2 ** 50, 2 ** 50 + 2304]), /the file is truncated/],
      ['three offsets', () => offsets([0, 4, 8]), /expected data_offsets/],
      ['no offsets', () => offsets(undefined), /expected data_offsets/],
      ['offsets of text', () => offsets(['0', '2304']), /expected data_offsets/],
      [
        'a negative shape',
        () => withHeader((h) => Object.assign(h[Q], { shape: [-24, -24] })),
        /expected a shape of non-negative integers/,
      ],
      [
        'a shape whose product overflows',
        () => withHeader((h) => Object.assign(h[Q], { shape: [2 ** 32, 2 ** 32, 24] })),
        /needs .* bytes, its range has 2304/,
      ],
      [
        'a shape of a million dimensions',
        () => withHeader((h) => Object.assign(h[Q], { shape: new Array(1e6).fill(1) })),
        /shape an array of 1000000|needs 4 bytes/,
      ],
    ];
    test.each(cases)('%s is refused', async (_name, content, message) => {
      const folder = withBytes(content());
      const error = await loadFailure(folder);
      expect(error.code).toBe('BAD_CHECKPOINT');
      expect(error.message).toMatch(message);
      expect(error.message).toContain(WEIGHTS);
      expect(error.message.length).toBeLessThan(1000);
    });

    test('none, a folder', async () => {
      const folder = withBytes(bytes);
      const file = path.join(folder, WEIGHTS);
      rmSync(file);
      expect((await loadFailure(folder)).message).toMatch(/no \*\.safetensors file/);
      mkdirSync(file);
      expect((await loadFailure(folder)).message).toMatch(/model\.safetensors: expected a file/);
    });

    exceptOnWindows('Windows has no pipes in folders, and not everybody may make links')(
      'a pipe, a link to nothing',
      async () => {
        const folder = withBytes(bytes);
        const file = path.join(folder, WEIGHTS);
        rmSync(file);
        execFileSync('mkfifo', [file]);
        expect((await loadFailure(folder)).message).toMatch(/model\.safetensors: expected a file/);
        rmSync(file);
        symlinkSync(path.join(folder, 'nowhere'), file);
        expect((await loadFailure(folder)).message).toMatch(/model\.safetensors: ENOENT/);
      },
    );
  });
});

describe('a single file beside an index', () => {
  test('the single file holds the weights; shards and index are of an earlier save', async () => {
    const { folder } = makeCheckpoint({ shards: 2, seed: 8 });
    const { folder: later } = makeCheckpoint({ seed: 9 });
    copyFileSync(path.join(later, WEIGHTS), path.join(folder, WEIGHTS));
    expect(await outputs(folder)).toEqual(await outputs(later));
    // Nor are those shards needed.
    for (const name of readdirSync(folder)) if (name.includes('-of-')) rmSync(path.join(folder, name));
    expect(await outputs(folder)).toEqual(await outputs(later));
  });

  test('an index that names the single file says where all weights are', async () => {
    const { folder } = makeCheckpoint({ shards: 2 });
    const [first, second] = readdirSync(folder).filter((name) => name.includes('-of-'));
    const index = JSON.parse(readFileSync(path.join(folder, INDEX), 'utf8')) as { weight_map: Record<string, string> };
    for (const [tensor, shard] of Object.entries(index.weight_map))
      if (shard === first) index.weight_map[tensor] = WEIGHTS;
    writeFileSync(path.join(folder, INDEX), JSON.stringify(index));
    copyFileSync(path.join(folder, first), path.join(folder, WEIGHTS));
    rmSync(path.join(folder, first));
    expect(await outputs(folder)).toEqual(await outputs(makeCheckpoint().folder));
    rmSync(path.join(folder, second));
    expect((await loadFailure(folder)).message).toMatch(new RegExp(`${second} is missing, which ${INDEX} names`));
  });
});

describe('an index', () => {
  const names = (folder: string) => readdirSync(folder).filter((name) => name.endsWith('.safetensors'));
  const withIndex = (value: unknown): string => {
    const { folder } = makeCheckpoint({ shards: 2 });
    writeFileSync(path.join(folder, INDEX), typeof value === 'string' ? value : JSON.stringify(value));
    return folder;
  };
  const wrong: [string, unknown, RegExp][] = [
    ['not JSON', '{', /index\.json: not JSON/],
    ['null', null, /index\.json: expected a JSON object, got null/],
    ['without a map', { metadata: {} }, /expected a weight_map/],
    ['an empty map', { weight_map: {} }, /expected a weight_map/],
    ['a map that is text', { weight_map: 'model.safetensors' }, /expected a weight_map|expected the name/],
    [
      'a file elsewhere',
      { weight_map: { a: '../other.safetensors' } },
      /expected the name of a \*\.safetensors file, got "\.\.\/other\.safetensors"/,
    ],
    ['an absolute path', { weight_map: { a: '/etc/x.safetensors' } }, /expected the name/],
    ['a Windows path', { weight_map: { a: 'C:\\x.safetensors' } }, /expected the name/],
    ['another kind of file', { weight_map: { a: 'config.json' } }, /expected the name/],
    ['a number', { weight_map: { a: 5 } }, /expected the name .* got 5/],
    [
      'a missing shard',
      { weight_map: { a: 'model-00009-of-00009.safetensors' } },
      /model-00009-of-00009\.safetensors is missing/,
    ],
  ];
  test.each(wrong)('%s is refused', async (_name, value, message) => {
    const error = await loadFailure(withIndex(value));
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(message);
  });

  test('a shard that is gone, and one that is there twice', async () => {
    const { folder } = makeCheckpoint({ shards: 3 });
    const [first, second] = names(folder);
    const kept = readFileSync(path.join(folder, second));
    rmSync(path.join(folder, second));
    expect((await loadFailure(folder)).message).toMatch(new RegExp(`${second} is missing, which ${INDEX} names`));
    copyFileSync(path.join(folder, first), path.join(folder, second));
    expect((await loadFailure(folder)).message).toMatch(/tensor ".*" is also in /);
    writeFileSync(path.join(folder, second), kept.subarray(0, kept.length / 2));
    expect((await loadFailure(folder)).message).toMatch(new RegExp(`${second}: .*truncated`));
  });
});
