// What a checkpoint's config.json says of a model, whatever its family calls it.
import path from 'node:path';
import { readJsonObject } from '../files/json';
import type { NativeModelConfig } from '../native';

/** Shapes and constants that every family fills in. */
export interface FamilyConfig extends NativeModelConfig {
  /** The family that reads and writes the checkpoint, such as "llada" or "qwen2". */
  family: string;
  /** Ids that the tokenizer knows; the tables may have more rows (`embeddingSize`). */
  vocabSize: number;
  headDim: number;
  mask: NonNullable<NativeModelConfig['mask']>;
  /** Ids that end a text, of generation_config.json, else of config.json; empty where the checkpoint names none. */
  eosTokenIds: readonly number[];
  qkNorm: boolean;
  qkvBias: boolean;
  attnOutBias: boolean;
  mlpBias: boolean;
  headBias: boolean;
}

/** Shapes and constants of a masked diffusion model, from its config.json. */
export interface ModelConfig extends FamilyConfig {
  /**
   * The id of an end that training pads answers with and decoding fills rows with: the first of config.json's, else of
   * `eosTokenIds`. null where the checkpoint names none.
   */
  eosTokenId: number | null;
  /** null where the checkpoint names none. */
  padTokenId: number | null;
  /**
   * Of mask "block-causal": where blocks are counted from. With "completion" one begins where the completion does, so
   * that the row's first one may be shorter. Default "row": from the row's start.
   */
  blocksFrom?: 'row' | 'completion';
}

/** Shapes and constants of an autoregressive model, from its config.json. */
export type CausalConfig = FamilyConfig;

/** How a config.json says that weights are stored: as "float32"; undefined where it does not. */
export function storedDtype({ dtype, torch_dtype }: Readonly<Record<string, unknown>>): string | undefined {
  // transformers 5 writes `dtype`, transformers 4 `torch_dtype`.
  const name = dtype ?? torch_dtype;
  return typeof name === 'string' ? name.replace(/^torch\./, '') : undefined;
}

/** Reads a checkpoint's config.json. @throws DUltraError BAD_CHECKPOINT where it is missing or no JSON object. */
export async function readConfigJson(folder: string): Promise<{ file: string; json: Record<string, unknown> }> {
  const file = path.join(folder, 'config.json');
  return { file, json: await readJsonObject(file) };
}
