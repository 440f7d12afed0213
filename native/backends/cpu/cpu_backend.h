// The CPU backend: the executable specification of every operation, and the embedded default.
#pragma once
#include <memory>
#include <string>

#include "backends/cpu/kernels.h"
#include "backends/cpu/thread_pool.h"
#include "ops/backend.h"

namespace dultra {
namespace cpu {

class CpuBackend final : public Backend {
 public:
  // threads >= 1; isa "" picks the best the CPU has, else one of available_isas().
  CpuBackend(int threads, const std::string& isa);

  const char* name() const override { return "cpu"; }
  const char* isa() const override { return kernels_->name; }
  bool supports(Compute compute) const override;

  void* allocate(size_t bytes) override;
  void release(void* pointer) override;
  void upload(void* to, const void* from_host, size_t bytes) override;
  void download(void* to_host, const void* from, size_t bytes) override;

  std::unique_ptr<Matrix> make_matrix(const std::vector<MatrixPart>& parts, int64_t cols, DType storage, Compute compute) override;
  void linear_forward(float* out, int64_t out_stride, const float* x, int64_t m, const Matrix& w, const float* bias, bool accumulate) override;

  void embedding_forward(float* out, const void* table, DType dtype, const int32_t* ids, int64_t m, int64_t c) override;
  void gather_rows(float* out, const float* x, const int32_t* index, int64_t m, int64_t c) override;
  void rmsnorm_forward(float* out, const float* x, const float* weight, int64_t m, int64_t c, float eps) override;
  void layernorm_forward(float* out, const float* x, const float* mul, const float* add, const int32_t* group, int64_t m, int64_t c,
                         float eps) override;
  void rope_forward(float* x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim, float theta) override;
  void swiglu_forward(float* out, const float* gate_up, int64_t m, int64_t f) override;
  void silu_forward(float* x, int64_t n) override;
  void planner_score_forward(float* logit, const float* x, const float* mul, const float* add, const int32_t* group, const float* weight, float bias,
                             int64_t m, int64_t c, float eps) override;

  void attention_forward(const AttentionArgs& args) override;
  void sample_forward(const SampleArgs& args) override;
  void unmask(const UnmaskArgs& args) override;

 private:
  const IsaKernels* kernels_;
  ThreadPool pool_;
};

// Names of the instruction sets compiled in that this CPU can run, worst first.
std::vector<std::string> available_isas();

}  // namespace cpu
}  // namespace dultra
