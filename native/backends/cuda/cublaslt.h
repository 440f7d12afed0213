// cuBLASLt, found at run time. Without it the built-in matrix products are used.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "ops/tensor.h"

namespace dultra {
namespace cuda {

// The library's functions, declared in cublaslt.cc.
struct LtApi;
// One of its algorithms, as it describes it.
struct LtAlgorithm {
  uint64_t data[8];
};

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
  // then. A row's bits depend neither on m nor on the strides. The first product of an n and k chooses the algorithms
  // and waits for the stream.
  bool multiply(Array out, int64_t out_stride, const Operand& a, const Operand& b, int64_t m, int64_t n, int64_t k,
                const void* bias, bool accumulate);

  // While the stream is captured nothing can be chosen: a product of an n and k that is new then throws INTERNAL.
  void set_capturing(bool on) { capturing_ = on; }

  // What was chosen, a line for each n, k and kind of product: the algorithm for many rows, and that for few.
  std::vector<std::string> choices() const;

 private:
  CublasLt();
  struct Shape;
  struct Plan;
  struct Choice;
  class Comparison;
  bool make_plan(Plan* plan, const Shape& shape, int64_t m, int64_t n) const;
  std::vector<LtAlgorithm> proposals(const Shape& shape, int64_t m) const;
  Choice choose(const Shape& shape, int64_t m);

  std::unique_ptr<LtApi> api_;
  void* handle_ = nullptr;
  void* preference_ = nullptr;
  void* workspace_ = nullptr;
  cudaStream_t stream_ = nullptr;
  size_t version_ = 0;
  std::map<std::tuple<int64_t, int64_t, int64_t, int>, Choice> choices_;  // by 0 or a gradient's m, n, k, kind
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int>, std::unique_ptr<Plan>> plans_;
  bool capturing_ = false;
};

}  // namespace cuda
}  // namespace dultra
