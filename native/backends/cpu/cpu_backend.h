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

 protected:
#define DULTRA_OP(result, name, parameters, arguments) result do_##name parameters override;
#include "ops/ops.inc"

 private:
  void rotate(float* x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim, const Rope& rope,
              float direction);
  const float* sort_rows(const float* x, const ExpertRows& rows, int64_t width);
  void sample_filtered(const SampleArgs& args);

  const IsaKernels* kernels_;
  ThreadPool pool_;
};

// Names of the instruction sets compiled in that this CPU can run, worst first.
std::vector<std::string> available_isas();

}  // namespace cpu
}  // namespace dultra
