// The CUDA backend: all work goes to one stream and is waited for where its results are read.
//
// Weights are bf16, fp16 or fp32. With Compute::kBF16 the activations that products and attention read are stored in
// bf16; those that come in fp32 are rounded first.
#pragma once
#include <cuda_runtime.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cuda/cublaslt.h"
#include "backends/cuda/profile.h"
#include "backends/cuda/staging.h"
#include "ops/backend.h"
#include "ops/expansion.h"

namespace dultra {
namespace cuda {

class CudaExchange;
class CudaBlockMatrix;

// An operand of a product over k: element (row, k) is data[row * stride + k], or with `transposed` data[k * stride +
// row].
struct MatmulOperand {
  const void* data;
  DType dtype;
  int64_t stride;
  bool transposed;
};

// What open_backend asks before it opens a device.
struct DeviceInfo {
  std::string name;
  int major, minor, multiprocessors;
  size_t memory;
  std::string id;  // 16 bytes, of this device alone
};
// Throws DEVICE_UNAVAILABLE that says what is missing: a driver, a newer one, a device.
std::vector<DeviceInfo> list_devices();

class CudaBackend final : public Backend, private DeviceQueue {
 public:
  // Device `index`. blocking: every operation is complete when it returns, as tests on memory that the host reads need
  // it. expanded: of a matrix in blocks, how many numbers are written out at a time.
  CudaBackend(int index, Compute compute, bool blocking = false, int64_t expanded = kExpandedNumbers);
  ~CudaBackend() override;

  const char* name() const override { return name_.c_str(); }
  const char* isa() const override { return isa_.c_str(); }
  bool supports(Compute) const override { return true; }
  DType activation_dtype() const override { return compute() == Compute::kBF16 ? DType::kBF16 : DType::kF32; }

  void* allocate(size_t bytes) override;
  void release(void* pointer) override;
  void upload(void* to, const void* from_host, size_t bytes) override;
  void download(void* to_host, const void* from, size_t bytes) override;
  bool host_may_read(const void* pointer) const override;
  DeviceQueue* device_queue() override { return this; }
  std::unique_ptr<Exchange> make_exchange() override;

  // The algorithms that cuBLASLt's products have, a line each (CublasLt::choices).
  std::vector<std::string> products() const;
  // The table of DULTRA_TRACE=time; empty without.
  std::vector<std::string> times() const;

 private:
  std::string device_id() const override { return id_; }
  int64_t add(const std::function<void(void* queue)>& add) override;
  bool is_done(int64_t number) override;

#define DULTRA_OP(result, name, parameters, arguments) result do_##name parameters override;
#include "ops/ops.inc"

  friend class ArgTransfer;
  friend class CudaExchange;
  friend class CudaMatrix;
  friend class CudaBlockMatrix;

  // The device address of what a pointer means: of the device mirror, where it points into an exchange's host memory.
  const void* mirror(const void* pointer) const;
  // Whether the array needs no copy to the device: null, device memory, or in an exchange.
  bool on_device(const void* pointer) const;
  // Memory of the kernels of one operation: operations follow each other on the stream, so they share it. (Kernels call
  // their shared memory Scratch.)
  struct ScratchMemory {
    void* data = nullptr;
    size_t bytes = 0;
  };
  void* scratch(ScratchMemory& memory, size_t bytes);
  void* scratch(size_t bytes) { return scratch(scratch_, bytes); }
  // Likewise, of a matrix that is multiplied meanwhile.
  void* expanded(size_t bytes) { return scratch(expanded_, bytes); }
  void synchronize();
  // While a graph is captured, operations may neither allocate, nor wait, nor stage arrays in plain host memory. While
  // one is planned (launch_key.h) they may allocate, as a workspace that grows does: addresses are part of the key.
  void set_capturing(bool on);
  void refuse_capture(const char* operation) const;  // throws INTERNAL that names it
  void refuse_graph(const char* operation) const;    // likewise, also while planning
  void release_deferred();                           // frees what was released meanwhile
  // rope_frequencies in device memory
  const float* frequencies(const Rope& rope);
  void rotate(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim, const Rope& rope,
              float direction);
  // A product in bf16: by cuBLASLt where it is there and has an algorithm, else by the built-in kernels. Operands are
  // device memory.
  void multiply(Array out, int64_t out_stride, const MatmulOperand& a, const MatmulOperand& b, int64_t m, int64_t n,
                int64_t k, const float* bias, bool accumulate, Compute compute);
  // Products with a matrix in blocks, as linear_forward and linear_backward_input. Arrays are device memory.
  void multiply_blocks(Array out, int64_t out_stride, ConstArray x, int64_t m, const CudaBlockMatrix& w,
                       const float* bias, bool accumulate);
  void multiply_blocks_back(Array dx, ConstArray dy, int64_t dy_stride, int64_t m, const CudaBlockMatrix& w,
                            int64_t first_row, int64_t rows, bool accumulate);
  // Rows of `to` (rows, cols) of `storage` from a part in host or device memory.
  void store_part(void* to, DType storage, const MatrixPart& part, int64_t cols);

  const int index_;
  const bool blocking_;
  const int64_t expanded_numbers_;
  std::string name_, isa_, id_;
  cudaStream_t stream_ = nullptr;
  // Of work beside the operations: its stream, an event of the moment when operations are done, and of each that is
  // added, from number ended_ + 1 on, its end.
  cudaStream_t beside_ = nullptr;
  cudaEvent_t ready_ = nullptr;
  std::deque<cudaEvent_t> ends_;
  int64_t ended_ = 0;
  mutable std::recursive_mutex mutex_;  // an operation stages its arrays and queues its kernels undisturbed
  std::map<const void*, size_t> allocations_;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<CublasLt> lt_;
  std::unique_ptr<OperationTimes> times_;
  std::vector<const CudaExchange*> exchanges_;  // those that have memory
  bool capturing_ = false;
  std::vector<void*> deferred_;  // to be freed when a graph is planned or captured
  ScratchMemory scratch_, expanded_;
  uint64_t scratch_moves_ = 0;
  struct Frequencies {
    Rope rope;
    float* values;  // (rope.dim / 2) device memory
  };
  std::vector<Frequencies> frequencies_;
  bool warpgroups_ = false;  // attention may multiply by wgmma
  int multiprocessors_ = 0;
};

}  // namespace cuda
}  // namespace dultra
