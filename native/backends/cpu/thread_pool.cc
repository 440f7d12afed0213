#include "backends/cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "ops/check.h"

namespace dultra {
namespace cpu {

namespace {

// A step of a small model is a chain of jobs a few microseconds apart, and waking a sleeping thread costs tens of microseconds:
// so threads spin between jobs. Not for long: on a busy machine a spinning thread holds the core that the other one needs.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Polls `done` for kSpin; false if it never held.
template <typename Condition>
bool spin_until(const Condition& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
    if (std::chrono::steady_clock::now() >= end) return false;
  }
}

// Whether this thread is inside a task of some pool: a run() from there runs inline, since waiting for a turn that the outer run()
// holds would never end.
thread_local bool inside_task = false;

}  // namespace

struct ThreadPool::State {
  std::mutex turn;  // held by the caller whose job is running

  std::mutex mutex;  // guards everything below that is not atomic; atomics are written under it, except `next`
  std::condition_variable wake, idle;
  std::atomic<uint64_t> generation{0};  // of the job
  std::atomic<bool> stop{false};
  std::atomic<int> joined{0};  // workers inside the job
  bool open = false;           // the job takes more workers: a worker that wakes too late does not hold up the caller
  bool caller_sleeps = false;
  int64_t sleeping = 0;  // workers in `wake`
  int64_t count = 0;
  const std::function<void(int64_t)>* task = nullptr;
  std::exception_ptr exception;

  std::atomic<int64_t> next{0};  // task to start next

  std::vector<std::thread> workers;

  void work() {
    inside_task = true;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      try {
        (*task)(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!exception) exception = std::current_exception();
      }
    }
    inside_task = false;
  }

  void worker() {
    uint64_t seen = 0;
    for (;;) {
      const auto news = [&] { return generation.load(std::memory_order_relaxed) != seen || stop.load(std::memory_order_relaxed); };
      spin_until(news);
      std::unique_lock<std::mutex> lock(mutex);
      ++sleeping;
      wake.wait(lock, news);
      --sleeping;
      if (stop.load(std::memory_order_relaxed)) return;
      seen = generation.load(std::memory_order_relaxed);
      if (!open) continue;
      joined.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      work();
      lock.lock();
      if (joined.fetch_sub(1, std::memory_order_release) == 1 && caller_sleeps) idle.notify_one();
    }
  }

  void shut_down() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      stop.store(true, std::memory_order_relaxed);
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads), state_(new State) {
  check_argument(threads >= 1, "threads: expected at least 1, got " + std::to_string(threads));
  State& s = *state_;
  try {
    s.workers.reserve(size_t(threads - 1));
    for (int i = 1; i < threads; ++i) s.workers.emplace_back(&State::worker, &s);
  } catch (const std::exception& error) {
    const size_t started = s.workers.size() + 1;
    s.shut_down();
    throw Error(ErrorCode::kOutOfMemory, "could not start thread " + std::to_string(started + 1) + " of " + std::to_string(threads) + ": " + error.what());
  }
}

ThreadPool::~ThreadPool() { state_->shut_down(); }

void ThreadPool::run(int64_t count, const std::function<void(int64_t)>& task) {
  if (count <= 0) return;
  if (threads_ == 1 || count == 1 || inside_task) {
    std::exception_ptr exception;
    for (int64_t i = 0; i < count; ++i) {
      try {
        task(i);
      } catch (...) {
        if (!exception) exception = std::current_exception();
      }
    }
    if (exception) std::rethrow_exception(exception);
    return;
  }

  State& s = *state_;
  const std::lock_guard<std::mutex> turn(s.turn);
  int64_t wakes;
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.task = &task;
    s.count = count;
    s.exception = nullptr;
    s.next.store(0, std::memory_order_relaxed);
    s.open = true;
    s.generation.fetch_add(1, std::memory_order_relaxed);
    wakes = std::min(count - 1, s.sleeping);
  }
  for (; wakes > 0; --wakes) s.wake.notify_one();

  s.work();

  // No task is left to start; wait for the workers that are still inside one.
  std::exception_ptr exception;
  const auto alone = [&] { return s.joined.load(std::memory_order_acquire) == 0; };
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.open = false;
  }
  spin_until(alone);
  {
    std::unique_lock<std::mutex> lock(s.mutex);
    s.caller_sleeps = true;
    s.idle.wait(lock, alone);
    s.caller_sleeps = false;
    exception = std::move(s.exception);
    s.exception = nullptr;
  }
  if (exception) std::rethrow_exception(exception);
}

}  // namespace cpu
}  // namespace dultra
