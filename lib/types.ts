// Prompts, which every layer shares.

/** A chat message, rendered through the checkpoint's chat template. */
export interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | (string & {});
  content: string;
}

/**
 * What to continue: plain text (without a chat template), chat messages, token ids, or a template whose mask tokens are
 * to be filled in place (text that contains the tokenizer's mask token, or ids that contain the mask id).
 */
export type Prompt =
  | string
  | ChatMessage[]
  | { promptIds: ArrayLike<number> }
  | { template: string | ArrayLike<number> };
