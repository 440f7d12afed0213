// What the cache holds, and deleting it.
import type { Stats } from 'node:fs';
import { lstat, readdir, readFile, realpath, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import { getRepoFolderName } from '@huggingface/hub';
import { optionError } from '../errors';
import { writeError } from '../files/atomic';
import { cachedCommit, isComplete, snapshotOf } from './cache';
import { cacheFolder } from './environment';
import { COMMIT, parseHubId } from './repository';

/** A commit of a model in the cache. */
export interface CachedRevision {
  /** Id of the commit. */
  commit: string;
  /** Branches and tags that were at this commit when they were last asked for. */
  refs: string[];
  /** Bytes of its files; files that do not change are shared with other commits of the model. */
  bytes: number;
  /** Whether config and weights are there. */
  isComplete: boolean;
  /** Its folder, which {@link loadModel} takes, too. */
  folder: string;
}

/** A model in the cache. */
export interface CachedModel {
  /** "org/name" */
  id: string;
  revisions: CachedRevision[];
  /** Bytes on disk, interrupted downloads included. */
  bytes: number;
  /** Its folder in the cache. */
  folder: string;
}

/** Files below a folder, links as what they are; empty where it does not exist. */
async function filesBelow(folder: string): Promise<{ file: string; info: Stats }[]> {
  const names = await readdir(folder, { recursive: true }).catch(() => []);
  const found: { file: string; info: Stats }[] = [];
  for (const name of names) {
    const file = path.join(folder, name);
    // Another process may delete it meanwhile.
    const info = await lstat(file).catch(() => null);
    if (info && !info.isDirectory()) found.push({ file, info });
  }
  return found;
}

const sum = (numbers: readonly number[]) => numbers.reduce((total, n) => total + n, 0);

/** The files that a snapshot's links lead to, with their sizes. */
async function contentsOf(snapshot: string): Promise<Map<string, number>> {
  const found = new Map<string, number>();
  for (const { file } of await filesBelow(snapshot)) {
    const target = await realpath(file).catch(() => null);
    const info = target === null ? null : await stat(target).catch(() => null);
    if (target !== null && info?.isFile()) found.set(target, info.size);
  }
  return found;
}

/** Branches and tags by the commit that they were at. */
async function refsOf(folder: string): Promise<Map<string, string[]>> {
  const refs = new Map<string, string[]>();
  const at = path.join(folder, 'refs');
  for (const { file } of await filesBelow(at)) {
    const commit = (await readFile(file, 'utf8').catch(() => '')).trim();
    refs.set(commit, [...(refs.get(commit) ?? []), path.relative(at, file).split(path.sep).join('/')]);
  }
  return refs;
}

const commitsIn = async (folder: string) =>
  (await readdir(path.join(folder, 'snapshots')).catch(() => [])).filter((name) => COMMIT.test(name)).sort();

async function describe(folder: string, id: string): Promise<CachedModel> {
  const refs = await refsOf(folder);
  const revisions: CachedRevision[] = [];
  for (const commit of await commitsIn(folder)) {
    const snapshot = snapshotOf(folder, commit);
    const bytes = sum([...(await contentsOf(snapshot)).values()]);
    const names = (refs.get(commit) ?? []).sort();
    revisions.push({ commit, refs: names, bytes, isComplete: await isComplete(snapshot), folder: snapshot });
  }
  const files = (await filesBelow(folder)).filter(({ info }) => info.isFile());
  return { id, revisions, bytes: sum(files.map(({ info }) => info.size)), folder };
}

/**
 * The models in the cache of the hub (HF_HUB_CACHE, HF_HOME), by id; also those that other programs have downloaded.
 * Empty where there is no cache.
 */
export async function listCachedModels(): Promise<CachedModel[]> {
  const cache = cacheFolder();
  const names = await readdir(cache).catch(() => []);
  const models: CachedModel[] = [];
  for (const name of names.sort()) {
    const id = /^models--(.+)$/.exec(name)?.[1].replace('--', '/');
    if (id !== undefined) models.push(await describe(path.join(cache, name), id));
  }
  return models;
}

/** A model or revision of the cache that is to be deleted. */
interface Doomed {
  folder: string;
  /** null: all of the model. */
  commit: string | null;
}

async function findCached(source: string, revision?: string): Promise<Doomed> {
  const wanted = parseHubId(source, revision);
  const folder = path.join(cacheFolder(), getRepoFolderName({ type: 'model', name: wanted.id }));
  const named = revision ?? source.split('@')[1];
  const commit = named === undefined ? null : await cachedCommit(folder, wanted.revision);
  const exists = await stat(commit === null ? folder : snapshotOf(folder, commit)).catch(() => null);
  if (!exists || (named !== undefined && commit === null))
    throw optionError(
      RangeError,
      'source',
      `expected a model in the cache (${cacheFolder()}), got ${JSON.stringify(source)}${revision === undefined ? '' : ` with revision ${JSON.stringify(revision)}`}`,
    );
  return { folder, commit };
}

/** Files of a commit that no other one has. */
async function ownFiles({ folder, commit }: { folder: string; commit: string }): Promise<Map<string, number>> {
  const own = await contentsOf(snapshotOf(folder, commit));
  // Links that somebody has led elsewhere lead to what is not the cache's.
  const inside = `${await realpath(folder)}${path.sep}`;
  for (const file of own.keys()) if (!file.startsWith(inside)) own.delete(file);
  for (const other of await commitsIn(folder))
    if (other !== commit) for (const file of (await contentsOf(snapshotOf(folder, other))).keys()) own.delete(file);
  return own;
}

/** Options of {@link deleteCachedModel}. */
export interface DeleteOptions {
  /** Branch, tag or commit of which alone the files are deleted. Default: the part of the id after "@", else all. */
  revision?: string | undefined;
  /** Only says what would be deleted. Default false. */
  dryRun?: boolean | undefined;
}

/**
 * Deletes a model from the cache, or one revision of it, with the files that no other revision has.
 * @param source "org/name" or "org/name@revision"
 * @returns bytes that became free
 * @throws TypeError for an id that is none; RangeError for one that the cache does not have; DUltraError WRITE_FAILED.
 */
export async function deleteCachedModel(source: string, options: DeleteOptions = {}): Promise<number> {
  const { folder, commit } = await findCached(source, options.revision);
  const isLast = commit !== null && (await commitsIn(folder)).every((other) => other === commit);
  const doomed = commit === null || isLast ? null : await ownFiles({ folder, commit });
  const bytes = doomed ? sum([...doomed.values()]) : (await describe(folder, source)).bytes;
  if (options.dryRun) return bytes;
  try {
    if (doomed === null || commit === null) {
      await rm(folder, { recursive: true });
      return bytes;
    }
    // What says that the revision is there goes first: what an interruption leaves is never half a revision.
    for (const name of (await refsOf(folder)).get(commit) ?? [])
      await rm(path.join(folder, 'refs', ...name.split('/')), { force: true });
    await rm(snapshotOf(folder, commit), { recursive: true });
    for (const file of doomed.keys()) await rm(file, { force: true });
  } catch (error) {
    throw writeError(folder, error);
  }
  return bytes;
}
