// Which files of a checkpoint hold its weights.
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { DUltraError } from '../errors';
import { reasonOf, show } from '../text';
import { badFile, readJsonObject } from './json';

/** The file that says which shard holds which tensor. */
export const INDEX_FILE = 'model.safetensors.index.json';

/** The shards that an index file names, sorted. @throws DUltraError BAD_CHECKPOINT */
export async function readWeightIndex(file: string): Promise<string[]> {
  const { weight_map: map } = await readJsonObject(file);
  const shards = typeof map === 'object' && map !== null ? [...new Set<unknown>(Object.values(map))] : [];
  if (shards.length === 0) throw badFile(file, 'expected a weight_map of file names');
  // A name that leaves the folder would let a checkpoint read other files.
  for (const shard of shards)
    if (typeof shard !== 'string' || !/^[^/\\:\0]+\.safetensors$/.test(shard))
      throw badFile(file, `expected the name of a *.safetensors file, got ${show(shard)}`);
  return (shards as string[]).sort();
}

/** A file with all weights, as transformers names it. */
const SINGLE_FILE = 'model.safetensors';

/**
 * The files that hold a checkpoint's weights, out of the names of a folder or repository: model.safetensors, else the
 * shards of the index, else every *.safetensors file. As in transformers, a model.safetensors that the index does not
 * name comes before the index: the index and its shards are then what an earlier save left behind.
 * @param readShards the shards that the index names, asked where it is needed @returns empty where there are none
 */
export async function chooseWeightFiles(
  names: ReadonlySet<string>,
  readShards: () => Promise<string[]>,
): Promise<string[]> {
  const shards = names.has(INDEX_FILE) ? await readShards() : null;
  if (names.has(SINGLE_FILE) && !shards?.includes(SINGLE_FILE)) return [SINGLE_FILE];
  return shards ?? [...names].filter((name) => name.endsWith('.safetensors')).sort();
}

/** The safetensors files of a checkpoint folder, as {@link chooseWeightFiles}. @throws DUltraError BAD_CHECKPOINT */
export async function findSafetensors(folder: string): Promise<string[]> {
  let names: Set<string>;
  try {
    names = new Set(await readdir(folder));
  } catch (cause) {
    throw new DUltraError('BAD_CHECKPOINT', `${folder}: ${reasonOf(cause)}`, { cause });
  }
  const found = await chooseWeightFiles(names, () => readWeightIndex(path.join(folder, INDEX_FILE)));
  for (const name of found)
    if (!names.has(name))
      throw new DUltraError('BAD_CHECKPOINT', `${folder}: ${name} is missing, which ${INDEX_FILE} names`);
  if (found.length === 0) throw new DUltraError('BAD_CHECKPOINT', `${folder}: no *.safetensors file`);
  return found.map((name) => path.join(folder, name));
}
