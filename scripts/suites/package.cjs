// npm run test:package: packs the package with its prebuilt binaries as a release does, says how large it is, installs
// the tarball into an empty project, with npm and with no compiler on the PATH, and beside bundlers and with Yarn's
// Plug'n'Play; runs test/package.test.ts and test/package-tools.test.ts there. With --next it builds examples/nextjs with
// the tarball instead, starts it and asks its routes (some 300 MB of packages, Node.js 22).
const { spawn, spawnSync } = require('node:child_process');
const {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { gzipSync } = require('node:zlib');
const { npmCommand, SetupError, root } = require('../setup.cjs');

const prebuilds = path.join(root, 'prebuilds');
const own = path.join(prebuilds, `${process.platform}-${process.arch}`);
const isWindows = process.platform === 'win32';

/** Runs a command; returns its standard output. Throws SetupError with everything it said where it fails. */
function run(command, args, options = {}) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd: root, encoding: 'utf8', ...options });
  if (error || status !== 0)
    throw new SetupError(
      `${command} ${args.join(' ')}: ${error?.message ?? `exit code ${status}`}\n${stdout}${stderr}`,
    );
  return stdout;
}

/** Runs npm, likewise. */
function npm(args, options) {
  const [command, ...first] = npmCommand();
  return run(command, [...first, ...args], options);
}

const kilobytes = (bytes) => `${Math.round(bytes / 1000).toLocaleString('en')} kB`;

/** Packs into `folder`; returns the tarball's path. */
function pack(folder) {
  const [{ filename, size, unpackedSize, files }] = JSON.parse(
    // dist/ is built by prepack, which writes to standard output too.
    npm(['pack', '--json', '--pack-destination', folder]).replace(/^[^[]*(?=\[\s*\{)/, ''),
  );
  process.stdout.write(`${filename}: ${kilobytes(size)}, ${kilobytes(unpackedSize)} unpacked, ${files.length} files\n`);
  const plugins = files
    .filter((file) => /^prebuilds\/.*cuda.*\.so$/.test(file.path))
    .map((file) => path.join(root, file.path));
  if (plugins.length > 0) {
    const packed = plugins.reduce((sum, file) => sum + gzipSync(readFileSync(file)).length, 0);
    process.stdout.write(`without the CUDA plugin: about ${kilobytes(size - packed)}\n`);
  }
  return path.join(folder, filename);
}

/** What bundles the package, or installs it otherwise, in the versions that are tested. */
const TOOLS = ['esbuild@0.28.2', 'webpack@5.113.0', 'rollup@4.68.8', '@yarnpkg/cli-dist@4.18.1'];
const OPTIONAL = Object.entries(require('../../package.json').peerDependencies).map((entry) => entry.join('@'));

/** A folder with the tools and the package, and in its folder pnp a project of Yarn's Plug'n'Play with the package. */
function installTools(folder, tarball) {
  const tools = path.join(folder, 'with-tools');
  const pnp = path.join(tools, 'pnp');
  mkdirSync(pnp, { recursive: true });
  for (const project of [tools, pnp])
    writeFileSync(path.join(project, 'package.json'), '{ "name": "tools", "private": true }\n');
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline'];
  npm(['install', tarball, ...TOOLS, ...flags], { cwd: tools });
  // An empty lock file makes it a project of its own.
  writeFileSync(path.join(pnp, 'yarn.lock'), '');
  const yarn = path.join(tools, 'node_modules', '@yarnpkg', 'cli-dist', 'bin', 'yarn.js');
  const env = { ...process.env, YARN_ENABLE_TELEMETRY: '0', YARN_ENABLE_IMMUTABLE_INSTALLS: '0' };
  run(process.execPath, [yarn, 'add', `dultra@file:${tarball}`, ...OPTIONAL], { cwd: pnp, env });
  return tools;
}

/** A folder of links to the programs that npm itself needs, and no others. */
function toolsFolder(folder) {
  const tools = path.join(folder, 'tools');
  mkdirSync(tools);
  const npm = run('which', ['npm']).trim();
  symlinkSync(realpathSync(process.execPath), path.join(tools, 'node'));
  symlinkSync(realpathSync(npm), path.join(tools, 'npm'));
  symlinkSync('/bin/sh', path.join(tools, 'sh'));
  return tools;
}

/** Node.js 22 or newer, which the AI SDK of the example needs: this one, or that of test/clients. */
function newNode() {
  if (Number.parseInt(process.versions.node, 10) >= 22) return process.execPath;
  const name = `node-${process.platform}-${process.arch}`;
  const node = path.join(root, 'test', 'clients', 'node_modules', name, 'bin', 'node');
  if (existsSync(node)) return node;
  throw new SetupError('--next: expected Node.js 22 or newer, or npm ci --prefix test/clients');
}

/** Builds examples/nextjs with the package, starts it and asks both routes. Returns the exit code. */
async function checkNext(folder, tarball) {
  const node = newNode();
  const project = path.join(folder, 'nextjs');
  const isSource = (file) => !['node_modules', '.next'].includes(path.basename(file));
  cpSync(path.join(root, 'examples', 'nextjs'), project, { recursive: true, filter: isSource });
  const manifest = path.join(project, 'package.json');
  writeFileSync(manifest, readFileSync(manifest, 'utf8').replace('file:../..', `file:${tarball}`));
  npm(['install', '--no-audit', '--no-fund', '--prefer-offline', '--loglevel=error'], { cwd: project });
  const next = path.join(project, 'node_modules', 'next', 'dist', 'bin', 'next');
  const env = { ...process.env, NEXT_TELEMETRY_DISABLED: '1', NODE_ENV: 'production' };
  process.stdout.write(run(node, [next, 'build'], { cwd: project, env }));
  const server = spawn(node, [next, 'start', '--port', '0'], { cwd: project, env });
  try {
    const url = await new Promise((resolve, reject) => {
      let said = '';
      const listen = (chunk) => {
        said += chunk;
        const found = /http:\/\/localhost:\d+/.exec(said);
        if (found) resolve(found[0]);
      };
      server.stdout.on('data', listen);
      server.stderr.on('data', listen);
      server.on('exit', () => reject(new SetupError(`next start ended:\n${said}`)));
    });
    const ask = async (route, body) => {
      const options = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) };
      const response = await fetch(url + route, options);
      const text = await response.text();
      process.stdout.write(`${route}: ${response.status} ${text}\n`);
      return response.status === 200 ? text : '';
    };
    const decided = await ask('/api/decide', { text: 'The soup was awful and the waiter was dreadful.' });
    const answered = await ask('/api/chat', { prompt: 'JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.' });
    const isRight = decided !== '' && JSON.parse(decided).mood.choice === 'negative' && answered.includes('Anna');
    process.stdout.write(isRight ? '1 passed, 0 failed\n' : '0 passed, 1 failed\n');
    return isRight ? 0 : 1;
  } finally {
    server.kill();
  }
}

async function main(args) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-package-'));
  const isPrebuilt = existsSync(own) && readdirSync(own).some((file) => file.endsWith('.node'));
  try {
    if (!isPrebuilt) npm(['run', 'prebuilds']);
    const tarball = pack(folder);
    if (args.includes('--next')) return await checkNext(folder, tarball);
    const project = path.join(folder, 'project');
    mkdirSync(project);
    writeFileSync(path.join(project, 'package.json'), '{ "name": "empty", "private": true }\n');
    // Windows needs its system folders to start anything.
    if (isWindows) process.stdout.write('on Windows the PATH is as it is: a compiler on it would not be noticed\n');
    const env = isWindows ? process.env : { ...process.env, PATH: toolsFolder(folder) };
    const start = Date.now();
    npm(['install', tarball, '--no-audit', '--no-fund', '--prefer-offline'], { cwd: project, env });
    process.stdout.write(`installed in ${((Date.now() - start) / 1000).toFixed(1)} s\n`);
    const tools = installTools(folder, tarball);
    const jest = [require.resolve('jest/bin/jest'), 'test/package.test.ts', 'test/package-tools.test.ts'];
    const { status } = spawnSync(process.execPath, jest, {
      cwd: root,
      stdio: 'inherit',
      env: { ...process.env, DULTRA_TEST_PROJECT: project, DULTRA_TEST_TOOLS: tools },
    });
    return status ?? 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
    if (!isPrebuilt) rmSync(prebuilds, { recursive: true, force: true });
  }
}

module.exports = main;
