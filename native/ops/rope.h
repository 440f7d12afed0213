// The rotary embedding's settings, and the frequencies that follow from them.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace dultra {

// How a model stretches the rotary embedding over longer texts than it was first trained on; transformers' `rope_type`.
enum class RopeScaling : uint8_t {
  kNone,    // "default"
  kLinear,  // every frequency divided by `factor`
  kLlama3,  // low frequencies divided by `factor`, high ones kept, those between blended
};

struct Rope {
  float theta = 10000;
  int dim = 0;  // the first numbers of a head, even: they turn in pairs (j, j + dim / 2), the others stay as they are
  RopeScaling scaling = RopeScaling::kNone;
  float factor = 1;
  // of kLlama3: wavelengths longer than original_positions / low_frequency count as low, those shorter than
  // original_positions / high_frequency as high
  float low_frequency = 1, high_frequency = 4;
  float original_positions = 8192;

  bool operator==(const Rope& o) const {
    return theta == o.theta && dim == o.dim && scaling == o.scaling && factor == o.factor &&
           low_frequency == o.low_frequency && high_frequency == o.high_frequency &&
           original_positions == o.original_positions;
  }
};

// Angle per position of each pair (dim / 2): theta^(-2j/dim), scaled. Rounded to fp32 at every operation, as PyTorch
// computes it in transformers' modeling_rope_utils. Inline, since a plugin's backend needs it too.
inline std::vector<float> rope_frequencies(const Rope& rope) {
  const auto scaled = [&rope](float frequency) {
    if (rope.scaling == RopeScaling::kNone) return frequency;
    if (rope.scaling == RopeScaling::kLinear) return frequency / rope.factor;
    const float wavelength = float(2 * 3.14159265358979323846) / frequency;
    if (wavelength < rope.original_positions / rope.high_frequency) return frequency;
    if (wavelength > rope.original_positions / rope.low_frequency) return frequency / rope.factor;
    const float smooth =
        (rope.original_positions / wavelength - rope.low_frequency) / (rope.high_frequency - rope.low_frequency);
    return (1 - smooth) * frequency / rope.factor + smooth * frequency;
  };
  std::vector<float> out(size_t(rope.dim / 2));
  for (size_t j = 0; j < out.size(); ++j) out[j] = scaled(1.0f / std::pow(rope.theta, float(2 * j) / float(rope.dim)));
  return out;
}

}  // namespace dultra
