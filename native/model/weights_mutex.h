// Who may read a model's weights, and who may change them.
#pragma once
#include <mutex>
#include <shared_mutex>

namespace dultra {

// A shared mutex in which readers that come later do not pass a writer that waits: sessions that decode without a pause
// would otherwise keep an update of the weights out for ever (std::shared_mutex promises nothing, and glibc's lets
// readers in). Not recursive, for readers either.
class WeightsMutex {
 public:
  void lock_shared() {
    const std::lock_guard<std::mutex> turn(turn_);
    mutex_.lock_shared();
  }
  void unlock_shared() { mutex_.unlock_shared(); }
  // Keeps the turn until all readers are done, so that no new one begins.
  void lock() {
    const std::lock_guard<std::mutex> turn(turn_);
    mutex_.lock();
  }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex turn_;
  std::shared_mutex mutex_;
};

}  // namespace dultra
