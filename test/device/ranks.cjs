// node test/device/ranks.cjs: two processes on GPUs train by NCCL, and have the weights of one. With one GPU they are on
// hosts of their own to NCCL, which has no other way for two processes on one; it may refuse that. Says what was skipped,
// and why; exit code 1 where it fails.
const { spawnSync } = require('node:child_process');
const path = require('node:path');

const LIMIT_MS = 120_000;
const { datasets, distributed, loadModel, systemInfo, trainMaskedDiffusion } = require(
  path.resolve(__dirname, '..', '..'),
);

async function train() {
  const group = distributed.init();
  const { gpus } = systemInfo();
  if (gpus.length < group.size) process.env.NCCL_HOSTID = `rank-${group.rank}`;
  const { device } = await distributed.machineShare(group);
  const model = await loadModel(undefined, { device });
  let exchange = null;
  const options = {
    ...{ dataset: datasets.byName('sum'), batchSize: 8, tokenBudget: 80, maxSteps: 3 },
    ...{ evalEvery: 0 },
  };
  const onStart = (run) => {
    exchange = run.exchange;
  };
  for await (const _ of trainMaskedDiffusion(model, { ...options, reduction: 'exact', onStart }));
  const hash = await model.weightsHash();
  if (group.rank === 0) process.stdout.write(`${JSON.stringify({ hash, exchange })}\n`);
  model.dispose();
}

/** What a number of processes have come to; null, and why, where they did not get there. */
function job(ranks) {
  const self = [process.execPath, __filename, '--train'];
  // Open MPI's; MPICH knows none of them.
  const isOpenMpi = /open mpi|open-mpi/i.test(spawnSync('mpirun', ['--version'], { encoding: 'utf8' }).stdout ?? '');
  const options = isOpenMpi ? ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none'] : [];
  const { status, signal, stdout, stderr } = spawnSync('mpirun', [...options, '-n', String(ranks), ...self], {
    encoding: 'utf8',
    timeout: LIMIT_MS,
  });
  if (status === 0) return { found: JSON.parse(stdout), problem: null };
  return {
    found: null,
    problem: signal ? `no end within ${LIMIT_MS / 1000} s` : stderr.trim().split('\n').slice(0, 3).join(' '),
  };
}

function main() {
  const skip = (why) => process.stdout.write(`skipped: several processes by NCCL: ${why}\n`);
  const { gpus, nccl, ncclReason } = systemInfo();
  if (!nccl) return skip(ncclReason);
  if (spawnSync('mpirun', ['--version']).status !== 0) return skip('mpirun is not installed');
  const alone = job(1);
  const two = job(2);
  if (alone.problem) throw new Error(`one process: ${alone.problem}`);
  if (two.problem && gpus.length === 1)
    return skip(`NCCL ${nccl.version} does not take two on one GPU here: ${two.problem}`);
  if (two.problem) throw new Error(`two processes: ${two.problem}`);
  const { hash, exchange } = two.found;
  if (exchange.nccl !== nccl.version) throw new Error(`expected NCCL ${nccl.version}, got ${JSON.stringify(exchange)}`);
  if (hash !== alone.found.hash) throw new Error('two processes have other weights than one');
  process.stdout.write(
    `ok   two processes by NCCL ${nccl.version}, on ${Math.min(2, gpus.length)} of ${gpus.length} GPUs: the weights of one\n`,
  );
}

if (process.argv.includes('--train')) train();
else main();
