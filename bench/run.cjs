// npm run bench: every case in a fresh process, a table per group, and both as files. See bench/README.md.
const { execFileSync } = require('node:child_process');
const { readFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { setup, SetupError, root } = require('../scripts/setup.cjs');
const { contenderVersion, installContender } = require('./lib/contender.cjs');
const { SHAPES, makeModel } = require('./lib/models.cjs');
const { compareRatios, TOLERANCE } = require('./lib/regression.cjs');
const { machine, table, writeReport } = require('./lib/report.cjs');

const HELP = `npm run bench -- [--only WORDS] [--threads 1,2] [--out FOLDER] [--quick] [--against FILE]

  --only WORDS    groups whose name contains one of the words (comma-separated): forward, cached, products, operations, experts,
                  generate, decisions, families, training, memory, sandbox
  --threads LIST  thread counts. Default: 1, and all cores
  --out FOLDER    where <date>-<device>[-<groups>].json and .md go. Default: bench/results
  --against FILE  fail where a ratio to a contender is smaller than in FILE, an earlier result of the same device, by more than 15 %
  --quick         less time per case, small shapes only, and nothing written unless --out says where
`;

/** Group name to its module, required where it is needed: in the process of a case, and (its list of cases) here. */
const GROUPS = {
  forward: () => require('./cases/forward.cjs'),
  cached: () => require('./cases/cached.cjs'),
  products: () => require('./cases/native.cjs').products,
  operations: () => require('./cases/native.cjs').operations,
  experts: () => require('./cases/native.cjs').experts,
  generate: () => require('./cases/generate.cjs'),
  decisions: () => require('./cases/decisions.cjs'),
  structured: () => require('./cases/structured.cjs'),
  families: () => require('./cases/families.cjs'),
  training: () => require('./cases/training.cjs'),
  memory: () => require('./cases/memory.cjs'),
  sandbox: () => require('./cases/sandbox.cjs'),
};

function positiveIntegers(text) {
  const numbers = text.split(',').map(Number);
  if (!numbers.every((n) => Number.isInteger(n) && n > 0))
    throw new SetupError(`--threads: expected whole numbers, got ${text}`);
  return numbers;
}

/** Rows of one case, measured in a process of its own. */
function runCase(group, options) {
  const output = execFileSync(process.execPath, [__filename, '--case', group, JSON.stringify(options)], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  return JSON.parse(output);
}

/** The instruction set that a model computes with on this machine. */
async function instructionSet() {
  const model = await require('../dist/index.js').loadModel(makeModel(Object.keys(SHAPES)[0]));
  const { isa } = model.info;
  await model.dispose();
  return isa;
}

/** Says which ratios have fallen since an earlier result, and makes the process fail where one has. */
function reportRegressions(earlier, sections) {
  const { compared, slower } = compareRatios(earlier, { sections });
  if (compared === 0)
    throw new SetupError('--against: expected a result with some of these cases, got none that can be compared');
  for (const { key, before, now } of slower)
    process.stderr.write(`bench: slower: ${key}: ${now.toFixed(2)} times its contender, before ${before.toFixed(2)}\n`);
  process.stderr.write(
    `bench: of ${compared} ratios, ${slower.length} have fallen by more than ${100 * TOLERANCE} %\n`,
  );
  if (slower.length > 0) process.exitCode = 1;
}

async function main() {
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      threads: { type: 'string' },
      out: { type: 'string' },
      quick: { type: 'boolean', default: false },
      against: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  const threads = positiveIntegers(values.threads ?? [...new Set([1, os.availableParallelism()])].join(','));
  const words = values.only?.split(',');
  const earlier = values.against === undefined ? null : JSON.parse(readFileSync(values.against, 'utf8'));
  const names = Object.keys(GROUPS).filter((name) => !words || words.some((word) => name.includes(word)));
  if (names.length === 0)
    throw new SetupError(`--only: expected some of ${Object.keys(GROUPS).join(', ')}, got ${values.only}`);
  setup();
  const hasContender = names.includes('forward') || names.includes('families');
  if (hasContender) installContender();

  const loads = [];
  const sections = [];
  for (const name of names) {
    const { title, cases } = GROUPS[name]();
    const rows = [];
    for (const options of cases({ threads, quick: values.quick })) {
      process.stderr.write(`bench: ${name} ${JSON.stringify(options)}\n`);
      loads.push(os.loadavg()[0]);
      rows.push(...runCase(name, { ...options, quick: values.quick }));
    }
    sections.push({ name, title, rows });
    process.stdout.write(`\n## ${title}\n\n${table(rows)}\n`);
  }
  if (earlier) reportRegressions(earlier, sections);
  if (values.quick && !values.out) return;
  const { version } = require('../package.json');
  const isa = await instructionSet();
  const result = {
    machine: machine({
      date: new Date().toISOString().slice(0, 10),
      device: `cpu-${isa}`,
      isa,
      dultra: version,
      ...(hasContender ? { 'onnxruntime-node': contenderVersion() } : {}),
    }),
    command: ['npm run bench', ...(process.argv.length > 2 ? ['--', ...process.argv.slice(2)] : [])].join(' '),
    loads,
    sections,
  };
  const base = writeReport(
    values.out ? path.resolve(values.out) : path.join(root, 'bench', 'results'),
    result,
    words && names.join('-'),
  );
  process.stderr.write(`bench: wrote ${base}.json and .md\n`);
}

async function measureCase(group, options) {
  process.stdout.write(JSON.stringify(await GROUPS[group]().run(options)));
}

(process.argv[2] === '--case' ? measureCase(process.argv[3], JSON.parse(process.argv[4])) : main()).catch((error) => {
  const isUsage = error instanceof SetupError || error.code?.startsWith('ERR_PARSE_ARGS');
  process.stderr.write(isUsage ? `dultra: ${error.message}\n` : `${error.stack}\n`);
  process.exitCode = 1;
});
