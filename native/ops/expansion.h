// How much of a matrix in blocks a device writes out at a time.
#pragma once
#include <cstdint>

namespace dultra {

constexpr int64_t kExpandedNumbers = int64_t(1) << 25;  // 64 MiB of bf16

}  // namespace dultra
