// Matches a checkpoint's tensors with those that the model needs.
import { DUltraError } from '../errors';
import type { TensorEntry } from '../files/safetensors';
import { type NativeModelConfig, type NativeTensorRef, native } from '../native';
import { show } from '../text';

/** The embedding table, which is also the output head where weights are tied. */
export const EMBEDDING = 'model.transformer.wte.weight';

/** Every tensor that a model of this shape has: name to shape. The table itself is native/model/tensors.cc. */
export function expectedTensors(config: NativeModelConfig): Map<string, number[]> {
  return new Map(
    native()
      .tensors(config)
      .map(({ name, shape }) => [name, shape]),
  );
}

const NAMED = 5;

/** What a block computes from its config alone, and some checkpoints store nevertheless. */
const BUFFERS = /(^|\.)(rotary_emb|inv_freq|masked_bias|attn\.bias)(\.|$)/;

/** The first of some names, and how many there are more. */
const named = (names: readonly string[]): string =>
  `${names.slice(0, NAMED).join(', ')}${names.length > NAMED ? ` and ${names.length - NAMED} more` : ''}`;

/** Tensors of a checkpoint that a model of this config does not use. @param checkpointName as of {@link matchTensors} */
export function unusedTensors(
  config: NativeModelConfig,
  entries: { keys(): Iterable<string> },
  checkpointName: (tensor: string) => string,
): string[] {
  const used = new Set([...expectedTensors(config).keys()].map(checkpointName));
  return [...entries.keys()].filter((name) => !used.has(name));
}

/** Refuses tensors of blocks that the config does not have: more blocks, biases, norms, … would change the results. */
function checkBlocks(
  config: NativeModelConfig,
  entries: Map<string, TensorEntry>,
  source: string,
  checkpointName: (tensor: string) => string,
): void {
  const [blocks] = checkpointName('model.transformer.blocks.0.attn_norm.weight').split('.0.');
  const extra = unusedTensors(config, entries, checkpointName).filter(
    (name) => name.startsWith(`${blocks}.`) && !BUFFERS.test(name),
  );
  if (extra.length > 0)
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: expected the tensors of the blocks that config.json names, got also ${named(extra)}`,
    );
}

/**
 * Picks what the model needs out of a checkpoint's tensors.
 * @param checkpointName the checkpoint's name of a tensor of the native table
 * @throws DUltraError BAD_CHECKPOINT for missing tensors, for those of blocks that are not used, wrong shapes, or types
 * that are not F32, BF16 or F16.
 */
export function matchTensors(
  config: NativeModelConfig,
  entries: Map<string, TensorEntry>,
  source: string,
  checkpointName: (tensor: string) => string,
): NativeTensorRef[] {
  // Checked first: a huge layer count must not build a huge name table.
  const layers = config.nLayers + (config.planner?.numLayers ?? 0);
  if (layers > entries.size)
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: its config has ${layers} layers, its files only ${entries.size} tensors`,
    );
  const refs: NativeTensorRef[] = [];
  const missing: string[] = [];
  for (const [name, shape] of expectedTensors(config)) {
    const inFile = checkpointName(name);
    const entry = entries.get(inFile);
    if (!entry) {
      missing.push(inFile);
      continue;
    }
    const where = `${entry.path}: tensor ${inFile}`;
    if (entry.shape.length !== shape.length || entry.shape.some((n, i) => n !== shape[i]))
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${where}: expected shape [${shape.join(', ')}], got [${entry.shape.join(', ')}]`,
      );
    const { dtype } = entry;
    if (dtype !== 'F32' && dtype !== 'BF16' && dtype !== 'F16')
      throw new DUltraError('BAD_CHECKPOINT', `${where}: expected F32, BF16 or F16, got ${show(dtype)}`);
    refs.push({ name, file: entry.file, dtype, shape, begin: entry.begin, end: entry.end });
  }
  if (missing.length > 0) {
    throw new DUltraError('BAD_CHECKPOINT', `${source}: missing tensors ${named(missing)}`);
  }
  checkBlocks(config, entries, source, checkpointName);
  return refs;
}
