// Decisions of a model of this process, as the AI SDK asks for them.
import { optionError } from '../errors';
import type { DecideOptions, DecisionAnswer, DecisionState, MaskedDiffusionModel, Question } from '../index';
import { show } from '../text';
import type {
  DecisionCall,
  DecisionInput,
  DecisionModel,
  DecisionResult,
  SdkAnswer,
  SdkQuestion,
  StatePart,
  Warning,
} from './types';

/** What is no text is read as JSON. */
const textOf = (value: DecisionInput): string => (typeof value === 'string' ? value : JSON.stringify(value));

/** The state of a call. @throws TypeError for parts that are neither text nor JSON */
function stateOf(parts: readonly StatePart[]): DecisionState {
  const values = parts.map((part, i) => {
    if (part.type === 'text') return part.text ?? '';
    if (part.type === 'json') return part.value as DecisionInput;
    throw optionError(TypeError, `state[${i}].type`, `expected "text" or "json", got ${show(part.type)}`);
  });
  const [only] = values;
  // By itself it is what it was, so that it is read as the library reads it.
  if (values.length === 1 && typeof only === 'object' && only !== null) return only as DecisionState;
  return values.map(textOf).join('\n');
}

/** A question in the library's words; which types there are, the library says. */
function questionOf({ type, instructions, criteria }: SdkQuestion): Question {
  const asked = instructions === undefined || instructions === null ? {} : { instructions: textOf(instructions) };
  const described = (value: DecisionInput | null) => (value === null ? null : textOf(value));
  if (Array.isArray(criteria))
    return { type, ...asked, criteria: criteria.map((value) => described(value) ?? '') } as Question;
  const entries = Object.entries((criteria ?? {}) as Record<string, DecisionInput | null>);
  if (type === 'choice')
    return { type, ...asked, criteria: Object.fromEntries(entries.map(([name, value]) => [name, described(value)])) };
  const given = entries.filter(([, value]) => value !== null && value !== undefined);
  return {
    type,
    ...asked,
    ...(given.length > 0 && { criteria: Object.fromEntries(given.map(([name, value]) => [name, textOf(value!)])) }),
  } as Question;
}

function answerOf(answer: DecisionAnswer): SdkAnswer {
  if (answer.type === 'boolean') return { type: 'boolean', probability: answer.probability };
  if (answer.type === 'choice') return { type: 'choice', choice: answer.choice, probabilities: answer.probabilities };
  if (answer.type === 'refusal') return { type: 'refusal' };
  const probabilities = Object.fromEntries(answer.probabilities.map((p, level) => [String(level), p]));
  return { type: 'score', score: answer.score, probabilities };
}

/** What the SDK's answers have no place for. */
function basisOf(answer: DecisionAnswer) {
  const { optionMass, temperature, scorer } = answer;
  return { optionMass, temperature, scorer, ...('confidence' in answer && { confidence: answer.confidence }) };
}

/** See `createDultra`. */
export class DUltraDecisionModel implements DecisionModel {
  readonly specificationVersion = 'v4' as const;
  readonly provider = 'dultra';
  readonly supportedQuestionTypes = ['boolean', 'choice', 'score'] as const;
  readonly #model: MaskedDiffusionModel;
  readonly #options: DecideOptions;

  constructor(
    readonly modelId: string,
    model: MaskedDiffusionModel,
    options: DecideOptions,
  ) {
    this.#model = model;
    this.#options = options;
  }

  async doDecide({ state, questions, reasoning, abortSignal, providerOptions }: DecisionCall): Promise<DecisionResult> {
    const warnings: Warning[] = [];
    if (reasoning !== undefined && reasoning !== 'none' && reasoning !== 'provider-default')
      warnings.push({ type: 'unsupported', feature: 'reasoning', details: 'an answer is one forward pass' });
    const result = await this.#model.decide(
      stateOf(state),
      Object.fromEntries(Object.entries(questions).map(([name, question]) => [name, questionOf(question)])),
      {
        ...this.#options,
        ...(providerOptions?.dultra as DecideOptions),
        ...(abortSignal !== undefined && { signal: abortSignal }),
      },
    );
    const answers = Object.entries(result.answers);
    return {
      answers: Object.fromEntries(answers.map(([name, answer]) => [name, answerOf(answer)])),
      usage: { inputTokens: result.usage.inputTokens, outputTokens: 0 },
      warnings,
      providerMetadata: {
        dultra: {
          calibrated: result.calibrated,
          warnings: result.warnings,
          rows: result.usage.rows,
          answers: Object.fromEntries(answers.map(([name, answer]) => [name, basisOf(answer)])),
        },
      },
    };
  }
}
