// SiLU and the gated product of the MLP.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

__device__ __forceinline__ float silu(float x) { return x / (expf(-x) + 1.0f); }
// The slope of silu, and silu itself.
__device__ __forceinline__ float silu_slope(float x, float* value) {
  const float sigmoid = 1.0f / (expf(-x) + 1.0f);
  *value = x * sigmoid;
  return sigmoid * (x * (1.0f - sigmoid) + 1.0f);
}

__global__ void __launch_bounds__(kElementThreads) swiglu_forward_kernel(float* out, const float* gate_up, int64_t m, int64_t f) {
  const int64_t i = global_index();
  if (i >= m * f) return;
  const float* gate = gate_up + i / f * 2 * f + i % f;
  out[i] = silu(gate[0]) * gate[f];
}

__global__ void __launch_bounds__(kElementThreads) silu_forward_kernel(float* x, int64_t n) {
  const int64_t i = global_index();
  if (i < n) x[i] = silu(x[i]);
}

// May be in place of gate_up: a thread reads the pair that it overwrites.
__global__ void __launch_bounds__(kElementThreads)
    swiglu_backward_kernel(float* dgate_up, const float* dout, const float* gate_up, int64_t m, int64_t f) {
  const int64_t i = global_index();
  if (i >= m * f) return;
  const int64_t at = i / f * 2 * f + i % f;
  float value;
  const float up = gate_up[at + f], slope = silu_slope(gate_up[at], &value), d = dout[i];
  dgate_up[at] = d * up * slope;
  dgate_up[at + f] = d * value;
}

__global__ void __launch_bounds__(kElementThreads) silu_backward_kernel(float* dx, const float* dout, const float* x, int64_t n) {
  const int64_t i = global_index();
  if (i >= n) return;
  float value;
  dx[i] = dout[i] * silu_slope(x[i], &value);
}

}  // namespace

void swiglu_forward(float* out, const float* gate_up, int64_t m, int64_t f, cudaStream_t stream) {
  if (m * f > 0) launch("swiglu_forward", stream, swiglu_forward_kernel, element_grid(m * f), kElementThreads, 0, out, gate_up, m, f);
}

void silu_forward(float* x, int64_t n, cudaStream_t stream) {
  if (n > 0) launch("silu_forward", stream, silu_forward_kernel, element_grid(n), kElementThreads, 0, x, n);
}

void swiglu_backward(float* dgate_up, const float* dout, const float* gate_up, int64_t m, int64_t f, cudaStream_t stream) {
  if (m * f > 0) launch("swiglu_backward", stream, swiglu_backward_kernel, element_grid(m * f), kElementThreads, 0, dgate_up, dout, gate_up, m, f);
}

void silu_backward(float* dx, const float* dout, const float* x, int64_t n, cudaStream_t stream) {
  if (n > 0) launch("silu_backward", stream, silu_backward_kernel, element_grid(n), kElementThreads, 0, dx, dout, x, n);
}

}  // namespace cuda
}  // namespace dultra
