// The one door from a device name to a Backend.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "backends/plugin.h"
#include "ops/backend.h"

namespace dultra {

// device: "cpu", "cuda" (the first) or "cuda:<index>". threads: >= 1, CPU only. isa: CPU instruction set, "" for the
// best (see cpu::available_isas()). Throws INVALID_ARGUMENT for a device that does not exist, DEVICE_UNAVAILABLE for
// one that this build or machine lacks, or that cannot multiply in `compute`, saying what is missing.
std::unique_ptr<Backend> open_backend(const std::string& device, int threads, const std::string& isa, Compute compute);

// Instruction sets compiled in that this CPU runs, worst first.
std::vector<std::string> cpu_isas();

// The CUDA devices in the order of their numbers. Without any, none, and why.
struct CudaDevices {
  std::vector<CudaDevice> devices;
  bool built = false;  // whether the plugin is there
  std::string reason;
};
CudaDevices cuda_devices();

}  // namespace dultra
