// Native errors become the public API's in one place: every function and method of the addon is wrapped when the addon
// is opened, so that callers await native calls as any other.
import { DUltraError, ERROR_CODES, type ErrorCode } from '../errors';
import type { NativeAddon } from './types';

/** Functions and methods that answer at once; all others return promises. */
const SYNCHRONOUS: ReadonlySet<string> = new Set([
  'cpuIsas',
  'tensors',
  'planMemory',
  'cacheBytes',
  'share',
  'cudaDevices',
  'info',
  'bytes',
  'parameters',
  'cancel',
  'progress',
  'dispose',
  'openMpi',
  'openNccl',
  'startMpi',
  'group',
  'join',
  'post',
  'poll',
  'finalizeMpi',
  'abortMpi',
]);

/** A native error as the class that the public API promises for its code; anything else as it is. */
export function convertNativeError(error: unknown): unknown {
  const code = (error as { code?: unknown } | null)?.code;
  if (!(error instanceof Error) || typeof code !== 'string') return error;
  // The native core says which argument it is about, as in "threads: expected …".
  const option = /^(\w+(?:\.\w+|\[\d+\])*): /.exec(error.message)?.[1];
  const named = <E extends Error>(converted: E) =>
    option === undefined ? converted : Object.assign(converted, { option });
  if (code === 'INVALID_ARGUMENT') return named(new RangeError(error.message, { cause: error }));
  if ((ERROR_CODES as readonly string[]).includes(code))
    return named(new DUltraError(code as ErrorCode, error.message, { cause: error }));
  return error;
}

type Method = (this: unknown, ...args: unknown[]) => unknown;

/** An asynchronous function, so that a converted error keeps the stack of the caller that awaits it. */
function wrap(name: string, method: Method): Method {
  if (!SYNCHRONOUS.has(name))
    return async function (this: unknown, ...args) {
      try {
        return wrapHandle(await method.apply(this, args));
      } catch (error) {
        throw convertNativeError(error);
      }
    };
  return function (this: unknown, ...args) {
    try {
      return wrapHandle(method.apply(this, args));
    } catch (error) {
      throw convertNativeError(error);
    }
  };
}

/** Native prototypes, whose methods cannot be replaced, to derived ones with wrapped methods. */
const prototypes = new Map<object, object>();

/** Wraps the methods of what a native call returns where it is a handle (a model, cache or trainer). */
function wrapHandle(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value) || Array.isArray(value)) return value;
  const prototype = Object.getPrototypeOf(value) as { constructor?: { name: string } } | null;
  if (prototype === null || !Object.hasOwn(prototype, 'dispose')) return value;
  let wrapped = prototypes.get(prototype);
  if (!wrapped) {
    wrapped = Object.create(prototype) as Record<string, unknown>;
    for (const [name, { value: method }] of Object.entries(Object.getOwnPropertyDescriptors(prototype)))
      if (name !== 'constructor') Object.defineProperty(wrapped, name, { value: wrap(name, method as Method) });
    prototypes.set(prototype, wrapped);
  }
  return Object.setPrototypeOf(value, wrapped);
}

/** The addon with converted errors. */
export function wrapAddon(addon: NativeAddon): NativeAddon {
  const entries = Object.entries(addon).map(([name, value]) => [
    name,
    typeof value === 'function' && name !== 'CancelToken' ? wrap(name, value as Method) : value,
  ]);
  return Object.fromEntries(entries) as NativeAddon;
}

/**
 * Awaits native work that `cancel` stops: an abort of `signal` cancels it, and rejects with the signal's reason instead
 * of the native error.
 */
export async function cancellable<T>(
  signal: AbortSignal | undefined,
  cancel: () => void,
  work: () => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    return await work();
  } catch (error) {
    throw signal?.aborted ? signal.reason : error;
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
}
