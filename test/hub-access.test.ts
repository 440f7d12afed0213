// How the hub is reached: the login, proxies, and servers that fall silent. A local server stands in for the hub.
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { type AddressInfo, connect, createServer as createSocketServer, type Server as SocketServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { inspect } from 'node:util';
import { type DownloadProgress, downloadModel } from '../lib/hub';
import { exceptOnWindows, temporaryFolder } from './helpers';
import { HubServer, withoutHubVariables } from './hub-server';

withoutHubVariables();
const WEIGHTS = Buffer.alloc(2 * 2 ** 20, 'weights');

let hub: HubServer;
let home: string;
const closing: (() => unknown)[] = [];

beforeEach(async () => {
  hub = await new HubServer(
    new Map([
      ['config.json', Buffer.from('{}')],
      ['model.safetensors', WEIGHTS],
    ]),
  ).start();
  closing.push(() => hub.stop());
  home = temporaryFolder();
  process.env.HF_ENDPOINT = hub.url;
  process.env.HF_HOME = home;
});
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

const failure = async (call: Promise<unknown>): Promise<Error> => {
  const error = await call.then(
    () => {
      throw new Error('it worked');
    },
    (reason) => reason,
  );
  expect(error).toMatchObject({ name: 'DUltraError', code: 'DOWNLOAD_FAILED' });
  return error;
};
/** Everything that a program could print of an error. */
const printed = (error: Error): string => {
  const { cause } = error as { cause?: unknown };
  const all = inspect(error, { depth: 12, showHidden: true });
  return `${all}${error.stack}${JSON.stringify(error)}${cause instanceof Error ? printed(cause) : ''}`;
};

describe('the login', () => {
  const tokens = () => [...new Set(hub.seen.map(({ authorization }) => authorization))];
  const file = (name: string, text: string) => {
    const at = path.join(temporaryFolder(), name);
    writeFileSync(at, text);
    return at;
  };

  test.each<[string, () => void, string | null]>([
    ['HUGGING_FACE_HUB_TOKEN', () => Object.assign(process.env, { HUGGING_FACE_HUB_TOKEN: 'hf_old' }), 'hf_old'],
    [
      'HF_TOKEN before HUGGING_FACE_HUB_TOKEN',
      () => Object.assign(process.env, { HF_TOKEN: 'hf_new', HUGGING_FACE_HUB_TOKEN: 'hf_old' }),
      'hf_new',
    ],
    ['the file in HF_HOME', () => writeFileSync(path.join(home, 'token'), 'hf_file\n'), 'hf_file'],
    ['a file with the line end of Windows', () => writeFileSync(path.join(home, 'token'), 'hf_file\r\n'), 'hf_file'],
    [
      'a variable before the file',
      () => {
        writeFileSync(path.join(home, 'token'), 'hf_file');
        process.env.HF_TOKEN = 'hf_new';
      },
      'hf_new',
    ],
    [
      'an empty variable: the file',
      () => {
        writeFileSync(path.join(home, 'token'), 'hf_file');
        process.env.HF_TOKEN = ' ';
      },
      'hf_file',
    ],
    [
      'HF_TOKEN_PATH before HF_HOME',
      () => {
        writeFileSync(path.join(home, 'token'), 'hf_file');
        process.env.HF_TOKEN_PATH = file('mine', 'hf_path\n');
      },
      'hf_path',
    ],
    ['an empty file', () => writeFileSync(path.join(home, 'token'), '\n'), null],
    ['no file', () => Object.assign(process.env, { HF_TOKEN_PATH: path.join(home, 'nowhere') }), null],
    [
      'HF_HUB_DISABLE_IMPLICIT_TOKEN',
      () => Object.assign(process.env, { HF_TOKEN: 'hf_new', HF_HUB_DISABLE_IMPLICIT_TOKEN: '1' }),
      null,
    ],
  ])('%s', async (_name, prepare, token) => {
    prepare();
    await downloadModel('org/model');
    expect(tokens()).toEqual([token === null ? null : `Bearer ${token}`]);
  });

  test('without HF_HOME, in XDG_CACHE_HOME or ~/.cache', async () => {
    delete process.env.HF_HOME;
    process.env.HF_HUB_CACHE = path.join(home, 'cache');
    const folder = temporaryFolder();
    const homedir = jest.spyOn(os, 'homedir').mockReturnValue(folder);
    try {
      mkdirSync(path.join(folder, '.cache', 'huggingface'), { recursive: true });
      writeFileSync(path.join(folder, '.cache', 'huggingface', 'token'), 'hf_home');
      writeFileSync(path.join(folder, 'mine'), 'hf_mine');
      await downloadModel('org/model');
      process.env.HF_TOKEN_PATH = '~/mine';
      await downloadModel('org/model');
      delete process.env.HF_TOKEN_PATH;
      process.env.XDG_CACHE_HOME = home;
      await downloadModel('org/model');
    } finally {
      homedir.mockRestore();
    }
    expect(tokens()).toEqual(['Bearer hf_home', 'Bearer hf_mine', null]);
  });

  test('a token of the file goes to the hub alone, too', async () => {
    const storage = await new HubServer(hub.files).start();
    closing.push(() => storage.stop());
    hub.storage = storage;
    writeFileSync(path.join(home, 'token'), 'hf_file');
    await downloadModel('org/model');
    expect(tokens()).toEqual(['Bearer hf_file']);
    expect(storage.seen.map(({ authorization }) => authorization)).toEqual([null]);
  });

  test('a file that holds something else is named, and not shown', async () => {
    const at = path.join(home, 'token');
    writeFileSync(at, 'hf_one\nhf_two\n');
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toContain(`${at}: expected a token`);
    expect(printed(error)).not.toMatch(/hf_one|hf_two/);
    expect(hub.seen).toEqual([]);
  });

  const refuse = (status: number, code?: string) => {
    hub.interfere = (_request, response) => {
      response.writeHead(status, { 'content-type': 'application/json', ...(code && { 'x-error-code': code }) });
      response.end('{"error":"no"}');
      return true;
    };
  };
  test.each<[string, number, string | undefined, string | null, RegExp]>([
    [
      'nobody, private or wrong',
      401,
      'RepoNotFound',
      null,
      /HTTP 401: the name may be wrong; .*HF_TOKEN set, or "hf auth login" \(no login was found\)/,
    ],
    [
      'nobody, gated',
      401,
      'GatedRepo',
      null,
      /HTTP 401: accept the conditions on http.*\/org\/model, then set HF_TOKEN, or log in/,
    ],
    [
      'somebody, gated',
      403,
      'GatedRepo',
      'hf_file',
      /HTTP 403: accept the conditions on http.*\/org\/model; the account of the token in .*token must be allowed/,
    ],
    [
      'a token that is not valid',
      401,
      undefined,
      'hf_file',
      /HTTP 401: the token in .*token is not valid, or gives no access; http.*\/settings\/tokens makes another/,
    ],
  ])('what to do about %s', async (_name, status, code, token, message) => {
    if (token) writeFileSync(path.join(home, 'token'), token);
    refuse(status, code);
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toMatch(message);
    expect(printed(error)).not.toContain('hf_file');
  });

  test('a file that cannot be read is told of where the hub refuses', async () => {
    process.env.HF_TOKEN_PATH = home;
    await downloadModel('org/model');
    refuse(401);
    expect((await failure(downloadModel('org/model'))).message).toContain(`(${home} cannot be read (EISDIR))`);
  });
});

describe('proxies', () => {
  /** What a proxy was asked: the first line, and the login. */
  let asked: { line: string; authorization: string | undefined }[];
  let proxy: Server;
  const address = (login = '') => `http://${login}127.0.0.1:${(proxy.address() as AddressInfo).port}`;

  beforeEach(async () => {
    asked = [];
    // Sends everything to the hub, whatever its name.
    proxy = createServer(async (request, response) => {
      asked.push({ line: `${request.method} ${request.url}`, authorization: request.headers['proxy-authorization'] });
      if (request.headers['proxy-authorization'] === `Basic ${Buffer.from('no:secret').toString('base64')}`) {
        response.writeHead(407);
        response.end();
        return;
      }
      const { pathname, search } = new URL(request.url!);
      const answer = await fetch(`${hub.url}${pathname}${search}`);
      response.writeHead(answer.status, { 'content-type': answer.headers.get('content-type') ?? 'text/plain' });
      response.end(Buffer.from(await answer.arrayBuffer()));
    });
    proxy.on('connect', (request, socket) => {
      asked.push({ line: `CONNECT ${request.url}`, authorization: request.headers['proxy-authorization'] });
      socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n');
    });
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    closing.push(() => {
      proxy.closeAllConnections();
      proxy.close();
    });
    process.env.HF_ENDPOINT = 'http://hub.example';
  });

  test.each(['HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'])('%s is used', async (name) => {
    process.env[name] = address();
    await downloadModel('org/model');
    expect(asked).toHaveLength(hub.seen.length);
    expect(asked.every(({ line }) => line.startsWith('GET http://hub.example/'))).toBe(true);
  });

  test('without a scheme, and with a login', async () => {
    process.env.http_proxy = address('me:p%40ss@').slice('http://'.length);
    await downloadModel('org/model');
    expect(asked[0].authorization).toBe(`Basic ${Buffer.from('me:p@ss').toString('base64')}`);
    // The proxy's login is not the hub's.
    expect(hub.seen.map(({ authorization }) => authorization)).toContain(null);
  });

  exceptOnWindows('names of variables do not tell cases apart')(
    'lower case, and the narrower name, go first',
    async () => {
      Object.assign(process.env, {
        HTTP_PROXY: 'http://127.0.0.1:9',
        ALL_PROXY: 'http://127.0.0.1:9',
        http_proxy: address(),
      });
      await downloadModel('org/model');
      expect(asked.length).toBeGreaterThan(0);
    },
  );

  test.each(['https_proxy', 'ALL_PROXY', 'HTTP_PROXY'])(
    '%s tunnels https, and is named where that fails',
    async (name) => {
      process.env.HF_ENDPOINT = 'https://hub.example';
      process.env[name] = address('me:secret@');
      const error = await failure(downloadModel('org/model'));
      expect(asked[0]).toEqual({ line: 'CONNECT hub.example:443', authorization: 'Basic bWU6c2VjcmV0' });
      expect(error.message).toContain(`; proxies: ${name} ${address()}`);
      expect(printed(error)).not.toContain('secret');
    },
  );

  test('a proxy that is not there is named, without its login', async () => {
    process.env.HTTP_PROXY = 'http://me:secret@127.0.0.1:9';
    process.env.no_proxy = 'other.example';
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toMatch(
      /ECONNREFUSED.*; proxies: HTTP_PROXY http:\/\/127\.0\.0\.1:9; no_proxy "other\.example"/i,
    );
    expect(printed(error)).not.toContain('secret');
  });

  test.each(['127.0.0.1', '127.0.0.1:PORT', 'other.example, 127.0.0.1', '*'])('NO_PROXY=%s', async (none) => {
    process.env.HF_ENDPOINT = hub.url;
    process.env.HTTP_PROXY = address();
    process.env.NO_PROXY = none.replace('PORT', new URL(hub.url).port);
    await downloadModel('org/model');
    expect(asked).toEqual([]);
    process.env.NO_PROXY = 'elsewhere.example,127.0.0.1:1';
    await downloadModel('org/model');
    expect(asked.length).toBeGreaterThan(0);
  });

  test('a login that the proxy refuses', async () => {
    process.env.HTTP_PROXY = address('no:secret@');
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toContain(`Proxy Authentication Required (407)); proxies: HTTP_PROXY ${address()}`);
    expect(printed(error)).not.toContain('secret');
  });

  test.each(['ftp://me:secret@proxy', 'http://', 'me:secret@a b', 'socks4://me:secret@proxy:1080'])(
    '%j is refused by its name alone',
    async (value) => {
      process.env.HTTPS_PROXY = value;
      const error = await failure(downloadModel('org/model'));
      expect(error.message).toMatch(/^HTTPS_PROXY: expected the URL of a proxy/);
      expect(printed(error)).not.toContain('secret');
    },
  );

  describe('SOCKS5', () => {
    let socks: SocketServer;
    const names: string[] = [];
    beforeEach(async () => {
      // A greeting without a login, then "connect to a name": everything goes to the hub.
      socks = createSocketServer((socket) => {
        socket.once('data', () => {
          socket.write(Buffer.from([5, 0]));
          socket.once('data', (request) => {
            names.push(request.subarray(5, 5 + request[4]).toString());
            const target = connect(Number(new URL(hub.url).port), '127.0.0.1', () => {
              socket.write(Buffer.from([5, 0, 0, 1, 0, 0, 0, 0, 0, 0]));
              socket.pipe(target).pipe(socket);
            });
            target.on('error', () => socket.destroy());
            socket.on('error', () => target.destroy());
          });
        });
      });
      await new Promise<void>((resolve) => socks.listen(0, '127.0.0.1', resolve));
      closing.push(() => socks.close());
    });
    test.each(['socks5', 'socks5h'])('%s: the proxy resolves the name', async (scheme) => {
      process.env.ALL_PROXY = `${scheme}://127.0.0.1:${(socks.address() as AddressInfo).port}`;
      await downloadModel('org/model');
      expect(names).toContain('hub.example');
    });
  });
});

describe('a server that falls silent', () => {
  const silent = (times: number, after: number) => {
    let done = 0;
    hub.interfere = (request, response, content) => {
      if (!request.path.endsWith('/model.safetensors') || done++ >= times) return false;
      response.writeHead(200, { 'content-length': WEIGHTS.length });
      response.flushHeaders();
      if (after > 0) response.write(content!.subarray(0, after));
      return true;
    };
  };

  test('in the middle of a file: the rest is asked for', async () => {
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '0.5';
    silent(1, 700_000);
    const seen: DownloadProgress[] = [];
    await downloadModel('org/model', { onProgress: (progress) => seen.push(progress) });
    expect(hub.fetched('model.safetensors').map(({ range }) => range)).toEqual([null, 'bytes=700000-']);
    expect(seen.at(-1)).toEqual({ file: 'model.safetensors', received: WEIGHTS.length, total: WEIGHTS.length });
  });

  test('always: an error that says how long it waited, and what sets the limit', async () => {
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '0.2';
    silent(99, 0);
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toMatch(
      /^org\/model@main: model\.safetensors: the server sent nothing for 0\.2 s \(HF_HUB_DOWNLOAD_TIMEOUT sets this limit\)/,
    );
    expect(hub.fetched('model.safetensors')).toHaveLength(5);
  });

  test('before it says what there is', async () => {
    process.env.HF_HUB_ETAG_TIMEOUT = '0.2';
    hub.interfere = () => true;
    const error = await failure(downloadModel('org/model'));
    expect(error.message).toMatch(/the server sent nothing for 0\.2 s \(HF_HUB_ETAG_TIMEOUT sets this limit\)/);
  });

  test('in the middle of saying what there is, once', async () => {
    process.env.HF_HUB_ETAG_TIMEOUT = '0.5';
    let done = 0;
    hub.interfere = (request, response) => {
      if (!request.path.includes('/tree/') || done++ > 0) return false;
      response.writeHead(200, { 'content-type': 'application/json' });
      response.write('[');
      return true;
    };
    await downloadModel('org/model');
    expect(done).toBe(2);
  });

  test('a hub that asks to be asked later', async () => {
    let done = 0;
    hub.interfere = (request, response) => {
      if (!request.path.includes('/revision/') || done++ > 0) return false;
      response.writeHead(429, { 'retry-after': '1' });
      response.end();
      return true;
    };
    const begin = performance.now();
    await downloadModel('org/model');
    expect(performance.now() - begin).toBeGreaterThan(990);
  });

  test('a server that is slow, but never silent for so long, is waited for', async () => {
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '2';
    hub.pace = 100;
    const begin = performance.now();
    await downloadModel('org/model');
    expect(performance.now() - begin).toBeGreaterThan(2500);
    expect(hub.fetched('model.safetensors')).toHaveLength(1);
  });

  test('an abort does not wait', async () => {
    silent(99, 0);
    const controller = new AbortController();
    const reason = new Error('enough');
    setTimeout(() => controller.abort(reason), 200);
    await expect(downloadModel('org/model', { signal: controller.signal })).rejects.toBe(reason);
  });

  test.each(['0', '-1', 'soon', '1e9'])('HF_HUB_DOWNLOAD_TIMEOUT=%s is refused', async (value) => {
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = value;
    expect((await failure(downloadModel('org/model'))).message).toBe(
      `HF_HUB_DOWNLOAD_TIMEOUT: expected a positive number of seconds, got "${value}"`,
    );
  });
});
