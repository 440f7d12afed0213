// New models: a folder in the Hugging Face layout with random weights and a word-level tokenizer.

import path from 'node:path';
import { optionError } from '../errors';
import { writeError, writeFileAtomic } from '../files/atomic';
import { checkInteger, checkKeys, checkNumber, checkSeed } from '../options';
import { deriveSeed, Purpose, Random } from '../random';
import type { ModelConfig } from './config';
import { saveModel } from './save';
import { expectedTensors } from './tensors';

/** Options of {@link createModel}. */
export interface CreateModelOptions {
  /**
   * Words of the task, which white space separates. The tokens for end of sequence, mask and unknown words are added
   * before them.
   */
  vocabulary: readonly string[];
  /** Hidden size. Default 64. */
  dModel?: number;
  /** Query heads. Default 4. */
  nHeads?: number;
  /** Key/value heads. Default: nHeads. */
  nKvHeads?: number;
  /** Transformer layers. Default 3. */
  nLayers?: number;
  /** Width of the MLP. Default: 3 · dModel. */
  mlpHiddenSize?: number;
  /** Longest row, prompt included. Default 128. */
  maxSequenceLength?: number;
  /** Base of the rotary embedding. Default 100, which suits short rows; 10000 is usual for long ones. */
  ropeTheta?: number;
  /** Blocks of the planner head. Default 1. */
  plannerLayers?: number;
  /** Seed of the random weights. Default 0. */
  seed?: number | bigint;
}

const EOS = '<eos>';
const MASK = '<mask>';
const UNKNOWN = '<unk>';

/** tokenizer.json and tokenizer_config.json of a tokenizer whose tokens are whole words. */
export function wordLevelTokenizer(vocabulary: readonly string[]): { tokenizer: object; config: object; size: number } {
  const words = [EOS, MASK, UNKNOWN, ...vocabulary.filter((word) => word !== EOS && word !== MASK && word !== UNKNOWN)];
  const vocab: Record<string, number> = Object.create(null) as Record<string, number>;
  words.forEach((word, id) => {
    if (typeof word !== 'string' || word === '' || /\s/.test(word))
      throw optionError(RangeError, 'vocabulary', `expected words without white space, got ${JSON.stringify(word)}`);
    if (word in vocab) throw optionError(RangeError, 'vocabulary', `${JSON.stringify(word)} occurs twice`);
    vocab[word] = id;
  });
  const special = (content: string, id: number) => ({
    id,
    content,
    single_word: false,
    lstrip: true,
    rstrip: true,
    normalized: false,
    special: true,
  });
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [special(EOS, 0), special(MASK, 1), special(UNKNOWN, 2)],
    normalizer: null,
    pre_tokenizer: { type: 'WhitespaceSplit' },
    post_processor: null,
    decoder: { type: 'WordPiece', prefix: '##', cleanup: false },
    // Greedy longest match over words that are all whole is a word-level model, and every reader of tokenizer.json
    // knows this type.
    model: {
      type: 'WordPiece',
      unk_token: UNKNOWN,
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
      vocab,
    },
  };
  const config = {
    eos_token: EOS,
    pad_token: EOS,
    mask_token: MASK,
    unk_token: UNKNOWN,
    clean_up_tokenization_spaces: false,
  };
  return { tokenizer, config, size: words.length };
}

/** Multiplier of N(0, 1) for each kind of tensor; null: not random. */
function deviation(name: string, shape: readonly number[], nLayers: number, plannerLayers: number): number | null {
  const fanIn = shape[shape.length - 1];
  if (/(norm|ln_f)\.weight$|norm_out_\d\.weight$|\.bias$/.test(name)) return null;
  if (/wte\.weight$/.test(name)) return 1 / Math.sqrt(fanIn);
  if (/modulation|mask_embedding|mask_linear/.test(name)) return 0.02;
  // Outputs of the residual branches shrink with the depth, as in GPT-2.
  const depth = name.startsWith('mask_head') ? plannerLayers : nLayers;
  return (/(attn_out|ff_out)\.weight$/.test(name) ? 1 / Math.sqrt(2 * depth) : 1) / Math.sqrt(fanIn);
}

/**
 * Makes a new model with a planner head in `folder`: config.json, model.safetensors, tokenizer.json. Load it with
 * `loadModel`.
 *
 * The output head starts as a copy of the embedding table. That lets the model copy words of the prompt from the start;
 * with two independent tables it takes thousands of steps to learn that.
 * @throws TypeError, RangeError for options; DUltraError WRITE_FAILED.
 */
export async function createModel(folder: string, options: CreateModelOptions): Promise<void> {
  checkKeys('options', options, [
    'vocabulary',
    'dModel',
    'nHeads',
    'nKvHeads',
    'nLayers',
    'mlpHiddenSize',
    'maxSequenceLength',
    'ropeTheta',
    'plannerLayers',
    'seed',
  ]);
  const {
    vocabulary,
    dModel = 64,
    nHeads = 4,
    nLayers = 3,
    maxSequenceLength = 128,
    ropeTheta = 100,
    plannerLayers = 1,
  } = options;
  const { nKvHeads = nHeads, mlpHiddenSize = 3 * dModel } = options;
  const seed = checkSeed('seed', options.seed ?? 0);
  if (!Array.isArray(vocabulary))
    throw optionError(TypeError, 'vocabulary', `expected a list of words, got ${String(vocabulary)}`);
  checkInteger('nHeads', nHeads, { min: 1, max: 1024 });
  checkInteger('nKvHeads', nKvHeads, { min: 1, max: nHeads });
  checkInteger('dModel', dModel, { min: 2, max: 65536 });
  checkInteger('nLayers', nLayers, { min: 1, max: 1024 });
  checkInteger('mlpHiddenSize', mlpHiddenSize, { min: 1, max: 1 << 20 });
  checkInteger('maxSequenceLength', maxSequenceLength, { min: 1, max: 1 << 20 });
  checkNumber('ropeTheta', ropeTheta, { minExclusive: 0, max: 1e12 });
  checkInteger('plannerLayers', plannerLayers, { min: 0, max: 1024 });
  if (dModel % (2 * nHeads) !== 0)
    throw optionError(RangeError, 'dModel', `expected a multiple of twice nHeads (${2 * nHeads}), got ${dModel}`);
  if (nHeads % nKvHeads !== 0)
    throw optionError(RangeError, 'nHeads', `expected a multiple of nKvHeads (${nKvHeads}), got ${nHeads}`);
  const { tokenizer, config: tokenizerConfig, size } = wordLevelTokenizer(vocabulary);
  const config: ModelConfig = {
    family: 'llada',
    dModel,
    nHeads,
    nKvHeads,
    headDim: dModel / nHeads,
    nLayers,
    mlpHiddenSize,
    vocabSize: size,
    embeddingSize: size,
    maxSequenceLength,
    ropeTheta,
    rmsNormEps: 1e-5,
    weightTying: false,
    qkvBias: false,
    attnOutBias: false,
    mlpBias: false,
    headBias: false,
    qkNorm: false,
    mask: 'bidirectional',
    eosTokenIds: [0],
    eosTokenId: 0,
    padTokenId: 0,
    maskTokenId: 1,
    planner: { numLayers: plannerLayers, useAdaln: true, useMaskEmbeddings: true },
  };
  const shapes = expectedTensors(config);
  const order = [...shapes.keys()];
  const head = 'model.transformer.ff_out.weight';
  const weights = async (name: string): Promise<Float32Array> => {
    const source = name === head ? 'model.transformer.wte.weight' : name;
    const shape = shapes.get(source)!;
    const values = new Float32Array(shape.reduce((product, n) => product * n, 1));
    const scale = deviation(source, shape, nLayers, Math.max(1, plannerLayers));
    if (scale === null) return values.fill(name.endsWith('.bias') ? 0 : 1);
    // A stream per tensor: its values do not depend on which other tensors there are.
    const random = new Random(deriveSeed(seed, Purpose.initialisation, order.indexOf(source)));
    return values.map(() => random.normal() * scale);
  };
  await saveModel(folder, { config, configJson: {}, source: folder, weights });
  try {
    await writeFileAtomic(path.join(folder, 'tokenizer.json'), `${JSON.stringify(tokenizer)}\n`);
    await writeFileAtomic(path.join(folder, 'tokenizer_config.json'), `${JSON.stringify(tokenizerConfig, null, 2)}\n`);
  } catch (cause) {
    throw writeError(folder, cause);
  }
}
