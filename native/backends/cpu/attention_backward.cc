// Attention, backward: one task per sequence and key/value head.
#include <algorithm>
#include <vector>

#include "backends/cpu/aligned.h"
#include "backends/cpu/attention_mask.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

void CpuBackend::do_attention_backward(const AttentionGradArgs& args) {
  const AttentionArgs& a = args.forward;
  const RowKernels& rows = kernels_->rows;
  const float *q = a.q.f32(), *k = a.k.f32(), *v = a.v.f32(), *out = a.out.f32(), *dout = args.dout.f32();
  float *dq = args.dq.f32(), *dk = args.dk.f32(), *dv = args.dv.f32();
  const int64_t d = a.head_dim, group = a.heads / a.kv_heads;
  if (a.batch == 0) return;

  // One task per sequence and key/value head: it makes all additions to a dk and dv, in one order.
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
