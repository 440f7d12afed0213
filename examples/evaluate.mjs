// Accuracy against forward passes, for several samplers on the same weights: node examples/evaluate.mjs [prompts]
import { datasets, evaluate, loadModel, parseSampler, writeReport } from 'dultra';

const count = Number(process.argv[2] ?? 256);
const file = process.argv[3]; // optional, for example report.html
const names = ['planner', 'planner-round', 'entropy-sum:0.2', 'confidence:0.9', 'fixed:4', 'fixed:24'];
const samplers = Object.fromEntries(names.map((name) => [name, parseSampler(name)]));

const model = await loadModel('word-problems');
const evaluation = await evaluate(model, { dataset: datasets.byName('st1'), samplers, count, traces: 4 });
for (const { name, accuracy, accuracyError, nfe, tokensPerForward } of evaluation.results) {
  const right = `${(100 * accuracy).toFixed(1)} ± ${(100 * accuracyError).toFixed(1)} %`;
  console.log(
    `${name.padEnd(16)} ${right.padStart(14)}  ${nfe.mean.toFixed(2).padStart(6)} passes  ${tokensPerForward.untilEos.toFixed(1).padStart(5)} tokens/pass`,
  );
}
if (file)
  await writeReport(file, {
    title: 'Word problems',
    summary: 'The embedded model for word problems.',
    runs: [{ label: 'embedded', evaluation, group: (name) => name.split(':')[0] }],
  });
model.dispose();
