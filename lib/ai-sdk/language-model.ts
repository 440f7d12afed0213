// A model of this process, as the AI SDK calls it.
import { optionError } from '../errors';
import type {
  ChatMessage,
  GenerateOptions,
  GenerateResult,
  JsonSchema,
  MaskedDiffusionModel,
  PlainPrompt,
} from '../index';
import type {
  CallOptions,
  LanguageModel,
  ModelAnswer,
  ModelFinish,
  ModelMetadata,
  ModelPrompt,
  ModelStreamPart,
  ModelUsage,
  Warning,
} from './types';

const TEXT_ID = '0';

interface Part {
  type: string;
  text?: string;
}

/** The messages of a prompt. @throws TypeError for what is no text */
function messagesOf(prompt: ModelPrompt): ChatMessage[] {
  return prompt.map(({ role, content }, i) => {
    if (role === 'tool') throw optionError(TypeError, `prompt[${i}].role`, 'expected no tool: tools are not supported');
    const parts: Part[] = typeof content === 'string' ? [{ type: 'text', text: content }] : content;
    const texts = parts.map(({ type, text }, p) => {
      if (type !== 'text')
        throw optionError(TypeError, `prompt[${i}].content[${p}].type`, `expected "text", got ${JSON.stringify(type)}`);
      return text ?? '';
    });
    return { role, content: texts.join('') };
  });
}

const usageOf = ({ usage }: GenerateResult): ModelUsage => ({
  inputTokens: { total: usage.promptTokens, noCache: usage.promptTokens, cacheRead: undefined, cacheWrite: undefined },
  outputTokens: { total: usage.completionTokens, text: usage.completionTokens, reasoning: undefined },
});

const finishOf = ({ finishReason }: GenerateResult): ModelFinish => ({
  unified: finishReason === 'length' ? 'length' : 'stop',
  raw: finishReason,
});

const metadataOf = ({ nfe, fullForwards, tokensPerForward, seed, seconds }: GenerateResult): ModelMetadata => ({
  dultra: { nfe, fullForwards, tokensPerForward, seed: String(seed), seconds },
});

/** See `createDultra`. */
export class DUltraLanguageModel implements LanguageModel {
  readonly specificationVersion = 'v3' as const;
  readonly provider = 'dultra';
  readonly supportedUrls = {};
  readonly #model: MaskedDiffusionModel;
  readonly #options: GenerateOptions;

  constructor(
    readonly modelId: string,
    model: MaskedDiffusionModel,
    options: GenerateOptions,
  ) {
    this.#model = model;
    this.#options = options;
  }

  /** A call in the library's words, and what of it is not supported. */
  #read(call: CallOptions): { prompt: PlainPrompt; options: GenerateOptions; warnings: Warning[] } {
    const warnings: Warning[] = [];
    const unsupported = (feature: string, details?: string) =>
      warnings.push({ type: 'unsupported', feature, ...(details !== undefined && { details }) });
    if (call.presencePenalty) unsupported('presencePenalty');
    if (call.frequencyPenalty) unsupported('frequencyPenalty');
    if (call.tools && call.tools.length > 0) {
      if (call.toolChoice && !['auto', 'none'].includes(call.toolChoice.type))
        throw optionError(TypeError, 'toolChoice', 'expected "auto" or "none": tools are not supported');
      unsupported('tools', 'the answer is text');
    }
    const { responseFormat: format, stopSequences: stop } = call;
    const isJson = format?.type === 'json';
    if (isJson && stop && stop.length > 0) unsupported('stopSequences', 'a schema says where the text ends');
    const { maxOutputTokens: maxTokens, temperature, topP, topK, seed, abortSignal: signal } = call;
    const own: GenerateOptions = {
      ...(maxTokens !== undefined && { maxTokens }),
      ...(temperature !== undefined && { temperature }),
      ...(topP !== undefined && { topP }),
      ...(topK !== undefined && { topK }),
      ...(seed !== undefined && { seed }),
      ...(signal !== undefined && { signal }),
      ...(isJson
        ? { schema: (format as { schema?: JsonSchema }).schema ?? 'object' }
        : stop && stop.length > 0 && { stop }),
    };
    const messages = messagesOf(call.prompt);
    const isChat = this.#model.tokenizer?.hasChatTemplate === true;
    return {
      prompt: isChat ? messages : messages.map(({ content }) => content).join('\n'),
      options: { ...this.#options, ...(call.providerOptions?.dultra as GenerateOptions), ...own },
      warnings,
    };
  }

  async doGenerate(call: CallOptions): Promise<ModelAnswer> {
    const { prompt, options, warnings } = this.#read(call);
    const result = await this.#model.generate(prompt, options);
    return {
      content: [{ type: 'text', text: result.text }],
      finishReason: finishOf(result),
      usage: usageOf(result),
      warnings,
      providerMetadata: metadataOf(result),
    };
  }

  async doStream(call: CallOptions): Promise<{ stream: ReadableStream<ModelStreamPart> }> {
    const { prompt, options, warnings } = this.#read(call);
    const events = this.#model.generateStream(prompt, options);
    const parts = this.#parts(events, warnings, call.includeRawChunks === true);
    return {
      stream: new ReadableStream<ModelStreamPart>({
        async pull(controller) {
          const next = await parts.next();
          if (next.done) controller.close();
          else controller.enqueue(next.value);
        },
        async cancel() {
          await parts.return();
        },
      }),
    };
  }

  async *#parts(
    events: ReturnType<MaskedDiffusionModel['generateStream']>,
    warnings: Warning[],
    withFrames: boolean,
  ): AsyncGenerator<ModelStreamPart, void, void> {
    yield { type: 'stream-start', warnings };
    try {
      yield { type: 'response-metadata', modelId: this.modelId };
      yield { type: 'text-start', id: TEXT_ID };
      for await (const { delta, result, ...frame } of events) {
        if (withFrames)
          yield { type: 'raw', rawValue: { step: frame.step, unmasked: frame.unmasked, remaining: frame.remaining } };
        if (delta !== '') yield { type: 'text-delta', id: TEXT_ID, delta };
        if (!result) continue;
        yield { type: 'text-end', id: TEXT_ID };
        yield {
          type: 'finish',
          usage: usageOf(result),
          finishReason: finishOf(result),
          providerMetadata: metadataOf(result),
        };
      }
    } catch (error) {
      yield { type: 'error', error };
    }
  }
}
