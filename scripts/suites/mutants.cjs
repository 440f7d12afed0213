// npm run test:mutants: plants one fault after the other in the CUDA kernels and shows that their tests catch it: a
// wrong result, a report of the emulator, or a race that ThreadSanitizer sees. Exits with 1 if one survives. Arguments
// name files (tiles.h) or parts of faults.
const { spawnSync } = require('node:child_process');
const { cpSync, mkdirSync, readFileSync, writeFileSync } = require('node:fs');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
const copy = path.join(root, 'build', 'mutants');
const cuda = (file) => path.join('native', 'backends', 'cuda', file);

// What: the fault; file; text -> replacement (the first occurrence, or `at` says which); filter: the tests that have to
// catch it. A fault with `race` changes no result in the emulator's orders and must be seen by ThreadSanitizer.
const FAULTS = [
  [
    'no barrier before a tile is read',
    'attention.cu',
    "    block_sync();  // everybody's part of the tile is there; the other stage, read in the step before, is free\n",
    '',
    'cuda_attention_on',
  ],
  [
    'a tile is used before it has landed',
    'attention.cu',
    'async_wait<0>();\n    Products::landed',
    'async_wait<1>();\n    Products::landed',
    'cuda_attention_on',
  ],
  ['a tile is not fenced before wgmma reads it', 'attention.cu', '    Products::landed();\n', '', 'cuda_attention_on'],
  [
    'scores are used before they are there',
    'attention.cu',
    '    Products::template wait<0>(s);\n',
    '',
    'cuda_attention_on',
  ],
  [
    'a tile is replaced while wgmma reads it',
    'attention.cu',
    '    Products::template wait<0>(acc, weights);\n',
    '',
    'cuda_attention_on',
  ],
  ['wgmma begins without a fence', 'tiles.h', '    wgmma_begin();\n', '', 'cuda_warpgroups'],
  ['a panel too early', 'tiles.h', 'further(d / 4 * kCols * kPanel', 'further(d / 4 * kPanel', 'cuda_warpgroups'],
  [
    'a panel of values too early',
    'tiles.h',
    'descriptor(tile, kCols * kPanel',
    'descriptor(tile, kPanel',
    'cuda_warpgroups',
  ],
  ['both warpgroups read the first rows', 'tiles.h', 'tile + warp / 4 * 64', 'tile + warp / 8 * 64', 'cuda_warpgroups'],
  ['a panel is not swizzled', 'tiles.h', '(((chunk ^ row) & 7) << 3)', '((chunk & 7) << 3)', 'cuda_warpgroups'],
  [
    'rows below the first are thought to exist as it does',
    'tiles.h',
    'first + row + i * kStep',
    'first + row',
    'cuda_attention',
  ],
  [
    'a step has the sums of the step before',
    'attention_backward.cu',
    'stats[(step + 1) & 1].put',
    'stats[step & 1].put',
    'cuda_attention_on',
  ],
  [
    'values of the stage before',
    'attention.cu',
    '(acc, weights, v_tile + stage)',
    '(acc, weights, v_tile + kCols * kDim - stage)',
    'cuda_attention_on',
  ],
  [
    'sums are not scaled to the new maximum',
    'attention.cu',
    '        acc[d][2 * h] *= decay;\n',
    '',
    'cuda_attention_on',
  ],
  [
    'the scale of a tile that is not seen is not exactly 1',
    'attention.cu',
    'fast_exp2(row_max[h] * scale_log2 - shift)',
    'fast_exp2(fmaf(row_max[h], scale_log2, -shift))',
    'cuda_attention_rows',
  ],
  [
    'chunks are joined without their scale',
    'attention.cu',
    'fmaf(right_sum, right, left_sum * left)',
    'right_sum + left_sum',
    'cuda_attention_split',
  ],
  [
    'a chunk is a tile short',
    'attention.cu',
    'tile_end < (chunk + 1) * chunk_tiles ? tile_end : (chunk + 1) * chunk_tiles',
    'tile_end < (chunk + 1) * chunk_tiles - 1 ? tile_end : (chunk + 1) * chunk_tiles - 1',
    'cuda_attention_split',
  ],
  [
    'the last chunk is not joined',
    'attention.cu',
    'chunk * chunk_keys < end',
    '(chunk + 1) * chunk_keys < end',
    'cuda_attention_split',
  ],
  [
    'earlier chunks are forgotten',
    'attention.cu',
    'joined[d][e] = joint.sum(joined[d][e], acc[d][e]);',
    'joined[d][e] = acc[d][e];',
    'cuda_attention_split',
  ],
  [
    'a result in bf16 is cut off',
    'device.h',
    'uint16_t(packed), uint16_t(packed >> 16)}',
    'uint16_t(packed), uint16_t(packed)}',
    'cuda_linear_of_bf16',
  ],
  [
    'a turned key goes to the cache unrounded',
    'rope.cu',
    'sizeof(From) < sizeof(To) ? bf16_to_f32(uint16_t(pack_bf16(value, 0.0f))) : value',
    'value',
    'cuda_rope_store',
  ],
  ['angles are read before all are there', 'rope.cu', '  block_sync();\n', '', 'rope_matches'],
  ["a head's last pairs are not turned", 'rope.cu', '(half + kN - 1) / kN', 'half / kN', 'rope_matches'],
  [
    'a vector has the angles of another',
    'rope.cu',
    'load_vector<4, kWhole>(sines + first[t] + k',
    'load_vector<4, kWhole>(sines + k',
    'rope_matches',
  ],
  ['values are turned like keys', 'rope.cu', 'if (head[t] < unsigned(rows.turned)) {', '{', 'cuda_rope_store'],
  [
    'two blocks bring the same part of a row',
    'rope.cu',
    '(blockIdx.y * kTurns + unsigned(t))',
    '(blockIdx.y + unsigned(t))',
    'cuda_rope_store',
  ],
  [
    'the last numbers of a row are not gated',
    'vectors.h',
    'e < count) set_bits',
    'e + 1 < count) set_bits',
    'gates_match',
  ],
  [
    'odd numbers of bf16 are even ones',
    'vectors.h',
    'e % 2 ? word[e / 2] & 0xffff0000u : word',
    'word',
    'cuda_rows_of',
  ],
  [
    'a pair is rounded the wrong way round',
    'vectors.h',
    'pack_bf16(values[e], values[e + 1])',
    'pack_bf16(values[e + 1], values[e])',
    'cuda_rows_of',
  ],
  ['two vectors of a thread are one', 'vectors.h', 'block * kVectors + v)', 'block * kVectors + 0 * v)', 'gates_match'],
  [
    'rows of an odd width count as aligned',
    'vectors.h',
    ' && stride % kNumbers == 0',
    ' && stride >= 0',
    'cuda_rows_of',
  ],
  [
    'an array that begins anywhere counts as aligned',
    'vectors.h',
    '% (kNumbers * sizeof(T)) == 0 &&',
    '% 1 == 0 &&',
    'cuda_rows_begin',
  ],
  [
    'the last block of a SiLU goes beyond the end',
    'gates.cu',
    'aligned && int64_t(blockIdx.x + 1) * kSiluNumbers <= n',
    'aligned',
    'gates_match',
  ],
  ['the slope of a gate forgets its value', 'gates.cu', 's * (x * (1.0f - s) + 1.0f)', 's', 'gates_backward'],
  [
    'a copy beside a norm is of another row',
    'norm.cu',
    'row.store(copied, j, same)',
    'row.store(copied, j, values)',
    'rows_in_one',
  ],
  ['one key beyond the mask', 'attention.cu', 'key >= end) s[n]', 'key > end) s[n]', 'cuda_attention_on'],
  [
    'edge tiles are not masked',
    'attention.cu',
    'first + kCols > seen.least',
    'first + kCols > seen.most',
    'cuda_attention_on',
  ],
  [
    'hidden values reach the product',
    'attention.cu',
    '(v_tile + stage, v, in.v_stride, tile * kCols, keys.begin, keys.end)',
    '(v_tile + stage, v, in.v_stride, tile * kCols, 0, keys.keys)',
    'cuda_attention_hidden',
  ],
  [
    'a causal query does not see itself',
    'attention_mask.h',
    'int64_t(position) + 1',
    'int64_t(position)',
    'cuda_attention_on',
  ],
  [
    'a block-causal query sees the next block',
    'attention_mask.h',
    '/ a.block + 1)',
    '/ a.block + 2)',
    'cuda_attention_on',
  ],
  [
    'chunks of a tile are not swapped back',
    'tiles.h',
    'cols + tile_offset<kWidth>(n * 16 + lane / 16 * 8 + lane % 8, d * 2 + lane / 8 % 2)',
    'cols + tile_offset<kWidth>(n * 16 + lane / 16 * 8 + lane % 8, d * 2 + lane / 16)',
    'cuda_attention_on',
  ],
  [
    'the last tile of queries is left out',
    'attention_backward.cu',
    'tiles = int(ceil_div(keys.queries, kCols))',
    'tiles = keys.queries / kCols',
    'cuda_attention_on',
  ],
  [
    'no barrier before a step of dkdv',
    'attention_backward.cu',
    "    block_sync();  // this step's tiles have landed; the other stage, read in the step before, is free\n    load_queries",
    '    load_queries',
    'cuda_attention_on',
  ],
  [
    'dq forgets the mean',
    'attention_backward.cu',
    'p[n][e] * (ds[n][e] - mean[e >> 1])',
    'p[n][e] * (ds[n][e] - 0 * mean[e >> 1])',
    'cuda_attention_on',
  ],
  [
    'no barrier between two stages of a product',
    'matmul.cu',
    '    block_sync();  // the next tiles are complete, and this stage is free\n',
    '',
    'cuda_linear_on',
  ],
  [
    'a product stops one step early',
    'matmul.cu',
    'steps = ceil_div(p.k, kDepth)',
    'steps = p.k / kDepth',
    'cuda_linear_on',
  ],
  ['a product writes one column too many', 'matmul.cu', 'column >= p.n', 'column > p.n', 'cuda_linear_on'],
  [
    'rows beyond the operand are read',
    'matmul.cu',
    'left = kTransposed ? rows - row : depth - k;',
    'left = 8;',
    'cuda_linear_on',
  ],
  [
    'no barrier behind a slab of an fp32 product',
    'matmul.cu',
    '    block_sync();  // the slabs are free\n',
    '',
    'matmul_rows',
    'race',
  ],
  [
    'a sum over a block is read early',
    'device.h',
    '  block_sync();\n  T sum = scratch[0];',
    '  T sum = scratch[0];',
    'log_prob_backward_matches',
  ],
  [
    "a block's scratch is written while it is read",
    'device.h',
    '  if (kThreads == kWarp) return value;\n  block_sync();\n  if (lane_index() == 0) scratch[warp_index()] = value;\n  block_sync();\n  T sum',
    '  if (kThreads == kWarp) return value;\n  if (lane_index() == 0) scratch[warp_index()] = value;\n  block_sync();\n  T sum',
    'log_prob_backward_matches',
    'race',
  ],
  ['ties go to the higher token', 'sampling.cu', 'int(a.token < b.token)', 'int(a.token > b.token)', 'sampling_ties'],
  ['the race has no margin', 'sampling.cu', 'kMargin = 1.001f', 'kMargin = 0.99f', 'sampling_decides'],
  ['a lower bound of a time counts as the time', 'sampling.cu', 'r / (1 + r) *', 'r *', 'sampling_decides'],
  [
    'the race takes uniforms for exact',
    'sampling.cu',
    'fmaf(-1.1920928955078125e-7f, e, x[i + j])',
    'x[i + j]',
    'sampling_knows',
  ],
  [
    'the race forgets that scores are rounded',
    'sampling.cu',
    'fast_exp2(slack * kLog2E)',
    'fast_exp2(slack * 0.0f)',
    'sampling_is_exact',
  ],
  ["neighbours have each other's noise", 'sampling.cu', 'words.w[2 * j]', 'words.w[2 - 2 * j]', 'sampling_equals'],
  ['a slice reads beyond its row', 'sampling.cu', 'return count >= kNumbers', 'return count > 0', 'sampling_equals'],
  ['the excluded token is drawn', 'sampling.cu', ' || i == excluded', '', 'sampling_ties'],
  ['the excluded token counts', 'sampling.cu', 'if (excluded >= 0) {', 'if (excluded < -1) {', 'sampling_equals'],
  [
    'slices are put together as they are',
    'sampling.cu',
    'scale = fast_exp2(below * kLog2E)',
    'scale = 1.0',
    'sampling_equals',
  ],
  [
    'slices beyond a warp are left out',
    'sampling.cu',
    's < count; s += kWarp',
    's < count; s += count',
    'sampling_of_a_large',
  ],
  [
    'maxima are read before they are there',
    'sampling.cu',
    "  block_sync();  // all warps' maxima\n",
    '',
    'sampling_given',
  ],
  [
    "a slice's best is taken too early",
    'sampling.cu',
    "  block_sync();  // sums, and all warps' best\n",
    '',
    'sampling_given',
  ],
  [
    'the bar is set before all warps have raced',
    'sampling.cu',
    "    block_sync();  // all warps' most, all threads' parts\n",
    '',
    'sampling_given',
  ],
  [
    'sums of a gradient keep their old maximum',
    'sampling.cu',
    'sum *= double(fast_exp2((max - above) * scale))',
    'sum *= 1.0',
    'log_prob_backward_matches',
  ],
  [
    'a gradient is stored beyond its row',
    'sampling.cu',
    'if (place(i) < count) x[place(i)] = v[i];',
    'x[place(i)] = v[i];',
    'log_prob_backward_matches',
  ],
  [
    'ranks count equal candidates behind',
    'unmask.cu',
    'other == mine && j < i',
    'other == mine && j <= i',
    'unmask_selects',
  ],
  [
    'the order is read before it is complete',
    'unmask.cu',
    '  block_sync();  // the order is complete\n',
    '',
    'unmask_selects',
  ],
  ['forced rows are not marked', 'unmask.cu', 'decided[0] == 0 && drawn == 0', 'decided[0] < 0', 'unmask_selects'],
  [
    'the last row of a block of norms is left out',
    'row_group.h',
    'ceil_div(m, RowGroup<kThreads>::kRows)',
    'm / RowGroup<kThreads>::kRows',
    'rmsnorm_matches',
  ],
  [
    'rows are stored where they came from',
    'embedding.cu',
    'index ? index[i] : i',
    'index ? i + 0 * index[i] : i',
    'embedding_and_gather',
  ],
  [
    'rows that lie apart count as aligned',
    'embedding.cu',
    'in_vectors<kN>(from.numbers, from.stride)',
    'in_vectors<kN>(from.numbers, 0)',
    'cuda_linear_by',
  ],
  [
    "a row's end is not normed",
    'row_group.h',
    'j < c_; j += kThreads * kN) body',
    'j < 0; j += kThreads * kN) body',
    'rmsnorm_matches',
  ],
  [
    'a warp takes the columns of a block',
    'row_group.h',
    'int(threadIdx.x) % kThreads) * kN',
    'int(threadIdx.x)) * kN',
    'rmsnorm_matches',
  ],
  [
    'numbers beyond the row are spread around its mean',
    'row_group.h',
    'kWhole || j + e < c_',
    'kWhole || j + e < c_ + kN',
    'layernorm_and',
  ],
  [
    'a piece of rows overlaps the next',
    'norm_backward.cu',
    '(piece + 1) * kPieceRows : m;',
    '(piece + 1) * kPieceRows + 1 : m;',
    'linear_backward',
  ],
  [
    "a block's rows overlap the next block's",
    'norm_backward.cu',
    'begin + kRmsPieceRows : m;',
    'begin + kRmsPieceRows + 1 : m;',
    'rmsnorm_backward',
  ],
  [
    'the first row of a block counts twice',
    'norm_backward.cu',
    'partial && row > begin',
    'partial && row >= begin',
    'rmsnorm_backward',
  ],
  [
    "wide rows forget the block's earlier rows",
    'norm_backward.cu',
    'partial && row > begin',
    'partial && row > end',
    'rmsnorm_backward',
  ],
  [
    "a wide row's sums leave out its end",
    'norm_backward.cu',
    'j < c; j += kThreads * kN) sums.add',
    'j < 0; j += kThreads * kN) sums.add',
    'rmsnorm_backward',
  ],
  [
    'one half of the scratch serves two rows',
    'norm_backward.cu',
    'int(row - begin) % 2',
    '0 * int(row - begin)',
    'rmsnorm_backward',
    'race',
  ],
  ['sums are read before all warps wrote theirs', 'row_group.h', '  block_sync();\n  *a', '  *a', 'rmsnorm_backward'],
  [
    "pieces beyond the warps' shares are lost",
    'norm_backward.cu',
    'share = ceil_div(pieces, kAddWarps)',
    'share = pieces / kAddWarps',
    'rmsnorm_backward',
  ],
  [
    "the warps' sums are added before they are there",
    'norm_backward.cu',
    '  sums[threadIdx.x] = sum;\n  block_sync();\n',
    '  sums[threadIdx.x] = sum;\n',
    'rmsnorm_backward',
  ],
  [
    'the ring hands out memory that is in use',
    'staging.cc',
    '  next_ += rounded(bytes);\n',
    '  next_ += bytes / 2;\n',
    'cuda_host_and',
  ],
  [
    'results are read before the device is done',
    'staging.cc',
    '  check_cuda(cudaStreamSynchronize(stream_), "staging");\n  for',
    '  for',
    'trainer_threads',
  ],
  [
    "an update rounds both moments by the first one's draws",
    'optimizer.cu',
    'words.w[e] >> 16)',
    'words.w[e] & 0xffffu)',
    'adamw_bf16',
  ],
  [
    'an update rounds to nearest',
    'optimizer.cu',
    'finite_to_bf16_stochastic(value, random)',
    'finite_to_bf16_stochastic(value, 0 * random + 0x8000)',
    'adamw_bf16',
  ],
  [
    'unusual moments take the usual way',
    'optimizer.cu',
    'usual && usual_moments(m[e], v[e])',
    'usual || usual_moments(m[e], v[e])',
    'cuda_adamw',
  ],
  [
    'a negligible first moment counts as usual',
    'optimizer.cu',
    '2 * bits_of(m) - 2 * power(-70)',
    '2 * bits_of(m) - 0 * power(-70)',
    'cuda_adamw',
  ],
  [
    "an update writes before its piece's begin",
    'vectors.h',
    'e >= begin && e < count) set_bits',
    'e >= 0 * begin && e < count) set_bits',
    'adamw_split',
  ],
  [
    'an update draws by the place in its piece',
    'optimizer.cu',
    'uint32_t(a.step), uint64_t(group))',
    'uint32_t(a.step), uint64_t(group - a.first / kGroup))',
    'adamw_split',
  ],
  ["an update writes beyond its piece's end", 'optimizer.cu', 'aligned && end == kGroup', 'aligned', 'adamw_split'],
  ['an update forgets the low halves', 'optimizer.cu', 'uint16_t(split.low)', 'uint16_t(0 * split.low)', 'adamw_split'],
];

function run(command, args, options = {}) {
  return spawnSync(command, args, { cwd: copy, encoding: 'utf8', maxBuffer: 1 << 26, ...options });
}
function build(directory, sanitizer) {
  const configured = run('cmake', [
    '-S',
    '.',
    '-B',
    directory,
    '-DDULTRA_EMULATOR=ON',
    `-DDULTRA_SANITIZE=${sanitizer}`,
    '-DCMAKE_BUILD_TYPE=Release',
  ]);
  const built =
    configured.status === 0
      ? run('cmake', ['--build', directory, '--parallel', '2', '--target', 'dultra_emulated_tests'])
      : configured;
  if (built.status !== 0) throw new Error(`${built.stdout.slice(-3000)}${built.stderr.slice(-3000)}`);
}
/** Whether the tests fail, and how. */
function outcome(directory, filter) {
  const result = run(path.join(copy, directory, 'dultra_emulated_tests'), ['--filter', filter], {
    timeout: 300_000,
    env: { ...process.env, TSAN_OPTIONS: 'halt_on_error=1' },
  });
  if (result.error?.code === 'ETIMEDOUT') return 'does not end';
  if (/ThreadSanitizer: data race/.test(result.stderr)) return 'a race';
  if (result.signal) return (/emulator: [^\n]*/.exec(result.stderr) ?? [`ends with ${result.signal}`])[0];
  return result.status === 0
    ? null
    : `${[...result.stdout.matchAll(/^FAILED (\S+)/gm)].map((match) => match[1]).join(', ')} failed`;
}

const only = process.argv.slice(2);
const faults = FAULTS.filter(
  ([what, file]) => only.length === 0 || only.some((name) => what.includes(name) || file === name),
).sort((a, b) => a.length - b.length); // races last
mkdirSync(copy, { recursive: true });
for (const part of ['native', 'CMakeLists.txt', 'package.json'])
  cpSync(path.join(root, part), path.join(copy, part), { recursive: true });
build('build/values', '');
let survivors = 0;
for (const [what, file, text, replacement, filter, race] of faults) {
  const target = path.join(copy, cuda(file));
  const original = readFileSync(path.join(root, cuda(file)), 'utf8');
  if (!original.includes(text)) throw new Error(`${what}: ${file} does not contain ${JSON.stringify(text)}`);
  writeFileSync(
    target,
    original.replace(text, () => replacement),
  );
  const directory = race ? 'build/threads' : 'build/values';
  let caught = null;
  try {
    build(directory, race ? 'thread' : '');
    caught = outcome(directory, filter);
  } catch (error) {
    // A fault that the compiler sees is none: the table is wrong.
    process.stderr.write(`${what}: ${error.message}\n`);
  } finally {
    writeFileSync(target, original);
  }
  if (!caught) survivors++;
  process.stdout.write(`${caught ? 'caught  ' : 'SURVIVED'} ${what}: ${caught ?? `${filter} passed`}\n`);
}
process.stdout.write(`${faults.length - survivors} of ${faults.length} faults caught\n`);
process.exitCode = survivors > 0 ? 1 : 0;
