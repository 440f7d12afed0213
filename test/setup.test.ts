// What makes a clone ready says one line for each thing that it does, and everything where one fails.
import { spawnSync } from 'node:child_process';
import path from 'node:path';

const setup = path.resolve(__dirname, '..', 'scripts', 'setup.cjs');
const run = (...args: string[]) => {
  const program = `require(${JSON.stringify(setup)}).runNpm(${JSON.stringify(args)}, 'trying')`;
  // As people run it: npm test --silent would hand its own level of logging down.
  const env = { ...process.env, npm_config_loglevel: 'notice' };
  return spawnSync(process.execPath, ['-e', program], { encoding: 'utf8', env });
};

test('a command that succeeds: one line', () => {
  expect(run('--version')).toMatchObject({ status: 0, stdout: '', stderr: 'dultra: trying (npm --version)\n' });
});

test('a command that fails: all that it said, and its exit code', () => {
  const { status, stderr } = run('run', 'no-such-script');
  expect(status).toBe(1);
  expect(stderr).toMatch(/^dultra: trying \(npm run no-such-script\)\n[\s\S]*Missing script: "no-such-script"/);
  expect(stderr).toContain('Error: trying failed with exit code 1');
});
