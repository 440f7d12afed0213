// Public types of downloads. What programs see imports no types of other packages.

/** Progress of one file. A file that is already cached is not reported. */
export interface DownloadProgress {
  /** Name in the repository. */
  file: string;
  /** Bytes on disk, including those of an earlier, interrupted download. */
  received: number;
  /** Size of the file. */
  total: number;
}

/** Options of {@link downloadModel}. */
export interface DownloadOptions {
  /** Branch, tag or commit. Default: the part of the id after "@", else "main". */
  revision?: string | undefined;
  /** Stops the download; the next call resumes it. */
  signal?: AbortSignal | undefined;
  /**
   * Called when a file begins, about ten times a second while it arrives, and when it is complete. An error thrown here
   * stops the download.
   */
  onProgress?: ((progress: DownloadProgress) => void) | undefined;
}
