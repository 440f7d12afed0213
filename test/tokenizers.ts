// Small tokenizers to put into checkpoint folders.
import { writeFileSync } from 'node:fs';
import path from 'node:path';

/** The printable stand-ins of byte-level tokenizers: byte 32 is Ġ, and so on. */
function byteCharacters(): string[] {
  const isPrintable = (byte: number) =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isPrintable(byte) ? byte : next++));
}

/** A tokenizer of single characters, some of which are special tokens. */
export function characterTokenizer(vocab: Readonly<Record<string, number>>, special: readonly string[]): object {
  return {
    version: '1.0',
    added_tokens: special.map((content) => added(vocab[content], content)),
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: { type: 'Fuse' },
    model: { type: 'BPE', vocab, merges: [] },
  };
}

export const MASK_TOKEN = '<|mdm_mask|>';
export const EOS_TOKEN = '<|endoftext|>';
export const START_TOKEN = '<|start|>';

const added = (id: number, content: string) => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
});

/** 256 bytes, a few merges, and special tokens: ids 0..255, merges from 256, then the special ones. */
export function byteLevelTokenizer(): {
  tokenizer: object;
  config: Record<string, unknown>;
  size: number;
  ids: Record<string, number>;
} {
  const bytes = byteCharacters();
  const merges = ['h e', 'l l', 'he ll', 'hell o', 'Ġ w', 'o r', 'Ġw or'];
  const vocab: Record<string, number> = {};
  for (const character of bytes) vocab[character] = Object.keys(vocab).length;
  for (const merge of merges) vocab[merge.replace(' ', '')] = Object.keys(vocab).length;
  const first = Object.keys(vocab).length;
  const specials = [START_TOKEN, EOS_TOKEN, MASK_TOKEN];
  return {
    tokenizer: {
      version: '1.0',
      added_tokens: specials.map((content, i) => added(first + i, content)),
      normalizer: null,
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      post_processor: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: false, use_regex: true },
      decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: { type: 'BPE', dropout: null, unk_token: null, fuse_unk: false, byte_fallback: false, vocab, merges },
    },
    config: {
      tokenizer_class: 'PreTrainedTokenizerFast',
      bos_token: START_TOKEN,
      eos_token: { content: EOS_TOKEN, lstrip: false },
      chat_template:
        "{% for message in messages %}{{ bos_token }}{{ message.role }}: {{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}",
    },
    size: first + specials.length,
    ids: Object.fromEntries(specials.map((content, i) => [content, first + i])),
  };
}

/** One id per word. @param unknown the token for all other words, null for none */
export function wordTokenizer(words: readonly string[], unknown: string | null): object {
  return {
    version: '1.0',
    added_tokens: [],
    normalizer: { type: 'Lowercase' },
    pre_tokenizer: { type: 'Whitespace' },
    post_processor: null,
    decoder: null,
    model: { type: 'WordLevel', vocab: Object.fromEntries(words.map((word, id) => [word, id])), unk_token: unknown },
  };
}

/** Puts a tokenizer into a folder. */
export function writeTokenizer(folder: string, tokenizer: unknown, config?: unknown): void {
  writeFileSync(path.join(folder, 'tokenizer.json'), JSON.stringify(tokenizer));
  if (config !== undefined) writeFileSync(path.join(folder, 'tokenizer_config.json'), JSON.stringify(config));
}
