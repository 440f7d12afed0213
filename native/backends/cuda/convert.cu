// Conversions between storage types.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

__global__ void __launch_bounds__(kElementThreads) convert_kernel(void* to, DType to_type, const void* from, DType from_type, int64_t n) {
  const int64_t i = global_index();
  if (i >= n) return;
  const float value = load_as_f32(from, from_type, size_t(i));
  switch (to_type) {
    case DType::kF32: static_cast<float*>(to)[i] = value; break;
    case DType::kBF16: static_cast<uint16_t*>(to)[i] = f32_to_bf16(value); break;
    case DType::kF16: static_cast<uint16_t*>(to)[i] = f32_to_f16(value); break;
  }
}

__device__ __forceinline__ void put(uint16_t* to, float value) { *to = f32_to_bf16(value); }
__device__ __forceinline__ void put(uint16_t* to, uint16_t value) { *to = value; }
__device__ __forceinline__ void put(float* to, uint16_t value) { *to = bf16_to_f32(value); }

template <class To, class From>
__global__ void __launch_bounds__(kElementThreads) pack_rows_kernel(To* to, const From* from, int64_t stride, int64_t m, int64_t width) {
  const int64_t i = global_index();
  if (i < m * width) put(to + i, from[i / width * stride + i % width]);
}

template <class To, class From>
void pack_rows(To* to, const From* from, int64_t stride, int64_t m, int64_t width, cudaStream_t stream) {
  if (m * width > 0) launch("pack_rows", stream, pack_rows_kernel<To, From>, element_grid(m * width), kElementThreads, 0, to, from, stride, m, width);
}

}  // namespace

void convert(void* to, DType to_type, const void* from, DType from_type, int64_t n, cudaStream_t stream) {
  if (n > 0) launch("convert", stream, convert_kernel, element_grid(n), kElementThreads, 0, to, to_type, from, from_type, n);
}

void pack_rows_bf16(uint16_t* to, const float* from, int64_t stride, int64_t m, int64_t width, cudaStream_t stream) {
  pack_rows(to, from, stride, m, width, stream);
}
void copy_rows_bf16(uint16_t* to, const uint16_t* from, int64_t stride, int64_t m, int64_t width, cudaStream_t stream) {
  pack_rows(to, from, stride, m, width, stream);
}
void unpack_rows_bf16(float* to, const uint16_t* from, int64_t stride, int64_t m, int64_t width, cudaStream_t stream) {
  pack_rows(to, from, stride, m, width, stream);
}

}  // namespace cuda
}  // namespace dultra
