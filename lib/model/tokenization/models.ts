// Models: a piece of text as ids.
import { z } from 'zod';
import { show } from '../../text';
import { bytesOfText } from './bytes';
import { build, type Component, component } from './component';

export interface Model {
  vocabulary: ReadonlyMap<string, number>;
  /** Ids of a piece, which is not empty. @throws Error where the vocabulary has no token for it */
  encode: (piece: string) => number[];
  /** The token that stands for what the vocabulary lacks, or null. */
  unknownId: number | null;
}

/** Pieces whose ids are kept, and their longest length. */
const CACHED_PIECES = 10_000;
const CACHED_LENGTH = 256;

const vocabularySchema = z.record(z.string(), z.int().nonnegative());

function byId(vocabulary: Record<string, number>, path: string): Map<string, number> {
  const map = new Map(Object.entries(vocabulary));
  const ids = new Map<number, string>();
  for (const [token, id] of map) {
    if (ids.has(id)) throw new Error(`${path}.vocab: ${show(ids.get(id))} and ${show(token)} have the same id ${id}`);
    ids.set(id, token);
  }
  return map;
}

/** Merges by their pair of ids: the rank, and the id of what they make. */
class Merges {
  readonly #ranks = new Map<number, number>();
  readonly #made: number[] = [];
  readonly #base: number;

  constructor(
    vocabulary: ReadonlyMap<string, number>,
    pairs: Iterable<readonly [string, string]>,
    prefix: string,
    path: string,
  ) {
    let last = 0;
    for (const id of vocabulary.values()) if (id > last) last = id;
    this.#base = last + 1;
    const idOf = (token: string) => {
      const id = vocabulary.get(token);
      if (id === undefined) throw new Error(`${path}.merges: ${show(token)} is not in the vocabulary`);
      return id;
    };
    for (const [left, right] of pairs) {
      if (!right.startsWith(prefix))
        throw new Error(`${path}.merges: ${show(right)} does not start with ${show(prefix)}`);
      this.#ranks.set(idOf(left) * this.#base + idOf(right), this.#made.length);
      this.#made.push(idOf(left + right.slice(prefix.length)));
    }
  }
  /** undefined for a pair that is not merged. */
  rank(left: number, right: number): number | undefined {
    return this.#ranks.get(left * this.#base + right);
  }
  made(rank: number): number {
    return this.#made[rank];
  }
}

/** Candidates for a merge, the lowest rank and then the leftmost first: a binary heap. */
class Queue {
  readonly #heap: { rank: number; at: number }[] = [];

  static #precedes(a: { rank: number; at: number }, b: { rank: number; at: number }): boolean {
    return a.rank === b.rank ? a.at < b.at : a.rank < b.rank;
  }
  push(rank: number, at: number): void {
    const heap = this.#heap;
    let child = heap.push({ rank, at }) - 1;
    while (child > 0) {
      const parent = (child - 1) >> 1;
      if (!Queue.#precedes(heap[child], heap[parent])) return;
      [heap[child], heap[parent]] = [heap[parent], heap[child]];
      child = parent;
    }
  }
  pop(): { rank: number; at: number } | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (heap.length === 0 || last === undefined) return first;
    heap[0] = last;
    for (let parent = 0; ; ) {
      let least = parent;
      for (const child of [2 * parent + 1, 2 * parent + 2])
        if (child < heap.length && Queue.#precedes(heap[child], heap[least])) least = child;
      if (least === parent) return first;
      [heap[parent], heap[least]] = [heap[least], heap[parent]];
      parent = least;
    }
  }
}

/** Merges neighbours until none can be merged. */
function mergeAll(ids: number[], merges: Merges): number[] {
  const next = ids.map((_id, i) => (i + 1 < ids.length ? i + 1 : -1));
  const previous = ids.map((_id, i) => i - 1);
  const isGone = new Uint8Array(ids.length);
  const queue = new Queue();
  const offer = (at: number) => {
    const rank = at < 0 || next[at] < 0 ? undefined : merges.rank(ids[at], ids[next[at]]);
    if (rank !== undefined) queue.push(rank, at);
  };
  for (let i = 0; i + 1 < ids.length; i++) offer(i);
  for (let top = queue.pop(); top !== undefined; top = queue.pop()) {
    const { rank, at } = top;
    const right = next[at];
    // Entries of pairs that were merged otherwise meanwhile.
    if (isGone[at] || right < 0) continue;
    const current = merges.rank(ids[at], ids[right]);
    if (current === undefined || merges.made(current) !== merges.made(rank)) continue;
    ids[at] = merges.made(rank);
    isGone[right] = 1;
    next[at] = next[right];
    if (next[at] >= 0) previous[next[at]] = at;
    offer(previous[at]);
    offer(at);
  }
  return ids.filter((_id, i) => !isGone[i]);
}

/** A merge: two tokens, or in older files a text of both. */
function pairOf(merge: unknown, path: string): readonly [string, string] {
  const parts = typeof merge === 'string' ? merge.split(' ') : merge;
  if (Array.isArray(parts) && parts.length === 2 && typeof parts[0] === 'string' && typeof parts[1] === 'string')
    return parts as [string, string];
  throw new Error(`${path}.merges: expected two tokens, got ${show(merge)}`);
}

const bpe = component(
  {
    vocab: vocabularySchema,
    merges: z.array(z.unknown()),
    dropout: z.literal(0, 'random merges are not supported').nullish(),
    unk_token: z.string().nullish(),
    continuing_subword_prefix: z.string().nullish(),
    end_of_word_suffix: z.string().nullish(),
    fuse_unk: z.boolean().nullish(),
    byte_fallback: z.boolean().nullish(),
    ignore_merges: z.boolean().nullish(),
  },
  (options, path): Model => {
    const vocabulary = byId(options.vocab, path);
    const prefix = options.continuing_subword_prefix ?? '';
    const suffix = options.end_of_word_suffix ?? '';
    const isHeader = (merge: unknown) => typeof merge === 'string' && merge.startsWith('#version');
    const pairs = options.merges.filter((merge) => !isHeader(merge)).map((merge) => pairOf(merge, path));
    const merges = new Merges(vocabulary, pairs, prefix, path);
    const { unk_token: unknownToken } = options;
    const unknown = unknownToken === undefined || unknownToken === null ? null : vocabulary.get(unknownToken);

    const symbols = (piece: string): number[] => {
      const ids: number[] = [];
      let isPending = false;
      const flush = () => {
        if (isPending) ids.push(unknown!);
        isPending = false;
      };
      const characters = Array.from(piece);
      characters.forEach((character, i) => {
        const symbol = (i > 0 ? prefix : '') + character + (i === characters.length - 1 ? suffix : '');
        const id = vocabulary.get(symbol);
        if (id !== undefined) {
          flush();
          ids.push(id);
          return;
        }
        if (options.byte_fallback) {
          const bytes = Array.from(bytesOfText(symbol), (byte) =>
            vocabulary.get(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`),
          );
          if (bytes.every((byte) => byte !== undefined)) {
            ids.push(...bytes);
            return;
          }
        }
        // A vocabulary without a token for the unknown leaves it out.
        if (unknown === null) return;
        if (unknown === undefined)
          throw new Error(`no token for ${show(unknownToken)}, which stands for what is unknown`);
        if (!options.fuse_unk) flush();
        isPending = true;
      });
      flush();
      return ids;
    };

    const cache = new Map<string, number[]>();
    return {
      vocabulary,
      unknownId: unknown ?? null,
      encode: (piece) => {
        const whole = options.ignore_merges ? vocabulary.get(piece) : undefined;
        if (whole !== undefined) return [whole];
        const known = cache.get(piece);
        if (known !== undefined) return known;
        const ids = mergeAll(symbols(piece), merges);
        if (piece.length <= CACHED_LENGTH) {
          if (cache.size >= CACHED_PIECES) cache.clear();
          cache.set(piece, ids);
        }
        return ids;
      },
    };
  },
);

const wordLevel = component(
  { vocab: vocabularySchema, unk_token: z.string().nullish() },
  ({ vocab, unk_token }, path): Model => {
    const vocabulary = byId(vocab, path);
    return {
      vocabulary,
      unknownId: vocabulary.get(unk_token ?? '') ?? null,
      encode: (piece) => {
        const id = vocabulary.get(piece) ?? vocabulary.get(unk_token ?? '');
        if (id === undefined) throw new Error(`the tokenizer has no token for ${show(piece)}`);
        return [id];
      },
    };
  },
);

const wordPiece = component(
  {
    vocab: vocabularySchema,
    unk_token: z.string(),
    continuing_subword_prefix: z.string().default('##'),
    max_input_chars_per_word: z.int().nonnegative().default(100),
  },
  ({ vocab, unk_token, continuing_subword_prefix: prefix, max_input_chars_per_word: longest }, path): Model => {
    const vocabulary = byId(vocab, path);
    const unknown = (piece: string) => {
      const id = vocabulary.get(unk_token);
      if (id === undefined) throw new Error(`the tokenizer has no token for ${show(piece)}`);
      return [id];
    };
    return {
      vocabulary,
      unknownId: vocabulary.get(unk_token) ?? null,
      encode: (piece) => {
        const characters = Array.from(piece);
        if (characters.length > longest) return unknown(piece);
        const ids: number[] = [];
        for (let start = 0; start < characters.length; ) {
          let end = characters.length;
          let id: number | undefined;
          for (; end > start; end--) {
            id = vocabulary.get((start > 0 ? prefix : '') + characters.slice(start, end).join(''));
            if (id !== undefined) break;
          }
          if (id === undefined) return unknown(piece);
          ids.push(id);
          start = end;
        }
        return ids;
      },
    };
  },
);

const MODELS: Record<string, Component<Model>> = { BPE: bpe, WordLevel: wordLevel, WordPiece: wordPiece };

/** The model of a tokenizer.json. @throws Error naming what is not supported */
export const buildModel = (json: unknown): Model => build(MODELS, json, 'model');
