// What is asked of the operating system and the processor. Their headers are included nowhere else, but for opening the
// CUDA plugin and in it, which are for Linux. Nothing here throws.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace dultra {
namespace platform {

// Size of the pages that advise_huge_pages asks for; 0 where it does nothing.
#ifdef __linux__
constexpr size_t kHugePage = size_t(2) << 20;
#else
constexpr size_t kHugePage = 0;
#endif

// Memory that begins at a multiple of `alignment`, a power of two; null where there is none.
void* allocate_aligned(size_t bytes, size_t alignment);
void release_aligned(void* pointer);
// Only advice, for whole huge pages: where they are off, the memory works all the same.
void advise_huge_pages(void* pointer, size_t bytes);

// A whole file in memory, read-only.
struct Mapping {
  const uint8_t* data = nullptr;
  uint64_t size = 0;
};
// path: UTF-8. False where it cannot be opened, or is empty or no regular file, and why.
bool map_file(const std::string& path, Mapping* mapping, std::string* problem);
void unmap_file(const Mapping& mapping);
// Bytes [begin, end) will not be read again: gives the pages inside back, where the system can.
void forget_pages(const Mapping& mapping, uint64_t begin, uint64_t end);

// A shared library by its name or path, with its symbols visible to libraries that it opens itself. Null where it
// cannot be opened, and why.
void* open_library(const std::string& name, std::string* problem);
void close_library(void* library);
// Null where the library has none of that name.
void* find_symbol(void* library, const char* name);

// Instruction sets of this processor whose registers the operating system saves on a context switch.
struct CpuFeatures {
  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, BW, VL and DQ, besides all of avx2
  bool avx512_bf16 = false;  // besides all of avx512
};
const CpuFeatures& cpu_features();

}  // namespace platform
}  // namespace dultra
