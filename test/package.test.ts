// The package as npm makes it: what is in it, and that it works where there is nothing but Node. Within npm test the
// tarball is unpacked beside links to the packages of this clone; npm run test:package installs it with npm, from
// prebuilt binaries, and names the project in DULTRA_TEST_PROJECT.
import { spawn, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { modelFolder, temporaryFolder } from './helpers';

const { npmCommand } = require('../scripts/setup.cjs') as { npmCommand(): string[] };

const root = path.resolve(__dirname, '..');
const { dependencies, version, bin } = require('../package.json') as {
  dependencies: Record<string, string>;
  version: string;
  bin: Record<string, string>;
};
const platform = `${process.platform}-${process.arch}`;
const isWindows = process.platform === 'win32';

let project: string;
let installed: string;
let bare: NodeJS.ProcessEnv;

/**
 * An installation without npm: the tarball unpacked, dependencies linked, the addon that was built here in place of a
 * prebuilt one.
 */
function unpack(): void {
  const [npm, ...args] = npmCommand();
  args.push('pack', '--ignore-scripts', '--json', '--pack-destination', project);
  const packed = spawnSync(npm, args, { cwd: root, encoding: 'utf8' });
  expect(packed.stderr).not.toMatch(/npm error/);
  mkdirSync(installed, { recursive: true });
  const unpacked = spawnSync('tar', ['-xzf', `dultra-${version}.tgz`, '-C', installed, '--strip-components=1'], {
    cwd: project,
  });
  expect(unpacked.status).toBe(0);
  for (const name of Object.keys(dependencies)) {
    const link = path.join(project, 'node_modules', name);
    mkdirSync(path.dirname(link), { recursive: true });
    symlinkSync(path.join(root, 'node_modules', name), link, 'junction');
  }
  const prebuilds = path.join(installed, 'prebuilds', platform);
  mkdirSync(prebuilds, { recursive: true });
  for (const file of readdirSync(prebuilds)) expect(file).toMatch(/\.(node|so)$/);
  if (!readdirSync(prebuilds).some((file) => file.endsWith('.node')))
    copyFileSync(path.join(root, 'build', 'Release', 'dultra.node'), path.join(prebuilds, 'dultra.node'));
}

beforeAll(() => {
  project = process.env.DULTRA_TEST_PROJECT ?? temporaryFolder();
  installed = path.join(project, 'node_modules', 'dultra');
  if (process.env.DULTRA_TEST_PROJECT === undefined) unpack();
  // No compiler, no CMake, no npm.
  const tools = path.join(project, 'bin');
  mkdirSync(tools);
  if (isWindows) copyFileSync(process.execPath, path.join(tools, 'node.exe'));
  else symlinkSync(realpathSync(process.execPath), path.join(tools, 'node'));
  bare = { PATH: tools, HOME: project };
});

function node(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: project, env: bare, encoding: 'utf8' });
  return { status, stdout, stderr };
}

/** Runs `body` while a file or folder of the installed package is as `change` leaves it. */
function changed<T>(name: string, change: (file: string) => void, body: () => T): T {
  const file = path.join(installed, name);
  const away = path.join(project, 'away');
  const exists = existsSync(file);
  if (exists) renameSync(file, away);
  try {
    change(file);
    return body();
  } finally {
    if (existsSync(file)) renameSync(file, path.join(temporaryFolder(), 'changed'));
    if (exists) renameSync(away, file);
  }
}

const useAddon = () => node('-e', "console.log(require('dultra').systemInfo().version)");

test('holds what users and a build from source need, and nothing else', () => {
  const files = readdirSync(installed, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(installed, path.join(entry.parentPath, entry.name)).split(path.sep).join('/'))
    .filter((file) => !file.startsWith('node_modules/'));
  for (const file of [
    'README.md',
    'LICENSE',
    'CHANGELOG.md',
    'CMakeLists.txt',
    'CMakePresets.json',
    'bindings.gyp',
    'dist/index.d.ts',
    'lib/evaluation/report-page.css',
    'lib/evaluation/report-page.js',
    'lib/page.css',
    'package.json',
  ])
    expect(files).toContain(file);
  const kept =
    /^(dist|models|prebuilds|schemas|docs|examples)\/|^bench\/(README|results\/[\w-]+)\.md$|^lib\/((evaluation\/report|server\/playground)-)?page\.(css|html|js)$|^native\/(?!test\/)|^scripts\/(build-cuda|build-native|cmake|setup)\.cjs$|^(README|CHANGELOG|CONTRIBUTING)\.md$|^LICENSE$|^CMakeLists\.txt$|^CMakePresets\.json$|^bindings\.gyp$|^package\.json$/;
  expect(files.filter((file) => !kept.test(file))).toEqual([]);
  const sources = (folder: string) =>
    readdirSync(path.join(folder, 'native'), { recursive: true })
      .map((file) => String(file).split(path.sep).join('/'))
      .filter((file) => /\.(cc|h|inl|cu|cuh)$/.test(file) && !file.startsWith('test'))
      .sort();
  expect(sources(installed)).toEqual(sources(root));
});

test('links and pictures of its pages lead to files in it', () => {
  const pages = ['.', 'docs', 'examples', 'bench', 'models'].flatMap((folder) =>
    readdirSync(path.join(installed, folder))
      .filter((file) => file.endsWith('.md'))
      .map((file) => path.join(folder, file)),
  );
  expect(pages.length).toBeGreaterThan(20);
  const missing = pages.flatMap((page) =>
    [...readFileSync(path.join(installed, page), 'utf8').matchAll(/\]\((?!https?:|mailto:)([^)#\s]+)(?:#[^)]*)?\)/g)]
      .map(([, target]) => path.join(path.dirname(page), target))
      .filter((target) => !existsSync(path.join(installed, target))),
  );
  expect(missing).toEqual([]);
});

test('no install script runs in it', () => {
  const { scripts } = JSON.parse(readFileSync(path.join(installed, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>;
  };
  for (const name of ['preinstall', 'install', 'postinstall', 'prepare']) expect(scripts).not.toHaveProperty(name);
  // npm would build by itself what has one.
  expect(existsSync(path.join(installed, 'binding.gyp'))).toBe(false);
});

describe('the addon', () => {
  test('none: the error says for which platforms there is one and how to build it, and the build what it lacks', () => {
    changed(
      'prebuilds',
      (folder) => mkdirSync(path.join(folder, 'plan9-mips'), { recursive: true }),
      () => {
        expect(useAddon().stderr).toMatch(
          new RegExp(
            `dultra's native addon could not be loaded for ${platform}, Node [\\s\\S]*- No native build was found for platform=[\\s\\S]*` +
              'prebuilt binaries for plan9-mips\\.[\\s\\S]*npm explore dultra -- npm run build:native',
          ),
        );
        const { scripts } = JSON.parse(readFileSync(path.join(installed, 'package.json'), 'utf8')) as {
          scripts: Record<string, string>;
        };
        const script = /^node (\S+)$/.exec(scripts['build:native'])![1];
        const { status, stderr } = node(path.join(installed, script));
        expect(stderr).toMatch(/building dultra needs:\n {2}- CMake 3\.24 or newer \(not found\)\n/);
        // On Windows CMake looks for Visual Studio itself.
        if (!isWindows) expect(stderr).toMatch(/ {2}- a C\+\+17 compiler/);
        expect(status).toBe(1);
      },
    );
  });

  test('damaged: every attempt is listed', () => {
    const damage = (folder: string) => {
      mkdirSync(path.join(folder, platform), { recursive: true });
      for (const name of ['dultra.glibc.node', 'dultra.node'])
        writeFileSync(path.join(folder, platform, name), 'no library');
    };
    const { status, stderr } = changed('prebuilds', damage, useAddon);
    expect(status).toBe(1);
    for (const name of ['dultra.glibc.node', 'dultra.node'])
      expect(stderr).toContain(`  - ${path.join('prebuilds', platform, name)}: `);
    expect(stderr).toContain("code: 'NATIVE_NOT_FOUND'");
  });

  test('a damaged local build is passed over for the prebuilt one', () => {
    const damage = (folder: string) => {
      mkdirSync(path.join(folder, 'Release'), { recursive: true });
      writeFileSync(path.join(folder, 'Release', 'dultra.node'), 'no library');
    };
    expect(changed('build', damage, useAddon)).toEqual({ status: 0, stdout: `${version}\n`, stderr: '' });
  });

  test('of another version than the package: refused', () => {
    const text = readFileSync(path.join(installed, 'package.json'), 'utf8');
    const newer = (file: string) => writeFileSync(file, text.replace(`"version": "${version}"`, '"version": "99.0.0"'));
    const { status, stderr } = changed('package.json', newer, useAddon);
    expect(status).toBe(1);
    expect(stderr).toMatch(/dultra\S*\.node: is of version [\d.]+, the package of 99\.0\.0\n/);
  });
});

const program = `
  const model = await loadModel(${JSON.stringify(modelFolder('base'))});
  const { ids } = await model.generate({ promptIds: [5, 17, 3] }, { maxTokens: 8 });
  model.dispose();
  const embedded = await loadModel();
  const { text } = await embedded.generate('Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.');
  embedded.dispose();
  console.log(ids.length, /Anna.*Paris/.test(text), typeof kernels.sample, new DUltraError('INTERNAL', 'x').code, parseSampler('fixed:2').steps);`;
const printed = { status: 0, stdout: '8 true function INTERNAL 2\n', stderr: '' };

test.each([
  [
    'CommonJS',
    'use.cjs',
    `(async () => { const { loadModel, kernels, DUltraError, parseSampler } = require('dultra'); ${program} })();`,
  ],
  ['ESM', 'use.mjs', `import { loadModel, kernels, DUltraError, parseSampler } from 'dultra'; ${program}`],
  [
    'a worker thread',
    'worker.mjs',
    `import { Worker, isMainThread } from 'node:worker_threads';
     import { loadModel, kernels, DUltraError, parseSampler } from 'dultra';
     if (isMainThread) new Worker(new URL(import.meta.url));
     else { ${program} }`,
  ],
])('generates: %s', (_name, file, source) => {
  writeFileSync(path.join(project, file), source);
  expect(node(file)).toEqual(printed);
});

test('the types satisfy tsc --strict, as CommonJS and as ESM', () => {
  const source = `
    import { type CustomSampler, datasets, evaluate, type GenerateResult, GrpoTrainer, isDUltraError, kernels, loadModel, type Sampler } from 'dultra';
    export const half: CustomSampler = ({ positions }) => positions.slice(0, Math.ceil(positions.length / 2));
    export const samplers: Record<string, Sampler> = { half, planner: { type: 'planner', select: 'round' }, fixed: { type: 'fixed', steps: 4 } };
    export async function use(): Promise<number> {
      const model = await loadModel('./checkpoint', { dtype: 'bfloat16' });
      const result: GenerateResult = await model.generate('a', { sampler: half, seed: 7n });
      for await (const { unmasked } of model.generateStream([{ role: 'user', content: 'b' }])) unmasked.map(({ text }) => text.length);
      const { results } = await evaluate(model, { dataset: datasets.byName('st1'), samplers });
      const trainer = new GrpoTrainer(model, { dataset: [{ prompt: 'a' }], rewards: { short: ({ completions }) => completions.map((text) => -text.length) } });
      for await (const { step } of trainer.train()) console.log(step);
      const { tokens } = await kernels.sample(Float32Array.of(1, 2), { vocabSize: 2 });
      // @ts-expect-error there is no such sampler
      const wrong: Sampler = { type: 'beam' };
      return isDUltraError(wrong, 'DISPOSED') ? 0 : result.ids.length + tokens.length + results[0].nfe.mean;
    }`;
  const files = ['types.cts', 'types.mts'].map((file) => path.join(project, file));
  for (const file of files) writeFileSync(file, source);
  const tsc = path.join(root, 'node_modules', '@typescript', 'native', 'bin', 'tsc');
  const flags = [
    '--strict',
    '--noEmit',
    '--module',
    'nodenext',
    '--target',
    'es2022',
    '--lib',
    'es2023,esnext.disposable',
    '--types',
    'node',
  ];
  const types = ['--typeRoots', path.join(root, 'node_modules', '@types')];
  expect(node(tsc, ...flags, ...types, ...files)).toEqual({ status: 0, stdout: '', stderr: '' });
});

test('the command line', () => {
  const main = path.join(installed, bin.dultra);
  expect(node(main, '--version').stdout).toBe(`${version}\n`);
  const generated = node(main, 'generate', '-m', modelFolder('base'), '--prompt-ids', '5,17,3', '-n', '8', '--json');
  expect(generated.stderr).toBe('');
  expect(JSON.parse(generated.stdout).result.ids).toHaveLength(8);
});

/**
 * docs/tutorial.md in the empty project, as it stands: its files are written, its commands run, and what its last step
 * serves is fetched. Only the package's own installation is left out, which has happened.
 */
(isWindows ? test.skip : test)(
  'the tutorial leads from an empty folder to a trained model on a page',
  async () => {
    const blocks = [
      ...readFileSync(path.join(installed, 'docs', 'tutorial.md'), 'utf8').matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm),
    ];
    const scripts: string[] = [];
    for (const [, language, code] of blocks) {
      const name = /^\/\/ (\S+\.mjs)\n/.exec(code)?.[1];
      if (language === 'js') writeFileSync(path.join(project, name!), code);
      else scripts.push(code.trimEnd());
    }
    expect(scripts[0]).toMatch(/^npm init -y\nnpm install dultra\n/);
    scripts[0] = scripts[0].replace(/^npm .*\n/gm, '');
    // What npx finds: the program of the installed package.
    const npx = path.join(project, 'bin', 'npx');
    const main = path.join(installed, bin.dultra);
    writeFileSync(npx, `#!/bin/sh\n[ "$1" = dultra ] && shift && exec "${process.execPath}" "${main}" "$@"\n`, {
      mode: 0o755,
    });
    const env = { ...bare, PATH: `${bare.PATH}:/usr/bin:/bin`, NO_COLOR: '1' };
    const [, copy, show] = /^(.*)\n(.*)$/s.exec(scripts.pop()!)!;
    let said = '';
    for (const script of [...scripts, copy]) {
      const { status, stdout, stderr } = spawnSync('sh', ['-ec', script], { cwd: project, env, encoding: 'utf8' });
      expect([script, status, status === 0 ? '' : stderr]).toEqual([script, 0, '']);
      said += stdout;
    }
    expect(said).toContain('{"name":"Anna","item":"red mugs","count":3,"city":"Paris"}');
    expect(said).toMatch(/^40 examples in own\.jsonl$/m);
    // Both samplers are right on what was held out, the first in fewer passes, as the page says.
    const passes = (sampler: string) =>
      Number(new RegExp(`^${sampler} +100\\.0 ± 0\\.0 % +([\\d.]+) `, 'm').exec(said)![1]);
    expect(passes('confidence:0\\.9')).toBeLessThan(passes('fixed'));
    expect(said).toMatch(/^good evening , mia !$/m);
    expect(said).toContain('"text":"sleep well , nora !"');
    expect(existsSync(path.join(project, 'report.html'))).toBe(true);

    const server = spawn('sh', ['-c', `exec ${show} 0`], { cwd: project, env });
    try {
      const address = await new Promise<string>((resolve, reject) => {
        server.stdout.on('data', (data) => resolve(String(data).trim()));
        server.stderr.on('data', (data) => reject(new Error(String(data))));
      });
      expect(await (await fetch(address)).text()).toContain('<form>');
      const prompt = encodeURIComponent('greet leo in the morning');
      const events = (await (await fetch(`${address}/stream?prompt=${prompt}`)).text()).trimEnd().split('\n\n');
      expect(JSON.parse(events.at(-1)!.replace('data: ', '')).done.text).toBe('good morning , leo !');
    } finally {
      server.kill();
    }
  },
  120_000,
);
