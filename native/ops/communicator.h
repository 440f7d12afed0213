// What processes that train one model together exchange: arrays of host memory. One process needs none of it and runs
// the same code.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace dultra {

// Every rank makes the same calls in the same order, one at a time. Throws DEVICE_UNAVAILABLE.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // x (n) = the sum of x over all ranks, on every rank the same bits: of integers whatever the number of ranks, of
  // floating-point numbers in an order that depends on the number of ranks alone.
  virtual void all_reduce_sum(float* x, int64_t n) = 0;
  virtual void all_reduce_sum(int64_t* x, int64_t n) = 0;
  // `bytes` of rank `root`, to all others.
  virtual void broadcast(void* x, size_t bytes, int root) = 0;
  // Returns when every rank has called it.
  virtual void barrier() = 0;
};

// A communicator of one process.
inline std::shared_ptr<Communicator> make_single_communicator() {
  class Single final : public Communicator {
   public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    void all_reduce_sum(float*, int64_t) override {}
    void all_reduce_sum(int64_t*, int64_t) override {}
    void broadcast(void*, size_t, int) override {}
    void barrier() override {}
  };
  return std::make_shared<Single>();
}

}  // namespace dultra
