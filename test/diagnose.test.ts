// What this machine has: diagnose and dultra doctor, and dultra bench.
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { diagnose, type Finding } from '../lib';
import { fitsEngines } from '../lib/diagnose';
import { inOneProcess, type Outcome } from './command-line';
import { temporaryFolder, withTokenizer } from './helpers';
import { HubServer, withoutHubVariables } from './hub-server';

withoutHubVariables();
const server = new HubServer();
beforeAll(() => server.start());
afterAll(() => server.stop());
beforeEach(() => {
  server.interfere = null;
  server.seen.length = 0;
  process.env.HF_ENDPOINT = server.url;
  process.env.HF_HOME = temporaryFolder();
  process.env.DULTRA_CUDA_PLUGIN = '/nowhere/libdultra_cuda.so';
});

const byName = async (): Promise<Record<string, Finding>> =>
  Object.fromEntries((await diagnose()).map((finding) => [finding.name, finding]));

test('everything has a finding, and whatever is not right says what to do', async () => {
  const findings = await diagnose();
  expect(findings.map(({ name }) => name)).toEqual([
    ...['node', 'binary', 'cpu', 'threads', 'memory', 'gpu', 'hub', 'token', 'cache', 'python'],
  ]);
  for (const { status, found, advice } of findings) {
    expect(found).not.toBe('');
    expect(advice === null).toBe(status === 'ok');
  }
  const [node, binary, , , , gpu] = findings;
  expect(node).toMatchObject({ status: 'ok', found: process.version });
  expect(binary).toMatchObject({ status: 'ok', found: expect.stringMatching(/\.node, version \d/) });
  expect(gpu).toMatchObject({ status: 'ok', found: expect.stringMatching(/^none: .*models run on the CPU$/) });
  await expect(diagnose({ verbose: true } as object)).rejects.toThrow('unknown key "verbose"');
  const reason = new Error('enough');
  await expect(diagnose({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
});

describe('the hub', () => {
  test('answers, also where it has no such page', async () => {
    const { hub, token } = await byName();
    expect(hub).toMatchObject({ status: 'ok', found: `${server.url} answers` });
    expect(token).toMatchObject({ status: 'ok', found: 'no login was found: public models need none' });
    expect(server.seen.map(({ authorization }) => authorization)).toEqual([null]);
  });

  test('knows the token, or refuses it; the token itself is not shown', async () => {
    process.env.HF_TOKEN = 'hf_secret';
    server.interfere = ({ path: at, authorization }, response) => {
      if (at !== '/api/whoami-v2' || authorization !== 'Bearer hf_secret') return false;
      response.end(JSON.stringify({ name: 'anna' }));
      return true;
    };
    const known = await diagnose();
    expect(known.find(({ name }) => name === 'token')).toMatchObject({ status: 'ok', found: 'HF_TOKEN: anna' });
    server.interfere = (_request, response) => {
      response.writeHead(401).end();
      return true;
    };
    const refused = await byName();
    expect(refused.token).toMatchObject({ status: 'warn', found: 'HF_TOKEN: the hub refuses it' });
    expect(refused.hub.status).toBe('ok');
    expect(JSON.stringify([known, refused])).not.toContain('hf_secret');
  });

  test('is not reached, is another address, is not to be asked', async () => {
    process.env.HF_ENDPOINT = 'http://127.0.0.1:9';
    const { hub } = await byName();
    expect(hub).toMatchObject({
      status: 'warn',
      found: expect.stringMatching(/^http:\/\/127\.0\.0\.1:9: fetch failed \(/),
    });
    process.env.HF_ENDPOINT = 'nonsense';
    expect((await byName()).hub).toMatchObject({
      status: 'fail',
      found: expect.stringMatching(/^HF_ENDPOINT: expected/),
    });
    process.env.HF_ENDPOINT = server.url;
    process.env.HF_HUB_OFFLINE = '1';
    server.seen.length = 0;
    expect((await byName()).hub).toMatchObject({
      status: 'warn',
      found: expect.stringMatching(/HF_HUB_OFFLINE is set$/),
    });
    expect(server.seen).toEqual([]);
  });

  test('its cache is measured', async () => {
    const folder = path.join(process.env.HF_HOME!, 'hub', 'models--org--name', 'blobs');
    mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, 'x'), Buffer.alloc(2 ** 27));
    const { cache } = await byName();
    expect(cache.found).toMatch(/hub: 1 model, 0\.1 GiB, [\d.]+ GiB free$/);
  });
});

test('versions of Node.js', () => {
  const range = '^20.19.0 || >=22.12.0';
  for (const version of ['v20.19.0', 'v20.20.2', 'v22.12.0', 'v22.13.1', 'v24.0.0'])
    expect(fitsEngines(version, range)).toBe(true);
  for (const version of ['v18.20.0', 'v20.18.3', 'v21.9.0', 'v22.11.0'])
    expect(fitsEngines(version, range)).toBe(false);
});

test('no binary: what was tried, and what to do', () => {
  const before = process.env.DULTRA_PREBUILD;
  let failed: Outcome;
  try {
    process.env.DULTRA_PREBUILD = '/nowhere';
    [failed] = inOneProcess([['doctor']]);
  } finally {
    if (before === undefined) delete process.env.DULTRA_PREBUILD;
    else process.env.DULTRA_PREBUILD = before;
  }
  // A clone may have binaries of a release beside its own.
  if (existsSync(path.join(__dirname, '..', 'prebuilds'))) return;
  expect(failed.code).toBe(1);
  expect(failed.stdout).toMatch(
    /^binary +fail +dultra's native addon could not be loaded .*\n( +- .*\n)+ +→ This package brings/m,
  );
  expect(failed.stdout).toMatch(/^memory +ok/m);
});

test('doctor prints the findings, and fails where one does', async () => {
  const outcomes = inOneProcess([['doctor'], ['doctor', '--json']]);
  expect(outcomes.map(({ code }) => code)).toEqual([0, 0]);
  expect(outcomes[0].stdout).toMatch(/^node +ok +v\d+/);
  expect(outcomes[0].stdout).toMatch(/^hub +warn +.*HF_HUB_OFFLINE is set\n +→ unset it to download models$/m);
  const { findings } = JSON.parse(outcomes[1].stdout);
  expect(findings.map(({ name }: Finding) => name)).toContain('python');
  process.env.HF_ENDPOINT = 'nonsense';
  const [failed, after] = inOneProcess([['doctor'], ['info']]);
  expect([failed.code, failed.stdout]).toEqual([1, expect.stringMatching(/^hub +fail +HF_ENDPOINT: expected/m)]);
  expect(after.code).toBe(0);
});

describe('bench', () => {
  test('medians with extremes, of whole rows', () => {
    const model = withTokenizer(128);
    const args = ['bench', '-m', model, '-n', '16', '--runs', '3'];
    const [json, text, prompt, embedded] = inOneProcess([
      [...args, '-s', 'fixed:4', '--cache', 'dual', '--prompt-tokens', '20', '--json'],
      args,
      [...args, '--chat', 'hi', '--json'],
      ['bench', '--runs', '1'],
    ]);
    const document = JSON.parse(json.stdout);
    expect(document).toMatchObject({
      promptTokens: 20,
      tokens: 16,
      passes: 4,
      runs: 3,
      system: { node: process.version },
    });
    expect(document.options).toMatchObject({ sampler: { type: 'fixed', steps: 4 }, cache: { type: 'dual' }, seed: 0 });
    expect(document.fullForwards).toBeLessThan(4);
    for (const { median, min, max } of [document.tokensPerSecond, document.msPerPass, document.seconds]) {
      expect(min).toBeGreaterThan(0);
      expect(median).toBeGreaterThanOrEqual(min);
      expect(max).toBeGreaterThanOrEqual(median);
    }
    expect(document.tokensPerSecond.median * document.seconds.median).toBeCloseTo(16, 6);
    expect(document.msPerPass.median * 4).toBeCloseTo(1000 * document.seconds.median, 6);
    expect(text.stdout).toMatch(/^sampler +planner \(default\)$/m);
    expect(text.stdout).toMatch(/^row +32 tokens of random ids, then 16 generated$/m);
    expect(text.stdout).toMatch(/^tokens\/s +[\d.]+ \([\d.]+ to [\d.]+\)$/m);
    expect(JSON.parse(prompt.stdout).promptTokens).toBe('user:hi;'.length);
    expect(embedded.stdout).toMatch(/^row +34 tokens of a prompt, then 48 generated$/m);
    expect([json, text, prompt, embedded].map(({ code, stderr }) => [code, stderr])).toEqual(
      [0, 0, 0, 0].map((code) => [code, '']),
    );
  });

  test('wrong usage', () => {
    const cases: [string[], RegExp][] = [
      [['--runs', '0'], /--runs: expected at least 1, got 0/],
      [['--prompt-tokens', '0'], /--prompt-tokens: expected at least 1, got 0/],
      [['--prompt-tokens', '5', 'text'], /--prompt-tokens: expected without a prompt/],
      [['--chat'], /--chat: expected a prompt beside it/],
      [['--prompt-tokens', '150'], /150 tokens and --max-tokens 48 make 198/],
    ];
    inOneProcess(cases.map(([args]) => ['bench', ...args])).forEach(({ code, stdout, stderr }, i) => {
      expect(stderr).toMatch(cases[i][1]);
      expect([code, stdout]).toEqual([2, '']);
    });
  });
});
