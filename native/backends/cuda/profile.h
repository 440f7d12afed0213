// What a run looks like from inside: NVTX ranges for profilers, and the time of each operation.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace dultra {
namespace cuda {

// A range of the thread under this name, where a profiler listens (Nsight Systems, Nsight Compute). Nothing is linked:
// NVTX looks for the profiler's library when the first range begins.
class NvtxRange {
 public:
  explicit NvtxRange(const char* name);
  NvtxRange(const NvtxRange&) = delete;
  NvtxRange& operator=(const NvtxRange&) = delete;
  ~NvtxRange();
};

// DULTRA_TRACE=time: how long the stream was busy with each operation, by events around it; a table on stderr in the
// end. Steps are then run operation by operation, not as graphs.
class OperationTimes {
 public:
  // Null without DULTRA_TRACE=time.
  static std::unique_ptr<OperationTimes> open(cudaStream_t stream);
  ~OperationTimes();
  OperationTimes(const OperationTimes&) = delete;
  OperationTimes& operator=(const OperationTimes&) = delete;

  // Around an operation's launches; an operation within another counts as that one. Names live for ever.
  void begin(const char* operation);
  void end();
  // A step more, over which the table averages.
  void count_step() { ++steps_; }
  // The table, the longest first: operation, calls, milliseconds, microseconds a call, share. Waits for the stream.
  std::vector<std::string> lines();

 private:
  explicit OperationTimes(cudaStream_t stream) : stream_(stream) {}
  struct Pending {
    const char* operation;
    cudaEvent_t begin, end;
  };
  struct Total {
    int64_t calls = 0;
    double milliseconds = 0;
  };
  void collect();

  const cudaStream_t stream_;
  int depth_ = 0;
  int64_t steps_ = 0;
  std::vector<Pending> pending_;
  std::map<std::string, Total> totals_;
};

}  // namespace cuda
}  // namespace dultra
