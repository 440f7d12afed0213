// Git LFS: `git clone` without it leaves a small text file, a pointer, in the place of each large file.

/** How a pointer begins: the version of its format, of today's Git LFS or of its two predecessors. */
const POINTER = /^version https?:\/\/(git-lfs\.github\.com|hawser\.github\.com|git-media\.io)\//;
/** Enough bytes of a file for {@link lfsPointerReason}. */
export const LFS_PREFIX_BYTES = 64;

/**
 * What an error says of a file that is a Git LFS pointer; null for every other file.
 * @param start the file's first bytes, at least {@link LFS_PREFIX_BYTES} or all
 */
export function lfsPointerReason(start: Uint8Array): string | null {
  const text = Buffer.from(start.subarray(0, LFS_PREFIX_BYTES)).toString('latin1');
  if (!POINTER.test(text)) return null;
  return 'a Git LFS pointer, not the file itself; "git lfs pull" in its repository fetches the file';
}
