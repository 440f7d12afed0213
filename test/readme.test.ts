// What README.md shows, run as it stands: in a folder with a checkpoint "./checkpoint" and the package installed.
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { transformSync } from '@swc/core';
import { parseSampler } from '../lib';
import { temporaryFolder, withTokenizer } from './helpers';

jest.setTimeout(120_000);

const root = path.resolve(__dirname, '..');
const readme = readFileSync(path.join(root, 'README.md'), 'utf8');
const blocks = (language: string) =>
  [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\`$`, 'gm'))].map(([, text]) => text);

let folder: string;
beforeAll(() => {
  folder = temporaryFolder();
  renameSync(withTokenizer(512), path.join(folder, 'checkpoint'));
  mkdirSync(path.join(folder, 'node_modules'));
  symlinkSync(root, path.join(folder, 'node_modules', 'dultra'));
  // "npx dultra" without npm, which would ask the registry.
  const bin = path.join(folder, 'bin');
  mkdirSync(bin);
  const main = path.join(root, 'dist', 'cli', 'main.js');
  writeFileSync(path.join(bin, 'npx'), `#!/bin/sh\n[ "$1" = dultra ] || exit 99\nshift\nexec "${process.execPath}" "${main}" "$@"\n`);
  chmodSync(path.join(bin, 'npx'), 0o755);
});

test('there is code to run', () => {
  expect(blocks('js').length).toBeGreaterThanOrEqual(3);
  const lines = readme.split('\n');
  const first = lines.indexOf('```js');
  expect(lines.indexOf('```', first)).toBeLessThan(30);
});

test.each(blocks('js').map((code, i) => [i + 1, code] as const))('JavaScript block %i runs', (i, code) => {
  // Older versions of Node do not know "await using".
  const parser = { syntax: 'ecmascript' as const, explicitResourceManagement: true };
  const lowered = transformSync(code, { jsc: { parser, target: 'es2022' }, module: { type: 'es6' } });
  const file = path.join(folder, `block${i}.mjs`);
  writeFileSync(file, lowered.code);
  const { status, stdout, stderr } = spawnSync(process.execPath, [file], { cwd: folder, encoding: 'utf8' });
  expect(stderr).toBe('');
  expect(status).toBe(0);
  expect(stdout).not.toBe('');
});

const commands = blocks('bash').flatMap((block) => block.split('\n').filter((line) => line.includes('npx dultra')));

test.each(commands)('%s', (command) => {
  const env = { ...process.env, PATH: `${path.join(folder, 'bin')}${path.delimiter}${process.env.PATH}`, NO_COLOR: '1' };
  const { status, stdout, stderr } = spawnSync('sh', ['-c', command], { cwd: folder, env, encoding: 'utf8' });
  expect(stderr).not.toMatch(/^dultra:/m);
  expect(status).toBe(0);
  if (command.includes('--json')) expect(() => JSON.parse(stdout)).not.toThrow();
  expect(stdout).not.toBe('');
});

test('npm scripts that it names exist', () => {
  const { scripts } = require('../package.json') as { scripts: Record<string, string> };
  const named = [...readme.matchAll(/npm run ([\w:]+)/g)].map(([, name]) => name);
  expect(named).toContain('quickstart');
  for (const name of named) expect(Object.keys(scripts)).toContain(name);
});

test('the two columns of the sampler table mean the same', () => {
  const rows = [...readme.matchAll(/^\| `\{ (type: .*?) \}` \|.*\| `([^`]+)` \|$/gm)];
  expect(rows.length).toBeGreaterThanOrEqual(7);
  for (const [, object, short] of rows) {
    const json = `{${object.replace(/(\w+):/g, '"$1":').replaceAll("'", '"')}}`;
    expect(parseSampler(short)).toEqual(JSON.parse(json));
  }
});

test('links into the repository lead somewhere', () => {
  const links = [...readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)].map(([, target]) => target);
  expect(links.length).toBeGreaterThan(3);
  for (const link of links) expect([link, existsSync(path.join(root, link))]).toEqual([link, true]);
});
