// The CUDA backend: all work goes to one stream and is waited for where its results are read.
//
// Weights are bf16, fp16 or fp32. With Compute::kBF16 the activations that products and attention read are stored in
// bf16; those that come in fp32 are rounded first.
#pragma once
#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cuda/cublaslt.h"
#include "backends/cuda/staging.h"
#include "ops/backend.h"

namespace dultra {
namespace cuda {

struct Operand;
class CudaExchange;

// What open_backend asks before it opens a device.
struct DeviceInfo {
  std::string name;
  int major, minor;
  size_t memory;
};
// Throws DEVICE_UNAVAILABLE that says what is missing: a driver, a newer one, a device.
std::vector<DeviceInfo> list_devices();

class CudaBackend final : public Backend {
 public:
  // Device `index`. blocking: every operation is complete when it returns, as tests on memory that the host reads need
  // it.
  CudaBackend(int index, Compute compute, bool blocking = false);
  ~CudaBackend() override;

  const char* name() const override { return name_.c_str(); }
  const char* isa() const override { return isa_.c_str(); }
  bool supports(Compute) const override { return true; }
  DType activation_dtype() const override { return compute() == Compute::kBF16 ? DType::kBF16 : DType::kF32; }

  void* allocate(size_t bytes) override;
  void release(void* pointer) override;
  void upload(void* to, const void* from_host, size_t bytes) override;
  void download(void* to_host, const void* from, size_t bytes) override;
  std::unique_ptr<Exchange> make_exchange() override;

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
  void rope_store_forward(Array to, const int32_t* index, Array kv, const int32_t* positions, int64_t m, int kv_heads,
                          int head_dim, float theta) override;
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
  class Call;
  friend class CudaExchange;
  friend class CudaMatrix;

  void* scratch(size_t bytes);
  void synchronize();
  // Between the two, operations are captured: they may neither allocate, nor wait, nor stage what lies in plain host
  // memory.
  void set_recording(bool on);
  void refuse_recording(const char* operation) const;  // throws INTERNAL that names it
  void release_held();                                 // what was to be released meanwhile
  // Changes when cuBLASLt's algorithms are to be chosen again.
  uint64_t plans() const;
  // (D/2) of rope_forward, in device memory
  const float* inverse_frequencies(int head_dim, float theta);
  void rotate(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim, float theta,
              float direction);
  // A product in bf16: by cuBLASLt where it is there and has an algorithm, else by the built-in kernels. Operands are
  // device memory.
  void multiply(Array out, int64_t out_stride, const Operand& a, const Operand& b, int64_t m, int64_t n, int64_t k,
                const float* bias, bool accumulate, Compute compute);
  // Rows of `to` (rows, cols) of `storage` from a part in host or device memory.
  void store_part(void* to, DType storage, const MatrixPart& part, int64_t cols);

  const int index_;
  const bool blocking_;
  std::string name_, isa_;
  cudaStream_t stream_ = nullptr;
  mutable std::recursive_mutex mutex_;  // an operation stages its arrays and queues its kernels undisturbed
  std::map<const void*, size_t> allocations_;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<CublasLt> lt_;
  std::vector<const CudaExchange*> exchanges_;  // those that have memory
  bool recording_ = false;
  std::vector<void*> held_;  // to be freed when a recording is complete
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  uint64_t scratch_moves_ = 0;
  struct Frequencies {
    int head_dim;
    float theta;
    float* values;  // (D/2) device memory
  };
  std::vector<Frequencies> frequencies_;
  bool warpgroups_ = false;  // attention may multiply by wgmma
};

}  // namespace cuda
}  // namespace dultra
