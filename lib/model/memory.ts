// Available memory. Node's own functions do not fit: `os.freemem()` ignores a container's limit, and
// `process.availableMemory()` counts cached files as used, so that a container which has just downloaded a checkpoint
// would look full.
import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

/** The text of a file of /proc or /sys; null where there is none. */
function read(file: string): string | null {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return null;
  }
}

/** "name 123" lines as numbers. */
function statistics(text: string | null): Map<string, number> {
  return new Map((text ?? '').split('\n').map((line) => [line.split(' ')[0], Number(line.split(' ')[1])]));
}

/** A number in a file, Infinity where it says "max" or there is no such file. */
function limit(file: string): number {
  const value = Number.parseInt(read(file) ?? '', 10);
  return Number.isFinite(value) ? value : Infinity;
}

/** Bytes of cached files, which the kernel drops when memory is needed. */
const cachedFiles = (stat: Map<string, number>, prefix = '') =>
  (stat.get(`${prefix}active_file`) ?? 0) + (stat.get(`${prefix}inactive_file`) ?? 0);

/** Free bytes below the limit of one control group; Infinity: it has no limit. */
function freeInGroup(folder: string, version: 1 | 2): number {
  const most = limit(path.join(folder, version === 2 ? 'memory.max' : 'memory.limit_in_bytes'));
  if (most === Infinity) return Infinity;
  const used = limit(path.join(folder, version === 2 ? 'memory.current' : 'memory.usage_in_bytes'));
  if (used === Infinity) return Infinity;
  const stat = statistics(read(path.join(folder, 'memory.stat')));
  return Math.max(0, most - Math.max(0, used - cachedFiles(stat, version === 2 ? '' : 'total_')));
}

/**
 * Bytes that this process can allocate without swapping or being killed, on Linux: the machine's available memory, and
 * the limits of all control groups of the process (such as a container's). Cached files count as free in both.
 * @param root folder of /proc and /sys, for tests
 * @returns null on other systems
 */
export function linuxAvailableMemory(root = '/'): number | null {
  const available = /^MemAvailable:\s+(\d+) kB/m.exec(read(path.join(root, 'proc/meminfo')) ?? '')?.[1];
  if (available === undefined) return null;
  let least = Number(available) * 1024;
  for (const line of (read(path.join(root, 'proc/self/cgroup')) ?? '').split('\n')) {
    const parts = /^\d+:([^:]*):(\/.*)$/.exec(line);
    if (!parts) continue;
    const [, controllers, group] = parts;
    const version = controllers === '' ? 2 : controllers.split(',').includes('memory') ? 1 : null;
    if (version === null) continue;
    const mount = path.join(root, version === 2 ? 'sys/fs/cgroup' : 'sys/fs/cgroup/memory');
    // A limit of a group holds for all groups inside. The path may be the host's, of which a container sees the last
    // group as its mount.
    for (let name = path.posix.normalize(group); ; name = path.posix.dirname(name)) {
      least = Math.min(least, freeInGroup(path.join(mount, name), version));
      if (name === '/') break;
    }
  }
  return least;
}

/** Bytes that can still be allocated on this machine. */
export function availableMemory(): number {
  // macOS and Windows page out other programs' memory on demand, which their free memory does not count.
  return linuxAvailableMemory() ?? os.totalmem();
}
