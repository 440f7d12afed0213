// loadModel: sources, options, progress, memory.
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type LoadProgress, loadModel } from '../lib';
import { linuxAvailableMemory } from '../lib/model/memory';
import { loadFailure, makeCheckpoint } from './checkpoints';
import { readTensors, temporaryFolder } from './helpers';

const WEIGHTS = 'model.safetensors';

describe('sources', () => {
  test.each([
    ['./no/such/folder', /no such folder/],
    [__filename, /expected a folder with config\.json or a \*\.gguf file, got a file/],
  ])('%s', async (source, message) => expect((await loadFailure(source)).message).toMatch(message));
  test('an empty folder', async () =>
    expect((await loadFailure(temporaryFolder())).message).toMatch(
      /: expected a checkpoint, a folder with config\.json and \*\.safetensors, got an empty folder$/,
    ));
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
    const error = await loadFailure(folder);
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
