// Matches a checkpoint's tensors with those that the model needs.
import { DTYPE_BYTES } from '../dtypes';
import { DUltraError } from '../errors';
import { BLOCKS, isBlockType } from '../files/blocks';
import type { TensorEntry } from '../files/safetensors';
import { type NativeModelConfig, type NativeStoredType, type NativeTensorRef, native } from '../native';
import { show } from '../text';
import type { TensorPlace } from './families';

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

/** Whether a tensor of the native table is held in fp32 whatever it is stored in: vectors, and routers of experts. */
export const isHeldWide = ({ name, shape }: { name: string; shape: readonly number[] }): boolean =>
  shape.length === 1 || name.endsWith('.router.weight');

const NAMED = 5;

/** What a block computes from its config alone, and some checkpoints store nevertheless. */
const BUFFERS = /(^|\.)(rotary_emb|inv_freq|masked_bias|attn\.bias)(\.|$)/;

/** The first of some names, and how many there are more. */
const named = (names: readonly string[]): string =>
  `${names.slice(0, NAMED).join(', ')}${names.length > NAMED ? ` and ${names.length - NAMED} more` : ''}`;

/**
 * Tensors of a checkpoint that a model of this config does not use.
 * @param checkpointName as of {@link matchTensors} @param placesOf likewise
 */
export function unusedTensors(
  config: NativeModelConfig,
  entries: { keys(): Iterable<string> },
  checkpointName: (tensor: string) => string,
  placesOf: (tensor: string) => TensorPlace[] = () => [],
): string[] {
  const used = new Set(
    [...expectedTensors(config).keys()].flatMap((name) => [
      checkpointName(name),
      ...placesOf(name).map((place) => place.name),
    ]),
  );
  return [...entries.keys()].filter((name) => !used.has(name));
}

/** Refuses tensors of blocks that the config does not have: more blocks, biases, norms, … would change the results. */
function checkBlocks(
  config: NativeModelConfig,
  entries: Map<string, TensorEntry>,
  source: string,
  checkpointName: (tensor: string) => string,
  placesOf: (tensor: string) => TensorPlace[],
): void {
  const [blocks] = checkpointName('model.transformer.blocks.0.attn_norm.weight').split('.0.');
  const extra = unusedTensors(config, entries, checkpointName, placesOf).filter(
    (name) => name.startsWith(`${blocks}.`) && !BUFFERS.test(name),
  );
  if (extra.length > 0)
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: expected the tensors of the blocks that config.json names, got also ${named(extra)}`,
    );
}

/** Bytes that numbers of a type take, whole blocks of them. */
export function storedBytes(dtype: NativeStoredType, numbers: number): number {
  if (!isBlockType(dtype)) return numbers * DTYPE_BYTES[dtype];
  const { values, bytes } = BLOCKS[dtype];
  return (numbers / values) * bytes;
}

/** Where the tensor has its numbers, or its codes and their scales. */
function placeIn(
  entry: TensorEntry,
  place: TensorPlace,
  shape: readonly number[],
  dtype: NativeStoredType,
): Pick<NativeTensorRef, 'begin' | 'end' | 'scalesFile' | 'scalesBegin' | 'scalesEnd'> {
  if (!entry.scales) return rangeOf(entry, place, shape, dtype);
  // Blocks without their two bytes of scale.
  const codes = storedBytes(dtype, GROUP) - 2;
  const numbers = shape.reduce((product, n) => product * n, 1);
  const before = place.shape === shape ? 0 : place.row * shape.at(-1)!;
  const at = (from: number, bytes: number) => ({
    begin: from + (before / GROUP) * bytes,
    end: from + ((before + numbers) / GROUP) * bytes,
  });
  const scales = at(entry.scales.begin, 2);
  return {
    ...at(entry.begin, codes),
    scalesFile: entry.scales.file,
    scalesBegin: scales.begin,
    scalesEnd: scales.end,
  };
}

/** Numbers that share a scale. */
const GROUP = 32;

/** Bytes of a tensor of the native table in the checkpoint's tensor that holds it. */
function rangeOf(
  entry: TensorEntry,
  { shape: whole, row }: TensorPlace,
  shape: readonly number[],
  dtype: NativeStoredType,
) {
  if (whole === shape) return { begin: entry.begin, end: entry.end };
  const begin = entry.begin + storedBytes(dtype, row * (shape.length > 1 ? shape.at(-1)! : 1));
  return {
    begin,
    end:
      begin +
      storedBytes(
        dtype,
        shape.reduce((product, n) => product * n, 1),
      ),
  };
}

/**
 * Picks what the model needs out of a checkpoint's tensors.
 * @param checkpointName the checkpoint's name of a tensor of the native table
 * @param placesOf tensors of the checkpoint that may hold one of the native table among others
 * @throws DUltraError BAD_CHECKPOINT for missing tensors, for those of blocks that are not used, wrong shapes, or types
 * that are not F32, BF16 or F16.
 */
export function matchTensors(
  config: NativeModelConfig,
  entries: Map<string, TensorEntry>,
  source: string,
  checkpointName: (tensor: string) => string,
  placesOf: (tensor: string) => TensorPlace[] = () => [],
): NativeTensorRef[] {
  // Checked first: a huge layer count must not build a huge name table.
  const layers = config.nLayers + (config.planner?.numLayers ?? 0);
  if (layers > entries.size)
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: its config has ${layers} layers, its files only ${entries.size} tensors`,
    );
  // Without it nothing is named as it should be, and shapes that differ would say less.
  const table = checkpointName(EMBEDDING);
  if (!entries.has(table))
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: missing tensors ${table} and others of a model of this model_type; the files hold ` +
        `${[...entries.keys()].slice(0, NAMED).join(', ')}: of another family?`,
    );
  const refs: NativeTensorRef[] = [];
  const missing = new Set<string>();
  for (const [name, shape] of expectedTensors(config)) {
    const own = checkpointName(name);
    const place = placesOf(name).find((one) => entries.has(one.name)) ?? { name: own, shape, row: 0 };
    const entry = entries.get(place.name);
    if (!entry) {
      missing.add(own);
      continue;
    }
    const where = `${entry.path}: tensor ${place.name}`;
    if (entry.shape.length !== place.shape.length || entry.shape.some((n, i) => n !== place.shape[i]))
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${where}: expected shape [${place.shape.join(', ')}], got [${entry.shape.join(', ')}]`,
      );
    const { dtype } = entry;
    if (dtype !== 'F32' && dtype !== 'BF16' && dtype !== 'F16' && !isBlockType(dtype))
      throw new DUltraError('BAD_CHECKPOINT', `${where}: expected F32, BF16 or F16, got ${show(dtype)}`);
    const heads = entry.heads ?? 0;
    if (entry.gptq && place.shape !== shape)
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${where}: expected plain numbers or blocks where a tensor holds several matrices, got packed codes of GPTQ`,
      );
    const at = entry.gptq
      ? { begin: entry.begin, end: entry.end, gptq: entry.gptq }
      : placeIn(entry, place, shape, dtype);
    refs.push({ name, file: entry.file, dtype, shape, heads, ...at });
  }
  if (missing.size > 0) {
    throw new DUltraError('BAD_CHECKPOINT', `${source}: missing tensors ${named([...missing])}`);
  }
  checkBlocks(config, entries, source, checkpointName, placesOf);
  return refs;
}
