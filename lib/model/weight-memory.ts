// How much memory a model's weights take, by how they are held.
import { BLOCKS } from '../files/blocks';
import type { ModelConfig } from './config';
import { GROUP, QUANTISE } from './quantised-folder';
import { EMBEDDING, expectedTensors, isHeldWide } from './tensors';

/** Bytes of a model's weights in each form that `loadModel` can hold them in. */
export interface WeightMemory {
  float32: number;
  bfloat16: number;
  /** `quantize: "q8"` and `"q4"`, and folders and files of these. */
  q8: number;
  q4: number;
}

/**
 * What a model's weights take: norms, biases and routers in fp32 in every form; with q8 and q4 the planner head, and
 * matrices whose rows are no multiple of 32 numbers, in fp32 too. The cache of keys and values is not among it
 * (`model.cacheBytes`), nor is what a pass needs.
 * @param config of a model, `model.config`
 */
export function weightMemory(config: ModelConfig): WeightMemory {
  const sums: WeightMemory = { float32: 0, bfloat16: 0, q8: 0, q4: 0 };
  for (const [name, shape] of expectedTensors(config)) {
    const numbers = shape.reduce((product, n) => product * n, 1);
    const isWide = isHeldWide({ name, shape });
    const isQuantised = !isWide && name.startsWith('model.') && shape.length === 2 && shape[1] % GROUP === 0;
    const isInBlock = name.includes('.blocks.') && name !== EMBEDDING;
    const blocks = (type: 'q8' | 'q4') => (numbers / GROUP) * BLOCKS[QUANTISE[type]].bytes;
    sums.float32 += 4 * numbers;
    sums.bfloat16 += (isWide ? 4 : 2) * numbers;
    sums.q8 += isQuantised ? blocks('q8') : 4 * numbers;
    sums.q4 += isQuantised ? blocks(isInBlock ? 'q4' : 'q8') : 4 * numbers;
  }
  return sums;
}
