// npm run build:cuda: builds build/Release/libdultra_cuda.so for all targets (needs the CUDA toolkit, no GPU), prints
// the registers of each kernel, and fails where one spills registers or where the compiler puts waits between products
// of wgmma. --targets 80,90a builds only these.
const { spawnSync } = require('node:child_process');
const os = require('node:os');
const path = require('node:path');
const { checkPrerequisites, SetupError, root } = require('./setup.cjs');

/** Kernels of ptxas's report: name, target, registers, bytes spilled. */
function parseReport(output) {
  const kernels = [];
  for (const line of output.split('\n')) {
    const entry = /Compiling entry function '([^']+)' for '([^']+)'/.exec(line);
    if (entry) kernels.push({ name: entry[1], target: entry[2], registers: 0, spilled: 0 });
    const kernel = kernels.at(-1);
    if (!kernel) continue;
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spills) kernel.spilled = Number(spills[1]) + Number(spills[2]);
    const registers = /Used (\d+) registers/.exec(line);
    if (registers) kernel.registers = Number(registers[1]);
  }
  return kernels;
}

/** The kernel's name in a mangled one; instances of a template share it. */
const shortName = (mangled) => /[a-z][a-z_]*_kernel/.exec(mangled)?.[0] ?? mangled;

function run(args) {
  const { status, error, stdout, stderr } = spawnSync('cmake', args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (error) throw new SetupError(`cmake: ${error.message}`);
  if (status !== 0)
    throw new SetupError(
      `building the CUDA plugin failed:\n${`${stdout}\n${stderr}`
        .split('\n')
        .filter((line) => /error|warning|fatal|cannot/i.test(line))
        .slice(0, 40)
        .join('\n')}`,
    );
  return stdout + stderr;
}

function main() {
  checkPrerequisites();
  const at = process.argv.indexOf('--targets');
  const targets =
    at > 0 ? process.argv[at + 1].split(',').map((target) => (target === '80' ? target : `${target}-real`)) : null;
  const architectures = targets ? `-DDULTRA_CUDA_ARCHITECTURES=${targets.join(';')}` : '-UDULTRA_CUDA_ARCHITECTURES';
  run(['--preset', 'cuda', architectures]);
  // From scratch: only what is compiled now reports.
  const parallel = String(os.availableParallelism());
  const report = run([
    '--build',
    '--preset',
    'cuda',
    '--target',
    'dultra_cuda',
    '--clean-first',
    '--parallel',
    parallel,
  ]);
  const kernels = parseReport(report);
  if (kernels.length === 0) throw new SetupError('the CUDA compiler said nothing about its kernels');
  const byName = new Map();
  for (const { name, target, registers, spilled } of kernels) {
    const seen = byName.get(shortName(name)) ?? { targets: new Set(), registers: 0, spilled: [] };
    seen.targets.add(target);
    seen.registers = Math.max(seen.registers, registers);
    if (spilled > 0) seen.spilled.push(`${spilled} bytes on ${target}`);
    byName.set(shortName(name), seen);
  }
  for (const [name, { targets: built, registers, spilled }] of byName)
    process.stdout.write(
      `${name}: ${registers} registers at most, ${[...built].join(' ')}${spilled.length > 0 ? `, SPILLS ${spilled.join(', ')}` : ''}\n`,
    );
  const spilling = [...byName].filter(([, { spilled }]) => spilled.length > 0);
  process.stdout.write(
    `${path.join('build', 'Release', 'libdultra_cuda.so')}: ${byName.size} kernels, ${spilling.length} spill registers\n`,
  );
  // C7510 and similar: registers of a product are used before the wait for it, so the compiler inserts waits.
  const waits = report.split('\n').filter((line) => /\(C75\d\d\)/.test(line));
  for (const line of waits) process.stdout.write(`${line}\n`);
  return spilling.length > 0 || waits.length > 0 ? 1 : 0;
}

try {
  process.exitCode = main();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`dultra: ${error.message}\n`);
  process.exitCode = 1;
}
