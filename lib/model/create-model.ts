// New models: a folder in the Hugging Face layout with random weights, and a tokenizer of whole words or one that is there.

import { existsSync } from 'node:fs';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { writeError, writeFileAtomic } from '../files/atomic';
import { readTextFile } from '../files/json';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSeed } from '../options';
import { attendedBlock } from './blocks';
import { attendingToNeighbours, withCommonPart, writingBack } from './copying-start';
import { NEW_FAMILIES, newCheckpoint } from './families';
import { initialWeights } from './initial-weights';
import { loadTokenizer } from './load-tokenizer';
import { saveModel, TOKENIZER_FILES } from './save';
import { expectedTensors } from './tensors';

/** Options of {@link createModel}. */
export interface CreateModelOptions {
  /**
   * Words of the task, which white space separates, for a tokenizer whose tokens are whole words. The tokens for end of
   * sequence, mask and unknown words are added before them. This or `tokenizer` is needed.
   */
  vocabulary?: readonly string[] | undefined;
  /**
   * Folder with a tokenizer.json, and a tokenizer_config.json that names `mask_token` and `eos_token`: what
   * `trainTokenizer` writes, or any checkpoint's. Its files are copied.
   */
  tokenizer?: string | undefined;
  /**
   * What the model is like: "llada" (default), "illada", "dream", "sdar", "fast-dllm-v2", "a2d-qwen3" or "a2d-qwen2". The folder is
   * one that the family's own code reads, up to the planner head.
   */
  family?: string | undefined;
  /** Positions of a block that the model attends by: "sdar" (default 4) and "fast-dllm-v2" (default 32). */
  blockLength?: number | undefined;
  /** Hidden size. Default 64. */
  dModel?: number | undefined;
  /** Query heads. Default 4. */
  nHeads?: number | undefined;
  /** Key/value heads. Default: nHeads. */
  nKvHeads?: number | undefined;
  /** Transformer layers. Default 3. */
  nLayers?: number | undefined;
  /** Width of the MLP. Default: 3 · dModel. */
  mlpHiddenSize?: number | undefined;
  /** Longest row, prompt included. Default 128. */
  maxSequenceLength?: number | undefined;
  /** Base of the rotary embedding. Default 100, which suits short rows; 10000 is usual for long ones. */
  ropeTheta?: number | undefined;
  /** Blocks of the planner head. Default 1. */
  plannerLayers?: number | undefined;
  /**
   * How attention starts: "random" (default), or "copying". With that, attention writes back what it reads, and two
   * heads of the first layer attend to the token before and the token after, so that copying is learnt in far fewer
   * steps (docs/training-a-planner.md).
   */
  attentionStart?: 'random' | 'copying' | undefined;
  /** Seed of the random weights. Default 0. */
  seed?: number | bigint | undefined;
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
  // Where no word would be cut or lost by it, text is read as people write it: "Apples." as "apples" and ".".
  const isLower = words.every((word) => word === word.toLowerCase());
  const isWhole = words.slice(3).every((word) => /^(?:[\p{L}\p{M}\p{N}_]+|[^\p{L}\p{M}\p{N}_\s]+)$/u.test(word));
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [special(EOS, 0), special(MASK, 1), special(UNKNOWN, 2)],
    normalizer: isLower ? { type: 'Lowercase' } : null,
    pre_tokenizer: { type: isWhole ? 'Whitespace' : 'WhitespaceSplit' },
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

/** A tokenizer's files, and what config.json says of it. */
interface GivenTokenizer {
  files: [name: string, content: string][];
  size: number;
  eosTokenId: number | null;
  padTokenId: number | null;
  maskTokenId: number;
}

/** The tokenizer in a folder. @throws TypeError, RangeError; DUltraError BAD_CHECKPOINT, NO_TOKENIZER */
async function tokenizerOf(folder: string): Promise<GivenTokenizer> {
  if (typeof folder !== 'string' || folder === '')
    throw optionError(TypeError, 'tokenizer', `expected a folder, got ${JSON.stringify(folder)}`);
  // No limit on ids: the tables are made to fit.
  const tokenizer = await loadTokenizer(folder, 0, 1 << 20);
  if (!tokenizer) throw new DUltraError('NO_TOKENIZER', `${folder}: expected a tokenizer.json, got none`);
  const present = TOKENIZER_FILES.filter((name) => existsSync(path.join(folder, name)));
  const files = await Promise.all(
    present.map(async (name): Promise<[string, string]> => [name, await readTextFile(path.join(folder, name))]),
  );
  const idOf = (key: string): number | null => {
    const token = tokenizer.specialToken(key);
    return token === null ? null : tokenizer.tokenId(token);
  };
  const maskTokenId = idOf('mask_token');
  if (maskTokenId === null)
    throw optionError(
      RangeError,
      'tokenizer',
      `expected a tokenizer_config.json whose "mask_token" is a token, got none in ${folder}`,
    );
  const eosTokenId = idOf('eos_token');
  return { files, size: tokenizer.size, maskTokenId, eosTokenId, padTokenId: idOf('pad_token') ?? eosTokenId };
}

function wordTokenizer(vocabulary: readonly string[]): GivenTokenizer {
  if (!Array.isArray(vocabulary))
    throw optionError(TypeError, 'vocabulary', `expected a list of words, got ${String(vocabulary)}`);
  const { tokenizer, config, size } = wordLevelTokenizer(vocabulary);
  return {
    files: [
      ['tokenizer.json', `${JSON.stringify(tokenizer)}\n`],
      ['tokenizer_config.json', `${JSON.stringify(config, null, 2)}\n`],
    ],
    size,
    eosTokenId: 0,
    padTokenId: 0,
    maskTokenId: 1,
  };
}

/**
 * Makes a new model with a planner head in `folder`: config.json, model.safetensors, tokenizer.json. Load it with
 * `loadModel`.
 *
 * The output head starts as a copy of the embedding table. That lets the model copy words of the prompt from the start;
 * with two independent tables it takes thousands of steps to learn that.
 * @throws TypeError, RangeError for options; DUltraError WRITE_FAILED, NO_TOKENIZER, BAD_CHECKPOINT.
 */
export async function createModel(folder: string, options: CreateModelOptions): Promise<void> {
  checkKeys('options', options, [
    'vocabulary',
    'tokenizer',
    'family',
    'blockLength',
    'dModel',
    'nHeads',
    'nKvHeads',
    'nLayers',
    'mlpHiddenSize',
    'maxSequenceLength',
    'ropeTheta',
    'plannerLayers',
    'attentionStart',
    'seed',
  ]);
  const {
    family = 'llada',
    blockLength,
    dModel = 64,
    nHeads = 4,
    nLayers = 3,
    maxSequenceLength = 128,
    ropeTheta = 100,
    plannerLayers = 1,
    attentionStart = 'random',
  } = options;
  const { nKvHeads = nHeads, mlpHiddenSize = 3 * dModel } = options;
  const seed = checkSeed('seed', options.seed ?? 0);
  checkChoice('family', family, NEW_FAMILIES);
  if (blockLength !== undefined) checkInteger('blockLength', blockLength, { min: 1, max: 2 ** 20 });
  checkInteger('nHeads', nHeads, { min: 1, max: 1024 });
  checkInteger('nKvHeads', nKvHeads, { min: 1, max: nHeads });
  checkInteger('dModel', dModel, { min: 2, max: 65536 });
  checkInteger('nLayers', nLayers, { min: 1, max: 1024 });
  checkInteger('mlpHiddenSize', mlpHiddenSize, { min: 1, max: 1 << 20 });
  checkInteger('maxSequenceLength', maxSequenceLength, { min: 1, max: 1 << 20 });
  checkNumber('ropeTheta', ropeTheta, { minExclusive: 0, max: 1e12 });
  checkInteger('plannerLayers', plannerLayers, { min: 0, max: 1024 });
  checkChoice('attentionStart', attentionStart, ['random', 'copying'] as const);
  if (dModel % (2 * nHeads) !== 0)
    throw optionError(RangeError, 'dModel', `expected a multiple of twice nHeads (${2 * nHeads}), got ${dModel}`);
  if (nHeads % nKvHeads !== 0)
    throw optionError(RangeError, 'nHeads', `expected a multiple of nKvHeads (${nKvHeads}), got ${nHeads}`);
  if (options.tokenizer !== undefined && options.vocabulary !== undefined)
    throw optionError(TypeError, 'vocabulary', 'expected none beside tokenizer, which has its own');
  const { files, size, ...tokens } =
    options.tokenizer === undefined
      ? wordTokenizer(options.vocabulary as readonly string[])
      : await tokenizerOf(options.tokenizer);
  const { json, config } = newCheckpoint(
    family,
    {
      dModel,
      nHeads,
      nKvHeads,
      nLayers,
      mlpHiddenSize,
      vocabSize: size,
      maxSequenceLength,
      ropeTheta,
      plannerLayers,
      ...tokens,
    },
    { blockLength },
  );
  if (blockLength !== undefined && attendedBlock(config) !== blockLength)
    throw optionError(
      RangeError,
      'blockLength',
      `expected none for the family ${family}, whose config.json names no length of blocks, got ${blockLength}`,
    );
  const shapes = expectedTensors(config);
  const order = [...shapes.keys()];
  const head = 'model.transformer.ff_out.weight';
  const random = (name: string): Float32Array => {
    const source = name === head ? 'model.transformer.wte.weight' : name;
    const shape = shapes.get(source)!;
    return initialWeights(source, shape, { nLayers, plannerLayers, seed, stream: order.indexOf(source) });
  };
  const first = 'model.transformer.blocks.0.';
  const weights = async (name: string): Promise<Float32Array> => {
    if (attentionStart === 'random') return random(name);
    if (/^model\..*\.attn_out\.weight$/.test(name))
      return writingBack(random(name.replace('attn_out', 'v_proj')), config);
    if (name === 'model.transformer.wte.weight') return withCommonPart(random(name), config);
    if (name === `${first}q_proj.weight`) return attendingToNeighbours(random(name), 'query', config);
    if (name === `${first}k_proj.weight`) return attendingToNeighbours(random(name), 'key', config);
    return random(name);
  };
  await saveModel(folder, { config, configJson: json, source: folder, weights });
  try {
    // tokenizer_config.json last: a folder that has it is complete.
    for (const [name, content] of files) await writeFileAtomic(path.join(folder, name), content);
  } catch (cause) {
    throw writeError(folder, cause);
  }
}
