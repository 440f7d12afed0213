// What processes that train one model together exchange: arrays of host memory, and with DeviceRanks those of devices.
// One process needs none of it and runs the same code.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace dultra {

// What ranks are about to do together.
enum class Shared : int64_t { kEnd, kBarrier, kGather, kConnect, kMicroBatch, kGradients, kState };

// In place of a rank: a result that every rank gets.
constexpr int kEveryRank = -1;

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
  // Likewise, on rank `root` alone; on others x is as it was.
  virtual void reduce_sum(float* x, int64_t n, int root) = 0;
  virtual void reduce_sum(int64_t* x, int64_t n, int root) = 0;
  // Begins what reduce_sum does, or all_reduce_sum for kEveryRank, and returns before it is done: x is left alone until
  // `wait_sum` has returned, and `owner` keeps it for as long. At most 2^26 numbers. Ranks begin the same sums in the
  // same order; whatever else they do together may come between, at another place on each rank. Returns the sum's
  // number. Unless a communicator knows better, `wait_sum` does the work.
  virtual int64_t start_sum(float* x, int64_t n, int root, std::shared_ptr<void> owner) {
    return defer(x, n, root, std::move(owner));
  }
  virtual int64_t start_sum(int64_t* x, int64_t n, int root, std::shared_ptr<void> owner) {
    return defer(x, n, root, std::move(owner));
  }
  // Waits for a sum, and for all that were begun before it.
  virtual void wait_sum(int64_t number) {
    for (; done_ < number; ++done_, deferred_.pop_front()) deferred_.front()();
  }
  // Returns at once, after which nothing touches the numbers of sums that are under way and have no owner.
  virtual void abandon_sums() {}
  // `bytes` of rank `root`, to all others.
  virtual void broadcast(void* x, size_t bytes, int root) = 0;
  // Returns when every rank has called it with the same arguments. Whatever ranks do together begins with it: calls
  // that do not match would otherwise wait for each other for ever, or mix up their numbers. Throws, on every rank,
  // where one is about to do something else, or has ended.
  virtual void agree(Shared what, int64_t n) = 0;

 private:
  template <typename T>
  int64_t defer(T* x, int64_t n, int root, std::shared_ptr<void> owner) {
    deferred_.push_back([this, x, n, root, owner = std::move(owner)] {
      if (root == kEveryRank)
        all_reduce_sum(x, n);
      else
        reduce_sum(x, n, root);
    });
    return done_ + int64_t(deferred_.size());
  }

  std::deque<std::function<void()>> deferred_;
  int64_t done_ = 0;
};

// How ranks add up arrays of a device.
struct DeviceRanks {
  std::shared_ptr<Communicator> ranks;  // of device memory alone; null: it has to go through the host
  std::string version;                  // of NCCL
  std::string reason;                   // why it goes through the host, on every rank the same; empty: nothing else can
};

// A communicator of one process.
inline std::shared_ptr<Communicator> make_single_communicator() {
  class Single final : public Communicator {
   public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    void all_reduce_sum(float*, int64_t) override {}
    void all_reduce_sum(int64_t*, int64_t) override {}
    void reduce_sum(float*, int64_t, int) override {}
    void reduce_sum(int64_t*, int64_t, int) override {}
    void broadcast(void*, size_t, int) override {}
    void agree(Shared, int64_t) override {}
  };
  return std::make_shared<Single>();
}

}  // namespace dultra
