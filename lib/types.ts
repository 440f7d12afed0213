// Prompts, which every layer shares.

/** A chat message, rendered through the checkpoint's chat template. */
export interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | (string & {});
  content: string;
}

/** What to answer: plain text (without a chat template), chat messages, or token ids. */
export type PlainPrompt = string | readonly ChatMessage[] | { promptIds: ArrayLike<number> };

/** A slot of a form whose text matches a regular expression as a whole, with spaces behind where it is shorter. */
export interface FormSlot {
  /** Tokens of the slot. */
  tokens: number;
  /** As `pattern` of the options. */
  pattern: string;
}

/**
 * A prompt whose answer is a form: texts as they are, and numbers for slots of so many tokens, which are filled. An
 * end-of-sequence token follows, so that nothing but the slots is left open. The tokens of texts and slots meet at
 * their borders: begin and end a slot where a token of the whole text would, as in
 * `['{"name":"', 8, ',"count":', 4, '}']`, whose slots are `Anna"` and `5` with spaces behind.
 */
export interface FormPrompt {
  prompt: PlainPrompt;
  form: readonly (string | number | FormSlot)[];
}

/**
 * A prompt and what comes behind the answer, which is infilled between them: `maxTokens` of it, then the suffix and an
 * end-of-sequence token. The tokens of prompt, answer and suffix meet at their borders.
 */
export interface InfillPrompt {
  prompt: PlainPrompt;
  suffix: string | { suffixIds: ArrayLike<number> };
}

/**
 * What to continue: a plain prompt, one with a suffix, a form, or a template whose masks are filled in place, as text or as ids. In text,
 * `[MASK]` is a mask and `{{8}}` are eight, as in `'Paris is the {{2}} of France.'`; the mask token's own text is one, too.
 * A backslash before it makes it text: `\[MASK]`, `\{{8}}`; a string of JavaScript writes it as two.
 */
export type Prompt = PlainPrompt | FormPrompt | InfillPrompt | { template: string | ArrayLike<number> };
