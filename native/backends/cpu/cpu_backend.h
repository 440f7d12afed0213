// The CPU backend: the executable specification of every operation, and the embedded default.
#pragma once
#include <memory>
#include <string>

#include "backends/cpu/kernels.h"
#include "backends/cpu/thread_pool.h"
#include "ops/backend.h"

namespace dultra {
namespace cpu {

class CpuBackend : public Backend {
 public:
  // threads >= 1; isa "" picks the best the CPU has, else one of available_isas(). Throws DEVICE_UNAVAILABLE where the
  // instruction set cannot multiply in `compute`.
  CpuBackend(int threads, const std::string& isa, Compute compute);

  const char* name() const override { return "cpu"; }
  const char* isa() const override { return kernels_->name; }
  bool supports(Compute compute) const override;

  void* allocate(size_t bytes) override;
  void release(void* pointer) override;
  void upload(void* to, const void* from_host, size_t bytes) override;
  void download(void* to_host, const void* from, size_t bytes) override;

  std::unique_ptr<Matrix> make_matrix(const std::vector<MatrixPart>& parts, int64_t cols, DType storage) override;
  void update_matrix(Matrix& matrix, const std::vector<MatrixPart>& parts) override;
  void linear_forward(Array out, int64_t out_stride, ConstArray x, int64_t m, const Matrix& w, const float* bias,
                      bool accumulate) override;
  void linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, ConstArray w, int64_t m, int64_t n, int64_t k,
                             bool accumulate) override;
  void linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, const Matrix& w, int64_t first_row,
                             int64_t rows, int64_t m, bool accumulate) override;
  void linear_backward_weight(float* dw, float* db, ConstArray dy, int64_t dy_stride, ConstArray x, int64_t m,
                              int64_t n, int64_t k) override;

  void embedding_forward(float* out, const void* table, DType dtype, const int32_t* ids, int64_t m, int64_t c) override;
  void gather_rows(Array out, ConstArray x, const int32_t* index, int64_t m, int64_t c) override;
  void store_rows(void* to, DType dtype, ConstArray from, const int32_t* index, int64_t m, int64_t c) override;
  void rmsnorm_forward(Array out, const float* x, const float* weight, int64_t m, int64_t c, float eps) override;
  void rmsnorm_copy_forward(Array out, float* copied, const float* x, const int32_t* index, const float* weight,
                            int64_t m, int64_t c, float eps) override;
  void layernorm_forward(float* out, const float* x, const float* mul, const float* add, const int32_t* group,
                         int64_t m, int64_t c, float eps) override;
  void rope_forward(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                    float theta) override;
  void swiglu_forward(Array out, ConstArray gate_up, int64_t m, int64_t f) override;
  void silu_forward(float* x, int64_t n) override;
  void planner_score_forward(float* logit, const float* x, const float* mul, const float* add, const int32_t* group,
                             const float* weight, float bias, int64_t m, int64_t c, float eps) override;

  void embedding_backward(float* dtable, const int32_t* ids, const float* dout, int64_t m, int64_t c) override;
  void scatter_add_rows(float* x, const float* from, const int32_t* index, int64_t m, int64_t c) override;
  void rmsnorm_backward(float* dx, float* dweight, const float* dout, const float* x, const float* weight, int64_t m,
                        int64_t c, float eps) override;
  void layernorm_backward(float* dx, float* dmul, float* dadd, const float* dout, const float* x, const float* mul,
                          const int32_t* group, int64_t m, int64_t c, float eps) override;
  void rope_backward(Array dx, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                     float theta) override;
  void swiglu_backward(Array dgate_up, ConstArray dout, ConstArray gate_up, int64_t m, int64_t f) override;
  void silu_backward(float* dx, const float* dout, const float* x, int64_t n) override;
  void planner_score_backward(float* dx, float* dmul, float* dadd, float* dweight, float* dbias, const float* dlogit,
                              const float* x, const float* mul, const float* add, const int32_t* group,
                              const float* weight, int64_t m, int64_t c, float eps) override;
  void log_prob_backward(float* logits, const int32_t* tokens, const float* dlog_prob, int64_t m, int64_t vocab,
                         float temperature, int32_t excluded_token) override;

  void attention_forward(const AttentionArgs& args) override;
  void sample_forward(const SampleArgs& args) override;
  void unmask(const UnmaskArgs& args) override;
  void attention_backward(const AttentionGradArgs& args) override;
  void likelihood_forward(const LikelihoodArgs& args) override;
  void likelihood_backward(const LikelihoodGradArgs& args) override;

  double sum_squares(const float* x, int64_t n) override;
  void adamw_step(const AdamWArgs& args) override;
  void fill_zero(float* x, int64_t n) override;
  void copy(float* to, const float* from, int64_t n) override;

 private:
  void rotate(float* x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim, float theta,
              float direction);

  const IsaKernels* kernels_;
  ThreadPool pool_;
};

// Names of the instruction sets compiled in that this CPU can run, worst first.
std::vector<std::string> available_isas();

}  // namespace cpu
}  // namespace dultra
