// What is refused before the weights of a hub's model are downloaded, and caches that cannot be written.
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, lstatSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadCausalModel, loadModel } from '../lib';
import { locateSplit } from '../lib/data/records';
import { downloadFiles, downloadModel } from '../lib/hub';
import { availableMemory } from '../lib/model/memory';
import { exceptOnWindows, inFolder, temporaryFolder, withTokenizer } from './helpers';
import { filesOf, HubServer, withoutHubVariables } from './hub-server';

jest.mock('../lib/model/memory', () => ({ ...jest.requireActual('../lib/model/memory'), availableMemory: jest.fn() }));
const free = jest.mocked(availableMemory);
withoutHubVariables();

let hub: HubServer;
let home: string;
const cache = () => path.join(home, 'hub', 'models--org--model');

beforeEach(async () => {
  free.mockReturnValue(2 ** 34);
  hub = await new HubServer(filesOf(withTokenizer())).start();
  home = temporaryFolder();
  process.env.HF_ENDPOINT = hub.url;
  process.env.HF_HOME = home;
});
afterEach(() => hub.stop());

const weightsFetched = () => hub.seen.filter(({ path: at }) => /resolve.*safetensors$/.test(at));
/** Changes a JSON file of the repository. */
const change = (name: string, fields: object) =>
  hub.files.set(name, Buffer.from(JSON.stringify({ ...JSON.parse(String(hub.files.get(name) ?? '{}')), ...fields })));
const failure = async (call: Promise<unknown>) => {
  const error = await call.then(
    () => {
      throw new Error('it worked');
    },
    (reason) => reason,
  );
  expect(error).toMatchObject({ name: 'DUltraError' });
  return error as Error & { code: string };
};

describe('a model that cannot be run is refused before its weights are fetched', () => {
  test.each<[string, () => void, RegExp]>([
    [
      'another family',
      () => change('config.json', { model_type: 'chatter', architectures: ['ChatterModel'] }),
      /config\.json: the model is of the family "chatter", which dultra does not run; it runs/,
    ],
    [
      'a setting',
      () => change('config.json', { alibi: true }),
      /config\.json: alibi: expected false or null, got true/,
    ],
    [
      'quantized weights',
      () => change('config.json', { quantization_config: { bits: 4 } }),
      /config\.json: quantization_config/,
    ],
    ['a size', () => change('config.json', { n_heads: 5 }), /config\.json: d_model: expected a multiple of n_heads/],
    ['no JSON', () => hub.files.set('config.json', Buffer.from('{')), /config\.json: not JSON/],
    ['a tokenizer', () => hub.files.set('tokenizer.json', Buffer.from('[]')), /tokenizer\.json: /],
    ['defaults', () => change('generation_config.json', { gen_length: -1 }), /generation_config\.json: gen_length/],
  ])('%s', async (_name, prepare, message) => {
    prepare();
    const error = await failure(loadModel('org/model@main'));
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(message);
    // What the user has typed, and no folder of the cache.
    expect(error.message).toMatch(/^org\/model@main: /);
    expect(error.message).not.toContain(home);
    expect(weightsFetched()).toEqual([]);
    // Nothing says that the cache has it.
    expect(() => statSync(path.join(cache(), 'refs', 'main'))).toThrow();
  });

  test('an autoregressive model for loadModel, and the reverse', async () => {
    expect((await failure(loadCausalModel('org/model'))).message).toMatch(
      /masked diffusion model, which loadModel loads/,
    );
    change('config.json', { model_type: 'llama' });
    expect((await failure(loadModel('org/model'))).message).toMatch(
      /autoregressive model, which loadCausalModel loads/,
    );
    expect(weightsFetched()).toEqual([]);
  });

  test('one that can be run is, with its planner', async () => {
    change('generation_config.json', { sampler: { type: 'planner' } });
    const model = await loadModel('org/model');
    expect(model.hasPlanner).toBe(true);
    model.dispose();
  });
});

describe('what does not fit', () => {
  const huge = () => hub.claimed.set('model.safetensors', 1e15);

  test('on the disk', async () => {
    huge();
    const error = await failure(loadModel('org/model'));
    expect(error.code).toBe('DOWNLOAD_FAILED');
    expect(error.message).toMatch(
      /^org\/model@main: the download needs \d+\.\d GiB more on the disk of .*, \d+\.\d GiB are free; HF_HUB_CACHE or HF_HOME/,
    );
    expect(error.message).toContain(cache());
    expect(weightsFetched()).toEqual([]);
    expect((await failure(downloadModel('org/model'))).code).toBe('DOWNLOAD_FAILED');
  });

  test('a data set, on the disk', async () => {
    const data = await new HubServer(new Map([['train.parquet', Buffer.from('x')]]), 'org/data').start();
    try {
      process.env.HF_ENDPOINT = data.url;
      data.claimed.set('train.parquet', 1e15);
      const error = await failure(downloadFiles('dataset', 'org/data', (names) => names));
      expect(error.message).toMatch(/^data set org\/data@main: the download needs/);
      expect(data.fetched('train.parquet')).toEqual([]);
    } finally {
      await data.stop();
    }
  });

  test('in memory: said before the download, by the type that weights will have', async () => {
    const bytes = hub.files.get('model.safetensors')!.length;
    free.mockReturnValue(bytes);
    const error = await failure(loadModel('org/model'));
    expect(error.code).toBe('OUT_OF_MEMORY');
    expect(error.message).toMatch(
      /^org\/model@main: loading needs at least .* GiB, .* are free; nothing was downloaded$/,
    );
    expect(weightsFetched()).toEqual([]);
    // Weights of fp32 in bf16.
    (await loadModel('org/model', { dtype: 'bfloat16' })).dispose();
    // Downloading alone needs no memory, and what is there is judged by its headers.
    expect((await failure(loadModel('org/model'))).message).toMatch(/loading needs [^;]*; dtype: "bfloat16"/);
    rmSync(cache(), { recursive: true });
    free.mockReturnValue(0);
    await downloadModel('org/model');
  });
});

test('what is neither a folder nor on the hub', () =>
  // Not where the tests run: a folder such as runs/sft may be there.
  inFolder(home, async () => {
    expect((await failure(loadModel('nothing'))).message).toMatch(
      /^no folder \.\/nothing, and the hub: nothing@main: HTTP 404: no such repository/,
    );
    await expect(locateSplit({ source: 'data/test', config: null }, 'test')).rejects.toThrow(
      /^no file or folder \.\/data\/test, and the hub: data set data\/test@main: HTTP 404/,
    );
    await hub.stop();
    expect((await failure(loadModel('runs/sft'))).message).toMatch(
      /^no folder \.\/runs\/sft, and the hub: runs\/sft@main: fetch failed \(.*ECONNREFUSED/,
    );
  }));

/** Makes a folder, and all in it, read-only for everybody, or undoes that. */
function setWritable(folder: string, writable: boolean): void {
  for (const name of ['', ...readdirSync(folder, { recursive: true }).map(String)]) {
    const at = path.join(folder, name);
    const info = lstatSync(at);
    if (!info.isSymbolicLink()) chmodSync(at, (info.isDirectory() ? 0o555 : 0o444) | (writable ? 0o200 : 0));
  }
}

const isRoot = process.getuid?.() === 0;
const mounted = ['mount', '--bind', '.', '.', '&&', 'mount', '-o', 'remount,ro,bind', '.', '.', '&&'].join(' ');
const canMount = isRoot && spawnSync('unshare', ['-m', 'sh', '-c', `${mounted} true`], { cwd: __dirname }).status === 0;

describe('a cache that cannot be written', () => {
  const onPosix = exceptOnWindows('its permissions are others');
  const dist = path.join(__dirname, '..', 'dist', 'index.js');

  /** What loading prints in a process that may not write to the cache. */
  function load(how: 'permissions' | 'mount', env: object = {}): Promise<string> {
    const program = `require(${JSON.stringify(dist)}).loadModel('org/model').then((m) => console.log('loaded', m.source), (e) => console.log(e.code, e.message));`;
    const node = [process.execPath, '-e', program];
    const [command, ...args] =
      how === 'mount' ? ['unshare', '-m', 'sh', '-c', `${mounted} cd / && exec "$@"`, 'sh', ...node] : node;
    // Root may write everywhere.
    const user = how === 'permissions' && isRoot ? { uid: 65534, gid: 65534 } : {};
    if (how === 'permissions') setWritable(home, false);
    const child = spawn(command, args, {
      cwd: home,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'inherit'],
      ...user,
    });
    let output = '';
    child.stdout.on('data', (piece) => {
      output += piece;
    });
    return new Promise((resolve) =>
      child.on('close', () => {
        if (how === 'permissions') setWritable(home, true);
        resolve(output.trim());
      }),
    );
  }

  const ways = canMount ? (['permissions', 'mount'] as const) : (['permissions'] as const);
  for (const how of ways)
    onPosix(`by its ${how}: loads what is there, with a hub and without`, async () => {
      const source = await downloadModel('org/model');
      expect(await load(how)).toBe(`loaded ${source}`);
      expect(await load(how, { HF_HUB_OFFLINE: '1' })).toBe(`loaded ${source}`);
      // Everything but the record of which commit the branch is at.
      rmSync(path.join(cache(), 'refs'), { recursive: true });
      expect(await load(how)).toBe(`loaded ${source}`);
      writeFileSync(path.join(cache(), 'refs'), '');
      rmSync(path.join(cache(), 'refs'));
      mkdirSync(path.join(cache(), 'refs'));
      writeFileSync(path.join(cache(), 'refs', 'main'), 'f'.repeat(40));
      expect(await load(how)).toBe(`loaded ${source}`);
    });

  for (const how of ways)
    onPosix(`by its ${how}: says what it lacks`, async () => {
      const source = await downloadModel('org/model');
      hub.commit = 'a'.repeat(40);
      const lacks = await load(how);
      expect(lacks).toMatch(
        /^DOWNLOAD_FAILED org\/model@main: config\.json: it is not in the cache, which cannot be written \(E\w+: .*\); HF_HUB_CACHE or HF_HOME names another folder .*; the cache has a complete copy, which HF_HUB_OFFLINE=1 uses$/,
      );
      expect(await load(how, { HF_HUB_OFFLINE: '1' })).toBe(`loaded ${source}`);
      rmSync(path.join(home, 'hub'), { recursive: true });
      expect(await load(how)).toMatch(
        /^DOWNLOAD_FAILED .*config\.json: it is not in the cache, which cannot be written/,
      );
    });

  if (!canMount) test.skip('by its mount (skipped: this user or system cannot mount)', () => {});
});
