// npm run test:package: packs the package with its prebuilt binaries as a release does, says how large it is, installs
// the tarball into an empty project, with npm and with no compiler on the PATH, and beside bundlers and with Yarn's
// Plug'n'Play; runs test/package.test.ts and test/package-tools.test.ts there.
const { spawnSync } = require('node:child_process');
const {
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

function main() {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-package-'));
  const isPrebuilt = existsSync(own) && readdirSync(own).some((file) => file.endsWith('.node'));
  try {
    if (!isPrebuilt) npm(['run', 'prebuilds']);
    const tarball = pack(folder);
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
