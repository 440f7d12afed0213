// The package as npm makes it: what is in it, and that it works where there is nothing but Node.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, realpathSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { modelFolder, temporaryFolder } from './helpers';

const root = path.resolve(__dirname, '..');
const { dependencies, version } = require('../package.json') as { dependencies: Record<string, string>; version: string };

jest.setTimeout(120_000);

let project: string;
let installed: string;
let bare: NodeJS.ProcessEnv;

beforeAll(() => {
  project = temporaryFolder();
  const packed = spawnSync('npm', ['pack', '--ignore-scripts', '--json', '--pack-destination', project], { cwd: root, encoding: 'utf8' });
  expect(packed.stderr).not.toMatch(/npm error/);
  installed = path.join(project, 'node_modules', 'dultra');
  mkdirSync(installed, { recursive: true });
  const unpacked = spawnSync('tar', ['-xzf', `dultra-${version}.tgz`, '-C', installed, '--strip-components=1'], { cwd: project });
  expect(unpacked.status).toBe(0);
  for (const name of Object.keys(dependencies)) {
    const link = path.join(project, 'node_modules', name);
    mkdirSync(path.dirname(link), { recursive: true });
    symlinkSync(path.join(root, 'node_modules', name), link);
  }
  // The addon that was built here, as npm run prebuilds would lay it down.
  const prebuilds = path.join(installed, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  for (const file of readdirSync(prebuilds)) expect(file).toMatch(/\.node$/);
  copyFileSync(path.join(root, 'build', 'Release', 'dultra.node'), path.join(prebuilds, 'dultra.node'));
  // No compiler, no CMake, no npm.
  const bin = path.join(project, 'bin');
  mkdirSync(bin);
  symlinkSync(realpathSync(process.execPath), path.join(bin, 'node'));
  bare = { PATH: bin, HOME: project };
});

function node(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: project, env: bare, encoding: 'utf8' });
  return { status, stdout, stderr };
}

test('holds what a build from source needs, and no tests', () => {
  for (const file of [
    'README.md',
    'LICENSE',
    'CHANGELOG.md',
    'CMakeLists.txt',
    'bindings.gyp',
    'scripts/build-native.cjs',
    'dist/index.d.ts',
  ])
    expect([file, existsSync(path.join(installed, file))]).toEqual([file, true]);
  const native = (folder: string) =>
    readdirSync(path.join(folder, 'native'), { recursive: true })
      .map(String)
      .filter((file) => /\.(cc|h|inl)$/.test(file) && !file.startsWith('test'))
      .sort();
  expect(native(installed)).toEqual(native(root));
  expect(existsSync(path.join(installed, 'native', 'test'))).toBe(false);
  expect(existsSync(path.join(installed, 'test'))).toBe(false);
});

test('without an addon the error says how to build one, and the build what it lacks', () => {
  const prebuilds = path.join(installed, 'prebuilds');
  const away = path.join(project, 'away');
  renameSync(prebuilds, away);
  try {
    const { scripts } = require(path.join(installed, 'package.json')) as { scripts: Record<string, string> };
    const use = node('-e', "require('dultra').systemInfo()");
    expect(use.stderr).toMatch(/dultra's native addon could not be loaded[\s\S]*npm explore dultra -- npm run build:native/);
    const script = /^node (\S+)$/.exec(scripts['build:native'])![1];
    const { status, stderr } = node(path.join(installed, script));
    expect(stderr).toMatch(/building dultra needs:\n {2}- CMake 3\.24 or newer \(not found\)\n {2}- a C\+\+17 compiler/);
    expect(status).toBe(1);
  } finally {
    renameSync(away, prebuilds);
  }
});

const program = `
  const model = await loadModel(${JSON.stringify(modelFolder('base'))});
  const { ids } = await model.generate({ promptIds: [5, 17, 3] }, { genLength: 8 });
  model.dispose();
  console.log(ids.length, typeof kernels.sample, new DUltraError('INTERNAL', 'x').code, parseSampler('fixed:2').steps);`;

test.each([
  ['CommonJS', 'use.cjs', `(async () => { const { loadModel, kernels, DUltraError, parseSampler } = require('dultra'); ${program} })();`],
  ['ESM', 'use.mjs', `import { loadModel, kernels, DUltraError, parseSampler } from 'dultra'; ${program}`],
])('%s', (_name, file, source) => {
  writeFileSync(path.join(project, file), source);
  expect(node(file)).toEqual({ status: 0, stdout: '8 function INTERNAL 2\n', stderr: '' });
});

test('the command line', () => {
  const { bin } = require('../package.json') as { bin: Record<string, string> };
  const main = path.join(installed, bin.dultra);
  expect(node(main, '--version').stdout).toBe(`${version}\n`);
  const generated = node(main, 'generate', '-m', modelFolder('base'), '--prompt-ids', '5,17,3', '-n', '8', '--json');
  expect(generated.stderr).toBe('');
  expect(JSON.parse(generated.stdout).result.ids).toHaveLength(8);
});
