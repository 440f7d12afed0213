// Rotary position embedding, in place or on the way into the cache.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

// A pair of numbers turned by an angle: fp32, as the frequencies that the host computed are.
__device__ __forceinline__ Pair turned(float a, float b, float angle, float direction) {
  const float c = cosf(angle), s = sinf(angle) * direction;
  return {fmaf(a, c, -(b * s)), fmaf(b, c, a * s)};
}

// A thread turns one pair.
__global__ void __launch_bounds__(kElementThreads)
    rope_kernel(Array x, int64_t stride, const int32_t* positions, int heads, int head_dim, const float* inverse_frequency, float direction) {
  const int half = head_dim / 2, pair_index = column_index();
  const int64_t row = blockIdx.x;
  if (pair_index >= heads * half) return;
  const int head = pair_index / half, j = pair_index % half;
  const int64_t low = row * stride + int64_t(head) * head_dim + j, high = low + half;
  const Pair pair = turned(ConstArray(x)[low], ConstArray(x)[high], float(positions[row]) * inverse_frequency[j], direction);
  put(x, low, pair.low);
  put(x, high, pair.high);
}

// What an array of `dtype` would hold of a number.
__device__ __forceinline__ float held_as(DType dtype, float value) {
  return dtype == DType::kBF16 ? bf16_to_f32(uint16_t(pack_bf16(value, 0.0f))) : value;
}

// A thread brings one pair of keys or two neighbouring values of a row to the cache.
__global__ void __launch_bounds__(kElementThreads) rope_store_kernel(Array to, const int32_t* index, ConstArray kv, const int32_t* positions,
                                                                     int kv_heads, int head_dim, const float* inverse_frequency) {
  const int half = head_dim / 2, pair = column_index();
  const int64_t width = int64_t(kv_heads) * head_dim, pairs = width / 2, row = blockIdx.x;
  if (pair >= width) return;
  const int64_t from = row * 2 * width, target = index[row] * 2 * width;
  if (pair < pairs) {
    const int j = pair % half;
    const int64_t low = int64_t(pair / half) * head_dim + j, high = low + half;
    const Pair key = turned(kv[from + low], kv[from + high], float(positions[row]) * inverse_frequency[j], 1);
    put(to, target + low, held_as(kv.dtype, key.low));
    put(to, target + high, held_as(kv.dtype, key.high));
  } else {
    const int64_t at = width + (pair - pairs) * 2;
    const Pair values = get_pair(kv, from + at);
    put_pair(to, target + at, values.low, values.high);
  }
}

}  // namespace

void rope(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim, const float* inverse_frequency, float direction,
          cudaStream_t stream) {
  const int64_t pairs = int64_t(heads) * (head_dim / 2);
  if (m * pairs > 0)
    launch("rope", stream, rope_kernel, row_grid(m, pairs), kElementThreads, 0, x, stride, positions, heads, head_dim, inverse_frequency, direction);
}

void rope_store(Array to, const int32_t* index, ConstArray kv, const int32_t* positions, int64_t m, int kv_heads, int head_dim,
                const float* inverse_frequency, cudaStream_t stream) {
  const int64_t pairs = int64_t(kv_heads) * head_dim;
  if (m * pairs > 0)
    launch("rope_store", stream, rope_store_kernel, row_grid(m, pairs), kElementThreads, 0, to, index, kv, positions, kv_heads, head_dim,
           inverse_frequency);
}

}  // namespace cuda
}  // namespace dultra
