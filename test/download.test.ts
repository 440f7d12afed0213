// Models from a hub, with a local server standing in for it.
import { spawn } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { type DUltraError, type LoadProgress, loadModel } from '../lib';
import { type DownloadProgress, downloadModel, parseHubId } from '../lib/hub';
import { makeCheckpoint, random } from './checkpoints';
import { inFolder, temporaryFolder } from './helpers';
import { filesOf, HubServer, withoutHubVariables } from './hub-server';

const { folder: checkpoint } = makeCheckpoint({ shards: 2 });
withoutHubVariables();

let hub: HubServer;
let home: string;
const servers: HubServer[] = [];

/** A random file of `megabytes`. */
function noise(megabytes: number): Buffer {
  const next = random(megabytes * 1000);
  const data = Buffer.alloc(megabytes * 2 ** 20);
  for (let i = 0; i < data.length; i += 4) data.writeUInt32LE(Math.floor(next() * 2 ** 32), i);
  return data;
}
const BIG = noise(3);
const big = () =>
  new Map([
    ['config.json', Buffer.from('{}')],
    ['model.safetensors', BIG],
  ]);

async function serve(files: Map<string, Buffer>): Promise<HubServer> {
  const server = await new HubServer(files).start();
  servers.push(server);
  return server;
}

beforeEach(async () => {
  const files = filesOf(checkpoint);
  files.set('README.md', Buffer.from('# not needed'));
  files.set('pytorch_model.bin', Buffer.alloc(1000));
  hub = await serve(files);
  home = temporaryFolder();
  process.env.HF_ENDPOINT = hub.url;
  process.env.HF_HOME = home;
});
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.stop()));
});

const cache = () => path.join(home, 'hub', 'models--org--model');
const blobs = () => readdirSync(path.join(cache(), 'blobs'));
const failure = async (call: Promise<unknown>): Promise<DUltraError> => {
  const error = await call.then(
    () => {
      throw new Error('it worked');
    },
    (reason) => reason,
  );
  expect(error).toMatchObject({ name: 'DUltraError', code: 'DOWNLOAD_FAILED' });
  expect(error.message).toMatch(/^(org\/model@\w+|HF_\w+): /);
  return error;
};

describe('the cache', () => {
  test('a model from the hub loads, and lies as the official clients lay it', async () => {
    const progress: LoadProgress[] = [];
    const model = await loadModel('org/model', { onProgress: (at) => progress.push({ ...at }) });
    expect(model.source).toBe(path.join(cache(), 'snapshots', hub.commit));
    const local = await loadModel(checkpoint);
    const request = { ids: [1, 2, 3, 44] };
    expect(await model.forward(request)).toEqual(await local.forward(request));
    model.dispose();
    local.dispose();

    const names = readdirSync(model.source).sort();
    expect(names).toEqual(readdirSync(checkpoint).sort());
    for (const name of names) {
      const link = path.join(model.source, name);
      expect(lstatSync(link).isSymbolicLink()).toBe(true);
      const content = hub.files.get(name)!;
      expect(readlinkSync(link)).toBe(path.join('..', '..', 'blobs', HubServer.blobName(name, content)));
      expect(readFileSync(link)).toEqual(content);
    }
    expect(blobs().sort()).toEqual(names.map((name) => HubServer.blobName(name, hub.files.get(name)!)).sort());
    expect(readFileSync(path.join(cache(), 'refs', 'main'), 'utf8')).toBe(hub.commit);

    for (const name of names) {
      const steps = progress.filter(({ file }) => file === name);
      const total = hub.files.get(name)!.length;
      expect(steps[0]).toEqual({ stage: 'download', file: name, loadedBytes: 0, totalBytes: total });
      expect(steps.at(-1)).toEqual({ stage: 'download', file: name, loadedBytes: total, totalBytes: total });
      for (let i = 1; i < steps.length; i++)
        expect(steps[i].loadedBytes).toBeGreaterThanOrEqual(steps[i - 1].loadedBytes);
    }
    // Then the weights.
    expect(progress.at(-1)!.stage).toBe('weights');
    expect(progress.findIndex(({ stage }) => stage === 'weights')).toBeGreaterThan(
      progress.findLastIndex(({ stage }) => stage === 'download'),
    );
    // What is not needed is not fetched.
    expect(hub.fetched('README.md')).toEqual([]);
    expect(hub.fetched('pytorch_model.bin')).toEqual([]);
  });

  test('what is there is not fetched again; what is cut short is', async () => {
    const folder = await downloadModel('org/model');
    hub.seen.length = 0;
    expect(await downloadModel('org/model')).toBe(folder);
    expect(hub.seen.filter(({ path: at }) => at.includes('/resolve/'))).toEqual([]);
    // A commit never changes: not even a question.
    hub.seen.length = 0;
    expect(await downloadModel(`org/model@${hub.commit}`)).toBe(folder);
    expect(hub.seen).toEqual([]);
    const blob = path.join(cache(), 'blobs', HubServer.blobName('config.json', hub.files.get('config.json')!));
    writeFileSync(blob, '{');
    await downloadModel('org/model');
    expect(readFileSync(blob)).toEqual(hub.files.get('config.json'));
  });

  test('a new commit shares what has not changed', async () => {
    const first = await downloadModel('org/model');
    hub.commit = 'f'.repeat(40);
    hub.files.set('config.json', Buffer.from(`${hub.files.get('config.json')} `));
    hub.seen.length = 0;
    const second = await downloadModel('org/model');
    expect(second).not.toBe(first);
    expect(
      hub.seen.filter(({ path: at }) => at.includes('/resolve/')).map(({ path: at }) => path.basename(at)),
    ).toEqual(['config.json']);
    expect(readFileSync(path.join(cache(), 'refs', 'main'), 'utf8')).toBe(hub.commit);
    expect(existsSync(path.join(first, 'config.json'))).toBe(true);
  });

  test('HF_HUB_CACHE goes before HF_HOME', async () => {
    process.env.HF_HUB_CACHE = path.join(home, 'elsewhere');
    expect(await downloadModel('org/model')).toBe(
      path.join(home, 'elsewhere', 'models--org--model', 'snapshots', hub.commit),
    );
  });

  test('HF_HUB_OFFLINE: the cache alone', async () => {
    process.env.HF_HUB_OFFLINE = '1';
    expect((await failure(downloadModel('org/model'))).message).toMatch(
      /HF_HUB_OFFLINE is set and the checkpoint is not in the cache/,
    );
    expect(hub.seen).toEqual([]);
    delete process.env.HF_HUB_OFFLINE;
    const folder = await downloadModel('org/model');
    hub.seen.length = 0;
    process.env.HF_HUB_OFFLINE = '1';
    expect(await downloadModel('org/model')).toBe(folder);
    expect(await downloadModel('org/model@main')).toBe(folder);
    expect(await downloadModel('org/model', { revision: hub.commit })).toBe(folder);
    rmSync(path.join(folder, readdirSync(folder).find((name) => name.endsWith('.safetensors'))!));
    expect((await failure(downloadModel('org/model'))).message).toMatch(/not completely in the cache/);
    expect(hub.seen).toEqual([]);
  });

  test('a hub that is gone: the error tells of the copy in the cache', async () => {
    await downloadModel('org/model');
    hub.interfere = (_request, response) => {
      response.statusCode = 403;
      response.end('{}');
      return true;
    };
    expect((await failure(downloadModel('org/model'))).message).toMatch(/HTTP 403.*HF_HUB_OFFLINE=1 uses/);
  });

  test('a folder of the name goes before the hub', async () => {
    const parent = temporaryFolder();
    mkdirSync(path.join(parent, 'org', 'model'), { recursive: true });
    await inFolder(parent, () => expect(loadModel('org/model')).rejects.toMatchObject({ code: 'BAD_CHECKPOINT' }));
    expect(hub.seen).toEqual([]);
  });
});

describe('what is fetched', () => {
  test('an index that names a file outside is refused before it is fetched', async () => {
    hub.files.set(
      'model.safetensors.index.json',
      Buffer.from(JSON.stringify({ weight_map: { a: '../../../x.safetensors' } })),
    );
    await expect(downloadModel('org/model')).rejects.toMatchObject({
      code: 'BAD_CHECKPOINT',
      message: expect.stringMatching(/expected the name/),
    });
    expect(hub.seen.filter(({ path: at }) => at.includes('x.safetensors'))).toEqual([]);
  });

  test('an index that names a file that the repository lacks', async () => {
    hub.files.set('model.safetensors.index.json', Buffer.from(JSON.stringify({ weight_map: { a: 'x.safetensors' } })));
    expect((await failure(downloadModel('org/model'))).message).toMatch(
      /x\.safetensors: the repository has no such file/,
    );
  });

  test('a single file comes before the shards of an earlier upload', async () => {
    const { folder: later } = makeCheckpoint({ seed: 9 });
    hub.files.set('model.safetensors', readFileSync(path.join(later, 'model.safetensors')));
    const folder = await downloadModel('org/model');
    expect(readdirSync(folder).filter((name) => name.endsWith('.safetensors'))).toEqual(['model.safetensors']);
    process.env.HF_HUB_OFFLINE = '1';
    expect(await downloadModel('org/model')).toBe(folder);
    await using model = await loadModel('org/model', { threads: 1 });
    await using local = await loadModel(later, { threads: 1 });
    const ids = [5, 17, 3, 44];
    expect((await model.forward({ ids })).logits).toEqual((await local.forward({ ids })).logits);
  });

  test.each([
    ['config.json', /config\.json: the repository has no such file/],
    ['.safetensors', /no \*\.safetensors file/],
  ])('a repository without %s', async (ending, message) => {
    for (const name of [...hub.files.keys()])
      if (name.endsWith(ending) || (ending !== 'config.json' && name.includes('index'))) hub.files.delete(name);
    expect((await failure(downloadModel('org/model'))).message).toMatch(message);
  });

  test('revisions', async () => {
    await expect(downloadModel('org/model@main', { revision: 'other' })).rejects.toThrow(TypeError);
    expect((await failure(downloadModel('org/model', { revision: 'nowhere' }))).message).toMatch(
      /org\/model@nowhere: HTTP 404: no such repository, revision or file/,
    );
    await expect(loadModel('org/model', { revision: 'nowhere' })).rejects.toThrow(
      /^no folder \.\/org\/model, and the hub: org\/model@nowhere: HTTP 404/,
    );
  });

  test.each([
    'a/b/c',
    'org/..',
    '../x',
    'org/mo del',
    'org/',
    '/model',
    'org/model@',
    'org/model@a@b',
    'org/model@../x',
    'org/model@a//b',
    'a\\b',
  ])('%j is no id', (id) => expect(() => parseHubId(id)).toThrow(TypeError));
  test('ids', () => {
    expect(parseHubId('org/model')).toEqual({ id: 'org/model', revision: 'main' });
    expect(parseHubId('gpt2@refs/pr/1')).toEqual({ id: 'gpt2', revision: 'refs/pr/1' });
    expect(parseHubId('org/model', 'v1.0')).toEqual({ id: 'org/model', revision: 'v1.0' });
  });
});

describe('HF_TOKEN', () => {
  test('goes to the hub, and not to where it redirects', async () => {
    const storage = await serve(hub.files);
    hub.storage = storage;
    process.env.HF_TOKEN = 'hf_secret';
    await downloadModel('org/model');
    expect(hub.seen.length).toBeGreaterThan(4);
    for (const request of hub.seen) expect(request.authorization).toBe('Bearer hf_secret');
    expect(storage.seen.map(({ path: at }) => path.basename(at)).sort()).toEqual(
      [...hub.files.keys()].filter(HubServer.isLfs).sort(),
    );
    for (const request of storage.seen) expect(request.authorization).toBeNull();
  });

  test('is not sent where there is none, and a broken one is not shown', async () => {
    await downloadModel('org/model');
    for (const request of hub.seen) expect(request.authorization).toBeNull();
    process.env.HF_TOKEN = 'hf_se\ncret';
    hub.commit = 'e'.repeat(40);
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toMatch(/^HF_TOKEN: expected/);
    expect(error.stack).not.toMatch(/hf_se|cret/);
    // A file that ends with a new line gives a token that does.
    process.env.HF_TOKEN = ' hf_secret\n';
    hub.seen.length = 0;
    await downloadModel('org/model');
    expect(hub.seen[0].authorization).toBe('Bearer hf_secret');
  });

  test.each([
    [
      401,
      null,
      /HTTP 401: the name may be wrong; a private or gated repository needs HF_TOKEN set, or "hf auth login"/,
    ],
    [401, 'hf_secret', /HTTP 401: HF_TOKEN is not valid, or gives no access/],
    [403, 'hf_secret', /HTTP 403: accept the conditions on .*org\/model; the account of HF_TOKEN must be allowed/],
    [404, null, /HTTP 404: no such repository/],
    [410, null, /HTTP 410/],
  ])('status %i with token %j', async (status, token, message) => {
    if (token) process.env.HF_TOKEN = token;
    hub.interfere = (_request, response) => {
      response.statusCode = status;
      response.setHeader('content-type', 'application/json');
      response.end('{"error":"no"}');
      return true;
    };
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toMatch(message);
    expect(error.message).toContain(hub.url);
    expect(JSON.stringify(error) + error.message + error.stack).not.toContain('hf_secret');
    expect(hub.seen).toHaveLength(1);
  });

  test('a file that is refused is named', async () => {
    hub.interfere = (request, response) => {
      if (!request.path.includes('/resolve/') || !request.path.endsWith('safetensors')) return false;
      response.statusCode = 403;
      response.end();
      return true;
    };
    expect((await failure(downloadModel('org/model'))).message).toMatch(/model-00001-of-00002\.safetensors: HTTP 403/);
  });
});

describe('HF_ENDPOINT', () => {
  test.each(['ftp://x', 'x', 'http://'])('%j is refused', async (url) => {
    process.env.HF_ENDPOINT = url;
    expect((await failure(downloadModel('org/model'))).message).toMatch(/^HF_ENDPOINT: expected an http or https URL/);
  });
  test('nobody there', async () => {
    const gone = await serve(new Map());
    process.env.HF_ENDPOINT = `${gone.url}/`;
    await gone.stop();
    expect((await failure(downloadModel('org/model'))).message).toMatch(/fetch failed \(.*ECONNREFUSED.*\)/);
  });
});

describe('interruptions', () => {
  beforeEach(() => {
    hub.files.clear();
    for (const [name, data] of big()) hub.files.set(name, data);
  });
  const whole = async (folder: string) =>
    expect(readFileSync(path.join(folder, 'model.safetensors')).equals(BIG)).toBe(true);
  /** Answers the first requests for the weights otherwise. */
  const first = (
    count: number,
    answer: (response: import('node:http').ServerResponse, request: (typeof hub.seen)[0], content: Buffer) => unknown,
  ) => {
    let done = 0;
    hub.interfere = async (request, response, content) => {
      if (!request.path.endsWith('/model.safetensors') || done++ >= count) return false;
      await answer(response, request, content!);
      return true;
    };
  };

  test('a connection that breaks: goes on with the rest', async () => {
    first(3, (response, request, content) => {
      const begin = request.range ? Number(/\d+/.exec(request.range)![0]) : 0;
      return hub.send(request, response, content, Math.min(content.length - 1, begin + 700_000));
    });
    await whole(await downloadModel('org/model'));
    const ranges = hub
      .fetched('model.safetensors')
      .map(({ range }) => (range === null ? 0 : Number(/\d+/.exec(range)![0])));
    expect(ranges).toHaveLength(4);
    for (let i = 1; i < 4; i++) expect(ranges[i]).toBeGreaterThan(ranges[i - 1]);
  });

  test('an answer that ends early without an error', async () => {
    first(1, (response, _request, content) => {
      response.setHeader('transfer-encoding', 'chunked');
      response.end(content.subarray(0, 1_000_000));
    });
    await whole(await downloadModel('org/model'));
    expect(hub.fetched('model.safetensors')[1].range).toBe('bytes=1000000-');
  });

  test('an answer that is always empty ends', async () => {
    first(99, (response) => response.end());
    expect((await failure(downloadModel('org/model'))).message).toMatch(/model\.safetensors: 0 of \d+ bytes arrived/);
    expect(hub.fetched('model.safetensors')).toHaveLength(5);
  });

  test('an answer that is too long', async () => {
    first(99, (response, _request, content) => response.end(Buffer.concat([content, Buffer.alloc(10)])));
    expect((await failure(downloadModel('org/model'))).message).toMatch(/more than the \d+ bytes arrived/);
  });

  test('a server without ranges, and one that sends another range', async () => {
    let broke = false;
    hub.interfere = async (request, response, content) => {
      if (!request.path.endsWith('/model.safetensors')) return false;
      if (!broke) {
        broke = true;
        await hub.send(request, response, content!, 1_000_000);
      } else {
        await hub.send({ ...request, range: null }, response, content!);
      }
      return true;
    };
    await whole(await downloadModel('org/model'));
    rmSync(cache(), { recursive: true });
    let requests = 0;
    hub.interfere = async (request, response, content) => {
      if (!request.path.endsWith('/model.safetensors')) return false;
      if (requests++ === 0) await hub.send(request, response, content!, 1_000_000);
      else if (requests === 2) await hub.send({ ...request, range: 'bytes=5-' }, response, content!);
      else return false;
      return true;
    };
    await whole(await downloadModel('org/model'));
  });

  test.each([500, 503, 429])('HTTP %i once, and always', async (status) => {
    first(1, (response) => {
      response.writeHead(status, status === 429 ? { 'retry-after': '1' } : {});
      response.end();
    });
    const begin = performance.now();
    await whole(await downloadModel('org/model'));
    if (status === 429) expect(performance.now() - begin).toBeGreaterThan(990);
    rmSync(cache(), { recursive: true });
    hub.interfere = (_request, response) => {
      response.writeHead(status);
      response.end('{}');
      return true;
    };
    hub.seen.length = 0;
    expect((await failure(downloadModel('org/model'))).message).toMatch(new RegExp(`HTTP ${status}`));
    expect(hub.seen).toHaveLength(5);
  });

  test('a wrong checksum: nothing is left in the cache, and the next download begins anew', async () => {
    first(1, (response, _request, content) => {
      const damaged = Buffer.from(content);
      damaged[1_500_000] ^= 1;
      response.end(damaged);
    });
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toMatch(/model\.safetensors: its checksum is not the one that the hub lists/);
    expect(existsSync(path.join(cache(), 'snapshots', hub.commit, 'model.safetensors'))).toBe(false);
    expect(existsSync(path.join(cache(), 'refs', 'main'))).toBe(false);
    await whole(await downloadModel('org/model'));
    expect(hub.fetched('model.safetensors')[1].range).toBeNull();
  });

  test('a wrong checksum of a small file', async () => {
    hub.interfere = (request, response) => {
      if (!request.path.endsWith('/config.json')) return false;
      response.end('[]');
      return true;
    };
    expect((await failure(downloadModel('org/model'))).message).toMatch(/config\.json: its checksum/);
  });

  test('a damaged part of an earlier download: once from the beginning', async () => {
    const controller = new AbortController();
    const stop = new Error('stop');
    hub.pace = 5;
    const call = downloadModel('org/model', {
      signal: controller.signal,
      onProgress: ({ file, received }) => {
        if (file === 'model.safetensors' && received > 500_000) controller.abort(stop);
      },
    });
    await expect(call).rejects.toBe(stop);
    hub.pace = 0;
    const partial = blobs().find((name) => name.endsWith('.incomplete'))!;
    const file = path.join(cache(), 'blobs', partial);
    const content = readFileSync(file);
    content[1000] ^= 1;
    writeFileSync(file, content);
    hub.seen.length = 0;
    await whole(await downloadModel('org/model'));
    expect(hub.fetched('model.safetensors').map(({ range }) => range)).toEqual([`bytes=${content.length}-`, null]);
  });

  test('an abort, then the rest; progress counts what was there', async () => {
    const controller = new AbortController();
    const reason = new Error('not now');
    hub.pace = 5;
    const call = downloadModel('org/model', {
      signal: controller.signal,
      onProgress: ({ file, received }) => {
        if (file === 'model.safetensors' && received > 500_000) controller.abort(reason);
      },
    });
    await expect(call).rejects.toBe(reason);
    hub.pace = 0;
    hub.seen.length = 0;
    const progress: DownloadProgress[] = [];
    await whole(await downloadModel('org/model', { onProgress: (at) => progress.push(at) }));
    const [request] = hub.fetched('model.safetensors');
    const begin = Number(/\d+/.exec(request.range!)![0]);
    expect(begin).toBeGreaterThan(500_000);
    expect(progress.find(({ file }) => file === 'model.safetensors')!.received).toBe(begin);
    expect(blobs().filter((name) => name.endsWith('.incomplete'))).toEqual([]);
    await expect(downloadModel('org/model', { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });

  test('an error of the progress callback stops the download as it is', async () => {
    const mine = new RangeError('mine');
    await expect(
      downloadModel('org/model', {
        onProgress: () => {
          throw mine;
        },
      }),
    ).rejects.toBe(mine);
  });

  test('two at once in one process fetch once', async () => {
    hub.pace = 2;
    const both = await Promise.all([downloadModel('org/model'), downloadModel('org/model')]);
    expect(both[0]).toBe(both[1]);
    await whole(both[0]);
    expect(hub.fetched('model.safetensors')).toHaveLength(1);
    // One that stops does not stop the other.
    rmSync(cache(), { recursive: true });
    const controller = new AbortController();
    const calls = [downloadModel('org/model'), downloadModel('org/model', { signal: controller.signal })];
    setTimeout(() => controller.abort(), 40);
    await expect(calls[1]).rejects.toMatchObject({ name: 'AbortError' });
    await whole(await calls[0]);
  });

  const dist = path.join(__dirname, '..', 'dist', 'hub', 'index.js');
  const inProcess = () =>
    spawn(
      process.execPath,
      [
        '-e',
        `require(${JSON.stringify(dist)}).downloadModel('org/model').then((f) => console.log(f), (e) => { console.error(e); process.exit(1); })`,
      ],
      {
        env: process.env,
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
  const exitOf = (child: ReturnType<typeof inProcess>) =>
    new Promise((resolve) => child.on('close', (code, signal) => resolve(signal ?? code)));

  test('two processes at once, and one that is killed on the way', async () => {
    hub.pace = 3;
    expect(await Promise.all([inProcess(), inProcess()].map(exitOf))).toEqual([0, 0]);
    const folder = path.join(cache(), 'snapshots', hub.commit);
    await whole(folder);
    expect(blobs().filter((name) => name.endsWith('.incomplete'))).toEqual([]);
    rmSync(cache(), { recursive: true });

    hub.pace = 30;
    const killed = inProcess();
    const ended = exitOf(killed);
    const size = () => {
      const name = existsSync(path.join(cache(), 'blobs'))
        ? blobs().find((at) => at.endsWith('.incomplete') && at.length > 64 + 12)
        : undefined;
      const info = name === undefined ? null : statSync(path.join(cache(), 'blobs', name), { throwIfNoEntry: false });
      return info?.size ?? 0;
    };
    while (size() < 400_000) await new Promise((resolve) => setTimeout(resolve, 10));
    killed.kill('SIGKILL');
    expect(await ended).toBe('SIGKILL');
    hub.pace = 0;
    hub.seen.length = 0;
    await whole(await downloadModel('org/model'));
    expect(Number(/\d+/.exec(hub.fetched('model.safetensors')[0].range!)![0])).toBeGreaterThanOrEqual(400_000);
    expect(blobs().filter((name) => name.endsWith('.incomplete'))).toEqual([]);
  });
});

describe('disk', () => {
  test.each(['blobs', 'snapshots', 'refs'])('a file where the folder %s should be', async (name) => {
    mkdirSync(cache(), { recursive: true });
    writeFileSync(path.join(cache(), name), '');
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toMatch(/EEXIST|ENOTDIR/);
    expect((error.cause as NodeJS.ErrnoException).syscall).toBeDefined();
  });
  test('a cache that is a file', async () => {
    process.env.HF_HOME = __filename;
    expect((await failure(downloadModel('org/model'))).message).toMatch(/ENOTDIR|EEXIST/);
  });
});
