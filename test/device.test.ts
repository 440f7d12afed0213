// Choosing a device on a machine without a usable GPU: typed errors that say what is missing, and the CPU for "auto",
// with one warning. With DULTRA_EMULATED_CUDA=<plugin on the emulator> (npm run test:emulator says where) a model also
// generates on it.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { temporaryFolder } from './helpers';

const root = path.resolve(__dirname, '..');

/** Runs a script with the built package in a process of its own: a plugin is opened once per process. */
function run(script: string, env: NodeJS.ProcessEnv = {}): { stdout: string; stderr: string } {
  const { DULTRA_CUDA_PLUGIN: _plugin, ...clean } = process.env;
  const text = `const d = require(${JSON.stringify(root)}); (async () => { ${script} })().catch((e) => console.log(e.code, e.message));`;
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', text], { env: { ...clean, ...env }, encoding: 'utf8' });
  return { stdout, stderr };
}

const noPlugin = path.join(temporaryFolder(), 'none.so');
const load = (device: string) =>
  `const m = await d.loadModel(undefined, { device: '${device}' }); console.log(m.info.device); m.dispose();`;

test('without the plugin', () => {
  const env = { DULTRA_CUDA_PLUGIN: noPlugin };
  for (const device of ['cuda', 'cuda:3'])
    expect(run(load(device), env).stdout).toMatch(
      /^DEVICE_UNAVAILABLE device: "cuda:\d" is not available: this build does not contain the CUDA backend/,
    );
  expect(run(load('auto'), env)).toEqual({ stdout: 'cpu\n', stderr: '' });
  expect(run('console.log(JSON.stringify(d.systemInfo()))', env).stdout).toMatch(
    /"devices":\["cpu"\],"gpus":\[\],"gpuReason":"this build does not/,
  );
});

const onLinux = process.platform === 'linux';
(onLinux ? test : test.skip)(
  `with a plugin that cannot be used${onLinux ? '' : ' (skipped: plugins are for Linux)'}`,
  () => {
    const broken = path.join(temporaryFolder(), 'broken.so');
    writeFileSync(broken, 'not a library');
    const env = { DULTRA_CUDA_PLUGIN: broken };
    expect(run(load('cuda'), env).stdout).toMatch(
      /^DEVICE_UNAVAILABLE device: "cuda:0" is not available: the CUDA backend cannot be opened/,
    );
    const { stdout, stderr } = run(
      load('auto') + load('auto').replaceAll('const m ', 'const n ').replaceAll(' m.', ' n.').replaceAll('(m.', '(n.'),
      env,
    );
    expect(stdout).toBe('cpu\ncpu\n');
    expect(stderr.match(/DultraWarning: computing on the CPU: the CUDA backend cannot be opened/g)).toHaveLength(1);
  },
);

const emulated = process.env.DULTRA_EMULATED_CUDA;
(emulated ? test : test.skip)(
  `on the emulator${emulated ? '' : ' (skipped: DULTRA_EMULATED_CUDA names no plugin)'}`,
  () => {
    const env = { DULTRA_CUDA_PLUGIN: emulated };
    const generate = (device: string) =>
      `const m = await d.loadModel(undefined, { device: '${device}' });` +
      `const r = await m.generate('12+7=', { maxTokens: 16, blockLength: 16, seed: 3, sampler: { type: 'planner' } }); console.log(m.info.device, JSON.stringify(Array.from(r.ids))); m.dispose();`;
    const onCuda = run(generate('auto'), env).stdout,
      onCpu = run(generate('cpu'), env).stdout;
    expect(onCuda).toMatch(/^cuda:0 \[/);
    expect(onCuda.replace('cuda:0', 'cpu')).toBe(onCpu);
    expect(run(load('cuda:1'), env).stdout).toMatch(
      /^DEVICE_UNAVAILABLE .*cuda:1 does not exist, there is 1 CUDA device/,
    );
  },
);

// What a machine with a GPU runs (scripts/gpu/check-node.sh).
(emulated ? test : test.skip)(
  `the checks of a device and the recorded cases, on the emulator${emulated ? '' : ' (skipped: DULTRA_EMULATED_CUDA names no plugin)'}`,
  () => {
    const { stdout, stderr } = spawnSync(process.execPath, [path.join(__dirname, 'device', 'run.cjs'), 'cuda'], {
      env: { ...process.env, DULTRA_CUDA_PLUGIN: emulated },
      encoding: 'utf8',
    });
    expect({ failed: stdout.split('\n').filter((line) => line.startsWith('FAIL')), stderr }).toEqual({
      failed: [],
      stderr: '',
    });
    expect(stdout).toMatch(/^1\d\d passed, 0 failed$/m);
  },
);
