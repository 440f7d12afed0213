// A chat: messages that grow turn by turn, and answers to them.
import { DUltraError, optionError } from '../errors';
import { checkInteger, checkKeys, checkList } from '../options';
import { shownSource } from '../package';
import { show } from '../text';
import type { ChatMessage } from '../types';
import type { MaskedDiffusionModel } from './masked-diffusion-model';
import { defaultMaxTokens } from './prepare';
import type { GenerateOptions, GenerateResult } from './types';

/** What a chat begins with. */
export interface ChatOptions {
  /** The system message. Not together with `messages` that begin with one. */
  system?: string | undefined;
  /**
   * Messages so far: a system message first, if there is one, then turns, each of which begins with a user's message and
   * ends with another's. `toJSON` of a chat gives them.
   */
  messages?: readonly ChatMessage[] | undefined;
}

/** The answer to a message. */
export interface ChatAnswer {
  /** What the assistant says. */
  text: string;
  /**
   * Messages of the oldest turns that the model did not see, since all of them and the answer are more than its longest
   * row. They stay in `messages`.
   */
  dropped: number;
  /** As `generate` returns it: tokens, seconds, why the answer ended. */
  result: GenerateResult;
}

/** One forward pass of an answer. */
export interface ChatEvent {
  /** From 1. */
  step: number;
  /** The answer as far as it is final. It only grows. */
  text: string;
  /** What `text` grew by, often "". */
  delta: string;
  /** Masked positions left before the answer ends. */
  remaining: number;
  /** Set on the last event. */
  answer: ChatAnswer | null;
}

function checkText(name: string, text: unknown): asserts text is string {
  if (typeof text !== 'string') throw optionError(TypeError, name, `expected a string, got ${show(text)}`);
  if (text.trim() === '') throw optionError(RangeError, name, `expected a text that says something, got ${show(text)}`);
}

/** The messages that a chat begins with, copied. @throws TypeError, RangeError */
function checkMessages({ system, messages = [] }: ChatOptions): ChatMessage[] {
  const list = checkList('messages', messages, (name, message): ChatMessage => {
    const { role, content } = (message ?? {}) as Partial<ChatMessage>;
    if (typeof role !== 'string' || typeof content !== 'string')
      throw optionError(TypeError, name, `expected { role, content }, both strings, got ${show(message)}`);
    return { role, content };
  });
  const hasSystem = list[0]?.role === 'system';
  if (system !== undefined) {
    checkText('system', system);
    if (hasSystem) throw optionError(TypeError, 'system', 'not allowed with messages that begin with a system message');
    list.unshift({ role: 'system', content: system });
  }
  const turns = list[0]?.role === 'system' ? list.slice(1) : list;
  if (turns.length === 0) return list;
  const wrong = turns.some(({ role }) => role === 'system');
  if (wrong || turns[0].role !== 'user' || turns[turns.length - 1].role === 'user')
    throw optionError(
      RangeError,
      'messages',
      `expected whole turns, which begin with a user's message and end with an answer, got ${show(list.map(({ role }) => role).join(', '))}`,
    );
  return list;
}

/**
 * A chat with a model: it keeps the messages, and nothing else. Made by `model.chat()`.
 *
 * A message that is stopped, or that fails, leaves the chat as it was.
 *
 * Every answer sees the system message, the new message, and of the turns before as many of the latest as fit into the
 * model's longest row together with the answer's `maxTokens`. A turn, a user's message with everything up to the next
 * one, is seen as a whole or not at all.
 */
export class ChatSession {
  readonly #model: MaskedDiffusionModel;
  #messages: ChatMessage[];
  #isAnswering = false;

  /** @throws TypeError, RangeError for options; DUltraError NO_TOKENIZER for a model without a chat template */
  constructor(model: MaskedDiffusionModel, options: ChatOptions = {}) {
    checkKeys('options', options, ['system', 'messages']);
    if (!model.tokenizer?.hasChatTemplate)
      throw new DUltraError(
        'NO_TOKENIZER',
        `${shownSource(model.source)} has no chat template, which a chat needs; generate completes prompts without one`,
      );
    this.#model = model;
    this.#messages = checkMessages(options);
  }

  /** All messages, the system's first; a copy. */
  get messages(): ChatMessage[] {
    return this.#messages.map((message) => ({ ...message }));
  }

  /**
   * Answers a message.
   * @param options of `generate`. `splitSpecialTokens` is true by default: special tokens in messages are text.
   * @throws as `model.generate`; RangeError where the message alone is too long; DUltraError INVALID_ARGUMENT while
   * another message is being answered.
   */
  async send(text: string, options: GenerateOptions = {}): Promise<ChatAnswer> {
    this.#begin(text);
    try {
      const { promptIds, dropped } = this.#fit(text, options);
      const result = await this.#model.generate({ promptIds }, options);
      const answer = { text: result.text, dropped, result };
      this.#keep(text, answer);
      return answer;
    } finally {
      this.#isAnswering = false;
    }
  }

  /** Answers a message, with an event for each forward pass; leaving the loop stops the work. As `send` otherwise. */
  async *sendStream(text: string, options: GenerateOptions = {}): AsyncGenerator<ChatEvent, void, void> {
    this.#begin(text);
    try {
      const { promptIds, dropped } = this.#fit(text, options);
      for await (const { step, text: sofar, delta, remaining, result } of this.#model.generateStream(
        { promptIds },
        options,
      )) {
        const answer = result && { text: result.text, dropped, result };
        if (answer) this.#keep(text, answer);
        yield { step, text: sofar, delta, remaining, answer };
      }
    } finally {
      this.#isAnswering = false;
    }
  }

  /** Forgets all messages but the system's. @throws DUltraError INVALID_ARGUMENT while a message is being answered */
  reset(): void {
    this.#checkIdle();
    this.#messages = this.#system();
  }

  /** What `model.chat` begins the same chat with. */
  toJSON(): { messages: ChatMessage[] } {
    return { messages: this.messages };
  }

  #begin(text: unknown): void {
    checkText('text', text);
    this.#checkIdle();
    this.#isAnswering = true;
  }

  #keep(text: string, answer: ChatAnswer): void {
    this.#messages = [...this.#messages, { role: 'user', content: text }, { role: 'assistant', content: answer.text }];
  }

  #checkIdle(): void {
    if (this.#isAnswering)
      throw new DUltraError('INVALID_ARGUMENT', 'this chat answers a message: wait for the answer, or stop it, first');
  }

  #system(): ChatMessage[] {
    return this.#messages.filter(({ role }) => role === 'system');
  }

  /** The ids of the latest turns that leave room for the answer. @throws RangeError where not even the message does */
  #fit(text: string, options: GenerateOptions): { promptIds: Int32Array; dropped: number } {
    const { splitSpecialTokens = true, maxTokens = defaultMaxTokens(this.#model) } = options ?? {};
    const most = this.#model.config.maxSequenceLength;
    checkInteger('maxTokens', maxTokens, { min: 1, max: most });
    const system = this.#system();
    const before = this.#messages.slice(system.length);
    /** First message of each turn, and the end: what can be dropped. */
    const starts = [...before.keys()].filter((i) => before[i].role === 'user').concat(before.length);
    const encode = (first: number) =>
      this.#model.encodePrompt([...system, ...before.slice(first), { role: 'user', content: text }], {
        splitSpecialTokens,
      });
    // The number of tokens falls with each turn that is dropped: the first start that fits is found by halves.
    let low = 0;
    let high = starts.length - 1;
    let ids = encode(starts[high]);
    if (ids.length + maxTokens > most)
      throw optionError(
        RangeError,
        'text',
        `${ids.length} tokens, without earlier turns, and maxTokens ${maxTokens} make ${ids.length + maxTokens}, more than the model's maximum of ${most}`,
      );
    while (low < high) {
      const middle = (low + high) >> 1;
      const tried = encode(starts[middle]);
      if (tried.length + maxTokens <= most) {
        high = middle;
        ids = tried;
      } else low = middle + 1;
    }
    return { promptIds: ids, dropped: starts[high] };
  }
}
