// Labelled decisions: what calibration is measured on.
import type { DecisionState } from './decide';
import type { Question } from './questions';

/** A state with questions, and what their answers are. */
export interface DecisionExample {
  state: DecisionState;
  questions: Readonly<Record<string, Question>>;
  /** Of some questions or all: of a boolean true or false, of a choice an option, of a score a level from 0. */
  answers: Readonly<Record<string, boolean | string | number>>;
  /** Of booleans whose answers are drawn: the probability of true, where it is known. */
  truth?: Readonly<Record<string, number>> | undefined;
}
