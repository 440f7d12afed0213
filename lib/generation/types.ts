// Options and results of generation.
import type { Cache } from '../sampling/caches';
import type { Sampler } from '../sampling/samplers';
import type { FinishReason } from '../sampling/types';
import type { JsonSchema } from '../structured/json-schema';

/** What research asks for: rows of a batch by themselves, likelihoods as others compute them, the reference's behaviour. */
export interface ResearchOptions {
  /**
   * Index of the first row in the random stream: row i of a batch draws as row `firstRow + i`, so that a row generated
   * alone with `firstRow: i` equals row i of a batch. Default 0.
   */
  firstRow?: number | undefined;
  /** Log-probabilities of drawn tokens at temperature 1 ("untempered", default) or at the sampling temperature. */
  tokenLogProb?: 'untempered' | 'tempered' | undefined;
  /**
   * Log-likelihood of a planner step that selected no position, so that the most probable one was unmasked: "exact"
   * (default) is the likelihood of the other positions staying masked; "reference" adds log p of the unmasked position,
   * as the reference implementation does.
   */
  forcedStep?: 'exact' | 'reference' | undefined;
  /**
   * "reference" reproduces the reference implementations where they differ (docs/differences.md explains each):
   * - the rows of a batch advance through the blocks together;
   * - no row stops at an end-of-sequence token, except with `stopAtEos: true` with d3llm and models that attend by blocks
   *   (these finish the block);
   * - Dream's, SDAR's and Fast-dLLM v2's confidences are filtered (`confidence: "filtered"`), Dream's top-p comes before
   *   top-k, and their decoders' own order of passes holds;
   * - the samplers other than the planner's may predict the mask token;
   * - the factor rule unmasks the last candidate if only that one fails the test;
   * - the log-likelihood of a step is the reference's (`forcedStep: "reference"`);
   * - with a cache, a finished block gets one more pass (`emptyPass: true`);
   * - d3llm lists its candidates before it fills the positions behind an end of sequence, and so may overwrite them.
   */
  compat?: 'reference' | undefined;
}

/** Options of `generate`, `generateBatch`, `generateStream` and `denoise`. */
export interface GenerateOptions {
  /**
   * How positions are chosen. Default: the checkpoint's (generation_config.json), else `{ type: "planner" }` where it
   * has a planner, else `{ type: "confidence" }`.
   */
  sampler?: Sampler | undefined;
  /**
   * Keys and values kept between passes: faster, and an approximation except for "none" (default). Its memory is
   * allocated up front.
   */
  cache?: Cache | undefined;
  /**
   * Tokens to generate after the prompt. Default: the checkpoint's (generation_config.json), else 128, or half of the
   * model's maximum where that is less. Not allowed with a template.
   */
  maxTokens?: number | undefined;
  /**
   * Tokens per block; blocks are finished left to right. maxTokens must be a multiple. Default: min(32, maxTokens);
   * templates, `schema` and `pattern`: the whole row.
   */
  blockLength?: number | undefined;
  /** Token temperature; 0 takes the most probable token. Default 0. */
  temperature?: number | undefined;
  /**
   * A token is drawn among the `topK` most probable ones (those that equal the last of them included), at least 1. Default:
   * all. At temperature 0 it can change confidences only.
   */
  topK?: number | undefined;
  /**
   * Nucleus sampling, after `topK`: a token is drawn among the most probable ones, at the temperature, up to the one
   * with which their probabilities exceed `topP`; above 0, at most 1. Default 1: all.
   */
  topP?: number | undefined;
  /**
   * Which distribution the sampler's confidences and entropies are of: the model's ("untempered"), that at the
   * temperature ("tempered"), or that of the tokens that `topK` and `topP` keep, too ("filtered"). Default: "untempered";
   * "filtered" for the samplers `dream` and `sub-blocks`, and with topK, topP or the reference's behaviour for the families
   * whose references have it so: Dream, SDAR, Fast-dLLM v2, LLaDA2. Log-probabilities are always of all tokens.
   */
  confidence?: 'untempered' | 'tempered' | 'filtered' | undefined;
  /**
   * Seed of every random choice, a non-negative integer or bigint below 2^64. Default: with a temperature above 0 another
   * one for each call, which the result names; else, with `denoise` and with `research.compat`, 0.
   */
  seed?: number | bigint | undefined;
  /**
   * Finish a row when everything before its first end-of-sequence token is decided. Default true; false for templates.
   */
  stopAtEos?: boolean | undefined;
  /**
   * The text ends before the first of these, which is the one that is complete first. A row is finished as soon as one
   * stands in the decided beginning of its completion, and `finishReason` is "stop". They are looked for in the text, in
   * which special tokens do not stand, across the borders of tokens and blocks. Needs a tokenizer; not allowed with a
   * template or form. Default: none.
   */
  stop?: string | readonly string[] | undefined;
  /**
   * The answer is a value of this JSON schema, whatever the model predicts: `object` of the result. It is of the strict
   * subset (docs/structured-output.md): objects whose properties are all required and no others, arrays, strings with
   * `pattern`, `format` and lengths, numbers with bounds, `enum`, `const`, `anyOf` and local `$ref`. "object": any JSON
   * object, nested up to three deep. Keys and braces are given, values are slots: `maxTokens` is what they take together
   * (default: 16 tokens for a string, 6 for a number). Needs a tokenizer whose tokens stand for bytes; not allowed with
   * templates, forms, a suffix, `stop` and `research.compat`. Anything outside of the subset is a RangeError that names
   * the keyword by its path, such as `schema.properties.age.multipleOf`. Default: none.
   */
  schema?: JsonSchema | 'object' | undefined;
  /**
   * The answer matches this regular expression of JavaScript as a whole, whatever the model predicts. Groups that are
   * referred to, lookaround and word borders are not supported (RangeError). `maxTokens` defaults to 16, or to the length
   * of the longest text. Conditions as for `schema`. Default: none.
   */
  pattern?: string | undefined;
  /**
   * "search": how long the answer's holes are is not known. They are filled at four lengths, a quarter, half, three
   * quarters and all of what `maxTokens`, the schema or the form's slots say, and the text with the highest mean
   * log-probability of its tokens is kept, as the model finds them where it may choose any, without what fills up a hole;
   * a text that ends before its suffix is kept only where all do. It costs what four answers do. With a schema, a pattern, a form or a suffix; of `generate` and
   * `generateBatch`, not of streams. Default: none.
   */
  hole?: 'search' | undefined;
  /** Whether the result has the log-probability of each token, `logprobs`. Default false. */
  logprobs?: boolean | undefined;
  /**
   * Special tokens that are written in a text or in a message are text like any other, as user input should be: a mask
   * token in it is not filled in, an end token does not end it. Those of the chat template stay special. Default: as
   * the checkpoint's tokenizer_config.json has it, else false, as in transformers. Not allowed with a template.
   */
  splitSpecialTokens?: boolean | undefined;
  /** For replays and comparisons with other implementations; see there. */
  research?: ResearchOptions | undefined;
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined;
}

/** Tokens that a row was given and got. */
export interface TokenUsage {
  /** Tokens of the prompt; of a template or form, all that are given. */
  promptTokens: number;
  /** `tokens` of the result; of a template or form, its masks. */
  completionTokens: number;
  /** Both together. */
  totalTokens: number;
}

/** One generated row. JSON.stringify writes its typed arrays as plain ones. */
export interface GenerateResult {
  /**
   * Decoded completion up to the first end-of-sequence token or stop string, special tokens skipped; "" without a tokenizer.
   * Templates: the whole row; forms: the filled form.
   */
  text: string;
  /**
   * Ids of the completion: all maxTokens of them (positions after an end-of-sequence stop may still be masked).
   * Templates: the whole row; forms: the form and its end of sequence.
   */
  ids: Int32Array;
  /** Prompt ids as the model saw them. */
  promptIds: Int32Array;
  /** The seed of the call, given or drawn: with it, the call can be repeated (row i alone with
   * `research: { firstRow: i }`). */
  seed: number | bigint;
  /** Numbers of tokens. */
  usage: TokenUsage;
  /**
   * Seconds from the call to the last forward pass, whatever the reader of a stream has read by then. The rows of a batch
   * share its time equally, so that their seconds add up to the batch's. Not enumerable, as it is no property of the
   * completion: comparisons, copies and JSON leave it out, so that equal completions are equal.
   */
  readonly seconds: number;
  /** `usage.completionTokens / seconds`: over a batch, what a row has of its throughput. Not enumerable. */
  readonly tokensPerSecond: number;
  /** Forward passes in which this row unmasked something. */
  nfe: number;
  /**
   * Cost in full-forward equivalents: each pass counts as the share of the row that it computed. With `hole: "search"` of
   * all lengths, and of their scores.
   */
  fullForwards: number;
  /** Tokens of the completion up to and including the first end-of-sequence token, or the end of a stop string. */
  tokens: number;
  /** tokens / nfe. */
  tokensPerForward: number;
  /** Why the row ended. */
  finishReason: FinishReason;
  /** `unmaskedAt[i]` is the step (from 1) that decided completion position i; 0 if it was given or never decided. */
  unmaskedAt: Int32Array;
  /**
   * With the option `logprobs`: `logprobs[i]` is the log-probability of the token at completion position i in the pass
   * that decided it, at temperature 1 (`research.tokenLogProb` has the other choice); NaN where no pass did. In JSON,
   * NaN is null. It is not the likelihood of the text, which `model.score` estimates: tokens of one pass are predicted
   * without each other.
   */
  logprobs?: Float32Array | undefined;
  /** With the option `schema`: the value, parsed. */
  object?: unknown;
  /** With `hole: "search"`: the lengths of answers that were tried, and what they were compared by. */
  lengths?: { tokens: number; score: number }[] | undefined;
  /** Sum of the step log-likelihoods (planner samplers; 0 otherwise). */
  logLikelihood: number;
}

/** A token that a step decided. */
export interface UnmaskedToken {
  /** From the start of the completion (templates: of the row). */
  position: number;
  token: number;
  /**
   * What the token adds to the text of the tokens around it, with the space that its tokenizer puts between words; "" for
   * special tokens and without a tokenizer. A character of several tokens comes with the one that completes it.
   */
  text: string;
  /** Softmax probability of the token. */
  probability: number;
}

/** One event of `generateStream`. JSON.stringify writes it with plain arrays and without `ids`. */
export interface StreamEvent {
  /** From 1. */
  step: number;
  /**
   * Text of the decided prefix: the completion (templates: the row) up to its first mask, with the sampler "editing" up
   * to the block that is being decided, decoded together, as far as no later token can change it. It only grows, and is
   * the result's text on the last event.
   */
  text: string;
  /** What `text` grew by in this step, often "". All of them together are the result's text. */
  delta: string;
  /** What this step unmasked, in ascending position. */
  unmasked: UnmaskedToken[];
  /** Masked positions left before the row ends. */
  remaining: number;
  /** Set on the last event. */
  result: GenerateResult | null;
  /** Ids of the completion after the step (templates: of the row). A getter, which JSON.stringify leaves out. */
  readonly ids: Int32Array;
}
