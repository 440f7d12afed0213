// What a built-in sampler is made of.
import type { NativeStepRule } from '../../native';
import type { BlockProgress, Row, RowInput, RowSettings } from '../rows/row';
import type { Forms } from '../text-form';

/** The part of a native step request that a sampler decides; absent fields have the native defaults. */
export type RuleRequest = Pick<
  NativeStepRule,
  | 'rule'
  | 'planner'
  | 'plannerTemperature'
  | 'probabilityScale'
  | 'threshold'
  | 'factor'
  | 'factorLastPair'
  | 'byEntropy'
  | 'byMargin'
  | 'sumWithLast'
  | 'selectionTemperature'
  | 'mayRest'
  | 'excludeMask'
>;

/** A built-in sampler: `Given` is what users write, `Resolved` has every default filled in. */
export interface SamplerDefinition<Given extends { type: string }, Resolved extends { type: Given['type'] }> {
  readonly type: Given['type'];
  /** Its short text forms; the first bears the sampler's own name. */
  readonly forms: Forms<Given>;
  /**
   * Checks the options and fills in defaults.
   * @throws TypeError, RangeError naming the option, what was expected and what came.
   */
  resolve(given: Given): Resolved;
  /**
   * The native rule. @param reference with the quirks of compat "reference" @param shiftLogits the model's head is a
   * position ahead, as Dream's is
   */
  request(sampler: Resolved, reference: boolean, shiftLogits: boolean): RuleRequest;
  /**
   * Positions that this pass unmasks, for the counted rules (for a threshold the most that it may); null when no pass of
   * the block is left.
   */
  count?(sampler: Resolved, block: BlockProgress): number | null;
  /** Whether `count` applies. Default: it does. */
  isCounted?(sampler: Resolved): boolean;
  /** Probability of each position, for the rule "coin"; null when no pass of the block is left. */
  chance?(sampler: Resolved, block: BlockProgress): number | null;
  /** Checks what depends on the number of blocks. @throws RangeError naming the option. */
  checkBlocks?(sampler: Resolved, blocks: number): void;
  /** How a row's blocks follow each other. Default: strictly one after the other. */
  row?(sampler: Resolved, index: number, input: RowInput, settings: RowSettings): Row;
  /** The rows of a batch where they depend on each other; null: they do not. Default: they do not. */
  batch?(sampler: Resolved, inputs: readonly RowInput[], settings: readonly RowSettings[]): Row[] | null;
  /** It is for models that attend by blocks, whose cache is exact or none. Default false. */
  readonly byBlocks?: boolean;
  /** Its reference's confidences are of the tempered and filtered distribution. Default false. */
  readonly filteredConfidence?: boolean;
  /** It reads the planner head's logits. */
  readonly needsPlanner?: boolean;
  /** With compat "reference": whether `stopAtEos: true` is honoured (default false). */
  readonly referenceStops?: boolean;
  /** With compat "reference" and a cache: whether a finished block gets one more pass (default true). */
  readonly referenceEmptyPass?: boolean;
}
