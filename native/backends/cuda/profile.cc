#include "backends/cuda/profile.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifndef DULTRA_EMULATED
#include <nvtx3/nvToolsExt.h>
#endif

namespace dultra {
namespace cuda {

namespace {

constexpr size_t kMostPending = 1024;

}  // namespace

#ifdef DULTRA_EMULATED
NvtxRange::NvtxRange(const char* name) { emulator::range_push(name); }
NvtxRange::~NvtxRange() { emulator::range_pop(); }
#else
NvtxRange::NvtxRange(const char* name) { nvtxRangePushA(name); }
NvtxRange::~NvtxRange() { nvtxRangePop(); }
#endif

std::unique_ptr<OperationTimes> OperationTimes::open(cudaStream_t stream) {
  const char* trace = std::getenv("DULTRA_TRACE");
  if (!trace || std::strcmp(trace, "time") != 0) return nullptr;
  return std::unique_ptr<OperationTimes>(new OperationTimes(stream));
}

OperationTimes::~OperationTimes() {
  for (const std::string& line : lines()) std::fprintf(stderr, "%s\n", line.c_str());
}

void OperationTimes::begin(const char* operation) {
  if (depth_++ > 0) return;
  if (pending_.size() >= kMostPending) collect();
  Pending next{operation, nullptr, nullptr};
  if (cudaEventCreate(&next.begin) != cudaSuccess || cudaEventCreate(&next.end) != cudaSuccess ||
      cudaEventRecord(next.begin, stream_) != cudaSuccess)
    cudaGetLastError();  // the operation itself will say what is wrong
  pending_.push_back(next);
}

void OperationTimes::end() {
  if (--depth_ > 0 || pending_.empty()) return;
  if (cudaEventRecord(pending_.back().end, stream_) != cudaSuccess) cudaGetLastError();
}

void OperationTimes::collect() {
  if (cudaStreamSynchronize(stream_) != cudaSuccess) cudaGetLastError();
  for (const Pending& done : pending_) {
    float milliseconds = 0;
    if (cudaEventElapsedTime(&milliseconds, done.begin, done.end) == cudaSuccess) {
      Total& total = totals_[done.operation];
      ++total.calls;
      total.milliseconds += double(milliseconds);
    } else {
      cudaGetLastError();
    }
    cudaEventDestroy(done.begin);
    cudaEventDestroy(done.end);
  }
  pending_.clear();
}

std::vector<std::string> OperationTimes::lines() {
  collect();
  std::vector<std::pair<std::string, Total>> sorted(totals_.begin(), totals_.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.milliseconds > b.second.milliseconds; });
  double all = 0;
  for (const auto& [name, total] : sorted) all += total.milliseconds;
  std::vector<std::string> out;
  char line[160];
  std::snprintf(line, sizeof line, "%-28s %9s %12s %10s %7s", "operation", "calls", "ms", "us a call", "share");
  out.push_back(line);
  for (const auto& [name, total] : sorted) {
    std::snprintf(line, sizeof line, "%-28s %9lld %12.3f %10.2f %6.1f%%", name.c_str(),
                  static_cast<long long>(total.calls), total.milliseconds,
                  1e3 * total.milliseconds / double(total.calls), all > 0 ? 100 * total.milliseconds / all : 0.0);
    out.push_back(line);
  }
  std::snprintf(line, sizeof line, "%-28s %9s %12.3f", "all", "", all);
  out.push_back(line);
  if (steps_ > 0) {
    std::snprintf(line, sizeof line, "%-28s %9lld %12.3f ms each", "denoising steps", static_cast<long long>(steps_),
                  all / double(steps_));
    out.push_back(line);
  }
  return out;
}

}  // namespace cuda
}  // namespace dultra
