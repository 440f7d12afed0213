// Shared by families whose blocks are mixtures of experts.
import { z } from 'zod';
import { badFile, checkFields } from '../../files/json';
import type { NativeExperts } from '../../native';
import { DECODER_KEYS } from './decoder';
import { count } from './definition';
import { diffusionDecoderName } from './diffusion-decoder';

/** Experts of a layer that the native core takes at most. */
const MOST_EXPERTS = 1024;

const schema = z.looseObject({
  num_experts: z.int().min(2).max(MOST_EXPERTS),
  num_experts_per_tok: count(MOST_EXPERTS),
  partial_rotary_factor: z.number().positive().max(1).nullish(),
});

/** Keys of config.json that every mixture of experts has. */
export const EXPERT_KEYS: readonly string[] = Object.keys(schema.shape);

/** What they accept of a decoder's keys that are not read: they read the share of rotated channels, and see both ways. */
export const EXPERT_ACCEPTED: Readonly<Record<string, readonly unknown[]>> = Object.fromEntries([
  ...Object.entries(DECODER_KEYS.accepted).filter(([key]) => key !== 'partial_rotary_factor'),
  ['is_causal', [false]],
]);

/** What {@link expertsOf} needs beside the keys that all families share. */
type Traits = Omit<NativeExperts, 'count' | 'perToken'>;

/** The experts of a config.json. @throws DUltraError BAD_CHECKPOINT for numbers that do not divide */
export function expertsOf(
  json: Record<string, unknown>,
  file: string,
  traits: Traits,
  groupKeys: { groups: string; kept: string } = { groups: 'groups', kept: 'groups per token' },
): NativeExperts {
  const { num_experts: all, num_experts_per_tok: perToken } = checkFields(schema, json, file);
  const { groups, groupsPerToken } = traits;
  if (groups > 1 && (all % groups !== 0 || all / groups < 2))
    throw badFile(
      file,
      `${groupKeys.groups}: expected num_experts (${all}) to divide into groups of at least two, got ${groups}`,
    );
  if (groupsPerToken > groups)
    throw badFile(file, `${groupKeys.kept}: expected at most ${groupKeys.groups} (${groups}), got ${groupsPerToken}`);
  const open = (all / groups) * groupsPerToken;
  if (perToken > open)
    throw badFile(
      file,
      `num_experts_per_tok: expected at most ${groups > 1 ? `the ${open} experts of ${groupKeys.kept} (${groupsPerToken}) groups` : `num_experts (${all})`}, got ${perToken}`,
    );
  return { count: all, perToken, ...traits };
}

/** Numbers of a head that the rotary embedding turns. @throws DUltraError BAD_CHECKPOINT where they are no even number */
export function ropeDimOf(json: Record<string, unknown>, file: string, headDim: number): number {
  const { partial_rotary_factor: part } = checkFields(schema, json, file);
  // As int() of the reference; a float's error must not take a pair off.
  const dim = Math.trunc(headDim * (part ?? 1) + 1e-6);
  if (dim < 2 || dim % 2 !== 0)
    throw badFile(
      file,
      `partial_rotary_factor: expected an even part of the head size (${headDim}), got ${part}, which is ${dim}`,
    );
  return dim;
}

const PROJECTIONS: Readonly<Record<string, string>> = {
  ff_proj: 'gate_proj',
  up_proj: 'up_proj',
  ff_out: 'down_proj',
};

/** A tensor of an expert, in the native table. */
export interface ExpertTensor {
  layer: string;
  expert: number;
  /** As checkpoints call it, such as "gate_proj". */
  projection: string;
}

/** What a tensor of the native table is of an expert; null for every other. */
export function expertTensor(tensor: string): ExpertTensor | null {
  const [, layer, expert, module] =
    /^model\.transformer\.blocks\.(\d+)\.experts\.(\d+)\.(\w+)\.weight$/.exec(tensor) ?? [];
  return layer === undefined ? null : { layer, expert: Number(expert), projection: PROJECTIONS[module] };
}

/**
 * A checkpoint's name of a tensor of the native table: of an expert, of a router, of the MLP that every token takes
 * where a layer has experts, and else as decoders have it.
 */
export function expertName(
  tensor: string,
  experts: NativeExperts | null | undefined,
  names: { routerBias: string; shared: string },
): string {
  const expert = expertTensor(tensor);
  if (expert) return `model.layers.${expert.layer}.mlp.experts.${expert.expert}.${expert.projection}.weight`;
  const [, layer, module, kind] = /^model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)$/.exec(tensor) ?? [];
  if (module === 'router') return `model.layers.${layer}.${kind === 'bias' ? names.routerBias : 'mlp.gate.weight'}`;
  if (module !== undefined && module in PROJECTIONS && experts?.layers[Number(layer)])
    return `model.layers.${layer}.${names.shared}.${PROJECTIONS[module]}.${kind}`;
  return diffusionDecoderName(tensor);
}
