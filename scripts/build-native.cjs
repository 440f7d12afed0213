// npm run build:native: builds build/Release/dultra.node through cmake-js, also inside an installed package (npm
// explore dultra -- npm run build:native), which has no development dependencies.
const { spawnSync } = require('node:child_process');
const os = require('node:os');
const { checkPrerequisites, npmCommand, SetupError, root } = require('./setup.cjs');

/** Arguments for Node or npx that start cmake-js: the installed one, else the pinned version from the registry. */
function cmakeJs() {
  try {
    return [process.execPath, require.resolve('cmake-js/bin/cmake-js')];
  } catch {
    return [...npmCommand('npx'), '--yes', `cmake-js@${require('../package.json').devDependencies['cmake-js']}`];
  }
}

function main() {
  checkPrerequisites();
  const [command, ...rest] = cmakeJs();
  const args = [...rest, 'build', '--out', 'build/cmake', '--parallel', String(os.availableParallelism())];
  // Visual Studio's Clang: Microsoft's own compiler lacks the vector extensions.
  if (process.platform === 'win32') args.push('--toolset', 'ClangCL');
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error) throw new SetupError(`building the native addon: ${error.message}`);
  return status ?? 1;
}

try {
  process.exitCode = main();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`dultra: ${error.message}\n`);
  process.exitCode = 1;
}
