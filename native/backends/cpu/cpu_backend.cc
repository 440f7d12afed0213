#include "backends/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "backends/cpu/aligned.h"
#include "backends/cpu/isa_kernels.h"
#include "backends/cpu/parallel.h"
#include "platform/platform.h"

namespace dultra {
namespace cpu {

namespace {

// The tables this CPU can run, worst first.
const std::vector<IsaKernels>& usable_kernels() {
  static const std::vector<IsaKernels> kernels = [] {
    std::vector<IsaKernels> list;
    [[maybe_unused]] const platform::CpuFeatures& features = platform::cpu_features();
    list.push_back(isa_kernels_baseline());
#ifdef DULTRA_HAVE_AVX2
    if (features.avx2) list.push_back(isa_kernels_avx2());
#endif
#ifdef DULTRA_HAVE_AVX512
    if (features.avx512) list.push_back(isa_kernels_avx512());
#endif
#ifdef DULTRA_HAVE_AVX512_BF16
    if (features.avx512_bf16) list.push_back(isa_kernels_avx512_bf16());
#endif
#ifdef DULTRA_HAVE_NEON
    list.push_back(isa_kernels_neon());
#endif
    return list;
  }();
  return kernels;
}

const IsaKernels* find_kernels(const std::string& isa) {
  const std::vector<IsaKernels>& usable = usable_kernels();
  if (isa.empty()) return &usable.back();
  std::string names;
  for (const IsaKernels& kernels : usable) {
    if (isa == kernels.name) return &kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels.name);
  }
  throw Error(ErrorCode::kInvalidArgument, "isa: expected one of " + names + ", got " + isa);
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const IsaKernels& kernels : usable_kernels()) names.push_back(kernels.name);
  return names;
}

CpuBackend::CpuBackend(int threads, const std::string& isa, Compute compute)
    : Backend(compute), kernels_(find_kernels(isa)), pool_(threads) {
  if (!supports(compute))
    throw Error(ErrorCode::kDeviceUnavailable,
                std::string("compute: \"bfloat16\" needs a CPU with AVX-512 BF16; this backend runs ") + this->isa());
}

void* CpuBackend::allocate(size_t bytes) { return aligned_allocate(bytes); }

void CpuBackend::release(void* pointer) { aligned_release(pointer); }

void CpuBackend::upload(void* to, const void* from_host, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from_host, bytes);
}

void CpuBackend::download(void* to_host, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to_host, from, bytes);
}

void CpuBackend::do_fill_zero(float* x, int64_t n) {
  if (n > 0) std::memset(x, 0, size_t(n) * sizeof(float));
}

void CpuBackend::do_copy(float* to, const float* from, int64_t n) {
  constexpr int64_t kPiece = 4096;  // numbers of a task
  parallel_ranges(pool_, (n + kPiece - 1) / kPiece, kPiece, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin * kPiece, from + begin * kPiece,
                size_t(std::min(end * kPiece, n) - begin * kPiece) * sizeof(float));
  });
}

}  // namespace cpu
}  // namespace dultra
