// Files of llama.cpp: their blocks, their keys, their order of rows, their tokenizers, and damaged ones.
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { isDUltraError, type LoadModelOptions, loadCausalModel, loadModel, quantizeModel } from '../lib';
import { BLOCKS, type BlockType } from '../lib/files/blocks';
import { type GgufType, readGguf } from '../lib/files/gguf';
import { type GgufKey, writeGguf } from '../lib/files/write-gguf';
import { random } from './checkpoints';
import { readTensors, temporaryFolder } from './helpers';

const SEED = Number(process.env.DULTRA_TEST_SEED ?? 1);
const RUNS = Number(process.env.DULTRA_TEST_RUNS ?? 1);

jest.setTimeout(60_000 * RUNS);

const TYPES = Object.keys(BLOCKS) as BlockType[];
const half = (b: Buffer, at: number): number => {
  const bits = b.readUInt16LE(at);
  const exponent = (bits >> 10) & 31;
  const magnitude = exponent === 0 ? (bits & 1023) * 2 ** -24 : (1 + (bits & 1023) / 1024) * 2 ** (exponent - 15);
  return bits >> 15 ? -magnitude : magnitude;
};
const IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const nibble = (b: Buffer, at: number, i: number) => (i < 16 ? b[at + i] & 15 : b[at + i - 16] >> 4);
const bit = (b: Buffer, at: number, i: number) => (b[at + (i >> 3)] >> (i & 7)) & 1;
/** Six bits of the scale (part 0) or minimum (part 1) of group g of Q4_K and Q5_K. */
function packed(b: Buffer, g: number, part: 0 | 1): number {
  const s = (i: number) => b[4 + i];
  if (g < 4) return s(g + 4 * part) & 63;
  const low = part === 0 ? s(g + 4) & 15 : s(g + 4) >> 4;
  return low + 16 * (s(part === 0 ? g - 4 : g) >> 6);
}
const three = (b: Buffer, g: number): number => {
  const low = g < 8 ? b[96 + g] & 15 : b[96 + g - 8] >> 4;
  return low + 16 * ((b[104 + (g % 4)] >> (2 * (g >> 2))) & 3) - 32;
};
const two = (b: Buffer, at: number, i: number) => (b[at + 32 * (i >> 7) + (i & 31)] >> (2 * ((i >> 5) & 3))) & 3;

/** Number i of a block, in exact arithmetic: written from the description of the format. */
const VALUE: Record<BlockType, (b: Buffer, i: number) => number> = {
  Q8_0: (b, i) => half(b, 0) * b.readInt8(2 + i),
  Q4_0: (b, i) => half(b, 0) * (nibble(b, 2, i) - 8),
  Q4_1: (b, i) => half(b, 0) * nibble(b, 4, i) + half(b, 2),
  Q5_0: (b, i) => half(b, 0) * (nibble(b, 6, i) + 16 * bit(b, 2, i) - 16),
  Q5_1: (b, i) => half(b, 0) * (nibble(b, 8, i) + 16 * bit(b, 4, i)) + half(b, 2),
  IQ4_NL: (b, i) => half(b, 0) * IQ4[nibble(b, 2, i)],
  Q2_K: (b, i) => half(b, 80) * (b[i >> 4] & 15) * two(b, 16, i) - half(b, 82) * (b[i >> 4] >> 4),
  Q3_K: (b, i) => half(b, 108) * three(b, i >> 4) * (two(b, 32, i) - ((b[i & 31] >> (i >> 5)) & 1 ? 0 : 4)),
  Q4_K: (b, i) =>
    half(b, 0) * packed(b, i >> 5, 0) * ((b[16 + 32 * (i >> 6) + (i & 31)] >> (i & 32 ? 4 : 0)) & 15) -
    half(b, 2) * packed(b, i >> 5, 1),
  Q5_K: (b, i) =>
    half(b, 0) *
      packed(b, i >> 5, 0) *
      (((b[48 + 32 * (i >> 6) + (i & 31)] >> (i & 32 ? 4 : 0)) & 15) + 16 * ((b[16 + (i & 31)] >> (i >> 5)) & 1)) -
    half(b, 2) * packed(b, i >> 5, 1),
  Q6_K: (b, i) => {
    const [p, k, j] = [i >> 7, (i >> 5) & 3, i & 31];
    const low = (b[64 * p + 32 * (k & 1) + j] >> (k < 2 ? 0 : 4)) & 15;
    const code = low + 16 * ((b[128 + 32 * p + j] >> (2 * k)) & 3) - 32;
    return half(b, 208) * b.readInt8(192 + (i >> 4)) * code;
  },
};
/** Where a block has its fp16 numbers. */
const HALVES: Partial<Record<BlockType, number[]>> = { Q2_K: [80, 82], Q3_K: [108], Q6_K: [208] };

/** Random blocks with numbers of the size of weights. */
function blocksOf(type: BlockType, numbers: number, next: () => number): Buffer {
  const { values, bytes } = BLOCKS[type];
  const out = Buffer.from(Array.from({ length: (numbers / values) * bytes }, () => Math.floor(next() * 256)));
  for (let at = 0; at < out.length; at += bytes)
    // 2^-8 to 2^-7 of either sign, less where codes are large.
    for (const offset of HALVES[type] ?? (/_1$|4_K|5_K/.test(type) ? [0, 2] : [0]))
      out.writeUInt16LE(
        (/8_0|IQ4|_K/.test(type) ? 0x0c00 : 0x1c00) + Math.floor(next() * 1024) + (next() < 0.5 ? 0x8000 : 0),
        at + offset,
      );
  return out;
}
function numbersOf(type: BlockType, bytes: Buffer): Float32Array {
  const block = BLOCKS[type];
  return Float32Array.from({ length: (bytes.length / block.bytes) * block.values }, (_, i) => {
    const at = Math.floor(i / block.values) * block.bytes;
    return VALUE[type](bytes.subarray(at, at + block.bytes), i % block.values);
  });
}

const C = 256;
const VOCABULARY = 96;
const SHAPES: Record<string, number[]> = {
  'token_embd.weight': [VOCABULARY, C],
  'output_norm.weight': [C],
  'output.weight': [VOCABULARY, C],
  'blk.0.attn_norm.weight': [C],
  'blk.0.attn_q.weight': [C, C],
  'blk.0.attn_k.weight': [C / 2, C],
  'blk.0.attn_v.weight': [C / 2, C],
  'blk.0.attn_output.weight': [C, C],
  'blk.0.ffn_norm.weight': [C],
  'blk.0.ffn_gate.weight': [C, C],
  'blk.0.ffn_up.weight': [C, C],
  'blk.0.ffn_down.weight': [C, C],
};

/** Keys of a file of one layer. */
const keysOf = (architecture: string, more: GgufKey[] = []): GgufKey[] => [
  ['general.architecture', 'string', architecture],
  [`${architecture}.vocab_size`, 'u32', VOCABULARY],
  [`${architecture}.context_length`, 'u32', 64],
  [`${architecture}.embedding_length`, 'u32', C],
  [`${architecture}.block_count`, 'u32', 1],
  [`${architecture}.feed_forward_length`, 'u32', C],
  [`${architecture}.attention.head_count`, 'u32', 4],
  [`${architecture}.attention.head_count_kv`, 'u32', 2],
  [`${architecture}.attention.layer_norm_rms_epsilon`, 'f32', 1e-5],
  ['tokenizer.ggml.mask_token_id', 'u32', VOCABULARY - 1],
  ...more,
];

interface Made {
  file: string;
  bytes: Map<string, Buffer>;
}

/** A file whose matrices have the types that `typeOf` says; norms are F32. */
async function makeFile(
  keys: GgufKey[],
  typeOf: (name: string) => GgufType,
  { shapes = SHAPES, seed = 1 }: { shapes?: Record<string, number[]>; seed?: number } = {},
): Promise<Made> {
  const next = random(seed);
  const file = path.join(temporaryFolder(), 'model.gguf');
  const bytes = new Map<string, Buffer>();
  const headers = Object.entries(shapes).map(([name, shape]) => {
    const dtype = shape.length === 1 ? 'F32' : typeOf(name);
    const count = shape.reduce((product, n) => product * n, 1);
    const plain = () =>
      Float32Array.from({ length: count }, () => (shape.length === 1 ? 1 + next() / 4 : next() / 8 - 1 / 16));
    bytes.set(name, dtype in BLOCKS ? blocksOf(dtype as BlockType, count, next) : Buffer.from(plain().buffer));
    return { name, dtype, shape };
  });
  await writeGguf(file, keys, headers, async (name) => bytes.get(name)!);
  return { file, bytes };
}

const LLADA: GgufKey[] = keysOf('llada', [['diffusion.shift_logits', 'bool', false]]);
const ids = Array.from({ length: 9 }, (_, i) => (i * 31) % VOCABULARY);

/** Logits of a file or folder, and its tensors as it saves them. */
async function run(source: string, options: LoadModelOptions = {}, folder?: string) {
  await using model = await loadModel(source, options);
  const logits = (await model.forward({ ids, rowOffsets: [0, ids.length] })).logits!;
  if (folder !== undefined) await model.save(folder);
  return { logits, config: model.config, storedDtype: model.storedDtype };
}

describe('blocks', () => {
  test.each(TYPES)('%s: the numbers are exact, and so are products with them', async (type) => {
    const { file, bytes } = await makeFile(LLADA, () => type, { seed: 3 });
    const folder = temporaryFolder();
    const { logits, storedDtype } = await run(file, { threads: 1 }, folder);
    expect(storedDtype).toBe(type);
    const saved = readTensors(path.join(folder, 'model.safetensors'));
    for (const [own, name] of [
      ['token_embd.weight', 'model.transformer.wte.weight'],
      ['blk.0.ffn_down.weight', 'model.transformer.blocks.0.ff_out.weight'],
    ]) {
      const wanted = numbersOf(type, bytes.get(own)!);
      expect(saved[name].data.length).toBe(wanted.length);
      expect(wanted.findIndex((value, i) => value !== saved[name].data[i])).toBe(-1);
    }
    // The folder has the same numbers written out: the same bits, whatever is held in blocks, and on any threads.
    const plain = (await run(folder)).logits;
    expect(logits).toEqual(plain);
    expect((await run(file, { threads: 3 })).logits).toEqual(plain);
    expect((await run(file, { dtype: 'float32' })).logits).toEqual(plain);
    const worst = (other: Float32Array) =>
      Math.sqrt(other.reduce((sum, x, i) => sum + (x - plain[i]) ** 2, 0) / plain.reduce((sum, x) => sum + x * x, 0));
    const { logits: rounded } = await run(file, { compute: 'int8', threads: 2 });
    expect(worst(rounded)).toBeLessThan(0.03);
    expect(rounded).not.toEqual(plain);
  });

  test('of several types in one file, matrices of plain numbers among them', async () => {
    const typeOf = (name: string): GgufType =>
      /attn_v|ffn_down/.test(name) ? 'Q6_K' : /attn_k|output/.test(name) ? 'F32' : 'Q4_K';
    const { file } = await makeFile(LLADA, typeOf);
    const folder = temporaryFolder();
    const { logits, storedDtype } = await run(file, {}, folder);
    expect(storedDtype).toBe('mixed');
    expect((await run(folder)).logits).toEqual(logits);
  });

  test('rows of queries and keys are in their order', async () => {
    const { file, bytes } = await makeFile(LLADA, () => 'F32');
    const folder = temporaryFolder();
    await run(file, {}, folder);
    const saved = readTensors(path.join(folder, 'model.safetensors'));
    for (const which of ['q', 'k']) {
      const stored = new Float32Array(new Uint8Array(bytes.get(`blk.0.attn_${which}.weight`)!).buffer);
      const { data } = saved[`model.transformer.blocks.0.${which}_proj.weight`];
      const D = 64;
      for (let row = 0; row < data.length / C; row++) {
        const [head, inHead] = [Math.floor(row / D), row % D];
        const from = head * D + 2 * (inHead % (D / 2)) + Math.floor(inHead / (D / 2));
        expect(data[row * C + 5]).toBe(stored[from * C + 5]);
      }
    }
  });
});

describe('architectures', () => {
  const withBiases = {
    ...SHAPES,
    'blk.0.attn_q.bias': [C],
    'blk.0.attn_k.bias': [C / 2],
    'blk.0.attn_v.bias': [C / 2],
  };
  const { 'output.weight': _head, ...tied } = SHAPES;

  test('Dream: biases, and its head is a position ahead where the key is absent', async () => {
    const { file } = await makeFile(keysOf('dream'), () => 'Q8_0', { shapes: withBiases });
    const folder = temporaryFolder();
    const { logits, config } = await run(file, {}, folder);
    expect(config).toMatchObject({ family: 'dream', shiftLogits: true, qkvBias: true, maskTokenId: VOCABULARY - 1 });
    expect((await run(folder)).logits).toEqual(logits);
    const again = path.join(temporaryFolder(), 'again.gguf');
    await quantizeModel(folder, again, { to: 'q8' });
    const read = await run(again);
    expect(read.config).toMatchObject({ family: 'dream', shiftLogits: true, qkvBias: true });
    expect(read.logits).toEqual((await run(folder, { quantize: 'q8' })).logits);
  });

  test('LLaDA without the key shifts as llama.cpp does; without an output head it is tied', async () => {
    const { file } = await makeFile(keysOf('llada'), () => 'Q4_0', { shapes: tied });
    const { config } = await run(file);
    expect(config).toMatchObject({ family: 'llada', shiftLogits: true, weightTying: true, ropeTheta: 10000 });
  });

  test('LLaDA-MoE: experts out of their stacks', async () => {
    const E = 4;
    const F = 64;
    const shapes: Record<string, number[]> = {
      ...Object.fromEntries(Object.entries(SHAPES).filter(([name]) => !/ffn_(gate|up|down)/.test(name))),
      'blk.0.attn_q_norm.weight': [64],
      'blk.0.attn_k_norm.weight': [64],
      'blk.0.ffn_gate_inp.weight': [E, C],
      'blk.0.ffn_gate_exps.weight': [E, F, C],
      'blk.0.ffn_up_exps.weight': [E, F, C],
      'blk.0.ffn_down_exps.weight': [E, C, F],
    };
    const keys = keysOf('llada-moe', [
      ['diffusion.shift_logits', 'bool', false],
      ['llada-moe.expert_count', 'u32', E],
      ['llada-moe.expert_used_count', 'u32', 2],
      ['llada-moe.expert_feed_forward_length', 'u32', F],
    ]);
    const { file } = await makeFile(keys, (name) => (name.includes('gate_inp') ? 'F32' : 'Q5_1'), { shapes });
    const folder = temporaryFolder();
    const { logits, config } = await run(file, {}, folder);
    expect(config.experts).toMatchObject({ count: E, perToken: 2, hiddenSize: F, normalize: false });
    expect((await run(folder)).logits).toEqual(logits);
  });

  test.each(['llama', 'qwen2', 'qwen3'])('%s: a teacher', async (architecture) => {
    const shapes = {
      ...(architecture === 'qwen2' ? withBiases : SHAPES),
      ...(architecture === 'qwen3' && { 'blk.0.attn_q_norm.weight': [64], 'blk.0.attn_k_norm.weight': [64] }),
    };
    const { file } = await makeFile(keysOf(architecture), () => 'Q4_1', { shapes });
    using model = await loadCausalModel(file);
    expect(model.config).toMatchObject({ family: architecture, mask: 'causal', dModel: C, nKvHeads: 2 });
    await expect(loadModel(file)).rejects.toMatchObject({ code: 'BAD_CHECKPOINT' });
  });
});

test('a tokenizer out of the file', async () => {
  const tokens = ['h', 'i', '!', 'Ġ', 'hi', 'Ġhi', '<|start|>', '<|mdm_mask|>', '[PAD8]'];
  while (tokens.length < VOCABULARY) tokens.push(`[PAD${tokens.length}]`);
  const keys = LLADA.filter(([key]) => key !== 'tokenizer.ggml.mask_token_id').concat([
    ['tokenizer.ggml.model', 'string', 'gpt2'],
    ['tokenizer.ggml.pre', 'string', 'llama-bpe'],
    ['tokenizer.ggml.tokens', 'strings', tokens],
    ['tokenizer.ggml.token_type', 'i32s', tokens.map((_, i) => (i < 6 ? 1 : i < 8 ? 3 : 5))],
    ['tokenizer.ggml.merges', 'strings', ['h i', 'Ġ hi']],
    ['tokenizer.ggml.bos_token_id', 'u32', 6],
    ['tokenizer.ggml.add_bos_token', 'bool', true],
    ['tokenizer.chat_template', 'string', '{{ messages[0].content }}!'],
  ]);
  const { file } = await makeFile(keys, () => 'Q8_0');
  const folder = temporaryFolder();
  {
    await using model = await loadModel(file);
    expect(model.config.maskTokenId).toBe(7);
    expect(model.tokenizer?.encode('hi hi!')).toEqual([6, 4, 5, 2]);
    expect(model.tokenizer?.encode('hi<|mdm_mask|>', { addSpecialTokens: false })).toEqual([4, 7]);
    expect(model.tokenizer?.applyChatTemplate([{ role: 'user', content: 'hi' }])).toBe('hi!');
    await model.save(folder);
  }
  await using saved = await loadModel(folder);
  expect(saved.tokenizer?.encode('hi hi!')).toEqual([6, 4, 5, 2]);
  const again = path.join(temporaryFolder(), 'again.gguf');
  expect(await quantizeModel(folder, again)).toMatchObject({ tokenizer: true, left: 0 });
  await using written = await loadModel(again);
  expect(written.tokenizer?.encode('hi<|mdm_mask|> hi!')).toEqual(saved.tokenizer?.encode('hi<|mdm_mask|> hi!'));
  expect(written.tokenizer?.applyChatTemplate([{ role: 'user', content: 'hi' }])).toBe('hi!');
  expect(written.config).toMatchObject({ maskTokenId: 7, embeddingSize: VOCABULARY });

  const other = keys.map((key): GgufKey => (key[0] === 'tokenizer.ggml.pre' ? [key[0], 'string', 'mine'] : key));
  const { file: unknown } = await makeFile(other, () => 'Q8_0');
  await expect(loadModel(unknown)).rejects.toThrow(
    /tokenizer\.ggml\.pre: expected llama-bpe.*got "mine".*tokenizer\.json/,
  );
  copyFileSync(path.join(folder, 'tokenizer.json'), path.join(path.dirname(unknown), 'tokenizer.json'));
  await using beside = await loadModel(unknown);
  expect(beside.tokenizer?.encode('hi', { addSpecialTokens: false })).toEqual([4]);
});

describe('refused by name', () => {
  const without = (key: string) => LLADA.filter(([name]) => name !== key);
  test.each<[string, GgufKey[], RegExp]>([
    ['an architecture', keysOf('gemma'), /general\.architecture: expected llada, .*got "gemma"/],
    ['no mask token', without('tokenizer.ggml.mask_token_id'), /mask_token_id/],
    ['a missing size', without('llada.block_count'), /llada\.block_count: expected a number, got no such key/],
    [
      'scaled positions',
      [...LLADA, ['llada.rope.scaling.type', 'string', 'yarn'], ['llada.rope.scaling.factor', 'f32', 4]],
      /rope\.scaling\.type: expected "none", got "yarn"/,
    ],
    [
      'another size of heads',
      [...LLADA, ['llada.attention.key_length', 'u32', 32]],
      /value_length: expected the head size/,
    ],
  ])('%s', async (_what, keys, message) => {
    const { file } = await makeFile(keys, () => 'Q8_0');
    await expect(loadModel(file)).rejects.toThrow(message);
    await expect(loadModel(file)).rejects.toMatchObject({ code: 'BAD_CHECKPOINT' });
  });

  test('the mask token may come from the caller', async () => {
    const { file } = await makeFile(without('tokenizer.ggml.mask_token_id'), () => 'Q8_0');
    await using model = await loadModel(file, { maskTokenId: 3 });
    expect(model.config.maskTokenId).toBe(3);
  });

  test('tensors that nothing reads, scales that are not finite, types that are not known', async () => {
    const extra = await makeFile(LLADA, () => 'Q8_0', { shapes: { ...SHAPES, 'blk.0.attn_q.bias': [C] } });
    await expect(loadModel(extra.file)).rejects.toThrow(/attn_q\.bias/);
    const bad = await makeFile(LLADA, () => 'Q4_K');
    const { tensors } = await readGguf(bad.file);
    const bytes = readFileSync(bad.file);
    bytes.writeUInt16LE(0x7c00, tensors.get('blk.0.ffn_up.weight')!.begin + 144 * 3);
    writeFileSync(bad.file, bytes);
    await expect(loadModel(bad.file)).rejects.toMatchObject({ code: 'NON_FINITE' });
    await expect(loadModel(bad.file)).rejects.toThrow(/ffn_up|up_proj/);
  });
});

test('options that only blocks have', async () => {
  const { file } = await makeFile(LLADA, () => 'Q4_0');
  await expect(loadModel(file, { quantize: 'q8', dtype: 'float32' })).rejects.toThrow(
    /dtype: expected "auto" with quantize/,
  );
  await expect(loadModel(file, { compute: 'int8', device: 'cuda' })).rejects.toThrow(
    /compute: expected none on "cuda"/,
  );
});

test('damaged files are refused, or load, and never crash', async () => {
  const { file } = await makeFile(LLADA, (name) => (name.includes('attn') ? 'Q4_K' : 'Q5_0'), { seed: 9 });
  const bytes = readFileSync(file);
  const { tensors } = await readGguf(file);
  const dataStart = Math.min(...[...tensors.values()].map(({ begin }) => begin));
  const next = random(SEED);
  const damaged = path.join(temporaryFolder(), 'damaged.gguf');
  const tally = { loaded: 0, refused: 0 };
  for (let i = 0; i < 300 * RUNS; i++) {
    let copy = Buffer.from(bytes);
    for (let changes = 1 + Math.floor(next() * 3); changes > 0; changes--) {
      const inHeader = Math.floor(next() * dataStart);
      switch (Math.floor(next() * 6)) {
        case 0:
          copy[inHeader % copy.length] = Math.floor(next() * 256);
          break;
        case 1:
          copy[inHeader % copy.length] ^= 1 << Math.floor(next() * 8);
          break;
        case 2:
          copy = copy.subarray(0, Math.floor(next() * copy.length) + 1);
          break;
        case 3:
          if (copy.length > inHeader + 8) copy.writeBigUInt64LE(BigInt(Math.floor(next() * 2 ** 62)), inHeader);
          break;
        case 4:
          copy = Buffer.concat([copy.subarray(0, inHeader), copy.subarray(inHeader + 1 + Math.floor(next() * 16))]);
          break;
        default:
          copy[Math.floor(next() * copy.length)] = Math.floor(next() * 256);
      }
    }
    writeFileSync(damaged, copy);
    try {
      (await loadModel(damaged, { threads: 1 })).dispose();
      tally.loaded++;
    } catch (error) {
      const isTyped = isDUltraError(error) && ['BAD_CHECKPOINT', 'NON_FINITE', 'OUT_OF_MEMORY'].includes(error.code);
      if (!isTyped || error.message.length > 2000)
        throw new Error(`file ${i} of seed ${SEED}: ${(error as Error).stack}`);
      tally.refused++;
    }
  }
  expect(tally.loaded).toBeGreaterThan(10);
  expect(tally.refused).toBeGreaterThan(100);
});
