// dultra/ai-sdk: models of this process for Vercel's AI SDK: language models (6 and 7) and decision models (7).
import { optionError } from '../errors';
import type { DecideOptions, GenerateOptions, MaskedDiffusionModel } from '../index';
import { DUltraDecisionModel } from './decision-model';
import { DUltraLanguageModel } from './language-model';
import type { DecisionModel, LanguageModel } from './types';

export type * from './types';

/** What {@link createDultra} makes: a function from names to models, and the same as a method. */
export interface DultraProvider {
  (name: string): LanguageModel;
  languageModel(name: string): LanguageModel;
  /** For `experimental_decide` of ai 7. */
  decisionModel(name: string): DecisionModel;
}

/** Options of {@link createDultra}. */
export interface DultraProviderOptions {
  /** Loaded models by the names that they are asked for by. They stay the caller's, who disposes of them. */
  models: Readonly<Record<string, MaskedDiffusionModel>>;
  /**
   * What the SDK has no setting for: `sampler`, `cache`, `blockLength` and others. `providerOptions: { dultra: { … } }` of
   * a call comes before it, and the SDK's own settings before both.
   */
  options?: GenerateOptions | undefined;
  /** The same of decisions: `scorer`, `template`, `minOptionMass` and others. */
  decisions?: DecideOptions | undefined;
}

/**
 * A provider of the AI SDK over models of this process: `generateText({ model: createDultra({ models: { tiny } })('tiny'),
 * prompt })`. Rows of all calls share forward passes. Every call goes through the model's chat template, or, where it has
 * none, gets the text of its messages. @throws RangeError for a name that is none of the models'
 */
export function createDultra({ models, options = {}, decisions = {} }: DultraProviderOptions): DultraProvider {
  const modelOf = (name: string): MaskedDiffusionModel => {
    if (Object.hasOwn(models, name)) return models[name];
    throw optionError(
      RangeError,
      'name',
      `expected one of ${Object.keys(models).join(', ')}, got ${JSON.stringify(name)}`,
    );
  };
  const languageModel = (name: string): LanguageModel => new DUltraLanguageModel(name, modelOf(name), options);
  const decisionModel = (name: string): DecisionModel => new DUltraDecisionModel(name, modelOf(name), decisions);
  return Object.assign((name: string) => languageModel(name), { languageModel, decisionModel });
}
