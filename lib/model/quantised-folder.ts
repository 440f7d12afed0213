// Our own quantised checkpoints: a folder in the Hugging Face layout whose matrices are two tensors each, the codes under
// the matrix's name and their scales beside it. docs/quantised-weights.md describes them.
import { badFile } from '../files/json';
import type { TensorEntry } from '../files/safetensors';
import { show } from '../text';

/** What the scales of a tensor are called. */
export const scalesName = (tensor: string): string => `${tensor}_scale`;

/** Numbers of a row that share a scale. */
export const GROUP = 32;

/** `quantization_config` of config.json. */
export const quantisation = (bits: 8 | 4): Record<string, unknown> => ({
  quant_method: 'dultra',
  bits,
  group_size: GROUP,
  symmetric: true,
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

/** Codes with their scales as one tensor of blocks each. @throws DUltraError BAD_CHECKPOINT for scales that do not fit */
export function joinScales(entries: ReadonlyMap<string, TensorEntry>): Map<string, TensorEntry> {
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
    joined.set(name, { ...entry, dtype: dtype === 'I8' ? 'Q8_0' : 'Q4_0', shape: whole, scales: { file, begin, end } });
  }
  return joined;
}
