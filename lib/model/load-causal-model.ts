// From a folder or a hub id to an autoregressive model.
import { optionError } from '../errors';
import { CausalModel } from './causal-model';
import type { CausalConfig } from './config';
import { parseCausalCheckpoint } from './families';
import { readStopStrings } from './generation-file';
import { loadTokenizer } from './load-tokenizer';
import { type LoadModelOptions, loadWeights } from './load-weights';

/**
 * Loads an autoregressive model of the Llama family (Llama, Qwen2, Qwen2.5) in the Hugging Face layout: a teacher, or
 * what diffusion is compared with.
 * @param source a folder with config.json and *.safetensors, or a hub id such as "Qwen/Qwen2.5-0.5B-Instruct"
 * @throws as {@link loadModel}
 */
export async function loadCausalModel(source: string, options: LoadModelOptions = {}): Promise<CausalModel> {
  if (source === undefined) throw optionError(TypeError, 'source', 'expected a folder or a hub id, got undefined');
  const { folder, config, files, native } = await loadWeights(source, options, {
    parse: parseCausalCheckpoint,
    async readFiles(from, { maskTokenId, embeddingSize }: CausalConfig, generation) {
      const tokenizer = await loadTokenizer(from, maskTokenId, embeddingSize);
      const stop = readStopStrings(generation);
      return { tokenizer, generationDefaults: tokenizer && stop.length > 0 ? { stop } : {} };
    },
  });
  return new CausalModel({ native, config, ...files, source: folder });
}
