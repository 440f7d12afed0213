// A quantised model as one GGUF file, a tensor in memory at a time.
import { existsSync } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import path from 'node:path';
import { isDUltraError, optionError } from '../errors';
import { writeError } from '../files/atomic';
import type { WrittenBlockType } from '../files/blocks';
import type { GgufType } from '../files/gguf';
import { readJsonObject } from '../files/json';
import type { TensorEntry } from '../files/safetensors';
import { type GgufTensorHeader, writeGguf } from '../files/write-gguf';
import { show } from '../text';
import type { CausalConfig, ModelConfig } from './config';
import { ggufExport, interleaveRows, type TokenizerFiles } from './gguf';
import { toFloat32 } from './halves';
import { quantiseTensor, readRange } from './quantise-tensor';
import type { QuantizedModel, QuantizeOptions } from './quantize';

/** What is written. */
interface Request {
  config: ModelConfig | CausalConfig;
  /** Folder of the checkpoint. */
  from: string;
  entries: ReadonlyMap<string, TensorEntry>;
  /** Files with weights. */
  weights: readonly string[];
  /** Of the native table: name to shape. */
  tensors: ReadonlyMap<string, number[]>;
  entryOf(tensor: string): string;
  /** Tensors of the checkpoint that become blocks; the others become F32. */
  targets: ReadonlyMap<string, WrittenBlockType>;
  /** The type of most. */
  main: WrittenBlockType;
}

async function tokenizerIn(folder: string): Promise<TokenizerFiles> {
  const [tokenizer, config] = ['tokenizer.json', 'tokenizer_config.json'].map((name) => path.join(folder, name));
  if (!existsSync(tokenizer)) return null;
  return {
    tokenizer: await readJsonObject(tokenizer),
    config: existsSync(config) ? await readJsonObject(config) : {},
  };
}

/**
 * Writes the file. @throws RangeError for a model that such files cannot describe; DUltraError BAD_CHECKPOINT,
 * WRITE_FAILED; `signal.reason`
 */
export async function writeQuantisedGguf(
  file: string,
  { config, from, entries, weights, tensors, entryOf, targets, main }: Request,
  { signal, onProgress }: Pick<QuantizeOptions, 'signal' | 'onProgress'>,
): Promise<QuantizedModel> {
  const fail = (message: string) => optionError(RangeError, 'folder', message);
  const base = new Map([...tensors].filter(([name]) => name.startsWith('model.')));
  const layout = ggufExport(config, base, main, await tokenizerIn(from), fail);
  const headers: GgufTensorHeader[] = [];
  const source = new Map<string, { tensor: string; entry: TensorEntry; heads: number }>();
  for (const [tensor, shape] of base) {
    const name = layout.nameOf(tensor);
    const entry = entries.get(entryOf(tensor))!;
    if (show(entry.shape) !== show(shape))
      throw fail(`expected ${entryOf(tensor)} to be one matrix of shape ${show(shape)}, got ${show(entry.shape)}`);
    const dtype: GgufType = targets.get(entryOf(tensor)) ?? 'F32';
    source.set(name, { tensor: entryOf(tensor), entry, heads: layout.headsOf(tensor) });
    headers.push({ name, dtype, shape });
  }
  const total = [...source.values()].reduce((sum, { entry }) => sum + entry.end - entry.begin, 0);
  let done = 0;
  let after = 0;
  const handles = await Promise.all(weights.map((name) => open(name, 'r')));
  try {
    await mkdir(path.dirname(path.resolve(file)), { recursive: true });
    await writeGguf(file, layout.keys, headers, async (name) => {
      signal?.throwIfAborted();
      const { tensor, entry, heads } = source.get(name)!;
      const handle = handles[entry.file];
      const to = targets.get(tensor);
      const bytes = to
        ? (await quantiseTensor(handle, tensor, entry, to, false, signal)).blocks!
        : toFloat32(await readRange(handle, entry.begin, entry.end), entry.dtype as 'F32' | 'F16' | 'BF16');
      done += entry.end - entry.begin;
      after += bytes.length;
      onProgress?.({ doneBytes: done, totalBytes: total });
      return heads > 0 ? interleaveRows(bytes, entry.shape[0], heads) : bytes;
    });
  } catch (cause) {
    if (signal?.aborted) throw signal.reason;
    throw isDUltraError(cause) || cause instanceof RangeError ? cause : writeError(file, cause);
  } finally {
    await Promise.all(handles.map((handle) => handle.close()));
  }
  const quantized = headers.filter(({ dtype }) => dtype !== 'F32').length;
  return {
    folder: file,
    bytesBefore: total,
    bytesAfter: after,
    quantized,
    kept: headers.length - quantized,
    left: tensors.size - base.size,
    tokenizer: layout.hasTokenizer,
  };
}
