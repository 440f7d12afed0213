// From a folder or a hub id to a model that generates.
import { readDecisions } from '../decisions/file';
import type { ModelConfig } from '../model/config';
import { parseDiffusionCheckpoint } from '../model/families';
import { loadTokenizer } from '../model/load-tokenizer';
import { type LoadModelOptions, loadWeights } from '../model/load-weights';
import { checkEngineOptions, type EngineOptions } from '../sampling/engine-options';
import { generationDefaults } from './generation-config';
import { MaskedDiffusionModel } from './masked-diffusion-model';

/**
 * Loads a LLaDA, LLaDOU or dUltra checkpoint.
 * @param source a folder with config.json and *.safetensors, a GGUF file of llama.cpp (also of a hub id: "org/name/file.gguf"), the folder of a finished run, of which it takes the
 * final model, or a hub id such as "org/name"; default: the embedded model.
 * @param options `engine`: what generation may take of the machine.
 * @throws TypeError, RangeError for options; DUltraError BAD_CHECKPOINT, NON_FINITE, OUT_OF_MEMORY, DEVICE_UNAVAILABLE,
 *   DOWNLOAD_FAILED, NATIVE_NOT_FOUND; `signal.reason`.
 */
export async function loadModel(
  source?: string,
  { engine = {}, ...options }: LoadModelOptions & { engine?: EngineOptions | undefined } = {},
): Promise<MaskedDiffusionModel> {
  checkEngineOptions(engine);
  const checkpoint = await loadWeights(source, options, {
    parse: parseDiffusionCheckpoint,
    async readFiles(from, { maskTokenId, embeddingSize, planner }: ModelConfig, generation) {
      const tokenizer = await loadTokenizer(from, maskTokenId, embeddingSize);
      const parts = { hasPlanner: planner !== null, hasTokenizer: tokenizer !== null };
      const decisions = await readDecisions(
        typeof from === 'string' ? from : null,
        tokenizer?.hasChatTemplate === true,
      );
      return { tokenizer, generationDefaults: generationDefaults(generation, parts), decisions };
    },
  });
  const { folder, storedDtype, json, files, native } = checkpoint;
  const { eosTokenIds, eosTokenId } = checkpoint.config;
  const config = { ...checkpoint.config, eosTokenId: eosTokenId ?? eosTokenIds[0] ?? null };
  return new MaskedDiffusionModel({ native, config, configJson: json, ...files, source: folder, storedDtype, engine });
}
