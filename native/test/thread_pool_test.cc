#include "backends/cpu/thread_pool.h"

#include <atomic>
#include <stdexcept>
#include <thread>

#include "harness.h"

namespace dultra {
namespace test {
namespace {

DULTRA_TEST(thread_pool_runs_every_task_once) {
  for (int threads : {1, 2, 3, 8}) {
    cpu::ThreadPool pool(threads);
    CHECK(pool.threads() == threads, threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      pool.run(count, [&](int64_t i) { ++seen[size_t(i)]; });
      for (int64_t i = 0; i < count; ++i) CHECK(seen[size_t(i)] == 1, threads, " threads, task ", i, " of ", count);
    }
  }
}

DULTRA_TEST(thread_pool_rethrows_and_goes_on) {
  for (int threads : {1, 3}) {
    cpu::ThreadPool pool(threads);
    std::atomic<int> ran{0};
    std::string caught;
    try {
      pool.run(100, [&](int64_t i) {
        ++ran;
        if (i == 40) throw std::runtime_error("task 40");
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    CHECK(caught == "task 40", threads, " threads: ", caught);
    ran = 0;
    pool.run(50, [&](int64_t) { ++ran; });
    CHECK(ran == 50, threads, " threads: ", ran.load());
  }
}

DULTRA_TEST(thread_pool_nests) {
  cpu::ThreadPool pool(3);
  std::atomic<int> ran{0};
  pool.run(6, [&](int64_t) { pool.run(5, [&](int64_t) { ++ran; }); });
  CHECK(ran == 30, ran.load());
}

DULTRA_TEST(thread_pool_takes_callers_from_many_threads) {
  cpu::ThreadPool pool(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        std::vector<int> out(64, 0);
        pool.run(64, [&](int64_t i) { out[size_t(i)] = int(i) + 1; });
        for (int i = 0; i < 64; ++i) wrong += out[size_t(i)] != i + 1;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0, wrong.load());
}

}  // namespace
}  // namespace test
}  // namespace dultra
