// Fused masked attention, backward, without atomics: every output is written by one owner in one order.
//
//   delta : delta (Mq, H) = sum over D of out * dout
//   dkdv  : a block owns kRows keys of one key/value head and loops over the query tiles of every head that reads it
//   dq    : a block owns kRows queries of one head and loops over the key tiles
//
// Seven products, where a kernel that accumulates dq with atomics has five; in return no sum depends on scheduling.
// On tensor cores q, k, v and dout are bf16. Otherwise all is fp32, and a warp owns a query or a key.
//
// Tiles (kRows x kCols): mma.sync 64 x 32 for every head dimension, since 64 x 64 spills at 128; wgmma 64 x 64 for 64
// and 128, two blocks per multiprocessor, so that one computes weights while the other multiplies.
#include "backends/cuda/attention_inputs.h"
#include "backends/cuda/attention_mask.h"
#include "backends/cuda/tiles.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kDeltaRows = 4;  // queries per block of the delta kernel

__global__ void __launch_bounds__(kWarp* kDeltaRows)
    attention_delta_kernel(AttentionGradArgs grad, float* delta, int64_t queries) {
  const AttentionArgs& a = grad.forward;
  const int64_t query = int64_t(blockIdx.x) * kDeltaRows + warp_index();
  const int head = int(blockIdx.y);
  if (query >= queries) return;
  const int64_t at = query * a.out_stride + int64_t(head) * a.head_dim;
  float sum = 0;
  for (int j = 2 * lane_index(); j + 1 < a.head_dim; j += 2 * kWarp) {
    const Pair out = get_pair(a.out, at + j), dout = get_pair(grad.dout, at + j);
    sum = fmaf(out.high, dout.high, fmaf(out.low, dout.low, sum));
  }
  if (a.head_dim % 2 && lane_index() == 0)
    sum = fmaf(ConstArray(a.out)[at + a.head_dim - 1], grad.dout[at + a.head_dim - 1], sum);
  sum = warp_sum(sum);
  if (lane_index() == 0) delta[query * a.heads + head] = sum;
}

struct Inputs {
  const uint16_t *q, *k, *v, *dout;  // (Mq, H, D), (Mk, Hk, D), (Mk, Hk, D), (Mq, H, D)
  int64_t q_stride, k_stride, v_stride, dout_stride;
  const float* delta;  // (Mq, H)
};

// Stores acc (16, kDim) times `factor` to rows first .. first + 16 of dst.
template <int kDim>
__device__ __forceinline__ void store_rows(const Array& dst, int64_t stride, int first, int limit,
                                           const float (&acc)[kDim / 8][4], float factor) {
  const int lane = lane_index();
  DULTRA_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = first + lane / 4 + 8 * h;
    if (row >= limit) continue;
    put_pairs<kDim / 8>(dst, row * stride + lane % 4 * 2, [&](int d) {
      return Pair{acc[d][2 * h] * factor, acc[d][2 * h + 1] * factor};
    });
  }
}

// What dkdv needs of a query beside its rows of q and dout.
struct QueryStat {
  float log_sum, delta;
  int end;  // of its visible keys
};
template <int kCols>
struct QueryStats {
  float shift[kCols], mean[kCols];  // log_sum in base 2; delta
  int end[kCols];
  __device__ __forceinline__ void put(int i, const QueryStat& stat) {
    shift[i] = stat.log_sum * kLog2E;
    mean[i] = stat.delta;
    end[i] = stat.end;
  }
};

template <class Products, int kDim, int kRows, int kCols>
__global__ void __launch_bounds__(kRows * 2, 2) attention_dkdv_kernel(AttentionGradArgs grad, Inputs in) {
  if (!Products::kExists) return;
  constexpr int kThreads = kRows * 2;
  const AttentionArgs& a = grad.forward;
  DULTRA_SHARED(shared);
  uint16_t* k_tile = reinterpret_cast<uint16_t*>(shared);                          // (kRows, kDim)
  uint16_t* v_tile = k_tile + kRows * kDim;                                        // (kRows, kDim)
  uint16_t* q_tile = v_tile + kRows * kDim;                                        // (2, kCols, kDim)
  uint16_t* do_tile = q_tile + 2 * kCols * kDim;                                   // (2, kCols, kDim)
  auto* stats = reinterpret_cast<QueryStats<kCols>*>(do_tile + 2 * kCols * kDim);  // (2)
  const int warp = warp_index(), lane = lane_index(), group = lane / 4, quad = lane % 4;
  const int kv_head = int(blockIdx.y), b = int(blockIdx.z), per_group = a.heads / a.kv_heads,
            key0 = int(blockIdx.x) * kRows;
  const SequenceKeys keys(a, b);
  if (key0 >= keys.keys) return;

  const float scale_log2 = a.scale * kLog2E;
  const int tiles = int(ceil_div(keys.queries, kCols)),
            steps = key0 < keys.end && key0 + kRows > keys.begin ? tiles * per_group : 0;
  // The tile of queries of a step, counted: a division by `tiles` takes longer than a product.
  struct Step {
    int head, row;
    __device__ __forceinline__ void advance(int queries) {
      row += kCols;
      if (row < queries) return;
      row = 0;
      ++head;
    }
  };
  Step now{kv_head * per_group, 0}, next = now;
  const auto load_queries = [&](int step) {  // of `next`
    if (step < steps) {
      const int stage = (step & 1) * kCols * kDim;
      load_tile<Products, kDim, kCols, kThreads>(q_tile + stage,
                                                 in.q + keys.first_query * in.q_stride + next.head * kDim, in.q_stride,
                                                 next.row, 0, keys.queries);
      load_tile<Products, kDim, kCols, kThreads>(do_tile + stage,
                                                 in.dout + keys.first_query * in.dout_stride + next.head * kDim,
                                                 in.dout_stride, next.row, 0, keys.queries);
    }
    async_commit();
  };
  // A thread fetches one query. It stores the values after queueing the products, which hides the latency of the loads.
  const int mine = int(threadIdx.x);
  const auto fetch_stat = [&](int step) {  // of `next`
    QueryStat stat{0, 0, keys.begin};
    const int row = next.row + mine;
    if (step >= steps || mine >= kCols || row >= keys.queries) return stat;
    const int64_t at = (keys.first_query + int64_t(row)) * a.heads + next.head;
    return QueryStat{a.log_sum[at], in.delta[at], keys.visible_end(a, row)};
  };
  // Hidden keys become zeros, whatever memory holds: a gradient of 0 times NaN would be NaN.
  load_tile<Products, kDim, kRows, kThreads>(k_tile, in.k + keys.first_key * in.k_stride + kv_head * kDim, in.k_stride,
                                             key0, keys.begin, keys.end);
  load_tile<Products, kDim, kRows, kThreads>(v_tile, in.v + keys.first_key * in.v_stride + kv_head * kDim, in.v_stride,
                                             key0, keys.begin, keys.end);
  load_queries(0);  // in one group with the keys
  if (steps > 0 && mine < kCols) stats[0].put(mine, fetch_stat(0));

  float dk[kDim / 8][4] = {}, dv[kDim / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    async_wait<0>();
    Products::landed();
    block_sync();  // this step's tiles have landed; the other stage, read in the step before, is free
    // Products that are queued go first, and copies are issued while they run.
    next.advance(keys.queries);
    QueryStat stat;
    if constexpr (!Products::kQueued) {
      load_queries(step + 1);
      stat = fetch_stat(step + 1);
    }
    const uint16_t* qt = q_tile + (step & 1) * kCols * kDim;
    const uint16_t* dot = do_tile + (step & 1) * kCols * kDim;
    const QueryStats<kCols>& query = stats[step & 1];

    // Transposed: rows are keys, columns are queries.
    float p[kCols / 8][4], ds[kCols / 8][4];
    Products::begin(p, ds);
    Products::template rows<kDim, kRows, kCols>(p, k_tile, warp, qt);
    Products::commit();
    Products::template rows<kDim, kRows, kCols>(ds, v_tile, warp, dot);
    Products::commit();
    if constexpr (Products::kQueued) {
      load_queries(step + 1);
      stat = fetch_stat(step + 1);
    }
    if (mine < kCols) stats[(step + 1) & 1].put(mine, stat);
    Products::template wait<1>(p);
    // No mask: every query of the tile exists and sees every key of the block.
    const bool all_seen = a.mask == MaskKind::kBidirectional && key0 >= keys.begin && key0 + kRows <= keys.end &&
                          now.row + kCols <= keys.queries;
    now = next;
    const auto mask = [&](int n, int e) {
      const int i = n * 8 + quad * 2 + (e & 1), key = key0 + warp * 16 + group + 8 * (e >> 1);
      if (key < keys.begin || key >= query.end[i]) p[n][e] = 0;
    };
    // The mask has a loop of its own, or each exponential would have a branch. Where the registers are all in use, they
    // would be spilled around it.
    constexpr bool kApart = Products::kQueued || kDim < 128;
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
    for (int e = 0; e < 4; ++e) {
      p[n][e] = fast_exp2(fmaf(p[n][e], scale_log2, -query.shift[n * 8 + quad * 2 + (e & 1)]));
      if (!kApart && !all_seen) mask(n, e);
    }
    if (kApart && !all_seen) {
      DULTRA_UNROLL
      for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
      for (int e = 0; e < 4; ++e) mask(n, e);
    }
    Products::template wait<0>(ds);
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
    for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - query.mean[n * 8 + quad * 2 + (e & 1)]);
    uint32_t weights[kCols / 16][4], slopes[kCols / 16][4];
    pack_weights<kCols>(weights, p);
    pack_weights<kCols>(slopes, ds);
    Products::begin(dv, dk, weights, slopes);
    Products::template weights<kDim, kCols>(dv, weights, dot);
    Products::template weights<kDim, kCols>(dk, slopes, qt);
    Products::commit();
    Products::template wait<0>(dv, dk, weights, slopes);
  }
  async_wait<0>();
  const int64_t out_at = keys.first_key * a.kv_stride + kv_head * kDim;
  store_rows<kDim>(grad.dk + out_at, a.kv_stride, key0 + warp * 16, keys.keys, dk, a.scale);
  store_rows<kDim>(grad.dv + out_at, a.kv_stride, key0 + warp * 16, keys.keys, dv, 1.0f);
}

template <class Products, int kDim, int kRows, int kCols>
__global__ void __launch_bounds__(kRows * 2, 2) attention_dq_kernel(AttentionGradArgs grad, Inputs in) {
  if (!Products::kExists) return;
  constexpr int kThreads = kRows * 2;
  const AttentionArgs& a = grad.forward;
  DULTRA_SHARED(shared);
  uint16_t* q_tile = reinterpret_cast<uint16_t*>(shared);  // (kRows, kDim)
  uint16_t* do_tile = q_tile + kRows * kDim;               // (kRows, kDim)
  uint16_t* k_tile = do_tile + kRows * kDim;               // (2, kCols, kDim)
  uint16_t* v_tile = k_tile + 2 * kCols * kDim;            // (2, kCols, kDim)
  const int warp = warp_index(), lane = lane_index(), group = lane / 4, quad = lane % 4;
  const int head = int(blockIdx.y), b = int(blockIdx.z), kv_head = head / (a.heads / a.kv_heads),
            row0 = int(blockIdx.x) * kRows;
  const SequenceKeys keys(a, b);
  if (row0 >= keys.queries) return;

  const float scale_log2 = a.scale * kLog2E;
  const VisibleEnds seen(a, keys, row0, kRows);
  const int tile_begin = keys.begin / kCols,
            tile_end = seen.most > keys.begin ? int(ceil_div(seen.most, kCols)) : tile_begin;
  const uint16_t* k = in.k + keys.first_key * in.k_stride + kv_head * kDim;
  const uint16_t* v = in.v + keys.first_key * in.v_stride + kv_head * kDim;
  const auto load_keys = [&](int tile) {
    if (tile < tile_end) {
      const int stage = (tile & 1) * kCols * kDim;
      load_tile<Products, kDim, kCols, kThreads>(k_tile + stage, k, in.k_stride, tile * kCols, keys.begin, keys.end);
      load_tile<Products, kDim, kCols, kThreads>(v_tile + stage, v, in.v_stride, tile * kCols, keys.begin, keys.end);
    }
    async_commit();
  };
  load_tile<Products, kDim, kRows, kThreads>(q_tile, in.q + keys.first_query * in.q_stride + head * kDim, in.q_stride,
                                             row0, 0, keys.queries);
  load_tile<Products, kDim, kRows, kThreads>(do_tile, in.dout + keys.first_query * in.dout_stride + head * kDim,
                                             in.dout_stride, row0, 0, keys.queries);
  load_keys(tile_begin);  // in one group with the queries

  float shift[2], mean[2];
  int end[2];
  DULTRA_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + warp * 16 + group + 8 * h;
    const bool exists = row < keys.queries;
    const int64_t at = (keys.first_query + int64_t(row)) * a.heads + head;
    shift[h] = exists ? a.log_sum[at] * kLog2E : 0.0f;
    mean[h] = exists ? in.delta[at] : 0.0f;
    end[h] = exists ? keys.visible_end(a, row) : keys.begin;
  }
  float dq[kDim / 8][4] = {};
  for (int tile = tile_begin; tile < tile_end; ++tile) {
    async_wait<0>();
    Products::landed();
    block_sync();  // this step's tiles have landed; the other stage, read in the step before, is free
    // Products that are queued go first, and copies are issued while they run.
    if constexpr (!Products::kQueued) load_keys(tile + 1);
    const uint16_t* kt = k_tile + (tile & 1) * kCols * kDim;
    const uint16_t* vt = v_tile + (tile & 1) * kCols * kDim;
    float p[kCols / 8][4], ds[kCols / 8][4];
    Products::begin(p, ds);
    Products::template rows<kDim, kRows, kCols>(p, q_tile, warp, kt);
    Products::commit();
    Products::template rows<kDim, kRows, kCols>(ds, do_tile, warp, vt);
    Products::commit();
    if constexpr (Products::kQueued) load_keys(tile + 1);
    Products::template wait<1>(p);
    const int first = tile * kCols;
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
    for (int e = 0; e < 4; ++e) p[n][e] = fast_exp2(fmaf(p[n][e], scale_log2, -shift[e >> 1]));
    if (first < keys.begin || first + kCols > seen.least) {
      DULTRA_UNROLL
      for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = first + n * 8 + quad * 2 + (e & 1);
        if (key < keys.begin || key >= end[e >> 1]) p[n][e] = 0;
      }
    }
    Products::template wait<0>(ds);
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
    for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - mean[e >> 1]);
    uint32_t slopes[kCols / 16][4];
    pack_weights<kCols>(slopes, ds);
    Products::begin(dq, slopes);
    Products::template weights<kDim, kCols>(dq, slopes, kt);
    Products::commit();
    Products::template wait<0>(dq, slopes);
  }
  async_wait<0>();
  store_rows<kDim>(grad.dq + keys.first_query * a.q_stride + head * kDim, a.q_stride, row0 + warp * 16, keys.queries,
                   dq, a.scale);
}

// ---- fp32 ---------------------------------------------------------------------------------------

constexpr int kWarps = 4;
constexpr int kMaxDimension = 256;
constexpr int kPerLane = kMaxDimension / kWarp;

__device__ __forceinline__ float dot_product(const float* x, const float* y, int n) {
  float sum = 0;
  for (int j = 0; j < n; ++j) sum = fmaf(x[j], y[j], sum);
  return sum;
}

// One warp per query and head, 32 keys at a time.
__global__ void __launch_bounds__(kWarp* kWarps, 2)
    float_attention_dq_kernel(AttentionGradArgs grad, const float* delta) {
  const AttentionArgs& a = grad.forward;
  DULTRA_SHARED(shared);
  float* slopes = reinterpret_cast<float*>(shared) + warp_index() * kWarp;  // of the current 32 keys
  const int lane = lane_index(), d = a.head_dim, head = int(blockIdx.y), b = int(blockIdx.z),
            kv_head = head / (a.heads / a.kv_heads);
  const SequenceKeys keys(a, b);
  const int i = int(blockIdx.x) * kWarps + warp_index();
  if (i >= keys.queries) return;
  const int64_t query = keys.first_query + i;
  const float* keys_at = static_cast<const float*>(a.k.data);
  const float* values_at = static_cast<const float*>(a.v.data);
  const float* q = static_cast<const float*>(a.q.data) + query * a.q_stride + head * d;
  const float* dout = static_cast<const float*>(grad.dout.data) + query * a.out_stride + head * d;
  const float log_sum = a.log_sum[query * a.heads + head], mean = delta[query * a.heads + head];
  const int end = keys.visible_end(a, i);
  float acc[kPerLane] = {};
  for (int first = keys.begin; first < end; first += kWarp) {
    float slope = 0;
    if (first + lane < end) {
      const int64_t at = (keys.first_key + int64_t(first) + lane) * a.kv_stride + kv_head * d;
      const float weight = expf(dot_product(q, keys_at + at, d) * a.scale - log_sum);
      slope = weight * (dot_product(dout, values_at + at, d) - mean) * a.scale;
    }
    warp_sync();  // the previous step's slopes have been read
    slopes[lane] = slope;
    warp_sync();  // all slopes are written
    DULTRA_UNROLL
    for (int part = 0; part < kPerLane; ++part) {
      const int j = part * kWarp + lane;
      if (j >= d) continue;
      const float* k = keys_at + (keys.first_key + int64_t(first)) * a.kv_stride + kv_head * d + j;
      for (int key = 0; key < kWarp && first + key < end; ++key)
        acc[part] = fmaf(slopes[key], k[key * a.kv_stride], acc[part]);
    }
  }
  float* dq = static_cast<float*>(grad.dq.data) + query * a.q_stride + head * d;
  DULTRA_UNROLL
  for (int part = 0; part < kPerLane; ++part)
    if (part * kWarp + lane < d) dq[part * kWarp + lane] = acc[part];
}

// One warp per key and key/value head, 32 queries of a head at a time.
__global__ void __launch_bounds__(kWarp* kWarps, 2)
    float_attention_dkdv_kernel(AttentionGradArgs grad, const float* delta) {
  const AttentionArgs& a = grad.forward;
  DULTRA_SHARED(shared);
  float* weights = reinterpret_cast<float*>(shared) + warp_index() * 2 * kWarp;  // of the current 32 queries
  float* slopes = weights + kWarp;
  const int lane = lane_index(), d = a.head_dim, kv_head = int(blockIdx.y), b = int(blockIdx.z),
            per_group = a.heads / a.kv_heads;
  const SequenceKeys keys(a, b);
  const int key = int(blockIdx.x) * kWarps + warp_index();
  if (key >= keys.keys) return;
  const float* queries_at = static_cast<const float*>(a.q.data);
  const float* douts_at = static_cast<const float*>(grad.dout.data);
  const int64_t kv_at = (keys.first_key + int64_t(key)) * a.kv_stride + kv_head * d;
  const float* k = static_cast<const float*>(a.k.data) + kv_at;
  const float* v = static_cast<const float*>(a.v.data) + kv_at;
  const bool visible = key >= keys.begin && key < keys.end;
  float dk[kPerLane] = {}, dv[kPerLane] = {};
  for (int head = kv_head * per_group; visible && head < (kv_head + 1) * per_group; ++head)
    for (int first = 0; first < keys.queries; first += kWarp) {
      float weight = 0, slope = 0;
      const int i = first + lane;
      if (i < keys.queries && key < keys.visible_end(a, i)) {
        const int64_t query = keys.first_query + i;
        const float log_sum = a.log_sum[query * a.heads + head], mean = delta[query * a.heads + head];
        weight = expf(dot_product(queries_at + query * a.q_stride + head * d, k, d) * a.scale - log_sum);
        slope = weight * (dot_product(douts_at + query * a.out_stride + head * d, v, d) - mean) * a.scale;
      }
      warp_sync();  // the previous step's have been read
      weights[lane] = weight;
      slopes[lane] = slope;
      warp_sync();  // all are written
      DULTRA_UNROLL
      for (int part = 0; part < kPerLane; ++part) {
        const int j = part * kWarp + lane;
        if (j >= d) continue;
        for (int l = 0; l < kWarp && first + l < keys.queries; ++l) {
          const int64_t query = keys.first_query + int64_t(first) + l;
          dk[part] = fmaf(slopes[l], queries_at[query * a.q_stride + head * d + j], dk[part]);
          dv[part] = fmaf(weights[l], douts_at[query * a.out_stride + head * d + j], dv[part]);
        }
      }
    }
  DULTRA_UNROLL
  for (int part = 0; part < kPerLane; ++part) {
    const int j = part * kWarp + lane;
    if (j >= d) continue;
    static_cast<float*>(grad.dk.data)[kv_at + j] = dk[part];
    static_cast<float*>(grad.dv.data)[kv_at + j] = dv[part];
  }
}

template <class Products, int kDim, int kCols>
void launch_products(const AttentionGradArgs& grad, const Inputs& in, const AttentionSizes& sizes,
                     cudaStream_t stream) {
  constexpr int kRows = 64;
  const AttentionArgs& a = grad.forward;
  constexpr size_t kShared = sizeof(uint16_t) * kDim * (2 * kRows + 4 * kCols);
  if (sizes.max_keys > 0)
    launch("attention_backward_dkdv", stream, attention_dkdv_kernel<Products, kDim, kRows, kCols>,
           dim3(unsigned(ceil_div(sizes.max_keys, kRows)), unsigned(a.kv_heads), unsigned(a.batch)), kRows * 2,
           kShared + 2 * sizeof(QueryStats<kCols>), grad, in);
  if (sizes.max_queries > 0)
    launch("attention_backward_dq", stream, attention_dq_kernel<Products, kDim, kRows, kCols>,
           dim3(unsigned(ceil_div(sizes.max_queries, kRows)), unsigned(a.heads), unsigned(a.batch)), kRows * 2, kShared,
           grad, in);
}

template <int kDim>
void launch_tiled(const AttentionGradArgs& grad, const Inputs& in, const AttentionSizes& sizes, bool warpgroups,
                  cudaStream_t stream) {
  if constexpr (kDim % GroupProducts::kPanel == 0)
    if (warpgroups) return launch_products<GroupProducts, kDim, 64>(grad, in, sizes, stream);
  launch_products<WarpProducts, kDim, 32>(grad, in, sizes, stream);
}

Inputs tiled_inputs(const AttentionGradArgs& grad, const AttentionSizes& sizes, Scratch& scratch) {
  const AttentionArgs& a = grad.forward;
  const int64_t q_width = int64_t(a.heads) * a.head_dim, kv_width = int64_t(a.kv_heads) * a.head_dim;
  Inputs in{nullptr, nullptr, nullptr, nullptr, a.q_stride, a.kv_stride, a.kv_stride, a.out_stride, nullptr};
  in.q = scratch.tiles(a.q, &in.q_stride, sizes.queries, q_width);
  in.k = scratch.tiles(a.k, &in.k_stride, sizes.keys, kv_width);
  in.v = scratch.tiles(a.v, &in.v_stride, sizes.keys, kv_width);
  in.dout = scratch.tiles(grad.dout, &in.dout_stride, sizes.queries, q_width);
  return in;
}

// The same gradients with every array in fp32; if any array was not, all are contiguous copies.
AttentionGradArgs float_inputs(const AttentionGradArgs& grad, const AttentionSizes& sizes, Scratch& scratch) {
  const AttentionArgs& a = grad.forward;
  const auto is_wide = [](ConstArray x) { return x.dtype == DType::kF32; };
  const int64_t q_width = int64_t(a.heads) * a.head_dim, kv_width = int64_t(a.kv_heads) * a.head_dim;
  const bool all_wide =
      is_wide(a.q) && is_wide(a.k) && is_wide(grad.dout) && is_wide(grad.dq) && is_wide(grad.dk) && is_wide(grad.dv);
  AttentionGradArgs wide = grad;
  if (all_wide) return wide;
  const auto copied = [&](ConstArray x, int64_t stride, int64_t rows, int64_t width) {
    return ConstArray(scratch.copied<float>(x, &stride, rows, width));
  };
  wide.forward.q = copied(a.q, a.q_stride, sizes.queries, q_width);
  wide.forward.k = copied(a.k, a.kv_stride, sizes.keys, kv_width);
  wide.forward.v = copied(a.v, a.kv_stride, sizes.keys, kv_width);
  wide.dout = copied(grad.dout, a.out_stride, sizes.queries, q_width);
  wide.forward.q_stride = wide.forward.out_stride = q_width;
  wide.forward.kv_stride = kv_width;
  wide.dq = scratch.take<float>(sizes.queries * q_width);
  wide.dk = scratch.take<float>(sizes.keys * kv_width);
  wide.dv = scratch.take<float>(sizes.keys * kv_width);
  return wide;
}

size_t scratch_bytes(const AttentionGradArgs& grad, const AttentionSizes& sizes, Compute compute) {
  Scratch scratch(nullptr, nullptr);
  scratch.take<float>(sizes.queries * grad.forward.heads);
  if (on_tensor_cores(grad.forward, compute))
    tiled_inputs(grad, sizes, scratch);
  else
    float_inputs(grad, sizes, scratch);
  return scratch.bytes();
}

void launch_backward(const AttentionGradArgs& grad, const AttentionSizes& sizes, Compute compute, bool warpgroups,
                     void* memory, cudaStream_t stream) {
  const AttentionArgs& a = grad.forward;
  check_launch(a, kMaxDimension);
  Scratch scratch(memory, stream);
  float* delta = scratch.take<float>(sizes.queries * a.heads);
  if (sizes.queries > 0)
    launch("attention_backward_delta", stream, attention_delta_kernel,
           dim3(unsigned(ceil_div(sizes.queries, kDeltaRows)), unsigned(a.heads)), kWarp * kDeltaRows, 0, grad, delta,
           sizes.queries);
  if (!on_tensor_cores(a, compute)) {
    const AttentionGradArgs wide = float_inputs(grad, sizes, scratch);
    const float* mean = delta;
    if (sizes.max_keys > 0)
      launch("attention_backward_dkdv", stream, float_attention_dkdv_kernel,
             dim3(unsigned(ceil_div(sizes.max_keys, kWarps)), unsigned(a.kv_heads), unsigned(a.batch)), kWarp * kWarps,
             sizeof(float) * 2 * kWarp * kWarps, wide, mean);
    if (sizes.max_queries > 0)
      launch("attention_backward_dq", stream, float_attention_dq_kernel,
             dim3(unsigned(ceil_div(sizes.max_queries, kWarps)), unsigned(a.heads), unsigned(a.batch)), kWarp * kWarps,
             sizeof(float) * kWarp * kWarps, wide, mean);
    if (wide.dq.data == grad.dq.data) return;
    const int64_t q_width = int64_t(a.heads) * a.head_dim, kv_width = int64_t(a.kv_heads) * a.head_dim;
    copy_rows(grad.dq, a.q_stride, wide.dq, q_width, sizes.queries, q_width, stream);
    copy_rows(grad.dk, a.kv_stride, wide.dk, kv_width, sizes.keys, kv_width, stream);
    copy_rows(grad.dv, a.kv_stride, wide.dv, kv_width, sizes.keys, kv_width, stream);
    return;
  }
  Inputs in = tiled_inputs(grad, sizes, scratch);
  in.delta = delta;
  if (a.head_dim == 64) return launch_tiled<64>(grad, in, sizes, warpgroups, stream);
  if (a.head_dim == 96) return launch_tiled<96>(grad, in, sizes, warpgroups, stream);
  launch_tiled<128>(grad, in, sizes, warpgroups, stream);
}

}  // namespace

void CudaBackend::do_attention_backward(const AttentionGradArgs& args) {
  AttentionGradArgs grad = args;
  const AttentionSizes sizes(grad.forward);
  ArgTransfer transfer(*this, index_arrays(grad.forward, sizes));
  launch_backward(grad, sizes, compute(), warpgroups_, scratch(scratch_bytes(grad, sizes, compute())), stream_);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
