// Checkpoints that GPTQ has quantised: against numbers that are written out here by the format's definition.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel, quantizeModel } from '../lib';
import { readSafetensors, type TensorValue, writeSafetensors } from '../lib/files/safetensors';
import { toFloat16 } from '../lib/model/halves';
import { makeCheckpoint, random } from './checkpoints';
import { temporaryFolder } from './helpers';

interface Settings {
  bits: 4 | 8;
  groupSize: number;
  sym: boolean;
  descAct: boolean;
  format?: 'gptq' | 'gptq_v2';
}

const { folder: base } = makeCheckpoint({
  config: { d_model: 64, n_heads: 4, n_kv_heads: 2, mlp_hidden_size: 96, n_layers: 1 },
  dtype: 'F32',
});
const ids = Array.from({ length: 10 }, (_, i) => (i * 13) % 45);

/** fp16 numbers of the size of weights, as bits and as numbers. */
function halves(next: () => number, count: number) {
  const bits = toFloat16(Float32Array.from({ length: count }, () => 0.002 + 0.01 * next()));
  const value = (half: number) => 2 ** ((half >> 10) - 15) * (1 + (half & 1023) / 1024);
  return { bits, values: Float64Array.from(bits, value) };
}

/** Rows of codes as words of 32 bits, each of 32 / bits rows one below the other, the first lowest. */
function packRows(codes: number[][], bits: number): Int32Array {
  const per = 32 / bits;
  const columns = codes[0].length;
  const words = new Int32Array((codes.length / per) * columns);
  codes.forEach((row, k) => {
    row.forEach((code, n) => {
      words[Math.floor(k / per) * columns + n] |= code << ((k % per) * bits);
    });
  });
  return words;
}
const transposed = (rows: number[][]) => rows[0].map((_, i) => rows.map((row) => row[i]));

/** A folder as AutoGPTQ writes it, with random codes in every block, and one of the same numbers in fp32. */
async function makeGptq(settings: Settings, where: 'config.json' | 'quantize_config.json' = 'config.json') {
  const { bits, groupSize, sym, descAct, format = 'gptq' } = settings;
  const next = random(bits + groupSize + Number(sym) + 2 * Number(descAct));
  const below = (n: number) => Math.floor(next() * n);
  const [packed, plain] = [temporaryFolder(), temporaryFolder()];
  const tensors = new Map<string, TensorValue>();
  const numbers = new Map<string, TensorValue>();
  for (const [name, tensor] of await readSafetensors(path.join(base, 'model.safetensors'))) {
    if (!/\.blocks\..*(proj|out)\.weight$/.test(name)) {
      tensors.set(name, tensor);
      numbers.set(name, tensor);
      continue;
    }
    const [outputs, inputs] = tensor.shape;
    const groups = groupSize === -1 ? 1 : Math.ceil(inputs / groupSize);
    const groupOf = Int32Array.from({ length: inputs }, (_, k) => (groupSize === -1 ? 0 : Math.floor(k / groupSize)));
    if (descAct)
      for (let k = inputs - 1; k > 0; k--) {
        const other = below(k + 1);
        [groupOf[k], groupOf[other]] = [groupOf[other], groupOf[k]];
      }
    const codes = Array.from({ length: inputs }, () => Array.from({ length: outputs }, () => below(2 ** bits)));
    // With the stored ones of the older format a zero point is at least 1.
    const zeros = Array.from({ length: groups }, () =>
      Array.from({ length: outputs }, () => (sym ? 2 ** (bits - 1) : 1 + below(2 ** bits - 1))),
    );
    const scales = halves(next, groups * outputs);
    const stored = zeros.map((row) => row.map((zero) => zero - (format === 'gptq' ? 1 : 0)));
    const module = name.replace(/\.weight$/, '');
    const per = 32 / bits;
    // Zero points are packed along the outputs: as codes are, of the matrix turned around, and turned back.
    const turned = packRows(transposed(stored), bits);
    const words = Int32Array.from(
      turned,
      (_, i) => turned[(i % (outputs / per)) * groups + Math.floor(i / (outputs / per))],
    );
    tensors.set(`${module}.qweight`, { dtype: 'I32', shape: [inputs / per, outputs], data: packRows(codes, bits) });
    tensors.set(`${module}.qzeros`, { dtype: 'I32', shape: [groups, outputs / per], data: words });
    tensors.set(`${module}.scales`, { dtype: 'F16', shape: [groups, outputs], data: scales.bits });
    tensors.set(`${module}.g_idx`, { dtype: 'I32', shape: [inputs], data: groupOf });
    const data = Float32Array.from({ length: outputs * inputs }, (_, at) => {
      const [n, k] = [Math.floor(at / inputs), at % inputs];
      return scales.values[groupOf[k] * outputs + n] * (codes[k][n] - zeros[groupOf[k]][n]);
    });
    numbers.set(name, { dtype: 'F32', shape: [outputs, inputs], data });
  }
  const config = readFileSync(path.join(base, 'config.json'), 'utf8');
  const said = { bits, group_size: groupSize, desc_act: descAct, sym, checkpoint_format: format };
  const own = where === 'config.json' ? { quantization_config: { quant_method: 'gptq', ...said } } : {};
  writeFileSync(path.join(plain, 'config.json'), config);
  writeFileSync(path.join(packed, 'config.json'), JSON.stringify({ ...JSON.parse(config), ...own }));
  if (where !== 'config.json') writeFileSync(path.join(packed, where), JSON.stringify(said));
  await writeSafetensors(path.join(packed, 'model.safetensors'), tensors);
  await writeSafetensors(path.join(plain, 'model.safetensors'), numbers);
  return { packed, plain, tensors, numbers };
}

const logitsOf = async (folder: string) => {
  await using model = await loadModel(folder);
  return { logits: (await model.forward({ ids })).logits!, weightBytes: model.info.weightBytes };
};

test.each<[string, Settings, 'config.json' | 'quantize_config.json', boolean]>([
  ['4 bits, symmetric', { bits: 4, groupSize: 32, sym: true, descAct: false }, 'config.json', true],
  ['4 bits, zero points', { bits: 4, groupSize: 32, sym: false, descAct: false }, 'quantize_config.json', true],
  [
    '4 bits, zero points as they are',
    { bits: 4, groupSize: -1, sym: false, descAct: false, format: 'gptq_v2' },
    'config.json',
    true,
  ],
  ['4 bits, groups in any order', { bits: 4, groupSize: 16, sym: true, descAct: true }, 'config.json', false],
  ['8 bits, symmetric', { bits: 8, groupSize: 64, sym: true, descAct: false }, 'config.json', true],
  ['8 bits, zero points', { bits: 8, groupSize: 32, sym: false, descAct: false }, 'config.json', false],
  ['8 bits, groups in any order', { bits: 8, groupSize: 32, sym: true, descAct: true }, 'quantize_config.json', false],
])('%s: the numbers are exact, and products those of the numbers', async (_name, settings, where, isInBlocks) => {
  const { packed, plain, numbers } = await makeGptq(settings, where);
  const [quantised, exact] = [await logitsOf(packed), await logitsOf(plain)];
  expect(quantised.logits).toEqual(exact.logits);
  if (isInBlocks) expect(quantised.weightBytes).toBeLessThan(0.8 * exact.weightBytes);
  else expect(quantised.weightBytes).toBe(exact.weightBytes);
  const saved = temporaryFolder();
  {
    await using model = await loadModel(packed);
    await model.save(saved);
  }
  const read = await readSafetensors(path.join(saved, 'model.safetensors'));
  for (const [name, { data }] of numbers) expect(read.get(name)!.data).toEqual(data);
  await expect(quantizeModel(packed, path.join(temporaryFolder(), 'again'))).rejects.toThrow(/not quantised/);
});

test('what does not fit is refused by its name', async () => {
  const settings = { bits: 4, groupSize: 32, sym: true, descAct: false } as const;
  const { packed, tensors } = await makeGptq(settings);
  const file = path.join(packed, 'model.safetensors');
  const q = 'model.transformer.blocks.0.q_proj';
  const refused = async (changes: Record<string, TensorValue | null>, message: RegExp) => {
    const changed = new Map(tensors);
    for (const [name, tensor] of Object.entries(changes)) {
      if (tensor) changed.set(`${q}.${name}`, tensor);
      else changed.delete(`${q}.${name}`);
    }
    await writeSafetensors(file, changed);
    await expect(loadModel(packed)).rejects.toMatchObject({ code: expect.stringMatching(/BAD_CHECKPOINT|NON_FINITE/) });
    await expect(loadModel(packed)).rejects.toThrow(message);
  };
  const of = (name: string) => tensors.get(`${q}.${name}`)!;
  await refused({ g_idx: null }, /q_proj\.g_idx: is missing/);
  await refused({ qzeros: null }, /q_proj\.qzeros: is missing/);
  await refused({ scales: null }, /q_proj\.scales: is missing/);
  await refused({ qweight: { ...of('qweight'), shape: [4, 128] } }, /q_proj\.qzeros: expected I32 of shape \[1, 16\]/);
  await refused(
    { qzeros: { ...of('qzeros'), shape: [8, 2] } },
    /q_proj\.qzeros: expected I32 of shape \[2, 8\], got I32 \[8, 2\]/,
  );
  await refused(
    { scales: { dtype: 'F32', shape: [2, 64], data: new Float32Array(128) } },
    /q_proj\.scales: expected F16 of shape \[2, 64\], got F32/,
  );
  const groups = (change: (k: number) => number) => ({
    g_idx: { dtype: 'I32', shape: [64], data: Int32Array.from({ length: 64 }, (_, k) => change(k)) },
  });
  await refused(
    groups((k) => (k === 5 ? 2 : 0)),
    /g_idx: expected groups 0 to 1, got 2/,
  );
  await refused(
    groups((k) => (k === 5 ? -1 : 0)),
    /g_idx: expected groups 0 to 1, got -1/,
  );
  await refused(
    groups((k) => k % 2),
    /g_idx: expected one group for every 32 inputs with desc_act false/,
  );
  await refused({ qzeros: { ...of('qzeros'), data: new Int32Array(16) } }, /qzeros: expected 8 with sym true, got 1/);
  await refused(
    { scales: { ...of('scales'), data: new Uint16Array(128).fill(0x7c00) } },
    /scales hold NaN or infinity/,
  );
  await writeSafetensors(file, new Map(tensors));
  const config = path.join(packed, 'config.json');
  const text = readFileSync(config, 'utf8');
  for (const [was, is, message] of [
    ['"bits":4', '"bits":3', /quantization_config\.bits: expected 4 or 8, got 3/],
    ['"group_size":32', '"group_size":0', /quantization_config\.group_size: expected a positive integer or -1, got 0/],
    ['"sym":true', '"sym":"yes"', /quantization_config\.sym: expected true or false, got "yes"/],
    [
      '"checkpoint_format":"gptq"',
      '"checkpoint_format":"marlin"',
      /checkpoint_format: expected "gptq" or "gptq_v2", got "marlin"/,
    ],
    ['"bits":4', '"bits":8', /qweight|shape/],
  ] as const) {
    expect(text).toContain(was);
    writeFileSync(config, text.replace(was, is));
    await expect(loadModel(packed)).rejects.toThrow(message);
  }
});
