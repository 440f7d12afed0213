// SiLU and the gated product of the MLP.
#include <algorithm>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

namespace {

constexpr int64_t kPiece = 4096;  // numbers of a task where there are no rows

}  // namespace

void CpuBackend::do_swiglu_forward(Array out_array, ConstArray gate_up_array, int64_t m, int64_t f) {
  float* out = out_array.f32();
  const float* gate_up = gate_up_array.f32();
  parallel_ranges(pool_, m, 4 * f, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernels_->rows.swiglu(out + i * f, gate_up + i * 2 * f, gate_up + i * 2 * f + f, f);
  });
}

void CpuBackend::do_silu_forward(float* x, int64_t n) {
  parallel_ranges(pool_, (n + kPiece - 1) / kPiece, 4 * kPiece, [&](int64_t begin, int64_t end) {
    kernels_->rows.silu(x + begin * kPiece, std::min(end * kPiece, n) - begin * kPiece);
  });
}

void CpuBackend::do_swiglu_backward(Array dgate_up_array, ConstArray dout_array, ConstArray gate_up_array, int64_t m,
                                    int64_t f) {
  float* dgate_up = dgate_up_array.f32();
  const float *dout = dout_array.f32(), *gate_up = gate_up_array.f32();
  parallel_ranges(pool_, m, 4 * f, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* d = dgate_up + i * 2 * f;
      const float* gate = gate_up + i * 2 * f;
      kernels_->rows.swiglu_backward(d, d + f, dout + i * f, gate, gate + f, f);
    }
  });
}

void CpuBackend::do_silu_backward(float* dx, const float* dout, const float* x, int64_t n) {
  parallel_ranges(pool_, (n + kPiece - 1) / kPiece, 4 * kPiece, [&](int64_t begin, int64_t end) {
    begin *= kPiece;
    kernels_->rows.silu_backward(dx + begin, dout + begin, x + begin, std::min(end * kPiece, n) - begin);
  });
}

}  // namespace cpu
}  // namespace dultra
