// Damaged headers and files through the real loading path: every one is a typed error or a correct load, quickly and
// without taking more memory than the file is worth.
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { isDUltraError, loadModel } from '../lib';
import {
  parseSafetensorsHeader,
  readSafetensors,
  readSafetensorsEntries,
  type TensorEntry,
  writeSafetensors,
} from '../lib/files/safetensors';
import { parseDiffusionCheckpoint } from '../lib/model/families';
import { matchTensors } from '../lib/model/tensors';
import { makeCheckpoint, random } from './checkpoints';
import { temporaryFolder } from './helpers';

const SEED = Number(process.env.DULTRA_TEST_SEED ?? 1);
const RUNS = Number(process.env.DULTRA_TEST_RUNS ?? 1);

const { folder: base } = makeCheckpoint({
  config: {
    d_model: 8,
    n_heads: 2,
    n_kv_heads: 1,
    n_layers: 1,
    mlp_hidden_size: 6,
    vocab_size: 11,
    embedding_size: 12,
    mask_token_id: 10,
    eos_token_id: 9,
  },
});
const json = JSON.parse(readFileSync(path.join(base, 'config.json'), 'utf8'));
const tensors = { has: (name: string) => name === 'mask_linear.weight' };
const { config, checkpointName } = parseDiffusionCheckpoint(json, 'config.json', tensors);
const bytes = readFileSync(path.join(base, 'model.safetensors'));
const headerLength = Number(bytes.readBigUInt64LE(0));
const headerText = bytes.toString('utf8', 8, 8 + headerLength);
const dataBytes = bytes.length - 8 - headerLength;

type Next = () => number;
const pick = <T>(next: Next, list: readonly T[]): T => list[Math.floor(next() * list.length)];

/** Values that are wrong almost everywhere. */
const ODD: readonly unknown[] = [
  null,
  true,
  '',
  'F32',
  'BF16',
  -1,
  0,
  1,
  1.5,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  2 ** 63,
  1e308,
  -0,
  [],
  [0],
  [0, 0],
  [1, 2, 3],
  [-1, 4],
  [2 ** 53, 2 ** 53],
  {},
  '__proto__',
  new Array(300).fill(1),
];

/** A header with one to three changes to its structure, as text. */
function mutateStructure(next: Next): string {
  const header = JSON.parse(headerText) as Record<string, Record<string, unknown>>;
  for (let changes = 1 + Math.floor(next() * 3); changes > 0; changes--) {
    const names = Object.keys(header);
    const name = pick(next, names);
    const entry = header[name];
    switch (Math.floor(next() * 9)) {
      case 0:
        delete header[name];
        break;
      case 1:
        Object.assign(header, { [name]: pick(next, ODD) });
        break;
      case 2:
        Object.assign(header, {
          [pick(next, ['__metadata__', '__proto__', 'constructor', '', 'x'.repeat(2000), `${name} `])]: entry,
        });
        break;
      case 3:
        if (entry && typeof entry === 'object') entry[pick(next, ['dtype', 'shape', 'data_offsets'])] = pick(next, ODD);
        break;
      case 4:
        if (entry && typeof entry === 'object') delete entry[pick(next, ['dtype', 'shape', 'data_offsets'])];
        break;
      case 5:
        if (Array.isArray(entry?.shape) && entry.shape.length > 0)
          entry.shape[Math.floor(next() * entry.shape.length)] = pick(next, ODD);
        break;
      case 6:
        if (Array.isArray(entry?.data_offsets))
          entry.data_offsets[Math.floor(next() * 2)] =
            next() < 0.5 ? pick(next, ODD) : Math.floor(next() * (dataBytes + 16));
        break;
      case 7: {
        // Two tensors swap something: still a well-formed file, of another model.
        const other = header[pick(next, names)];
        const key = pick(next, ['dtype', 'shape', 'data_offsets']);
        if (entry && other && typeof entry === 'object' && typeof other === 'object')
          [entry[key], other[key]] = [other[key], entry[key]];
        break;
      }
      default:
        if (entry && typeof entry === 'object')
          entry.dtype = pick(next, [
            'F64',
            'I64',
            'BOOL',
            'F16',
            'BF16',
            'F8_E4M3',
            'F4',
            'F6_E2M3',
            'C64',
            'I8',
            'f32',
            'F32 ',
          ]);
    }
  }
  return JSON.stringify(header);
}

/** Text with one to four characters changed, dropped, doubled, or pieces moved. */
function mutateText(next: Next): string {
  let text = headerText;
  for (let changes = 1 + Math.floor(next() * 4); changes > 0; changes--) {
    const at = Math.floor(next() * text.length);
    const length = 1 + Math.floor(next() * 20);
    switch (Math.floor(next() * 5)) {
      case 0:
        text =
          text.slice(0, at) +
          pick(next, ['"', '{', '}', '[', ']', ',', ':', '0', '9', '-', 'e', '\\', '\u0000', 'é', '\ud800']) +
          text.slice(at + 1);
        break;
      case 1:
        text = text.slice(0, at) + text.slice(at + length);
        break;
      case 2:
        text = text.slice(0, at) + text.slice(at, at + length) + text.slice(at);
        break;
      case 3:
        text = text.slice(0, at) + String(Math.floor(next() * 10 ** Math.floor(next() * 20))) + text.slice(at);
        break;
      default: {
        const to = Math.floor(next() * text.length);
        text = text.slice(0, at) + text.slice(to, to + length) + text.slice(at + length);
      }
    }
  }
  return text;
}

/** The file with bytes changed, cut off, added, or its length field wrong. */
function mutateBytes(next: Next): Buffer {
  let file = Buffer.from(bytes);
  for (let changes = 1 + Math.floor(next() * 3); changes > 0; changes--) {
    switch (Math.floor(next() * 6)) {
      case 0:
        for (let i = 0; i < 8; i++)
          if (file.length > 0) file[Math.floor(next() * file.length)] = Math.floor(next() * 256);
        break;
      case 1:
        file = file.subarray(0, Math.floor(next() * file.length));
        break;
      case 2:
        file = Buffer.concat([file, Buffer.alloc(Math.floor(next() * 64), 7)]);
        break;
      case 3:
        if (file.length >= 8)
          file.writeBigUInt64LE(BigInt(Math.floor(next() * 2 ** Math.floor(next() * 63))) % 2n ** 64n, 0);
        break;
      case 4: {
        const at = Math.floor(next() * file.length);
        file = Buffer.concat([file.subarray(0, at), file.subarray(at + 1 + Math.floor(next() * 32))]);
        break;
      }
      default:
        if (file.length > 0)
          file[Math.floor(next() * Math.min(file.length, 8 + headerLength))] ^= 1 << Math.floor(next() * 8);
    }
  }
  return file;
}

const frame = (text: string): Buffer => {
  const header = Buffer.from(text);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, bytes.subarray(8 + headerLength)]);
};

const MEMORY = 256 * 2 ** 20;

/** `body` must not let the process grow. */
async function withoutGrowth(body: () => Promise<void>): Promise<void> {
  const before = process.memoryUsage().rss;
  await body();
  expect(process.memoryUsage().rss - before).toBeLessThan(MEMORY);
}

/** Runs one case, counts how it ended, and keeps the longest CPU time (ms); only a typed error or success passes. */
async function attempt(
  tally: { ok: number; refused: number; slowest: number },
  what: () => unknown,
  describe: () => string,
): Promise<void> {
  const begin = process.cpuUsage();
  try {
    await what();
    tally.ok++;
  } catch (error) {
    if (
      !isDUltraError(error) ||
      !['BAD_CHECKPOINT', 'NON_FINITE', 'OUT_OF_MEMORY'].includes(error.code) ||
      error.message.length > 2000
    )
      throw new Error(`${describe()}: ended with ${(error as Error)?.stack ?? error}`);
    tally.refused++;
  }
  const { user, system } = process.cpuUsage(begin);
  tally.slowest = Math.max(tally.slowest, (user + system) / 1000);
}

test(
  '12,000 damaged headers',
  () =>
    withoutGrowth(async () => {
      const next = random(SEED);
      const tally = { ok: 0, refused: 0, slowest: 0 };
      for (let i = 0; i < 12_000 * RUNS; i++) {
        const text = next() < 0.6 ? mutateStructure(next) : mutateText(next);
        await attempt(
          tally,
          () => {
            const entries = new Map<string, TensorEntry>();
            for (const [name, entry] of parseSafetensorsHeader(text, dataBytes, 'model.safetensors'))
              entries.set(name, { ...entry, file: 0, path: 'model.safetensors' });
            for (const ref of matchTensors(config, entries, 'folder', checkpointName)) {
              // What is let through lies inside the file and has the size of its shape.
              expect(ref.end).toBeLessThanOrEqual(dataBytes);
              const elements = ref.shape.reduce((product, n) => product * n, 1);
              expect(ref.end - ref.begin).toBe(elements * (ref.dtype === 'F32' ? 4 : 2));
            }
          },
          () => `header ${i} of seed ${SEED}`,
        );
      }
      expect(tally.refused).toBeGreaterThan(9000);
      expect(tally.ok).toBeGreaterThan(20);
      expect(tally.slowest).toBeLessThan(2000);
    }),
  600_000 * RUNS,
);

test(
  '2,000 damaged files, read by the file',
  () =>
    withoutGrowth(async () => {
      const next = random(SEED + 1);
      const tally = { ok: 0, refused: 0, slowest: 0 };
      const file = path.join(temporaryFolder(), 'model.safetensors');
      for (let i = 0; i < 2000 * RUNS; i++) {
        writeFileSync(file, mutateBytes(next));
        await attempt(
          tally,
          async () => {
            await readSafetensorsEntries([file]);
            for (const [name, { data, shape }] of await readSafetensors(file))
              expect({ name, elements: data.length }).toEqual({
                name,
                elements: shape.reduce((product, n) => product * n, 1),
              });
          },
          () => `file ${i} of seed ${SEED + 1}`,
        );
      }
      expect(tally.refused).toBeGreaterThan(1000);
      expect(tally.ok).toBeGreaterThan(20);
      expect(tally.slowest).toBeLessThan(5000);
    }),
  600_000 * RUNS,
);

test(
  '1,500 damaged checkpoints, loaded and run',
  () =>
    withoutGrowth(async () => {
      const next = random(SEED + 2);
      const tally = { ok: 0, refused: 0, slowest: 0 };
      const folder = temporaryFolder();
      const file = path.join(folder, 'model.safetensors');
      copyFileSync(path.join(base, 'config.json'), path.join(folder, 'config.json'));
      for (let i = 0; i < 1500 * RUNS; i++) {
        const kind = next();
        // Data alone damaged: such files are mapped and read to their end.
        let content: Buffer;
        if (kind < 0.35) {
          content = Buffer.from(bytes);
          for (let k = 0; k < 4; k++)
            content[8 + headerLength + Math.floor(next() * dataBytes)] = Math.floor(next() * 256);
        } else {
          content = kind < 0.6 ? mutateBytes(next) : frame(kind < 0.85 ? mutateStructure(next) : mutateText(next));
        }
        writeFileSync(file, content);
        await attempt(
          tally,
          async () => {
            const model = await loadModel(folder, { threads: 1 });
            try {
              const { logits } = await model.forward({ ids: [1, 10, 2] });
              expect(logits).toHaveLength(3 * 12);
            } finally {
              model.dispose();
            }
          },
          () => `checkpoint ${i} of seed ${SEED + 2}`,
        );
      }
      expect(tally.refused).toBeGreaterThan(500);
      expect(tally.ok).toBeGreaterThan(300);
      expect(tally.slowest).toBeLessThan(5000);
    }),
  600_000 * RUNS,
);

test(
  '2,000 damaged configs',
  () =>
    withoutGrowth(async () => {
      const next = random(SEED + 3);
      const tally = { ok: 0, refused: 0, slowest: 0 };
      const entries = await readSafetensorsEntries([path.join(base, 'model.safetensors')]);
      for (let i = 0; i < 2000 * RUNS; i++) {
        const changed = { ...json };
        for (let changes = 1 + Math.floor(next() * 2); changes > 0; changes--)
          changed[pick(next, Object.keys(json))] = pick(next, ODD);
        await attempt(
          tally,
          () =>
            matchTensors(
              parseDiffusionCheckpoint(changed, 'config.json', tensors).config,
              entries,
              'folder',
              checkpointName,
            ),
          () => `config ${i} of seed ${SEED + 3}: ${JSON.stringify(changed)}`,
        );
      }
      expect(tally.refused).toBeGreaterThan(1000);
      expect(tally.ok).toBeGreaterThan(50);
    }),
  600_000 * RUNS,
);

test('files that are written come back, and are never half there', async () => {
  const file = path.join(temporaryFolder(), 'out.safetensors');
  const tensors = new Map([
    ['a', { dtype: 'F32', shape: [2, 3], data: Float32Array.from([1, -2, 3.5, 0, Number.NaN, Infinity]) }],
    ['b', { dtype: 'BF16', shape: [3], data: Uint16Array.from([1, 2, 65535]) }],
    ['c.ü', { dtype: 'I64', shape: [], data: BigInt64Array.from([-(2n ** 62n)]) }],
    ['none', { dtype: 'F16', shape: [0, 4], data: new Uint16Array(0) }],
    ['flags', { dtype: 'BOOL', shape: [3], data: Uint8Array.from([1, 0, 1]) }],
  ]);
  await writeSafetensors(file, tensors, { format: 'pt' });
  const back = await readSafetensors(file);
  expect(new Map([...back].sort())).toEqual(new Map([...tensors].sort()));
  const before = readFileSync(file);
  // The data begins at a multiple of 8, and wide elements come first.
  expect(Number(before.readBigUInt64LE(0)) % 8).toBe(0);
  await expect(
    writeSafetensors(file, new Map([['a', { dtype: 'F32', shape: [2], data: new Float32Array(3) }]])),
  ).rejects.toThrow(RangeError);
  await expect(
    writeSafetensors(file, new Map([['a', { dtype: 'F4', shape: [2], data: new Float32Array(2) }]])),
  ).rejects.toThrow(TypeError);
  await expect(
    writeSafetensors(file, new Map([['__metadata__', { dtype: 'F32', shape: [1], data: new Float32Array(1) }]])),
  ).rejects.toThrow(RangeError);
  expect(readFileSync(file)).toEqual(before);
});
