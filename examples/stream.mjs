// Prints a completion after each forward pass, one line per pass: node examples/stream.mjs
import { setTimeout } from 'node:timers/promises';
import { loadModel, parseSampler } from 'dultra';

const prompt = process.argv[2] ?? 'anna had 9 coins , then loses 4 . how many now ? words';
const sampler = parseSampler(process.argv[3] ?? 'entropy-sum:0.2');
const model = await loadModel();

const words = [];
for await (const { step, unmasked, ids, remaining, result } of model.generateStream(prompt, { sampler })) {
  for (let i = words.length; i < ids.length; i++) words.push('░');
  for (const { position, text } of unmasked) words[position] = text; // '' for the end-of-sequence token
  const line = words.filter((word) => word !== '').join(' ');
  console.log(
    `${String(step + 1).padStart(2)}  ${line}${result ? `  (${result.nfe} passes)` : `  (${remaining} to go)`}`,
  );
  if (process.stdout.isTTY) await setTimeout(300); // slow enough to watch
}
model.dispose();
