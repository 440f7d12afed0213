// Data types, owning buffers and non-owning views of backend memory. Shapes are written where a tensor is used: (rows,
// cols).
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "ops/check.h"
#include "ops/host_device.h"

namespace dultra {

enum class DType : uint8_t { kF32, kBF16, kF16 };

DULTRA_HD size_t dtype_size(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// bf16 -> fp32 is exact; fp32 -> bf16 rounds to nearest even and keeps NaN a NaN.
DULTRA_HD float bf16_to_f32(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
DULTRA_HD uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
// IEEE half -> fp32, exact, subnormals included.
DULTRA_HD float f16_to_f32(uint16_t value) {
  const uint32_t sign = uint32_t(value & 0x8000u) << 16;
  uint32_t exponent = (value >> 10) & 0x1fu, mantissa = value & 0x3ffu, bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa == 0) {
    bits = sign;
  } else {
    exponent = 113;
    while (!(mantissa & 0x400u)) {
      mantissa <<= 1;
      --exponent;
    }
    bits = sign | (exponent << 23) | ((mantissa & 0x3ffu) << 13);
  }
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

// fp32 -> IEEE half, round to nearest even; NaN stays NaN, what is too large becomes infinite.
DULTRA_HD uint16_t f32_to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return uint16_t(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
  if (bits >= 0x47800000u) return uint16_t(sign | 0x7c00u);  // 65536 and up
  if (bits < 0x38800000u) {                                  // below 2^-14: a multiple of 2^-24
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;  // the sum's last mantissa bit is 2^-24: rounds to nearest even
    memcpy(&bits, &magnitude, 4);
    return uint16_t(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return uint16_t(sign | ((bits - 0x38000000u) >> 13));  // a carry into the exponent, up to infinity, is right
}

// One element of a row-major array of any storage type, as fp32.
DULTRA_HD float load_as_f32(const void* data, DType dtype, size_t index) {
  switch (dtype) {
    case DType::kF32: return static_cast<const float*>(data)[index];
    case DType::kBF16: return bf16_to_f32(static_cast<const uint16_t*>(data)[index]);
    case DType::kF16: return f16_to_f32(static_cast<const uint16_t*>(data)[index]);
  }
  return 0.0f;
}

// A view of an array of fp32 or bf16 numbers. A pointer makes one of its own type: float* of fp32,
// uint16_t* of bf16.
struct ConstArray {
  const void* data = nullptr;
  DType dtype = DType::kF32;

  ConstArray() = default;
  DULTRA_HD ConstArray(const void* numbers, DType type) : data(numbers), dtype(type) {}
  DULTRA_HD ConstArray(const float* numbers) : data(numbers) {}
  DULTRA_HD ConstArray(const uint16_t* numbers) : data(numbers), dtype(DType::kBF16) {}
  ConstArray(std::nullptr_t) {}

  DULTRA_HD float operator[](int64_t i) const { return load_as_f32(data, dtype, size_t(i)); }
  // What is left behind `numbers` of them.
  DULTRA_HD ConstArray operator+(int64_t numbers) const {
    return {static_cast<const uint8_t*>(data) + numbers * int64_t(dtype_size(dtype)), dtype};
  }
  ConstArray& operator+=(int64_t numbers) { return *this = *this + numbers; }
  explicit operator bool() const { return data != nullptr; }
  // Throws INVALID_ARGUMENT for numbers of another type: what an operation does that has no code for them.
  const float* f32() const {
    check_argument(dtype == DType::kF32, "array: expected fp32 numbers");
    return static_cast<const float*>(data);
  }
};

// Likewise, of numbers that may be written.
struct Array {
  void* data = nullptr;
  DType dtype = DType::kF32;

  Array() = default;
  DULTRA_HD Array(void* numbers, DType type) : data(numbers), dtype(type) {}
  DULTRA_HD Array(float* numbers) : data(numbers) {}
  DULTRA_HD Array(uint16_t* numbers) : data(numbers), dtype(DType::kBF16) {}
  Array(std::nullptr_t) {}

  DULTRA_HD operator ConstArray() const { return {data, dtype}; }
  DULTRA_HD Array operator+(int64_t numbers) const {
    return {static_cast<uint8_t*>(data) + numbers * int64_t(dtype_size(dtype)), dtype};
  }
  Array& operator+=(int64_t numbers) { return *this = *this + numbers; }
  explicit operator bool() const { return data != nullptr; }
  float* f32() const {
    check_argument(dtype == DType::kF32, "array: expected fp32 numbers");
    return static_cast<float*>(data);
  }
};

}  // namespace dultra
