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

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

#include "ops/check.h"

namespace dultra {
namespace cpu {

namespace {

// A step of a small model is a chain of jobs a few microseconds apart, and waking a sleeping thread costs tens of
// microseconds: so threads spin between jobs. Not for long: on a busy machine a spinning thread holds the core that the
// other one needs.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void relax() {
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
      relax();
    }
    if (std::chrono::steady_clock::now() >= end) return false;
  }
}

// Where a worker wakes up. Linux may wake a thread on the very core that the waking thread goes on using, though
// another one is idle (seen on virtual machines), and then the job runs on one core for milliseconds, until the
// scheduler balances. So a worker is woken with the caller's core excluded, and takes its full mask back as soon as it
// runs.
class Placement {
 public:
#ifdef __linux__
  // Called by the thread that is about to wake `worker`.
  void exclude(int core, pthread_t worker) {
    if (core < 0 || excluded_ || pthread_getaffinity_np(worker, sizeof mask_, &mask_) != 0) return;
    cpu_set_t others = mask_;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) > 0) excluded_ = pthread_setaffinity_np(worker, sizeof others, &others) == 0;
  }
  // Called by the worker.
  void restore() {
    if (excluded_) pthread_setaffinity_np(pthread_self(), sizeof mask_, &mask_);
    excluded_ = false;
  }
  static int current_core() { return sched_getcpu(); }

 private:
  bool excluded_ = false;
  cpu_set_t mask_;
#else
  template <typename Handle>
  void exclude(int, const Handle&) {}
  void restore() {}
  static int current_core() { return -1; }
#endif
};

// Whether this thread is inside a task of some pool: a run() from there runs inline, since waiting for a turn that the
// outer run() holds would never end.
thread_local bool inside_task = false;

std::exception_ptr run_inline(int64_t count, const std::function<void(int64_t)>& task) {
  std::exception_ptr first;
  for (int64_t i = 0; i < count; ++i) {
    try {
      task(i);
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  return first;
}

}  // namespace

struct ThreadPool::State {
  explicit State(int threads) : workers(size_t(threads - 1)) {}

  std::mutex turn;  // held by the caller whose job is running

  std::mutex mutex;  // guards everything below that is not atomic; atomics are written under it, except `next`
  std::condition_variable idle;         // the caller waits for the last worker
  std::atomic<uint64_t> generation{0};  // of the job
  std::atomic<bool> stop{false};
  std::atomic<int> joined{0};  // workers inside the job
  bool open = false;           // the job takes more workers: a worker that wakes too late does not hold up the caller
  bool caller_sleeps = false;
  int64_t count = 0;
  const std::function<void(int64_t)>* task = nullptr;
  std::exception_ptr exception;

  std::atomic<int64_t> next{0};  // task to start next

  struct Worker {
    std::thread thread;
    std::condition_variable wake;
    bool asleep = false;  // waits in `wake`, and nobody has woken it yet
    Placement placement;
  };
  std::vector<Worker> workers;

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

  void run_worker(Worker* self) {
    uint64_t seen = 0;
    for (;;) {
      const auto news = [&] {
        return generation.load(std::memory_order_relaxed) != seen || stop.load(std::memory_order_relaxed);
      };
      spin_until(news);
      std::unique_lock<std::mutex> lock(mutex);
      if (!news()) {
        self->asleep = true;
        self->wake.wait(lock, news);
        self->asleep = false;
        self->placement.restore();
      }
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
    for (Worker& worker : workers) {
      worker.wake.notify_one();
      if (worker.thread.joinable()) worker.thread.join();
    }
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  check_argument(threads >= 1, "threads: expected at least 1, got " + std::to_string(threads));
  state_.reset(new State(threads));
  State& s = *state_;
  for (State::Worker& worker : s.workers) {
    try {
      worker.thread = std::thread(&State::run_worker, &s, &worker);
    } catch (const std::system_error& error) {
      s.shut_down();
      throw Error(ErrorCode::kOutOfMemory,
                  "could not start a pool of " + std::to_string(threads) + " threads: " + error.what());
    }
  }
}

ThreadPool::~ThreadPool() { state_->shut_down(); }

void ThreadPool::run(int64_t count, const std::function<void(int64_t)>& task) {
  if (count <= 0) return;
  if (inside_task) {
    if (std::exception_ptr exception = run_inline(count, task)) std::rethrow_exception(exception);
    return;
  }

  State& s = *state_;
  const std::lock_guard<std::mutex> turn(s.turn);
  if (threads_ == 1 || count == 1) {
    inside_task = true;
    const std::exception_ptr exception = run_inline(count, task);
    inside_task = false;
    if (exception) std::rethrow_exception(exception);
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.task = &task;
    s.count = count;
    s.exception = nullptr;
    s.next.store(0, std::memory_order_relaxed);
    s.open = true;
    s.generation.fetch_add(1, std::memory_order_relaxed);
    // The caller runs one task itself. Workers that are awake come by themselves.
    int64_t wanted = count - 1;
    const int core = Placement::current_core();
    for (State::Worker& worker : s.workers) {
      if (wanted-- <= 0) break;
      if (!worker.asleep) continue;
      worker.asleep = false;
      worker.placement.exclude(core, worker.thread.native_handle());
      worker.wake.notify_one();
    }
  }
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
