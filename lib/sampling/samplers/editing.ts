// LLaDA2.1's rule, which also changes tokens that are decided.
import { checkInteger, checkKeys, checkNumber } from '../../options';
import { EditingRow } from '../rows/editing-row';
import type { SamplerDefinition } from './definition';

/**
 * LLaDA2.1's decoding with edits, for models that attend by blocks. Every pass predicts all tokens of the block that it
 * decides: masks become tokens where the confidence is above `threshold`, at least `numToTransfer` of them, and decided
 * tokens become others where that of the other is above `editingThreshold`. A block ends with a pass that changes
 * nothing, or when `maxPostSteps` passes have begun without a mask. Given tokens never change.
 */
export interface EditingSampler {
  type: 'editing';
  /** Softmax probability of the predicted token from which on a mask becomes it, 0..1. Default 0.95. */
  threshold?: number | undefined;
  /** Likewise, from which on a decided token becomes it. Default 0.9; 1: never. */
  editingThreshold?: number | undefined;
  /** Passes of a block that may begin without a mask. Default 16; 0: the last mask ends the block. */
  maxPostSteps?: number | undefined;
  /** Masks that a pass decides at least, the most confident first. Default 1. */
  numToTransfer?: number | undefined;
}

/** See {@link EditingSampler}. */
export const editing: SamplerDefinition<EditingSampler, Required<EditingSampler>> = {
  type: 'editing',
  forms: {
    editing: {
      base: { type: 'editing' },
      main: 'threshold',
      options: { threshold: 'number', editingThreshold: 'number', maxPostSteps: 'number', numToTransfer: 'number' },
      help: [
        'editing[:0.95]',
        "all above 0.95, and other tokens in the place of decided ones (LLaDA2.1's rule); editing:0.7:editingThreshold=0.5:maxPostSteps=16:numToTransfer=1",
      ],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'threshold', 'editingThreshold', 'maxPostSteps', 'numToTransfer']);
    const { threshold = 0.95, editingThreshold = 0.9, maxPostSteps = 16, numToTransfer = 1 } = given;
    checkNumber('sampler.threshold', threshold, { min: 0, max: 1 });
    checkNumber('sampler.editingThreshold', editingThreshold, { min: 0, max: 1 });
    checkInteger('sampler.maxPostSteps', maxPostSteps, { min: 0, max: 1e6 });
    checkInteger('sampler.numToTransfer', numToTransfer, { min: 1, max: 1e6 });
    return { type: 'editing', threshold, editingThreshold, maxPostSteps, numToTransfer };
  },

  // The row decides.
  request: () => ({ rule: 'none' }),

  row: (sampler, index, input, settings) => new EditingRow(index, input, settings, sampler),

  byBlocks: true,
  referenceStops: true,
};
