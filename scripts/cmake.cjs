// Configures and builds the trees of CMakePresets.json.
//   node scripts/cmake.cjs emulator [dultra_emulated_tests]     one tree, all of its targets or some
const { spawnSync } = require('node:child_process');
const os = require('node:os');
const path = require('node:path');
const { npmCommand, SetupError, root } = require('./setup.cjs');

// On Windows the native code needs Clang (CMakeLists.txt); cmake-js chooses the same generator and platform.
const WINDOWS = process.platform === 'win32' ? ['-T', 'ClangCL', '-A', process.arch === 'arm64' ? 'ARM64' : 'x64'] : [];

/** Folder of a preset's tree, relative to the root. */
function tree(preset) {
  const { configurePresets } = require('../CMakePresets.json');
  const chain = [];
  for (let name = preset; name; name = chain.at(-1).inherits) {
    const found = configurePresets.find((entry) => entry.name === name);
    if (!found) throw new SetupError(`CMakePresets.json has no preset ${name}`);
    chain.push(found);
  }
  const { binaryDir } = chain.find((entry) => entry.binaryDir);
  return binaryDir.replace(/^\$\{sourceDir\}\//, '').replace(/\$\{presetName\}/, preset);
}

/** Runs a command with its output on standard error. Throws SetupError where it fails. */
function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', process.stderr, process.stderr] });
  if (error || status !== 0)
    throw new SetupError(`${[command, ...args].join(' ')}: ${error?.message ?? `exit code ${status}`}`);
}

/** Configures a tree without the addon. */
function configure(preset, flags = []) {
  run('cmake', ['--preset', preset, ...WINDOWS, ...flags]);
}

/** Arguments for Node or npx that start cmake-js: the installed one, else the pinned version from the registry. */
function cmakeJs() {
  try {
    return [process.execPath, require.resolve('cmake-js/bin/cmake-js')];
  } catch {
    return [...npmCommand('npx'), '--yes', `cmake-js@${require('../package.json').devDependencies['cmake-js']}`];
  }
}

/** Configures a tree that also has the addon: cmake-js knows the headers, and on Windows the import library. */
function configureAddon(preset) {
  const [command, ...rest] = cmakeJs();
  const options = ['--out', tree(preset), '--log-level', 'warn', '--prefer-make'];
  if (preset === 'debug') options.push('--debug');
  if (process.platform === 'win32') options.push('--toolset', 'ClangCL');
  run(command, [...rest, 'configure', ...options, '--', '--preset', preset]);
}

/** Builds some targets of a configured tree, without any the whole tree. */
function build(preset, targets = []) {
  const chosen = targets.length > 0 ? ['--target', ...targets] : [];
  run('cmake', ['--build', '--preset', preset, '--parallel', String(os.availableParallelism()), ...chosen]);
}

/** A program of a tree. */
const program = (preset, name) => path.join(root, tree(preset), name);

module.exports = { build, configure, configureAddon, program, tree };

if (require.main === module) {
  try {
    const [preset, ...targets] = process.argv.slice(2);
    configure(preset);
    build(preset, targets);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    process.stderr.write(`dultra: ${error.message}\n`);
    process.exitCode = 1;
  }
}
