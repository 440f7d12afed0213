// Whether processes are still there.
import { existsSync, readFileSync } from 'node:fs';

/**
 * When a process started, in the system's own units; null where the system does not tell. A process id alone may have
 * been given to another process.
 */
export const startTime = (pid: number): string | null => statOf(pid)?.[19] ?? null;

/** The fields of Linux's /proc/PID/stat behind the command's name: its state first; null where there are none. */
function statOf(pid: number): string[] | null {
  const file = `/proc/${pid}/stat`;
  if (!existsSync(file)) return null;
  try {
    const stat = readFileSync(file, 'utf8');
    // The command's name, in parentheses, may hold spaces.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
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
  // One that has ended keeps its id until its parent has taken note of it, which a launcher that ends itself may not do.
  if (/^[ZX]/.test(statOf(pid)?.[0] ?? '')) return false;
  return started === null || startTime(pid) === started;
}
