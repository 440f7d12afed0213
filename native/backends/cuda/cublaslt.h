// cuBLASLt, found at run time. Without it the built-in matrix products are used.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "ops/tensor.h"

namespace dultra {
namespace cuda {

// The library's functions, declared in cublaslt.cc.
struct LtApi;

class CublasLt {
 public:
  // $DULTRA_CUBLAS_PATH (a file or a folder), the dynamic linker's paths, /usr/local/cuda, and Python's nvidia
  // packages. Null if there is none that fits, and why.
  static std::unique_ptr<CublasLt> open(cudaStream_t stream, std::string* reason);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // Of the library, as 130100 for 13.1.0.
  size_t version() const { return version_; }

  // An operand in row-major order: (rows, k), or (k, rows) if `transposed`; `stride` numbers from one line to the next.
  // bf16.
  struct Operand {
    const void* data;
    int64_t stride;
    bool transposed;
  };
  // out (m, n), rows out_stride apart, = a b^T + bias (n, of out's type, may be null), plus what out holds if
  // `accumulate`. False if the library has no algorithm for such a product (unaligned strides, say); nothing is queued
  // then. The first product of a shape waits for the stream and times what the library proposes.
  bool multiply(Array out, int64_t out_stride, const Operand& a, const Operand& b, int64_t m, int64_t n, int64_t k,
                const void* bias, bool accumulate);

  // While the stream is captured nothing can be timed: a product of a shape that is new then throws INTERNAL.
  void set_capturing(bool on) { capturing_ = on; }
  // How often the chosen algorithms were discarded because there were too many.
  uint64_t times_cleared() const { return times_cleared_; }

 private:
  CublasLt();
  struct Plan;
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int>;

  std::unique_ptr<LtApi> api_;
  void* handle_ = nullptr;
  void* preference_ = nullptr;
  void* workspace_ = nullptr;
  cudaStream_t stream_ = nullptr;
  size_t version_ = 0;
  std::map<Key, std::unique_ptr<Plan>> plans_;
  bool capturing_ = false;
  uint64_t times_cleared_ = 0;
};

}  // namespace cuda
}  // namespace dultra
