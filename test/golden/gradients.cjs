// What the kinds that compare gradients share: the comparison, and requests for equal rows.

/**
 * Gradients by the case's rule: per tensor max|diff| <= 1e-3 max|grad| + 1e-6, over all of them relative L2 <= 5e-4.
 */
function compareGradients(check, actual, expected) {
  const rule = { scaled: 1e-3, absolute: 1e-6, relativeL2: 5e-4 };
  const byName = new Map(actual.map((tensor) => [tensor.name, tensor]));
  let difference = 0;
  let size = 0;
  for (const [name, { data }] of Object.entries(expected)) {
    const found = byName.get(name);
    if (!found) {
      check.problems.push(`gradient of ${name}: missing`);
      continue;
    }
    check.exact(`gradient of ${name}: size`, found.data.length, data.length);
    const largest = data.reduce((max, g) => Math.max(max, Math.abs(g)), 0);
    let worst = 0;
    for (let i = 0; i < data.length; i++) {
      const d = Math.abs(found.data[i] - data[i]);
      worst = Math.max(worst, Number.isNaN(d) ? Infinity : d);
      difference += d * d;
      size += data[i] * data[i];
    }
    const scaled = largest > 0 ? worst / largest : worst;
    check.deviations['grads (scaled)'] = Math.max(check.deviations['grads (scaled)'] ?? 0, scaled);
    if (!(worst <= rule.scaled * largest + rule.absolute))
      check.problems.push(`gradient of ${name}: off by ${worst}, largest element ${largest}`);
  }
  // A gradient that the case has not must be nothing.
  for (const { name, data } of actual) {
    if (name in expected) continue;
    const largest = data.reduce((max, g) => Math.max(max, Math.abs(g)), 0);
    if (!(largest <= rule.absolute)) check.problems.push(`gradient of ${name}: expected none, got up to ${largest}`);
  }
  if (!(Math.sqrt(difference) <= rule.relativeL2 * Math.sqrt(size) + rule.absolute))
    check.problems.push(`gradients: relative L2 difference ${Math.sqrt(difference / size)}`);
  check.deviations['grads (L2)'] = size > 0 ? Math.sqrt(difference / size) : Math.sqrt(difference);
}

const offsetsOf = (lengths) =>
  Int32Array.from([0, ...lengths].map((_, i, all) => all.slice(1, i + 1).reduce((sum, n) => sum + n, 0)));

/** A score request for equal rows (B, L), with candidates per row. */
function rowsRequest(ids, batch, length, candidates, extra) {
  return {
    keep: true,
    ids: Int32Array.from(ids),
    offsets: offsetsOf(new Array(batch).fill(length)),
    candidateOffsets: offsetsOf(candidates.map((positions) => positions.length)),
    positions: Int32Array.from(candidates.flat()),
    ...extra,
  };
}

async function withTrainer(model, options, body) {
  const trainer = await model.createTrainer(options);
  try {
    return await body(trainer);
  } finally {
    trainer.dispose();
  }
}

module.exports = { compareGradients, rowsRequest, withTrainer };
