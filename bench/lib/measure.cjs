// Timing of contenders that take turns.

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function quantile(values, p) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.round(p * (sorted.length - 1))];
}

/** Median and the middle 80 % of a list of numbers. */
const summary = (values) => ({
  median: quantile(values, 0.5),
  p10: quantile(values, 0.1),
  p90: quantile(values, 0.9),
  runs: values.length,
});

async function timed(call) {
  const start = process.hrtime.bigint();
  await call();
  return Number(process.hrtime.bigint() - start) / 1e6;
}

const WARM_MS = 100; // a call this long brings its own warm caches
const TURN_MS = 60; // what a contender runs before the next one's turn

/**
 * Milliseconds per call of each contender ({ name: call }), in turns over rounds, so that a machine that is busy for a while slows all
 * alike. Between turns there is a pause: thread pools spin for a while after their last call and would hold the other's cores.
 * @param seconds budget per contender; at least `rounds` rounds whatever they take
 * @returns { name: { median, p10, p90, runs, turns } }; turns: the median of each round
 */
async function alternate(contenders, { seconds, rounds }) {
  const names = Object.keys(contenders);
  const state = {};
  for (const name of names) {
    await contenders[name](); // allocations, page faults, threads
    const once = await timed(contenders[name]);
    state[name] = { once, calls: Math.max(1, Math.min(200, Math.round(TURN_MS / once))), times: [], turns: [] };
  }
  const end = Date.now() + 1000 * seconds * names.length;
  for (let round = 0; round < rounds || Date.now() < end; round++)
    for (const name of names) {
      const { once, calls, times, turns } = state[name];
      await sleep(TURN_MS);
      if (once < WARM_MS) await contenders[name]();
      const turn = [];
      for (let i = 0; i < calls; i++) turn.push(await timed(contenders[name]));
      times.push(...turn);
      turns.push(quantile(turn, 0.5));
    }
  return Object.fromEntries(names.map((name) => [name, { ...summary(state[name].times), turns: state[name].turns }]));
}

/** How many times faster `ours` was than `theirs`: the median over the rounds, each of which compares neighbours in time. */
const speedup = (ours, theirs) =>
  quantile(
    ours.turns.map((ms, i) => theirs.turns[i] / ms),
    0.5,
  );

module.exports = { alternate, speedup, summary, sleep };
