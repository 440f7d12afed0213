#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <mutex>
#include <new>

#include "harness.h"
#if defined(DULTRA_EMULATOR)
#include "backends/cuda/cuda_backend.h"
#include "emulator/emulator.h"
#include "emulator/faults.h"
#elif defined(DULTRA_GPU)
#include "backends/cuda/cuda_backend.h"
#else
#include "backends/open_backend.h"
#endif

namespace dultra {
namespace test {

namespace {

struct Test {
  const char* name;
  const char* tags;  // "small, slow_with_threads"
  void (*run)();
};
// Which tests run.
struct Selection {
  std::string filter, tag, without_tag;
  int shard = 0, shards = 1;  // of those, every `shards`-th
  bool list = false;          // print their names instead
};
std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
constexpr int kPrintedFailures = 20;  // of one test
std::atomic<int64_t> checks{0};       // tests have threads
std::atomic<int> failures{0};         // of the running test
const char* running = "";
bool fail_fast = false;  // exit at the first failed check

bool has_tag(const Test& test, const std::string& tag) {
  const std::string separator = ", ";
  return (separator + test.tags + separator).find(separator + tag + separator) != std::string::npos;
}
bool selected(const Test& test, const Selection& selection) {
  return std::string(test.name).find(selection.filter) != std::string::npos &&
         (selection.tag.empty() || has_tag(test, selection.tag)) &&
         (selection.without_tag.empty() || !has_tag(test, selection.without_tag));
}

}  // namespace

Registration::Registration(const char* name, const char* tags, void (*run)()) { tests().push_back({name, tags, run}); }

void report(bool ok, const char* file, int line, const std::string& details) {
  ++checks;
  if (ok) return;
  if (fail_fast) {
    std::printf("FAILED %s: %s:%d: %s\n", running, file, line, details.c_str());
    std::fflush(stdout);
    std::_Exit(1);
  }
  if (++failures <= kPrintedFailures) std::printf("  %s:%d: %s\n", file, line, details.c_str());
}

uint64_t Random::bits() {  // splitmix64
  uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}
double Random::normal() {
  const double u = uniform(), v = uniform();
  return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
}

std::vector<float> normals(Random& random, size_t n, double scale) {
  std::vector<float> out(n);
  for (float& x : out) x = float(random.normal() * scale);
  return out;
}

double worst_error(const float* a, const double* b, size_t n, double absolute, double relative) {
  double worst = 0;
  for (size_t i = 0; i < n; ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    const double error =
        double(a[i]) == b[i] ? 0 : std::fabs(double(a[i]) - b[i]) / (absolute + relative * std::fabs(b[i]));
    if (!(error <= worst)) worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  }
  return worst;
}

void check_gradient(const float* gradient, const std::vector<float>& x,
                    const std::function<double(const std::vector<double>&)>& loss, int samples, double tolerance,
                    const std::string& where, double absolute) {
  const size_t n = x.size();
  if (n == 0) return;
  Random random(n);
  std::vector<double> at(x.begin(), x.end());
  double squares = 0;
  for (size_t i = 0; i < n; ++i) squares += double(gradient[i]) * gradient[i];
  const double size = std::sqrt(squares / double(n));
  const double h = 1e-5;
  double worst = 0;
  size_t worst_at = 0;
  for (int s = 0; s < samples && size_t(s) < n; ++s) {
    const size_t i = n <= size_t(samples) ? size_t(s) : size_t(random.bits() % n);
    const double keep = at[i];
    at[i] = keep + h;
    double difference = loss(at);
    at[i] = keep - h;
    difference = (difference - loss(at)) / (2 * h);
    at[i] = keep;
    const double error =
        std::fabs(gradient[i] - difference) / (tolerance * (std::fabs(difference) + size) + absolute + 1e-9);
    if (!(error <= worst)) {
      worst = std::isnan(error) ? 1e30 : error;
      worst_at = i;
    }
  }
  CHECK(worst <= 1, where, " error ", worst, " at ", worst_at, " of ", n);
  for (int round = 0; round < 2; ++round) {
    std::vector<double> up(at), down(at);
    double expected = 0;
    for (size_t i = 0; i < n; ++i) {
      const double sign = random.below(2) ? 1 : -1;
      up[i] += sign * h;
      down[i] -= sign * h;
      expected += sign * gradient[i];
    }
    const double difference = (loss(up) - loss(down)) / (2 * h);
    const double error =
        std::fabs(expected - difference) / (2 * std::sqrt(double(n)) * (tolerance * size + absolute) + 1e-8);
    CHECK(error <= 1, where, " error ", error, " along a direction of all ", n);
  }
}

#if defined(DULTRA_EMULATOR)
std::vector<std::string> isas() { return {"emulated CUDA"}; }
// A test of kernels runs in every order of lanes: it is repeated with the orders of its backends rotated until each was
// used.
static int turn = 0;
static unsigned schedules = 0;  // of the running test, a bit each
constexpr unsigned kAllSchedules = 7;
std::unique_ptr<Backend> make_backend(int threads, const std::string&, Compute compute) {
  const int schedule = (threads + turn) % 3;
  schedules |= 1u << schedule;
  emulator::set_schedule(emulator::Schedule(schedule));
  return std::make_unique<cuda::CudaBackend>(0, compute, true);
}
std::unique_ptr<Backend> make_model_backend(int threads, Compute compute) {
  emulator::set_schedule(emulator::Schedule(threads % 3));
  return std::make_unique<cuda::CudaBackend>(0, compute);
}
#elif defined(DULTRA_GPU)
std::vector<std::string> isas() { return {"CUDA"}; }
std::unique_ptr<Backend> make_backend(int, const std::string&, Compute compute) {
  return std::make_unique<cuda::CudaBackend>(0, compute, true);
}
std::unique_ptr<Backend> make_model_backend(int, Compute compute) {
  return std::make_unique<cuda::CudaBackend>(0, compute);
}
#else
std::vector<std::string> isas() {
  std::vector<std::string> all = cpu_isas();
#if defined(__SANITIZE_THREAD__)
  // Threads share the work of every instruction set in the same way: the smallest tiles and the largest are enough.
  if (all.size() > 2) all = {all.front(), all.back()};
#endif
  return all;
}
std::unique_ptr<Backend> make_backend(int threads, const std::string& isa, Compute compute) {
  return open_backend("cpu", threads, isa, compute);
}
std::unique_ptr<Backend> make_model_backend(int threads, Compute compute) { return make_backend(threads, "", compute); }
#endif

std::vector<Compute> arithmetics(const std::string& isa) {
  if (!make_backend(1, isa)->supports(Compute::kBF16)) return {Compute::kF32};
  return {Compute::kF32, Compute::kBF16};
}

void for_each_backend(const std::function<void(Backend&, const std::string&)>& body) {
  for (const std::string& isa : isas()) body(*make_backend(2, isa), isa);
}

void for_each_arithmetic(const std::function<void(Backend&, const std::string&)>& body) {
  for (const std::string& isa : isas())
    for (Compute compute : arithmetics(isa)) body(*make_backend(2, isa, compute), isa);
}

static int run_all(const Selection& selection) {
  int passed = 0, failed = 0, number = 0;
  for (const Test& test : tests()) {
    if (!selected(test, selection) || number++ % selection.shards != selection.shard) continue;
    if (selection.list) {
      std::printf("%s\n", test.name);
      continue;
    }
    failures = 0;
    running = test.name;
    const int64_t before = checks;
    const std::clock_t begin = std::clock();
#if defined(DULTRA_EMULATOR)
    turn = 0;
    schedules = 0;
#endif
    try {
      test.run();
#if defined(DULTRA_EMULATOR) && !defined(DULTRA_SANITIZED)  // what sanitizers see does not depend on the order
      for (turn = 1; turn < 3 && schedules != 0 && schedules != kAllSchedules; ++turn) test.run();
#endif
    } catch (const std::exception& error) {
      report(false, test.name, 0, std::string("threw: ") + error.what());
    }
    if (failures > kPrintedFailures) std::printf("  ... %d more\n", failures - kPrintedFailures);
#if defined(DULTRA_EMULATOR)
    emulator::print_faults();
#endif
    // Processor time: what else the machine does is not in it.
    std::printf("%s %s (%lld checks, %.1f s)\n", failures ? "FAILED" : "ok", test.name,
                static_cast<long long>(checks - before), double(std::clock() - begin) / CLOCKS_PER_SEC);
    std::fflush(stdout);
    ++(failures ? failed : passed);
  }
  if (selection.list) return 0;
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed;
}

}  // namespace test
}  // namespace dultra

#ifdef DULTRA_GPU
// The tests' arrays are vectors, and kernels access them: the whole heap is one region of managed memory, cut into
// powers of two.
namespace {

constexpr size_t kHeapBytes = size_t(8) << 30, kHeader = 64;
struct Heap {
  std::mutex mutex;
  char *next = nullptr, *end = nullptr;
  void* free_lists[48] = {};
};
Heap& heap() {
  static Heap* made = new (std::malloc(sizeof(Heap))) Heap;
  return *made;
}

}  // namespace

void* operator new(size_t bytes) {
  Heap& h = heap();
  const std::lock_guard<std::mutex> lock(h.mutex);
  int order = 7;
  while ((size_t(1) << order) < bytes + kHeader) ++order;
  char* block = static_cast<char*>(h.free_lists[order]);
  if (block) {
    std::memcpy(&h.free_lists[order], block, sizeof(void*));
  } else {
    if (!h.next) {
      void* region = nullptr;
      if (const cudaError_t error = cudaMallocManaged(&region, kHeapBytes); error != cudaSuccess) {
        std::fprintf(stderr, "the tests' %zu MiB of managed memory: %s\n", kHeapBytes >> 20, cudaGetErrorString(error));
        std::_Exit(1);  // before main: an exception cannot be caught
      }
      h.next = static_cast<char*>(region);
      h.end = h.next + kHeapBytes;
    }
    if (h.next + (size_t(1) << order) > h.end) throw std::bad_alloc();
    block = h.next;
    h.next += size_t(1) << order;
  }
  std::memcpy(block, &order, sizeof order);
  return block + kHeader;
}
void operator delete(void* pointer) noexcept {
  if (!pointer) return;
  Heap& h = heap();
  const std::lock_guard<std::mutex> lock(h.mutex);
  char* block = static_cast<char*>(pointer) - kHeader;
  int order;
  std::memcpy(&order, block, sizeof order);
  std::memcpy(block, &h.free_lists[order], sizeof(void*));
  h.free_lists[order] = block;
}
void operator delete(void* pointer, size_t) noexcept { operator delete(pointer); }
#endif

int main(int argc, char** argv) {
  dultra::test::Selection selection;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    std::string* value = argument == "--filter"        ? &selection.filter
                         : argument == "--tag"         ? &selection.tag
                         : argument == "--without-tag" ? &selection.without_tag
                                                       : nullptr;
    if (value && i + 1 < argc) {
      *value = argv[++i];
    } else if (argument == "--shard" && i + 1 < argc &&
               std::sscanf(argv[i + 1], "%d/%d", &selection.shard, &selection.shards) == 2 && selection.shards > 0) {
      ++i;
    } else if (argument == "--fail-fast") {
      dultra::test::fail_fast = true;
    } else if (argument == "--list") {
      selection.list = true;
#if defined(DULTRA_EMULATOR)  // for the mutant suite: emulator/faults.h
    } else if (argument == "--fault" && i + 1 < argc) {
      emulator::set_fault(argv[++i]);
    } else if (argument == "--collect-faults") {
      emulator::collect_faults();
#endif
    } else {
      std::fprintf(
          stderr,
          "usage: dultra_tests [--filter PART_OF_A_NAME] [--tag TAG] [--without-tag TAG] [--shard I/N] [--fail-fast]\n"
          "                    [--list]\n");
      return 2;
    }
  }
  return dultra::test::run_all(selection);
}
