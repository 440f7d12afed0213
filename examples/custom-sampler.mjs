// A custom sampler, a function from masked positions to those to unmask: node examples/custom-sampler.mjs
import { loadModel } from 'dultra';

/**
 * Positions with confidence 0.9 or more, but never two neighbours in one pass, because neighbouring tokens depend most
 * on each other. If it returns none, the most confident position is unmasked, so that every pass makes progress.
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

const model = await loadModel('word-problems');
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
