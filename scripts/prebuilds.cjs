// npm run prebuilds: the addon for this platform, stripped, in prebuilds/<platform>. With --cuda the CUDA plugin lies
// beside it (needs the CUDA toolkit, no GPU), where the addon looks for it.
//
// prebuildify starts node-gyp, which insists on Node's headers although bindings.gyp compiles nothing itself: point it
// at the running Node's own where it has them, so that nothing is downloaded.
const { spawnSync } = require('node:child_process');
const { copyFileSync, existsSync } = require('node:fs');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
const PLUGIN = 'libdultra_cuda.so';

/** Builds the plugin and puts it beside the addon. node-gyp has emptied build/, so this comes after it. */
function addPlugin() {
  const built = path.join(root, 'build', 'Release', PLUGIN);
  const shipped = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`, PLUGIN);
  const { status } = spawnSync(process.execPath, [path.join(__dirname, 'build-cuda.cjs')], {
    cwd: root,
    stdio: 'inherit',
  });
  if (status !== 0) return 'the CUDA plugin could not be built';
  copyFileSync(built, shipped);
  return spawnSync('strip', ['--strip-unneeded', shipped], { stdio: 'inherit' }).status === 0
    ? null
    : `${shipped} could not be stripped`;
}

const prefix = path.resolve(process.execPath, '..', '..');
if (!process.env.npm_config_nodedir && existsSync(path.join(prefix, 'include/node/node.h')))
  process.env.npm_config_nodedir = prefix;
require('prebuildify')({ napi: true, strip: true, tagLibc: true, targets: [] }, (error) => {
  const problem = error ? error.message : process.argv.includes('--cuda') ? addPlugin() : null;
  if (problem === null) return;
  process.stderr.write(`dultra: ${problem}\n`);
  process.exit(1);
});
