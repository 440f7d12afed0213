#include "backends/open_backend.h"

#include "backends/cpu/cpu_backend.h"

namespace dultra {

std::unique_ptr<Backend> open_backend(const std::string& device, int threads, const std::string& isa) {
  if (device == "cpu") return std::make_unique<cpu::CpuBackend>(threads, isa);
  if (device.rfind("cuda", 0) == 0) {
    throw Error(ErrorCode::kDeviceUnavailable, "device: \"" + device + "\" needs the CUDA backend, which this build does not contain; use \"cpu\"");
  }
  throw Error(ErrorCode::kInvalidArgument, "device: expected \"cpu\" or \"cuda:<index>\", got \"" + device + "\"");
}

std::vector<std::string> cpu_isas() { return cpu::available_isas(); }

}  // namespace dultra
