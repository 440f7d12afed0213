#include "backends/cpu/aligned.h"

#include <cstdint>
#include <limits>
#include <string>

#include "ops/check.h"
#include "platform/platform.h"

namespace dultra {
namespace cpu {

namespace {
constexpr size_t kLine = 64, kHugePage = platform::kHugePage;
constexpr size_t kHugeFrom = 4 * kHugePage;  // below this, rounding up to whole huge pages would waste too much
}  // namespace

void* aligned_allocate(size_t bytes) {
  const size_t alignment = kHugePage > 0 && bytes >= kHugeFrom ? kHugePage : kLine;
  void* pointer = nullptr;
  // PTRDIFF_MAX: no allocator grants more, and rounding up cannot overflow below it.
  if (bytes <= size_t(std::numeric_limits<ptrdiff_t>::max())) {
    const size_t rounded = bytes == 0 ? kLine : (bytes + kLine - 1) / kLine * kLine;
    pointer = platform::allocate_aligned(rounded, alignment);
  }
  if (pointer == nullptr)
    throw Error(ErrorCode::kOutOfMemory, "could not allocate " + std::to_string(bytes) + " bytes");
  if (alignment == kHugePage) platform::advise_huge_pages(pointer, bytes);
  return pointer;
}

void aligned_release(void* pointer) { platform::release_aligned(pointer); }

}  // namespace cpu
}  // namespace dultra
