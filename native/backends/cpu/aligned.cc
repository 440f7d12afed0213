#include "backends/cpu/aligned.h"

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "ops/check.h"

namespace dultra {
namespace cpu {

namespace {
constexpr size_t kLine = 64, kHugePage = size_t(2) << 20;
constexpr size_t kHugeFrom = 4 * kHugePage;  // below this, rounding up to whole huge pages would waste too much
}  // namespace

void* aligned_allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugeFrom ? kHugePage : kLine;
  void* pointer = nullptr;
  // PTRDIFF_MAX: no allocator grants more, and rounding up cannot overflow below it.
  if (bytes <= size_t(std::numeric_limits<ptrdiff_t>::max())) {
    const size_t rounded = bytes == 0 ? kLine : (bytes + kLine - 1) / kLine * kLine;
    if (posix_memalign(&pointer, alignment, rounded) != 0) pointer = nullptr;
  }
  if (pointer == nullptr) throw Error(ErrorCode::kOutOfMemory, "could not allocate " + std::to_string(bytes) + " bytes");
#ifdef MADV_HUGEPAGE
  // Only advice: where huge pages are off, the memory works all the same.
  if (alignment == kHugePage) madvise(pointer, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return pointer;
}

void aligned_release(void* pointer) { std::free(pointer); }

}  // namespace cpu
}  // namespace dultra
