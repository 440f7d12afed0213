#include "platform/platform.h"

namespace dultra {
namespace platform {

#if defined(__x86_64__)
// Not __builtin_cpu_supports: with clang-cl its table is in a library that nothing links.
namespace {

struct Registers {
  uint32_t a, b, c, d;
};
Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(subleaf));
  return r;
}
// Which registers the operating system saves.
uint32_t xgetbv() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}
constexpr bool all(uint32_t value, uint32_t bits) { return (value & bits) == bits; }
constexpr uint32_t bit(int n) { return uint32_t(1) << n; }

CpuFeatures detect() {
  CpuFeatures found;
  if (cpuid(0, 0).a < 7) return found;
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  const uint32_t fma = bit(12), osxsave = bit(27), avx = bit(28), f16c = bit(29);
  if (!all(one.c, fma | osxsave | avx | f16c)) return found;
  const uint32_t saved = xgetbv(), ymm = bit(1) | bit(2), zmm = bit(5) | bit(6) | bit(7);
  const uint32_t avx2 = bit(5), f = bit(16), dq = bit(17), bw = bit(30), vl = bit(31);
  found.avx2 = all(saved, ymm) && all(seven.b, avx2);
  found.avx512 = found.avx2 && all(saved, zmm) && all(seven.b, f | dq | bw | vl);
  found.avx512_bf16 = found.avx512 && seven.a >= 1 && all(cpuid(7, 1).a, bit(5));
  return found;
}

}  // namespace
#endif

const CpuFeatures& cpu_features() {
#if defined(__x86_64__)
  static const CpuFeatures found = detect();
#else
  static const CpuFeatures found;
#endif
  return found;
}

}  // namespace platform
}  // namespace dultra
