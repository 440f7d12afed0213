// Fast-dLLM v2. See https://arxiv.org/abs/2509.26328.
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
import { qwen2 } from './qwen2';

const schema = z.looseObject({ bd_size: count(2 ** 20).nullish() });

const BLOCK_LENGTH = 32;
/** `|<MASK>|` of the published checkpoints, which their config.json does not name. */
const MASK_TOKEN_ID = 151665;
const VOCABULARIES: readonly unknown[] = [151936, 152064];

/** Qwen2.5 that attends by blocks; its head is a position ahead, as Qwen2.5's is. */
export const fastDllmV2: DiffusionFamily = {
  name: 'fast-dllm-v2',
  modelTypes: ['Fast_dLLM_Qwen'],
  architectures: ['Fast_dLLM_QwenForCausalLM'],
  keys: {
    ...qwen2.keys,
    read: [...qwen2.keys.read, ...DIFFUSION_KEYS, 'bd_size'],
    // Of training; the name is theirs.
    harmless: [...qwen2.keys.harmless, 'conplemenrary_mask'],
  },
  filteredConfidence: true,
  parseConfig(json, file, tensors, hints = {}) {
    const { bd_size: named } = checkFields(schema, json, file);
    return diffusionDecoder(json, file, tensors, hints, {
      family: 'fast-dllm-v2',
      qkvBias: true,
      attnOutBias: false,
      blockLength: hints.blockLength ?? named ?? BLOCK_LENGTH,
      shiftLogits: true,
      knownMaskTokenId: VOCABULARIES.includes(json.vocab_size) ? MASK_TOKEN_ID : null,
    });
  },
  configJson: (config, json) => ({ ...diffusionDecoderJson(config, json), bd_size: config.blockLength }),
  newJson: newDecoderJson('Fast_dLLM_Qwen', 'Fast_dLLM_QwenForCausalLM'),
  checkpointName: diffusionDecoderName,
};
