// How rows are denoised, and rows before their first step.
import { attendedBlock, attendedGrid, gridOf } from '../model/blocks';
import type { ModelConfig } from '../model/config';
import type { NativeModel, NativeScores } from '../native';
import type { ResolvedCache } from './caches';
import { BlockRow } from './rows/block-row';
import type { Row, RowInput, RowSettings } from './rows/row';
import { definitionOf, type ResolvedSampler } from './samplers';
import type { CustomSampler } from './types';

/** What the loop needs of a model. */
export interface Denoisable {
  native: NativeModel;
  config: ModelConfig;
}

/**
 * Recorded draws instead of generated ones, for replaying a recorded run. Called before each step for each row that
 * takes part; `positions` are its candidates.
 */
export type RecordedUniforms = (at: { step: number; row: number; positions: Int32Array }) => {
  /** (candidates × vocabulary) uniforms of the Gumbel noise. */
  token?: Float64Array | undefined;
  /** (candidates) uniforms compared with the unmasking probabilities. */
  position?: Float64Array | undefined;
};

/** How rows are denoised, with every default filled in. */
export interface DenoiseSettings {
  sampler: ResolvedSampler | CustomSampler;
  cache: ResolvedCache;
  /** null: each row is one block. */
  blockLength: number | null;
  temperature: number;
  /** null: all tokens. */
  topK: number | null;
  topP: number;
  /** null: as the sampler or the family has it. */
  scores: NativeScores | null;
  /** `topP` comes before `topK`. */
  topPFirst: boolean;
  /** A row stops when the block of its end of sequence is decided. */
  finishesBlock: boolean;
  seed: bigint;
  firstRow: number;
  /** null: the default. */
  stopAtEos: boolean | null;
  /** Log-probabilities at the sampling temperature. */
  tempered: boolean;
  /** `forcedStep: "reference"`. */
  referenceLikelihood: boolean;
  /** `compat: "reference"`. */
  reference: boolean;
  signal: AbortSignal | undefined;
}

/** The rows of a batch, before their first step. */
export function openRows(target: Denoisable, inputs: readonly RowInput[], settings: DenoiseSettings): Row[] {
  const { maskTokenId, eosTokenIds, eosTokenId } = target.config;
  const { sampler, reference } = settings;
  const definition = typeof sampler === 'function' ? null : definitionOf(sampler);
  const settingsOf = (input: RowInput): RowSettings => {
    const blockLength = settings.blockLength ?? Math.max(1, input.ids.length - input.begin);
    return {
      maskTokenId,
      eosTokenIds,
      eosTokenId,
      blockLength,
      stopAtEos: reference
        ? (definition?.referenceStops === true || target.config.mask === 'block-causal') && settings.stopAtEos === true
        : (settings.stopAtEos ?? true),
      finishesBlock: settings.finishesBlock,
      reference,
      greedy: settings.temperature < 1e-4,
      cache: settings.cache,
      emptyPass: reference && (definition?.referenceEmptyPass ?? true),
      attended: attendedGrid(target.config, input.begin),
      grid: attendedBlock(target.config) === null ? null : gridOf(target.config, input.begin, blockLength),
      shiftLogits: target.config.shiftLogits === true,
    };
  };
  const all = inputs.map(settingsOf);
  const together = typeof sampler !== 'function' && definition?.batch?.(sampler, inputs, all);
  if (together) return together;
  return inputs.map((input, index) =>
    typeof sampler !== 'function' && definition?.row
      ? definition.row(sampler, index, input, all[index])
      : new BlockRow(index, input, all[index]),
  );
}
