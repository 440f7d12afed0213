// Fused masked attention, forward, with an online softmax over tiles of keys.
//
//   tensor cores: a block computes kRows query rows of one head, a warp 16 of them, over tiles of kCols keys, in bf16
//   fp32:         a warp computes one query of one head, over 32 keys at a time
//
// A query's result depends only on the keys that it sees: a tile of hidden keys changes nothing, whichever other rows
// share the block.
//
// On tensor cores the keys of a sequence are one chunk up to kMinChunk of them, and split into more by their number
// alone; a query's result combines the chunks in order. It must not depend on how many queries are computed beside it:
// a replay computes all, decoding some. A block computes all chunks. Where there are several and that gives too few
// blocks to fill the device, each chunk has its own block (split keys), and a second kernel combines the partial
// results in scratch memory. Both ways run the same operations in the same order. With one chunk there is nothing to
// combine, which saves a quarter of the registers.
//
// Tiles (kRows x kCols, shared memory) by instruction and head dimension:
//   mma.sync: 64 x 64 for 64 (40 KB), 64 x 32 for 96 and 128 (36, 48 KB), two blocks per multiprocessor. On an H100
//             neither three blocks nor longer chunks are faster (bench/results/2026-11-26-nvidia-h100-80gb-hbm3-
//             kernels.md): a warp of 16 rows reads each key for one product.
//   wgmma:    128 x 64 for 64 and 128 (48, 96 KB): two warpgroups share the tiles, and one computes weights while the
//             other multiplies. A byte from the L2 cache then serves 128 operations; with 64 rows the L2 bandwidth is
//             the limit. 64 x 64 where 128 rows give too few blocks.
#include <algorithm>

#include "backends/cuda/attention_inputs.h"
#include "backends/cuda/attention_mask.h"
#include "backends/cuda/tiles.h"

namespace dultra {
namespace cuda {

namespace {

struct Inputs {
  const uint16_t *q, *k, *v;  // (Mq, H, D), (Mk, Hk, D), (Mk, Hk, D)
  int64_t q_stride, k_stride, v_stride;
};

constexpr int kTileRows = 64;  // queries per block; the large wgmma tile has twice as many
// Keys. A block goes through so many of decoding in about the time that a second launch takes.
constexpr int kMinChunk = 1024;
constexpr int kMaxChunks = 8;  // per sequence

// Keys per chunk of a sequence of `keys` keys.
DULTRA_HD int chunk_of(int keys) { return int(ceil_div(ceil_div(keys, kMaxChunks), kMinChunk)) * kMinChunk; }

// What a block computes of the keys that its queries see: one chunk, stored to `parts`; the only chunk that there is;
// or several chunks, which it combines.
enum class Span { kChunk, kOnly, kChunks };

// Partial results, (Mq, H, `chunks`) of each: the largest score and the sum of weights; the weighted sum of values (D).
struct Parts {
  float *scores, *values;
  int chunks;
  __device__ __forceinline__ int64_t at(int64_t query, int heads, int head, int chunk) const {
    return (query * heads + head) * chunks + chunk;
  }
};

// The largest score of two sets of a query's keys, and the factors that rescale the sums of each set to it.
struct Joint {
  float max, left, right;
  __device__ __forceinline__ Joint(float left_max, float right_max, float scale_log2)
      : max(fmaxf(left_max, right_max)) {
    const float shift = max == -INFINITY ? 0.0f : max * scale_log2;
    left = fast_exp2(left_max * scale_log2 - shift);
    right = fast_exp2(right_max * scale_log2 - shift);
  }
  __device__ __forceinline__ float sum(float left_sum, float right_sum) const {
    return fmaf(right_sum, right, left_sum * left);
  }
};

// Sets the scores s (16, kCols) of hidden keys to -inf. first: the tile's first key; rows: the thread's two query rows.
template <int kCols>
__device__ __forceinline__ void mask_scores(float (&s)[kCols / 8][4], const AttentionArgs& a, const SequenceKeys& keys,
                                            const int (&rows)[2], int first, int quad) {
  DULTRA_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int end = rows[h] < keys.queries ? keys.visible_end(a, rows[h]) : keys.begin;
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int key = first + n * 8 + quad * 2 + j;
      if (key < keys.begin || key >= end) s[n][2 * h + j] = -INFINITY;  // mutant: >= end -> > end (cuda_attention)
    }
  }
}

// Online softmax over one more tile: rescales row_sum and acc to the new maximum, replaces the scores s by weights and
// adds these to row_sum, which covers the thread's own columns: four threads share a row.
template <int kDim, int kCols>
__device__ __forceinline__ void update_softmax(float (&s)[kCols / 8][4], float (&acc)[kDim / 8][4], float (&row_max)[2],
                                               float (&row_sum)[2], float scale_log2) {
  DULTRA_UNROLL
  for (int h = 0; h < 2; ++h) {
    float top = row_max[h];
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    const float shift = top == -INFINITY ? 0.0f : top * scale_log2;
    // Two roundings: exactly 1 where the maximum stays, so that a tile that the row does not see changes nothing.
    const float decay = fast_exp2(row_max[h] * scale_log2 - shift);
    row_max[h] = top;
    row_sum[h] *= decay;
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
    for (int e = 2 * h; e < 2 * h + 2; ++e) {
      s[n][e] = fast_exp2(fmaf(s[n][e], scale_log2, -shift));
      row_sum[h] += s[n][e];
    }
    DULTRA_UNROLL
    for (int d = 0; d < kDim / 8; ++d) {
      acc[d][2 * h] *= decay;  // mutant: *= decay -> *= 1.0f (cuda_attention_on)
      acc[d][2 * h + 1] *= decay;
    }
  }
}

// Stores the output and the log-sum of the thread's row h.
template <int kDim>
__device__ __forceinline__ void store_tile(const AttentionArgs& a, const float (&acc)[kDim / 8][4], float row_max,
                                           float row_sum, int64_t query, int head, int quad, int h) {
  const float inverse = row_sum > 0 ? 1.0f / row_sum : 0.0f;
  // A row that sees no key is zero, whatever its hidden keys' values are. Adding 0 turns -0 into what combining a chunk
  // with none makes of it.
  const auto value = [&](int d, int j) { return (row_sum == 0 ? 0.0f : acc[d][2 * h + j] + 0.0f) * inverse; };
  put_pairs<kDim / 8>(a.out, query * a.out_stride + head * kDim + quad * 2, [&](int d) {
    return Pair{value(d, 0), value(d, 1)};
  });
  if (a.log_sum && quad == 0)
    a.log_sum[query * a.heads + head] = row_sum > 0 ? row_max * a.scale + logf(row_sum) : -INFINITY;
}

// Stores the partial result of the thread's row h, for attention_join_kernel.
template <int kDim>
__device__ __forceinline__ void store_chunk(const Parts& parts, const float (&acc)[kDim / 8][4], float row_max,
                                            float row_sum, int64_t part, int quad, int h) {
  DULTRA_UNROLL
  for (int d = 0; d < kDim / 8; ++d)
    *reinterpret_cast<Neighbours<float>*>(parts.values + part * kDim + quad * 2 + d * 8) = {acc[d][2 * h],
                                                                                            acc[d][2 * h + 1]};
  if (quad == 0) put_pair(parts.scores, part * 2, row_max, row_sum);
}

// Combines a complete chunk with the chunks before it, and resets the chunk's sums.
template <int kDim>
__device__ __forceinline__ void combine_chunk(float (&joined)[kDim / 8][4], float (&joined_max)[2],
                                              float (&joined_sum)[2], float (&acc)[kDim / 8][4], float (&row_max)[2],
                                              float (&row_sum)[2], float scale_log2) {
  DULTRA_UNROLL
  for (int h = 0; h < 2; ++h) {
    if (row_sum[h] == 0) continue;  // the row sees none of its keys
    const Joint joint(joined_max[h], row_max[h], scale_log2);
    joined_sum[h] = joint.sum(joined_sum[h], row_sum[h]);
    joined_max[h] = joint.max;
    row_max[h] = -INFINITY;
    row_sum[h] = 0;
    DULTRA_UNROLL
    for (int d = 0; d < kDim / 8; ++d) DULTRA_UNROLL
    for (int e = 2 * h; e < 2 * h + 2; ++e) {
      joined[d][e] = joint.sum(joined[d][e], acc[d][e]);
      acc[d][e] = 0;
    }
  }
}

template <class Products, int kDim, int kRows, int kCols, Span kSpan>
__global__ void __launch_bounds__(kRows * 2, 2 * kTileRows / kRows)
    attention_forward_kernel(AttentionArgs a, Inputs in, Parts parts) {
  if (!Products::kExists) return;
  constexpr int kThreads = kRows * 2;  // 32 lanes per 16 rows
  constexpr bool kSplit = kSpan == Span::kChunk, kJoin = kSpan == Span::kChunks;
  static_assert(kMinChunk % kCols == 0, "chunks are whole tiles");
  DULTRA_SHARED(shared);
  uint16_t* q_tile = reinterpret_cast<uint16_t*>(shared);  // (kRows, kDim)
  uint16_t* k_tile = q_tile + kRows * kDim;                // (2, kCols, kDim)
  uint16_t* v_tile = k_tile + 2 * kCols * kDim;            // (2, kCols, kDim)
  const int warp = warp_index(), lane = lane_index(), group = lane / 4, quad = lane % 4;
  const int head = int(blockIdx.y), b = int(blockIdx.z), kv_head = head / (a.heads / a.kv_heads);
  const int row0 = int(blockIdx.x) / (kSplit ? parts.chunks : 1) * kRows,
            chunk = kSplit ? int(blockIdx.x) % parts.chunks : 0;
  const SequenceKeys keys(a, b);
  if (row0 >= keys.queries) return;

  const uint16_t* q = in.q + keys.first_query * in.q_stride + head * kDim;
  const uint16_t* k = in.k + keys.first_key * in.k_stride + kv_head * kDim;
  const uint16_t* v = in.v + keys.first_key * in.v_stride + kv_head * kDim;

  const int rows[2] = {row0 + warp * 16 + group, row0 + warp * 16 + group + 8};
  const VisibleEnds seen(a, keys, row0, kRows);
  const int chunk_tiles = chunk_of(keys.keys) / kCols;
  int tile_begin = keys.begin / kCols, tile_end = seen.most > keys.begin ? int(ceil_div(seen.most, kCols)) : tile_begin;
  if (kSplit) {
    tile_begin = tile_begin > chunk * chunk_tiles ? tile_begin : chunk * chunk_tiles;
    tile_end = tile_end < (chunk + 1) * chunk_tiles ? tile_end : (chunk + 1) * chunk_tiles;
    if (tile_begin >= tile_end) return;  // no row sees the chunk, and the join kernel skips it
  }
  const auto load_keys = [&](int tile) {
    if (tile < tile_end) {
      const int stage = (tile & 1) * kCols * kDim;
      load_tile<Products, kDim, kCols, kThreads>(k_tile + stage, k, in.k_stride, tile * kCols, keys.begin, keys.end);
      // Rows of hidden keys become zeros, whatever memory holds: a weight of 0 times NaN would be NaN.
      load_tile<Products, kDim, kCols, kThreads>(v_tile + stage, v, in.v_stride, tile * kCols, keys.begin, keys.end);
    }
    async_commit();
  };
  load_tile<Products, kDim, kRows, kThreads>(q_tile, q, in.q_stride, row0, 0, keys.queries);
  load_keys(tile_begin);  // in one group with q

  float acc[kDim / 8][4] = {};
  float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0, 0};
  // Of the chunks before.
  float joined[kJoin ? kDim / 8 : 1][4] = {}, joined_max[2] = {-INFINITY, -INFINITY}, joined_sum[2] = {0, 0};
  const auto add_lanes = [&] {  // four of them share a row
    DULTRA_UNROLL
    for (int h = 0; h < 2; ++h) {
      row_sum[h] += shuffle_xor(row_sum[h], 1);
      row_sum[h] += shuffle_xor(row_sum[h], 2);
    }
  };
  const float scale_log2 = a.scale * kLog2E;
  int chunk_end = kJoin ? (tile_begin / (chunk_tiles ? chunk_tiles : 1) + 1) * chunk_tiles : tile_end;
  for (int tile = tile_begin; tile < tile_end; ++tile) {
    const int stage = (tile & 1) * kCols * kDim;
    async_wait<0>();
    Products::landed();
    block_sync();  // the tile is complete; the other stage, read in the step before, is free
    // Products that are queued go first, and copies are issued while they run.
    if constexpr (!Products::kQueued) load_keys(tile + 1);

    float s[kCols / 8][4];
    Products::begin(s);
    Products::template rows<kDim, kRows, kCols>(s, q_tile, warp, k_tile + stage);
    Products::commit();
    if constexpr (Products::kQueued) load_keys(tile + 1);
    Products::template wait<0>(s);
    const int first = tile * kCols;
    if (first < keys.begin || first + kCols > seen.least) mask_scores<kCols>(s, a, keys, rows, first, quad);
    update_softmax<kDim, kCols>(s, acc, row_max, row_sum, scale_log2);
    uint32_t weights[kCols / 16][4];
    pack_weights<kCols>(weights, s);
    Products::begin(acc, weights);
    Products::template weights<kDim, kCols>(acc, weights, v_tile + stage);
    Products::commit();
    Products::template wait<0>(acc, weights);

    if constexpr (kJoin) {
      if (tile + 1 < chunk_end && tile + 1 < tile_end) continue;
      // The chunk is complete.
      chunk_end += chunk_tiles;
      add_lanes();
      combine_chunk<kDim>(joined, joined_max, joined_sum, acc, row_max, row_sum, scale_log2);
    }
  }
  async_wait<0>();
  if constexpr (!kJoin) add_lanes();

  DULTRA_UNROLL
  for (int h = 0; h < 2; ++h) {
    if (rows[h] >= keys.queries) continue;
    const int64_t query = keys.first_query + rows[h];
    if constexpr (kSplit)
      store_chunk<kDim>(parts, acc, row_max[h], row_sum[h], parts.at(query, a.heads, head, chunk), quad, h);
    else if constexpr (kJoin)
      store_tile<kDim>(a, joined, joined_max[h], joined_sum[h], query, head, quad, h);
    else
      store_tile<kDim>(a, acc, row_max[h], row_sum[h], query, head, quad, h);
  }
}

constexpr int kWarps = 4;  // queries per block, one per warp

// Combines the chunks of a query and head in the order of attention_forward_kernel.
template <int kDim>
__global__ void __launch_bounds__(kWarp* kWarps) attention_join_kernel(AttentionArgs a, Parts parts) {
  const int lane = lane_index(), head = int(blockIdx.y), b = int(blockIdx.z);
  const SequenceKeys keys(a, b);
  const int i = int(blockIdx.x) * kWarps + warp_index();
  if (i >= keys.queries) return;
  const int64_t query = keys.first_query + i;
  const int end = keys.visible_end(a, i), chunk_keys = chunk_of(keys.keys);
  const float scale_log2 = a.scale * kLog2E;
  float joined[kDim / kWarp] = {}, max = -INFINITY, sum = 0;
  if (end > keys.begin)
    for (int chunk = keys.begin / chunk_keys; chunk * chunk_keys < end; ++chunk) {
      const int64_t part = parts.at(query, a.heads, head, chunk);
      const float part_max = parts.scores[part * 2], part_sum = parts.scores[part * 2 + 1];
      if (part_sum == 0) continue;
      const Joint joint(max, part_max, scale_log2);
      sum = joint.sum(sum, part_sum);
      max = joint.max;
      DULTRA_UNROLL
      for (int d = 0; d < kDim / kWarp; ++d)
        joined[d] = joint.sum(joined[d], parts.values[part * kDim + d * kWarp + lane]);
    }
  const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
  DULTRA_UNROLL
  for (int d = 0; d < kDim / kWarp; ++d)
    put(a.out, query * a.out_stride + head * kDim + d * kWarp + lane, joined[d] * inverse);
  if (a.log_sum && lane == 0) a.log_sum[query * a.heads + head] = sum > 0 ? max * a.scale + logf(sum) : -INFINITY;
}

// ---- fp32 ---------------------------------------------------------------------------------------

constexpr int kMaxDimension = 256;
constexpr int kPerLane = kMaxDimension / kWarp;

__global__ void __launch_bounds__(kWarp* kWarps) float_attention_forward_kernel(AttentionArgs a) {
  DULTRA_SHARED(shared);
  float* weights = reinterpret_cast<float*>(shared) + warp_index() * kWarp;  // of the current 32 keys
  const int lane = lane_index(), d = a.head_dim, head = int(blockIdx.y), b = int(blockIdx.z),
            kv_head = head / (a.heads / a.kv_heads);
  const SequenceKeys keys(a, b);
  const int i = int(blockIdx.x) * kWarps + warp_index();
  if (i >= keys.queries) return;
  const int64_t query = keys.first_query + i;
  const float* q = static_cast<const float*>(a.q.data) + query * a.q_stride + head * d;
  const int end = keys.visible_end(a, i);
  float acc[kPerLane] = {}, max = -INFINITY, sum = 0;
  for (int first = keys.begin; first < end; first += kWarp) {
    float score = -INFINITY;
    if (first + lane < end) {
      const float* k =
          static_cast<const float*>(a.k.data) + (keys.first_key + int64_t(first) + lane) * a.kv_stride + kv_head * d;
      float dot = 0;
      for (int j = 0; j < d; ++j) dot = fmaf(q[j], k[j], dot);
      score = dot * a.scale;
    }
    const float top = fmaxf(max, warp_max(score)), decay = expf(max - top), weight = expf(score - top);
    max = top;
    sum = fmaf(sum, decay, warp_sum(weight));
    warp_sync();  // the previous step's weights have been read
    weights[lane] = weight;
    warp_sync();  // all weights are written
    DULTRA_UNROLL
    for (int part = 0; part < kPerLane; ++part) {
      const int j = part * kWarp + lane;
      if (j >= d) continue;
      float value = acc[part] * decay;
      const float* v =
          static_cast<const float*>(a.v.data) + (keys.first_key + int64_t(first)) * a.kv_stride + kv_head * d + j;
      for (int key = 0; key < kWarp && first + key < end; ++key)
        value = fmaf(weights[key], v[key * a.kv_stride], value);
      acc[part] = value;
    }
  }
  const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
  DULTRA_UNROLL
  for (int part = 0; part < kPerLane; ++part)
    if (part * kWarp + lane < d) put(a.out, query * a.out_stride + head * d + part * kWarp + lane, acc[part] * inverse);
  if (a.log_sum && lane == 0) a.log_sum[query * a.heads + head] = sum > 0 ? max + logf(sum) : -INFINITY;
}

int64_t blocks_of(int rows, const AttentionArgs& a, const AttentionSizes& sizes) {
  return ceil_div(sizes.max_queries, rows) * a.heads * sizes.sequences;
}

// Scratch memory of split keys; chunks is 0 where a block computes all there are.
Parts split_parts(const AttentionArgs& a, const AttentionSizes& sizes, int multiprocessors, Scratch& scratch) {
  const int chunks = int(std::min<int64_t>(kMaxChunks, ceil_div(sizes.max_keys, kMinChunk)));
  if (chunks <= 1 || blocks_of(kTileRows, a, sizes) >= multiprocessors) return {nullptr, nullptr, 0};
  const int64_t all = sizes.queries * a.heads * chunks;
  float* scores = scratch.take<float>(2 * all);
  return {scores, scratch.take<float>(all * a.head_dim), chunks};
}

template <class Products, int kDim, int kRows, int kCols>
void launch_rows(const AttentionArgs& a, const Inputs& in, const Parts& parts, const AttentionSizes& sizes,
                 cudaStream_t stream) {
  const unsigned tiles = unsigned(ceil_div(sizes.max_queries, kRows)), heads = unsigned(a.heads),
                 batch = unsigned(a.batch);
  constexpr size_t kShared = sizeof(uint16_t) * kDim * (kRows + 4 * kCols);
  const auto launch_span = [&](const char* name, auto kernel, unsigned blocks) {
    launch(name, stream, kernel, dim3(blocks, heads, batch), kRows * 2, kShared, a, in, parts);
  };
  if (sizes.max_keys <= kMinChunk)
    return launch_span("attention_forward", attention_forward_kernel<Products, kDim, kRows, kCols, Span::kOnly>, tiles);
  if (parts.chunks == 0)
    return launch_span("attention_forward_long", attention_forward_kernel<Products, kDim, kRows, kCols, Span::kChunks>,
                       tiles);
  // Split keys mean few queries: only the smaller tile.
  if constexpr (kRows == kTileRows) {
    launch_span("attention_forward_chunk", attention_forward_kernel<Products, kDim, kRows, kCols, Span::kChunk>,
                tiles * unsigned(parts.chunks));
    launch("attention_forward_join", stream, attention_join_kernel<kDim>,
           dim3(unsigned(ceil_div(sizes.max_queries, kWarps)), heads, batch), kWarp * kWarps, 0, a, parts);
  }
}

template <int kDim, int kCols>
void launch_tiled(const AttentionArgs& a, const Inputs& in, const Parts& parts, const AttentionSizes& sizes,
                  bool warpgroups, int multiprocessors, cudaStream_t stream) {
  if constexpr (kDim % GroupProducts::kPanel == 0) {
    constexpr int kGroupCols = 64;
    if (warpgroups && parts.chunks == 0 && blocks_of(2 * kTileRows, a, sizes) >= multiprocessors)
      return launch_rows<GroupProducts, kDim, 2 * kTileRows, kGroupCols>(a, in, parts, sizes, stream);
    if (warpgroups) return launch_rows<GroupProducts, kDim, kTileRows, kGroupCols>(a, in, parts, sizes, stream);
  }
  launch_rows<WarpProducts, kDim, kTileRows, kCols>(a, in, parts, sizes, stream);
}

Inputs tiled_inputs(const AttentionArgs& a, const AttentionSizes& sizes, Scratch& scratch) {
  const int64_t kv_width = int64_t(a.kv_heads) * a.head_dim;
  Inputs in{nullptr, nullptr, nullptr, a.q_stride, a.kv_stride, a.kv_stride};
  in.q = scratch.tiles(a.q, &in.q_stride, sizes.queries, int64_t(a.heads) * a.head_dim);
  in.k = scratch.tiles(a.k, &in.k_stride, sizes.keys, kv_width);
  in.v = scratch.tiles(a.v, &in.v_stride, sizes.keys, kv_width);
  return in;
}

AttentionArgs float_inputs(const AttentionArgs& a, const AttentionSizes& sizes, Scratch& scratch) {
  const int64_t kv_width = int64_t(a.kv_heads) * a.head_dim;
  AttentionArgs wide = a;
  wide.q = scratch.floats(a.q, &wide.q_stride, sizes.queries, int64_t(a.heads) * a.head_dim);
  wide.k = scratch.floats(a.k, &wide.kv_stride, sizes.keys, kv_width);
  wide.kv_stride = a.kv_stride;
  wide.v = scratch.floats(a.v, &wide.kv_stride, sizes.keys, kv_width);
  return wide;
}

size_t scratch_bytes(const AttentionArgs& a, const AttentionSizes& sizes, Compute compute, int multiprocessors) {
  Scratch scratch(nullptr, nullptr);
  if (on_tensor_cores(a, compute)) {
    tiled_inputs(a, sizes, scratch);
    split_parts(a, sizes, multiprocessors, scratch);
  } else {
    float_inputs(a, sizes, scratch);
  }
  return scratch.bytes();
}

void launch_forward(const AttentionArgs& a, const AttentionSizes& sizes, Compute compute, bool warpgroups,
                    int multiprocessors, void* memory, cudaStream_t stream) {
  if (sizes.queries == 0) return;
  check_launch(a, kMaxDimension);
  Scratch scratch(memory, stream);
  if (!on_tensor_cores(a, compute)) {
    const dim3 grid(unsigned(ceil_div(sizes.max_queries, kWarps)), unsigned(a.heads), unsigned(a.batch));
    return launch("attention_forward", stream, float_attention_forward_kernel, grid, kWarp * kWarps,
                  sizeof(float) * kWarp * kWarps, float_inputs(a, sizes, scratch));
  }
  const Inputs in = tiled_inputs(a, sizes, scratch);
  const Parts parts = split_parts(a, sizes, multiprocessors, scratch);
  if (a.head_dim == 64) return launch_tiled<64, 64>(a, in, parts, sizes, warpgroups, multiprocessors, stream);
  if (a.head_dim == 96) return launch_tiled<96, 32>(a, in, parts, sizes, warpgroups, multiprocessors, stream);
  launch_tiled<128, 32>(a, in, parts, sizes, warpgroups, multiprocessors, stream);
}

}  // namespace

void CudaBackend::do_attention_forward(const AttentionArgs& args) {
  AttentionArgs a = args;
  const AttentionSizes sizes(a);
  ArgTransfer transfer(*this, index_arrays(a, sizes));
  launch_forward(a, sizes, compute(), warpgroups_, multiprocessors_,
                 scratch(scratch_bytes(a, sizes, compute(), multiprocessors_)), stream_);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
