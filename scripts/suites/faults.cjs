// npm run test:faults: plants one fault after the other in the scheduler and its memory, and shows that their tests catch
// it. Fails where a fault survives. Arguments are parts of faults: npm run test:faults -- kv-arena, or "no cost".
const { spawn } = require('node:child_process');
const { existsSync, readFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { SetupError, root } = require('../setup.cjs');

const LANE = 'lib/sampling/lane.ts';
const ARENA = 'lib/sampling/kv-arena.ts';
const ENGINE = 'lib/sampling/engine.ts';
const JOB = 'lib/sampling/job.ts';

/** The tests that have to catch them. */
const TESTS = ['test/lane.test.ts', 'test/engine.test.ts'];
/** A test that waits for ever has caught a fault too. */
const TEST_MS = 60_000;

/** Each stands once in its file. */
const FAULTS = [
  [LANE, 'a new row claims what others got', 'Number.isFinite(least) ? least : 0', '0'],
  [LANE, 'priorities weigh nothing', 'row.cost / row.weight', 'row.cost'],
  [LANE, 'a long row costs as much as a short one', 'row.cost / row.weight', '1 / row.weight'],
  [LANE, 'passes have no budget', 'total > budget || !isOneSlab', '!isOneSlab'],
  [LANE, 'a row larger than the budget never goes', 'chosen.length > 0 && row.cost > left', 'row.cost > left'],
  [LANE, 'the budget is not used up', 'left -= row.cost', 'left = 0'],
  [LANE, 'rows of two memories go together', 'row.slab !== order[0].slab || ', ''],
  [LANE, 'cached rows go in any order', 'chosen.sort((a, b) => a.task.begin - b.task.begin)', 'chosen'],
  [LANE, 'those that got most go first', 'a.virtualTime - b.virtualTime', 'b.virtualTime - a.virtualTime'],
  [LANE, 'rows of one rule are not behind each other', 'return [...groups.values()].flat()', 'return rows'],
  [ARENA, 'two rows get the same positions', 'begin: begin + length, end }', 'begin, end }'],
  [ARENA, 'a row gets a position of its neighbour', 'end - begin >= length)', 'end - begin >= length - 1)'],
  [ARENA, 'free ranges stay apart', 'left.end === right.begin', 'left === right'],
  [ARENA, 'memory that nobody has is kept', 'this.#limit === null && slab.isEmpty', 'slab.capacity < 0'],
  [ARENA, 'what never fits waits for ever', 'needed > this.#limit', 'needed < 0'],
  [ARENA, 'memory of another kind is taken', 'slab.storage !== storage', 'slab.storage === null'],
  [ARENA, 'the limit is passed', 'this.#limit - this.bytes.allocated - this', 'this.#limit - this'],
  [
    ARENA,
    'memory of another kind makes no room',
    'if (slab.isEmpty) this.#drop(slab);\n      const',
    'if (slab.capacity < 0) this.#drop(slab);\n      const',
  ],
  [ENGINE, 'a row keeps its memory', 'this.#arena.give(row.slab, row.task.begin, row.row.ids.length);', ''],
  [ENGINE, 'all rows begin at the first position', 'row.task.begin = taken.begin;', ''],
  [ENGINE, 'rows that end in a pass keep their place', 'row.job.isDone || row.row.finished', 'false'],
  [ENGINE, 'a full queue takes more', 'count > maxQueue + this.#room()', 'count > maxQueue + 1e9'],
  [ENGINE, 'more rows than may be', 'Math.max(0, maxRows - this.#activeRows())', 'maxRows'],
  [ENGINE, 'small rows pass a large one for ever', 'isReserved ||= !job.isPatient', 'isReserved ||= false'],
  [JOB, 'nobody passes a row that waits', 'return this.passedBy < PASSED_BY &&', 'return false &&'],
  [ENGINE, 'one pass too many', 'task.row.nfe >= maxNfe - 1', 'task.row.nfe >= maxNfe'],
  [ENGINE, 'a lane that was idle claims what others got', 'times.length > 0 ? Math.min(...times) : 0', '0'],
  [
    ENGINE,
    'the lane that got most goes first',
    'other.virtualTime < lane.virtualTime',
    'other.virtualTime > lane.virtualTime',
  ],
  [
    ENGINE,
    'one that leaves stops the pass of all',
    'this.#inPass.every((row) => row.job.isDone)',
    'this.#inPass.some((row) => row.job.isDone)',
  ],
  [
    ENGINE,
    'one that has left is told of passes',
    'if (!job.hasFailed) onStep!(index, event);',
    'onStep!(index, event);',
  ],
  [ENGINE, 'a deadline is not seen by rows that wait', 'row.isReady && task.isLast === isLast', 'row.isReady'],
].map(([file, what, right, wrong]) => ({ file, what, right, wrong }));

/** Every fault has its place. @throws SetupError */
function checkFaults() {
  for (const { file, what, right, wrong } of FAULTS) {
    const count = readFileSync(path.join(root, file), 'utf8').split(right).length - 1;
    if (count !== 1 || right === wrong)
      throw new SetupError(`${file}: ${what}: expected once, but ${count} times: ${right}`);
  }
}

/** Runs the tests with a fault; resolves to the tests that fail, null where all pass. */
function plant(fault) {
  const { transform } = require(path.join(root, 'jest.config.cjs'));
  const [[pattern, [, options]]] = Object.entries(transform);
  const config = {
    ...require(path.join(root, 'jest.config.cjs')),
    rootDir: root,
    transform: { [pattern]: [path.join(root, 'test', 'faulty-transform.cjs'), options] },
  };
  const args = ['--runInBand', '--bail', '--testTimeout', String(TEST_MS), '--config', JSON.stringify(config)];
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [require.resolve('jest/bin/jest'), ...args, ...TESTS], {
      cwd: root,
      env: { ...process.env, DULTRA_FAULT: JSON.stringify(fault) },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let text = '';
    let isStuck = false;
    child.stderr.on('data', (data) => {
      text += data;
    });
    const timer = setTimeout(() => {
      isStuck = true;
      child.kill('SIGKILL');
    }, 3 * TEST_MS);
    child.on('error', reject);
    child.on('close', (code) => {
      clearTimeout(timer);
      const failed = [...text.matchAll(/^ {2}● (.+)$/gm)].map(([, name]) => name);
      if (code === 0) resolve(null);
      else if (isStuck || failed.length > 0) resolve([...new Set(failed)].join('; ') || 'the tests do not end');
      else resolve(text.trim().split('\n').at(-1));
    });
  });
}

module.exports = async (only) => {
  checkFaults();
  if (!existsSync(path.join(root, 'build', 'Release', 'dultra.node')))
    throw new SetupError('npm run build:native first');
  const chosen = FAULTS.filter(
    ({ file, what }) => only.length === 0 || only.some((part) => `${file}: ${what}`.includes(part)),
  );
  const queue = [...chosen];
  let survived = 0;
  const work = async () => {
    for (let fault = queue.shift(); fault; fault = queue.shift()) {
      const caught = await plant(fault);
      if (!caught) survived++;
      process.stdout.write(
        `${caught ? 'caught' : 'SURVIVED'} ${fault.file}: ${fault.what}: ${caught ?? 'all tests pass'}\n`,
      );
    }
  };
  await Promise.all(Array.from({ length: os.availableParallelism() }, work));
  process.stdout.write(`${chosen.length - survived} faults caught, ${survived} survived\n`);
  return survived > 0 || chosen.length === 0 ? 1 : 0;
};
module.exports.checkFaults = checkFaults;
