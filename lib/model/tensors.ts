// The one table of tensor names and shapes (the Hugging Face names of LLaDA and LLaDOU).
import { DUltraError } from '../errors';
import type { TensorEntry } from '../files/safetensors';
import type { NativeModelConfig, NativeTensorRef } from '../native';

/** Inputs of the planner's timestep MLP. */
const TIME_FEATURES = 256;

/** The embedding table, which is also the output head where weights are tied. */
export const EMBEDDING = 'model.transformer.wte.weight';

/** Every tensor that a model of this shape has: name to shape. */
export function expectedTensors(config: NativeModelConfig): Map<string, number[]> {
  const { dModel: c, mlpHiddenSize: f, embeddingSize: v } = config;
  const kv = (c / config.nHeads) * config.nKvHeads;
  const table = new Map<string, number[]>();
  const block = (prefix: string) => {
    table.set(`${prefix}.q_proj.weight`, [c, c]);
    table.set(`${prefix}.k_proj.weight`, [kv, c]);
    table.set(`${prefix}.v_proj.weight`, [kv, c]);
    table.set(`${prefix}.attn_out.weight`, [c, c]);
    table.set(`${prefix}.ff_proj.weight`, [f, c]);
    table.set(`${prefix}.up_proj.weight`, [f, c]);
    table.set(`${prefix}.ff_out.weight`, [c, f]);
    table.set(`${prefix}.attn_norm.weight`, [c]);
    table.set(`${prefix}.ff_norm.weight`, [c]);
    if (config.qkvBias) {
      table.set(`${prefix}.q_proj.bias`, [c]);
      table.set(`${prefix}.k_proj.bias`, [kv]);
      table.set(`${prefix}.v_proj.bias`, [kv]);
    }
    if (config.attnOutBias) table.set(`${prefix}.attn_out.bias`, [c]);
    if (config.mlpBias) {
      table.set(`${prefix}.ff_proj.bias`, [f]);
      table.set(`${prefix}.up_proj.bias`, [f]);
      table.set(`${prefix}.ff_out.bias`, [c]);
    }
  };
  const base = 'model.transformer';
  table.set(EMBEDDING, [v, c]);
  for (let i = 0; i < config.nLayers; i++) block(`${base}.blocks.${i}`);
  table.set(`${base}.ln_f.weight`, [c]);
  if (!config.weightTying) {
    table.set(`${base}.ff_out.weight`, [v, c]);
    if (config.headBias) table.set(`${base}.ff_out.bias`, [v]);
  }
  if (!config.planner) return table;
  for (let i = 0; i < config.planner.numLayers; i++) block(`mask_head.${i}`);
  if (config.planner.useAdaln) {
    table.set('time_embedding.mlp.0.weight', [c, TIME_FEATURES]);
    table.set('time_embedding.mlp.0.bias', [c]);
    table.set('time_embedding.mlp.2.weight', [c, c]);
    table.set('time_embedding.mlp.2.bias', [c]);
    if (config.planner.useMaskEmbeddings) table.set('mask_embedding.weight', [2, c]);
    for (const norm of ['norm_out_1', 'norm_out_2']) {
      table.set(`${norm}.modulation.weight`, [2 * c, c]);
      table.set(`${norm}.modulation.bias`, [2 * c]);
    }
  } else {
    table.set('norm_out_2.weight', [c]);
    table.set('norm_out_2.bias', [c]);
  }
  table.set('mask_linear.weight', [1, c]);
  table.set('mask_linear.bias', [1]);
  return table;
}

const NAMED = 5;

/**
 * Picks what the model needs out of a checkpoint's tensors.
 * @param checkpointName the checkpoint's name of a tensor of the native table
 * @throws DUltraError BAD_CHECKPOINT for missing tensors, wrong shapes or types that are not F32, BF16 or F16.
 */
export function matchTensors(
  config: NativeModelConfig,
  entries: Map<string, TensorEntry>,
  source: string,
  checkpointName: (tensor: string) => string,
): NativeTensorRef[] {
  // Checked first: a huge layer count must not build a huge name table.
  const layers = config.nLayers + (config.planner?.numLayers ?? 0);
  if (layers > entries.size)
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: its config has ${layers} layers, its files only ${entries.size} tensors`,
    );
  const refs: NativeTensorRef[] = [];
  const missing: string[] = [];
  for (const [name, shape] of expectedTensors(config)) {
    const inFile = checkpointName(name);
    const entry = entries.get(inFile);
    if (!entry) {
      missing.push(inFile);
      continue;
    }
    const where = `${entry.path}: tensor ${inFile}`;
    if (entry.shape.length !== shape.length || entry.shape.some((n, i) => n !== shape[i]))
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${where}: expected shape [${shape.join(', ')}], got [${entry.shape.join(', ')}]`,
      );
    const { dtype } = entry;
    if (dtype !== 'F32' && dtype !== 'BF16' && dtype !== 'F16')
      throw new DUltraError('BAD_CHECKPOINT', `${where}: expected F32, BF16 or F16, got ${dtype}`);
    refs.push({ name, file: entry.file, dtype, shape, begin: entry.begin, end: entry.end });
  }
  if (missing.length > 0) {
    const rest = missing.length > NAMED ? ` and ${missing.length - NAMED} more` : '';
    throw new DUltraError('BAD_CHECKPOINT', `${source}: missing tensors ${missing.slice(0, NAMED).join(', ')}${rest}`);
  }
  return refs;
}
