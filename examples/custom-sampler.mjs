// A sampler is a function from the masked positions to those of them to unmask now: node examples/custom-sampler.mjs
import { loadModel } from 'dultra';

/**
 * Positions whose token is sure (0.9 or more), but never two neighbours in one pass: neighbours depend on each other
 * most. Where it returns none, the most confident position is let through, so that every pass makes progress.
 */
function spread({ positions, confidences }) {
  const order = [...positions.keys()].sort((a, b) => confidences[b] - confidences[a]);
  const chosen = new Set();
  for (const i of order) {
    if (confidences[i] < 0.9) break;
    if (!chosen.has(positions[i] - 1) && !chosen.has(positions[i] + 1)) chosen.add(positions[i]);
  }
  return [...chosen];
}

const model = await loadModel();
const prompts = [
  'tom has 7 apples . he buys 5 . how many now ? sum',
  'lily with 3 books and she finds 8 . how many now ? words',
];
for (const [name, sampler] of Object.entries({
  spread,
  confidence: { type: 'confidence', threshold: 0.9 },
  planner: { type: 'planner' },
})) {
  const rows = await model.generateBatch(prompts, { sampler });
  for (const { text, nfe } of rows) console.log(`${name}, ${nfe} passes: ${text}`);
}
model.dispose();
