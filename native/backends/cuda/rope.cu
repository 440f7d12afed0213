// Rotary position embedding, in place.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

// A thread turns one pair. Angles are fp32, as the frequencies that the host computed are.
__global__ void __launch_bounds__(kElementThreads) rope_kernel(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                                                               const float* inverse_frequency, float direction) {
  const int half = head_dim / 2;
  const int64_t index = global_index(), pairs = int64_t(heads) * half;
  if (index >= m * pairs) return;
  const int64_t row = index / pairs;
  const int head = int(index % pairs) / half, j = int(index % half);
  const int64_t low = row * stride + int64_t(head) * head_dim + j, high = low + half;
  const float angle = float(positions[row]) * inverse_frequency[j];
  const float a = ConstArray(x)[low], b = ConstArray(x)[high], c = cosf(angle), s = sinf(angle) * direction;
  put(x, low, fmaf(a, c, -(b * s)));
  put(x, high, fmaf(b, c, a * s));
}

}  // namespace

void rope(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim, const float* inverse_frequency, float direction,
          cudaStream_t stream) {
  const int64_t pairs = m * heads * (head_dim / 2);
  if (pairs > 0)
    launch("rope", stream, rope_kernel, element_grid(pairs), kElementThreads, 0, x, stride, positions, m, heads, head_dim, inverse_frequency,
           direction);
}

}  // namespace cuda
}  // namespace dultra
