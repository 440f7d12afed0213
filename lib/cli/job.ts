// A command as one of several processes that mpirun or srun has started: rank 0 speaks and writes, the others compute.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { distributed } from '../index';
import { Interruption, interruptSignal } from './errors';
import { type OutputFlags, printMessage, setMessagePrefix } from './output';

/** Flags of {@link addJobOptions}, and those that a job sets. */
export interface JobFlags extends OutputFlags {
  logRanks?: boolean;
  threads?: number;
  device?: string;
}

/** Adds --log-ranks. */
export const addJobOptions = (command: Command): Command =>
  command
    .optionsGroup('Output:')
    .option('--log-ranks', 'under mpirun or srun: messages of all processes, each with its rank; default: of rank 0');

/** Joins the job that this process is part of, which is alone without a launcher. */
export async function joinJob<F extends JobFlags>(flags: F): Promise<{ group: distributed.ProcessGroup; flags: F }> {
  const group = distributed.init();
  if (group.size === 1) return { group, flags };
  const isSilent = group.rank > 0 && !flags.logRanks;
  if (flags.logRanks) setMessagePrefix(`[rank ${group.rank}] `);
  // Warnings of Node.js and of the library, which rank 0 gives, too.
  if (isSilent) process.removeAllListeners('warning');
  const { threads, device } = await distributed.machineShare(group);
  return {
    group,
    flags: {
      ...flags,
      threads: flags.threads ?? threads,
      ...(device !== null && (flags.device ?? 'auto').match(/^(auto|cuda)$/) && { device }),
      ...(isSilent && { quiet: true }),
    },
  };
}

/** Whether this process is not the first of several, whose words are those of the job. */
export const isOtherRank = (): boolean => (distributed.launchedRank() ?? 0) > 0;

/** Tells why the command has failed; in a job, which rank it was. One message for a job: the first one ends it. */
export async function printFailure(error: unknown, message: string): Promise<void> {
  const rank = distributed.launchedRank();
  if (rank === null) return printMessage(`dultra: ${message}`);
  try {
    await sleep(distributed.waitBeforeFailure(rank), undefined, { signal: interruptSignal });
  } catch {
    // Ended from outside, or by the launcher since another rank has failed: that is not this rank's to tell.
    if (rank > 0) return;
  }
  if (rank > 0 && error instanceof Interruption) return;
  printMessage(`dultra: ${error instanceof Interruption ? '' : `rank ${rank}: `}${message}`);
}
