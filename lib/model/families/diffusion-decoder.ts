// Shared by masked diffusion models that were made of autoregressive decoders.
import { z } from 'zod';
import { badFile, checkFields } from '../../files/json';
import type { ModelConfig } from '../config';
import { readEndIds } from '../generation-file';
import { type DecoderTraits, decoderName, decoderShapes } from './decoder';
import { type ConfigHints, idOrNull, type NewShape, tokenId } from './definition';

const schema = z.looseObject({
  mask_token_id: tokenId,
  pad_token_id: tokenId,
  num_head_layers: z.int().nonnegative().max(1024).nullish(),
  use_adaln: z.boolean().nullish(),
  use_mask_embeddings: z.boolean().nullish(),
});

/** Keys that a diffusion decoder's config.json has beside those of its autoregressive model. */
export const DIFFUSION_KEYS: readonly string[] = Object.keys(schema.shape);

/** Tensor whose presence says that a checkpoint has a planner head. */
const PLANNER_MARK = 'mask_linear.weight';

/** How a family of diffusion decoders attends and decodes. */
export interface DiffusionTraits extends DecoderTraits {
  /** Length of the blocks that later positions do not change; null: every position sees all. */
  blockLength: number | null;
  /** See {@link ModelConfig.blocksFrom}. */
  blocksFrom?: 'completion';
  /** See `NativeModelConfig.shiftLogits`. Default false. */
  shiftLogits?: boolean;
  /** A checkpoint without an output head uses the embedding table, whatever its config.json says. Default false. */
  tiesWithoutHead?: boolean;
  /** The mask token of the published checkpoints of these shapes, where their config.json does not name it. */
  knownMaskTokenId?: number | null;
}

/** The mask token, by the first that names it: config.json, the family, the caller, the tokenizer. */
function maskTokenOf(
  named: number | null | undefined,
  file: string,
  size: number,
  { maskTokenId, tokenizerMaskId }: ConfigHints,
  known: number | null | undefined,
): number {
  const id = idOrNull(named) ?? known ?? maskTokenId ?? tokenizerMaskId;
  if (id === undefined || id === null)
    throw badFile(
      file,
      'mask_token_id: expected the id of the mask token, got none, and the tokenizer names none either; ' +
        'loadModel takes it as maskTokenId',
    );
  if (id >= size) throw badFile(file, `mask_token_id: expected an id below vocab_size (${size}), got ${id}`);
  return id;
}

/** The config of a masked diffusion decoder. @throws as {@link decoderShapes}, and where no file names the mask token */
export function diffusionDecoder(
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
  hints: ConfigHints,
  { blockLength, blocksFrom, shiftLogits, knownMaskTokenId, tiesWithoutHead, ...traits }: DiffusionTraits,
): ModelConfig {
  const c = checkFields(schema, json, file);
  const shapes = decoderShapes(json, file, traits);
  const eosTokenIds = readEndIds(json.eos_token_id, file, shapes.embeddingSize);
  return {
    ...shapes,
    weightTying: shapes.weightTying || (tiesWithoutHead === true && !tensors.has('lm_head.weight')),
    mask: blockLength === null ? 'bidirectional' : 'block-causal',
    ...(blockLength !== null && { blockLength, ...(blocksFrom && { blocksFrom }) }),
    ...(shiftLogits && { shiftLogits }),
    maskTokenId: maskTokenOf(c.mask_token_id, file, shapes.embeddingSize, hints, knownMaskTokenId),
    eosTokenIds,
    eosTokenId: eosTokenIds[0] ?? null,
    padTokenId: idOrNull(c.pad_token_id),
    planner: tensors.has(PLANNER_MARK)
      ? {
          numLayers: c.num_head_layers ?? 1,
          useAdaln: c.use_adaln ?? true,
          useMaskEmbeddings: c.use_mask_embeddings ?? true,
        }
      : null,
  };
}

/** config.json as it was, with what is in force where that may differ. */
export function diffusionDecoderJson(
  config: ModelConfig,
  json: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  const { planner } = config;
  return {
    ...json,
    mask_token_id: config.maskTokenId,
    ...(planner && {
      num_head_layers: planner.numLayers,
      use_adaln: planner.useAdaln,
      use_mask_embeddings: planner.useMaskEmbeddings,
    }),
  };
}

/** config.json of a new model of a family of diffusion decoders. */
export const newDecoderJson =
  (modelType: string, architecture: string) =>
  (shape: NewShape): Record<string, unknown> => ({
    architectures: [architecture],
    model_type: modelType,
    hidden_act: 'silu',
    hidden_size: shape.dModel,
    num_attention_heads: shape.nHeads,
    num_key_value_heads: shape.nKvHeads,
    head_dim: shape.dModel / shape.nHeads,
    num_hidden_layers: shape.nLayers,
    intermediate_size: shape.mlpHiddenSize,
    vocab_size: shape.vocabSize,
    max_position_embeddings: shape.maxSequenceLength,
    rope_theta: shape.ropeTheta,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: false,
    mask_token_id: shape.maskTokenId,
    eos_token_id: shape.eosTokenId,
    pad_token_id: shape.padTokenId,
    num_head_layers: shape.plannerLayers,
  });

/** A diffusion decoder's name of a tensor of the native table: the planner head keeps LLaDOU's names. */
export const diffusionDecoderName = (tensor: string): string =>
  tensor.startsWith('model.transformer.') ? decoderName(tensor) : tensor;
