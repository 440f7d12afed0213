// Recorded denoising steps as bytes, so that every process knows the rollouts of all of them: the replay is then dealt
// out by tokens, whoever has drawn a rollout.
import type { ProcessGroup } from '../../distributed/process-group';
import type { ReplayRow } from './replay';

/** Arrays of a step: integers first, as int32; then likelihoods, fp32. */
const INTEGERS = ['ids', 'computed', 'positions', 'tokens', 'selected'] as const;
const FLOATS = ['oldLogLikelihoods', 'referenceLogLikelihoods'] as const;
/** Numbers before the arrays: rollout, step, begin, forced, the bits of timestep (2), and the length of each array. */
const HEAD = 6 + INTEGERS.length + FLOATS.length;

/** Steps as bytes. */
export function packSteps(steps: readonly ReplayRow[]): Uint8Array {
  const words = steps.reduce(
    (sum, step) => sum + HEAD + [...INTEGERS, ...FLOATS].reduce((n, name) => n + (step[name]?.length ?? 0), 0),
    0,
  );
  const out = new Int32Array(words);
  const floats = new Float32Array(out.buffer);
  const double = new Float64Array(1);
  let at = 0;
  for (const step of steps) {
    double[0] = step.timestep;
    const { rollout, begin, forced } = step;
    out.set([rollout, step.step, begin, Number(forced), ...new Int32Array(double.buffer)], at);
    at += 6;
    for (const name of INTEGERS) out[at++] = step[name].length;
    for (const name of FLOATS) out[at++] = step[name]?.length ?? 0;
    for (const name of INTEGERS) {
      out.set(step[name], at);
      at += step[name].length;
    }
    for (const name of FLOATS) {
      const values = step[name];
      if (!values) continue;
      floats.set(values, at);
      at += values.length;
    }
  }
  return new Uint8Array(out.buffer);
}

/** What {@link packSteps} has packed. */
export function unpackSteps(bytes: Uint8Array): ReplayRow[] {
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const floats = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const steps: ReplayRow[] = [];
  let at = 0;
  while (at < words.length) {
    const [rollout, step, begin, forced] = words.subarray(at, at + 4);
    const [timestep] = new Float64Array(words.slice(at + 4, at + 6).buffer);
    const lengths = words.subarray(at + 6, at + HEAD);
    at += HEAD;
    const [ids, computed, positions, tokens, selected] = INTEGERS.map((_, i) => {
      at += lengths[i];
      return words.slice(at - lengths[i], at);
    });
    const [oldLogLikelihoods, reference] = FLOATS.map((_, i) => {
      const length = lengths[INTEGERS.length + i];
      at += length;
      return floats.slice(at - length, at);
    });
    const arrays = { ids, computed, positions, tokens, selected: Uint8Array.from(selected), oldLogLikelihoods };
    // Every step has candidates.
    const scored = reference.length > 0 && { referenceLogLikelihoods: reference };
    steps.push({ rollout, step, begin, forced: forced === 1, timestep, ...arrays, ...scored });
  }
  return steps;
}

/** The steps of every process, those of the first ranks first. */
export async function gatherSteps(group: ProcessGroup, own: readonly ReplayRow[]): Promise<ReplayRow[]> {
  if (group.size === 1) return [...own];
  return (await group.allGatherBytes(packSteps(own))).flatMap(unpackSteps);
}
