// The tokens of a vocabulary as bytes.
import { DUltraError } from '../errors';
import type { Tokenizer } from '../model/tokenizer';

/** Tokens that stand for bytes, in the order of their bytes. */
export interface TokenBytes {
  /** Ids (T). */
  readonly ids: Int32Array;
  /** Bytes of token i: those from offsets[i] to offsets[i + 1]. */
  readonly bytes: Uint8Array;
  readonly offsets: Int32Array;
  /** (T) Bytes that token i shares with the one before it. */
  readonly shared: Int32Array;
  /** Place of an id in them; of others nothing. */
  readonly places: ReadonlyMap<number, number>;
  /** Rows of the model's tables. */
  readonly vocabulary: number;
}

const known = new WeakMap<Tokenizer, TokenBytes>();

/** The tokens of a tokenizer. Special and added tokens stand for none. @throws DUltraError NO_TOKENIZER */
export function tokenBytes(
  tokenizer: Tokenizer,
  { embeddingSize, maskTokenId }: { embeddingSize: number; maskTokenId: number },
  source: string,
): TokenBytes {
  let result = known.get(tokenizer);
  if (!result) {
    const tokens = tokenizer.tokenBytes();
    if (!tokens)
      throw new DUltraError(
        'NO_TOKENIZER',
        `${source}: its tokenizer joins tokens by rules of words; a schema or pattern needs one whose tokens stand for bytes`,
      );
    result = inOrder(
      [...tokens].filter(([id, { length }]) => id < embeddingSize && id !== maskTokenId && length > 0),
      embeddingSize,
    );
    known.set(tokenizer, result);
  }
  return result;
}

function inOrder(tokens: (readonly [number, Uint8Array])[], vocabulary: number): TokenBytes {
  tokens.sort((a, b) => Buffer.compare(a[1], b[1]) || a[0] - b[0]);
  const offsets = new Int32Array(tokens.length + 1);
  tokens.forEach(([, bytes], i) => {
    offsets[i + 1] = offsets[i] + bytes.length;
  });
  const bytes = new Uint8Array(offsets[tokens.length]);
  const shared = new Int32Array(tokens.length);
  tokens.forEach(([, own], i) => {
    bytes.set(own, offsets[i]);
    if (i === 0) return;
    const before = tokens[i - 1][1];
    while (shared[i] < own.length && before[shared[i]] === own[shared[i]]) shared[i]++;
  });
  return {
    ids: Int32Array.from(tokens, ([id]) => id),
    bytes,
    offsets,
    shared,
    places: new Map(tokens.map(([id], i) => [id, i])),
    vocabulary,
  };
}

/** Bytes of a token; null where it stands for none. */
export function bytesOf({ bytes, offsets, places }: TokenBytes, id: number): Uint8Array | null {
  const place = places.get(id);
  return place === undefined ? null : bytes.subarray(offsets[place], offsets[place + 1]);
}

/** Text of ids; those without bytes are left out. */
export function textOf(tokens: TokenBytes, ids: Iterable<number>): string {
  const parts: Uint8Array[] = [];
  for (const id of ids) {
    const bytes = bytesOf(tokens, id);
    if (bytes) parts.push(bytes);
  }
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.concat(parts));
}
