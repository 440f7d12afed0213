// dultra/ai-sdk: models of this process as language models of Vercel's AI SDK (6 and 7).
import { optionError } from '../errors';
import type { GenerateOptions, MaskedDiffusionModel } from '../index';
import { DUltraLanguageModel } from './language-model';
import type { LanguageModel } from './types';

export type * from './types';

/** What {@link createDultra} makes: a function from names to models, and the same as a method. */
export interface DultraProvider {
  (name: string): LanguageModel;
  languageModel(name: string): LanguageModel;
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
}

/**
 * A provider of the AI SDK over models of this process: `generateText({ model: createDultra({ models: { tiny } })('tiny'),
 * prompt })`. Rows of all calls share forward passes. Every call goes through the model's chat template, or, where it has
 * none, gets the text of its messages. @throws RangeError for a name that is none of the models'
 */
export function createDultra({ models, options = {} }: DultraProviderOptions): DultraProvider {
  const languageModel = (name: string): LanguageModel => {
    if (!Object.hasOwn(models, name))
      throw optionError(
        RangeError,
        'name',
        `expected one of ${Object.keys(models).join(', ')}, got ${JSON.stringify(name)}`,
      );
    return new DUltraLanguageModel(name, models[name], options);
  };
  return Object.assign((name: string) => languageModel(name), { languageModel });
}
