// The inner loops for one instruction set; compiled once per set, with its define and flags (CMakeLists.txt).
// Everything but the exported function is local to the unit, and no C++ library header is included: an inline function
// emitted here with AVX-512 code could be the copy that the linker keeps for the whole program.
#include "backends/cpu/isa_kernels.h"

#include "backends/cpu/isa/matmul.inl"
#include "backends/cpu/isa/rows.inl"
#include "backends/cpu/isa/vector.h"

#if defined(DULTRA_ISA_BASELINE)
#define DULTRA_ISA_FUNCTION isa_kernels_baseline
#define DULTRA_ISA_NAME "baseline"
#elif defined(DULTRA_ISA_AVX2)
#define DULTRA_ISA_FUNCTION isa_kernels_avx2
#define DULTRA_ISA_NAME "avx2"
#elif defined(DULTRA_ISA_AVX512)
#define DULTRA_ISA_FUNCTION isa_kernels_avx512
#define DULTRA_ISA_NAME "avx512"
#elif defined(DULTRA_ISA_AVX512_BF16)
#define DULTRA_ISA_FUNCTION isa_kernels_avx512_bf16
#define DULTRA_ISA_NAME "avx512-bf16"
#elif defined(DULTRA_ISA_NEON)
#define DULTRA_ISA_FUNCTION isa_kernels_neon
#define DULTRA_ISA_NAME "neon"
#else
#error "one of the DULTRA_ISA_ names must be defined"
#endif

namespace dultra {
namespace cpu {

IsaKernels DULTRA_ISA_FUNCTION() { return {DULTRA_ISA_NAME, matmul_kernels(), row_kernels()}; }

}  // namespace cpu
}  // namespace dultra
