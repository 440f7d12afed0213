// The primitives of backends/cuda/device.h in software, which includes this file: what one lane does, and what the
// emulator (emulator.h) does for it.
#pragma once
#include "emulator/emulator.h"

namespace dultra {
namespace cuda {

#define DULTRA_SHARED(name) unsigned char* name = emulator::lane->shared
#define DULTRA_UNROLL
#define DULTRA_NO_UNROLL

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
inline float fast_reciprocal(float x) { return fabsf(x) > 0x1p126f ? copysignf(0.0f, x) : 1.0f / x; }
// Exact everywhere, unlike the GPU's: so an operand outside the range where the GPU's is exact is an error.
inline float usual(float x, float least, const char* what) {
  if (!(fabsf(x) >= least && fabsf(x) <= 1 / least)) emulator::die("operand outside fast-math range", what);
  return x;
}
inline float usual_sqrt(float x) { return sqrtf(usual(x, 0x1p-100f, "usual_sqrt")); }
inline float usual_inverse(float b) { return 1.0f / usual(b, 0x1p-60f, "usual_inverse"); }
inline float usual_quotient(float a, float b, float) {
  return usual(usual(a, 0x1p-120f, "usual_quotient") / b, 0x1p-120f, "usual_quotient");
}
template <int kWords>
inline void load_words(uint32_t (&words)[kWords], const void* from) {
  if (uintptr_t(from) % sizeof words) emulator::die("an address is not aligned", "load_words");
  memcpy(words, from, sizeof words);
}
template <int kWords>
inline void store_words(void* to, const uint32_t (&words)[kWords]) {
  if (uintptr_t(to) % sizeof words) emulator::die("an address is not aligned", "store_words");
  memcpy(to, words, sizeof words);
}
inline uint32_t pack_bf16(float low, float high) {
  return uint32_t(f32_to_bf16(low)) | uint32_t(f32_to_bf16(high)) << 16;
}
inline void ldmatrix_x4(uint32_t (&f)[4], const void* row) {
  if (uintptr_t(row) % 16) emulator::die("the address of a row is not aligned", "ldmatrix");
  emulator::ldmatrix_x4(*static_cast<const emulator::Row8*>(row), false, f);
}
inline void ldmatrix_x4_transposed(uint32_t (&f)[4], const void* row) {
  if (uintptr_t(row) % 16) emulator::die("the address of a row is not aligned", "ldmatrix");
  emulator::ldmatrix_x4(*static_cast<const emulator::Row8*>(row), true, f);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma_m16n8k16(d, a, b0, b1);
}
inline void async_copy_16(void* to, const void* from, bool valid) {
  if (uintptr_t(to) % 16 || (valid && uintptr_t(from) % 16)) emulator::die("an address is not aligned", "cp.async");
  // Undefined until the copy completes.
  for (int i = 0; i < 2; ++i) static_cast<uint64_t*>(to)[i] = ~uint64_t(0);
  emulator::async_issue({to, from, valid});
}
inline void async_commit() { emulator::async_commit(); }
template <int kPending>
inline void async_wait() {
  emulator::AsyncCopy copy;
  while (emulator::async_retire(kPending, &copy))
    for (int i = 0; i < 2; ++i)
      static_cast<uint64_t*>(copy.to)[i] = copy.valid ? static_cast<const uint64_t*>(copy.from)[i] : 0;
}

constexpr bool kHasWarpgroups = true;
inline uint32_t shared_address(const void* pointer) {
  return uint32_t(static_cast<const unsigned char*>(pointer) - emulator::lane->shared);
}
inline void fence_shared_for_wgmma() { emulator::fence_shared(); }
inline void wgmma_begin() { emulator::wgmma_begin(); }
inline void wgmma_commit() { emulator::wgmma_commit(); }
// Here and not in the emulator, so that sanitizers see the reads.
template <class T>
inline T wgmma_read(uint32_t address) {
  address ^= address >> 3 & 0x70;  // the swizzle of 128 bytes: a row's number within eight is added to the chunk's
  return *reinterpret_cast<const T*>(emulator::lane->shared + address);
}
// Sixteen adjacent numbers of a row.
inline void wgmma_row(uint64_t descriptor, int row, float (&out)[16]) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  for (uint32_t half = 0; half < 4; ++half) {
    const uint64_t four = wgmma_read<uint64_t>(start + uint32_t(row / 8) * stride + uint32_t(row % 8) * 128 + half * 8);
    for (int i = 0; i < 4; ++i) out[half * 4 + uint32_t(i)] = bf16_to_f32(uint16_t(four >> 16 * i));
  }
}
// Sixteen numbers of each of two adjacent columns, one line per column.
inline void wgmma_columns(uint64_t descriptor, int column, float (&low)[16], float (&high)[16]) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, leading = uint32_t(descriptor >> 16 & 0x3fff) << 4,
                 stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  for (uint32_t k = 0; k < 16; ++k) {
    const uint32_t two = wgmma_read<uint32_t>(start + uint32_t(column / 64) * leading + k / 8 * stride + k % 8 * 128 +
                                              uint32_t(column % 64) * 2);
    low[k] = bf16_to_f32(uint16_t(two));
    high[k] = bf16_to_f32(uint16_t(two >> 16));
  }
}
inline void wgmma_compute(const emulator::Wgmma& p) {
  const int lane = int(threadIdx.x) % kWarp, row = int(threadIdx.x) / kWarp % 4 * 16 + lane / 4;
  float rows[2][16], columns[2][16];
  for (int h = 0; h < 2; ++h) {
    if (!p.in_registers) wgmma_row(p.a, row + 8 * h, rows[h]);
    for (int k = 0; p.in_registers && k < 16; ++k) rows[h][k] = bf16_to_f32(p.rows[h][k]);
  }
  for (int n = 0; n < p.n / 8; ++n) {
    const int column = n * 8 + lane % 4 * 2;
    if (p.in_registers) wgmma_columns(p.b, column, columns[0], columns[1]);
    for (int j = 0; j < 2; ++j) {
      if (!p.in_registers) wgmma_row(p.b, column + j, columns[j]);
      for (int h = 0; h < 2; ++h) {
        float& sum = p.d[n * 4 + 2 * h + j];
        if (!p.accumulate) sum = 0;
        for (int k = 0; k < 16; ++k) sum += rows[h][k] * columns[j][k];
      }
    }
  }
}
template <int kPending>
inline void wgmma_wait() {
  emulator::Wgmma product;
  while (emulator::wgmma_retire(kPending, &product)) wgmma_compute(product);
}
inline void wgmma_queue(const emulator::Wgmma& product) {
  if (emulator::wgmma_issue(product)) wgmma_compute(product);
}
template <int kN>
inline void wgmma_rows(float (&d)[kN / 8][4], uint64_t a, uint64_t b, bool accumulate) {
  wgmma_queue({d[0], kN, accumulate, false, a, b, {}});
}
template <int kN>
inline void wgmma_weights(float (&d)[kN / 8][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  emulator::Wgmma product{d[0], kN, accumulate, true, 0, b, {}};
  emulator::wgmma_gather(a, product.rows);
  wgmma_queue(product);
}
template <class T>
inline void pin(T&) {}

template <class Kernel, class... Args>
void launch(const char* name, cudaStream_t stream, Kernel kernel, dim3 grid, int block, size_t shared, Args... args) {
  if (LaunchKey* key = planned_key()) return key->add('k', kernel, grid, block, shared, args...);
  const auto body = [=] { kernel(args...); };
  emulator::enqueue(stream, [=] {
    emulator::run(
        {name, int(sizeof...(Args))}, grid, dim3(unsigned(block)), shared,
        [](const void* context) { (*static_cast<const decltype(body)*>(context))(); }, &body);
  });
  check_cuda(cudaGetLastError(), name);
}

}  // namespace cuda
}  // namespace dultra
