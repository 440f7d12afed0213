// Attention, forward: splits sequences and heads into tiles of queries.
#include <algorithm>
#include <vector>

#include "backends/cpu/aligned.h"
#include "backends/cpu/attention_mask.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

namespace {

struct TileTask {
  int sequence;
  int32_t first, count;  // queries, packed index
};

}  // namespace

void CpuBackend::do_attention_forward(const AttentionArgs& a) {
  const RowKernels& rows = kernels_->rows;
  const float* q = a.q.f32();
  float* out = a.out.f32();
  const bool narrow = a.k.dtype == DType::kBF16;

  // The largest tiles that keep every thread busy: a larger tile copies keys and values once for more queries. Queries
  // of a tile are independent, so every split gives the same result.
  int32_t tile = rows.attention_queries;
  const auto count_tasks = [&](int32_t size) {
    int64_t tasks = 0;
    for (int b = 0; b < a.batch; ++b)
      tasks += (int64_t(a.q_offsets[b + 1] - a.q_offsets[b]) + size - 1) / size * a.heads;
    return tasks;
  };
  while (tile > rows.attention_queries / 4 && pool_.threads() > 1 && count_tasks(tile) < 2 * pool_.threads()) tile /= 2;
  std::vector<TileTask> tiles;
  for (int b = 0; b < a.batch; ++b)
    for (int32_t q = a.q_offsets[b]; q < a.q_offsets[b + 1]; q += tile)
      tiles.push_back({b, q, std::min(tile, a.q_offsets[b + 1] - q)});
  if (tiles.empty()) return;

  const size_t scratch_bytes = size_t(rows.attention_scratch(a.head_dim)) * sizeof(float);
  pool_.run(int64_t(tiles.size()) * a.heads, [&](int64_t index) {
    thread_local AlignedBlock scratch;
    thread_local std::vector<int32_t> visible;
    // Heads innermost: consecutive tasks of one sequence read the same rows of keys.
    const TileTask& task = tiles[size_t(index / a.heads)];
    const int64_t head = index % a.heads, kv_head = head / (a.heads / a.kv_heads);
    const int b = task.sequence;
    const KeyRange keys(a, b);
    scratch.reserve(scratch_bytes);
    visible.resize(size_t(task.count));
    int32_t most = 0;
    for (int32_t i = 0; i < task.count; ++i) {
      visible[size_t(i)] = keys.visible(a, b, task.first + i);
      most = std::max(most, visible[size_t(i)]);
    }
    AttentionTile t;
    t.q = q + task.first * a.q_stride + head * a.head_dim;
    const int64_t kv = (a.k_offsets[b] + keys.begin) * a.kv_stride + kv_head * a.head_dim;
    t.k = narrow ? nullptr : a.k.f32() + kv;
    t.v = narrow ? nullptr : a.v.f32() + kv;
    t.k16 = narrow ? static_cast<const uint16_t*>(a.k.data) + kv : nullptr;
    t.v16 = narrow ? static_cast<const uint16_t*>(a.v.data) + kv : nullptr;
    t.out = out + task.first * a.out_stride + head * a.head_dim;
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

}  // namespace cpu
}  // namespace dultra
