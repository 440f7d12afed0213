// The parts of the AI SDK's interfaces that are spoken here: of language models, version 3, and of decisions, version 4.

/** A setting that a model does not have. */
export interface Warning {
  type: 'unsupported';
  feature: string;
  details?: string;
}

/** Messages, as the SDK brings them. */
export type ModelPrompt = readonly {
  role: 'system' | 'user' | 'assistant' | 'tool';
  // biome-ignore lint/suspicious/noExplicitAny: parts of many types, of which text is read and others are refused
  content: any;
}[];

/** A call, as the SDK makes it. */
export interface CallOptions {
  prompt: ModelPrompt;
  maxOutputTokens?: number | undefined;
  temperature?: number | undefined;
  topP?: number | undefined;
  topK?: number | undefined;
  stopSequences?: readonly string[] | undefined;
  seed?: number | undefined;
  presencePenalty?: number | undefined;
  frequencyPenalty?: number | undefined;
  responseFormat?: { type: 'text' } | { type: 'json'; schema?: unknown } | undefined;
  tools?: readonly unknown[] | undefined;
  toolChoice?: { type: string } | undefined;
  includeRawChunks?: boolean | undefined;
  abortSignal?: AbortSignal | undefined;
  providerOptions?: Readonly<Record<string, Readonly<Record<string, unknown>>>> | undefined;
}

/** Tokens of a call. */
export interface ModelUsage {
  inputTokens: { total: number; noCache: number; cacheRead: undefined; cacheWrite: undefined };
  outputTokens: { total: number; text: number; reasoning: undefined };
}

/** Why an answer ended. */
export interface ModelFinish {
  unified: 'stop' | 'length';
  /** As dultra names it. */
  raw: string;
}

/** Beside every answer: passes, seed and seconds. */
export type ModelMetadata = {
  dultra: { nfe: number; fullForwards: number; tokensPerForward: number; seed: string; seconds: number };
};

/** An answer. */
export interface ModelAnswer {
  content: { type: 'text'; text: string }[];
  finishReason: ModelFinish;
  usage: ModelUsage;
  warnings: Warning[];
  providerMetadata: ModelMetadata;
}

/** A part of a streamed answer. */
export type ModelStreamPart =
  | { type: 'stream-start'; warnings: Warning[] }
  | { type: 'response-metadata'; modelId: string }
  | { type: 'text-start' | 'text-end'; id: string }
  | { type: 'text-delta'; id: string; delta: string }
  /** With `includeRawChunks`: the positions that a pass decided. */
  | { type: 'raw'; rawValue: unknown }
  | { type: 'error'; error: unknown }
  | { type: 'finish'; usage: ModelUsage; finishReason: ModelFinish; providerMetadata: ModelMetadata };

/** A language model of the AI SDK. */
export interface LanguageModel {
  readonly specificationVersion: 'v3';
  readonly provider: string;
  readonly modelId: string;
  readonly supportedUrls: Record<string, RegExp[]>;
  doGenerate(options: CallOptions): PromiseLike<ModelAnswer>;
  doStream(options: CallOptions): PromiseLike<{ stream: ReadableStream<ModelStreamPart> }>;
}

/** Instructions or a description: a text, or a value of JSON. */
export type DecisionInput = string | Readonly<Record<string, unknown>> | readonly unknown[];

/** A part of what questions are about. Of other types than these there is none. */
export interface StatePart {
  type: 'text' | 'json' | (string & {});
  text?: string | undefined;
  value?: unknown;
}

/** A question, as the SDK has it. Of "box" there are no answers here, which the SDK knows before it asks. */
export interface SdkQuestion {
  type: 'boolean' | 'choice' | 'score' | 'box';
  instructions?: DecisionInput | null | undefined;
  /** Of a boolean what true and false stand for, of a choice its options, of a score its levels. */
  criteria?:
    | Readonly<Record<string, DecisionInput | null | undefined>>
    | readonly (DecisionInput | null)[]
    | null
    | undefined;
}

/** An answer, as the SDK has it. */
export type SdkAnswer =
  | { type: 'boolean'; probability: number }
  | { type: 'choice'; choice: string; probabilities: Record<string, number> }
  | { type: 'score'; score: number; probabilities: Record<string, number> }
  | { type: 'refusal' };

/** A call of `experimental_decide`, as the SDK makes it. */
export interface DecisionCall {
  state: readonly StatePart[];
  questions: Readonly<Record<string, SdkQuestion>>;
  reasoning?: string | undefined;
  abortSignal?: AbortSignal | undefined;
  providerOptions?: Readonly<Record<string, Readonly<Record<string, unknown>>>> | undefined;
}

/** Beside answers: whether they are calibrated and why not, and of each its basis and confidence. */
export type DecisionMetadata = {
  dultra: {
    calibrated: boolean;
    warnings: string[];
    rows: number;
    answers: Record<string, { optionMass: number; temperature: number; scorer: string; confidence?: number }>;
  };
};

/** Answers of a call. */
export interface DecisionResult {
  answers: Record<string, SdkAnswer>;
  usage: { inputTokens: number; outputTokens: number };
  warnings: Warning[];
  providerMetadata: DecisionMetadata;
}

/** A decision model of the AI SDK, which ai 7 asks by `experimental_decide`. */
export interface DecisionModel {
  readonly specificationVersion: 'v4';
  readonly provider: string;
  readonly modelId: string;
  readonly supportedQuestionTypes: readonly ('boolean' | 'choice' | 'score')[];
  doDecide(options: DecisionCall): PromiseLike<DecisionResult>;
}
