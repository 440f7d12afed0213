// node scripts/gpu/report.cjs LOGS OUT: the report of scripts/gpu/check.sh. Reads LOGS/facts (name, tab, value),
// LOGS/measurements (JSON lines of dultra_bench_cuda and bench/torch/gpu.py), LOGS/golden and, where it is there,
// LOGS/times (what DULTRA_TRACE=time prints); writes OUT.json and OUT.md. Every bar has what was measured, its goal, and pass, fail or "not measured".
const { existsSync, readFileSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { markdownTable } = require('../../bench/lib/report.cjs');

// A goal applies to the case of its name, with `prefix` to all whose name begins with it. ratio: time of the fastest
// other contender over ours (above 1 we are faster); share: of the bandwidth of a copy in the same run; us: at most.
const GOALS = [
  {
    name: 'attention forward',
    prefix: true,
    ratio: 0.5,
    why: 'the best of PyTorch SDPA (flash, cuDNN), T 512 to 4096, D 128',
  },
  { name: 'attention backward', prefix: true, ratio: 0.4, why: 'likewise' },
  { name: 'bandwidth:', prefix: true, share: 0.85, why: 'of what a copy reaches in the same run; arrays over 50 MB' },
  { name: 'sampler, 32 rows, temperature 0.1', us: 20, why: 'one read of 16 MB and a second launch' },
  {
    name: 'denoising step',
    us: 13500,
    why: '8B, T 512, B 1, uncached: 10.3 ms is the floor of 788 TFLOP/s and 4.3 TB/s (H200)',
  },
  { name: 'denoising step', ratio: 1.5, why: 'eager PyTorch, as the reference does it' },
  {
    name: 'training step',
    us: 27_600_000,
    why: '8B, 12 x 40 x 512: 1.5 times the floor of 18.4 s for the same device',
  },
  { name: 'training step', ratio: 1.0, why: 'eager PyTorch, as the reference does it' },
];

// What the kernels were expected to do on an H100 before any GPU had run them, from counts of their instructions. A miss
// of more than 15 % is to be explained: then what is believed of the kernel is wrong.
const PREDICTIONS = [
  ...[400, 430, 450, 470].map((tflops, i) => ({ name: `attention forward T=${512 << i}`, tflops })),
  ...[260, 300, 315, 330].map((tflops, i) => ({ name: `attention backward T=${512 << i}`, tflops })),
  { name: 'denoising step', us: 13_300 },
  { name: 'denoising step on a cache', us: 8_000 },
  { name: 'sampler, 32 rows, temperature 0.1', us: 14 },
  { name: 'training step', us: 24_000_000 },
];
const PREDICTION_MISS = 0.15;

/** Predictions beside measurements: { name, predicted, measured, missed }; missed is how much slower than predicted. */
function comparePredictions(measurements) {
  const { ours } = sortOut(measurements);
  return PREDICTIONS.map(({ name, tflops, us }) => {
    const own = ours.get(name);
    const predicted = us === undefined ? `${tflops} TFLOP/s` : timeText(us);
    const known = own && (us !== undefined || own.tflops > 0);
    if (!known) return { name, predicted, measured: 'not measured', missed: null };
    const measured = us === undefined ? `${Number(own.tflops.toPrecision(4))} TFLOP/s` : timeText(own.us);
    return { name, predicted, measured, missed: us === undefined ? tflops / own.tflops - 1 : own.us / us - 1 };
  });
}

function missText(missed) {
  if (missed === null) return '';
  const text = `${missed >= 0 ? '+' : ''}${(100 * missed).toFixed(0)} %`;
  return Math.abs(missed) > PREDICTION_MISS ? `**${text}**` : text;
}

function timeText(us) {
  if (us >= 1e6) return `${(us / 1e6).toFixed(2)} s`;
  if (us >= 1e3) return `${(us / 1e3).toFixed(2)} ms`;
  return `${us.toFixed(1)} us`;
}

/** Measurements by case: ours, the fastest other contender's, and the bandwidth of the faster copy. */
function sortOut(measurements) {
  const ours = new Map();
  const theirs = new Map();
  let copy = 0;
  for (const entry of measurements) {
    if (entry.case === undefined) continue;
    if (entry.by === 'dultra') ours.set(entry.case, entry);
    else if (entry.us > 0 && !(theirs.get(entry.case)?.us <= entry.us)) theirs.set(entry.case, entry);
    if (entry.case === 'copy') copy = Math.max(copy, entry.gb_per_s ?? 0);
  }
  return { ours, theirs, copy };
}

/** What was measured of a goal for one case: { bar, measured, goal, verdict, why }. */
function judge(name, { ratio, share, us, why }, { ours, theirs, copy }) {
  const own = ours.get(name);
  const other = theirs.get(name);
  const result = (bar, goal, measured, passes) => ({
    bar,
    measured: measured ?? '',
    goal,
    verdict: measured === null ? 'not measured' : passes ? 'pass' : 'fail',
    why,
  });
  if (ratio !== undefined) {
    const bar = `${name} against PyTorch`;
    const goal = `>= ${ratio}`;
    if (!own || !other) return result(bar, goal, null);
    const value = other.us / own.us;
    const text = `${value.toFixed(2)} (${timeText(own.us)}, ${other.by} ${timeText(other.us)})`;
    return result(bar, goal, text, value >= ratio);
  }
  if (us !== undefined) return result(name, `<= ${timeText(us)}`, own ? timeText(own.us) : null, own?.us <= us);
  if (!own || copy === 0) return result(name, `>= ${share}`, null);
  const value = own.gb_per_s / copy;
  const text = `${value.toFixed(2)} (${Math.trunc(own.gb_per_s)} of ${Math.trunc(copy)} GB/s)`;
  return result(name, `>= ${share}`, text, value >= share);
}

/** All bars: each goal with every case that it applies to; a goal without a case is "not measured". */
function judgeAll(measurements) {
  const sorted = sortOut(measurements);
  return GOALS.flatMap((goal) => {
    const cases = [...sorted.ours.keys()].filter(
      (name) => name === goal.name || (goal.prefix && name.startsWith(goal.name)),
    );
    return (cases.length > 0 ? cases : [goal.name]).map((name) => judge(name, goal, sorted));
  });
}

function markdown({ facts, bars, measurements, deviations, predictions, times }) {
  const count = (verdict) => bars.filter((bar) => bar.verdict === verdict).length;
  const machines = measurements
    .filter((entry) => entry.device !== undefined && entry.case === undefined)
    .map(({ device, isa, torch }) => [device, isa, torch && `PyTorch ${torch}`].filter(Boolean).join(', '));
  const { gpu, date, ...rest } = facts;
  const cell = (value) => (value > 0 ? Number(value.toPrecision(4)) : '');
  const parts = [
    `# ${gpu}, ${date}`,
    `Written by \`scripts/gpu/check.sh\`: ${machines.join('; ')}.`,
    markdownTable(['', ''], Object.entries(rest)),
    `## Bars: ${count('pass')} pass, ${count('fail')} fail, ${count('not measured')} not measured`,
    markdownTable(
      ['bar', 'measured', 'goal', '', ''],
      bars.map(({ bar, measured, goal, verdict, why }) => [
        bar,
        measured,
        goal,
        verdict === 'fail' ? '**fail**' : verdict,
        why,
      ]),
    ),
    '## Predictions',
    'Of an H100, made before a GPU had run these kernels; the last column is how much more time it took.',
    markdownTable(
      ['case', 'predicted', 'measured', ''],
      predictions.map(({ name, predicted, measured, missed }) => [name, predicted, measured, missText(missed)]),
    ),
    '## Measurements',
    markdownTable(
      ['case', 'by', 'median', '10 %', '90 %', 'TFLOP/s', 'GB/s', ''],
      measurements
        .filter((entry) => entry.case !== undefined)
        .map((m) => [
          ...[m.case, m.by, timeText(m.us), timeText(m.us_p10), timeText(m.us_p90)],
          ...[cell(m.tflops), cell(m.gb_per_s), m.note ?? ''],
        ]),
    ),
  ];
  const skipped = measurements.filter((entry) => entry.skipped !== undefined);
  if (skipped.length > 0)
    parts.push('Left out:', skipped.map(({ skipped: name, by, why }) => `- ${name}, ${by}: ${why}`).join('\n'));
  if (times.trim()) parts.push('## Time of each operation', `\`\`\`text\n${times.trimEnd()}\n\`\`\``);
  if (deviations.length > 0)
    parts.push('## Recorded cases: largest deviations', deviations.map((line) => `- ${line}`).join('\n'));
  return `${parts.join('\n\n')}\n`;
}

/**
 * The report of what check.sh has written.
 * @param logs { facts, measurements, golden, times }: the text of each file
 * @returns { facts, bars, predictions, measurements, markdown }
 */
function report(logs) {
  const lines = (text) => text.split('\n').filter(Boolean);
  const facts = Object.fromEntries(
    lines(logs.facts).map((line) => {
      const at = line.indexOf('\t');
      return [line.slice(0, at), line.slice(at + 1)];
    }),
  );
  const measurements = lines(logs.measurements).map((line) => JSON.parse(line));
  const bars = judgeAll(measurements);
  const predictions = comparePredictions(measurements);
  const deviations = lines(logs.golden)
    .filter((line) => /^ {2}([a-z0-9_]+ in (fp32|bf16):|bf16: [0-9]+ of)/.test(line))
    .map((line) => line.trim());
  return {
    facts,
    bars,
    predictions,
    measurements,
    markdown: markdown({ facts, bars, measurements, deviations, predictions, times: logs.times }),
  };
}

module.exports = { report };

if (require.main === module) {
  const [logs, out] = process.argv.slice(2);
  if (!logs || !out) {
    process.stderr.write('usage: node scripts/gpu/report.cjs LOGS OUT\n');
    process.exit(2);
  }
  const read = (name) => readFileSync(path.join(logs, name), 'utf8');
  const { markdown: text, ...json } = report({
    facts: read('facts'),
    measurements: read('measurements'),
    golden: read('golden'),
    times: existsSync(path.join(logs, 'times')) ? read('times') : '',
  });
  // Bars and measurements a line each, for diffs.
  const list = (entries) => `[\n${entries.map((entry) => `  ${JSON.stringify(entry)}`).join(',\n')}\n]`;
  writeFileSync(`${out}.md`, text);
  writeFileSync(
    `${out}.json`,
    `{\n"facts": ${JSON.stringify(json.facts, null, 2)},\n"bars": ${list(json.bars)},\n"predictions": ${list(json.predictions)},\n"measurements": ${list(json.measurements)}\n}\n`,
  );
}
