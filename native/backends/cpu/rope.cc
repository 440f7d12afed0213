// Rotary position embedding, in place or on the way into the cache.
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

namespace {

// Cosines and sines of positions 0 .. count-1: (count, rope.dim / 2) each.
struct RopeTable {
  Rope rope;
  int64_t count = 0;
  std::vector<float> cosine, sine;
};

constexpr int64_t kRopeTablePositions = 65536;  // beyond, a row's angles are computed when it comes
constexpr size_t kRopeTables = 4;               // kept; every model of a process has one

void rope_angles(const std::vector<float>& frequencies, int32_t position, float* cosine, float* sine) {
  for (size_t j = 0; j < frequencies.size(); ++j) {
    const float angle = float(position) * frequencies[j];
    cosine[j] = std::cos(angle);
    sine[j] = std::sin(angle);
  }
}

// A table of at least `count` positions. Tables are shared by the whole process (two calls per layer need the same one)
// and replaced, never changed, so a caller may go on reading the one it holds.
std::shared_ptr<const RopeTable> rope_table(ThreadPool& pool, const Rope& rope, int64_t count) {
  static std::mutex mutex;
  static std::vector<std::shared_ptr<const RopeTable>> tables;  // latest first
  int64_t grown = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& table : tables) {
      if (!(table->rope == rope)) continue;
      if (table->count >= count) return table;
      grown = std::max(grown, 2 * table->count);
    }
  }
  auto table = std::make_shared<RopeTable>();
  table->rope = rope;
  table->count = std::max(count, std::min(grown, kRopeTablePositions));
  const int64_t half = rope.dim / 2;
  table->cosine.resize(static_cast<size_t>(table->count * half));
  table->sine.resize(table->cosine.size());
  const std::vector<float> frequencies = rope_frequencies(rope);
  parallel_ranges(pool, table->count, 16 * half, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      rope_angles(frequencies, int32_t(p), &table->cosine[size_t(p * half)], &table->sine[size_t(p * half)]);
  });
  const std::lock_guard<std::mutex> lock(mutex);
  tables.erase(std::remove_if(tables.begin(), tables.end(),
                              [&](const auto& old) { return old->rope == rope && old->count <= table->count; }),
               tables.end());
  tables.insert(tables.begin(), table);
  if (tables.size() > kRopeTables) tables.resize(kRopeTables);
  return table;
}

}  // namespace

void CpuBackend::rotate(float* x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                        const Rope& rope, float direction) {
  if (rope.dim == 0) return;
  int64_t count = 0;
  for (int64_t i = 0; i < m; ++i)
    if (positions[i] < kRopeTablePositions) count = std::max(count, int64_t(positions[i]) + 1);
  std::shared_ptr<const RopeTable> table;
  if (count > 0) table = rope_table(pool_, rope, count);
  const int64_t half = rope.dim / 2;
  parallel_ranges(pool_, m, int64_t(heads) * rope.dim, [&](int64_t begin, int64_t end) {
    std::vector<float> frequencies, own;
    for (int64_t i = begin; i < end; ++i) {
      const float *cosine, *sine;
      if (positions[i] < kRopeTablePositions) {
        cosine = &table->cosine[size_t(positions[i] * half)];
        sine = &table->sine[size_t(positions[i] * half)];
      } else {
        if (own.empty()) {
          frequencies = rope_frequencies(rope);
          own.resize(size_t(2 * half));
        }
        rope_angles(frequencies, positions[i], own.data(), own.data() + half);
        cosine = own.data();
        sine = own.data() + half;
      }
      kernels_->rows.rope(x + i * stride, cosine, sine, direction, heads, head_dim, rope.dim);
    }
  });
}

void CpuBackend::do_rope_forward(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                                 const Rope& rope) {
  rotate(x.f32(), stride, positions, m, heads, head_dim, rope, 1);
}

void CpuBackend::do_rope_backward(Array dx, int64_t stride, const int32_t* positions, int64_t m, int heads,
                                  int head_dim, const Rope& rope) {
  rotate(dx.f32(), stride, positions, m, heads, head_dim, rope, -1);
}

void CpuBackend::do_rope_store_forward(Array to, const int32_t* index, Array kv, const int32_t* positions, int64_t m,
                                       int kv_heads, int head_dim, const Rope& rope) {
  const int64_t width = 2 * int64_t(kv_heads) * head_dim;
  do_rope_forward(kv, width, positions, m, kv_heads, head_dim, rope);
  do_store_rows(to.data, to.dtype, kv, index, m, width);
}

}  // namespace cpu
}  // namespace dultra
