// A small test harness: registered tests, checks that print what failed, buffers with guard zones.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "ops/backend.h"

namespace dultra {
namespace test {

// DULTRA_TEST(name, tags...) { ... } registers a test at start-up. --filter matches a part of its name, --tag and
// --without-tag one of its tags:
//   small              few and small cases: fast enough for the emulator under sanitizers
//   slow_with_threads  a whole model: minutes under ThreadSanitizer, and no kernel that the other tests do not run
struct Registration {
  Registration(const char* name, const char* tags, void (*run)());
};
#define DULTRA_TEST(name, ...)                                                                 \
  static void test_##name();                                                                   \
  static const ::dultra::test::Registration register_##name{#name, #__VA_ARGS__, test_##name}; \
  static void test_##name()

// Counts a check; prints `details` if it failed.
void report(bool ok, const char* file, int line, const std::string& details);

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  out.precision(9);
  (void)std::initializer_list<int>{(out << parts, 0)...};
  return out.str();
}
// CHECK(condition, anything that says where): the parts are formatted only on failure.
#define CHECK(condition, ...)                                                                               \
  do {                                                                                                      \
    const bool check_ok = (condition);                                                                      \
    ::dultra::test::report(check_ok, __FILE__, __LINE__,                                                    \
                           check_ok ? std::string() : ::dultra::test::text(#condition, "  ", __VA_ARGS__)); \
  } while (0)

// The same numbers on every platform, unlike <random>'s distributions.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t bits();
  double uniform() { return (double(bits() >> 11) + 0.5) * 0x1p-53; }  // (0, 1)
  double normal();
  int below(int n) { return int(bits() % uint64_t(n)); }

 private:
  uint64_t state_;
};

// An array with guard zones on both sides, all poisoned: floats with NaN, bytes with a pattern.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t n) : n_(n), all_(n + 2 * kGuard) {
    std::memset(static_cast<void*>(all_.data()), 0xfb, all_.size() * sizeof(T));
  }
  T* data() { return all_.data() + kGuard; }
  const T* data() const { return all_.data() + kGuard; }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }
  size_t size() const { return n_; }
  bool guards_intact() const {
    const auto intact = [](const T* p) {
      for (size_t i = 0; i < kGuard * sizeof(T); ++i)
        if (reinterpret_cast<const uint8_t*>(p)[i] != 0xfb) return false;
      return true;
    };
    return intact(all_.data()) && intact(all_.data() + kGuard + n_);
  }

 private:
  static constexpr size_t kGuard = 64;
  size_t n_;
  std::vector<T> all_;
};
// 0xfbfbfbfb as a float is a finite number, so outputs are poisoned apart.
inline Guarded<float> poisoned(size_t n) {
  Guarded<float> out(n);
  for (size_t i = 0; i < n; ++i) out[i] = std::numeric_limits<float>::quiet_NaN();
  return out;
}

std::vector<float> normals(Random& random, size_t n, double scale = 1.0);

// max |a - b| / (absolute + relative |b|), NaN counts as infinite unless both are.
double worst_error(const float* a, const double* b, size_t n, double absolute, double relative);

// Checks `gradient` (n) of loss at `x` (n) against central differences of the loss, which computes in double: at up to
// `samples` coordinates, and along a few directions through all of them. `tolerance` is relative to the coordinate's
// derivative plus the root mean square of all; `absolute` is added.
void check_gradient(const float* gradient, const std::vector<float>& x,
                    const std::function<double(const std::vector<double>&)>& loss, int samples, double tolerance,
                    const std::string& where, double absolute = 0);

inline bool same_bits(const float* a, const float* b, size_t n) {
  return n == 0 || std::memcmp(a, b, n * sizeof(float)) == 0;
}

// Whether kernels run on the emulator, some hundred times slower: tests of many cases then run fewer.
#ifdef DULTRA_EMULATOR
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

// Cases in groups of `views`, groups in turn for each of `views` settings, and `others` of their own at the end. Under
// the emulator each group keeps one view, another in each; elsewhere all stay.
template <typename Case>
std::vector<Case> one_view_each(const std::vector<Case>& all, size_t views, size_t others) {
  if (!kEmulated) return all;
  std::vector<Case> some;
  for (size_t i = 0; i < all.size(); ++i)
    if (i / views % views == i % views || i + others >= all.size()) some.push_back(all[i]);
  return some;
}

// The instruction sets of this machine; in the emulator's build, CUDA alone.
std::vector<std::string> isas();
// A synchronous backend on the tests' own memory for one of them, "" for the best. `threads`: of a CPU backend; selects
// the schedule of the emulator.
std::unique_ptr<Backend> make_backend(int threads, const std::string& isa, Compute compute = Compute::kF32);
// An asynchronous backend, as models use it.
std::unique_ptr<Backend> make_model_backend(int threads, Compute compute = Compute::kF32);

// Runs `body` with a backend for every instruction set of this machine, two threads each.
void for_each_backend(const std::function<void(Backend& backend, const std::string& isa)>& body);
// Likewise, and also with a backend that multiplies in bf16 where the instruction set can.
void for_each_arithmetic(const std::function<void(Backend& backend, const std::string& isa)>& body);
// The arithmetics that an instruction set has.
std::vector<Compute> arithmetics(const std::string& isa);

}  // namespace test
}  // namespace dultra
