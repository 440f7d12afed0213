// Generates with the embedded model, which answers word problems: node examples/generate.mjs
import { loadModel } from 'dultra';

const model = await loadModel(); // or a folder, or a hub id such as 'GSAI-ML/LLaDA-8B-Instruct'

// The last word selects the kind of sentence: sum, story or words.
const prompt = process.argv[2] ?? 'tom has 7 apples . he buys 5 . how many now ? story';
const { text, tokens, nfe, tokensPerForward } = await model.generate(prompt);
console.log(text);
console.log(`${tokens} tokens in ${nfe} forward passes: ${tokensPerForward.toFixed(1)} tokens per pass`);

// The same weights, one token per forward pass.
const slow = await model.generate(prompt, { sampler: { type: 'fixed' } });
console.log(slow.text);
console.log(`${slow.tokens} tokens in ${slow.nfe} forward passes`);

model.dispose();
