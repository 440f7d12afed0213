// Conversions between storage types.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

__global__ void __launch_bounds__(kElementThreads)
    convert_kernel(void* to, DType to_type, const void* from, DType from_type, int64_t n) {
  const int64_t i = global_index();
  if (i >= n) return;
  const float value = load_as_f32(from, from_type, size_t(i));
  switch (to_type) {
    case DType::kF32: static_cast<float*>(to)[i] = value; break;
    case DType::kBF16: static_cast<uint16_t*>(to)[i] = f32_to_bf16(value); break;
    case DType::kF16: static_cast<uint16_t*>(to)[i] = f32_to_f16(value); break;
  }
}

}  // namespace

void convert(void* to, DType to_type, const void* from, DType from_type, int64_t n, cudaStream_t stream) {
  if (n > 0)
    launch("convert", stream, convert_kernel, element_grid(n), kElementThreads, 0, to, to_type, from, from_type, n);
}

}  // namespace cuda
}  // namespace dultra
