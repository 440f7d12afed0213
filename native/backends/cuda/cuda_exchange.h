// An Exchange of the CUDA backend: pinned memory with a device mirror, and CUDA graphs.
#pragma once
#include <cuda_runtime.h>

#include <map>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/launch_key.h"

namespace dultra {
namespace cuda {

// `run` first lets the operations write what they would launch (launch_key.h). A key that is new is run directly:
// memory is allocated and the algorithms of products are chosen then. The second time it is captured into a graph, from
// then on the graph is launched. Graphs hold addresses of the backend's scratch memory, so they end when that moves.
class CudaExchange final : public Exchange {
 public:
  explicit CudaExchange(CudaBackend& backend) : backend_(backend) {}
  ~CudaExchange() override;

  // A backend that waits for every operation, or takes its time, cannot be captured.
  bool records() const override { return !backend_.blocking_ && !backend_.times_; }
  uint8_t* reserve(size_t bytes) override;
  void send(size_t begin, size_t end) override;
  void receive(size_t begin, size_t end) override;
  void run(const std::function<void()>& operations) override;
  void forget() override;

  // Captures that failed: their operations are run directly.
  int64_t failed() const { return failed_; }
  // The device's address of a host address, or null.
  const void* mirror(const void* host) const;

 private:
  struct CachedGraph {
    cudaGraphExec_t graph = nullptr;
    uint64_t scratch = 0;  // the backend's scratch memory that it works on
    bool seen = false;     // was run directly
    bool failed = false;   // could not be captured: is run directly
    uint64_t last_used = 0;
  };
  std::string plan(const std::function<void()>& operations) const;
  void capture(CachedGraph* cached, const std::function<void()>& operations);
  void give_up(CachedGraph* cached, const char* what);
  void drop(CachedGraph* cached);
  void make_room();
  void release_memory();
  void settle();

  CudaBackend& backend_;
  uint8_t *host_ = nullptr, *device_ = nullptr;
  size_t bytes_ = 0;
  bool sent_ = false;                          // what was sent may not have been read yet
  cudaEvent_t received_ = nullptr;             // what the last receive waits for
  std::map<std::string, CachedGraph> graphs_;  // by what is launched
  uint64_t clock_ = 0;
  int64_t failed_ = 0;
};

}  // namespace cuda
}  // namespace dultra
