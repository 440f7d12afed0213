// A server under load and with faults, and what it costs beside the library.
//   node bench/serving.cjs [--only NAME,…] [--scale 1] [--soak 600] [--out FILE]
// The server runs in a process of its own, with the embedded model. Every check says whether it passed, and its figures;
// times of a busy machine are compared as ratios of medians, in turns. --scale 0.1 makes a tenth of the requests; --out
// writes FILE.json and FILE.md.
const { writeFileSync } = require('node:fs');
const os = require('node:os');
const { parseArgs } = require('node:util');
const { machine } = require('./lib/report.cjs');
const faults = require('./serving/faults.cjs');
const figures = require('./serving/figures.cjs');
const { startServer } = require('./serving/server.cjs');

/** All checks, or those of `only`, each by its name. */
async function run({ only = null, scale = 1, soakSeconds = 600, report = () => {} } = {}) {
  const { loadModel } = require('../dist/index.js');
  const model = await loadModel(undefined, { threads: 1 });
  const server = await startServer(['--max-queue', '4096'], { collects: true });
  const some = (count) => Math.max(8, Math.round(count * scale));
  let costs = null;
  const checks = {
    start: () => figures.startTimes({}),
    mixed: () => faults.mixed(server, model, { count: some(1000) }),
    leaving: () => faults.mixed(server, model, { count: some(1000), leaving: some(300) }),
    // Never few: what a heap keeps as it likes is then a large part of what each takes.
    silent: () => faults.silentReaders(server, { readers: Math.max(25, some(50)), rounds: some(30) }),
    nonsense: () => faults.nonsense({ count: some(10_000) }),
    overflow: () => faults.overflow({ count: some(200) }),
    terminate: () => faults.terminate({ count: some(200) }),
    broken: () => faults.broken({ count: some(200) }),
    long: () => figures.longRow(server, { rounds: some(8) }),
    overhead: () => figures.overhead(server, model, { rounds: some(20) }),
    between: () => figures.betweenPasses(model, { rounds: some(20) }),
    costs: async () => {
      costs = await figures.passCosts(model, { rounds: some(20) });
      return costs;
    },
    arrivals: async () => {
      costs ??= await figures.passCosts(model, { rounds: 8 });
      return figures.arrivals({ count: some(200), costs });
    },
    soak: () => figures.soak(server, { seconds: soakSeconds }),
  };
  const results = {};
  try {
    for (const [name, check] of Object.entries(checks)) {
      if (only && !only.includes(name)) continue;
      const load = os.loadavg()[0];
      results[name] = { ...(await check()), load };
      report(name, results[name]);
    }
  } finally {
    await server.stop();
    model.dispose();
  }
  return results;
}

/** A figure, or several by their names. */
const shown = (value) => {
  if (typeof value === 'number') return String(Number(value.toPrecision(3)));
  if (typeof value !== 'object' || value === null) return String(value);
  return Object.entries(value)
    .map(([name, one]) => (Array.isArray(value) ? shown(one) : `${name}: ${shown(one)}`))
    .join(', ');
};

/** Writes results as JSON and as a page. */
function write(file, results) {
  const at = machine({ dultra: require('../package.json').version });
  const command = `node bench/serving.cjs ${process.argv.slice(2).join(' ')}`.trim();
  writeFileSync(`${file}.json`, `${JSON.stringify({ machine: at, command, results }, null, 1)}\n`);
  const rows = Object.entries(results).map(([name, { pass, met, load, ...others }]) => {
    const lines = Object.entries(others).map(([what, value]) => `${what} ${shown(value) || 'none'}`);
    const goal = met === undefined ? '' : met ? 'met' : 'missed';
    return `| ${name} | ${pass ? 'ok' : 'FAILED'} | ${goal} | ${shown(load)} | ${lines.join('; ')} |`;
  });
  const text = [
    '# Serving: load, faults and cost',
    `\`${command}\``,
    Object.entries(at)
      .map(([name, value]) => `${name}: ${value}`)
      .join(' · '),
    'What each check does stands in ../serving.cjs; `load` is the load average before it.',
    ['| check | | goal | load | figures |', '| --- | --- | --- | --- | --- |', ...rows].join('\n'),
  ];
  writeFileSync(`${file}.md`, `${text.join('\n\n')}\n`);
}

module.exports = { run };

if (require.main === module) {
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      scale: { type: 'string', default: '1' },
      soak: { type: 'string', default: '600' },
      out: { type: 'string' },
    },
  });
  run({
    only: values.only?.split(',') ?? null,
    scale: Number(values.scale),
    soakSeconds: Number(values.soak),
    report: (name, { pass, ...others }) =>
      process.stdout.write(`${pass ? 'ok    ' : 'FAILED'} ${name} ${JSON.stringify(others)}\n`),
  }).then(
    (results) => {
      if (values.out) write(values.out, results);
      process.exitCode = Object.values(results).every(({ pass }) => pass) ? 0 : 1;
    },
    (error) => {
      process.stderr.write(`${error.stack}\n`);
      process.exitCode = 1;
    },
  );
}
