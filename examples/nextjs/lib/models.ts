// The model of all routes. It is loaded with the first request, once for the process: reloads of `next dev` keep it.
import { loadModel } from 'dultra';
import { createDultra, type DultraProvider } from 'dultra/ai-sdk';

const kept = globalThis as { dultra?: Promise<DultraProvider> | undefined };

export const NAME = 'world';

/** The provider of the AI SDK. Every call of it shares forward passes with those that run at the same time. */
export function provider(): Promise<DultraProvider> {
  kept.dultra ??= loadModel(NAME)
    .then((model) => createDultra({ models: { [NAME]: model } }))
    .catch((error) => {
      kept.dultra = undefined;
      throw error;
    });
  return kept.dultra;
}
