// The report of scripts/gpu/check.sh, made of recorded output.
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { exceptOnWindows, temporaryFolder } from './helpers';

const root = path.resolve(__dirname, '..');

interface Report {
  facts: Record<string, string>;
  bars: { bar: string; measured: string; goal: string; verdict: 'pass' | 'fail' | 'not measured' }[];
  predictions: { name: string; predicted: string; measured: string; missed: number | null }[];
  measurements: Record<string, unknown>[];
}

const line = (name: string, by: string, us: number, rate = 0, note = '') =>
  JSON.stringify({ case: name, by, us, us_p10: us * 0.9, us_p90: us * 1.1, tflops: 0, gb_per_s: rate, note });

function report(measurements: string[], golden = ''): { json: Report; markdown: string } {
  const logs = temporaryFolder();
  const out = path.join(temporaryFolder(), 'report');
  writeFileSync(
    path.join(logs, 'facts'),
    'gpu\tNVIDIA H100 80GB\ndate\t2026-11-25\nnative tests on the device\t96 passed, 0 failed\nodd\ta "quoted" \\ fact\n',
  );
  writeFileSync(path.join(logs, 'measurements'), measurements.map((text) => `${text}\n`).join(''));
  writeFileSync(path.join(logs, 'golden'), golden);
  const { status, stderr } = spawnSync(process.execPath, [path.join(root, 'scripts', 'gpu', 'report.cjs'), logs, out], {
    encoding: 'utf8',
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  return {
    json: JSON.parse(readFileSync(`${out}.json`, 'utf8')) as Report,
    markdown: readFileSync(`${out}.md`, 'utf8'),
  };
}

describe('scripts/gpu/report.cjs', () => {
  test('says of each bar what was measured, and whether it is reached', () => {
    const { json, markdown } = report(
      [
        '{"device":"cuda:0","isa":"NVIDIA H100, sm_90, cuBLASLt 130100"}',
        line('attention forward T=512', 'dultra', 100),
        line('attention forward T=1024', 'dultra', 600),
        line('copy', 'dultra', 1000, 2800),
        line('bandwidth: rmsnorm', 'dultra', 100, 2700),
        line('bandwidth: rope', 'dultra', 100, 1500),
        line('sampler, 32 rows, temperature 0.1', 'dultra', 8.3),
        line('sampler, 32 rows, temperature 1', 'dultra', 80),
        line('denoising step', 'dultra', 13200, 1100, 'with the planner, logits of the block'),
        line('denoising step on a cache', 'dultra', 99999),
        '{"skipped":"training step","by":"dultra","why":"cuda:0: 5000 MiB could not be allocated"}',
        '{"device":"NVIDIA H100","torch":"2.7.0"}',
        line('attention forward T=512', 'torch flash', 150),
        line('attention forward T=512', 'torch cuDNN', 110),
        line('attention forward T=1024', 'torch flash', 250),
        line('copy', 'torch copy_', 990, 3000),
        line('denoising step', 'torch eager', 26400),
        line('training step', 'torch eager', 50e6),
      ],
      '  forward_base in fp32: hidden 2e-06 logits 8e-06\nok golden_forward (73 checks)\n  bf16: 572 of 574 tokens are the recorded ones\n',
    );
    const verdicts = Object.fromEntries(json.bars.map(({ bar, measured, verdict }) => [bar, [measured, verdict]]));
    expect(verdicts).toEqual({
      'attention forward T=512 against PyTorch': ['1.10 (100.0 us, torch cuDNN 110.0 us)', 'pass'],
      'attention forward T=1024 against PyTorch': ['0.42 (600.0 us, torch flash 250.0 us)', 'fail'],
      'attention backward against PyTorch': ['', 'not measured'],
      'bandwidth: rmsnorm': ['0.90 (2700 of 3000 GB/s)', 'pass'],
      'bandwidth: rope': ['0.50 (1500 of 3000 GB/s)', 'fail'],
      'sampler, 32 rows, temperature 0.1': ['8.3 us', 'pass'],
      'denoising step': ['13.20 ms', 'pass'],
      'denoising step against PyTorch': ['2.00 (13.20 ms, torch eager 26.40 ms)', 'pass'],
      'training step': ['', 'not measured'],
      'training step against PyTorch': ['', 'not measured'],
    });
    expect(json.measurements).toHaveLength(18);
    expect(json.facts).toEqual({
      gpu: 'NVIDIA H100 80GB',
      date: '2026-11-25',
      'native tests on the device': '96 passed, 0 failed',
      odd: 'a "quoted" \\ fact',
    });
    expect(markdown).toContain('# NVIDIA H100 80GB, 2026-11-25');
    expect(markdown).toContain('## Bars: 5 pass, 2 fail, 3 not measured');
    expect(markdown).toContain('| native tests on the device | 96 passed, 0 failed |');
    expect(markdown).toContain('- training step, dultra: cuda:0: 5000 MiB could not be allocated');
    expect(markdown).toContain(
      '- forward_base in fp32: hidden 2e-06 logits 8e-06\n- bf16: 572 of 574 tokens are the recorded ones',
    );
    expect(markdown).toContain('cuda:0, NVIDIA H100, sm_90, cuBLASLt 130100; NVIDIA H100, PyTorch 2.7.0');
  });

  test('predictions stand beside what was measured', () => {
    const { json, markdown } = report([
      line('attention forward T=512', 'dultra', 90).replace('"tflops":0', '"tflops":410.5'),
      line('attention forward T=512', 'torch cuDNN', 80).replace('"tflops":0', '"tflops":480'),
      line('denoising step on a cache', 'dultra', 10_000),
    ]);
    const of = (name: string) => json.predictions.find((prediction) => prediction.name === name);
    expect(of('attention forward T=512')).toMatchObject({ predicted: '400 TFLOP/s', measured: '410.5 TFLOP/s' });
    expect(of('attention forward T=512')?.missed).toBeCloseTo(400 / 410.5 - 1);
    expect(of('denoising step on a cache')).toMatchObject({ predicted: '8.00 ms', measured: '10.00 ms', missed: 0.25 });
    expect(of('training step')).toMatchObject({ measured: 'not measured', missed: null });
    expect(markdown).toContain('| denoising step on a cache | 8.00 ms | 10.00 ms | **+25 %** |');
    expect(markdown).toContain('| attention forward T=512 | 400 TFLOP/s | 410.5 TFLOP/s | -3 % |');
  });

  test('where nothing was measured, no bar is reached', () => {
    const { json } = report([]);
    expect(json.measurements).toEqual([]);
    expect(json.bars.length).toBeGreaterThanOrEqual(8);
    expect(new Set(json.bars.map(({ verdict }) => verdict))).toEqual(new Set(['not measured']));
  });

  const onBash = exceptOnWindows('its bash may be that of a Linux subsystem, which does not know the path');
  for (const name of ['check.sh', 'check-node.sh'])
    onBash(`${name} is a script that bash parses`, () => {
      expect(spawnSync('bash', ['-n', path.join(root, 'scripts', 'gpu', name)], { encoding: 'utf8' })).toMatchObject({
        status: 0,
        stderr: '',
      });
    });

  test('both programs name the same cases', () => {
    // A bar without its other half would be "not measured" for ever.
    const native = readFileSync(path.join(root, 'bench', 'native', 'cuda.cc'), 'utf8');
    const torch = readFileSync(path.join(root, 'bench', 'torch', 'gpu.py'), 'utf8');
    for (const name of [
      'attention forward T=',
      'attention backward T=',
      'copy',
      'denoising step',
      'training step',
      'sampler, 32 rows, temperature ',
    ])
      expect([name, native.includes(`"${name}"`), new RegExp(`"${name}["{]`).test(torch)]).toEqual([name, true, true]);
  });
});
