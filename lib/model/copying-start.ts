// A start of attention from which copying is learnt in far fewer steps (docs/training-a-planner.md).
import type { ModelConfig } from './config';

/** Share of what attention reads that it writes back. */
const GAIN = 0.35;
/** Size of what all embeddings have in common, beside that of what they have of their own. */
const COMMON = 0.5;
/** Attention from a position to its neighbour: the sum over pairs of dimensions of this, over the root of the head size. */
const SHARPNESS = 6;

type Heads = Pick<ModelConfig, 'dModel' | 'nHeads' | 'nKvHeads' | 'headDim' | 'ropeTheta'>;

/** Neighbours that the first two heads of the first layer attend to. */
const NEIGHBOURS = [-1, 1];

/** What all embeddings have in common, of unit size in each dimension. */
const common = (dimension: number): number => (dimension % 2 === 0 ? -1 : 1);

/**
 * An output matrix of attention that writes back what is read: GAIN times the transposed value matrix. Query heads that
 * share a value head share its rows.
 */
export function writingBack(values: Float32Array, { dModel, nHeads, nKvHeads, headDim }: Heads): Float32Array {
  const width = nHeads * headDim;
  const out = new Float32Array(dModel * width);
  for (let row = 0; row < dModel; row++)
    for (let column = 0; column < width; column++) {
      const head = Math.floor((Math.floor(column / headDim) * nKvHeads) / nHeads);
      out[row * width + column] = GAIN * values[(head * headDim + (column % headDim)) * dModel + row];
    }
  return out;
}

/** Adds to the embedding table what all embeddings have in common, which heads can tell positions by. */
export function withCommonPart(embeddings: Float32Array, { dModel }: Heads): Float32Array {
  const size = COMMON / Math.sqrt(dModel);
  return embeddings.map((value, i) => value + size * common(i % dModel));
}

/**
 * Query or key matrix of the first layer, whose first two heads attend to the token before and the token after: their
 * keys are the same everywhere, and their queries are turned by one position, so that the product is greatest there.
 */
export function attendingToNeighbours(
  matrix: Float32Array,
  which: 'query' | 'key',
  { dModel, nHeads, nKvHeads, headDim, ropeTheta }: Heads,
): Float32Array {
  const half = headDim / 2;
  // After the norm, each embedding has this much of the common part.
  const size = Math.sqrt(SHARPNESS) / (dModel * (COMMON / Math.hypot(1, COMMON)));
  const out = matrix.slice();
  const heads = new Set<number>();
  NEIGHBOURS.slice(0, nHeads).forEach((offset, query) => {
    const head = which === 'query' ? query : Math.floor((query * nKvHeads) / nHeads);
    if (heads.has(head)) return;
    heads.add(head);
    for (let pair = 0; pair < half; pair++) {
      const angle = which === 'query' ? offset * ropeTheta ** ((-2 * pair) / headDim) : 0;
      for (let j = 0; j < dModel; j++) {
        out[(head * headDim + pair) * dModel + j] += size * Math.cos(angle) * common(j);
        out[(head * headDim + pair + half) * dModel + j] += size * Math.sin(angle) * common(j);
      }
    }
  });
  return out;
}
