// Checkpoints that GPTQ has quantised, as AutoGPTQ and its successors write them: a matrix is four tensors, the codes
// of its inputs packed into words (qweight), zero points (qzeros), scales (scales) and the group of each input (g_idx).
// docs/quantised-weights.md says what is read.

import { existsSync } from 'node:fs';
import path from 'node:path';
import { badFile, readJsonObject } from '../files/json';
import type { TensorEntry } from '../files/safetensors';
import { show } from '../text';

type Json = Readonly<Record<string, unknown>>;

/** How a checkpoint was quantised. */
export interface GptqConfig {
  bits: 4 | 8;
  /** Inputs that share scales; -1: all of them. */
  groupSize: number;
  /** Groups are of inputs in any order. */
  descAct: boolean;
  /** Zero points are in the middle. */
  isSymmetric: boolean;
  /** What stored zero points lack. */
  zeroOffset: 0 | 1;
}

const FILE = 'quantize_config.json';

/**
 * How GPTQ has quantised a checkpoint: by `quantization_config` of its config.json, or by quantize_config.json. null: it
 * has not.
 * @throws DUltraError BAD_CHECKPOINT for settings that are not read
 */
export async function gptqConfigOf(folder: string, json: Json, file: string): Promise<GptqConfig | null> {
  const own = json.quantization_config as Json | null | undefined;
  const beside = path.join(folder, FILE);
  if (typeof own === 'object' && own !== null)
    return own.quant_method === 'gptq' ? parse(own, file, 'quantization_config.') : null;
  return existsSync(beside) ? parse(await readJsonObject(beside), beside, '') : null;
}

function parse(settings: Json, file: string, prefix: string): GptqConfig {
  const check = <T>(key: string, value: unknown, ...expected: T[]): T => {
    if (expected.includes(value as T)) return value as T;
    throw badFile(file, `${prefix}${key}: expected ${expected.map(show).join(' or ')}, got ${show(value)}`);
  };
  const {
    bits,
    group_size: groupSize,
    desc_act: descAct = false,
    sym = true,
    checkpoint_format: format = 'gptq',
  } = settings;
  if (!Number.isSafeInteger(groupSize) || ((groupSize as number) < 1 && groupSize !== -1))
    throw badFile(file, `${prefix}group_size: expected a positive integer or -1, got ${show(groupSize)}`);
  return {
    bits: check('bits', bits, 4 as const, 8 as const),
    groupSize: groupSize as number,
    descAct: check('desc_act', descAct, true, false),
    isSymmetric: check('sym', sym, true, false),
    zeroOffset: check('checkpoint_format', format, 'gptq', 'gptq_v2') === 'gptq' ? 1 : 0,
  };
}

const CODES = '.qweight';
const PARTS = ['.qzeros', '.scales', '.g_idx'] as const;

/**
 * Each matrix's four tensors as one of blocks, or where none hold its numbers exactly, of fp32.
 * @throws DUltraError BAD_CHECKPOINT for tensors that are missing, or of another type or shape
 */
export function joinGptq(entries: ReadonlyMap<string, TensorEntry>, config: GptqConfig): Map<string, TensorEntry> {
  const { bits, groupSize, isSymmetric, zeroOffset } = config;
  const perWord = 32 / bits;
  const joined = new Map<string, TensorEntry>();
  const modules = new Set(
    [...entries.keys()].filter((name) => name.endsWith(CODES)).map((name) => name.slice(0, -CODES.length)),
  );
  for (const [name, entry] of entries) {
    const module = name.slice(0, name.lastIndexOf('.'));
    if (!modules.has(module)) joined.set(name, entry);
    else if (name !== module + CODES && !PARTS.some((part) => name === module + part)) joined.set(name, entry);
  }
  for (const module of modules) {
    const codes = entries.get(module + CODES)!;
    const bad = (what: string, message: string) => badFile(codes.path, `tensor ${module}${what}: ${message}`);
    const [words = 0, outputs = 0] = codes.shape;
    const inputs = words * perWord;
    if (codes.dtype !== 'I32' || codes.shape.length !== 2 || outputs % perWord !== 0)
      throw bad(
        CODES,
        `expected I32 of shape [inputs / ${perWord}, outputs], outputs a multiple of ${perWord}, for ${bits} bits, got ${codes.dtype} [${codes.shape.join(', ')}]`,
      );
    const groups = groupSize === -1 ? 1 : Math.ceil(inputs / groupSize);
    const part = (suffix: (typeof PARTS)[number], dtype: string, shape: number[]) => {
      const entry = entries.get(module + suffix);
      if (!entry) throw bad(suffix, 'is missing');
      if (entry.dtype !== dtype || show(entry.shape) !== show(shape))
        throw bad(
          suffix,
          `expected ${dtype} of shape [${shape.join(', ')}], got ${entry.dtype} [${entry.shape.join(', ')}]`,
        );
      const { file, begin, end } = entry;
      return { file, begin, end };
    };
    const gptq = {
      bits,
      groups,
      zeroOffset,
      zeros: part('.qzeros', 'I32', [groups, outputs / perWord]),
      scales: part('.scales', 'F16', [groups, outputs]),
      group: part('.g_idx', 'I32', [inputs]),
    };
    const name = `${module}.weight`;
    if (entries.has(name)) throw bad('.weight', `expected none beside ${module}${CODES}`);
    // Groups of whole blocks, in their order.
    const isInBlocks = !config.descAct && inputs % 32 === 0 && (groupSize === -1 || groupSize % 32 === 0);
    const inBlocks = bits === 4 ? (isSymmetric ? 'Q4_0' : 'Q5_0') : isSymmetric ? 'Q8_0' : null;
    joined.set(name, { ...codes, dtype: (isInBlocks && inBlocks) || 'F32', shape: [outputs, inputs], gptq });
  }
  return joined;
}
