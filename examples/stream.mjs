// Prints a completion after each forward pass, one line per pass: node examples/stream.mjs
import { setTimeout } from 'node:timers/promises';
import { loadModel, parseSampler } from 'dultra';

const prompt = process.argv[2] ?? 'Sort these: pear, apple, kiwi, banana';
const sampler = parseSampler(process.argv[3] ?? 'confidence:0.9');
const model = await loadModel();

const pieces = []; // of the text, each in its place
for await (const { step, unmasked, ids, remaining, result } of model.generateStream(prompt, { sampler })) {
  for (let i = pieces.length; i < ids.length; i++) pieces.push('░');
  for (const { position, text } of unmasked) pieces[position] = text; // '' for the end-of-sequence token
  const end = result ? `(${result.nfe} passes)` : `(${remaining} to go)`;
  console.log(`${String(step).padStart(2)}  ${pieces.join('').trimStart()}  ${end}`);
  if (process.stdout.isTTY) await setTimeout(300); // slow enough to watch
}
model.dispose();
