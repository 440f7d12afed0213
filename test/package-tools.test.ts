// The package as bundlers and Yarn's Plug'n'Play see it. npm run test:package installs these tools, names their folder in
// DULTRA_TEST_TOOLS, and there runs the configurations of docs/bundlers.md; within npm test, what needs them is skipped.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { temporaryFolder } from './helpers';

const root = path.resolve(__dirname, '..');
const tools = process.env.DULTRA_TEST_TOOLS;
/** `test`, where the tools are installed. */
const withTools = (name: string, body: () => void) =>
  tools === undefined ? test.skip(`${name} (skipped: npm run test:package runs it)`, () => {}) : test(name, body);
const LEAVE_OUT = /dultra has become part of a bundle.*--external:dultra.*serverExternalPackages/;

function run(args: string[], cwd: string, env: NodeJS.ProcessEnv = process.env) {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd, env, encoding: 'utf8' });
  return { status, stdout, stderr };
}

describe('out of a bundle', () => {
  test('code that has lost its package says so before anything else', () => {
    const folder = temporaryFolder();
    writeFileSync(path.join(folder, 'package.json'), '{ "name": "an-app" }');
    mkdirSync(path.join(folder, 'out'));
    for (const name of ['package.js', 'bundled.js', 'errors.js'])
      cpSync(path.join(root, 'dist', name), path.join(folder, 'out', name));
    const program = `
      const { packageFile } = require('./out/package.js');
      try { packageFile('models'); } catch (error) { console.log(error.code, error.message); }`;
    expect(run(['-e', program], folder).stdout).toMatch(new RegExp(`^NATIVE_NOT_FOUND ${LEAVE_OUT.source}`));
  });

  test('a module without __dirname fails with the same words, before it asks for a module of Node.js', () => {
    const source = readFileSync(path.join(root, 'dist', 'bundled.js'), 'utf8');
    const errors = require(path.join(root, 'dist', 'errors.js'));
    const asked: string[] = [];
    const required = (name: string) => {
      asked.push(name);
      return errors;
    };
    expect(() => new Function('require', 'exports', source)(required, {})).toThrow(LEAVE_OUT);
    expect(asked).toEqual(['./errors']);
    // And the first module that the package loads is this one.
    const index = readFileSync(path.join(root, 'dist', 'index.js'), 'utf8');
    expect(/\brequire\("([^"]+)"\)/.exec(index)?.[1]).toBe('./bundled');
  });
});

/** Configurations of docs/bundlers.md, by the file that their first line names. */
const page = readFileSync(path.join(root, 'docs', 'bundlers.md'), 'utf8');
const documented = new Map(
  [...page.matchAll(/^```text\n\/\/ (\S+)\n([\s\S]*?)^```$/gm)].map(([, name, text]) => [name, text]),
);

describe('bundlers', () => {
  let folder: string;
  const entry = `import { loadModel } from 'dultra';
    loadModel(process.argv[2]).then(
      (model) => model.generate('Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.').then(({ text }) => console.log(/Anna.*Paris/.test(text))),
      (error) => console.log(error.code, error.message),
    );`;
  beforeAll(() => {
    if (tools === undefined) return;
    folder = path.join(tools, 'bundles');
    mkdirSync(folder);
    writeFileSync(path.join(folder, 'server.mjs'), entry);
    for (const [name, text] of documented) writeFileSync(path.join(folder, name), text);
  });
  const tool = (name: string) => JSON.stringify(path.join(tools!, 'node_modules', name));
  const build = (script: string) =>
    expect(run(['-e', script], folder)).toEqual({ status: 0, stdout: expect.anything(), stderr: '' });
  const works = (file: string) => expect(run([file], folder)).toEqual({ status: 0, stdout: 'true\n', stderr: '' });

  withTools('esbuild: the documented command', () => {
    const flags = /^npx esbuild (server\.mjs .*)$/m.exec(page)![1].split(' ');
    const command = [path.join(tools!, 'node_modules', 'esbuild', 'bin', 'esbuild'), ...flags, '--log-level=error'];
    expect(run(command, folder)).toEqual({ status: 0, stdout: '', stderr: '' });
    works('out.cjs');
  });

  withTools('webpack: the documented configuration', () => {
    build(`require(${tool('webpack')})(require('./webpack.config.cjs'), (error, stats) => {
      if (error || stats.hasErrors()) throw error ?? new Error(stats.toString());
    });`);
    works('out/webpack.cjs');
  });

  withTools('Rollup: the documented configuration', () => {
    build(`import('./rollup.config.mjs').then(async ({ default: config }) => {
      await (await require(${tool('rollup')}).rollup(config)).write(config.output);
    });`);
    works('out/rollup.mjs');
  });

  withTools('bundled all the same: the error says what to do', () => {
    const esbuild = (options: object) =>
      build(
        `require(${tool('esbuild')}).buildSync(${JSON.stringify({
          entryPoints: ['server.mjs'],
          bundle: true,
          platform: 'node',
          logLevel: 'error',
          ...options,
        })});`,
      );
    esbuild({ outfile: 'bad.cjs' });
    for (const source of [[], ['/any/checkpoint/folder'], ['org/model']])
      expect(run(['bad.cjs', ...source], folder).stdout).toMatch(LEAVE_OUT);
    esbuild({ format: 'esm', outfile: 'bad.mjs' });
    expect(run(['bad.mjs'], folder).stderr).toMatch(LEAVE_OUT);
    build(`require(${tool('webpack')})(
      { mode: 'production', target: 'node', entry: './server.mjs', output: { path: process.cwd(), filename: 'bad-webpack.cjs' } },
      (error) => { if (error) throw error; },
    );`);
    expect(run(['bad-webpack.cjs'], folder).stdout).toMatch(LEAVE_OUT);
  });
});

describe("Yarn's Plug'n'Play", () => {
  const project = path.join(tools ?? '', 'pnp');
  const env = { ...process.env, YARN_ENABLE_TELEMETRY: '0' };
  const yarn = (...args: string[]) =>
    run([path.join(tools!, 'node_modules', '@yarnpkg', 'cli-dist', 'bin', 'yarn.js'), ...args], project, env);
  // The last line needs an optional package, which lies in an archive.
  const program = `
    const use = async () => {
      const model = await loadModel();
      console.log(/Anna.*Paris/.test((await model.generate('Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.')).text));
      console.log(await rewards.mathEqual('x+1', '1+x'));
      const sandbox = new rewards.PythonSandbox({ workers: 1 });
      console.log((await sandbox.run({ code: 'print(2)' })).stdout.trim());
      await sandbox.dispose();
      model.dispose();
    };
    use();`;

  withTools('require', () => {
    writeFileSync(path.join(project, 'use.cjs'), `const { loadModel, rewards } = require('dultra');${program}`);
    expect(yarn('node', 'use.cjs')).toMatchObject({ status: 0, stdout: 'true\ntrue\n2\n' });
  });

  withTools('import', () => {
    writeFileSync(path.join(project, 'use.mjs'), `import { loadModel, rewards } from 'dultra';${program}`);
    expect(yarn('node', 'use.mjs')).toMatchObject({ status: 0, stdout: 'true\ntrue\n2\n' });
  });

  withTools('Parquet, whose reader is an ES module', () => {
    const columnData = [{ name: 'question', data: ['one', 'two'] }];
    writeFileSync(path.join(project, 'test.parquet'), Buffer.from(parquetWriteBuffer({ columnData })));
    const reader = `
      const { join } = require('node:path');
      const { readRecords } = require(join(require.resolve('dultra'), '..', 'data', 'records.js'));
      (async () => {
        for await (const { value } of readRecords('test.parquet')) console.log(value.question);
      })();`;
    writeFileSync(path.join(project, 'parquet.cjs'), reader);
    expect(yarn('node', 'parquet.cjs')).toMatchObject({ status: 0, stdout: 'one\ntwo\n' });
  });

  withTools('the command line', () => {
    expect(yarn('dultra', '--version').stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });
});
