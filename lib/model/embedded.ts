// The models that the package brings along.
import { existsSync } from 'node:fs';
import { packageFile } from '../package';

/** Names of the embedded models, which `loadModel` takes like a folder; the first is what it loads without a source. */
export const EMBEDDED_MODELS = ['world', 'world-grpo', 'word-problems', 'word-problems-base'] as const;

/** Name of an embedded model. */
export type EmbeddedModel = (typeof EMBEDDED_MODELS)[number];

/** The folder of an embedded model. */
export const embeddedFolder = (name: EmbeddedModel = EMBEDDED_MODELS[0]): string => packageFile('models', name);

/** The folder of an embedded model where a source names one, or none at all; a folder of that name goes first. */
export function embeddedSource(source: string | undefined): string | null {
  if (source === undefined) return embeddedFolder();
  const name = EMBEDDED_MODELS.find((embedded) => embedded === source);
  return name === undefined || existsSync(name) ? null : embeddedFolder(name);
}
