// Components of tokenizer.json against recorded answers of the library that defines them.
import { Tokenizer } from '../lib/model/tokenizer';
import recorded from './fixtures/tokenizers.json';
import { byteLevelTokenizer } from './tokenizers';

type Answer = number[] | { with: number[]; without: number[]; split: number[] };
interface Case {
  name: string;
  /** Which of the vocabularies, null for its own. */
  vocabulary: number | null;
  tokenizer: Record<string, unknown> & { model: Record<string, unknown> };
}

function make({ vocabulary, tokenizer }: Case): Tokenizer {
  const vocab =
    vocabulary === null
      ? tokenizer.model.vocab
      : Object.fromEntries(recorded.vocabularies[vocabulary].map((token, id) => [token, id]));
  return new Tokenizer({ ...tokenizer, model: { ...tokenizer.model, vocab } }, {}, null, 1, 'case');
}

const cases = recorded.cases as unknown as (Case & { ids: Answer[]; decoded: [number[], string, string?][] })[];

test('the recorded cases are there', () => {
  expect(cases.length).toBeGreaterThan(140);
  expect(cases.flatMap(({ ids }) => ids).length).toBeGreaterThan(1900);
});

test.each(cases.map((one) => [one.name, one] as const))('ids and text: %s', (_name, one) => {
  const tokenizer = make(one);
  recorded.texts.forEach((text, i) => {
    const answer = one.ids[i];
    const expected = Array.isArray(answer) ? { with: answer, without: answer, split: answer } : answer;
    expect([text, tokenizer.encode(text)]).toEqual([text, expected.with]);
    expect([text, tokenizer.encode(text, { addSpecialTokens: false })]).toEqual([text, expected.without]);
    const plain = { addSpecialTokens: false, splitSpecialTokens: true };
    expect([text, tokenizer.encode(text, plain)]).toEqual([text, expected.split]);
    // Never refused by its length: a text of as many tokens as may be.
    expect(tokenizer.encode(text, { atMost: expected.without.length })).toEqual(expected.with);
    const bare = { addSpecialTokens: false, atMost: expected.without.length };
    expect([text, tokenizer.encode(text, bare)]).toEqual([text, expected.without]);
  });
  for (const [ids, text, skipped = text] of one.decoded) {
    expect([ids, tokenizer.decode(ids)]).toEqual([ids, text]);
    expect([ids, tokenizer.decode(ids, { skipSpecialTokens: true })]).toEqual([ids, skipped]);
  }
});

test('a text that is too long for so many tokens is refused without being encoded', () => {
  const { tokenizer, config } = byteLevelTokenizer();
  const normalized = { ...tokenizer, normalizer: { type: 'NFC' } };
  const stripped = { ...tokenizer, normalizer: { type: 'Strip', strip_left: true, strip_right: true } };
  const make = (json: object) => new Tokenizer(json, config, '{{ messages[0].content }}', 1, 'case');
  // The longest token is "<|endoftext|>", of 13 bytes; NFC may make one byte of four.
  expect(() => make(tokenizer).encode('a'.repeat(1301), { atMost: 100 })).toThrow('at least 101 tokens');
  expect(make(tokenizer).encode('a'.repeat(1300), { atMost: 100 })).toHaveLength(1300);
  expect(() => make(normalized).encode('a'.repeat(5201), { atMost: 100 })).toThrow('at least 101 tokens');
  expect(make(normalized).encode('a'.repeat(5200), { atMost: 100 })).toHaveLength(5200);
  // Of a text that is taken away nothing can be said.
  expect(make(stripped).encode(' '.repeat(5000), { atMost: 1 })).toEqual([]);
  const message = [{ role: 'user', content: '<|endoftext|>'.repeat(100) }];
  expect(make(tokenizer).encodeMessages(message, { atMost: 100 })).toHaveLength(100);
  expect(make(tokenizer).encodeMessages(message, { splitSpecialTokens: true, atMost: 100 })).toHaveLength(1300);
  expect(() => make(tokenizer).encodeMessages(message, { atMost: 99 })).toThrow('at least 100 tokens');
});

const refused = recorded.refused as unknown as Case[];
test.each(refused.map((one) => [one.name, one] as const))('refused: %s', (_name, one) => {
  const use = () => {
    const tokenizer = make(one);
    for (const text of recorded.texts) tokenizer.encode(text);
  };
  expect(use).toThrow();
});

describe('what is refused is named', () => {
  const base = {
    version: '1.0',
    added_tokens: [] as unknown[],
    normalizer: null as unknown,
    pre_tokenizer: null as unknown,
    post_processor: null as unknown,
    decoder: null as unknown,
    model: { type: 'WordLevel', vocab: { a: 0, b: 1 }, unk_token: 'a' } as unknown,
  };
  const bpe = { type: 'BPE', vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'] };
  const split = (Regex: string) => ({
    pre_tokenizer: { type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false },
  });
  const wrong: [string, Partial<Record<keyof typeof base | 'truncation' | 'padding' | 'more', unknown>>, RegExp][] = [
    ['a normalizer', { normalizer: { type: 'Precompiled' } }, /^normalizer: "Precompiled" is not supported/],
    [
      'a part of a sequence',
      { pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Whitespace' }, { type: 'UnicodeScripts' }] } },
      /^pre_tokenizer \(Sequence\)\.pretokenizers\[1\]: "UnicodeScripts" is not supported/,
    ],
    ['an option', { pre_tokenizer: { type: 'Whitespace', mode: 2 } }, /^pre_tokenizer \(Whitespace\): .*"mode"/],
    ['a value of an option', { pre_tokenizer: { type: 'Punctuation', behavior: 'Odd' } }, /\(Punctuation\)\.behavior/],
    ['a part that is no object', { decoder: 'ByteLevel' }, /^decoder: undefined is not supported/],
    ['a model', { model: { type: 'Unigram', vocab: [['a', 0]] } }, /^model: "Unigram" is not supported/],
    ['random merges', { model: { ...bpe, dropout: 0.1 } }, /\.dropout: random merges are not supported/],
    ['a merge of three', { model: { ...bpe, merges: ['a b c'] } }, /\.merges: expected two tokens, got "a b c"/],
    ['a merge of what is no token', { model: { ...bpe, merges: ['a c'] } }, /\.merges: "c" is not in the vocabulary/],
    ['two tokens of one id', { model: { ...bpe, vocab: { a: 0, b: 0, ab: 2 } } }, /"a" and "b" have the same id 0/],
    ['truncation', { truncation: { max_length: 2 } }, /^truncation: a tokenizer that cuts texts is not supported/],
    ['padding', { padding: { length: 2 } }, /^padding: a tokenizer that pads texts is not supported/],
    ['another section', { more: 1 }, /"more"/],
    ['an id that is not the next', { added_tokens: [{ id: 7, content: 'c' }] }, /"c" has id 7, where 2 is the next/],
    [
      'an added token of a flag',
      { added_tokens: [{ id: 2, content: 'c', bold: true }] },
      /^added_tokens\[0\]: .*"bold"/,
    ],
    ['a pattern with a back reference', split('(a)\\1'), /the pattern "\(a\)\\\\1" is not supported: "\\1"/],
    ['a pattern with a start of line', split('^a'), /not supported: "\^"/],
    ['a pattern that repeats a repetition', split('a{2}?'), /not supported: "\{2\}\?"/],
    ['a pattern of a property', split('\\p{Emoji}'), /not supported: the property Emoji/],
    ['a pattern of ß without its case', split('(?i:ss)'), /not supported: these letters without their case/],
    ['a pattern of a range without its case', split('(?i:[a-z])'), /not supported: a range without its case/],
  ];
  test.each(wrong)('%s', (_name, parts, message) => {
    expect(() => new Tokenizer({ ...base, ...parts }, {}, null, 1, 'case')).toThrow(message);
  });
});

test('characters that are newer than the tables of the library are of the kind that they have there', () => {
  const tokens = ['x', '\u32ff', '\u2e43', 'a\u2e43', '\u2e42', 'a', '\u0afa', 'aa', '\u4ee4\u548c', '\u00e9'];
  const model = {
    type: 'WordLevel',
    vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
    unk_token: 'x',
  };
  const make = (parts: object) => new Tokenizer({ model, ...parts }, {}, null, 1, 'case');
  expect(make({ normalizer: { type: 'NFKC' } }).encode('\u32ff')).toEqual([1]);
  expect(make({ normalizer: { type: 'NFKC' } }).encode('e\u0301')).toEqual([9]);
  const punctuation = make({ pre_tokenizer: { type: 'Punctuation', behavior: 'Isolated' } });
  expect(punctuation.encode('a\u2e43')).toEqual([3]);
  expect(punctuation.encode('a\u2e42')).toEqual([5, 4]);
  const plain = make({ normalizer: { type: 'StripAccents' } });
  expect(plain.encode('\u0afa')).toEqual([6]);
  expect(plain.encode('a\u0301a')).toEqual([7]);
});

test('long runs of white space take no long time', () => {
  const added = (content: string, id: number) => ({
    id,
    content,
    single_word: true,
    lstrip: true,
    rstrip: true,
    normalized: false,
    special: true,
  });
  const tokenizer = new Tokenizer(
    {
      added_tokens: [added('<a>', 2), added('<b>', 3)],
      normalizer: { type: 'Strip', strip_left: true, strip_right: true },
      pre_tokenizer: { type: 'WhitespaceSplit' },
      model: { type: 'WordLevel', vocab: { x: 0, y: 1 }, unk_token: 'x' },
    },
    {},
    null,
    1,
    'case',
  );
  const gap = ' '.repeat(200_000);
  expect(tokenizer.encode(`x${gap}y${gap}<a>${gap}<b>${gap}x`)).toEqual([0, 1, 2, 3, 0]);
});
