// The tables of inner loops that differ by instruction set. isa_kernels.cc is compiled once per set and exports one
// MatmulKernels and one RowKernels table each; cpu_backend.cc picks a pair at start from what the CPU reports. All
// loops over threads, sequences and tiles live outside (matmul.cc, attention.cc, norm.cc, rope.cc and so on),
// compiled once.
#pragma once
#include "backends/cpu/matmul_kernels.h"
#include "backends/cpu/row_kernels.h"

namespace dultra {
namespace cpu {

struct IsaKernels {
  const char* name;  // "baseline", "avx2", "avx512", "avx512-bf16", "neon"
  MatmulKernels matmul;
  RowKernels rows;
};

}  // namespace cpu
}  // namespace dultra
