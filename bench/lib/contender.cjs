// onnxruntime-node, installed into bench/node_modules on first use: 110 MB that nobody who only uses or tests the
// package should fetch.
const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const path = require('node:path');

const folder = path.join(__dirname, '..');

/** Installs the contender if it is not there. Its install script is never run: it would download a CUDA provider. */
function installContender() {
  if (existsSync(path.join(folder, 'node_modules', 'onnxruntime-node'))) return;
  process.stderr.write('bench: installing onnxruntime-node into bench/node_modules\n');
  const { status } = spawnSync('npm', ['ci', '--ignore-scripts'], {
    cwd: folder,
    stdio: ['ignore', process.stderr, process.stderr],
  });
  if (status !== 0) throw new Error(`npm ci in ${folder} ended with exit code ${status}`);
}

/** A session as fast as it gets: every graph optimisation, one operator at a time on `threads` threads. */
async function openSession(file, threads) {
  const { InferenceSession } = require('onnxruntime-node');
  return InferenceSession.create(file, {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    graphOptimizationLevel: 'all',
  });
}

/** Ids (T) as the input of an exported model. */
function feed(ids) {
  const { Tensor } = require('onnxruntime-node');
  return { ids: new Tensor('int64', BigInt64Array.from(ids, BigInt), [ids.length]) };
}

const contenderVersion = () => require('onnxruntime-node/package.json').version;

module.exports = { installContender, openSession, feed, contenderVersion };
