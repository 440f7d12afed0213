// What the environment says of the hub and its cache: the variables that Hugging Face's own clients read.
import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { HUB_URL } from '@huggingface/hub';
import { DUltraError } from '../errors';

/** The first of the variables that is set; one that is empty counts as not set. */
function firstSet(...names: string[]): { name: string; value: string } | null {
  for (const name of names) {
    const value = process.env[name];
    if (value) return { name, value };
  }
  return null;
}

/** A folder of a variable: outside of a shell, nobody else replaces the "~". */
const folderOf = (value: string) => (/^~(?=[\\/]|$)/.test(value) ? path.join(os.homedir(), value.slice(1)) : value);

const isTrue = (value: string | undefined) => /^(1|true|yes|on)$/i.test(value ?? '');

/** Folder of cache and login: HF_HOME, else "huggingface" in XDG_CACHE_HOME or ~/.cache. */
function home(): string {
  const named = firstSet('HF_HOME')?.value;
  return folderOf(named ?? path.join(firstSet('XDG_CACHE_HOME')?.value ?? '~/.cache', 'huggingface'));
}

/** The cache folder: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, else "hub" in HF_HOME. */
export function cacheFolder(): string {
  const named = firstSet('HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE')?.value;
  return named === undefined ? path.join(home(), 'hub') : folderOf(named);
}

/** Whether requests are forbidden: HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE. */
export const isOffline = () => isTrue(firstSet('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE')?.value);

/** Address of the hub, without a slash at its end. @throws DUltraError DOWNLOAD_FAILED for an HF_ENDPOINT that is none */
export function hubAddress(): string {
  const url = (firstSet('HF_ENDPOINT')?.value ?? HUB_URL).replace(/\/+$/, '');
  if (!/^https?:\/\//.test(url) || !URL.canParse(url))
    throw new DUltraError('DOWNLOAD_FAILED', `HF_ENDPOINT: expected an http or https URL, got ${JSON.stringify(url)}`);
  return url;
}

/** A login. */
export interface Login {
  /** null: there is none. */
  token: string | null;
  /** The token's origin, such as "HF_TOKEN" or "the token in …", or why there is none: for messages. */
  source: string;
}

/**
 * The login: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, else the file that "hf auth login" writes (HF_TOKEN_PATH, else "token" in
 * HF_HOME).
 * @throws DUltraError DOWNLOAD_FAILED for a token that cannot be sent, without showing it
 */
export function readLogin(): Login {
  if (isTrue(process.env.HF_HUB_DISABLE_IMPLICIT_TOKEN))
    return { token: null, source: 'HF_HUB_DISABLE_IMPLICIT_TOKEN is set' };
  const variable = firstSet('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN');
  if (variable?.value.trim()) return { token: checkToken(variable.value, variable.name), source: variable.name };
  const file = folderOf(firstSet('HF_TOKEN_PATH')?.value ?? path.join(home(), 'token'));
  try {
    const text = readFileSync(file, 'utf8');
    if (text.trim()) return { token: checkToken(text, file), source: `the token in ${file}` };
  } catch (error) {
    if (error instanceof DUltraError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    // Public repositories need no login: a file that cannot be read is told of when the hub refuses.
    if (code !== 'ENOENT' && code !== 'ENOTDIR') return { token: null, source: `${file} cannot be read (${code})` };
  }
  return { token: null, source: 'no login was found' };
}

/** The token of a text, which may end with a new line. */
function checkToken(text: string, source: string): string {
  const token = text.trim();
  // Checked here, since the error of a header that cannot be sent would show the token.
  if (!/^[\x21-\x7e]+$/.test(token))
    throw new DUltraError(
      'DOWNLOAD_FAILED',
      `${source}: expected a token of printable ASCII characters without spaces`,
    );
  return token;
}

/** A limit in seconds, and the variable that sets it. */
export interface Timeout {
  variable: 'HF_HUB_ETAG_TIMEOUT' | 'HF_HUB_DOWNLOAD_TIMEOUT';
  seconds: number;
}

/** How long the hub may send nothing: before an answer about a repository, and within a file. */
export function timeoutOf(variable: Timeout['variable']): Timeout {
  const value = process.env[variable]?.trim();
  const seconds = value ? Number(value) : 10;
  // Longer timers than 2^31 ms would end at once.
  if (!(seconds > 0 && seconds <= 2e6))
    throw new DUltraError(
      'DOWNLOAD_FAILED',
      `${variable}: expected a positive number of seconds, got ${JSON.stringify(value)}`,
    );
  return { variable, seconds };
}

/** Proxies of the environment. */
export interface Proxies {
  http: string | undefined;
  https: string | undefined;
  none: string;
  /** "HTTPS_PROXY http://proxy:3128", without user and password; empty where no proxy is set. */
  description: string;
}

/** A proxy's URL. The scheme may be left out, as curl allows. @throws as {@link readProxies} */
function proxyUrl({ name, value }: { name: string; value: string }): URL {
  const text = /^[a-z][a-z0-9+.-]*:\/\//i.test(value) ? value : `http://${value}`;
  // Names are resolved by the proxy in either case.
  const url = URL.canParse(text) ? new URL(text.replace(/^socks5h:/i, 'socks5:')) : null;
  if (url?.hostname && ['http:', 'https:', 'socks5:', 'socks:'].includes(url.protocol)) return url;
  // The value may hold a password.
  const scheme = url && text !== `http://${value}` ? `, got one of ${url.protocol}//` : '';
  throw new DUltraError(
    'DOWNLOAD_FAILED',
    `${name}: expected the URL of a proxy, http://, https:// or socks5:// and its host${scheme}`,
  );
}

/**
 * HTTP_PROXY, HTTPS_PROXY, ALL_PROXY for what these leave out, and NO_PROXY; in lower case, too, which goes first.
 * @throws DUltraError DOWNLOAD_FAILED naming the variable that is no URL of a proxy, without showing its value
 */
export function readProxies(): Proxies {
  const both = (name: string) => [name.toLowerCase(), name];
  const chosen = ['HTTP_PROXY', 'HTTPS_PROXY'].map((name) => firstSet(...both(name), ...both('ALL_PROXY')));
  const [http, https] = chosen.map((variable) => variable && proxyUrl(variable));
  const none = firstSet(...both('NO_PROXY'));
  const named = new Map<string, string>();
  chosen.forEach((variable, i) => {
    if (variable) named.set(variable.name, `${variable.name} ${[http, https][i]?.protocol}//${[http, https][i]?.host}`);
  });
  const exceptions = none ? `; ${none.name} ${JSON.stringify(none.value)}` : '';
  return {
    http: http?.href,
    https: https?.href,
    none: none?.value ?? '',
    description: named.size > 0 ? [...named.values()].join(', ') + exceptions : '',
  };
}
