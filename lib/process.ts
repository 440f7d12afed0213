// Whether processes are still there.
import { existsSync, readFileSync } from 'node:fs';

/**
 * When a process started, in the system's own units; null where the system does not tell. A process id alone may have
 * been given to another process.
 */
export function startTime(pid: number): string | null {
  const file = `/proc/${pid}/stat`;
  if (!existsSync(file)) return null;
  try {
    const stat = readFileSync(file, 'utf8');
    // The command's name, in parentheses, may hold spaces; the start time is the 20th field after it.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}

/** Whether a process of that id runs, and, where `started` is given, is the one that started then. */
export function isRunning(pid: number, started: string | null = null): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
  return started === null || startTime(pid) === started;
}
