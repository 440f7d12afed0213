// The process in which untrusted Python runs: CPython in WebAssembly, under Node's permission model, without access to
// JavaScript.
//
// Every program gets a fresh interpreter, started from a snapshot. The parent ends the process when a program exceeds
// its time limit, and after a number of programs.
import path from 'node:path';
import { OutputBuffer, OutputTail, type ProgramOutput } from './output-buffer';
import { type HarnessJob, PYTHON_HARNESS } from './python-harness';

/** The parent's first message. */
export interface WorkerSetup {
  /** Folder of the pyodide package. */
  library: string;
  memoryLimitMB: number;
  /** An interpreter's memory, base64, as another process sent it; null: make one, and send it. */
  snapshot: string | null;
}

/** The parent's later messages, one at a time. */
export interface WorkerJob {
  job: HarnessJob;
}

/** Messages to the parent: an interpreter is ready, or a program has ended. */
export type WorkerMessage =
  | { type: 'ready'; seconds: number }
  | { type: 'snapshot'; data: string }
  | { type: 'result'; json: string; output: ProgramOutput }
  | { type: 'failed'; error: string; fatal: boolean };

interface Interpreter {
  runPython(code: string): unknown;
  setStdout(options: { write: (bytes: Uint8Array) => number }): void;
  setStderr(options: { write: (bytes: Uint8Array) => number }): void;
  makeMemorySnapshot(): Uint8Array;
  globals: { get(name: string): (job: string) => string };
}
/** The parts of WebAssembly that are changed here; Node's types leave them out. */
interface WasmMemory {
  buffer: ArrayBuffer;
}
interface WasmModule {
  readonly [Symbol.toStringTag]: string;
}
declare const WebAssembly: {
  Memory: { prototype: WasmMemory & { grow(this: WasmMemory, pages: number): number } };
  Module: new () => WasmModule;
  compile(source: Uint8Array): Promise<WasmModule>;
  instantiate(source: Uint8Array | WasmModule, imports?: object): Promise<unknown>;
};

type Load = (options: object) => Promise<Interpreter>;

const PAGE = 65536;
/** Characters: the harness keeps far below. */
const MAX_REPORT = 64e6;
// The channel to the parent, which programs must not reach.
const send = process.send!.bind(process) as (message: WorkerMessage, callback: () => void) => void;
const { exit } = process;

/** Removes capabilities of JavaScript, in case a program ever reaches it. */
function disarm(): void {
  const refuse = (name: string) => () => {
    throw new Error(`${name} is not available in the sandbox`);
  };
  // Pyodide asks for the constants, and the permission model forbids the real function.
  const { constants } = require('node:fs') as { constants: object };
  const target = process as unknown as Record<string, unknown>;
  target.binding = (name: string) => (name === 'constants' ? { fs: constants } : refuse('process.binding')());
  for (const name of [
    'send',
    'disconnect',
    'kill',
    'abort',
    'dlopen',
    'chdir',
    '_linkedBinding',
    'setuid',
    'setgid',
    'getBuiltinModule',
  ])
    target[name] = refuse(`process.${name}`);
  const networks: [string, string[]][] = [
    ['node:net', ['connect', 'createConnection', 'createServer', 'Socket', 'Server']],
    ['node:dgram', ['createSocket', 'Socket']],
    ['node:dns', ['lookup', 'resolve', 'resolve4', 'resolve6', 'Resolver']],
    ['node:tls', ['connect']],
    ['node:http', ['request', 'get', 'createServer']],
    ['node:https', ['request', 'get', 'createServer']],
    ['node:http2', ['connect', 'createServer']],
    ['node:child_process', ['spawn', 'fork', 'exec', 'execFile', 'spawnSync', 'execSync', 'execFileSync']],
    ['node:worker_threads', ['Worker']],
  ];
  // All at first: they build upon each other, and terminals, which pyodide asks for, upon sockets.
  require('node:tty');
  const modules = networks.map(([module, names]) => ({
    module,
    names,
    exports: require(module) as Record<string, unknown>,
  }));
  for (const { module, names, exports } of modules) {
    for (const name of names)
      Object.defineProperty(exports, name, {
        value: refuse(`${module}.${name}`),
        configurable: false,
        writable: false,
      });
  }
  const world = globalThis as unknown as Record<string, unknown>;
  for (const name of ['fetch', 'WebSocket', 'EventSource', 'XMLHttpRequest'])
    if (name in world) world[name] = refuse(name);
}

/** Worker limits do not bound WebAssembly's memory; this does, for every memory that pyodide makes. */
function limitMemory(megabytes: number): void {
  const limit = (megabytes * 2 ** 20) / PAGE;
  const { grow } = WebAssembly.Memory.prototype;
  Object.defineProperty(WebAssembly.Memory.prototype, 'grow', {
    configurable: false,
    writable: false,
    value(this: WasmMemory, pages: number) {
      if (this.buffer.byteLength / PAGE + pages > limit) throw new RangeError('the memory limit of the sandbox');
      return grow.call(this, pages);
    },
  });
}

/** Compiles a WebAssembly binary once, however often it is instantiated. */
function cacheModules(): void {
  const instantiate = WebAssembly.instantiate.bind(WebAssembly);
  const modules = new Map<number, Promise<WasmModule>>();
  const cached = async (source: Uint8Array | WasmModule, imports?: object) => {
    if (source instanceof WebAssembly.Module) return instantiate(source, imports);
    const key = source.byteLength;
    if (!modules.has(key)) modules.set(key, WebAssembly.compile(source));
    const module = await modules.get(key)!;
    return { module, instance: await instantiate(module, imports) };
  };
  (WebAssembly as { instantiate: unknown }).instantiate = cached;
}

// Modules that programs use again and again: part of the snapshot.
const IMPORTS = `
import sys, math, re, json, itertools, functools, collections, heapq, bisect, string, random, datetime
import decimal, fractions, statistics, copy, operator, typing, io, traceback, dataclasses, enum, abc, array
import cmath, numbers, textwrap, time, queue, calendar, hashlib, ast, warnings, atexit, gc, types, builtins
`;

// Closes the modules through which Python reaches JavaScript, before a program runs.
const CLOSE = `
def close():
    import sys
    closed = ("js", "pyodide_js", "pyodide", "_pyodide", "_pyodide_core", "micropip", "webbrowser")
    parts = ("pyodide.code", "pyodide.ffi", "pyodide.http")
    for name in [name for name in sys.modules if name.split(".")[0] in closed] + list(closed + parts):
        sys.modules[name] = None
    is_own = lambda finder: getattr(type(finder), "__module__", "").startswith("_pyodide")
    sys.meta_path[:] = [finder for finder in sys.meta_path if not is_own(finder)]
    # The path of this file, on the host.
    sys.executable, sys.argv, sys.orig_argv = "", [""], [""]
    main = sys.modules["__main__"].__dict__
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]
close()
`;

async function main(
  { library, memoryLimitMB, snapshot: given }: WorkerSetup,
  takeJobs: (handle: (job: HarnessJob) => void) => void,
): Promise<void> {
  const { loadPyodide } = require(path.join(library, 'pyodide.js')) as { loadPyodide: Load };
  disarm();
  limitMemory(memoryLimitMB);
  cacheModules();
  const quiet = () => {};
  const common = {
    indexURL: library,
    jsglobals: Object.create(null),
    stdin: () => undefined,
    stdout: quiet,
    stderr: quiet,
    // Without these, Python would see paths of the host.
    env: { HOME: '/home/pyodide', PYTHONHASHSEED: '0', _: 'python', PWD: '/home/pyodide' },
  };
  let start = performance.now();
  let snapshot: Uint8Array;
  if (given === null) {
    const first = await loadPyodide({ ...common, _makeSnapshot: true });
    first.runPython(IMPORTS);
    snapshot = first.makeMemorySnapshot();
    send({ type: 'snapshot', data: Buffer.from(snapshot).toString('base64') }, quiet);
  } else snapshot = new Uint8Array(Buffer.from(given, 'base64'));
  const load = async (): Promise<Interpreter> => {
    const interpreter = await loadPyodide({ ...common, _loadSnapshot: snapshot });
    interpreter.runPython(CLOSE);
    interpreter.runPython(PYTHON_HARNESS);
    return interpreter;
  };
  let next = await load();
  const ready = () => send({ type: 'ready', seconds: (performance.now() - start) / 1000 }, quiet);
  takeJobs(async (job) => {
    const [out, tail] = [new OutputBuffer(job.outputLimit), new OutputTail()];
    const into = (kept: { add(bytes: Uint8Array): void }) => ({
      write(bytes: Uint8Array) {
        kept.add(bytes);
        return bytes.length;
      },
    });
    try {
      next.setStdout(into(out));
      next.setStderr(into(tail));
      const json = next.globals.get('__run__')(JSON.stringify(job));
      if (json.length > MAX_REPORT) throw new Error('the report is too large');
      const output = { stdout: out.text(), truncated: out.truncated, stderr: tail.text() };
      send({ type: 'result', json, output }, quiet);
    } catch (error) {
      // The interpreter itself ended: os._exit, a stack that overflowed, a corrupted heap.
      send({ type: 'failed', error: String((error as Error)?.message ?? error).slice(0, 2000), fatal: false }, quiet);
    }
    start = performance.now();
    try {
      next = await load();
      ready();
    } catch (error) {
      send({ type: 'failed', error: String(error), fatal: true }, () => exit(1));
    }
  });
  ready();
}

process.once('message', (setup: WorkerSetup) => {
  const takeJobs = (handle: (job: HarnessJob) => void) => process.on('message', ({ job }: WorkerJob) => handle(job));
  main(setup, takeJobs).catch((error) =>
    send({ type: 'failed', error: String(error?.stack ?? error), fatal: true }, () => exit(1)),
  );
});
process.on('disconnect', () => exit(0));
