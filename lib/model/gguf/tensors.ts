// What GGUF files call the tensors of the native table.

import type { NativeModelConfig } from '../../native';
import type { TensorPlace } from '../families';
import { expertTensor } from '../families/experts';

const OUTSIDE_BLOCKS: Readonly<Record<string, string>> = {
  'model.transformer.wte.weight': 'token_embd.weight',
  'model.transformer.ln_f.weight': 'output_norm.weight',
  'model.transformer.ff_out.weight': 'output.weight',
};
const PARTS: Readonly<Record<string, string>> = {
  q_proj: 'attn_q',
  k_proj: 'attn_k',
  v_proj: 'attn_v',
  attn_out: 'attn_output',
  attn_norm: 'attn_norm',
  q_norm: 'attn_q_norm',
  k_norm: 'attn_k_norm',
  ff_norm: 'ffn_norm',
  ff_proj: 'ffn_gate',
  up_proj: 'ffn_up',
  ff_out: 'ffn_down',
  router: 'ffn_gate_inp',
};
const EXPERTS: Readonly<Record<string, string>> = {
  gate_proj: 'ffn_gate_exps',
  up_proj: 'ffn_up_exps',
  down_proj: 'ffn_down_exps',
};

/** A GGUF file's name of a tensor of the native table; the planner head keeps its own names, which no file has. */
export function ggufName(tensor: string): string {
  const expert = expertTensor(tensor);
  if (expert) return `blk.${expert.layer}.${EXPERTS[expert.projection]}.weight`;
  const [, layer, module, kind] = /^model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)$/.exec(tensor) ?? [];
  if (module !== undefined) return `blk.${layer}.${PARTS[module] ?? module}.${kind}`;
  return OUTSIDE_BLOCKS[tensor] ?? tensor;
}

/** Where a file has the matrix of an expert: among those of all experts of the layer. */
export function ggufPlacesOf(tensor: string, { experts, dModel }: NativeModelConfig): TensorPlace[] {
  const expert = expertTensor(tensor);
  if (!expert || !experts) return [];
  const { count, hiddenSize } = experts;
  const [rows, columns] = expert.projection === 'down_proj' ? [dModel, hiddenSize] : [hiddenSize, dModel];
  return [{ name: ggufName(tensor), shape: [count, rows, columns], row: expert.expert * rows }];
}
