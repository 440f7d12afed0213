// npm run test:mutants: plants one fault after the other below or in the CUDA kernels and shows that their tests catch
// it: by a wrong result, a report of the emulator, or a race that ThreadSanitizer sees. Fails where a fault survives.
//
// Most faults are the emulator's (native/test/emulator/faults.h): a dropped barrier, a shuffle from the wrong lane, a
// grid that is a block short. It collects, test by test, where each can be planted, so that the list follows the kernels
// by itself, and plants them at run time: one build for all. What it cannot express, a constant or a comparison, stands
// in the kernels' source as a comment behind the line, "// mutant: RIGHT -> WRONG (test)", and takes a build each.
// Arguments are parts of faults: npm run test:mutants -- barrier:unmask, or "source".
const { spawn, spawnSync } = require('node:child_process');
const { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { createInterface } = require('node:readline');
const { build, configure, program, tree } = require('../cmake.cjs');
const { SetupError, root } = require('../setup.cjs');

const CUDA = path.join('native', 'backends', 'cuda');

// Kinds of faults after which accesses to memory have no order.
const UNORDERED = new Set(['barrier', 'warp_barrier', 'copy_wait', 'wgmma_wait', 'synchronize']);
const SOURCE_COST = 60_000; // ms at most of the test of a fault in the source
const TSAN_COST = 8; // time of a test under ThreadSanitizer, in its time without

// Faults that change nothing that a program may rely on, and why. They are not planted.
const UNREAD = 'the first sum of the block: no thread has read its scratch before';
const UNREAD_TILE = 'the wait behind the loop: no tile is read after it';
const EQUIVALENT = new Map([
  ['copy_wait:attention_forward/3:1', UNREAD_TILE],
  ['copy_wait:attention_forward_chunk/3:1', UNREAD_TILE],
  ['copy_wait:attention_forward_long/3:1', UNREAD_TILE],
  ['barrier:add_fixed/3:0', UNREAD],
  ['barrier:add_fixed/5:0', UNREAD],
  ['barrier:layernorm_backward/12:0', UNREAD],
  ['barrier:layernorm_forward/9:0', UNREAD],
  ['barrier:likelihood_backward/1:0', UNREAD],
  ['barrier:likelihood_forward/1:0', UNREAD],
  ['barrier:log_prob_backward/6:0', UNREAD],
  ['barrier:matmul/1:2', "the compiler's copy of a loop's last barrier for the last step: no tile is read behind it"],
  ['barrier:planner_score_backward/12:0', UNREAD],
  ['barrier:planner_score_forward/11:0', UNREAD],
  ['barrier:rmsnorm_forward/9:0', UNREAD],
  ['barrier:sum_squares/3:0', UNREAD],
  ['barrier:sum_squares/4:0', UNREAD],
  ['barrier:unmask/3:0', UNREAD],
  ['barrier:unmask/3:7', 'three barriers lie behind the last read of the scratch'],
]);

/**
 * Runs a test program; resolves to how it failed, null where its tests pass. A fault may keep a test from ending; ten
 * times what it usually costs, in CPU time, is enough whatever the machine's load.
 */
function outcome(command, args, cost) {
  return new Promise((resolve, reject) => {
    const seconds = 60 + Math.ceil(cost / 100);
    const limited = ['-c', `ulimit -t ${seconds} && exec "$0" "$@"`, command, ...args, '--fail-fast'];
    const child = spawn('bash', limited, { env: { ...process.env, TSAN_OPTIONS: 'halt_on_error=1' } });
    let text = '';
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk) => {
        text += chunk;
      });
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) resolve(null);
      else if (signal === 'SIGTERM' || signal === 'SIGINT') reject(new SetupError(`${args.join(' ')}: interrupted`));
      else if (signal === 'SIGKILL' || signal === 'SIGXCPU') resolve('does not end');
      else if (/ThreadSanitizer: data race/.test(text)) resolve('a race');
      else if (signal) resolve((/emulator: [^\n]*/.exec(text) ?? [`ends with ${signal}`])[0]);
      else resolve(`${[...text.matchAll(/^FAILED (\w+)/gm)].map((match) => match[1]).join(', ')} failed`);
    });
  });
}

/** Runs a share of the tests once; what they reach: { fault, test, ms } each. */
function collect(shard) {
  return new Promise((resolve, reject) => {
    const args = ['--collect-faults', '--shard', shard];
    const child = spawn(program('emulator', 'dultra_emulated_tests'), args, { stdio: ['ignore', 'pipe', 'inherit'] });
    const found = [];
    let faults = [];
    let begin = Date.now();
    createInterface({ input: child.stdout }).on('line', (line) => {
      const [word, name] = line.split(' ');
      if (word === 'fault') faults.push(line.slice('fault '.length));
      if (word === 'FAILED') process.stderr.write(`without a fault ${name} fails\n`);
      if (word !== 'ok') return;
      const ms = Date.now() - begin;
      for (const fault of faults) found.push({ fault, test: name, ms });
      faults = [];
      begin = Date.now();
    });
    child.on('error', reject);
    child.on('close', (code) =>
      code === 0
        ? resolve(found)
        : reject(new SetupError('without a fault all tests must pass: npm run test:emulator')),
    );
  });
}

/** Builds the tests and runs them; a map from each fault to the tests that reach it, { test, ms } each. */
async function faultsOfTests() {
  for (const preset of ['emulator', 'emulator-tsan']) {
    configure(preset);
    build(preset, ['dultra_emulated_tests']);
  }
  const shards = os.availableParallelism();
  const found = (await Promise.all(Array.from({ length: shards }, (_, i) => collect(`${i}/${shards}`)))).flat();
  const tests = new Map();
  for (const { fault, test, ms } of found) tests.set(fault, [...(tests.get(fault) ?? []), { test, ms }]);
  return tests;
}

/** Runs an asynchronous function of each item, as many at a time as there are processors. */
async function forEachParallel(items, body) {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await body(item);
  };
  await Promise.all(Array.from({ length: os.availableParallelism() }, worker));
}

/**
 * How the tests ({ test, ms }) that reach a fault catch it, null where none does; the cheapest run first. ThreadSanitizer
 * sees more only where a fault leaves accesses without an order.
 */
async function plant(fault, tests) {
  const runs = tests.map(({ test, ms }) => ({ preset: 'emulator', test, cost: ms }));
  if (UNORDERED.has(fault.split(':')[0]))
    runs.push(...tests.map(({ test, ms }) => ({ preset: 'emulator-tsan', test, cost: ms * TSAN_COST })));
  for (const { preset, test, cost } of runs.sort((a, b) => a.cost - b.cost)) {
    const args = ['--filter', test, '--fault', fault];
    const caught = await outcome(program(preset, 'dultra_emulated_tests'), args, cost);
    if (caught) return caught;
  }
  return null;
}

/** Faults that stand in the kernels' source: { what, file, line, right, wrong, test }. */
function sourceFaults() {
  return readdirSync(path.join(root, CUDA)).flatMap((file) =>
    readFileSync(path.join(root, CUDA, file), 'utf8')
      .split('\n')
      .flatMap((text, line) => {
        const marker = /\/\/ mutant: (.*) -> (.*) \((\w+)\)$/.exec(text);
        if (!marker) return [];
        const [, right, wrong, test] = marker;
        if (!text.slice(0, marker.index).includes(right))
          throw new SetupError(`${file}:${line + 1}: the line does not contain ${right}`);
        return [{ what: `source:${file}: ${right} -> ${wrong}`, file, line, right, wrong, test }];
      }),
  );
}

/** Builds a copy of the sources with a fault in them and runs its test. */
async function plantInSource({ file, line, right, wrong, test }, copy) {
  const original = readFileSync(path.join(root, CUDA, file), 'utf8');
  const lines = original.split('\n');
  lines[line] = lines[line].replace(right, () => wrong);
  writeFileSync(path.join(copy, CUDA, file), lines.join('\n'));
  try {
    for (const args of [
      ['--preset', 'emulator', '-DDULTRA_BENCH=OFF'],
      ['--build', '--preset', 'emulator', '--parallel', String(os.availableParallelism())],
    ]) {
      const targets = args[0] === '--build' ? ['--target', 'dultra_emulated_tests'] : [];
      const { status, stdout, stderr } = spawnSync('cmake', [...args, ...targets], { cwd: copy, encoding: 'utf8' });
      if (status !== 0) throw new SetupError(`${file}: ${wrong} does not compile\n${stdout}${stderr}`);
    }
    const command = path.join(copy, tree('emulator'), 'dultra_emulated_tests');
    return await outcome(command, ['--filter', test], SOURCE_COST);
  } finally {
    writeFileSync(path.join(copy, CUDA, file), original);
  }
}

module.exports = async (only) => {
  const begin = Date.now();
  const chosen = (what) => only.length === 0 || only.some((part) => what.includes(part));
  const counts = { caught: 0, survived: 0, equivalent: 0 };
  const say = (what, caught) => {
    const reason = caught ? undefined : EQUIVALENT.get(what);
    const kind = caught ? 'caught' : reason ? 'equivalent' : 'survived';
    counts[kind]++;
    process.stdout.write(
      `${kind === 'survived' ? 'SURVIVED' : kind} ${what}: ${caught ?? reason ?? 'all tests pass'}\n`,
    );
  };
  if (only.length === 0 || only.some((part) => !part.startsWith('source'))) {
    const tests = await faultsOfTests();
    // Sites are numbered as they were compiled: another compiler may make fewer.
    const lost = [...EQUIVALENT.keys()].filter((fault) => !tests.has(fault));
    if (lost.length > 0) process.stdout.write(`of EQUIVALENT no test reaches ${lost.join(', ')}\n`);
    const faults = [...tests].filter(([fault]) => chosen(fault)).sort(([a], [b]) => (a < b ? -1 : 1));
    await forEachParallel(faults, async ([fault, runs]) =>
      say(fault, EQUIVALENT.has(fault) ? null : await plant(fault, runs)),
    );
  }

  const inSource = sourceFaults().filter(({ what }) => chosen(what));
  const copy = path.join(root, 'build', 'mutants');
  mkdirSync(copy, { recursive: true });
  for (const part of ['native', 'CMakeLists.txt', 'CMakePresets.json', 'package.json'])
    cpSync(path.join(root, part), path.join(copy, part), { recursive: true });
  for (const fault of inSource) say(fault.what, await plantInSource(fault, copy));

  const seconds = Math.round((Date.now() - begin) / 1000);
  const { caught, survived, equivalent } = counts;
  process.stdout.write(
    `${caught} faults caught, ${survived} survived, ${equivalent} change nothing that may be relied on; ${seconds} s\n`,
  );
  return survived > 0 || caught === 0 ? 1 : 0;
};
