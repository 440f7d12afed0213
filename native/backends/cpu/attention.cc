// Attention: cuts sequences and heads into tiles of queries and finds the keys that each query sees.
#include <algorithm>
#include <string>
#include <vector>

#include "backends/cpu/aligned.h"
#include "backends/cpu/cpu_backend.h"

namespace dultra {
namespace cpu {

namespace {

struct TileTask {
  int sequence;
  int32_t first, count;  // queries, packed index
};

// End of the interval of keys that a query at `position` sees, before key_begin and key_end.
int64_t mask_end(const AttentionArgs& a, int64_t position, int64_t keys) {
  switch (a.mask) {
    case MaskKind::kBidirectional: return keys;
    case MaskKind::kCausal: return std::min(keys, position + 1);
    case MaskKind::kBlockCausal: return std::min(keys, (position / a.block + 1) * a.block);
  }
  return keys;
}

}  // namespace

void CpuBackend::attention_forward(const AttentionArgs& a) {
  check_argument(a.heads > 0 && a.kv_heads > 0 && a.heads % a.kv_heads == 0,
                 "heads: expected a multiple of kv_heads (" + std::to_string(a.kv_heads) + "), got " + std::to_string(a.heads));
  check_argument(a.head_dim > 0, "head_dim: expected a positive number, got " + std::to_string(a.head_dim));
  check_argument(a.mask != MaskKind::kBlockCausal || a.block > 0, "block: expected a positive number, got " + std::to_string(a.block));
  const RowKernels& rows = kernels_->rows;

  // Tiles as large as keeps every thread busy: a larger tile shares the copying of keys and values among more queries. Queries of
  // a tile do not influence each other, so any cut gives the same result.
  int32_t tile = rows.attention_queries;
  const auto count_tasks = [&](int32_t size) {
    int64_t tasks = 0;
    for (int b = 0; b < a.batch; ++b) tasks += (int64_t(a.q_offsets[b + 1] - a.q_offsets[b]) + size - 1) / size * a.heads;
    return tasks;
  };
  while (tile > rows.attention_queries / 4 && pool_.threads() > 1 && count_tasks(tile) < 2 * pool_.threads()) tile /= 2;
  std::vector<TileTask> tiles;
  for (int b = 0; b < a.batch; ++b)
    for (int32_t q = a.q_offsets[b]; q < a.q_offsets[b + 1]; q += tile) tiles.push_back({b, q, std::min(tile, a.q_offsets[b + 1] - q)});
  if (tiles.empty()) return;

  const size_t scratch_bytes = size_t(rows.attention_scratch(a.head_dim)) * sizeof(float);
  pool_.run(int64_t(tiles.size()) * a.heads, [&](int64_t index) {
    thread_local AlignedBlock scratch;
    thread_local std::vector<int32_t> visible;
    // Heads innermost: the tiles of one sequence that run one after the other read the same rows of keys.
    const TileTask& task = tiles[size_t(index / a.heads)];
    const int64_t head = index % a.heads, kv_head = head / (a.heads / a.kv_heads);
    const int b = task.sequence;
    const int64_t all = a.k_offsets[b + 1] - a.k_offsets[b];
    const int64_t begin = a.key_begin ? std::clamp<int64_t>(a.key_begin[b], 0, all) : 0;
    const int64_t end = a.key_end ? std::clamp<int64_t>(a.key_end[b], begin, all) : all;
    scratch.reserve(scratch_bytes);
    visible.resize(size_t(task.count));
    int32_t most = 0;
    for (int32_t i = 0; i < task.count; ++i) {
      const int64_t query = task.first + i;
      const int64_t position = a.q_positions ? a.q_positions[query] : query - a.q_offsets[b];
      visible[size_t(i)] = int32_t(std::max<int64_t>(0, std::min(end, mask_end(a, position, all)) - begin));
      most = std::max(most, visible[size_t(i)]);
    }
    AttentionTile t;
    t.q = a.q + task.first * a.q_stride + head * a.head_dim;
    t.k = a.k + (a.k_offsets[b] + begin) * a.kv_stride + kv_head * a.head_dim;
    t.v = a.v + (a.k_offsets[b] + begin) * a.kv_stride + kv_head * a.head_dim;
    t.out = a.out + task.first * a.out_stride + head * a.head_dim;
    t.log_sum = a.log_sum ? a.log_sum + task.first * a.heads + head : nullptr;
    t.log_sum_stride = a.heads;
    t.q_stride = a.q_stride;
    t.kv_stride = a.kv_stride;
    t.out_stride = a.out_stride;
    t.queries = task.count;
    t.keys = most;
    t.head_dim = a.head_dim;
    t.scale = a.scale;
    t.visible = visible.data();
    t.scratch = static_cast<float*>(scratch.data());
    rows.attention(&t);
  });
}

void CpuBackend::attention_backward(const AttentionGradArgs& args) {
  const AttentionArgs& a = args.forward;
  const int d = a.head_dim, group = a.heads / a.kv_heads;
  pool_.run(int64_t(a.batch) * a.kv_heads, [&](int64_t index) {
    const int b = int(index / a.kv_heads);
    const int64_t kv_head = index % a.kv_heads, all = a.k_offsets[b + 1] - a.k_offsets[b];
    const int64_t begin = a.key_begin ? std::clamp<int64_t>(a.key_begin[b], 0, all) : 0;
    const int64_t end = a.key_end ? std::clamp<int64_t>(a.key_end[b], begin, all) : all;
    const int64_t first_key = a.k_offsets[b] * a.kv_stride + kv_head * d;
    for (int64_t j = 0; j < all; ++j) {
      std::fill_n(args.dk + first_key + j * a.kv_stride, d, 0.0f);
      std::fill_n(args.dv + first_key + j * a.kv_stride, d, 0.0f);
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (int64_t i = a.q_offsets[b]; i < a.q_offsets[b + 1]; ++i) {
        const int64_t position = a.q_positions ? a.q_positions[i] : i - a.q_offsets[b];
        const float* q = a.q + i * a.q_stride + head * d;
        const float* dout = args.dout + i * a.out_stride + head * d;
        const float* out = a.out + i * a.out_stride + head * d;
        float* dq = args.dq + i * a.q_stride + head * d;
        const float log_sum = a.log_sum[i * a.heads + head];
        double delta = 0;
        std::fill_n(dq, d, 0.0f);
        for (int e = 0; e < d; ++e) delta += double(dout[e]) * out[e];
        for (int64_t j = begin; j < std::min(end, mask_end(a, position, all)); ++j) {
          const float* k = a.k + first_key + j * a.kv_stride;
          const float* v = a.v + first_key + j * a.kv_stride;
          float* dk = args.dk + first_key + j * a.kv_stride;
          float* dv = args.dv + first_key + j * a.kv_stride;
          double score = 0, dp = 0;
          for (int e = 0; e < d; ++e) {
            score += double(q[e]) * k[e];
            dp += double(dout[e]) * v[e];
          }
          const float p = float(std::exp(score * a.scale - log_sum)), ds = float(p * (dp - delta) * a.scale);
          for (int e = 0; e < d; ++e) {
            dv[e] += p * dout[e];
            dq[e] += ds * k[e];
            dk[e] += ds * q[e];
          }
        }
      }
  });
}

}  // namespace cpu
}  // namespace dultra
