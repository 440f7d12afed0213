// Generates with the embedded model, which knows a small world: node examples/generate.mjs
import { loadModel } from 'dultra';

const model = await loadModel(); // or a folder, or a hub id such as 'GSAI-ML/LLaDA-8B-Instruct'

const prompt = process.argv[2] ?? 'Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.';
const { text, tokens, nfe, tokensPerForward } = await model.generate(prompt);
console.log(text);
console.log(`${tokens} tokens in ${nfe} forward passes: ${tokensPerForward.toFixed(1)} tokens per pass`);

// The same weights, one token per forward pass.
const slow = await model.generate(prompt, { sampler: { type: 'fixed' } });
console.log(slow.text);
console.log(`${slow.tokens} tokens in ${slow.nfe} forward passes`);

model.dispose();
