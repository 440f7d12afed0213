// The tokenizer of a GGUF file, as tokenizer.json and tokenizer_config.json would describe it.
import { isDeepStrictEqual } from 'node:util';
import type { GgufKey } from '../../files/write-gguf';
import { show } from '../../text';
import type { GgufKeys } from './config';

const LLAMA3_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
/** As of Llama 3 and Qwen2, which differ in how many digits a piece has. */
const modern = (digits: string): string =>
  `${LLAMA3_CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

const LLAMA3 = modern('\\p{N}{1,3}');
const QWEN2 = modern('\\p{N}');
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const BAILING =
  "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+";

/** How text is cut before merging, by `tokenizer.ggml.pre`. */
const PATTERNS: Readonly<Record<string, string>> = {
  'llama-bpe': LLAMA3,
  llama3: LLAMA3,
  'llama-v3': LLAMA3,
  qwen2: QWEN2,
  'deepseek-r1-qwen': QWEN2,
  'gpt-2': GPT2,
  'llada-moe': BAILING,
  bailingmoe: BAILING,
};

/** Values of `tokenizer.ggml.token_type`. */
const CONTROL = 3;
const USER_DEFINED = 4;
const UNUSED = 5;

/** What a file's tokenizer has before and after its model, where texts are cut by `pattern`. */
const BYTE_LEVEL = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
const cutBy = (pattern: string) => ({
  type: 'Sequence',
  pretokenizers: [{ type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false }, BYTE_LEVEL],
});

/** A tokenizer as its two files of JSON. */
export interface TokenizerJson {
  tokenizer: Record<string, unknown>;
  config: Record<string, unknown>;
}

/**
 * The tokenizer that a file holds; null where it has none.
 * @throws DUltraError BAD_CHECKPOINT for one that is not known here: a tokenizer.json beside the file replaces it
 */
export function ggufTokenizer(keys: GgufKeys, maskTokenId: number | null): TokenizerJson | null {
  const model = keys.text('tokenizer.ggml.model');
  if (model === undefined || model === 'no_vocab' || model === 'none') return null;
  const unknown = (key: string, expected: string, got: unknown) =>
    keys.fail(`${key}: expected ${expected}, got ${show(got)}; a tokenizer.json beside the file takes its place`);
  if (model !== 'gpt2') throw unknown('tokenizer.ggml.model', '"gpt2"', model);
  const pre = keys.text('tokenizer.ggml.pre');
  const pattern = pre !== undefined && Object.hasOwn(PATTERNS, pre) ? PATTERNS[pre] : undefined;
  if (pattern === undefined) throw unknown('tokenizer.ggml.pre', Object.keys(PATTERNS).join(', '), pre);
  const tokens = keys.texts('tokenizer.ggml.tokens') ?? [];
  const types = keys.numbers('tokenizer.ggml.token_type') ?? new Array<number>(tokens.length).fill(1);
  const merges = keys.texts('tokenizer.ggml.merges');
  if (types.length !== tokens.length)
    throw keys.fail(`tokenizer.ggml.token_type: expected one of each of ${tokens.length} tokens, got ${types.length}`);
  if (merges === undefined) throw keys.fail('tokenizer.ggml.merges: expected a list of texts, got no such key');
  const vocab = Object.create(null) as Record<string, number>;
  const added: object[] = [];
  const contents = new Set<string>();
  tokens.forEach((content, id) => {
    const type = types[id];
    if (type === UNUSED) return;
    if (type !== CONTROL && type !== USER_DEFINED) {
      vocab[content] = id;
      return;
    }
    if (contents.has(content) || content === '') return;
    contents.add(content);
    added.push({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: type === CONTROL,
    });
  });
  const textOf = (id: number | null | undefined): string | undefined =>
    id !== undefined && id !== null && types[id] !== UNUSED ? tokens[id] : undefined;
  const bosId = keys.count('tokenizer.ggml.bos_token_id');
  const bos = textOf(bosId);
  const begins = (keys.flag('tokenizer.ggml.add_bos_token') ?? false) && bos !== undefined;
  const template = keys.text('tokenizer.chat_template');
  return {
    tokenizer: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: added,
      normalizer: null,
      pre_tokenizer: cutBy(pattern),
      post_processor: begins
        ? {
            type: 'TemplateProcessing',
            single: [{ SpecialToken: { id: bos, type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
            pair: [
              { SpecialToken: { id: bos, type_id: 0 } },
              { Sequence: { id: 'A', type_id: 0 } },
              { SpecialToken: { id: bos, type_id: 1 } },
              { Sequence: { id: 'B', type_id: 1 } },
            ],
            special_tokens: { [bos]: { id: bos, ids: [bosId], tokens: [bos] } },
          }
        : null,
      decoder: BYTE_LEVEL,
      model: {
        type: 'BPE',
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: pattern === LLAMA3,
        vocab,
        merges,
      },
    },
    config: {
      ...(bos !== undefined && { bos_token: bos }),
      ...withToken('eos_token', textOf(keys.count('tokenizer.ggml.eos_token_id'))),
      ...withToken('pad_token', textOf(keys.count('tokenizer.ggml.padding_token_id'))),
      ...withToken('mask_token', textOf(maskTokenId)),
      ...(template !== undefined && { chat_template: template }),
      clean_up_tokenization_spaces: false,
    },
  };
}

const withToken = (key: string, content: string | undefined): Record<string, string> =>
  content === undefined || content === '' ? {} : { [key]: content };

type Json = Readonly<Record<string, unknown>>;

/** Whether a text begins with this token, and nothing else is put around it; null: something else is. */
function beginsWith(processor: Json | null | undefined): string | null | undefined {
  if (!processor || processor.type === 'ByteLevel') return undefined;
  const single = processor.type === 'TemplateProcessing' ? (processor.single as Json[] | undefined) : undefined;
  if (!Array.isArray(single) || single.length !== 2 || !('Sequence' in single[1])) return null;
  const id = (single[0].SpecialToken as Json | undefined)?.id;
  return typeof id === 'string' ? id : null;
}

/**
 * The keys of a tokenizer of `size` ids; null where they cannot say all of it: it is none of byte-level BPE, cuts texts
 * in a way without a name in such files, or changes them before or after.
 */
export function tokenizerKeys(tokenizer: Json, config: Json, size: number): GgufKey[] | null {
  const { model, normalizer, pre_tokenizer: cuts, post_processor: after, added_tokens: added = [] } = tokenizer;
  const bpe = (model ?? {}) as Json;
  const name = Object.keys(PATTERNS).find(
    (pre) =>
      isDeepStrictEqual(cuts, cutBy(PATTERNS[pre])) && (bpe.ignore_merges === true) === (PATTERNS[pre] === LLAMA3),
  );
  const start = beginsWith(after as Json | null);
  const decoder = tokenizer.decoder as Json | null;
  if (bpe.type !== 'BPE' || name === undefined || (normalizer ?? null) !== null || decoder?.type !== 'ByteLevel')
    return null;
  if (start === null || bpe.byte_fallback === true || (bpe.dropout ?? null) !== null || !Array.isArray(added))
    return null;
  const tokens = Array.from({ length: size }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(size).fill(UNUSED);
  const put = (content: string, id: number, type: number): boolean => {
    if (!(id < size)) return false;
    tokens[id] = content;
    types[id] = type;
    return true;
  };
  for (const [content, id] of Object.entries(bpe.vocab as Record<string, number>))
    if (!put(content, id, 1)) return null;
  for (const token of added as { id: number; content: string; special: boolean; [flag: string]: unknown }[]) {
    const changes = token.single_word === true || token.lstrip === true || token.rstrip === true;
    if (changes || !put(token.content, token.id, token.special ? CONTROL : USER_DEFINED)) return null;
  }
  const idOf = (key: string): GgufKey[] => {
    const content = key === 'bos' && start !== undefined ? start : textOf(config[`${key}_token`]);
    const id = content === undefined ? -1 : tokens.indexOf(content);
    return id < 0 ? [] : [[`tokenizer.ggml.${key}_token_id`, 'u32', id]];
  };
  const merges = (bpe.merges as (string | [string, string])[]).map((merge) =>
    typeof merge === 'string' ? merge : merge.join(' '),
  );
  const template = config.chat_template;
  return [
    ['tokenizer.ggml.model', 'string', 'gpt2'],
    ['tokenizer.ggml.pre', 'string', name],
    ['tokenizer.ggml.tokens', 'strings', tokens],
    ['tokenizer.ggml.token_type', 'i32s', types],
    ['tokenizer.ggml.merges', 'strings', merges],
    ...idOf('bos'),
    ['tokenizer.ggml.add_bos_token', 'bool', start !== undefined],
    ...(typeof template === 'string' ? ([['tokenizer.chat_template', 'string', template]] as const) : []),
  ];
}

const textOf = (token: unknown): string | undefined => {
  const content = typeof token === 'object' && token !== null ? (token as { content?: unknown }).content : token;
  return typeof content === 'string' ? content : undefined;
};
