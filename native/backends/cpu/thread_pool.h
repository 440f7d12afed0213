// A pool of worker threads owned by one backend. Work is cut into numbered tasks; which thread runs which task never
// influences a result. Callers from several threads take turns.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace dultra {
namespace cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // threads - 1 workers; the caller is the other one
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Runs task(i) for every i in [0, count), in any order and on any thread, and returns when all are done. The first
  // exception a task throws is rethrown here after the others have finished.
  void run(int64_t count, const std::function<void(int64_t)>& task);

 private:
  struct State;
  const int threads_;
  std::unique_ptr<State> state_;
};

}  // namespace cpu
}  // namespace dultra
