// Whether a checkpoint works: its tensors, a text that it scores, and completions of a few prompts.
import { readSafetensorsEntries } from '../files/safetensors';
import { findSafetensors } from '../files/weight-files';
import { loadModel } from '../generation/load-model';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { defaultMaxTokens } from '../generation/prepare';
import { attendedBlock } from '../model/blocks';
import { CausalModel } from '../model/causal-model';
import { readConfigJson } from '../model/config';
import { EITHER_KIND } from '../model/download-model';
import { checkpointNames, isDiffusion } from '../model/families';
import { loadCausalModel } from '../model/load-causal-model';
import { checkRunnable, type LoadModelOptions } from '../model/load-weights';
import { resolveSource } from '../model/source';
import { unusedTensors } from '../model/tensors';
import { checkInteger } from '../options';
import { concatenate, packed, packRows } from '../packing';
import { Random } from '../random';

/** Options of {@link verifyModel}. */
export interface VerifyOptions extends LoadModelOptions {
  /** Tokens of each completion. Default 32, or what the model has room for. */
  maxTokens?: number | undefined;
}

/** A completion of one of the fixed prompts. */
export interface VerifiedCompletion {
  /** null: the model has no tokenizer, and the prompt is ids. */
  prompt: string | null;
  /** null likewise. */
  text: string | null;
  ids: number[];
  /** Tokens up to the first end of sequence. */
  tokens: number;
  /** Forward passes. */
  nfe: number;
  seconds: number;
}

/** What {@link verifyModel} found. */
export interface Verification {
  source: string;
  kind: 'diffusion' | 'autoregressive';
  family: string;
  parameters: number;
  device: string;
  loadSeconds: number;
  tensors: {
    /** Tensors of the files that the model uses. */
    used: number;
    /** Names of those that it does not use. */
    unused: string[];
  };
  /** The fixed text. */
  text: {
    tokens: number;
    /**
     * Nats per token: minus the log-likelihood of an autoregressive model; of a diffusion model an estimate of the bound on
     * it (ELBO), from fixed masks. A text in which every token is equally likely has ln(vocabulary).
     */
    nats: number;
    /** exp(nats). */
    perplexity: number;
    /** ln(vocabulary). */
    chance: number;
  };
  completions: VerifiedCompletion[];
  tokensPerSecond: number;
  /** Mean forward passes of a completion. */
  nfe: number;
  /** Bytes of the weights in memory, and the most that the process has held so far. */
  weightBytes: number;
  peakBytes: number;
  /** What is wrong or suspicious; empty where all is well. */
  problems: string[];
}

/** English that every model of language has met the like of, written for this check. */
const TEXT =
  'The ferry leaves the harbour at nine in the morning and reaches the island an hour later. Most people carry ' +
  'bread, water and a warm coat, because the wind on the cliffs is cold even in summer. In the evening the same ' +
  'boat brings them back, tired and content, and the lights of the town grow larger on the water.';
const PROMPTS = ['What is the capital of France?', 'Count from one to five.', 'Write a sentence about the sea.'];
const MAX_TOKENS = 32;
/** Shares of a text, or of a block of it, that are masked in turn. */
const LEVELS = 8;
const TOKEN_BUDGET = 4096;

type Model = MaskedDiffusionModel | CausalModel;

/** Ids of a text; without a tokenizer, ids all over the vocabulary, the mask token left out. */
function idsOf({ tokenizer, config }: Model, text: string, most: number): Int32Array {
  const { embeddingSize, maskTokenId } = config;
  const encoded = tokenizer
    ? tokenizer.encode(text, { addSpecialTokens: false })
    : Array.from({ length: 48 }, (_, i) => (i * 37 + 3) % embeddingSize).filter((id) => id !== maskTokenId);
  return Int32Array.from(encoded.slice(0, most));
}

/** Rows of a text with masks: each block (all of it, where every position sees all) at several levels. */
function maskedRows(ids: Int32Array, block: number | null, maskTokenId: number) {
  const random = new Random(0n);
  const length = block ?? ids.length;
  const rows: { ids: Int32Array; positions: Int32Array; tokens: Int32Array; weight: number }[] = [];
  for (let begin = 0; begin < ids.length; begin += length) {
    const end = Math.min(ids.length, begin + length);
    for (let level = 1; level <= LEVELS; level++) {
      const count = Math.ceil((level / LEVELS) * (end - begin));
      const chosen = random.permutation(end - begin).slice(0, count);
      const positions = Int32Array.from(chosen, (i) => begin + i).sort();
      const noisy = ids.slice(0, end);
      for (const position of positions) noisy[position] = maskTokenId;
      const tokens = positions.map((position) => ids[position]);
      // Each level stands for the others: what is masked is scaled to the whole.
      rows.push({ ids: noisy, positions, tokens, weight: (end - begin) / count / LEVELS });
    }
  }
  return rows;
}

/** Nats per token of a text. */
async function natsOf(model: Model, ids: Int32Array): Promise<number> {
  if (model instanceof CausalModel) {
    const [logProbs] = await model.logProbs([{ promptIds: ids.subarray(0, 1), ids: ids.subarray(1) }]);
    return -logProbs.reduce((sum, x) => sum + x, 0) / logProbs.length;
  }
  const { config } = model;
  const scorer = await model.createTrainer({ freezeBase: true, freezePlanner: true });
  try {
    let nats = 0;
    const rows = maskedRows(ids, attendedBlock(config), config.maskTokenId);
    for (const batch of packRows(rows, (row) => row.ids.length, TOKEN_BUDGET)) {
      const tokens = concatenate(
        batch.map((row) => row.tokens),
        Int32Array,
      );
      const { logProbs } = await scorer.score({ ...packed(batch), tokens, excludedToken: config.maskTokenId });
      let at = 0;
      for (const { positions, weight } of batch)
        for (let i = 0; i < positions.length; i++) nats -= logProbs![at++] * weight;
    }
    return nats / ids.length;
  } finally {
    scorer.dispose();
  }
}

async function completionsOf(model: Model, maxTokens: number): Promise<VerifiedCompletion[]> {
  const prompts = model.tokenizer ? PROMPTS : [null];
  const completions: VerifiedCompletion[] = [];
  for (const prompt of prompts) {
    const input =
      prompt === null
        ? { promptIds: Array.from(idsOf(model, '', 8)) }
        : model.tokenizer!.hasChatTemplate
          ? [{ role: 'user', content: prompt }]
          : prompt;
    const begin = performance.now();
    if (model instanceof CausalModel) {
      const [{ text, ids, nfe }] = await model.generateBatch([input], { maxTokens });
      const seconds = (performance.now() - begin) / 1000;
      completions.push({ prompt, text: prompt && text, ids: Array.from(ids), tokens: ids.length, nfe, seconds });
    } else {
      const { text, ids, tokens, nfe } = await model.generate(input, { maxTokens });
      const seconds = (performance.now() - begin) / 1000;
      completions.push({ prompt, text: prompt && text, ids: Array.from(ids), tokens, nfe, seconds });
    }
  }
  return completions;
}

/**
 * Loads a checkpoint of any family, masked diffusion or autoregressive, and checks it: which tensors of its files are
 * used, how likely a fixed English text is to it, and what it writes for three prompts.
 * @param source a folder or a hub id @param options as of `loadModel`
 * @throws as `loadModel`
 */
export async function verifyModel(source: string, options: VerifyOptions = {}): Promise<Verification> {
  const { maxTokens: given, ...load } = options;
  if (given !== undefined) checkInteger('maxTokens', given, { min: 1, max: 1 << 30 });
  const begin = performance.now();
  const folder = await resolveSource(source, load, {
    canRun: (snapshot, name) => checkRunnable(EITHER_KIND, snapshot, name, load),
  });
  const { json } = await readConfigJson(folder);
  const model: Model = isDiffusion(json) ? await loadModel(folder, load) : await loadCausalModel(folder, load);
  try {
    const loadSeconds = (performance.now() - begin) / 1000;
    const { config, info } = model;
    const entries = await readSafetensorsEntries(await findSafetensors(model.source));
    const ids = idsOf(model, TEXT, config.maxSequenceLength);
    const nats = await natsOf(model, ids);
    const maxTokens = given ?? Math.min(MAX_TOKENS, defaultMaxTokens(model as MaskedDiffusionModel));
    const completions = await completionsOf(model, maxTokens);
    const seconds = completions.reduce((sum, completion) => sum + completion.seconds, 0);
    const tokens = completions.reduce((sum, completion) => sum + completion.tokens, 0);
    const chance = Math.log(config.embeddingSize);
    const problems: string[] = [];
    // A planner of its own folder is no part of these files.
    const own = load.planner === undefined ? config : { ...config, planner: null };
    const { checkpointName, placesOf } = checkpointNames(config);
    const unused = unusedTensors(own, entries, checkpointName, placesOf);
    if (unused.length > 0) problems.push(`${unused.length} tensors of the files are not used`);
    if (!(nats < chance)) problems.push(`the text is no likelier than chance: ${nats.toFixed(2)} nats per token`);
    for (const [i, completion] of completions.entries())
      if (completion.ids.slice(0, completion.tokens).includes(config.maskTokenId))
        problems.push(`completion ${i + 1} has mask tokens`);
    return {
      source,
      kind: isDiffusion(json) ? 'diffusion' : 'autoregressive',
      family: config.family,
      parameters: info.parameters,
      device: info.device,
      loadSeconds,
      tensors: { used: entries.size - unused.length, unused },
      text: { tokens: ids.length, nats, perplexity: Math.exp(nats), chance },
      completions,
      tokensPerSecond: tokens / seconds,
      nfe: completions.reduce((sum, { nfe }) => sum + nfe, 0) / completions.length,
      weightBytes: info.weightBytes,
      // resourceUsage counts in units of 1024 bytes on every system that Node.js runs on.
      peakBytes: process.resourceUsage().maxRSS * 1024,
      problems,
    };
  } finally {
    model.dispose();
  }
}
