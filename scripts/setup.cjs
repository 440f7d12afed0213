// Makes a clone ready: checks the prerequisites, installs packages, builds the addon and dist/. Does only what is out
// of date, so that every command can begin with it.
const { spawnSync } = require('node:child_process');
const { existsSync, readdirSync, statSync, writeFileSync, mkdirSync } = require('node:fs');
const path = require('node:path');

const root = path.resolve(__dirname, '..');

class SetupError extends Error {}

/**
 * The command that starts npm or npx, without its arguments. On Windows these are batch files, which Node starts only
 * through a shell, and a shell splits arguments at spaces: there it is the script behind them.
 */
function npmCommand(name = 'npm') {
  if (process.platform !== 'win32') return [name];
  const folders = [
    path.join(path.dirname(process.execPath), 'node_modules', 'npm', 'bin'),
    path.dirname(process.env.npm_execpath ?? '.'),
  ];
  const script = folders.map((folder) => path.join(folder, `${name}-cli.js`)).find((file) => existsSync(file));
  if (!script)
    throw new SetupError(
      `${name}-cli.js: neither beside ${process.execPath} nor in $npm_execpath; start this with npm run`,
    );
  return [process.execPath, script];
}

/** Runs npm; what it and what it starts say is shown where it fails. */
function runNpm(args, what) {
  process.stderr.write(`dultra: ${what} (npm ${args.join(' ')})\n`);
  const [command, ...first] = npmCommand();
  const { status, error, stdout, stderr } = spawnSync(command, [...first, ...args], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  });
  if (!error && status === 0) return;
  process.stderr.write(`${stdout ?? ''}${stderr ?? ''}`);
  throw new SetupError(`${what} failed${error ? `: ${error.message}` : ` with exit code ${status}`}`);
}

function output(command, args) {
  const { status, stdout } = spawnSync(command, args, { encoding: 'utf8' });
  return status === 0 ? stdout.trim() : null;
}

function newest(directory, extensions) {
  let latest = 0;
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const full = path.join(directory, entry.name);
    if (entry.isDirectory()) latest = Math.max(latest, newest(full, extensions));
    else if (extensions.some((extension) => entry.name.endsWith(extension)))
      latest = Math.max(latest, statSync(full).mtimeMs);
  }
  return latest;
}

const modified = (...parts) => {
  const file = path.join(root, ...parts);
  return existsSync(file) ? statSync(file).mtimeMs : 0;
};

/** @throws SetupError that names everything a build needs and this machine lacks. */
function checkPrerequisites() {
  const missing = [];
  const [major, minor] = process.versions.node.split('.').map(Number);
  // Those in which require() takes ES modules: engines in package.json.
  if (major < 20 || major === 21 || (major === 20 && minor < 19) || (major === 22 && minor < 12))
    missing.push(`Node.js 20.19, 22.12 or newer (this is ${process.version})`);
  const cmake = output('cmake', ['--version'])?.match(/(\d+)\.(\d+)/);
  if (!cmake || Number(cmake[1]) < 3 || (Number(cmake[1]) === 3 && Number(cmake[2]) < 24))
    missing.push(`CMake 3.24 or newer (${cmake ? `this is ${cmake[0]}` : 'not found'})`);
  if (process.platform !== 'win32') {
    const compiler = [process.env.CXX, 'c++', 'g++', 'clang++']
      .filter(Boolean)
      .find((name) => output(name, ['--version']) !== null);
    if (!compiler)
      missing.push('a C++17 compiler (g++ 11 or clang 14, or newer): none of $CXX, c++, g++, clang++ runs');
    if (output('make', ['--version']) === null) missing.push('make');
  }
  if (missing.length > 0) throw new SetupError(`building dultra needs:\n  - ${missing.join('\n  - ')}`);
}

/** Installs and builds what is missing or older than its sources. Throws SetupError with a message for people. */
function setup() {
  checkPrerequisites();
  const stamp = path.join('node_modules', '.dultra-setup');
  if (modified(stamp) < Math.max(modified('package-lock.json'), modified('package.json'))) {
    runNpm(['ci', '--no-audit', '--no-fund'], 'installing packages');
    mkdirSync(path.join(root, 'node_modules'), { recursive: true });
    writeFileSync(path.join(root, stamp), '');
  }
  const nativeSources = Math.max(
    newest(path.join(root, 'native'), ['.cc', '.h', '.inl', '.inc']),
    modified('CMakeLists.txt'),
    modified('CMakePresets.json'),
    modified('package.json'),
  );
  if (modified('build', 'Release', 'dultra.node') < nativeSources)
    runNpm(['run', '--silent', 'build:native'], 'building the native addon, one to three minutes');
  const sources = Math.max(
    newest(path.join(root, 'lib'), ['.ts']),
    modified('tsconfig.json'),
    modified('package.json'),
  );
  if (modified('dist', 'index.js') < sources) runNpm(['run', '--silent', 'build:ts'], 'compiling TypeScript');
}

module.exports = { setup, checkPrerequisites, npmCommand, runNpm, SetupError, root };

if (require.main === module) {
  try {
    setup();
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    process.stderr.write(`dultra: ${error.message}\n`);
    process.exit(1);
  }
}
