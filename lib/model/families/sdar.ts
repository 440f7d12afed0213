// SDAR, and what is built on it: TraDo, DiRL, LightningRL. See https://arxiv.org/abs/2510.06303.
import { z } from 'zod';
import { checkFields } from '../../files/json';
import { count, type DiffusionFamily } from './definition';
import {
  DIFFUSION_KEYS,
  diffusionDecoder,
  diffusionDecoderJson,
  diffusionDecoderName,
  newDecoderJson,
} from './diffusion-decoder';
import { QWEN3_KEYS, qwen3Traits, withHeadDim } from './qwen3';

const schema = z.looseObject({ block_size: count(2 ** 20).nullish() });

/** Blocks of the published checkpoints whose config.json does not name their length, and their mask token. */
const BLOCK_LENGTH = 4;
const MASK_TOKEN_ID = 151669;
const VOCABULARY = 151936;

/** Qwen3 that attends by blocks. */
export const sdar: DiffusionFamily = {
  name: 'sdar',
  modelTypes: ['sdar'],
  architectures: ['SDARForCausalLM'],
  keys: {
    ...QWEN3_KEYS,
    read: [...QWEN3_KEYS.read, ...DIFFUSION_KEYS, 'block_size'],
    harmless: [...QWEN3_KEYS.harmless, 'fuse_cross_entropy'],
  },
  filteredConfidence: true,
  finishesBlock: true,
  parseConfig(json, file, tensors, hints = {}) {
    const { block_size: named } = checkFields(schema, json, file);
    return diffusionDecoder(withHeadDim(json), file, tensors, hints, {
      family: 'sdar',
      ...qwen3Traits(json, file),
      blockLength: hints.blockLength ?? named ?? BLOCK_LENGTH,
      tiesWithoutHead: true,
      knownMaskTokenId: json.vocab_size === VOCABULARY ? MASK_TOKEN_ID : null,
    });
  },
  configJson: (config, json) => ({ ...diffusionDecoderJson(config, json), block_size: config.blockLength }),
  newJson: newDecoderJson('sdar', 'SDARForCausalLM'),
  checkpointName: diffusionDecoderName,
};
