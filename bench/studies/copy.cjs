// GRPO on a small model of every dense family: the letters of the prompt, said again. Each model is made with random
// weights, taught the task, and trained for 30 steps with rewards for right letters and for few passes; passes and right
// letters are those of its planner before and after. The table of docs/models.md is its output:
//   node bench/studies/copy.cjs [--only sdar,dream] [--teach 300] [--steps 30] [--threads 1]
// Ends with 1 where a family needs no fewer passes afterwards, or has fewer letters right by more than 2 %.
const { mkdtempSync, rmSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { createModel, GrpoTrainer, loadModel, trainMaskedDiffusion } = require('../..');

const FAMILIES = ['llada', 'illada', 'dream', 'sdar', 'fast-dllm-v2', 'a2d-qwen3', 'a2d-qwen2'];
const SHAPE = { dModel: 32, nHeads: 4, nKvHeads: 2, nLayers: 2, maxSequenceLength: 32, ropeTheta: 100, seed: 1 };
const BLOCKS = { sdar: 4, 'fast-dllm-v2': 8 };
const LETTERS = [...'abcdefgh'];
const LENGTH = 8;
/** Share of right letters that may be lost. */
const TOLERANCE = 0.02;

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    teach: { type: 'string', default: '300' },
    steps: { type: 'string', default: '30' },
    threads: { type: 'string', default: '1' },
  },
});
const [teach, steps, threads] = [values.teach, values.steps, values.threads].map(Number);

/** Numbers in 0..1 of a seed. */
function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state * 2 ** -32;
  };
}

const rightLetters = (answer, text) => {
  const words = text.trim().split(/\s+/);
  return answer.split(' ').filter((letter, i) => letter === words[i]).length / LENGTH;
};

const copy = {
  name: 'copy',
  genLength: LENGTH,
  blockLength: LENGTH,
  vocabulary: LETTERS,
  sample(split, count, seed) {
    const next = uniforms(2 * seed + Number(split === 'train'));
    return Array.from({ length: count }, () => {
      const text = Array.from({ length: LENGTH }, () => LETTERS[Math.floor(next() * LETTERS.length)]).join(' ');
      return { prompt: text, answer: text, category: 'copy', meta: null };
    });
  },
  verify: ({ answer }, completion) => rightLetters(answer, completion) === 1,
};

/** Passes and right letters of the planner, on 64 held-out rows. */
async function measure(model) {
  const examples = copy.sample('test', 64, 5);
  const settings = { sampler: 'planner:bernoulli', maxTokens: LENGTH, temperature: 0.5, seed: 3, stopAtEos: false };
  const results = await model.generateBatch(
    examples.map(({ prompt }) => prompt),
    settings,
  );
  const mean = (numbers) => numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
  return {
    nfe: mean(results.map(({ nfe }) => nfe)),
    right: mean(results.map(({ text }, i) => rightLetters(examples[i].answer, text))),
  };
}

async function run(family, folder) {
  await createModel(folder, { ...SHAPE, family, blockLength: BLOCKS[family], vocabulary: copy.vocabulary });
  const model = await loadModel(folder, { threads });
  try {
    const sft = { dataset: copy, maxSteps: teach, batchSize: 32, learningRate: 5e-3, warmupSteps: 20 };
    for await (const _ of trainMaskedDiffusion(model, sft));
    const before = await measure(model);
    const trainer = new GrpoTrainer(model, {
      dataset: copy,
      maxSteps: steps,
      promptsPerStep: 4,
      numGenerations: 8,
      temperature: 0.5,
      freezeBase: true,
      plannerLearningRate: 1e-2,
      seed: 1,
      rewards: {
        right: {
          weight: 4,
          fn: ({ completions, examples }) => completions.map((text, i) => rightLetters(examples[i].answer, text)),
        },
        fast: ({ results }) => results.map(({ nfe }) => 1 - nfe / LENGTH),
      },
    });
    try {
      for await (const _ of trainer.train());
    } finally {
      trainer.dispose();
    }
    return { before, after: await measure(model) };
  } finally {
    model.dispose();
  }
}

async function main() {
  const root = mkdtempSync(path.join(os.tmpdir(), 'dultra-copy-'));
  console.log('| family | passes before | after | right letters before | after |');
  console.log('| --- | --- | --- | --- | --- |');
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  try {
    for (const family of values.only?.split(',') ?? FAMILIES) {
      const { before, after } = await run(family, path.join(root, family));
      const blocks = BLOCKS[family] ? `, blocks of ${BLOCKS[family]}` : '';
      const numbers = [before.nfe.toFixed(2), after.nfe.toFixed(2), percent(before.right), percent(after.right)];
      console.log(`| ${family}${blocks} | ${numbers.join(' | ')} |`);
      if (!(after.nfe < before.nfe && after.right >= before.right - TOLERANCE)) process.exitCode = 1;
    }
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

main();
