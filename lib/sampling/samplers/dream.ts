// Dream's own decoding.
import { optionError } from '../../errors';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../../options';
import type { BlockProgress } from '../rows/row';
import type { SamplerDefinition } from './definition';

/**
 * Dream's decoding (arXiv 2508.15487): `steps` passes at times t from 1 down to `eps`, each of which unmasks the share
 * 1 - s / t of the masks that are left, s being the time of the next pass, and the last all of them.
 */
export interface DreamSampler {
  type: 'dream';
  /**
   * Which positions go first: those of the most probable token ("maskgit_plus"), of the largest margin between the two
   * most probable ones ("topk_margin"), or of the lowest entropy ("entropy", default). With "origin" each position is
   * unmasked with that probability, whatever the model says.
   */
  alg?: 'entropy' | 'maskgit_plus' | 'topk_margin' | 'origin' | undefined;
  /** Passes for the whole generation, divided evenly among the blocks. Default: as many as tokens. */
  steps?: number | undefined;
  /**
   * Above 0 positions are drawn, without replacement, by softmax(score / algTemp); not allowed with "origin". Default 0.
   */
  algTemp?: number | undefined;
  /** The last time, above 0 and below 1. Default 0.001. */
  eps?: number | undefined;
}

/** {@link DreamSampler} with defaults; `steps` null: as many as masks. */
export type ResolvedDreamSampler = Required<Omit<DreamSampler, 'steps'>> & { steps: number | null };

/** Times of `steps` passes and the end, evenly from 1 to eps, in single precision from both sides, as torch.linspace. */
function timeOf(i: number, steps: number, eps: number): number {
  const first = Math.fround(1);
  const last = Math.fround(eps);
  const step = Math.fround(Math.fround(last - first) / steps);
  if (i < (steps + 1) / 2) return Math.fround(first + Math.fround(step * i));
  return Math.fround(last - Math.fround(step * (steps - i)));
}

/** The share of the masks that a pass unmasks; null: none is left. */
function shareOf({ steps, eps }: ResolvedDreamSampler, { firstMasks, step, blocks }: BlockProgress): number | null {
  const all = steps === null ? firstMasks : Math.floor(steps / blocks);
  if (step >= all) return null;
  if (step === all - 1) return 1;
  return Math.fround(1 - Math.fround(timeOf(step + 1, all, eps) / timeOf(step, all, eps)));
}

/** See {@link DreamSampler}. */
export const dream: SamplerDefinition<DreamSampler, ResolvedDreamSampler> = {
  type: 'dream',
  forms: {
    dream: {
      base: { type: 'dream' },
      main: 'alg',
      mainNumber: 'steps',
      options: { alg: 'text', steps: 'number', algTemp: 'number', eps: 'number' },
      help: [
        'dream[:64]',
        "Dream's schedule of 64 passes, the lowest entropies first; dream:64:alg=maskgit_plus, topk_margin or origin, algTemp=0.2",
      ],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'alg', 'steps', 'algTemp', 'eps']);
    const { alg = 'entropy', steps, algTemp = 0, eps = 1e-3 } = given;
    checkChoice('sampler.alg', alg, ['entropy', 'maskgit_plus', 'topk_margin', 'origin'] as const);
    if (steps !== undefined) checkInteger('sampler.steps', steps, { min: 1, max: 1e9 });
    checkNumber('sampler.algTemp', algTemp, { min: 0, max: 1e6 });
    if (algTemp > 0 && alg === 'origin')
      throw optionError(TypeError, 'sampler.algTemp', 'not allowed with alg "origin", which draws positions by itself');
    checkNumber('sampler.eps', eps, { minExclusive: 0, max: 0.999 });
    return { type: 'dream', alg, steps: steps ?? null, algTemp, eps };
  },

  request: ({ alg, algTemp }, reference) =>
    alg === 'origin'
      ? { rule: 'coin', mayRest: true }
      : {
          rule: 'fixed',
          byEntropy: alg === 'entropy',
          byMargin: alg === 'topk_margin',
          selectionTemperature: algTemp,
          mayRest: reference,
        },

  isCounted: ({ alg }) => alg !== 'origin',

  count(sampler, block) {
    const share = shareOf(sampler, block);
    if (share === null) return null;
    const count = Math.trunc(Math.fround(block.masks * share));
    // The reference's first passes may unmask nothing.
    return block.reference ? count : Math.max(1, count);
  },

  chance: shareOf,

  checkBlocks({ steps }, blocks) {
    if (steps !== null && steps % blocks !== 0)
      throw optionError(
        RangeError,
        'sampler.steps',
        `expected a multiple of the number of blocks (${blocks}), got ${steps}`,
      );
  },

  filteredConfidence: true,
};
