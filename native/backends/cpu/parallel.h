// Cutting row loops into tasks of a thread pool.
#pragma once
#include <algorithm>
#include <cstdint>

#include "backends/cpu/thread_pool.h"

namespace dultra {
namespace cpu {

constexpr int64_t kTaskWork = 16384;  // elements below which handing a task to another thread costs more than it saves
constexpr int64_t kColumns = 16;      // one cache line of floats: the least that threads which divide columns take

// Calls range(begin, end) over pieces of [0, rows), several at once if `rows` of `work` elements each are worth it. The
// pieces depend on the thread count, so a row's result must not depend on its piece.
template <class Range>
void parallel_ranges(ThreadPool& pool, int64_t rows, int64_t work, const Range& range) {
  if (rows <= 0) return;
  const int64_t worth = std::max<int64_t>(1, rows * std::max<int64_t>(1, work) / kTaskWork);
  const int64_t tasks = pool.threads() == 1 ? 1 : std::min({rows, worth, int64_t(pool.threads()) * 4});
  if (tasks == 1) {
    range(int64_t(0), rows);
    return;
  }
  pool.run(tasks, [&](int64_t i) { range(rows * i / tasks, rows * (i + 1) / tasks); });
}

}  // namespace cpu
}  // namespace dultra
