// JavaScript values to C++ structs. Everything is copied, so that work on another thread never sees memory that
// JavaScript can change. A wrong type is a TypeError that names the property.
#pragma once
#include <napi.h>

#include <cstring>
#include <string>
#include <vector>

#include "model/memory.h"
#include "ops/backend.h"

namespace dultra {
namespace addon {

[[noreturn]] inline void type_error(Napi::Env env, const std::string& name, const std::string& expected) {
  throw Napi::TypeError::New(env, name + ": expected " + expected);
}

inline bool absent(const Napi::Value& value) { return value.IsUndefined() || value.IsNull(); }

inline Napi::Object to_object(const Napi::Value& value, const std::string& name) {
  if (!value.IsObject()) type_error(value.Env(), name, "an object");
  return value.As<Napi::Object>();
}

inline std::string get_string(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsString()) type_error(object.Env(), name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

inline double to_number(const Napi::Value& value, const char* name) {
  if (!value.IsNumber()) type_error(value.Env(), name, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

inline double get_number(const Napi::Object& object, const char* name) { return to_number(object.Get(name), name); }

// A whole number between min and max.
inline int64_t get_integer(const Napi::Object& object, const char* name, int64_t min, int64_t max) {
  const double number = get_number(object, name);
  if (!(number >= double(min) && number <= double(max)) || number != double(int64_t(number)))
    throw Napi::RangeError::New(object.Env(), std::string(name) + ": expected an integer from " + std::to_string(min) +
                                                  " to " + std::to_string(max) + ", got " +
                                                  Napi::Number::New(object.Env(), number).ToString().Utf8Value());
  return int64_t(number);
}

inline bool to_bool(const Napi::Value& value, const char* name) {
  if (!value.IsBoolean()) type_error(value.Env(), name, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

inline bool get_bool(const Napi::Object& object, const char* name) { return to_bool(object.Get(name), name); }

// The same for a property that may be left out: `fallback` where it is null or undefined. A property is looked up once,
// as a step has some twenty of them.
inline double get_number(const Napi::Object& object, const char* name, double fallback) {
  const Napi::Value value = object.Get(name);
  return absent(value) ? fallback : to_number(value, name);
}

inline int64_t get_integer(const Napi::Object& object, const char* name, int64_t min, int64_t max, int64_t fallback) {
  return absent(object.Get(name)) ? fallback : get_integer(object, name, min, max);
}

inline bool get_bool(const Napi::Object& object, const char* name, bool fallback) {
  const Napi::Value value = object.Get(name);
  return absent(value) ? fallback : to_bool(value, name);
}

inline uint64_t get_u64(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  bool lossless = false;
  const uint64_t number = value.IsBigInt() ? value.As<Napi::BigInt>().Uint64Value(&lossless) : 0;
  if (!lossless) type_error(object.Env(), name, "a bigint from 0 to 2^64 - 1");
  return number;
}

template <typename T>
struct ArrayType;
template <>
struct ArrayType<int32_t> {
  static constexpr napi_typedarray_type kType = napi_int32_array;
  static constexpr const char* kName = "Int32Array";
};
template <>
struct ArrayType<uint32_t> {
  static constexpr napi_typedarray_type kType = napi_uint32_array;
  static constexpr const char* kName = "Uint32Array";
};
template <>
struct ArrayType<float> {
  static constexpr napi_typedarray_type kType = napi_float32_array;
  static constexpr const char* kName = "Float32Array";
};
template <>
struct ArrayType<double> {
  static constexpr napi_typedarray_type kType = napi_float64_array;
  static constexpr const char* kName = "Float64Array";
};
template <>
struct ArrayType<uint64_t> {
  static constexpr napi_typedarray_type kType = napi_biguint64_array;
  static constexpr const char* kName = "BigUint64Array";
};
template <>
struct ArrayType<uint8_t> {
  static constexpr napi_typedarray_type kType = napi_uint8_array;
  static constexpr const char* kName = "Uint8Array";
};

template <typename T>
std::vector<T> to_vector(const Napi::Value& value, const std::string& name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != ArrayType<T>::kType)
    type_error(value.Env(), name, ArrayType<T>::kName);
  const auto array = value.As<Napi::TypedArrayOf<T>>();
  if (array.ElementLength() == 0) return {};
  return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}

inline std::vector<std::string> to_strings(const Napi::Value& value, const std::string& name) {
  const Napi::Env env = value.Env();
  if (!value.IsArray()) type_error(env, name, "an array of strings");
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> out;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::HandleScope scope(env);
    const Napi::Value text = array.Get(i);
    if (!text.IsString()) type_error(env, name, "an array of strings");
    out.push_back(text.As<Napi::String>().Utf8Value());
  }
  return out;
}

inline std::vector<int64_t> to_shape(const Napi::Value& value) {
  if (!value.IsArray()) type_error(value.Env(), "shape", "an array");
  const auto array = value.As<Napi::Array>();
  std::vector<int64_t> out;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Value n = array.Get(i);
    if (!n.IsNumber()) type_error(value.Env(), "shape", "an array of numbers");
    out.push_back(n.As<Napi::Number>().Int64Value());
  }
  return out;
}

template <typename T>
std::vector<T> get_array(const Napi::Object& object, const char* name) {
  return to_vector<T>(object.Get(name), name);
}

// Empty where the property is null or undefined.
template <typename T>
std::vector<T> get_optional_array(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  return absent(value) ? std::vector<T>() : to_vector<T>(value, name);
}

template <typename T>
Napi::Value to_array(Napi::Env env, const std::vector<T>& values) {
  auto array = Napi::TypedArrayOf<T>::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(T));
  return array;
}

// The floats themselves, not a copy. A build of V8 that takes no memory from outside gets a copy after all.
inline Napi::Value to_array(Napi::Env env, HostFloats&& values) {
  const size_t size = values.size(), bytes = size * sizeof(float);
  const auto free = [](napi_env, void* data, void*) { delete[] static_cast<float*>(data); };
  napi_value buffer = nullptr;
  if (size > 0 && napi_create_external_arraybuffer(env, values.data(), bytes, free, nullptr, &buffer) == napi_ok) {
    values.release();
    return Napi::Float32Array::New(env, size, Napi::ArrayBuffer(env, buffer), 0);
  }
  auto array = Napi::Float32Array::New(env, size);
  if (size > 0) std::memcpy(array.Data(), values.data(), bytes);
  return array;
}

inline DType get_dtype(Napi::Env env, const std::string& name) {
  if (name == "F32") return DType::kF32;
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  type_error(env, "dtype", "\"F32\", \"BF16\" or \"F16\", got \"" + name + "\"");
}

inline Compute get_compute(const Napi::Object& object) {
  const std::string name = get_string(object, "compute");
  if (name == "float32") return Compute::kF32;
  if (name == "bfloat16") return Compute::kBF16;
  type_error(object.Env(), "compute", "\"float32\" or \"bfloat16\", got \"" + name + "\"");
}

inline SampleScores get_scores(Napi::Env env, const std::string& name) {
  if (name == "untempered") return SampleScores::kModel;
  if (name == "tempered") return SampleScores::kTempered;
  if (name == "filtered") return SampleScores::kFiltered;
  type_error(env, "scores", "\"untempered\", \"tempered\" or \"filtered\", got \"" + name + "\"");
}

inline UnmaskRule get_rule(Napi::Env env, const std::string& name) {
  if (name == "plannerBernoulli") return UnmaskRule::kPlannerBernoulli;
  if (name == "plannerTopK") return UnmaskRule::kPlannerTopK;
  if (name == "plannerRound") return UnmaskRule::kPlannerRound;
  if (name == "plannerThreshold") return UnmaskRule::kPlannerThreshold;
  if (name == "threshold") return UnmaskRule::kThreshold;
  if (name == "factor") return UnmaskRule::kFactor;
  if (name == "entropy") return UnmaskRule::kEntropy;
  if (name == "entropySum") return UnmaskRule::kEntropySum;
  if (name == "fixed") return UnmaskRule::kFixed;
  if (name == "dynamic") return UnmaskRule::kDynamic;
  if (name == "random") return UnmaskRule::kRandom;
  if (name == "leftToRight") return UnmaskRule::kLeftToRight;
  if (name == "coin") return UnmaskRule::kCoin;
  type_error(env, "rule", "the name of an unmasking rule, got \"" + name + "\"");
}

}  // namespace addon
}  // namespace dultra
