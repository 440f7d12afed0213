// What weights take by how they are held: LLaDA-8B's by hand, and a small model's as it says itself.
import { loadModel, weightMemory } from '../lib';
import { parseDiffusionCheckpoint } from '../lib/model/families';
import { makeCheckpoint } from './checkpoints';

test('of a model of the shape of LLaDA-8B', () => {
  const json = {
    model_type: 'llada',
    architectures: ['LLaDAModelLM'],
    d_model: 4096,
    n_heads: 32,
    n_kv_heads: 32,
    n_layers: 32,
    mlp_hidden_size: 12288,
    vocab_size: 126464,
    embedding_size: 126464,
    max_sequence_length: 4096,
    mask_token_id: 126336,
    weight_tying: false,
  };
  const { config } = parseDiffusionCheckpoint(json, 'config.json', new Map());
  const inBlocks = 32 * (4 * 4096 * 4096 + 3 * 4096 * 12288);
  const outside = 2 * 126464 * 4096;
  const norms = (2 * 32 + 1) * 4096;
  expect(weightMemory(config)).toEqual({
    float32: 4 * (inBlocks + outside + norms),
    bfloat16: 2 * (inBlocks + outside) + 4 * norms,
    q8: ((inBlocks + outside) / 32) * 34 + 4 * norms,
    q4: (inBlocks / 32) * 18 + (outside / 32) * 34 + 4 * norms,
  });
});

test('is what a loaded model takes', async () => {
  const { folder } = makeCheckpoint({ config: { d_model: 64, n_heads: 4, n_kv_heads: 2, mlp_hidden_size: 96 } });
  for (const quantize of ['q8', 'q4'] as const) {
    await using model = await loadModel(folder, { quantize });
    // The planner's bias is a number beside the arrays.
    expect(model.info.weightBytes + 4).toBe(weightMemory(model.config)[quantize]);
  }
});
