// dultra doctor: what of this machine can be used, and what to do about the rest.
import type { Command } from 'commander';
import { diagnose } from '../../index';
import { ExitCode, interruptSignal } from '../errors';
import { addOutputOptions, colorsFor, type OutputFlags, printJson, printTable } from '../output';

async function doctor({ json }: OutputFlags): Promise<void> {
  const findings = await diagnose({ signal: interruptSignal });
  if (findings.some(({ status }) => status === 'fail')) process.exitCode = ExitCode.failed;
  if (json) {
    printJson({ findings });
    return;
  }
  const { green, yellow, red } = colorsFor(process.stdout);
  const paint = { ok: green, warn: yellow, fail: red };
  printTable(
    findings.map(({ name, status, found, advice }) => [
      name,
      ...found.split('\n').map((line, i) => (i === 0 ? `${status.padEnd(4)}  ${line}` : line)),
      ...(advice === null ? [] : [`→ ${advice}`]),
    ]),
    (text) => text.replace(/^( +)(ok|warn|fail)\b/, (_, space, word: keyof typeof paint) => space + paint[word](word)),
  );
}

/** Adds `dultra doctor` to the program. */
export function register(program: Command): void {
  const command = program
    .command('doctor')
    .summary('check this machine: binary, processor, GPU, hub, cache, Python')
    .description(
      'Checks what dultra needs and can use here, and says what to do about the rest. The exit code is 1 where something ' +
        'fails that dultra cannot do without.',
    );
  addOutputOptions(command, '{ findings }').action(doctor);
}
