// The parts of the AI SDK's language model interface, version 3, that are spoken here.

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
