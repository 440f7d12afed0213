// Vectors: adjacent numbers that a thread moves in one access of up to 16 bytes; and arrays as typed pointers.
#pragma once
#include <algorithm>
#include <type_traits>

#include "backends/cuda/device.h"

namespace dultra {
namespace cuda {

// A number in IEEE half precision, as some tables store it; a bf16 number is a uint16_t.
struct Half {
  uint16_t bits;
};

__device__ __forceinline__ float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
__device__ __forceinline__ uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
__device__ __forceinline__ uint32_t bits_of(uint16_t value) { return value; }
__device__ __forceinline__ uint32_t bits_of(Half value) { return value.bits; }
__device__ __forceinline__ void set_bits(float* to, uint32_t bits) { *to = float_of(bits); }
__device__ __forceinline__ void set_bits(uint16_t* to, uint32_t bits) { *to = uint16_t(bits); }

// Kept as words: converting at load would make the thread wait for the load there instead of at the first use.
template <class T, int kNumbers>
struct Vector {
  static_assert(kNumbers * sizeof(T) == 16 || kNumbers * sizeof(T) == 8, "the sizes of one access");
  uint32_t word[kNumbers * sizeof(T) / 4];

  // The 16 bits of number e.
  __device__ __forceinline__ uint16_t half(int e) const { return uint16_t(word[e / 2] >> e % 2 * 16); }
  // Only on a vector of zeros.
  __device__ __forceinline__ void set_half(int e, uint16_t bits) { word[e / 2] |= uint32_t(bits) << e % 2 * 16; }
  __device__ __forceinline__ float operator[](int e) const {
    if constexpr (std::is_same_v<T, float>) return float_of(word[e]);
    if constexpr (std::is_same_v<T, Half>) return f16_to_f32(half(e));
    return float_of(e % 2 ? word[e / 2] & 0xffff0000u : word[e / 2] << 16);  // bf16
  }
};
// Numbers per vector where arrays of all these types are moved together.
template <class... T>
constexpr int kVectorOf = int(16 / std::max({sizeof(T)...}));

// Loads numbers [begin, count) of a vector, zeros for the others; kWhole: all of them, aligned to the vector's size.
template <int kNumbers, bool kWhole, class T>
__device__ __forceinline__ Vector<T, kNumbers> load_vector(const T* from, int64_t count, int64_t begin = 0) {
  Vector<T, kNumbers> vector{};
  if constexpr (kWhole) {
    load_words(vector.word, from);
  } else {
    DULTRA_UNROLL
    for (int e = 0; e < kNumbers; ++e) {
      const uint32_t bits = e >= begin && e < count ? bits_of(from[e]) : 0;
      vector.word[e * int(sizeof(T)) / 4] |= bits << e * int(sizeof(T)) % 4 * 8;
    }
  }
  return vector;
}
template <bool kWhole, int kNumbers, class T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, kNumbers>& vector, int64_t count,
                                             int64_t begin = 0) {
  if constexpr (kWhole) {
    store_words(to, vector.word);
  } else {
    DULTRA_UNROLL
    for (int e = 0; e < kNumbers; ++e) {
      const uint32_t bits = vector.word[e * int(sizeof(T)) / 4] >> e * int(sizeof(T)) % 4 * 8;
      if (e >= begin && e < count) set_bits(to + e, bits);  // mutant: e < count -> e + 1 < count (gates_match)
    }
  }
}

// Rounded to nearest even.
template <class T, int kNumbers>
__device__ __forceinline__ Vector<T, kNumbers> rounded_to(const float (&values)[kNumbers]) {
  Vector<T, kNumbers> vector;
  DULTRA_UNROLL
  for (int e = 0; e < kNumbers; e += 4 / int(sizeof(T))) {
    if constexpr (std::is_same_v<T, float>)
      vector.word[e] = bits_of(values[e]);
    else
      vector.word[e / 2] = pack_bf16(values[e], values[e + 1]);
  }
  return vector;
}

// Index of the first number of a thread's vector v, of its kVectors, in an array split over the blocks of a grid:
// adjacent threads move adjacent vectors (coalesced).
template <int kNumbers, int kVectors>
__device__ __forceinline__ int64_t vector_start(int64_t block, int v) {
  return ((block * kVectors + v) * kElementThreads + threadIdx.x) * kNumbers;
}

// ---- host side ----------------------------------------------------------------------------------

// Calls body with the array as a pointer to its number type.
template <class Body>
void typed(const Array& array, const Body& body) {
  if (array.dtype == DType::kF32)
    body(static_cast<float*>(array.data));
  else
    body(static_cast<uint16_t*>(array.data));
}
template <class Body>
void typed(const ConstArray& array, const Body& body) {
  if (array.dtype == DType::kF32)
    body(static_cast<const float*>(array.data));
  else
    body(static_cast<const uint16_t*>(array.data));
}

// The type of the numbers at a pointer.
template <class Pointer>
using number_of = std::remove_cv_t<std::remove_pointer_t<Pointer>>;

// Whether rows `stride` apart can be moved in whole vectors of kNumbers: `numbers` and the stride are aligned to one.
template <int kNumbers, class T>
bool in_vectors(const T* numbers, int64_t stride) {
  return reinterpret_cast<uintptr_t>(numbers) % (kNumbers * sizeof(T)) == 0 && stride % kNumbers == 0;
}

// A grid of m rows (blockIdx.x) by as many blocks as n items need, per_block items each.
inline dim3 row_pieces(int64_t m, int64_t n, int64_t per_block) {
  check_argument(n <= 65535 * per_block, "columns: expected at most " + std::to_string(65535 * per_block));
  return dim3(unsigned(m), unsigned(ceil_div(n, per_block)));
}

}  // namespace cuda
}  // namespace dultra
