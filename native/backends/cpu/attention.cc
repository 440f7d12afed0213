// Attention: cuts sequences and heads into tiles of queries and finds the keys that each query sees.
#include <algorithm>
#include <vector>

#include "backends/cpu/aligned.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

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

// The keys of sequence b that a range may leave visible: [begin, end) of `all`.
struct KeyRange {
  int64_t all, begin, end;
  KeyRange(const AttentionArgs& a, int b)
      : all(a.k_offsets[b + 1] - a.k_offsets[b]),
        begin(a.key_begin ? std::clamp<int64_t>(a.key_begin[b], 0, all) : 0),
        end(a.key_end ? std::clamp<int64_t>(a.key_end[b], begin, all) : all) {}
  // How many keys from `begin` on the packed query sees.
  int32_t visible(const AttentionArgs& a, int b, int64_t query) const {
    const int64_t position = a.q_positions ? a.q_positions[query] : query - a.q_offsets[b];
    return int32_t(std::max<int64_t>(0, std::min(end, mask_end(a, position, all)) - begin));
  }
};

}  // namespace

void CpuBackend::do_attention_forward(const AttentionArgs& a) {
  const RowKernels& rows = kernels_->rows;
  const float* q = a.q.f32();
  float* out = a.out.f32();
  const bool narrow = a.k.dtype == DType::kBF16;

  // Tiles as large as keeps every thread busy: a larger tile shares the copying of keys and values among more queries.
  // Queries of a tile do not influence each other, so any cut gives the same result.
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
    // Heads innermost: the tiles of one sequence that run one after the other read the same rows of keys.
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

void CpuBackend::do_attention_backward(const AttentionGradArgs& args) {
  const AttentionArgs& a = args.forward;
  const RowKernels& rows = kernels_->rows;
  const float *q = a.q.f32(), *k = a.k.f32(), *v = a.v.f32(), *out = a.out.f32(), *dout = args.dout.f32();
  float *dq = args.dq.f32(), *dk = args.dk.f32(), *dv = args.dv.f32();
  const int64_t d = a.head_dim, group = a.heads / a.kv_heads;
  if (a.batch == 0) return;

  // A task is a head of keys and values of a sequence: everything that adds to one dk and dv, in one order.
  double pairs = 0;
  for (int b = 0; b < a.batch; ++b)
    pairs += double(a.q_offsets[b + 1] - a.q_offsets[b]) * (a.k_offsets[b + 1] - a.k_offsets[b]);
  const int64_t tasks = int64_t(a.batch) * a.kv_heads, work = int64_t(pairs * double(d * group) / a.batch);
  parallel_ranges(pool_, tasks, work, [&](int64_t from, int64_t to) {
    thread_local AlignedBlock scratch;
    thread_local std::vector<int32_t> visible;
    for (int64_t index = from; index < to; ++index) {
      const int b = int(index / a.kv_heads);
      const int64_t kv_head = index % a.kv_heads, first_query = a.q_offsets[b];
      const KeyRange keys(a, b);
      int32_t most = 0;
      visible.clear();
      for (int64_t i = first_query; i < a.q_offsets[b + 1]; ++i) {
        visible.push_back(keys.visible(a, b, i));
        most = std::max(most, visible.back());
      }
      const int64_t kv = a.k_offsets[b] * a.kv_stride + kv_head * d, seen = kv + keys.begin * a.kv_stride;
      for (int64_t j = 0; j < keys.all; ++j) {
        if (j >= keys.begin && j < keys.begin + most) continue;
        std::fill_n(dk + kv + j * a.kv_stride, d, 0.0f);
        std::fill_n(dv + kv + j * a.kv_stride, d, 0.0f);
      }
      scratch.reserve(size_t(rows.attention_backward_scratch(a.head_dim, most)) * sizeof(float));
      const int64_t head = kv_head * group;
      AttentionGradTask t;
      t.q = q + first_query * a.q_stride + head * d;
      t.k = k + seen;
      t.v = v + seen;
      t.out = out + first_query * a.out_stride + head * d;
      t.dout = dout + first_query * a.out_stride + head * d;
      t.log_sum = a.log_sum + first_query * a.heads + head;
      t.dq = dq + first_query * a.q_stride + head * d;
      t.dk = dk + seen;
      t.dv = dv + seen;
      t.q_stride = a.q_stride;
      t.kv_stride = a.kv_stride;
      t.out_stride = a.out_stride;
      t.log_sum_stride = a.heads;
      t.heads = int(group);
      t.queries = int(visible.size());
      t.keys = most;
      t.head_dim = a.head_dim;
      t.scale = a.scale;
      t.visible = visible.data();
      t.scratch = static_cast<float*>(scratch.data());
      rows.attention_backward(&t);
    }
  });
}

}  // namespace cpu
}  // namespace dultra
