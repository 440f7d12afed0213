// Microbenchmark of linear_forward against OpenBLAS and oneDNN, where those are installed. One JSON line per
// measurement: GFLOP/s of the median run, and the spread between the 10th and the 90th percentile. Contenders take
// turns run by run, so that a busy machine slows all of them. No other library packs weights beforehand: they are
// handed the weights as torch.nn.Linear keeps them. Quantised weights (q8 is Q8_0, q4 is Q4_0) stay in their blocks;
// "-int8" rounds the activations to 8 bits too, "-bf16" and "-f32" multiply the exact numbers.
//
//   dultra_bench_gemm [--seconds <per measurement>] [--threads 1,2] [--shapes MxKxN,...] [--isa <name>] [--libraries
//   yes|no] [--contenders bf16,q8-int8,...]
#include <dlfcn.h>
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "ops/blocks.h"

namespace {

using dultra::BlockType;
using dultra::Compute;
using dultra::DType;
using dultra::Matrix;
using dultra::MatrixPart;
using dultra::cpu::CpuBackend;

struct Shape {
  int64_t m, k, n;
};

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Contender {
  std::string name;
  std::function<void()> run;
  std::vector<double> seconds;
};

// The libraries' C interfaces, looked up at run time.
struct OpenBlas {
  void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                const float* b, int ldb, float beta, float* c, int ldc) = nullptr;
  void (*set_threads)(int) = nullptr;
  char* (*core)() = nullptr;
};
struct OneDnn {
  int (*sgemm)(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
               const float* b, int64_t ldb, float beta, float* c, int64_t ldc) = nullptr;
  void (*set_threads)(int) = nullptr;  // OpenMP's
};

template <typename F>
void find(void* library, const char* name, F* function) {
  if (library) *function = reinterpret_cast<F>(dlsym(library, name));
}

OpenBlas load_openblas(bool avx512) {
  // Versions that do not know the CPU fall back to a kernel of half the speed. The variable is read when the library is
  // loaded; whatever the environment says is replaced, because the contender's best choice is the fair one.
  if (avx512) setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
  OpenBlas blas;
  void* library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
  find(library, "cblas_sgemm", &blas.sgemm);
  find(library, "openblas_set_num_threads", &blas.set_threads);
  find(library, "openblas_get_corename", &blas.core);
  if (!blas.set_threads) blas.sgemm = nullptr;
  return blas;
}

OneDnn load_onednn() {
  OneDnn dnn;
  void* library = nullptr;
  for (const char* name : {"libdnnl.so.3", "libdnnl.so.2"})
    if (!library) library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
  find(library, "dnnl_sgemm", &dnn.sgemm);
  find(dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL), "omp_set_num_threads", &dnn.set_threads);
  if (!dnn.set_threads) dnn.sgemm = nullptr;
  return dnn;
}

double percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  return values[size_t(std::lround(p * double(values.size() - 1)))];
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

void measure(const Shape& s, int threads, double budget, const std::string& isa, const OpenBlas& blas,
             const OneDnn& dnn, const std::vector<std::string>& chosen) {
  CpuBackend fp32(threads, isa, Compute::kF32);
  std::unique_ptr<CpuBackend> bf16;
  if (fp32.supports(Compute::kBF16)) bf16 = std::make_unique<CpuBackend>(threads, isa, Compute::kBF16);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
  std::vector<float> x(size_t(s.m * s.k)), w(size_t(s.n * s.k)), out(size_t(s.m * s.n));
  for (float& value : x) value = uniform(random);
  for (float& value : w) value = uniform(random);

  const std::vector<MatrixPart> parts{{w.data(), DType::kF32, s.n}};
  std::vector<std::unique_ptr<Matrix>> matrices;
  std::vector<Contender> contenders;
  const auto is_chosen = [&](const std::string& name) {
    return chosen.empty() || std::find(chosen.begin(), chosen.end(), name) != chosen.end();
  };
  const auto add_own = [&](const char* name, CpuBackend& backend, DType storage) {
    if (!is_chosen(name)) return;
    matrices.push_back(backend.make_matrix(parts, s.k, storage));
    const Matrix* matrix = matrices.back().get();
    contenders.push_back(
        {name, [&, matrix] { backend.linear_forward(out.data(), s.n, x.data(), s.m, *matrix, nullptr, false); }, {}});
  };
  add_own("f32", fp32, DType::kF32);
  add_own("bf16-weights", fp32, DType::kBF16);
  add_own("f16-weights", fp32, DType::kF16);
  if (bf16) add_own("bf16", *bf16, DType::kBF16);
  std::vector<std::vector<uint8_t>> blocks;
  blocks.reserve(2);  // the matrices hold pointers
  for (BlockType type : {BlockType::kQ8_0, BlockType::kQ4_0}) {
    if (s.k % 32 != 0) break;
    blocks.emplace_back(size_t(s.n * dultra::block_row_bytes(type, s.k)));
    dultra::encode_blocks(blocks.back().data(), w.data(), type, s.n * s.k);
    const uint8_t* data = blocks.back().data();
    const auto add_blocks = [&](const char* arithmetic, CpuBackend& backend, bool int8) {
      const std::string name = std::string(type == BlockType::kQ8_0 ? "q8" : "q4") + arithmetic;
      if (!is_chosen(name)) return;
      matrices.push_back(backend.make_block_matrix({{data, type, s.n, 0, nullptr}}, s.k, 1, int8));
      const Matrix* matrix = matrices.back().get();
      contenders.push_back(
          {name, [&, matrix] { backend.linear_forward(out.data(), s.n, x.data(), s.m, *matrix, nullptr, false); }, {}});
    };
    add_blocks("-int8", fp32, true);
    add_blocks("-f32", fp32, false);
    if (bf16) add_blocks("-bf16", *bf16, false);
  }
  const int m = int(s.m), n = int(s.n), k = int(s.k);
  if (blas.sgemm) {
    blas.set_threads(threads);
    const std::string name = std::string("openblas-f32") + (blas.core ? std::string("-") + blas.core() : "");
    contenders.push_back(
        {name,
         [&, m, n, k] { blas.sgemm(101, 111, 112, m, n, k, 1, x.data(), k, w.data(), k, 0, out.data(), n); },
         {}});
  }
  if (dnn.sgemm) {
    dnn.set_threads(threads);
    contenders.push_back({"onednn-f32",
                          [&, m, n, k] { dnn.sgemm('N', 'T', m, n, k, 1, x.data(), k, w.data(), k, 0, out.data(), n); },
                          {}});
  }

  for (Contender& contender : contenders) contender.run();  // warm-up: page faults, scratch, thread start
  // Several runs of a contender in a row, untimed ones first: short products would otherwise be timed with their
  // weights evicted by the others'.
  const double flops = 2.0 * double(s.m) * double(s.n) * double(s.k);
  const int in_a_row = int(std::max(1.0, std::min(200.0, 2e9 / flops)));
  const double end = seconds_now() + budget * double(contenders.size());
  for (int round = 0; round < 3 || seconds_now() < end; ++round) {
    for (Contender& contender : contenders) {
      // The libraries' threads spin for a while after their last product and would hold the cores of the next
      // contender.
      if (threads > 1) std::this_thread::sleep_for(std::chrono::milliseconds(60));
      for (int i = 0; i < 1 + in_a_row / 4; ++i) contender.run();
      for (int i = 0; i < in_a_row; ++i) {
        const double start = seconds_now();
        contender.run();
        contender.seconds.push_back(seconds_now() - start);
      }
    }
  }
  for (const Contender& contender : contenders) {
    std::printf(
        "{\"m\":%lld,\"k\":%lld,\"n\":%lld,\"threads\":%d,\"isa\":\"%s\",\"contender\":\"%s\",\"runs\":%zu,\"gflops\":%"
        ".1f,"
        "\"gflops_p10\":%.1f,\"gflops_p90\":%.1f,\"gflops_best\":%.1f}\n",
        static_cast<long long>(s.m), static_cast<long long>(s.k), static_cast<long long>(s.n), threads, fp32.isa(),
        contender.name.c_str(), contender.seconds.size(), flops / percentile(contender.seconds, 0.5) * 1e-9,
        flops / percentile(contender.seconds, 0.9) * 1e-9, flops / percentile(contender.seconds, 0.1) * 1e-9,
        flops / percentile(contender.seconds, 0.0) * 1e-9);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Shape> shapes{{64, 256, 256},  {64, 256, 680},   {256, 512, 512},
                            {1, 4096, 4096}, {32, 4096, 4096}, {512, 4096, 4096}};
  std::vector<int> threads{1, 2};
  double budget = 0.3;
  std::string isa;
  bool libraries = true;
  std::vector<std::string> chosen;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--seconds") {
      budget = std::stod(value);
    } else if (flag == "--isa") {
      isa = value;
    } else if (flag == "--libraries") {
      libraries = value != "no";
    } else if (flag == "--contenders") {
      chosen = split(value, ',');
    } else if (flag == "--threads") {
      threads.clear();
      for (const std::string& part : split(value, ',')) threads.push_back(std::stoi(part));
    } else if (flag == "--shapes") {
      shapes.clear();
      for (const std::string& part : split(value, ',')) {
        const std::vector<std::string> sizes = split(part, 'x');
        if (sizes.size() != 3) {
          std::fprintf(stderr, "--shapes: expected MxKxN, got %s\n", part.c_str());
          return 2;
        }
        shapes.push_back({std::stoll(sizes[0]), std::stoll(sizes[1]), std::stoll(sizes[2])});
      }
    } else {
      std::fprintf(stderr,
                   "unknown option %s; known are --seconds, --threads, --shapes, --isa, --libraries, --contenders\n",
                   flag.c_str());
      return 2;
    }
  }
  try {
    bool avx512 = false;
    for (const std::string& name : dultra::cpu::available_isas()) avx512 |= name == "avx512";
    const OpenBlas blas = libraries ? load_openblas(avx512) : OpenBlas();
    const OneDnn dnn = libraries ? load_onednn() : OneDnn();
    for (const Shape& shape : shapes)
      for (int count : threads) measure(shape, count, budget, isa, blas, dnn, chosen);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
