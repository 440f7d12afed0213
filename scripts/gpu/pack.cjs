// node scripts/gpu/pack.cjs [FILE.tar.gz]: packs what scripts/gpu/check-node.sh needs on a machine with a GPU and
// without Node or network: this Node, dist/, the runtime dependencies, the addon and the CUDA plugin as built here, the
// models, and the checks. The other machine needs the same processor architecture and a C library that is not older.
// Without the plugin (npm run build:cuda) it warns, and the package checks the CPU alone.
const { spawnSync } = require('node:child_process');
const {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  writeFileSync,
} = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { setup, SetupError, root } = require('../setup.cjs');

const NAME = 'dultra-gpu-check';

function run(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  if (error || status !== 0) throw new SetupError(`${command} ${args.join(' ')}: ${error?.message ?? stderr}`);
  return stdout;
}

function main() {
  const [target = `${NAME}.tar.gz`] = process.argv.slice(2);
  setup();
  const temporary = mkdtempSync(path.join(os.tmpdir(), `${NAME}-`));
  const folder = path.join(temporary, NAME);
  try {
    mkdirSync(path.join(folder, 'build', 'Release'), { recursive: true });
    mkdirSync(path.join(folder, 'scripts', 'gpu'), { recursive: true });
    for (const name of ['package.json', 'LICENSE', 'README.md'])
      copyFileSync(path.join(root, name), path.join(folder, name));
    for (const name of [
      'dist',
      'models',
      path.join('test', 'device'),
      path.join('test', 'golden'),
      path.join('test', 'fixtures', 'golden'),
    ])
      cpSync(path.join(root, name), path.join(folder, name), { recursive: true });
    for (const name of [path.join('gpu', 'check-node.sh'), 'quickstart.cjs'])
      copyFileSync(path.join(root, 'scripts', name), path.join(folder, 'scripts', name));
    // Nothing is built on the other machine.
    writeFileSync(
      path.join(folder, 'scripts', 'setup.cjs'),
      "module.exports = { setup() {}, SetupError: class extends Error {}, root: require('node:path').resolve(__dirname, '..') };\n",
    );
    copyFileSync(process.execPath, path.join(folder, 'node'));
    chmodSync(path.join(folder, 'node'), 0o755);
    const binaries = ['dultra.node', 'libdultra_cuda.so'].map((name) => path.join('build', 'Release', name));
    for (const name of binaries.filter((file) => existsSync(path.join(root, file))))
      copyFileSync(path.join(root, name), path.join(folder, name));
    if (!existsSync(path.join(root, binaries[1])))
      process.stderr.write(
        'dultra: without the CUDA plugin, which is not built (npm run build:cuda): the CPU alone can be checked\n',
      );
    const packages = run('npm', ['ls', '--omit=dev', '--all', '--parseable'])
      .split('\n')
      .filter((file) => file.includes(`${path.sep}node_modules${path.sep}`));
    for (const file of packages) cpSync(file, path.join(folder, path.relative(root, file)), { recursive: true });
    run('tar', ['-czf', path.resolve(target), '-C', temporary, NAME]);
    process.stdout.write(
      `${target}: ${Math.round(statSync(target).size / 1e6)} MB, Node ${process.version}, ${packages.length} packages\n` +
        `There: tar -xzf ${path.basename(target)} && bash ${NAME}/scripts/gpu/check-node.sh\n`,
    );
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

try {
  main();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`dultra: ${error.message}\n`);
  process.exitCode = 1;
}
