// What of this machine dultra can use, and what is missing.
import { spawnSync } from 'node:child_process';
import os from 'node:os';
import { optionalPackage } from './grading/optional-package';
import { cacheStatus, hubStatus } from './hub/status';
import { availableMemory } from './model/memory';
import { addonReport, native } from './native';
import { checkKeys, checkSignal } from './options';
import { formatGiB, reasonOf } from './text';

const { version, engines } = require('../package.json') as { version: string; engines: { node: string } };

/** One finding of {@link diagnose}. */
export interface Finding {
  /** What was looked at, such as "gpu". */
  name: string;
  /** "fail": dultra does not run; "warn": something that it offers does not. */
  status: 'ok' | 'warn' | 'fail';
  /** What was found. */
  found: string;
  /** What to do about it; null where nothing has to be done. */
  advice: string | null;
}

const ok = (name: string, found: string): Finding => ({ name, status: 'ok', found, advice: null });
const warn = (name: string, found: string, advice: string): Finding => ({ name, status: 'warn', found, advice });
const fail = (name: string, found: string, advice: string): Finding => ({ name, status: 'fail', found, advice });

/** Whether a version of Node.js is one of package.json's, which are written as "^20.19.0 || >=22.12.0". */
export function fitsEngines(node: string, range: string): boolean {
  const numbers = (text: string) =>
    text
      .replace(/^[^\d]*/, '')
      .split('.')
      .map(Number);
  const [major, minor] = numbers(node);
  return range.split('||').some((part) => {
    const [wantedMajor, wantedMinor] = numbers(part.trim());
    if (part.trim().startsWith('^')) return major === wantedMajor && minor >= wantedMinor;
    return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
  });
}

function nodeFinding(): Finding {
  return fitsEngines(process.version, engines.node)
    ? ok('node', process.version)
    : fail('node', process.version, `install Node.js ${engines.node}`);
}

function binaryFinding(): Finding {
  const { file, skipped, error } = addonReport();
  if (file === null) {
    // The error ends with what to do.
    const lines = (error ?? '').split('\n');
    return fail('binary', lines.slice(0, -1).join('\n'), lines[lines.length - 1]);
  }
  const found = `${file}, version ${version}`;
  return skipped.length === 0
    ? ok('binary', found)
    : warn('binary', `${found}; not: ${skipped.join('; ')}`, 'nothing, unless one of these was to be used');
}

function cpuFinding(): Finding {
  const model = os.cpus()[0]?.model.trim() ?? 'unknown';
  const isas = native().cpuIsas();
  const found = `${model}; ${isas.join(', ')}`;
  return isas.length > 1 || process.arch === 'arm64'
    ? ok('cpu', found)
    : warn('cpu', found, 'a processor with AVX2 is several times as fast');
}

function threadsFinding(): Finding {
  const all = os.cpus().length;
  const usable = os.availableParallelism();
  return ok('threads', usable < all ? `${usable} of ${all}: this process may use no more` : String(usable));
}

function memoryFinding(): Finding {
  const free = availableMemory();
  const found = `${formatGiB(free)} of ${formatGiB(os.totalmem())} free`;
  return free < 2 ** 30 ? warn('memory', found, 'end other programs: large models will not fit') : ok('memory', found);
}

function gpuFinding(): Finding {
  const { names, built, reason } = native().cudaDevices();
  if (names.length > 0) return ok('gpu', names.map((name, i) => `cuda:${i}: ${name}`).join('; '));
  const none = `none: ${reason}`;
  // Without a driver there is nothing that could be missing.
  if (!built || reason.startsWith('no NVIDIA driver')) return ok('gpu', `${none}; models run on the CPU`);
  return warn('gpu', none, 'docs/gpu.md lists what a GPU needs');
}

async function hubFindings(signal: AbortSignal | undefined): Promise<Finding[]> {
  const { address, isOffline, failure, login, hasToken, account, isRefused } = await hubStatus(signal);
  const reach = (): Finding => {
    if (failure !== null && address === '') return fail('hub', failure, 'set HF_ENDPOINT right, or not at all');
    if (failure !== null)
      return warn(
        'hub',
        `${address}: ${failure}`,
        'check the network and the proxies (HTTPS_PROXY); folders and models in the cache work without it',
      );
    return isOffline
      ? warn('hub', `${address}: not asked, since HF_HUB_OFFLINE is set`, 'unset it to download models')
      : ok('hub', `${address} answers`);
  };
  const token = (): Finding => {
    if (isRefused) return warn('token', `${login}: the hub refuses it`, `make another: ${address}/settings/tokens`);
    if (account !== null) return ok('token', `${login}: ${account}`);
    return ok('token', hasToken ? `${login}, not tried` : `${login}: public models need none`);
  };
  return [reach(), token()];
}

async function cacheFinding(): Promise<Finding> {
  const { folder, models, bytes, freeBytes, readOnly } = await cacheStatus();
  const disk = freeBytes === null ? '' : `, ${formatGiB(freeBytes)} free`;
  const found = `${folder}: ${models} model${models === 1 ? '' : 's'}, ${formatGiB(bytes)}${disk}`;
  return readOnly === null
    ? ok('cache', found)
    : warn('cache', `${found}; ${readOnly}`, 'HF_HUB_CACHE or HF_HOME names another folder');
}

function pythonFinding(): Finding {
  const { stdout, status } = spawnSync('python3', ['--version'], { encoding: 'utf8', timeout: 10_000 });
  const own = status === 0 ? `; ${stdout.trim()} for rewards.NativePython` : '';
  try {
    optionalPackage('pyodide', 'running Python');
    return ok('python', `pyodide, for rewards and data sets that run code${own}`);
  } catch (error) {
    return warn('python', `no sandbox: ${reasonOf(error)}${own}`, 'install it to run code that models write');
  }
}

/** A finding, or why there is none. */
async function tried(name: string, find: () => Finding | Promise<Finding>): Promise<Finding> {
  try {
    return await find();
  } catch (error) {
    return fail(name, reasonOf(error), 'report it, with the output of dultra info --report');
  }
}

/**
 * Looks at what dultra needs and can use here: Node.js, the native binary, processor, memory, GPU, hub, cache, Python.
 * Asks the hub for one model, or who the token belongs to.
 * @throws TypeError for options; `signal.reason`; everything else is a finding.
 */
export async function diagnose(options: { signal?: AbortSignal } = {}): Promise<Finding[]> {
  checkKeys('options', options, ['signal']);
  const { signal } = options;
  checkSignal(signal);
  const findings = [nodeFinding(), await tried('binary', binaryFinding)];
  const isUsable = findings.every(({ status }) => status !== 'fail');
  if (isUsable)
    findings.push(await tried('cpu', cpuFinding), threadsFinding(), memoryFinding(), await tried('gpu', gpuFinding));
  else findings.push(threadsFinding(), memoryFinding());
  findings.push(...(await hubFindings(signal)), await tried('cache', cacheFinding), pythonFinding());
  return findings;
}
