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

// A thread has two columns, or the last of an odd number.
__global__ void __launch_bounds__(kElementThreads) swiglu_forward_kernel(Array out, ConstArray gate_up, int64_t f) {
  const int64_t row = blockIdx.x, j = int64_t(column_index()) * 2;
  if (j >= f) return;
  const int64_t at = row * 2 * f + j;
  if (j + 1 < f) {
    const Pair gate = get_pair(gate_up, at), up = get_pair(gate_up, at + f);
    put_pair(out, row * f + j, silu(gate.low) * up.low, silu(gate.high) * up.high);
  } else {
    put(out, row * f + j, silu(gate_up[at]) * gate_up[at + f]);
  }
}

__global__ void __launch_bounds__(kElementThreads) silu_forward_kernel(float* x, int64_t n) {
  const int64_t i = global_index();
  if (i < n) x[i] = silu(x[i]);
}

// May be in place of gate_up: a thread reads the numbers that it overwrites, two columns or the last of an odd number.
__global__ void __launch_bounds__(kElementThreads) swiglu_backward_kernel(Array dgate_up, ConstArray dout, ConstArray gate_up, int64_t f) {
  const int64_t row = blockIdx.x, j = int64_t(column_index()) * 2;
  if (j >= f) return;
  const int64_t at = row * 2 * f + j;
  float value;
  if (j + 1 < f) {
    const Pair gate = get_pair(gate_up, at), up = get_pair(gate_up, at + f), d = get_pair(dout, row * f + j);
    float next;
    const float slope = silu_slope(gate.low, &value), next_slope = silu_slope(gate.high, &next);
    put_pair(dgate_up, at, d.low * up.low * slope, d.high * up.high * next_slope);
    put_pair(dgate_up, at + f, d.low * value, d.high * next);
  } else {
    const float up = gate_up[at + f], slope = silu_slope(gate_up[at], &value), d = dout[row * f + j];
    put(dgate_up, at, d * up * slope);
    put(dgate_up, at + f, d * value);
  }
}

__global__ void __launch_bounds__(kElementThreads) silu_backward_kernel(float* dx, const float* dout, const float* x, int64_t n) {
  const int64_t i = global_index();
  if (i >= n) return;
  float value;
  dx[i] = dout[i] * silu_slope(x[i], &value);
}

}  // namespace

void swiglu_forward(Array out, ConstArray gate_up, int64_t m, int64_t f, cudaStream_t stream) {
  if (m * f > 0) launch("swiglu_forward", stream, swiglu_forward_kernel, row_grid(m, ceil_div(f, 2)), kElementThreads, 0, out, gate_up, f);
}

void silu_forward(float* x, int64_t n, cudaStream_t stream) {
  if (n > 0) launch("silu_forward", stream, silu_forward_kernel, element_grid(n), kElementThreads, 0, x, n);
}

void swiglu_backward(Array dgate_up, ConstArray dout, ConstArray gate_up, int64_t m, int64_t f, cudaStream_t stream) {
  if (m * f > 0)
    launch("swiglu_backward", stream, swiglu_backward_kernel, row_grid(m, ceil_div(f, 2)), kElementThreads, 0, dgate_up, dout, gate_up, f);
}

void silu_backward(float* dx, const float* dout, const float* x, int64_t n, cudaStream_t stream) {
  if (n > 0) launch("silu_backward", stream, silu_backward_kernel, element_grid(n), kElementThreads, 0, dx, dout, x, n);
}

}  // namespace cuda
}  // namespace dultra
