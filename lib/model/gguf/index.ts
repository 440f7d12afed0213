// A GGUF file as a checkpoint: what config.json, tokenizer.json and the headers of safetensors say elsewhere.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { type GgufHeader, readGguf } from '../../files/gguf';
import { badFile } from '../../files/json';
import type { TensorEntry } from '../../files/safetensors';
import { show } from '../../text';
import { GgufKeys, type GgufModel, ggufModel } from './config';
import { ggufTokenizer, type TokenizerJson } from './tokenizer';

export { type GgufExport, ggufExport, interleaveRows, type TokenizerFiles } from './export';
export { ggufName, ggufPlacesOf } from './tensors';

/** Whether a path is that of a GGUF file. */
export const isGgufPath = (source: string): boolean => /\.gguf$/i.test(source);

/** A checkpoint out of GGUF files. */
export interface GgufCheckpoint extends GgufModel {
  /** All files of it. */
  files: string[];
  /** Tensors by their names in the files. */
  entries: Map<string, TensorEntry>;
  /** The tokenizer of the file; null: it has none. An Error says why the one that is there cannot be used. */
  tokenizer: TokenizerJson | Error | null;
}

/** The files of a model that is split into several, by the name of the first; one that is not split is itself. */
function filesOf(file: string, { metadata }: GgufHeader): string[] {
  const count = metadata.get('split.count') ?? 1;
  if (count === 1 || count === 0) return [file];
  const [, start, number, total] = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/i.exec(file) ?? [];
  if (typeof count !== 'number' || number !== '00001' || Number(total) !== count)
    throw badFile(
      file,
      `split.count: expected the first of ${show(count)} files, whose name ends with -00001-of-${String(count).padStart(5, '0')}.gguf`,
    );
  return Array.from({ length: count }, (_, i) => `${start}-${String(i + 1).padStart(5, '0')}-of-${total}.gguf`);
}

/** Reads the headers of a GGUF file, or of all files of a split one. @throws DUltraError BAD_CHECKPOINT */
export async function openGguf(file: string): Promise<GgufCheckpoint> {
  const first = await readGguf(file);
  const files = filesOf(file, first);
  const all = new Map(first.tensors);
  const entries = new Map<string, TensorEntry>();
  const fail = (message: string) => badFile(file, message);
  for (let i = 0; i < files.length; i++) {
    const { tensors } = i === 0 ? first : await readGguf(files[i]);
    for (const [name, tensor] of tensors) {
      if (entries.has(name)) throw badFile(files[i], `tensor ${show(name)} is also in ${entries.get(name)!.path}`);
      entries.set(name, { ...tensor, file: i, path: files[i] });
      all.set(name, tensor);
    }
  }
  const model = ggufModel({ metadata: first.metadata, tensors: all }, fail);
  for (const [name, entry] of entries) {
    const heads = model.headsOf(name);
    if (heads > 0) entry.heads = heads;
  }
  let tokenizer: GgufCheckpoint['tokenizer'];
  try {
    tokenizer = ggufTokenizer(new GgufKeys(first.metadata, fail), model.maskTokenId);
  } catch (error) {
    tokenizer = error as Error;
  }
  return { ...model, files, entries, tokenizer };
}

/**
 * The tokenizer of a GGUF file: its own, or a folder with the tokenizer.json beside it where its own cannot be used.
 * @throws DUltraError BAD_CHECKPOINT where there is none of both
 */
export function tokenizerSource({ files, tokenizer }: GgufCheckpoint): TokenizerJson | string | null {
  if (tokenizer !== null && !(tokenizer instanceof Error)) return tokenizer;
  const folder = path.dirname(files[0]);
  if (existsSync(path.join(folder, 'tokenizer.json'))) return folder;
  if (tokenizer) throw tokenizer;
  return null;
}

/** The files of the tokenizer that a folder in the Hugging Face layout has: names and texts. */
export async function ggufTokenizerFiles(file: string): Promise<[name: string, text: string][]> {
  const source = tokenizerSource(await openGguf(file));
  if (source === null || typeof source === 'string') return [];
  return [
    ['tokenizer.json', `${JSON.stringify(source.tokenizer)}\n`],
    ['tokenizer_config.json', `${JSON.stringify(source.config, null, 2)}\n`],
  ];
}
