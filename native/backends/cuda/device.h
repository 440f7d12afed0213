// What kernels are made of: the one file that knows whether a kernel runs on a GPU or under native/test/emulator, and the only one with PTX.
//
// Kernels use shared memory through DULTRA_SHARED alone, barriers and shuffles of whole warps, and no atomics: what a kernel writes has one
// owner and one order of operations, so that results are the same from run to run and do not depend on the launch. Contraction is off
// (-fmad=false): where a fused multiply-add is meant, it is written.
#pragma once
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "ops/check.h"
#include "ops/host_device.h"
#include "ops/tensor.h"

namespace dultra {
namespace cuda {

// ---- host side: errors and launches ------------------------------------------------------------------------------------------------

// Throws OUT_OF_MEMORY, DEVICE_UNAVAILABLE (a device that is gone, or busy) or INTERNAL, saying what was tried.
[[noreturn]] void throw_cuda_error(cudaError_t error, const char* what);
inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw_cuda_error(error, what);
}

DULTRA_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int kWarp = 32;
constexpr float kLog2E = 1.44269504088896340736f;

#ifdef __CUDACC__
// ---- on a GPU ------------------------------------------------------------------------------------------------------------------------
#define DULTRA_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define DULTRA_UNROLL _Pragma("unroll")

__device__ __forceinline__ void block_sync() { __syncthreads(); }
__device__ __forceinline__ void warp_sync() { __syncwarp(); }
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
// Whether it is so for a lane of the warp.
__device__ __forceinline__ bool warp_any(bool value) { return __any_sync(0xffffffffu, value); }
// 2^x, to about 2^-22.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }
// Two floats as bf16, `low` in the low half.
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
// Copies 16 bytes from global to shared memory, or writes zeros where not `valid`. Lands when async_wait retires its group.
__device__ __forceinline__ void async_copy_16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kPending of the newest groups are open.
template <int kPending>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// block: threads, a multiple of 32. shared: bytes of dynamic shared memory.
template <class Kernel, class... Args>
void launch(const char* name, cudaStream_t stream, Kernel kernel, dim3 grid, int block, size_t shared, Args... args) {
  if (shared > 48 * 1024) check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), name);
  kernel<<<grid, block, shared, stream>>>(args...);
  check_cuda(cudaGetLastError(), name);
}

#elif defined(DULTRA_EMULATED)
// ---- under the emulator ----------------------------------------------------------------------------------------------------------------
#define DULTRA_SHARED(name) unsigned char* name = emulator::lane->shared
#define DULTRA_UNROLL

inline void block_sync() { emulator::block_barrier(); }
inline void warp_sync() { emulator::warp_barrier(); }
template <class T>
inline T shuffle_xor(T value, int mask) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = emulator::shuffle_xor(bits, mask);
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline bool warp_any(bool value) {
  int any = value;
  for (int mask = kWarp / 2; mask; mask >>= 1) any |= shuffle_xor(any, mask);
  return any != 0;
}
inline float fast_exp2(float x) { return exp2f(x); }
inline uint32_t pack_bf16(float low, float high) { return uint32_t(f32_to_bf16(low)) | uint32_t(f32_to_bf16(high)) << 16; }
inline void ldmatrix_x4(uint32_t (&f)[4], const void* row) {
  if (uintptr_t(row) % 16) emulator::die("the address of a row is not aligned", "ldmatrix");
  emulator::ldmatrix_x4(*static_cast<const emulator::Row8*>(row), false, f);
}
inline void ldmatrix_x4_transposed(uint32_t (&f)[4], const void* row) {
  if (uintptr_t(row) % 16) emulator::die("the address of a row is not aligned", "ldmatrix");
  emulator::ldmatrix_x4(*static_cast<const emulator::Row8*>(row), true, f);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { emulator::mma_m16n8k16(d, a, b0, b1); }
inline void async_copy_16(void* to, const void* from, bool valid) {
  if (uintptr_t(to) % 16 || (valid && uintptr_t(from) % 16)) emulator::die("an address is not aligned", "cp.async");
  // Undefined until it lands.
  for (int i = 0; i < 2; ++i) static_cast<uint64_t*>(to)[i] = ~uint64_t(0);
  emulator::async_issue({to, from, valid});
}
inline void async_commit() { emulator::async_commit(); }
template <int kPending>
inline void async_wait() {
  emulator::AsyncCopy copy;
  while (emulator::async_retire(kPending, &copy))
    for (int i = 0; i < 2; ++i) static_cast<uint64_t*>(copy.to)[i] = copy.valid ? static_cast<const uint64_t*>(copy.from)[i] : 0;
}

template <class Kernel, class... Args>
void launch(const char*, cudaStream_t stream, Kernel kernel, dim3 grid, int block, size_t shared, Args... args) {
  const auto body = [=] { kernel(args...); };
  emulator::enqueue(stream, [=] {
    emulator::run(
        grid, dim3(unsigned(block)), shared, [](const void* context) { (*static_cast<const decltype(body)*>(context))(); }, &body);
  });
}
#endif

#if defined(__CUDACC__) || defined(DULTRA_EMULATED)
// ---- on both ---------------------------------------------------------------------------------------------------------------------------

// The lane that a kernel's code runs on.
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
// Sum over the block's kThreads threads, the same on all of them. scratch: kThreads / 32 numbers of shared memory, which are free for
// other use after the next barrier; the first barrier here waits for whoever still reads them.
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

// Two numbers that lie side by side. They are moved in one piece where they are aligned to it.
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

// Writes numbers to an array of fp32 or bf16, rounded to nearest even.
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

// Index of the lowest bit that is set.
__device__ __forceinline__ int lowest_bit(uint32_t bits) {
#ifdef __CUDACC__
  return __ffs(int(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// Index of a thread in a grid of one dimension.
__device__ __forceinline__ int64_t global_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// A grid of one dimension that gives each of n numbers a thread.
constexpr int kElementThreads = 256;
inline dim3 element_grid(int64_t n) { return dim3(unsigned(ceil_div(n, kElementThreads))); }

// A grid that gives each of n things in each of m rows a thread, without a division: the row is blockIdx.x.
inline dim3 row_grid(int64_t m, int64_t n) {
  check_argument(n <= int64_t(65535) * kElementThreads, "columns: expected at most " + std::to_string(65535 * kElementThreads));
  return dim3(unsigned(m), unsigned(ceil_div(n, kElementThreads)));
}
__device__ __forceinline__ int column_index() { return int(blockIdx.y) * kElementThreads + int(threadIdx.x); }
#endif

}  // namespace cuda
}  // namespace dultra
