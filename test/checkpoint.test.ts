// Checkpoint folders: every way of storing the same weights, and everything that may be wrong with one.
import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type DUltraError, type LoadProgress, loadModel } from '../lib';
import { linuxAvailableMemory } from '../lib/model/memory';
import { type CheckpointOptions, encode, makeCheckpoint, type StorageType } from './checkpoints';
import { exceptOnWindows, type FixtureTensor, readTensors, temporaryFolder, writeTensors } from './helpers';
import { referenceHidden, referenceLogits, referencePlanner } from './reference-model';

const WEIGHTS = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const ids = [5, 17, 3, 44, 44, 30, 44];
const planner = { timestep: [0.4], maskIndex: [0, 0, 0, 1, 1, 0, 1] };
const options = { genLength: 12, blockLength: 6, temperature: 0.7, seed: 5 };

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

/** What loading a folder fails with. */
async function failure(folder: string): Promise<DUltraError> {
  const error = await loadModel(folder, { threads: 1 }).then(
    (model) => {
      model.dispose();
      throw new Error('it loaded');
    },
    (reason) => reason,
  );
  expect(error).toMatchObject({ name: 'DUltraError' });
  return error;
}

describe('config.json', () => {
  const wrong: [string, unknown, RegExp][] = [
    ['d_model', undefined, /d_model: .*got undefined/],
    ['d_model', 0, /d_model: .*got 0/],
    ['d_model', 25, /d_model: expected a multiple of n_heads \(6\), got 25/],
    ['d_model', 18, /d_model \/ n_heads: expected an even head size, got 3/],
    ['d_model', 36, /tensor model\.transformer\.wte\.weight: expected shape \[48, 36\], got \[48, 24\]/],
    ['d_model', '24', /d_model: .*got "24"/],
    ['d_model', 2 ** 40, /d_model: .*got 1099511627776/],
    ['n_heads', 5, /d_model: expected a multiple of n_heads \(5\)/],
    ['n_heads', -6, /n_heads: .*got -6/],
    ['n_heads', 1.5, /n_heads: .*got 1\.5/],
    ['n_heads', 2, /k_proj\.weight: expected shape \[24, 24\], got \[8, 24\]/],
    ['n_kv_heads', 4, /n_heads: expected a multiple of n_kv_heads \(4\), got 6/],
    ['n_kv_heads', 3, /k_proj\.weight: expected shape \[12, 24\], got \[8, 24\]/],
    ['n_kv_heads', null, /k_proj\.weight: expected shape \[24, 24\], got \[8, 24\]/],
    ['n_layers', 3, /missing tensors model\.transformer\.blocks\.2\.q_proj\.weight.* and 4 more/],
    ['n_layers', 65536, /its config has 65537 layers, its files only \d+ tensors/],
    ['n_layers', 1e9, /n_layers: /],
    ['n_layers', -1, /n_layers: /],
    ['mlp_hidden_size', 41, /ff_proj\.weight: expected shape \[41, 24\], got \[40, 24\]/],
    ['mlp_hidden_size', null, /ff_proj\.weight: expected shape \[96, 24\], got \[40, 24\]/],
    ['vocab_size', 49, /embedding_size: expected at least vocab_size \(49\), got 48/],
    ['vocab_size', null, /vocab_size: /],
    ['embedding_size', 47, /wte\.weight: expected shape \[47, 24\], got \[48, 24\]/],
    ['embedding_size', null, /wte\.weight: expected shape \[45, 24\], got \[48, 24\]/],
    ['embedding_size', 2 ** 31, /embedding_size: /],
    ['max_sequence_length', 0, /max_sequence_length: /],
    ['max_sequence_length', undefined, /max_sequence_length: /],
    ['rope_theta', 0, /rope_theta: /],
    ['rope_theta', 1e300, /rope_theta: /],
    ['rope_theta', '500000', /rope_theta: .*got "500000"/],
    ['rms_norm_eps', -1e-5, /rms_norm_eps: /],
    ['rms_norm_eps', 1e30, /rms_norm_eps: /],
    ['weight_tying', 'yes', /weight_tying: /],
    ['mask_token_id', 48, /mask_token_id: expected an id below embedding_size \(48\), got 48/],
    ['mask_token_id', undefined, /mask_token_id: /],
    ['mask_token_id', -1, /mask_token_id: /],
    ['eos_token_id', 1000, /eos_token_id: expected an id below/],
    ['eos_token_id', 1.5, /eos_token_id: /],
    ['pad_token_id', 48, /pad_token_id: expected an id below/],
    ['use_adaln', 1, /use_adaln: /],
    ['use_adaln', false, /missing tensors norm_out_2\.weight, norm_out_2\.bias$/],
    ['num_head_layers', 2, /missing tensors mask_head\.1\.q_proj\.weight/],
    ['num_head_layers', 1e6, /num_head_layers: /],
    ['use_mask_embeddings', 'x', /use_mask_embeddings: /],
    ['activation_type', 'swiglu', /activation_type: expected "silu" or null, got "swiglu"/],
    ['block_type', 'sequential', /block_type: expected "llama"/],
    ['layer_norm_type', 'default', /layer_norm_type: expected "rms"/],
    ['layer_norm_with_affine', false, /layer_norm_with_affine: expected true/],
    ['alibi', true, /alibi: expected false/],
    ['attention_layer_norm', true, /attention_layer_norm: /],
    ['input_emb_norm', true, /input_emb_norm: /],
    ['scale_logits', true, /scale_logits: /],
    ['include_bias', true, /missing tensors .*q_proj\.bias/],
    ['include_bias', 1, /include_bias: /],
    ['include_qkv_bias', true, /missing tensors .*q_proj\.bias/],
    ['bias_for_layer_norm', true, /bias_for_layer_norm: /],
    ['rope', false, /rope: expected true/],
    ['multi_query_attention', true, /multi_query_attention: /],
    ['use_block_embeddings', true, /use_block_embeddings: /],
    ['clip_qkv', 8, /clip_qkv: expected null, got 8/],
    ['rope_scaling', { type: 'linear', factor: 2 }, /rope_scaling: expected null, got an object/],
    ['block_group_size', 4, /block_group_size: expected 1 or null, got 4/],
  ];
  const { folder: base } = makeCheckpoint();
  const config = JSON.parse(readFileSync(path.join(base, 'config.json'), 'utf8'));
  const withConfig = (value: unknown): string => {
    const folder = temporaryFolder();
    copyFileSync(path.join(base, WEIGHTS), path.join(folder, WEIGHTS));
    writeFileSync(path.join(folder, 'config.json'), typeof value === 'string' ? value : JSON.stringify(value));
    return folder;
  };

  test.each(wrong)('%s = %j is refused', async (field, value, message) => {
    const folder = withConfig({ ...config, [field]: value });
    const error = await failure(folder);
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(message);
    expect(error.message).toContain(folder);
  });

  test('fields that may be absent', async () => {
    const {
      pad_token_id: _pad,
      eos_token_id: _eos,
      rope_theta: _theta,
      rms_norm_eps: _eps,
      weight_tying: _tying,
      ...rest
    } = config;
    const model = await loadModel(withConfig(rest));
    expect(model.config).toMatchObject({
      eosTokenId: null,
      padTokenId: null,
      ropeTheta: 10000,
      rmsNormEps: 1e-5,
      weightTying: false,
    });
    const { finishReason } = await model.generate({ promptIds: [1] }, { genLength: 4 });
    expect(finishReason).toBe('length');
    model.dispose();
  });

  test.each([
    ['nothing', ''],
    ['half of it', '{"d_model": 24, '],
    ['an array', '[]'],
    ['null', 'null'],
    ['a number', '5'],
    ['not text', '\u0000\u0001'],
    ['very deep', `${'['.repeat(200_000)}${']'.repeat(200_000)}`],
    ['a field very deep', `{"d_model": ${'['.repeat(200_000)}${']'.repeat(200_000)}}`],
    [
      'a setting very deep',
      JSON.stringify(config).replace('"alibi":false', `"alibi":${'['.repeat(200_000)}${']'.repeat(200_000)}`),
    ],
  ])('%s is refused', async (_name, text) => {
    const error = await failure(withConfig(text));
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(/config\.json: /);
    expect(error.message.length).toBeLessThan(1000);
  });

  test('a prototype is not a setting', async () => {
    const error = await failure(withConfig('{"model_type": "llada", "__proto__": {"d_model": 24}}'));
    expect(error.message).toMatch(/d_model: /);
  });

  test('a folder and far too much in its place', async () => {
    const folder = withConfig('');
    const file = path.join(folder, 'config.json');
    rmSync(file);
    expect((await failure(folder)).message).toMatch(/config\.json: ENOENT/);
    mkdirSync(file);
    expect((await failure(folder)).message).toMatch(/config\.json: expected a file/);
    rmSync(file, { recursive: true });
    writeFileSync(file, '');
    truncateSync(file, 2 ** 33);
    expect((await failure(folder)).message).toMatch(/config\.json: expected at most \d+ bytes, got 8589934592/);
  });

  exceptOnWindows('Windows has no pipes in folders')('a pipe in its place', async () => {
    const folder = withConfig('');
    const file = path.join(folder, 'config.json');
    rmSync(file);
    execFileSync('mkfifo', [file]);
    expect((await failure(folder)).message).toMatch(/config\.json: expected a file/);
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
    ['integers', (t) => Object.assign(t[Q], { dtype: 'I32' }), /q_proj\.weight: expected F32, BF16 or F16, got I32/],
    ['an unknown type', (t) => Object.assign(t[Q], { dtype: 'F4' }), /q_proj\.weight": unknown dtype "F4"/],
    [
      'a type that is a property of objects',
      (t) => Object.assign(t[Q], { dtype: 'constructor' }),
      /unknown dtype "constructor"/,
    ],
    [
      'too few bytes',
      (t) => Object.assign(t[Q], { raw: t[Q].raw.subarray(4) }),
      /needs 2304 bytes, its range has 2300/,
    ],
  ];
  test.each(wrong)('%s is refused', async (_name, change, message) => {
    const folder = changed(change);
    const error = await failure(folder);
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(message);
    expect(error.message).toContain(folder);
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
          const error = await failure(folder);
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
    expect((await failure(folder)).message).toMatch(/missing tensors time_embedding\.mlp\.0\.weight, time_embedding/);
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
      [
        'text',
        () => Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'),
        /not a safetensors file/,
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
      const error = await failure(folder);
      expect(error.code).toBe('BAD_CHECKPOINT');
      expect(error.message).toMatch(message);
      expect(error.message).toContain(WEIGHTS);
      expect(error.message.length).toBeLessThan(1000);
    });

    test('none, a folder', async () => {
      const folder = withBytes(bytes);
      const file = path.join(folder, WEIGHTS);
      rmSync(file);
      expect((await failure(folder)).message).toMatch(/no \*\.safetensors file/);
      mkdirSync(file);
      expect((await failure(folder)).message).toMatch(/model\.safetensors: expected a file/);
    });

    exceptOnWindows('Windows has no pipes in folders, and not everybody may make links')(
      'a pipe, a link to nothing',
      async () => {
        const folder = withBytes(bytes);
        const file = path.join(folder, WEIGHTS);
        rmSync(file);
        execFileSync('mkfifo', [file]);
        expect((await failure(folder)).message).toMatch(/model\.safetensors: expected a file/);
        rmSync(file);
        symlinkSync(path.join(folder, 'nowhere'), file);
        expect((await failure(folder)).message).toMatch(/model\.safetensors: ENOENT/);
      },
    );
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
    const error = await failure(withIndex(value));
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(message);
  });

  test('a shard that is gone, and one that is there twice', async () => {
    const { folder } = makeCheckpoint({ shards: 3 });
    const [first, second] = names(folder);
    const kept = readFileSync(path.join(folder, second));
    rmSync(path.join(folder, second));
    expect((await failure(folder)).message).toMatch(new RegExp(`${second} is missing, which ${INDEX} names`));
    copyFileSync(path.join(folder, first), path.join(folder, second));
    expect((await failure(folder)).message).toMatch(/tensor ".*" is also in /);
    writeFileSync(path.join(folder, second), kept.subarray(0, kept.length / 2));
    expect((await failure(folder)).message).toMatch(new RegExp(`${second}: .*truncated`));
  });
});

describe('sources', () => {
  test.each([
    ['./no/such/folder', /no such folder/],
    [__filename, /expected a folder with config\.json, got a file/],
  ])('%s', async (source, message) => expect((await failure(source)).message).toMatch(message));
  test('an empty folder', async () =>
    expect((await failure(temporaryFolder())).message).toMatch(/config\.json: ENOENT/));
  test.each([5, '', null, {}])('%j is no source', async (source) => {
    await expect(loadModel(source as never)).rejects.toThrow(TypeError);
  });
  const options: [string, object, RegExp][] = [
    ['device', { device: 'tpu' }, /device: expected/],
    ['dtype', { dtype: 'int8' }, /dtype: expected/],
    ['compute', { compute: 'float16' }, /compute: expected/],
    ['threads', { threads: 0 }, /threads: expected/],
    ['threads', { threads: 1.5 }, /threads: expected/],
    ['isa', { isa: 'avx9' }, /avx9/],
    ['isa', { isa: 5 }, /isa: expected a string/],
    ['key', { dtypes: 'float32' }, /unknown key "dtypes"/],
  ];
  test.each(options)('option %s: %j', async (_name, load, message) => {
    await expect(loadModel(makeCheckpoint().folder, load)).rejects.toThrow(message);
  });
  test('an abort before and during', async () => {
    const { folder } = makeCheckpoint();
    const reason = new Error('enough');
    await expect(loadModel(folder, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    const controller = new AbortController();
    const loading = loadModel(folder, { signal: controller.signal });
    controller.abort(reason);
    await expect(loading).rejects.toBe(reason);
  });
});

describe('progress', () => {
  test('ends with all bytes of the weights', async () => {
    const { folder } = makeCheckpoint();
    const tensors = Object.values(readTensors(path.join(folder, WEIGHTS)));
    const seen: LoadProgress[] = [];
    (await loadModel(folder, { onProgress: (at) => seen.push(at) })).dispose();
    const bytes = tensors.reduce((sum, { shape }) => sum + 4 * shape.reduce((product, n) => product * n, 1), 0);
    expect(seen.at(-1)).toEqual({ stage: 'weights', loadedBytes: bytes, totalBytes: bytes });
    for (let i = 1; i < seen.length; i++) expect(seen[i].loadedBytes).toBeGreaterThan(seen[i - 1].loadedBytes);
    // Nothing is told once the call is over.
    const count = seen.length;
    await new Promise((resolve) => setTimeout(resolve, 150));
    expect(seen).toHaveLength(count);
  });
  test('an error of the callback is that of the call', async () => {
    const { folder } = makeCheckpoint();
    const mine = new RangeError('mine');
    await expect(
      loadModel(folder, {
        onProgress: () => {
          throw mine;
        },
      }),
    ).rejects.toBe(mine);
    await expect(loadModel(folder, { onProgress: 5 as never })).rejects.toThrow(/onProgress: expected a function/);
  });
});

describe('memory', () => {
  test('a checkpoint larger than the memory is refused at once', async () => {
    const { folder } = makeCheckpoint({ planner: false });
    const file = path.join(folder, 'config.json');
    const config = JSON.parse(readFileSync(file, 'utf8'));
    const rows = 2 ** 30;
    writeFileSync(file, JSON.stringify({ ...config, vocab_size: rows, embedding_size: rows }));
    // The header is that of a real file of 192 GiB, whose data is a hole.
    const header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }> = {};
    let at = 0;
    for (const [name, { shape }] of Object.entries(readTensors(path.join(folder, WEIGHTS)))) {
      const real = /wte|transformer\.ff_out/.test(name) ? [rows, 24] : shape;
      const bytes = real.reduce((product, n) => product * n, 4);
      header[name] = { dtype: 'F32', shape: real, data_offsets: [at, at + bytes] };
      at += bytes;
    }
    const text = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    writeFileSync(path.join(folder, WEIGHTS), Buffer.concat([length, text]));
    truncateSync(path.join(folder, WEIGHTS), 8 + text.length + at);
    expect(at).toBeGreaterThan(os.totalmem());
    const before = process.memoryUsage().rss;
    const begin = process.cpuUsage();
    const error = await failure(folder);
    const { user, system } = process.cpuUsage(begin);
    expect((user + system) / 1e6).toBeLessThan(1);
    expect(process.memoryUsage().rss - before).toBeLessThan(2 ** 27);
    expect(error.code).toBe('OUT_OF_MEMORY');
    expect(error.message).toMatch(/loading needs \d+\.\d GiB, \d+\.\d GiB are free; dtype: "bfloat16" needs half/);
  });

  test('free memory is that of the machine, and of every control group around the process', () => {
    const KB = 1024;
    const make = (files: Record<string, string>) => {
      const root = temporaryFolder();
      for (const [name, text] of Object.entries(files)) {
        mkdirSync(path.dirname(path.join(root, name)), { recursive: true });
        writeFileSync(path.join(root, name), text);
      }
      return linuxAvailableMemory(root);
    };
    const machine = { 'proc/meminfo': 'MemTotal:       9000 kB\nMemFree:         100 kB\nMemAvailable:   5000 kB\n' };
    expect(make({})).toBeNull();
    expect(make(machine)).toBe(5000 * KB);
    // Version 2: the inner group has no limit, the outer one has, and most of what it uses is cached files.
    const outer = 'sys/fs/cgroup/jobs';
    const two = { ...machine, 'proc/self/cgroup': '0::/jobs/one\n' };
    const stat = 'anon 100000\nactive_file 1000000\ninactive_file 500000\n';
    const limited = {
      [`${outer}/memory.max`]: '2000000\n',
      [`${outer}/memory.current`]: '1700000\n',
      [`${outer}/memory.stat`]: stat,
    };
    expect(make({ ...two, [`${outer}/one/memory.max`]: 'max\n', [`${outer}/one/memory.current`]: '5\n' })).toBe(
      5000 * KB,
    );
    expect(make({ ...two, [`${outer}/one/memory.max`]: 'max\n', ...limited })).toBe(2000000 - 200000);
    // A container that sees its own group as the root, under a path of the host.
    expect(
      make({
        ...two,
        'sys/fs/cgroup/memory.max': '1000000\n',
        'sys/fs/cgroup/memory.current': '400000\n',
        'sys/fs/cgroup/memory.stat': 'anon 400000\n',
      }),
    ).toBe(600000);
    // Version 1, and a limit above the machine's memory.
    const one = { ...machine, 'proc/self/cgroup': '5:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/\n' };
    const group = 'sys/fs/cgroup/memory/docker/abc';
    const file = (limit: string) => ({
      [`${group}/memory.limit_in_bytes`]: limit,
      [`${group}/memory.usage_in_bytes`]: '900000\n',
      [`${group}/memory.stat`]: 'cache 7\ntotal_active_file 300000\ntotal_inactive_file 200000\n',
    });
    expect(make({ ...one, ...file('1000000\n') })).toBe(600000);
    expect(make({ ...one, ...file('9223372036854771712\n') })).toBe(5000 * KB);
    // More used than allowed: nothing is free.
    expect(make({ ...one, ...file('1000\n') })).toBe(0);
    if (process.platform === 'linux') {
      expect(linuxAvailableMemory()).toBeGreaterThan(0);
      expect(linuxAvailableMemory()).toBeLessThanOrEqual(os.totalmem());
    }
  });
});
