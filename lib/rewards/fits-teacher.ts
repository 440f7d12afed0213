// Rows that are too long for a teacher.
import { warnOnce } from '../data/unusable';

/** Whether a teacher can score a row of so many tokens; the first that it cannot is said in a process warning. */
export function fitsTeacher(
  { config, source }: { config: { maxSequenceLength: number }; source: string },
  tokens: number,
): boolean {
  const { maxSequenceLength } = config;
  if (tokens <= maxSequenceLength) return true;
  warnOnce(
    `a row of ${tokens} tokens is longer than the teacher's maximum of ${maxSequenceLength} (${source}); ` +
      'such rows get no reward from it',
    `${source}: teacher`,
  );
  return false;
}
