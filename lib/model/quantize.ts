// Writes a checkpoint with its matrices quantised, a tensor in memory at a time.
import { existsSync } from 'node:fs';
import { copyFile, mkdir, open, readdir } from 'node:fs/promises';
import path from 'node:path';
import { isDUltraError, optionError } from '../errors';
import { syncFile, syncFolder, writeError, writeFileAtomic } from '../files/atomic';
import type { WrittenBlockType } from '../files/blocks';
import { type TensorData, type TensorEntry, type TensorHeader, writeSafetensorsFrom } from '../files/safetensors';
import { INDEX_FILE } from '../files/weight-files';
import { checkChoice, checkKeys, checkSignal } from '../options';
import { show } from '../text';
import { parseCheckpoint } from './families';
import { isGgufPath } from './gguf';
import { openCheckpoint } from './open-checkpoint';
import { quantiseTensor, readRange } from './quantise-tensor';
import { GROUP, isQuantised, QUANTISE, quantisation, scalesName } from './quantised-folder';
import { writeQuantisedGguf } from './quantised-gguf';
import { SETTINGS_FILES, TOKENIZER_FILES } from './save';
import { resolveSource } from './source';
import { EMBEDDING, expectedTensors, isHeldWide, matchTensors } from './tensors';

/** Options of {@link quantizeModel}. */
export interface QuantizeOptions {
  /**
   * "q8" (default): 8 bits, 8.5 with the scales (Q8_0 of GGUF); "q4": 4 bits in uneven steps, 4.5 with the scales
   * (IQ4_NL), and the embedding table and the output head in 8; "q4_0": likewise in even steps (Q4_0), for programs that
   * read no others.
   */
  to?: 'q8' | 'q4' | 'q4_0' | undefined;
  /** Branch, tag or commit of a hub id. Default "main". */
  revision?: string | undefined;
  /** The id of the mask token, where the checkpoint does not name it. */
  maskTokenId?: number | undefined;
  /** Positions of a block that the model attends by, where config.json does not name them. */
  blockLength?: number | undefined;
  /** Stops; what was written stays. */
  signal?: AbortSignal | undefined;
  /** Called after each tensor with the bytes read so far, and all of them. */
  onProgress?: ((progress: { doneBytes: number; totalBytes: number }) => void) | undefined;
}

/** What {@link quantizeModel} wrote. */
export interface QuantizedModel {
  /** The folder, or the GGUF file. */
  folder: string;
  /** Bytes of the tensors before and after. */
  bytesBefore: number;
  bytesAfter: number;
  /** Matrices that were quantised, and tensors that stayed as they are. */
  quantized: number;
  kept: number;
  /** Tensors that a GGUF file has no place for: those of a planner head. 0 for a folder. */
  left: number;
  /** Whether the tokenizer was written: the keys of GGUF files cannot say every one. */
  tokenizer: boolean;
}

/** Bytes of a file of weights. */
const SHARD_BYTES = 4 * 2 ** 30;

/** Which tensors of the checkpoint become what: those that hold matrices alone, all of whose rows are whole groups. */
function targetsOf(
  to: WrittenBlockType,
  entries: ReadonlyMap<string, TensorEntry>,
  tensors: ReadonlyMap<string, number[]>,
  entryOf: (tensor: string) => string,
): Map<string, WrittenBlockType> {
  const targets = new Map<string, WrittenBlockType>();
  const refused = new Set<string>();
  for (const [name, shape] of tensors) {
    const entry = entryOf(name);
    const isMatrix = name.startsWith('model.') && shape.length === 2 && !isHeldWide({ name, shape });
    if (!isMatrix || (entries.get(entry)?.shape.at(-1) ?? 0) % GROUP !== 0) refused.add(entry);
    // The table and the head: outside of blocks.
    else targets.set(entry, name.includes('.blocks.') && name !== EMBEDDING ? to : 'Q8_0');
  }
  for (const name of refused) targets.delete(name);
  return targets;
}

/** A tensor that is written: some of a checkpoint's tensor, and what of it. */
interface Piece extends TensorHeader {
  from: string;
  part: 'codes' | 'scales' | 'whole';
  bytes: number;
}

/** The tensors that are written, cut into files. A matrix's scales follow its codes. */
function shardsOf(
  entries: ReadonlyMap<string, TensorEntry>,
  targets: ReadonlyMap<string, WrittenBlockType>,
): Piece[][] {
  const shards: Piece[][] = [[]];
  let inShard = 0;
  // Widest first within a file keeps every tensor aligned: those that stay, then the codes and scales.
  const names = [...entries.keys()].sort((a, b) => Number(targets.has(a)) - Number(targets.has(b)));
  for (const name of names) {
    const { dtype, shape, begin, end } = entries.get(name)!;
    const to = targets.get(name);
    const cols = shape.at(-1)!;
    const count = shape.reduce((product, n) => product * n, 1);
    const codeBytes = to === 'Q8_0' ? count : count / 2;
    const pieces: Piece[] = !to
      ? [{ name, dtype, shape, from: name, part: 'whole', bytes: end - begin }]
      : [
          {
            name,
            dtype: to === 'Q8_0' ? 'I8' : 'U8',
            shape: [...shape.slice(0, -1), to === 'Q8_0' ? cols : cols / 2],
            from: name,
            part: 'codes',
            bytes: codeBytes,
          },
          {
            name: scalesName(name),
            dtype: 'F16',
            shape: [...shape.slice(0, -1), cols / GROUP],
            from: name,
            part: 'scales',
            bytes: (count / GROUP) * 2,
          },
        ];
    const bytes = pieces.reduce((sum, piece) => sum + piece.bytes, 0);
    if (inShard > 0 && inShard + bytes > SHARD_BYTES) {
      shards.push([]);
      inShard = 0;
    }
    shards.at(-1)!.push(...pieces);
    inShard += bytes;
  }
  return shards;
}

/**
 * Writes a model with its matrices quantised into a folder that `loadModel` reads: config.json, the tokenizer's files,
 * and *.safetensors in which a matrix is a tensor of codes and one of fp16 scales (docs/quantised-weights.md); or, where
 * `folder` ends with ".gguf", into such a file, which llama.cpp reads too. The planner head, norms, biases and routers
 * stay as they are; a GGUF file has no planner head. A tensor is in memory at a time.
 * @param source as of {@link loadModel}, but no GGUF file
 * @param folder new, or empty; or a file that does not exist
 * @throws TypeError, RangeError for options; DUltraError BAD_CHECKPOINT, DOWNLOAD_FAILED, WRITE_FAILED; `signal.reason`
 */
export async function quantizeModel(
  source: string,
  folder: string,
  options: QuantizeOptions = {},
): Promise<QuantizedModel> {
  checkKeys('options', options, ['to', 'revision', 'maskTokenId', 'blockLength', 'signal', 'onProgress']);
  const { to = 'q8', signal, onProgress, ...rest } = options;
  checkChoice('to', to, ['q8', 'q4', 'q4_0'] as const);
  checkSignal(signal);
  if (typeof folder !== 'string' || folder === '')
    throw optionError(TypeError, 'folder', `expected a path, got ${show(folder)}`);
  const from = await resolveSource(source, { ...rest, signal }, {});
  const opened = await openCheckpoint(from, rest);
  const { file, json, entries } = opened;
  if (from === opened.file || isQuantised(json) || [...entries.values()].some((entry) => entry.scales || entry.gptq))
    throw optionError(RangeError, 'source', `expected a checkpoint that is not quantised, got ${source}`);
  const isFile = isGgufPath(folder);
  if (isFile && existsSync(folder))
    throw optionError(RangeError, 'folder', `expected a new file, got ${folder}, which exists`);
  if (!isFile && existsSync(folder) && (await readdir(folder)).length > 0)
    throw optionError(RangeError, 'folder', `expected a new or empty folder, got ${folder}, which is not`);
  const { config, checkpointName, placesOf } = parseCheckpoint(json, file, entries, opened.hints);
  // As loading does, so that nothing is quantised that could not be loaded.
  matchTensors(config, entries, from, checkpointName, placesOf);
  const entryOf = (tensor: string) =>
    placesOf(tensor).find((place) => entries.has(place.name))?.name ?? checkpointName(tensor);
  const main = QUANTISE[to];
  const tensors = expectedTensors(config);
  const targets = targetsOf(main, entries, tensors, entryOf);
  if (isFile) {
    const request = { config, from, entries, weights: opened.weights, tensors, entryOf, targets, main };
    return writeQuantisedGguf(folder, request, { signal, onProgress });
  }
  const shards = shardsOf(entries, targets);
  const nameOf = (i: number) =>
    shards.length === 1
      ? 'model.safetensors'
      : `model-${String(i + 1).padStart(5, '0')}-of-${String(shards.length).padStart(5, '0')}.safetensors`;
  const total = [...entries.values()].reduce((sum, { begin, end }) => sum + end - begin, 0);
  let done = 0;
  const handles = await Promise.all(opened.weights.map((weights) => open(weights, 'r')));
  try {
    await mkdir(folder, { recursive: true });
    const map: Record<string, string> = {};
    for (const [i, pieces] of shards.entries()) {
      const byName = new Map(pieces.map((piece) => [piece.name, piece]));
      let scales: Uint8Array = new Uint8Array();
      const produce = async (name: string): Promise<TensorData> => {
        const piece = byName.get(name)!;
        const entry = entries.get(piece.from)!;
        if (piece.part === 'scales') return scales;
        const handle = handles[entry.file];
        let data: Uint8Array;
        if (piece.part === 'codes') {
          const quantised = await quantiseTensor(handle, name, entry, targets.get(name)!, true, signal);
          scales = quantised.scales!;
          data = quantised.codes!;
        } else {
          signal?.throwIfAborted();
          data = await readRange(handle, entry.begin, entry.end);
        }
        done += entry.end - entry.begin;
        onProgress?.({ doneBytes: done, totalBytes: total });
        return data;
      };
      await writeSafetensorsFrom(path.join(folder, nameOf(i)), pieces, produce, { format: 'pt' }, 'given');
      for (const { name } of pieces) map[name] = nameOf(i);
    }
    const after = shards.flat().reduce((sum, { bytes }) => sum + bytes, 0);
    if (shards.length > 1)
      await writeFileAtomic(
        path.join(folder, INDEX_FILE),
        `${JSON.stringify({ metadata: { total_size: after }, weight_map: map }, null, 2)}\n`,
      );
    for (const name of [...TOKENIZER_FILES, ...SETTINGS_FILES]) {
      if (!existsSync(path.join(from, name))) continue;
      await copyFile(path.join(from, name), path.join(folder, name));
      await syncFile(path.join(folder, name));
    }
    // Last: a folder that has it is complete.
    const written = { ...json, quantization_config: quantisation(main) };
    await writeFileAtomic(path.join(folder, 'config.json'), `${JSON.stringify(written, null, 2)}\n`);
    await syncFolder(folder);
    return {
      folder,
      bytesBefore: total,
      bytesAfter: after,
      quantized: targets.size,
      kept: entries.size - targets.size,
      left: 0,
      tokenizer: existsSync(path.join(from, 'tokenizer.json')),
    };
  } catch (cause) {
    if (signal?.aborted) throw signal.reason;
    throw isDUltraError(cause) ? cause : writeError(folder, cause);
  } finally {
    await Promise.all(handles.map((handle) => handle.close()));
  }
}
