// The built command line, for tests.
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { temporaryFolder } from './helpers';

/** The program. */
export const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');

/** What a command line did. */
export interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Outcomes of many command lines, out of one process in the folder `cwd`: starting one takes longer than these do in it. */
export function inOneProcess(commandLines: string[][], cwd = process.cwd()): Outcome[] {
  const script = `
    const { main } = require(${JSON.stringify(main)});
    const write = process.stdout.write.bind(process.stdout);
    const outcome = { code: null, stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr']) process[name].write = (text) => { outcome[name] += text; return true; };
    (async () => {
      const outcomes = [];
      for (const args of ${JSON.stringify(commandLines)}) {
        Object.assign(outcome, { stdout: '', stderr: '' });
        outcome.code = await main(args);
        outcomes.push({ ...outcome });
      }
      write(JSON.stringify(outcomes));
    })();`;
  const env = {
    ...process.env,
    HF_HUB_OFFLINE: '1',
    HF_HOME: temporaryFolder(),
    DULTRA_CUDA_PLUGIN: '/nowhere/libdultra_cuda.so',
  };
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', script], { cwd, env, encoding: 'utf8' });
  expect(stderr).toBe('');
  return JSON.parse(stdout);
}
