#include "model/trace.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace dultra {

namespace {

enum class Trace { kOff, kNorms, kValues };

Trace trace_mode() {
  static const Trace mode = [] {
    const char* text = std::getenv("DULTRA_TRACE");
    if (!text || !*text || std::strcmp(text, "time") == 0) return Trace::kOff;  // "time" is the CUDA backend's
    if (std::strcmp(text, "norms") == 0) return Trace::kNorms;
    if (std::strcmp(text, "values") == 0) return Trace::kValues;
    throw Error(ErrorCode::kInvalidArgument,
                std::string("DULTRA_TRACE: expected \"norms\", \"values\" or \"time\", got \"") + text + "\"");
  }();
  return mode;
}

constexpr int64_t kValuesPerRow = 8;

// FNV-1a over the bits of the numbers.
uint64_t hash_of(const std::vector<float>& values) {
  uint64_t hash = 14695981039346656037ull;
  for (float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    for (int byte = 0; byte < 4; ++byte) hash = (hash ^ (bits >> (8 * byte) & 0xffu)) * 1099511628211ull;
  }
  return hash;
}

}  // namespace

bool is_tracing() { return trace_mode() != Trace::kOff; }

void trace_activation(const ForwardContext& context, const char* name, size_t layer, ConstArray x, int64_t rows,
                      int64_t width) {
  std::vector<uint8_t> stored(size_t(rows * width) * dtype_size(x.dtype));
  context.backend.download(stored.data(), x.data, stored.size());
  std::vector<float> values(size_t(rows * width));
  double squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = load_as_f32(stored.data(), x.dtype, i);
    squares += double(values[i]) * double(values[i]);
  }
  // One write a line, so that lines of several threads do not mix.
  std::string line = "trace " + std::to_string(layer) + " " + name;
  char text[128];
  std::snprintf(text, sizeof text, " %lldx%lld %s norm=%.9g hash=%016llx\n", static_cast<long long>(rows),
                static_cast<long long>(width), x.dtype == DType::kF32 ? "f32" : "bf16", std::sqrt(squares),
                static_cast<unsigned long long>(hash_of(values)));
  line += text;
  for (int64_t r = 0; trace_mode() == Trace::kValues && r < rows; ++r) {
    line += "  " + std::to_string(r) + ":";
    for (int64_t i = 0; i < std::min(width, kValuesPerRow); ++i) {
      std::snprintf(text, sizeof text, " %.9g", double(values[size_t(r * width + i)]));
      line += text;
    }
    line += "\n";
  }
  std::fputs(line.c_str(), stderr);
}

}  // namespace dultra
