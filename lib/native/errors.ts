// Native errors as what the public API promises.
import { DUltraError, ERROR_CODES, type ErrorCode } from '../errors';

/** Awaits native work and turns its errors into what the public API promises, keeping the caller's stack. */
export async function fromNative<T>(work: Promise<T> | (() => Promise<T> | T), signal?: AbortSignal): Promise<T> {
  try {
    return await (typeof work === 'function' ? work() : work);
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw convertNativeError(error);
  }
}

/** A native error as the class that the public API promises for its code. */
export function convertNativeError(error: unknown): unknown {
  const code = (error as { code?: unknown } | null)?.code;
  if (!(error instanceof Error) || typeof code !== 'string') return error;
  if (code === 'INVALID_ARGUMENT') return new RangeError(error.message, { cause: error });
  if ((ERROR_CODES as readonly string[]).includes(code))
    return new DUltraError(code as ErrorCode, error.message, { cause: error });
  return error;
}
