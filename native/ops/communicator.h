// What processes that train one model together exchange. One process needs none of it and runs the same code.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace dultra {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // x (n) = the sum of x over all ranks, in an order that depends on the ranks alone. Backend memory; queued behind the
  // backend's operations.
  virtual void all_reduce_sum(float* x, int64_t n) = 0;
  // `bytes` of backend memory of rank `root`, to all others.
  virtual void broadcast(void* x, size_t bytes, int root) = 0;
};

// A communicator of one process.
inline std::unique_ptr<Communicator> make_single_communicator() {
  class Single final : public Communicator {
   public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    void all_reduce_sum(float*, int64_t) override {}
    void broadcast(void*, size_t, int) override {}
  };
  return std::make_unique<Single>();
}

}  // namespace dultra
