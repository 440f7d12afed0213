// What isa_kernels.cc exports, once per instruction set. A function and not an object: filling the table runs code
// compiled for the set, so it must wait until the CPU is known to have it.
#pragma once
#include "backends/cpu/kernels.h"

namespace dultra {
namespace cpu {

IsaKernels isa_kernels_baseline();
IsaKernels isa_kernels_avx2();
IsaKernels isa_kernels_avx512();
IsaKernels isa_kernels_avx512_bf16();
IsaKernels isa_kernels_neon();

}  // namespace cpu
}  // namespace dultra
