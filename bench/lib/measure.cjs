// Timing of contenders that take turns.

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function quantile(values, p) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.round(p * (sorted.length - 1))];
}
const median = (values) => quantile(values, 0.5);

/** Milliseconds of the clock, and of all of this process's threads. */
async function timed(call) {
  const cpu = process.cpuUsage();
  const start = process.hrtime.bigint();
  await call();
  const wall = Number(process.hrtime.bigint() - start) / 1e6;
  const { user, system } = process.cpuUsage(cpu);
  return { wall, cpu: (user + system) / 1e3 };
}

const LONG_MS = 100; // a call this long needs no untimed one before it
const TURN_MS = 60; // of calls before the next contender's turn

/**
 * Times contenders ({ name: call }) in turns over rounds, so that a machine that is busy for a while slows all alike.
 * Between turns there is a pause: thread pools spin for a while after their last call and would hold the next
 * contender's cores.
 * @param seconds budget per contender; at least `rounds` rounds whatever they take
 * @returns { name: { median, p10, p90, runs, cpu, turns } }: milliseconds per call, the median of its CPU time, and the
 * medians of each
 *   turn, [{ wall, cpu }]
 */
async function alternate(contenders, { seconds, rounds }) {
  const names = Object.keys(contenders);
  const state = {};
  for (const name of names) {
    await contenders[name](); // allocations, page faults, threads
    const { wall } = await timed(contenders[name]);
    state[name] = {
      isLong: wall > LONG_MS,
      calls: Math.max(1, Math.min(200, Math.round(TURN_MS / wall))),
      times: [],
      turns: [],
    };
  }
  const end = Date.now() + 1000 * seconds * names.length;
  for (let round = 0; round < rounds || Date.now() < end; round++)
    for (const name of names) {
      const { isLong, calls, times, turns } = state[name];
      await sleep(TURN_MS);
      if (!isLong) await contenders[name]();
      const turn = [];
      for (let i = 0; i < calls; i++) turn.push(await timed(contenders[name]));
      times.push(...turn);
      turns.push({ wall: median(turn.map((time) => time.wall)), cpu: median(turn.map((time) => time.cpu)) });
    }
  return Object.fromEntries(
    names.map((name) => {
      const { times, turns } = state[name];
      const walls = times.map((time) => time.wall);
      const summary = {
        median: median(walls),
        p10: quantile(walls, 0.1),
        p90: quantile(walls, 0.9),
        runs: walls.length,
      };
      return [name, { ...summary, cpu: median(times.map((time) => time.cpu)), turns }];
    }),
  );
}

/**
 * How many times faster `ours` was than `theirs` by "wall" or "cpu": the median over the rounds, each of which compares
 * neighbours in time.
 */
const speedup = (ours, theirs, clock) => median(ours.turns.map((turn, i) => theirs.turns[i][clock] / turn[clock]));

module.exports = { alternate, speedup };
