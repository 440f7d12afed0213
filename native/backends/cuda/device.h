// Primitives of kernels: the only file with PTX. Under the emulator native/test/emulator/emulated_device.h has them.
//
// Kernels use shared memory through DULTRA_SHARED only, barriers and shuffles of whole warps, and no atomics: every
// output has one owner and one order of operations, so results are equal from run to run and do not depend on the
// launch. Contraction is off (-fmad=false): a fused multiply-add is written as one.
#pragma once
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "backends/cuda/launch_key.h"
#include "ops/check.h"
#include "ops/host_device.h"
#include "ops/tensor.h"

namespace dultra {
namespace cuda {

// ---- host side: errors and launches -------------------------------------------------------------

// Throws OUT_OF_MEMORY, DEVICE_UNAVAILABLE (the device is lost or busy) or INTERNAL; `what` names the failed operation.
[[noreturn]] void throw_cuda_error(cudaError_t error, const char* what);
// Throws DEVICE_UNAVAILABLE where nothing can be done with the device any more.
void throw_if_lost(const char* what);
inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw_cuda_error(error, what);
}

// Queues a copy or a fill with zeros, in host or device memory; `what` names the operation in an error.
inline void copy_bytes(const char* what, cudaStream_t stream, void* to, const void* from, size_t bytes) {
  if (LaunchKey* key = planned_key()) return key->add('c', to, from, bytes);
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), what);
}
inline void zero_bytes(const char* what, cudaStream_t stream, void* to, size_t bytes) {
  if (LaunchKey* key = planned_key()) return key->add('z', to, bytes);
  check_cuda(cudaMemsetAsync(to, 0, bytes, stream), what);
}

DULTRA_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int kWarp = 32;
constexpr float kLog2E = 1.44269504088896340736f;

#ifdef __CUDACC__
// ---- on a GPU -----------------------------------------------------------------------------------
// Aligned to one repetition of wgmma's swizzle pattern.
#define DULTRA_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define DULTRA_UNROLL _Pragma("unroll")
#define DULTRA_NO_UNROLL _Pragma("unroll 1")

__device__ __forceinline__ void block_sync() { __syncthreads(); }
__device__ __forceinline__ void warp_sync() { __syncwarp(); }
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
// Whether `value` is true on any lane of the warp.
__device__ __forceinline__ bool warp_any(bool value) { return __any_sync(0xffffffffu, value); }
// 2^x, to about 2^-22.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x, to about 2^-23; 0 where |x| is above 2^126.
__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// sqrtf and / for usual numbers: x in [2^-100, 2^100]; b in [2^-60, 2^60]; a and a / b in [2^-120, 2^120]. The same
// steps as the compiler's, which round correctly in that range, without its test and branch per operation: a kernel can
// test many operands at once. inverse: usual_inverse(b).
__device__ __forceinline__ float usual_sqrt(float x) {
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  const float root = x * inverse;
  return fmaf(fmaf(-root, root, x), inverse * 0.5f, root);
}
__device__ __forceinline__ float usual_inverse(float b) {
  const float y = fast_reciprocal(b);
  return fmaf(y, fmaf(-b, y, 1.0f), y);
}
__device__ __forceinline__ float usual_quotient(float a, float b, float inverse) {
  const float q = a * inverse;
  return fmaf(inverse, fmaf(-b, q, a), q);
}
// Adjacent words, aligned to their total size; stores go to global memory. Stores are inline PTX: the compiler would
// split an assignment into single words where another path of the kernel writes to the same address.
__device__ __forceinline__ void load_words(uint32_t (&words)[2], const void* from) {
  const uint2 all = *static_cast<const uint2*>(from);
  words[0] = all.x, words[1] = all.y;
}
__device__ __forceinline__ void load_words(uint32_t (&words)[4], const void* from) {
  const uint4 all = *static_cast<const uint4*>(from);
  words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
}
__device__ __forceinline__ void store_words(void* to, const uint32_t (&words)[2]) {
  asm volatile("st.global.v2.b32 [%0], {%1,%2};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]), "r"(words[1])
               : "memory");
}
__device__ __forceinline__ void store_words(void* to, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}
// Two floats rounded to bf16, `low` in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
// Four 8 x 8 matrices of 16-bit numbers: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&f)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&f)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
               : "r"(shared_address(row))
               : "memory");
}
// d (16, 8) += a (16, 16) b (16, 8), bf16 operands, fp32 sums.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Copies 16 bytes from global to shared memory, or writes zeros if not `valid`. Complete when async_wait retires its
// group.
__device__ __forceinline__ void async_copy_16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the newest groups are pending.
template <int kPending>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- products of a warpgroup (wgmma): sm_90a alone ----

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWarpgroups = true;
#else
constexpr bool kHasWarpgroups = false;  // no kernel that uses them is launched
#endif

// Makes this thread's writes to shared memory (completed async copies, too) visible to wgmma: to its own, and after the
// next barrier to those of other threads.
__device__ __forceinline__ void fence_shared_for_wgmma() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Orders register accesses before the products that follow.
__device__ __forceinline__ void wgmma_begin() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most kPending of the newest groups of products are pending.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}
// Keeps the compiler from moving reads or writes of x across: it does not know that wgmma uses the registers until the
// wait.
template <int kN>
__device__ __forceinline__ void pin(float (&x)[kN][4]) {
  DULTRA_UNROLL
  for (int i = 0; i < kN; ++i) DULTRA_UNROLL
  for (int j = 0; j < 4; ++j) asm volatile("" : "+f"(x[i][j])::"memory");
}
template <int kN>
__device__ __forceinline__ void pin(uint32_t (&x)[kN][4]) {
  DULTRA_UNROLL
  for (int i = 0; i < kN; ++i) DULTRA_UNROLL
  for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(x[i][j])::"memory");
}

#define DULTRA_D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define DULTRA_D32(i)                                                                                     \
  DULTRA_D4(i), DULTRA_D4(i + 1), DULTRA_D4(i + 2), DULTRA_D4(i + 3), DULTRA_D4(i + 4), DULTRA_D4(i + 5), \
      DULTRA_D4(i + 6), DULTRA_D4(i + 7)
#define DULTRA_LIST_32                                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, "                                                                                      \
  "%29, %30, %31"
#define DULTRA_LIST_64                                                                                               \
  DULTRA_LIST_32                                                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, "                                                                                        \
  "%59, %60, %61, %62, %63"

// d (64, kN) (+)= a (64, 16) b (kN, 16)^T, queued: bf16 operands in shared memory, given by descriptors, both with k
// contiguous. Warp w of the warpgroup has rows 16 w .. 16 w + 16 of d, in the layout of mma_m16n8k16. d must not be
// touched before wgmma_wait.
template <int kN>
__device__ __forceinline__ void wgmma_rows(float (&d)[kN / 8][4], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kN == 64 || kN == 128, "shapes that are written down");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kN == 64)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" DULTRA_LIST_32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
        : DULTRA_D32(0)
        : "l"(a), "l"(b), "r"(int(accumulate)));
  else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" DULTRA_LIST_64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
        : DULTRA_D32(0), DULTRA_D32(8)
        : "l"(a), "l"(b), "r"(int(accumulate)));
#endif
}
// d (64, kN) (+)= a (64, 16) b (16, kN), queued: a in registers as mma_m16n8k16 has it, of each warp's rows; b in
// shared memory, with its kN numbers of a row contiguous. Neither d nor a may be touched before wgmma_wait.
template <int kN>
__device__ __forceinline__ void wgmma_weights(float (&d)[kN / 8][4], const uint32_t (&a)[4], uint64_t b,
                                              bool accumulate) {
  static_assert(kN == 64 || kN == 128, "shapes that are written down");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kN == 64)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" DULTRA_LIST_32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
        : DULTRA_D32(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)));
  else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" DULTRA_LIST_64
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
        : DULTRA_D32(0), DULTRA_D32(8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)));
#endif
}

#undef DULTRA_D4
#undef DULTRA_D32
#undef DULTRA_LIST_32
#undef DULTRA_LIST_64

// block: threads, a multiple of 32. shared: bytes of dynamic shared memory.
template <class Kernel, class... Args>
void launch(const char* name, cudaStream_t stream, Kernel kernel, dim3 grid, int block, size_t shared, Args... args) {
  if (LaunchKey* key = planned_key()) return key->add('k', kernel, grid, block, shared, args...);
  if (shared > 48 * 1024)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), name);
  kernel<<<grid, block, shared, stream>>>(args...);
  check_cuda(cudaGetLastError(), name);
}

#elif defined(DULTRA_EMULATED)
}  // namespace cuda
}  // namespace dultra
// The same in software: native/test/emulator, which comes before NVIDIA's headers in the include path then.
#include <emulated_device.h>
namespace dultra {
namespace cuda {
#endif

#if defined(__CUDACC__) || defined(DULTRA_EMULATED)
// ---- on both ------------------------------------------------------------------------------------

// The index of the executing lane.
__device__ __forceinline__ int lane_index() { return int(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return int(threadIdx.x) / kWarp; }

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int mask = 16; mask; mask >>= 1) value += shuffle_xor(value, mask);
  return value;
}
template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int mask = 16; mask; mask >>= 1) {
    const T other = shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}
// Sum over the block's kThreads threads, equal on all of them. scratch: kThreads / 32 numbers of shared memory, free
// for other use after the next barrier; the first barrier here waits for threads that still read them.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  value = warp_sum(value);
  if (kThreads == kWarp) return value;
  block_sync();
  if (lane_index() == 0) scratch[warp_index()] = value;
  block_sync();
  T sum = scratch[0];
  for (int w = 1; w < kThreads / kWarp; ++w) sum += scratch[w];
  return sum;
}
template <int kThreads, class T>
__device__ __forceinline__ T block_max(T value, T* scratch) {
  value = warp_max(value);
  if (kThreads == kWarp) return value;
  block_sync();
  if (lane_index() == 0) scratch[warp_index()] = value;
  block_sync();
  T most = scratch[0];
  for (int w = 1; w < kThreads / kWarp; ++w) most = scratch[w] > most ? scratch[w] : most;
  return most;
}

// Two adjacent numbers, moved in one access where they are aligned to it.
struct Pair {
  float low, high;
};
template <class T>
struct alignas(2 * sizeof(T)) Neighbours {
  T low, high;
};
template <class T>
__device__ __forceinline__ bool paired(const T* numbers) {
  return reinterpret_cast<uintptr_t>(numbers) % sizeof(Neighbours<T>) == 0;
}
__device__ __forceinline__ Pair get_pair(const ConstArray& array, int64_t at) {
  const auto* wide = static_cast<const float*>(array.data) + at;
  if (array.dtype == DType::kF32 && paired(wide)) {
    const Neighbours<float> both = *reinterpret_cast<const Neighbours<float>*>(wide);
    return {both.low, both.high};
  }
  const auto* narrow = static_cast<const uint16_t*>(array.data) + at;
  if (array.dtype != DType::kBF16 || !paired(narrow)) return {array[at], array[at + 1]};
  const Neighbours<uint16_t> both = *reinterpret_cast<const Neighbours<uint16_t>*>(narrow);
  return {bf16_to_f32(both.low), bf16_to_f32(both.high)};
}

// Stores numbers to an fp32 or bf16 array, rounded to nearest even.
__device__ __forceinline__ void put(const Array& array, int64_t at, float value) {
  if (array.dtype == DType::kF32)
    static_cast<float*>(array.data)[at] = value;
  else
    static_cast<uint16_t*>(array.data)[at] = uint16_t(pack_bf16(value, 0.0f));
}
__device__ __forceinline__ void put_pair(const Array& array, int64_t at, float low, float high) {
  if (array.dtype == DType::kF32) {
    float* wide = static_cast<float*>(array.data) + at;
    if (paired(wide)) {
      *reinterpret_cast<Neighbours<float>*>(wide) = Neighbours<float>{low, high};
      return;
    }
  } else {
    uint16_t* narrow = static_cast<uint16_t*>(array.data) + at;
    if (paired(narrow)) {
      const uint32_t packed = pack_bf16(low, high);
      *reinterpret_cast<Neighbours<uint16_t>*>(narrow) = Neighbours<uint16_t>{uint16_t(packed), uint16_t(packed >> 16)};
      return;
    }
  }
  put(array, at, low);
  put(array, at + 1, high);
}

// Pairs of numbers at `at`, `at` + 8 and so on, as a lane has them of rows that tensor cores computed: pair(i) gives
// the i-th.
template <int kPairs, class Pairs>
__device__ __forceinline__ void put_pairs(const Array& array, int64_t at, const Pairs& pair) {
  auto* narrow = static_cast<uint16_t*>(array.data) + at;
  if (array.dtype == DType::kBF16 && paired(narrow)) {  // tested once: eight numbers further the alignment is the same
    DULTRA_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const Pair both = pair(i);
      const uint32_t packed = pack_bf16(both.low, both.high);
      *reinterpret_cast<Neighbours<uint16_t>*>(narrow + 8 * i) =
          Neighbours<uint16_t>{uint16_t(packed), uint16_t(packed >> 16)};
    }
    return;
  }
  DULTRA_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    const Pair both = pair(i);
    put_pair(array, at + 8 * i, both.low, both.high);
  }
}

// Index of the lowest set bit.
__device__ __forceinline__ int lowest_bit(uint32_t bits) {
#ifdef __CUDACC__
  return __ffs(int(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// Index of the thread in a one-dimensional grid.
__device__ __forceinline__ int64_t global_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// A one-dimensional grid with one thread per number.
constexpr int kElementThreads = 256;
inline dim3 element_grid(int64_t n) { return dim3(unsigned(ceil_div(n, kElementThreads))); }
#endif

}  // namespace cuda
}  // namespace dultra
