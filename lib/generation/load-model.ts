// From a folder or a hub id to a model that generates.
import { parseDiffusionCheckpoint } from '../model/families';
import { type LoadModelOptions, loadWeights, withFiles } from '../model/load-weights';
import { loadTokenizer } from '../model/tokenizer';
import { readGenerationDefaults } from './generation-config';
import { MaskedDiffusionModel } from './masked-diffusion-model';

/**
 * Loads a LLaDA, LLaDOU or dUltra checkpoint.
 * @param source a folder with config.json and *.safetensors, or a hub id such as "org/name"; default: the embedded
 * model.
 * @throws TypeError, RangeError for options; DUltraError BAD_CHECKPOINT, NON_FINITE, OUT_OF_MEMORY, DEVICE_UNAVAILABLE,
 *   DOWNLOAD_FAILED, NATIVE_NOT_FOUND; `signal.reason`.
 */
export async function loadModel(source?: string, options: LoadModelOptions = {}): Promise<MaskedDiffusionModel> {
  const { folder, json, config, native: loaded } = await loadWeights(source, options, parseDiffusionCheckpoint);
  return withFiles(loaded, async () => {
    const tokenizer = await loadTokenizer(folder, config.maskTokenId, config.embeddingSize);
    const generationDefaults = await readGenerationDefaults(folder, config.planner !== null);
    return new MaskedDiffusionModel({
      native: loaded,
      config,
      configJson: json,
      tokenizer,
      generationDefaults,
      source: folder,
    });
  });
}
