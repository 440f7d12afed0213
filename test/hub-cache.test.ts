// Listing, filling and deleting the cache of the hub, in the API and on the command line.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { deleteCachedModel, downloadModel, isOptionError, listCachedModels, loadModel } from '../lib';
import { temporaryFolder, withTokenizer } from './helpers';
import { filesOf, HubServer, withoutHubVariables } from './hub-server';

withoutHubVariables();
let hub: HubServer;
let home: string;
const first = 'a'.repeat(40);
const second = 'b'.repeat(40);
const cache = () => path.join(home, 'hub', 'models--org--model');
const blobs = () => readdirSync(path.join(cache(), 'blobs'));

beforeEach(async () => {
  hub = await new HubServer(filesOf(withTokenizer())).start();
  hub.commit = first;
  home = temporaryFolder();
  process.env.HF_ENDPOINT = hub.url;
  process.env.HF_HOME = home;
});
afterEach(() => hub.stop());

const total = () => [...hub.files.values()].reduce((sum, { length }) => sum + length, 0);
/** A second commit that differs in one small file. */
async function twoCommits(): Promise<{ old: number; new: number }> {
  await downloadModel('org/model');
  const config = hub.files.get('config.json')!;
  hub.commit = second;
  hub.files.set('config.json', Buffer.from(`${config}\n\n`));
  await downloadModel('org/model');
  return { old: config.length, new: config.length + 2 };
}

describe('downloadModel', () => {
  test('brings a model that loadModel then finds by id and by folder', async () => {
    const folder = await downloadModel('org/model@main');
    expect(folder).toBe(path.join(cache(), 'snapshots', first));
    await hub.stop();
    process.env.HF_HUB_OFFLINE = '1';
    (await loadModel('org/model')).dispose();
    (await loadModel(folder)).dispose();
    await hub.start();
  });

  test('refuses wrong arguments, and a model that cannot be run', async () => {
    await expect(downloadModel(7 as never)).rejects.toThrow(/^source: expected a hub id/);
    await expect(downloadModel('org/model', { revison: 'x' } as never)).rejects.toThrow(/unknown key "revison"/);
    hub.files.set('config.json', Buffer.from('{"model_type":"chatter"}'));
    await expect(downloadModel('org/model')).rejects.toThrow(/the family "chatter", which dultra does not run/);
    expect(hub.fetched('model.safetensors')).toEqual([]);
  });
});

describe('listCachedModels', () => {
  test('without a cache there are none', async () => {
    expect(await listCachedModels()).toEqual([]);
  });

  test('models with their revisions, sizes and whether they are whole', async () => {
    const sizes = await twoCommits();
    const snapshot = (commit: string) => path.join(cache(), 'snapshots', commit);
    expect(await listCachedModels()).toEqual([
      {
        id: 'org/model',
        // The weights are there once, and the branch's commit is a file, too.
        bytes: total() + sizes.old + first.length,
        folder: cache(),
        revisions: [
          { commit: first, refs: [], bytes: total() - 2, isComplete: true, folder: snapshot(first) },
          { commit: second, refs: ['main'], bytes: total(), isComplete: true, folder: snapshot(second) },
        ],
      },
    ]);
  });

  test('what other programs, interruptions and accidents leave', async () => {
    await downloadModel('org/model');
    const other = (name: string) => path.join(home, 'hub', name);
    // A data set is no model; a model without a group; the beginning of a download; links that lead nowhere.
    mkdirSync(path.join(other('datasets--org--data'), 'snapshots', first), { recursive: true });
    mkdirSync(path.join(other('models--alone'), 'blobs'), { recursive: true });
    writeFileSync(path.join(other('models--alone'), 'blobs', 'x.incomplete'), 'begun');
    mkdirSync(path.join(cache(), 'refs', 'refs', 'pr'), { recursive: true });
    writeFileSync(path.join(cache(), 'refs', 'refs', 'pr', '1'), first);
    writeFileSync(path.join(cache(), 'refs', 'gone'), 'c'.repeat(40));
    const weights = path.join(cache(), 'snapshots', first, 'model.safetensors');
    rmSync(weights);
    symlinkSync('../../blobs/nothing', weights);
    const [alone, model, ...rest] = await listCachedModels();
    expect(rest).toEqual([]);
    expect(alone).toMatchObject({ id: 'alone', revisions: [], bytes: 5 });
    expect(model.revisions).toMatchObject([{ commit: first, refs: ['main', 'refs/pr/1'], isComplete: false }]);
    expect(model.revisions[0].bytes).toBe(total() - hub.files.get('model.safetensors')!.length);
  });
});

describe('deleteCachedModel', () => {
  test('one revision: what others share stays', async () => {
    const sizes = await twoCommits();
    const before = blobs().length;
    expect(await deleteCachedModel('org/model', { revision: first, dryRun: true })).toBe(sizes.old);
    expect(blobs()).toHaveLength(before);
    expect(await deleteCachedModel(`org/model@${first}`)).toBe(sizes.old);
    expect(blobs()).toHaveLength(before - 1);
    process.env.HF_HUB_OFFLINE = '1';
    (await loadModel('org/model')).dispose();
    // The last one takes the folder with it.
    await deleteCachedModel('org/model@main');
    expect(existsSync(cache())).toBe(false);
  });

  test('a whole model, and nothing beside it', async () => {
    await twoCommits();
    mkdirSync(path.join(home, 'hub', 'models--org--model2'));
    const { bytes } = (await listCachedModels())[0];
    expect(await deleteCachedModel('org/model')).toBe(bytes);
    expect(readdirSync(path.join(home, 'hub'))).toEqual(['models--org--model2']);
  });

  test('what links lead to outside of the cache stays', async () => {
    await twoCommits();
    const outside = path.join(temporaryFolder(), 'mine');
    writeFileSync(outside, 'mine');
    symlinkSync(outside, path.join(cache(), 'snapshots', first, 'notes.txt'));
    await deleteCachedModel('org/model', { revision: first });
    expect(readFileSync(outside, 'utf8')).toBe('mine');
  });

  test.each(['org/other', 'org/model@v9', `org/model@${'c'.repeat(40)}`])('%s is not there', async (source) => {
    await downloadModel('org/model');
    const error = await deleteCachedModel(source).catch((reason) => reason);
    expect([isOptionError(error), error.name]).toEqual([true, 'RangeError']);
    expect(error.message).toContain(`got "${source}"`);
    expect((await listCachedModels())[0].revisions).toHaveLength(1);
  });

  test.each(['../hub', 'org/..', '', '.'])('%j is no id', async (source) => {
    await downloadModel('org/model');
    await expect(deleteCachedModel(source)).rejects.toThrow(TypeError);
    expect(existsSync(cache())).toBe(true);
  });
});

describe('the command line', () => {
  const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
  const dultra = (...args: string[]) => {
    const child = spawn(process.execPath, [main, ...args], { env: { ...process.env, NO_COLOR: '1' } });
    const outcome = { code: null as number | null, stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr'] as const)
      child[name].on('data', (piece) => {
        outcome[name] += piece;
      });
    return new Promise<typeof outcome>((resolve) => child.on('close', (code) => resolve({ ...outcome, code })));
  };

  test('pull, models, and deleting with a confirmation', async () => {
    const pulled = await dultra('pull', 'org/model');
    expect(pulled).toMatchObject({ code: 0, stdout: `${path.join(cache(), 'snapshots', first)}\n` });
    expect(pulled.stderr).toMatch(/^downloading config\.json .*\n(.*\n)*downloading model\.safetensors \(/);
    expect(JSON.parse((await dultra('pull', 'org/model@main', '--json', '-q')).stdout)).toEqual({
      id: 'org/model@main',
      folder: path.join(cache(), 'snapshots', first),
    });

    const listed = await dultra('models');
    expect(listed.stdout).toMatch(
      /^model +revision +commit +state +size\norg\/model +main +aaaaaaaa +complete +\d+\.\d kB\n$/,
    );
    expect(listed.stderr).toMatch(/^1 model in the cache, \d+\.\d kB\n$/);
    expect(JSON.parse((await dultra('models', '--json')).stdout)).toEqual({ models: await listCachedModels() });

    const asked = await dultra('models', '--delete', 'org/model');
    expect(asked).toMatchObject({ code: 2, stdout: '' });
    expect(asked.stderr).toMatch(/deleting org\/model would free \d+\.\d kB: --yes deletes it/);
    expect(existsSync(cache())).toBe(true);
    const deleted = await dultra('models', '--delete', 'org/model', '--yes');
    expect(deleted).toMatchObject({ code: 0, stdout: '' });
    expect(deleted.stderr).toMatch(/^deleted org\/model: \d+\.\d kB are free\n$/);
    expect(existsSync(cache())).toBe(false);
    expect(await dultra('models')).toEqual({ code: 0, stdout: '', stderr: '0 models in the cache, 0 bytes\n' });
  });

  test('errors name what was typed', async () => {
    expect((await dultra('models', '--delete', 'org/nothing', '-y')).stderr).toMatch(
      /^dultra: --delete: expected a model in the cache \(.*\), got "org\/nothing"/,
    );
    expect((await dultra('models', '-y')).stderr).toMatch(/^dultra: --yes: expected together with --delete/);
    expect((await dultra('pull', 'a/b/c')).stderr).toMatch(/^dultra: id: expected .*, got "a\/b\/c"/);
    const missing = await dultra('pull', 'org/nothing');
    expect(missing).toMatchObject({ code: 1, stdout: '' });
    expect(missing.stderr).toMatch(/^dultra: org\/nothing@main: HTTP 404: no such repository/);
    // A model that cannot be run, however it is named.
    hub.files.set('config.json', Buffer.from('{"model_type":"chatter"}'));
    for (const args of [
      ['info', 'org/model'],
      ['generate', '-m', 'org/model', 'x'],
      ['pull', 'org/model'],
    ]) {
      const { stderr, code } = await dultra(...args);
      expect(code).toBe(1);
      const said = stderr.replace(/^downloading .*\n/gm, '');
      expect(said).toMatch(
        /^dultra: org\/model@main: config\.json: the model is of the family "chatter", which dultra does not run;.* with "dultra eval --autoregressive", /,
      );
      expect(said).not.toMatch(/--model names it/);
    }
    expect((await dultra('generate', '-m', 'nothing', 'x')).stderr).toMatch(
      /^dultra: no folder \.\/nothing, and the hub: nothing@main: HTTP 404/,
    );
  });
});
