// Our own quantised checkpoints: a folder in the Hugging Face layout whose matrices are two tensors each, the codes under
// the matrix's name and their scales beside it. docs/quantised-weights.md describes them.
import type { WrittenBlockType } from '../files/blocks';
import { badFile } from '../files/json';
import type { TensorEntry } from '../files/safetensors';
import { show } from '../text';

/** What the scales of a tensor are called. */
export const scalesName = (tensor: string): string => `${tensor}_scale`;

/** Numbers of a row that share a scale. */
export const GROUP = 32;

/** The types of blocks behind the names of options. */
export const QUANTISE = { q8: 'Q8_0', q4: 'IQ4_NL', q4_0: 'Q4_0' } as const satisfies Record<string, WrittenBlockType>;

/** What config.json calls the 16 numbers that codes of 4 bits stand for; absent: -8 to 7. */
const CODEBOOK = 'iq4_nl';

/** `quantization_config` of config.json. */
export const quantisation = (type: WrittenBlockType): Record<string, unknown> => ({
  quant_method: 'dultra',
  bits: type === 'Q8_0' ? 8 : 4,
  group_size: GROUP,
  symmetric: true,
  ...(type === 'IQ4_NL' && { codebook: CODEBOOK }),
});

type Json = Readonly<Record<string, unknown>>;

const configOf = ({ quantization_config: config }: Json): Json | null =>
  typeof config === 'object' && config !== null ? (config as Json) : null;

/** Whether a config.json says that the checkpoint is one of these. */
export const isQuantised = (json: Json): boolean => configOf(json)?.quant_method === 'dultra';

/** The config.json of the model that was quantised. */
export function withoutQuantisation(json: Json): Record<string, unknown> {
  const { quantization_config: _config, ...rest } = json;
  return rest;
}

/**
 * Codes with their scales as one tensor of blocks each.
 * @throws DUltraError BAD_CHECKPOINT for scales that do not fit, and for a `quantization_config` of other codes
 */
export function joinScales(
  entries: ReadonlyMap<string, TensorEntry>,
  json: Json,
  file: string,
): Map<string, TensorEntry> {
  const { codebook = null, group_size: group, symmetric } = configOf(json)!;
  for (const [key, value, expected] of [
    ['codebook', codebook, [CODEBOOK, null]],
    ['group_size', group, [GROUP]],
    ['symmetric', symmetric, [true]],
  ] as const)
    if (!(expected as readonly unknown[]).includes(value))
      throw badFile(
        file,
        `quantization_config.${key}: expected ${expected.map(show).join(' or ')}, got ${show(value)}`,
      );
  const fourBits = codebook === CODEBOOK ? 'IQ4_NL' : 'Q4_0';
  const joined = new Map<string, TensorEntry>();
  for (const [name, entry] of entries) {
    if (name.endsWith('_scale') && entries.has(name.slice(0, -'_scale'.length))) continue;
    const scales = entries.get(scalesName(name));
    if (!scales) {
      joined.set(name, entry);
      continue;
    }
    const bad = (message: string) => badFile(entry.path, `tensor ${name}: ${message}`);
    const { dtype, shape } = entry;
    if (dtype !== 'I8' && dtype !== 'U8')
      throw bad(`expected codes of type I8 (8 bits) or U8 (two of 4 bits), got ${show(dtype)}`);
    const whole = [...shape.slice(0, -1), (shape.at(-1) ?? 0) * (dtype === 'I8' ? 1 : 2)];
    const wanted = [...whole.slice(0, -1), whole.at(-1)! / GROUP];
    if (shape.length < 2 || scales.dtype !== 'F16' || show(scales.shape) !== show(wanted))
      throw bad(
        `expected ${scalesName(name)} of type F16 and shape [${wanted.join(', ')}], got ${scales.dtype} [${scales.shape.join(', ')}]`,
      );
    const { file, begin, end } = scales;
    joined.set(name, {
      ...entry,
      dtype: dtype === 'I8' ? 'Q8_0' : fourBits,
      shape: whole,
      scales: { file, begin, end },
    });
  }
  return joined;
}
