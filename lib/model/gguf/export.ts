// What a GGUF file of a model holds: its keys, and its tensors' names, shapes and orders of rows.
import type { GgufType } from '../../files/gguf';
import type { GgufKey } from '../../files/write-gguf';
import { show } from '../../text';
import type { CausalConfig, ModelConfig } from '../config';
import { parseCheckpoint } from '../families';
import { GgufKeys, ggufModel } from './config';
import { ggufName } from './tensors';
import { ggufTokenizer, tokenizerKeys } from './tokenizer';

/** Files of the architectures whose tensors stand one for one in both layouts. */
const ARCHITECTURES: Readonly<Record<string, string>> = {
  llada: 'llada',
  dream: 'dream',
  llama: 'llama',
  qwen2: 'qwen2',
  qwen3: 'qwen3',
};

/** Numbers of `general.file_type`, which is a hint for people. */
const FILE_TYPES: Partial<Record<GgufType, number>> = { Q4_0: 2, Q8_0: 7, IQ4_NL: 25 };

/** What a config must say again when it is read from the file. */
const SHAPES = [
  'dModel',
  'nHeads',
  'nKvHeads',
  'nLayers',
  'mlpHiddenSize',
  'experts',
  'clipQkv',
  'mlp',
  'embeddingSize',
  'maxSequenceLength',
  'ropeTheta',
  'ropeDim',
  'ropeScaling',
  'rmsNormEps',
  'weightTying',
  'qkvBias',
  'attnOutBias',
  'mlpBias',
  'headBias',
  'qkNorm',
  'headDim',
  'mask',
  'blockLength',
  'shiftLogits',
  'maskTokenId',
] as const satisfies readonly (keyof ModelConfig)[];

/** A tokenizer as the files of the Hugging Face layout have it; null: there is none. */
export type TokenizerFiles = Readonly<{
  tokenizer: Readonly<Record<string, unknown>>;
  config: Readonly<Record<string, unknown>>;
}> | null;

/** A GGUF file that is to be written. */
export interface GgufExport {
  keys: GgufKey[];
  /** Whether the file has the tokenizer: not every one can be said in its keys. */
  hasTokenizer: boolean;
  /** The file's name of a tensor of the native table. */
  nameOf(tensor: string): string;
  /** Heads of a tensor whose rows the file has in another order (`NativeTensorRef.heads`); 0: none. */
  headsOf(tensor: string): number;
}

/** A key as it is read again: fp32 numbers are rounded. */
const readAgain = ([key, type, value]: GgufKey) =>
  [key, type === 'f32' ? Math.fround(value as number) : value] as [string, never];

/**
 * The keys of a model's GGUF file.
 * @param tensors the model's own, of the native table @param main type of most matrices
 * @throws what `fail` makes, for a model that such files cannot describe: it is read again out of its keys, and
 * compared
 */
export function ggufExport(
  config: ModelConfig | CausalConfig,
  tensors: ReadonlyMap<string, readonly number[]>,
  main: GgufType,
  tokenizer: TokenizerFiles,
  fail: (message: string) => Error,
): GgufExport {
  const name = Object.hasOwn(ARCHITECTURES, config.family) ? ARCHITECTURES[config.family] : undefined;
  if (name === undefined)
    throw fail(`GGUF files are written of ${Object.keys(ARCHITECTURES).join(', ')}, got ${show(config.family)}`);
  const isDiffusion = config.mask !== 'causal';
  const idOf = (key: string, id: number | null | undefined): GgufKey[] =>
    id === null || id === undefined || id < 0 ? [] : [[`tokenizer.ggml.${key}_token_id`, 'u32', id]];
  const own = config as Partial<ModelConfig>;
  const keys: GgufKey[] = [
    ['general.architecture', 'string', name],
    ['general.quantization_version', 'u32', 2],
    ['general.file_type', 'u32', FILE_TYPES[main] ?? 0],
    [`${name}.vocab_size`, 'u32', config.embeddingSize],
    [`${name}.context_length`, 'u32', config.maxSequenceLength],
    [`${name}.embedding_length`, 'u32', config.dModel],
    [`${name}.block_count`, 'u32', config.nLayers],
    [`${name}.feed_forward_length`, 'u32', config.mlpHiddenSize],
    [`${name}.attention.head_count`, 'u32', config.nHeads],
    [`${name}.attention.head_count_kv`, 'u32', config.nKvHeads],
    [`${name}.attention.key_length`, 'u32', config.headDim],
    [`${name}.attention.value_length`, 'u32', config.headDim],
    [`${name}.attention.layer_norm_rms_epsilon`, 'f32', config.rmsNormEps],
    [`${name}.rope.freq_base`, 'f32', config.ropeTheta],
    [`${name}.rope.dimension_count`, 'u32', config.headDim],
    ...(isDiffusion
      ? ([
          [`${name}.attention.causal`, 'bool', false],
          ['diffusion.shift_logits', 'bool', config.shiftLogits ?? false],
        ] as const)
      : []),
    ...idOf('mask', config.maskTokenId),
    ...idOf('eos', own.eosTokenId ?? config.eosTokenIds[0]),
    ...idOf('padding', own.padTokenId),
  ];
  const stored = new Map<string, never>([...tensors.keys()].map((tensor) => [ggufName(tensor), undefined as never]));
  const metadata = new Map(keys.map(readAgain));
  const model = ggufModel({ metadata, tensors: stored }, fail);
  const again = parseCheckpoint(model.json, 'the file', new Map()).config;
  const read = isDiffusion ? { ...again, shiftLogits: model.shiftLogits } : again;
  for (const key of SHAPES) {
    const [was, is] = [config[key], read[key]].map((value) =>
      typeof value === 'number' ? Math.fround(value) : (value ?? false),
    );
    if (show(was) !== show(is))
      throw fail(`a GGUF file of ${name} would say ${key} ${show(read[key])}, the model has ${show(config[key])}`);
  }
  const text = tokenizer && tokenizerKeys(tokenizer.tokenizer, tokenizer.config, config.embeddingSize);
  const all = text ? [...keys, ...text] : [...keys, ['tokenizer.ggml.model', 'string', 'no_vocab'] as const];
  // What was written is what is read.
  if (text) ggufTokenizer(new GgufKeys(new Map(all.map(readAgain)), fail), model.maskTokenId);
  return {
    keys: all,
    hasTokenizer: text !== null,
    nameOf: ggufName,
    headsOf: (tensor) => model.headsOf(ggufName(tensor)),
  };
}

/** Rows of `size` bytes in the order that files of interleaved heads have: the two halves of a pair side by side. */
export function interleaveRows(bytes: Uint8Array, rows: number, heads: number): Uint8Array {
  const out = new Uint8Array(bytes.length);
  const size = bytes.length / rows;
  const inHead = rows / heads;
  for (let row = 0; row < rows; row++) {
    const at = row % inHead;
    const to = row - at + 2 * (at % (inHead / 2)) + Math.floor(at / (inHead / 2));
    out.set(bytes.subarray(row * size, (row + 1) * size), to * size);
  }
  return out;
}
