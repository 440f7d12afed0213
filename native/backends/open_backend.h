// The one door from a device name to a Backend.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"

namespace dultra {

// device: "cpu". threads: >= 1, CPU only. isa: CPU instruction set, "" for the best (see cpu::available_isas()).
// Throws INVALID_ARGUMENT for a device that does not exist, DEVICE_UNAVAILABLE for one that this build or machine lacks.
std::unique_ptr<Backend> open_backend(const std::string& device, int threads, const std::string& isa);

// Instruction sets compiled in that this CPU runs, worst first.
std::vector<std::string> cpu_isas();

}  // namespace dultra
