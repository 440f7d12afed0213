// Samplers, cache policies and prompts that the tests of caches share.
import type { CachePolicy, GenerateOptions, Prompt, SamplerObject } from '../lib';

export const MASK = 96; // of the golden model "base"
export const EOS = 95;
export const prompts: Prompt[] = [
  { promptIds: [5, 17, 3] },
  { promptIds: [40, 41, 42, 43, 44, 45, 46, 47] },
  { promptIds: [1] },
];
export const sampled: GenerateOptions = { maxTokens: 24, blockLength: 8, temperature: 0.8, seed: 11, stopAtEos: false };

export const samplers: [string, SamplerObject][] = [
  ['planner', { type: 'planner' }],
  ['bernoulli', { type: 'planner', select: 'bernoulli', probabilityScale: 0.3 }],
  ['confidence', { type: 'confidence', threshold: 0.2 }],
  ['fixed', { type: 'fixed', steps: 6 }],
  ['fixed by entropy', { type: 'fixed', steps: 6, remasking: 'low_entropy' }],
  ['dream', { type: 'dream', steps: 6, algTemp: 0.5 }],
  ['sub-blocks', { type: 'sub-blocks', threshold: 0.2, length: 3 }],
  ['d3llm', { type: 'd3llm', threshold: 2, blockAddThreshold: 0.2 }],
];
export const caches: [string, CachePolicy][] = [
  ['prefix', { type: 'prefix' }],
  ['dual', { type: 'dual' }],
  ['dual, planner fresh', { type: 'dual', planner: 'fresh' }],
  ['dual, bf16', { type: 'dual', dtype: 'bfloat16' }],
  ['refresh', { type: 'refresh', every: 3 }],
  ['refresh by changes', { type: 'refresh', changed: 0.1, planner: 'fresh' }],
  ['delayed', { type: 'delayed', delay: 1, every: 4 }],
];
export const pairs = samplers.flatMap(([s, sampler]) =>
  caches.map(([c, cache]): [string, SamplerObject, CachePolicy] => [`${s} + ${c}`, sampler, cache]),
);

export const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);
