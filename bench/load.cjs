// Time and memory of loading a checkpoint and generating from it, each measurement in a fresh process.
//   node bench/load.cjs [--folder FOLDER] [--gb 1] [--dtypes bfloat16,float32] [--runs 3] [--threads N] [--json FILE]
// Without --folder, random LLaDA-shaped checkpoints are written to a temporary folder first. The files are then in the
// page cache: this is the time of a second start, and what it measures is the loader, not the disk.
const { spawnSync } = require('node:child_process');
const { mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

/** Bytes of a line of /proc/self/status, or null where there is no such file. */
function processMemory(name) {
  try {
    const line = new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(readFileSync('/proc/self/status', 'utf8'));
    return line ? Number(line[1]) * 1024 : null;
  } catch {
    return null;
  }
}

/** In the fresh process: prints one JSON line. */
async function measure(folder, threads) {
  const { loadModel } = require('../dist/index.js');
  const bare = processMemory('VmRSS');
  const cpu = process.cpuUsage();
  const begin = performance.now();
  const model = await loadModel(folder, threads ? { threads } : {});
  const loaded = performance.now();
  const { user, system } = process.cpuUsage(cpu);
  const afterLoad = processMemory('VmHWM');
  const prompt = { promptIds: Array.from({ length: 32 }, (_, i) => i + 1) };
  const { ids, nfe } = await model.generate(prompt, { maxTokens: 32, sampler: { type: 'fixed', steps: 4 } });
  const generated = performance.now();
  const result = {
    loadMs: loaded - begin,
    // Of all threads: what loading takes where other programs do not hold the cores is about this divided by their
    // number.
    loadCpuMs: (user + system) / 1000,
    generateMs: generated - loaded,
    tokens: ids.length,
    nfe,
    weightBytes: model.info.weightBytes,
    isa: model.info.isa,
    threads: model.info.threads,
    bareBytes: bare,
    loadPeakBytes: afterLoad,
    peakBytes: processMemory('VmHWM') ?? process.resourceUsage().maxRSS * 1024,
  };
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

function fileBytes(folder) {
  return readdirSync(folder)
    .filter((name) => name.endsWith('.safetensors'))
    .reduce((sum, name) => sum + statSync(path.join(folder, name)).size, 0);
}

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

/** Measures a folder in fresh processes. */
function measureFolder(folder, { runs, threads }) {
  const results = [];
  for (let i = 0; i < runs; i++) {
    const args = [__filename, '--measure', folder, ...(threads ? ['--threads', String(threads)] : [])];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`measuring ${folder} failed:\n${stderr}`);
    results.push(JSON.parse(stdout));
  }
  const bytes = fileBytes(folder);
  return {
    fileBytes: bytes,
    weightBytes: results[0].weightBytes,
    isa: results[0].isa,
    threads: results[0].threads,
    loadMs: results.map((r) => r.loadMs),
    loadCpuMs: results.map((r) => r.loadCpuMs),
    generateMs: results.map((r) => r.generateMs),
    peakBytes: Math.max(...results.map((r) => r.peakBytes)),
    peakRatio: Math.max(...results.map((r) => r.peakBytes)) / bytes,
    bareBytes: results[0].bareBytes,
  };
}

async function main() {
  const { values } = parseArgs({
    options: {
      folder: { type: 'string' },
      gb: { type: 'string', default: '1' },
      dtypes: { type: 'string', default: 'bfloat16,float32' },
      runs: { type: 'string', default: '3' },
      threads: { type: 'string' },
      json: { type: 'string' },
      measure: { type: 'string' },
    },
  });
  const threads = values.threads ? Number(values.threads) : null;
  if (values.measure) return measure(values.measure, threads);
  const runs = Number(values.runs);
  const rows = [];
  const show = (name, row) => {
    rows.push({ name, ...row });
    const gb = (bytes) => (bytes / 2 ** 30).toFixed(2);
    process.stdout.write(
      `${name}: ${gb(row.fileBytes)} GiB of weights, loaded in ${(median(row.loadMs) / 1000).toFixed(2)} s (median of ${runs}; CPU time ` +
        `${(median(row.loadCpuMs) / 1000).toFixed(2)} s; ${row.isa}, ${row.threads} threads), first generation ${(median(row.generateMs) / 1000).toFixed(2)} s, peak memory ${gb(row.peakBytes)} GiB = ` +
        `${row.peakRatio.toFixed(2)} x the weights\n`,
    );
  };
  if (values.folder) {
    show(path.basename(values.folder), measureFolder(values.folder, { runs, threads }));
  } else {
    const { makeRandomCheckpoint } = require('../scripts/make-random-checkpoint.cjs');
    for (const dtype of values.dtypes.split(',')) {
      const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-load-'));
      try {
        makeRandomCheckpoint({ out: folder, gb: Number(values.gb), dtype });
        show(dtype, measureFolder(folder, { runs, threads }));
      } finally {
        rmSync(folder, { recursive: true, force: true });
      }
    }
  }
  if (values.json) writeFileSync(values.json, `${JSON.stringify(rows, null, 1)}\n`);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
