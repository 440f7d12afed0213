// Random weights of new tensors.
import { deriveSeed, Purpose, Random } from '../random';

/** Multiplier of N(0, 1) for each kind of tensor; null: not random. */
function deviation(name: string, shape: readonly number[], nLayers: number, plannerLayers: number): number | null {
  const fanIn = shape[shape.length - 1];
  if (/(norm|ln_f)\.weight$|norm_out_\d\.weight$|\.bias$/.test(name)) return null;
  if (/wte\.weight$/.test(name)) return 1 / Math.sqrt(fanIn);
  if (/modulation|mask_embedding|mask_linear/.test(name)) return 0.02;
  // Outputs of the residual branches shrink with the depth, as in GPT-2.
  const depth = name.startsWith('mask_head') ? plannerLayers : nLayers;
  return (/(attn_out|ff_out)\.weight$/.test(name) ? 1 / Math.sqrt(2 * depth) : 1) / Math.sqrt(fanIn);
}

/**
 * A new tensor's values: norms are 1, biases 0, everything else is normal.
 * @param name in native/model/tensors @param stream number of its random stream, so that the values do not depend on
 * which other tensors there are
 */
export function initialWeights(
  name: string,
  shape: readonly number[],
  { nLayers, plannerLayers, seed, stream }: { nLayers: number; plannerLayers: number; seed: bigint; stream: number },
): Float32Array {
  const values = new Float32Array(shape.reduce((product, n) => product * n, 1));
  const scale = deviation(name, shape, nLayers, Math.max(1, plannerLayers));
  if (scale === null) return values.fill(name.endsWith('.bias') ? 0 : 1);
  const normals = new Random(deriveSeed(seed, Purpose.initialisation, stream));
  return values.map(() => normals.normal() * scale);
}
