// SiLU and the gated product of the MLP.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/vectors.h"

namespace dultra {
namespace cuda {

namespace {

// Vectors of a thread: what it has under way at a time.
constexpr int kSwigluVectors = 2;  // of gates, and as many of what they gate
constexpr int kSiluVectors = 4;

// 1 / (1 + e^-x), within two units in the last place; 0 where the power is infinite, so that the gate of a large
// negative number is -0.
__device__ __forceinline__ float sigmoid(float x) { return fast_reciprocal(expf(-x) + 1.0f); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }
// The slope of silu, and silu itself.
__device__ __forceinline__ float silu_slope(float x, float* value) {
  const float s = sigmoid(x);
  *value = x * s;
  return s * (x * (1.0f - s) + 1.0f);  // mutant: (1.0f - s) -> s (gates_backward)
}

template <bool kWhole, class Out, class In>
__device__ __forceinline__ void swiglu_row(Out* out, const In* gate, int64_t f) {
  constexpr int kN = kVectorOf<Out, In>;
  Vector<In, kN> gates[kSwigluVectors], ups[kSwigluVectors];
  DULTRA_UNROLL
  for (int v = 0; v < kSwigluVectors; ++v) {
    const int64_t j = vector_start<kN, kSwigluVectors>(blockIdx.y, v);
    if (j >= f) continue;
    gates[v] = load_vector<kN, kWhole>(gate + j, f - j);
    ups[v] = load_vector<kN, kWhole>(gate + f + j, f - j);
  }
  DULTRA_UNROLL
  for (int v = 0; v < kSwigluVectors; ++v) {
    const int64_t j = vector_start<kN, kSwigluVectors>(blockIdx.y, v);
    if (j >= f) continue;
    float values[kN];
    DULTRA_UNROLL
    for (int e = 0; e < kN; ++e) values[e] = silu(gates[v][e]) * ups[v][e];
    store_vector<kWhole>(out + j, rounded_to<Out>(values), f - j);
  }
}
template <class Out, class In>
__global__ void __launch_bounds__(kElementThreads)
    swiglu_forward_kernel(Out* out, const In* gate_up, int64_t f, bool aligned) {
  const int64_t row = blockIdx.x;
  if (aligned)
    swiglu_row<true>(out + row * f, gate_up + row * 2 * f, f);
  else
    swiglu_row<false>(out + row * f, gate_up + row * 2 * f, f);
}

// May be in place of gate_up: a thread reads the numbers that it overwrites.
template <bool kWhole, class To, class D, class In>
__device__ __forceinline__ void swiglu_row_backward(To* dgate, const D* dout, const In* gate, int64_t f) {
  constexpr int kN = kVectorOf<To, D, In>;
  const int64_t j = vector_start<kN, 1>(blockIdx.y, 0);
  if (j >= f) return;
  const Vector<In, kN> gates = load_vector<kN, kWhole>(gate + j, f - j),
                       ups = load_vector<kN, kWhole>(gate + f + j, f - j);
  const Vector<D, kN> d = load_vector<kN, kWhole>(dout + j, f - j);
  float by_gate[kN], by_up[kN];
  DULTRA_UNROLL
  for (int e = 0; e < kN; ++e) {
    float value;
    by_gate[e] = d[e] * ups[e] * silu_slope(gates[e], &value);
    by_up[e] = d[e] * value;
  }
  store_vector<kWhole>(dgate + j, rounded_to<To>(by_gate), f - j);
  store_vector<kWhole>(dgate + f + j, rounded_to<To>(by_up), f - j);
}
template <class To, class D, class In>
__global__ void __launch_bounds__(kElementThreads)
    swiglu_backward_kernel(To* dgate_up, const D* dout, const In* gate_up, int64_t f, bool aligned) {
  const int64_t row = blockIdx.x;
  if (aligned)
    swiglu_row_backward<true>(dgate_up + row * 2 * f, dout + row * f, gate_up + row * 2 * f, f);
  else
    swiglu_row_backward<false>(dgate_up + row * 2 * f, dout + row * f, gate_up + row * 2 * f, f);
}

constexpr int64_t kSiluNumbers = int64_t(kElementThreads) * kSiluVectors * kVectorOf<float>;  // of a block

template <bool kWhole>
__device__ __forceinline__ void silu_block(float* x, int64_t n) {
  constexpr int kN = kVectorOf<float>;
  Vector<float, kN> numbers[kSiluVectors];
  DULTRA_UNROLL
  for (int v = 0; v < kSiluVectors; ++v) {
    const int64_t i = vector_start<kN, kSiluVectors>(blockIdx.x, v);
    numbers[v] = load_vector<kN, kWhole>(x + i, n - i);
  }
  DULTRA_UNROLL
  for (int v = 0; v < kSiluVectors; ++v) {
    const int64_t i = vector_start<kN, kSiluVectors>(blockIdx.x, v);
    float values[kN];
    DULTRA_UNROLL
    for (int e = 0; e < kN; ++e) values[e] = silu(numbers[v][e]);
    store_vector<kWhole>(x + i, rounded_to<float>(values), n - i);
  }
}
__global__ void __launch_bounds__(kElementThreads) silu_forward_kernel(float* x, int64_t n, bool aligned) {
  if (aligned && int64_t(blockIdx.x + 1) * kSiluNumbers <= n)
    silu_block<true>(x, n);
  else
    silu_block<false>(x, n);
}

// Of the planner's condition alone, a row for each sequence.
__global__ void __launch_bounds__(kElementThreads)
    silu_backward_kernel(float* dx, const float* dout, const float* x, int64_t n) {
  const int64_t i = global_index();
  if (i >= n) return;
  float value;
  dx[i] = dout[i] * silu_slope(x[i], &value);
}

}  // namespace

void CudaBackend::do_swiglu_forward(Array out, ConstArray gate_up, int64_t m, int64_t f) {
  ArgTransfer transfer(*this);
  if (m * f == 0) return;
  typed(out, [&](auto* to) {
    typed(gate_up, [&](auto* from) {
      using Out = number_of<decltype(to)>;
      using In = number_of<decltype(from)>;
      constexpr int kN = kVectorOf<Out, In>;
      launch("swiglu_forward", stream_, swiglu_forward_kernel<Out, In>,
             row_pieces(m, f, kElementThreads * kSwigluVectors * kN), kElementThreads, 0, to, from, f,
             in_vectors<kN>(to, f) && in_vectors<kN>(from, f));
    });
  });
  transfer.finish();
}

void CudaBackend::do_silu_forward(float* x, int64_t n) {
  ArgTransfer transfer(*this);
  if (n > 0)
    launch("silu_forward", stream_, silu_forward_kernel, dim3(unsigned(ceil_div(n, kSiluNumbers))), kElementThreads, 0,
           x, n, in_vectors<kVectorOf<float>>(x, 0));
  transfer.finish();
}

void CudaBackend::do_swiglu_backward(Array dgate_up, ConstArray dout, ConstArray gate_up, int64_t m, int64_t f) {
  ArgTransfer transfer(*this);
  if (m * f == 0) return;
  typed(dgate_up, [&](auto* to) {
    typed(dout, [&](auto* d) {
      typed(gate_up, [&](auto* from) {
        using To = number_of<decltype(to)>;
        using D = number_of<decltype(d)>;
        using In = number_of<decltype(from)>;
        constexpr int kN = kVectorOf<To, D, In>;
        launch("swiglu_backward", stream_, swiglu_backward_kernel<To, D, In>, row_pieces(m, f, kElementThreads * kN),
               kElementThreads, 0, to, d, from, f,
               in_vectors<kN>(to, f) && in_vectors<kN>(d, f) && in_vectors<kN>(from, f));
      });
    });
  });
  transfer.finish();
}

void CudaBackend::do_silu_backward(float* dx, const float* dout, const float* x, int64_t n) {
  ArgTransfer transfer(*this);
  if (n > 0)
    launch("silu_backward", stream_, silu_backward_kernel, element_grid(n), kElementThreads, 0, dx, dout, x, n);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
