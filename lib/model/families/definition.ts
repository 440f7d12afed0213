// What a family of checkpoints is made of.
import { z } from 'zod';
import type { KeyTable } from '../../files/key-table';
import type { CausalConfig, ModelConfig } from '../config';

/** What config.json may leave out, and the caller or other files may know. */
export interface ConfigHints {
  /** The mask token, as the caller gives it. */
  maskTokenId?: number;
  /** The mask token of the tokenizer's files; null: they name none. */
  tokenizerMaskId?: number | null;
  /** Length of the blocks that a model attends by, as the caller gives it. */
  blockLength?: number;
}

/** Where a tensor of the native table lies in one of the checkpoint that holds several, each some of its rows. */
export interface TensorPlace {
  name: string;
  /** Of the checkpoint's tensor; its rows are those of all but the last dimension. */
  shape: number[];
  /** First row. */
  row: number;
}

/** A family: which checkpoints it reads, what their config.json says, and what their tensors are called. */
export interface Family<Config extends ModelConfig | CausalConfig> {
  readonly name: string;
  /** Values of `model_type` in config.json that it answers to. */
  readonly modelTypes: readonly string[];
  /** Names of the model's class in config.json that it is known to read; others are tried too. */
  readonly architectures: readonly string[];
  /** Which keys of config.json are read, and which settings are accepted with certain values only. */
  readonly keys: KeyTable;
  /**
   * Checks config.json and fills in defaults.
   * @param file named in errors @param tensors names of the checkpoint's tensors @param hints default: none
   * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came.
   */
  parseConfig(
    json: Record<string, unknown>,
    file: string,
    tensors: { has(name: string): boolean },
    hints?: ConfigHints,
  ): Config;
  /** The checkpoint's name of a tensor of native/model/tensors. @throws DUltraError INTERNAL for one that it lacks. */
  checkpointName(tensor: string, config: Config): string;
  /**
   * Tensors of the checkpoint that may hold a tensor of the native table among others, the first that is there. Where one
   * bears the tensor's own name in the checkpoint, models are saved so. Default: none.
   */
  placesOf?(tensor: string, config: Config): TensorPlace[];
}

/** The shape of a new model. */
export interface NewShape {
  dModel: number;
  nHeads: number;
  nKvHeads: number;
  nLayers: number;
  mlpHiddenSize: number;
  /** Ids, and rows of the tables. */
  vocabSize: number;
  maxSequenceLength: number;
  ropeTheta: number;
  plannerLayers: number;
  maskTokenId: number;
  eosTokenId: number | null;
  padTokenId: number | null;
}

/** A family of masked diffusion models, which can be saved. */
export interface DiffusionFamily extends Family<ModelConfig> {
  /** The reference's confidences are of the tempered and filtered distribution (`confidence` of GenerateOptions). */
  readonly filteredConfidence?: boolean;
  /** The reference filters by top-p before top-k. */
  readonly topPFirst?: boolean;
  /** The reference finishes the block of an end of sequence. */
  readonly finishesBlock?: boolean;
  /** config.json: the fields that `parseConfig` reads as they are in force, others as they were. */
  configJson(config: ModelConfig, json: Readonly<Record<string, unknown>>): Record<string, unknown>;
  /** config.json of a new model; families without it have none. */
  newJson?(shape: NewShape): Record<string, unknown>;
}

/** Bounds as the native core has them: far above every model, and small enough that no product overflows. */
export const count = (max: number) => z.int().positive().max(max);
export const LIMITS = { width: 2 ** 20, heads: 2 ** 16, layers: 2 ** 16, mlp: 2 ** 24, ids: 2 ** 30 } as const;

/** Id of a token, or null for none, which some files write as -1. */
export const tokenId = z.int().min(-1).nullish();
export const idOrNull = (id: number | null | undefined): number | null => (id == null || id < 0 ? null : id);
