// Byte-level BPE learnt from texts, as a tokenizer.json that every reader of that format knows.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { optionError } from '../errors';
import { writeError, writeFileAtomic } from '../files/atomic';
import { checkInteger, checkKeys } from '../options';

/** Options of {@link trainTokenizer}. */
export interface TrainTokenizerOptions {
  /** Tokens in all, at least 512; fewer where the texts have no more pairs that occur twice. Default 2048. */
  vocabSize?: number | undefined;
  /**
   * Words that take the space before them into their token, at most so many: those that hardly ever stand without one.
   * Default 160.
   */
  joinedWords?: number | undefined;
}

const END = '<|end|>';
const MASK = '<|mask|>';
const ROLES = ['user', 'assistant', 'system'];
const roleToken = (role: string) => `<|${role}|>`;
const SPECIAL = [END, MASK, ...ROLES.map(roleToken)];

/** Byte-level BPE writes a byte as a printable character: itself, or one from 256 on. */
const BYTE_CHARACTERS: readonly string[] = (() => {
  const isPrintable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++));
})();
const SPACE = BYTE_CHARACTERS[0x20];
const toCharacters = (text: string): string[] => Array.from(Buffer.from(text), (byte) => BYTE_CHARACTERS[byte]);

/** Digits come in pairs, so that 0 to 99 are single tokens. */
const DIGITS = '\\d{1,2}';
/** How the pre-tokenizer "ByteLevel" splits what is left. */
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
/** What may take in the space before it: words of letters and operators, not the punctuation of JSON and the like. */
const JOINABLE = /^(\p{L}+|[-+*/=<>&])$/u;
/** Share of a word's occurrences that must follow a space, to make one token of both. */
const JOINED_SHARE = 0.98;

interface Word {
  parts: string[];
  count: number;
}

/** Words without the space before them, with how often they occur and how often behind a space. */
function countWords(texts: Iterable<string>): Map<string, { count: number; spaced: number }> {
  const words = new Map<string, { count: number; spaced: number }>();
  const digits = new RegExp(`(${DIGITS})`);
  for (const text of texts) {
    if (typeof text !== 'string') throw optionError(TypeError, 'texts', `expected strings, got ${String(text)}`);
    for (const [i, part] of text.split(digits).entries()) {
      if (i % 2 === 1) continue;
      for (const piece of part.match(PIECES) ?? []) {
        const isSpaced = piece.length > 1 && piece.startsWith(' ');
        const word = isSpaced ? piece.slice(1) : piece;
        if (/^\s*$/.test(word)) continue;
        const entry = words.get(word) ?? { count: 0, spaced: 0 };
        entry.count++;
        if (isSpaced) entry.spaced++;
        words.set(word, entry);
      }
    }
  }
  return words;
}

/** The pairs of parts of all words: how often each occurs, and in which words. */
class Pairs {
  readonly #pairs = new Map<string, { count: number; words: Set<number> }>();
  readonly #words: readonly Word[];

  constructor(words: readonly Word[]) {
    this.#words = words;
    for (let i = 0; i < words.length; i++) this.#add(i, 1);
  }

  #add(index: number, sign: 1 | -1): void {
    const { parts, count } = this.#words[index];
    for (let i = 0; i + 1 < parts.length; i++) {
      const key = `${parts[i]} ${parts[i + 1]}`;
      const pair = this.#pairs.get(key) ?? { count: 0, words: new Set() };
      pair.count += sign * count;
      if (sign > 0) pair.words.add(index);
      if (pair.count === 0) this.#pairs.delete(key);
      else this.#pairs.set(key, pair);
    }
  }

  /** The commonest pair, the first in order of code units among equals; null where none occurs twice. */
  commonest(): string | null {
    let best: string | null = null;
    let most = 1;
    for (const [key, { count }] of this.#pairs)
      if (count > most || (count === most && best !== null && key < best)) {
        best = key;
        most = count;
      }
    return best;
  }

  /** Makes one part of a pair wherever it occurs. */
  merge(pair: string): void {
    const [left, right] = pair.split(' ');
    for (const index of this.#pairs.get(pair)!.words) {
      const { parts } = this.#words[index];
      this.#add(index, -1);
      for (let i = 0; i + 1 < parts.length; i++)
        if (parts[i] === left && parts[i + 1] === right) parts.splice(i, 2, left + right);
      this.#add(index, 1);
    }
  }
}

/** tokenizer.json and tokenizer_config.json of a byte-level BPE learnt from texts. */
function byteLevelTokenizer(
  texts: Iterable<string>,
  vocabSize: number,
  joinedWords: number,
): { tokenizer: object; config: object } {
  const counts = countWords(texts);
  if (counts.size === 0) throw optionError(RangeError, 'texts', 'expected at least one word, got none');
  const words = [...counts].map(([text, { count }]) => ({ parts: toCharacters(text), count }));
  const merges = Array.from({ length: 100 }, (_, n) => `${Math.floor(n / 10)} ${n % 10}`);
  const vocab: Record<string, number> = Object.create(null) as Record<string, number>;
  let size = 0;
  for (const token of [...SPECIAL, ...BYTE_CHARACTERS, ...merges.map((pair) => pair.replace(' ', ''))])
    vocab[token] = size++;
  const learn = (pair: string) => {
    merges.push(pair);
    const token = pair.replace(' ', '');
    // Two ways to the same token share its id.
    if (!(token in vocab)) vocab[token] = size++;
  };
  const pairs = new Pairs(words);
  /** Whole words that hardly ever stand without a space, the commonest first. */
  const joined = () =>
    [...counts]
      .filter(([text, { count, spaced }]) => JOINABLE.test(text) && count > 1 && spaced >= JOINED_SHARE * count)
      .map(([text, { count }]) => ({ token: toCharacters(text).join(''), count }))
      .filter(({ token }) => token in vocab)
      .sort((a, b) => b.count - a.count || (a.token < b.token ? -1 : 1))
      .slice(0, joinedWords);
  // There may be fewer words to join than asked for; what they leave over is for more pairs.
  for (let reserved = joinedWords; size + reserved < vocabSize; reserved = joined().length) {
    let pair = pairs.commonest();
    if (pair === null) break;
    for (; pair !== null && size + reserved < vocabSize; pair = pairs.commonest()) {
      learn(pair);
      pairs.merge(pair);
    }
  }
  // Learnt after all others: a space joins a word only once the word is whole.
  for (const { token } of joined().slice(0, vocabSize - size)) learn(`${SPACE} ${token}`);
  const marker = (token: string) => ({ SpecialToken: { id: token, type_id: 0 } });
  const [user, assistant] = [roleToken('user'), roleToken('assistant')];
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: SPECIAL.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: DIGITS }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      ],
    },
    // Plain text is what a user says.
    post_processor: {
      type: 'TemplateProcessing',
      single: [marker(user), { Sequence: { id: 'A', type_id: 0 } }, marker(assistant)],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: Object.fromEntries(
        [user, assistant].map((token) => [token, { id: token, ids: [vocab[token]], tokens: [token] }]),
      ),
    },
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab,
      merges,
    },
  };
  const config = {
    eos_token: END,
    pad_token: END,
    mask_token: MASK,
    additional_special_tokens: ROLES.map(roleToken),
    clean_up_tokenization_spaces: false,
    chat_template:
      "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}" +
      `{% if add_generation_prompt %}{{ '${assistant}' }}{% endif %}`,
  };
  return { tokenizer, config };
}

/**
 * Learns a tokenizer from texts and writes tokenizer.json and tokenizer_config.json to `folder`, which `createModel`
 * takes. Equal texts give equal files.
 *
 * It is a byte-level BPE, which writes every text. Merges are learnt on words without the space before them, so that a
 * word is the same tokens in prose and between quotes; after that the words that hardly ever stand without a space take
 * it in. Numbers are pairs of digits. Messages are `<|user|>…<|assistant|>…`, and plain text is a user's message.
 * @throws TypeError, RangeError for options and texts; DUltraError WRITE_FAILED.
 */
export async function trainTokenizer(
  folder: string,
  texts: Iterable<string>,
  options: TrainTokenizerOptions = {},
): Promise<void> {
  if (typeof folder !== 'string' || folder === '')
    throw optionError(TypeError, 'folder', `expected a path, got ${JSON.stringify(folder)}`);
  if (typeof texts !== 'object' || texts === null || !(Symbol.iterator in texts))
    throw optionError(TypeError, 'texts', `expected a list of strings, got ${String(texts)}`);
  checkKeys('options', options, ['vocabSize', 'joinedWords']);
  const { vocabSize = 2048 } = options;
  checkInteger('vocabSize', vocabSize, { min: 512, max: 1 << 17 });
  const { joinedWords = Math.min(160, vocabSize - 400) } = options;
  checkInteger('joinedWords', joinedWords, { min: 0, max: vocabSize - 400 });
  const { tokenizer, config } = byteLevelTokenizer(texts, vocabSize, joinedWords);
  try {
    await mkdir(folder, { recursive: true });
    await writeFileAtomic(path.join(folder, 'tokenizer.json'), `${JSON.stringify(tokenizer)}\n`);
    await writeFileAtomic(path.join(folder, 'tokenizer_config.json'), `${JSON.stringify(config, null, 2)}\n`);
  } catch (cause) {
    throw writeError(folder, cause);
  }
}
