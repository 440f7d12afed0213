// The functions of cuBLASLt that the CUDA backend calls, written from the library's documentation: matrices are
// column-major, attributes are set by number. Every product is queued on its stream. Its bits depend on the algorithm,
// as they do with the real one, and with one kind of algorithms on the number of columns, which is the caller's of
// rows.
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace emulator {

namespace {

bool available = false;

struct Description {
  int transpose_a = 0, transpose_b = 0, epilogue = 1, bias_type = 0;
  const void* bias = nullptr;
};
struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t leading;
};
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

int create(void** handle) {
  *handle = new int(1);
  return 0;
}
int destroy(void* handle) {
  delete static_cast<int*>(handle);
  return 0;
}
size_t version() { return 130000; }

int description_create(void** description, int compute, int scale_type) {
  if (compute != 68 || scale_type != 0) return 7;
  *description = new Description;
  return 0;
}
int description_destroy(void* description) {
  delete static_cast<Description*>(description);
  return 0;
}
int description_set(void* description, int attribute, const void* value, size_t bytes) {
  auto& d = *static_cast<Description*>(description);
  const std::map<int, std::pair<void*, size_t>> attributes{{3, {&d.transpose_a, 4}},
                                                           {4, {&d.transpose_b, 4}},
                                                           {7, {&d.epilogue, 4}},
                                                           {8, {&d.bias, 8}},
                                                           {26, {&d.bias_type, 4}}};
  const auto found = attributes.find(attribute);
  if (found == attributes.end() || found->second.second != bytes) return 7;
  std::memcpy(found->second.first, value, bytes);
  return 0;
}
int layout_create(void** layout, int type, uint64_t rows, uint64_t cols, int64_t leading) {
  if (leading < int64_t(rows)) return 7;
  *layout = new Layout{type, rows, cols, leading};
  return 0;
}
int layout_destroy(void* layout) {
  delete static_cast<Layout*>(layout);
  return 0;
}
int preference_create(void** preference) { return create(preference); }
int preference_destroy(void* preference) { return destroy(preference); }
int preference_set(void*, int attribute, const void*, size_t bytes) {
  return (attribute == 1 && bytes == 8) || ((attribute == 3 || (attribute >= 5 && attribute <= 8)) && bytes == 4) ? 0
                                                                                                                  : 7;
}

// Whether op(a) op(b) fits d.
bool shapes_fit(const Description& d, const Layout& a, const Layout& b, const Layout& c) {
  const uint64_t m = d.transpose_a ? a.cols : a.rows, k = d.transpose_a ? a.rows : a.cols;
  const uint64_t depth = d.transpose_b ? b.cols : b.rows, n = d.transpose_b ? b.rows : b.cols;
  const bool bias_fits = d.epilogue != 4 || d.bias_type == c.type;
  return a.type == 14 && b.type == 14 && (c.type == 0 || c.type == 14) && bias_fits && m == c.rows && n == c.cols &&
         k == depth;
}

// The algorithms. A sum is one chain of the exact sums of so many terms each; a stream-K kernel cuts it where the
// number of columns says. `most` columns at most.
struct Algorithm {
  int id, terms;
  bool stream_k;
  uint64_t most;
  int tile;
};
constexpr uint64_t kAny = ~uint64_t(0);
constexpr Algorithm kAlgorithms[] = {{1, 16, false, 0, 1},   {2, 8, false, kAny, 2},  {3, 16, true, kAny, 3},
                                     {4, 16, false, 600, 4}, {5, 16, false, kAny, 5}, {6, 16, false, 64, 6},
                                     {7, 8, false, 64, 7}};
// What is proposed, the best first: some that are refused, some whose bits depend on the number of columns, some that
// are right for so many, some for all. Other numbers of columns have another order.
constexpr int kForFew[] = {1, 7, 3, 6, 5}, kForMany[] = {1, 3, 4, 5, 2};

// Whether the description is one of a product that the algorithm takes.
bool takes(const Algorithm& algorithm, const Description& d, const Layout& a, const Layout& b, const Layout& c) {
  return shapes_fit(d, a, b, c) && c.cols <= algorithm.most;
}
const Algorithm& algorithm_of(const uint64_t* data) { return kAlgorithms[data[0] - 1]; }

int heuristic(void*, void* description, void* a, void* b, void* c, void*, void*, int requested, Heuristic* results,
              int* count) {
  const auto& out = *static_cast<Layout*>(c);
  const auto& ids = out.cols <= 64 ? kForFew : kForMany;
  *count = 0;
  if (!shapes_fit(*static_cast<Description*>(description), *static_cast<Layout*>(a), *static_cast<Layout*>(b), out))
    return 15;
  for (int id : ids)
    if (*count < requested)
      results[(*count)++] = Heuristic{{uint64_t(id)}, 0, id == 1 ? 15 : 0, 1, {}};  // the library takes one back
  return 0;
}
int check(void*, void* description, void* a, void* b, void* c, void*, const uint64_t* algorithm, Heuristic* result) {
  if (!takes(algorithm_of(algorithm), *static_cast<Description*>(description), *static_cast<Layout*>(a),
             *static_cast<Layout*>(b), *static_cast<Layout*>(c)))
    return 15;
  result->workspace = 0;
  result->state = 0;
  return 0;
}
int attribute(const uint64_t* algorithm, int which, void* value, size_t bytes, size_t* written) {
  if (which < 0 || which > 8 || bytes != (which >= 7 ? 2 : 4)) return 7;
  const Algorithm& of = algorithm_of(algorithm);
  const int number = which == 0 ? of.id : which == 1 ? of.tile : which == 2 ? 1 : 0;
  std::memcpy(value, &number, bytes);
  *written = bytes;
  return 0;
}

float from_bf16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

uint16_t to_bf16(double value) {
  float narrow = float(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  if (value != value) return 0x7fff;
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
float read(const void* data, int type, int64_t at) {
  return type == 0 ? static_cast<const float*>(data)[at] : from_bf16(static_cast<const uint16_t*>(data)[at]);
}

int matmul(void*, void* description, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
           const void* beta, const void* c, void*, void* d, void* d_layout, const uint64_t* chosen, void*, size_t,
           cudaStream_t stream) {
  const Description op = *static_cast<Description*>(description);
  const Layout la = *static_cast<Layout*>(a_layout), lb = *static_cast<Layout*>(b_layout),
               ld = *static_cast<Layout*>(d_layout);
  const Algorithm algorithm = algorithm_of(chosen);
  if (!takes(algorithm, op, la, lb, ld)) return 7;
  const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  enqueue(stream, [=] {
    const auto* x = static_cast<const uint16_t*>(a);
    const auto* y = static_cast<const uint16_t*>(b);
    const int64_t depth = int64_t(op.transpose_a ? la.rows : la.cols);
    for (int64_t column = 0; column < int64_t(ld.cols); ++column)
      for (int64_t row = 0; row < int64_t(ld.rows); ++row) {
        float chain[2] = {};
        double terms = 0;
        const int64_t cut = algorithm.stream_k ? int64_t(ld.cols * 7) % depth : depth;
        for (int64_t k = 0; k < depth; ++k) {
          terms += double(from_bf16(op.transpose_a ? x[k + row * la.leading] : x[row + k * la.leading])) *
                   from_bf16(op.transpose_b ? y[column + k * lb.leading] : y[k + column * lb.leading]);
          if (k % algorithm.terms < algorithm.terms - 1 && k + 1 < depth && k + 1 != cut) continue;
          float& part = chain[k >= cut];
          part = float(part + terms);
          terms = 0;
        }
        double sum = double(chain[0] + chain[1]) * scale;
        const int64_t at = row + column * ld.leading;
        if (keep != 0) sum += double(keep) * read(c, ld.type, at);
        if (op.epilogue == 4) sum += read(op.bias, op.bias_type, row);
        if (ld.type == 0)
          static_cast<float*>(d)[at] = float(sum);
        else
          static_cast<uint16_t*>(d)[at] = to_bf16(sum);
      }
  });
  return 0;
}

}  // namespace

void set_cublaslt(bool on) { available = on; }

void* cublaslt_symbol(const char* name) {
  static const std::map<std::string, void*> symbols{
      {"", &available},
      {"cublasLtCreate", reinterpret_cast<void*>(&create)},
      {"cublasLtDestroy", reinterpret_cast<void*>(&destroy)},
      {"cublasLtGetVersion", reinterpret_cast<void*>(&version)},
      {"cublasLtMatmulDescCreate", reinterpret_cast<void*>(&description_create)},
      {"cublasLtMatmulDescDestroy", reinterpret_cast<void*>(&description_destroy)},
      {"cublasLtMatmulDescSetAttribute", reinterpret_cast<void*>(&description_set)},
      {"cublasLtMatrixLayoutCreate", reinterpret_cast<void*>(&layout_create)},
      {"cublasLtMatrixLayoutDestroy", reinterpret_cast<void*>(&layout_destroy)},
      {"cublasLtMatmulPreferenceCreate", reinterpret_cast<void*>(&preference_create)},
      {"cublasLtMatmulPreferenceDestroy", reinterpret_cast<void*>(&preference_destroy)},
      {"cublasLtMatmulPreferenceSetAttribute", reinterpret_cast<void*>(&preference_set)},
      {"cublasLtMatmulAlgoGetHeuristic", reinterpret_cast<void*>(&heuristic)},
      {"cublasLtMatmulAlgoCheck", reinterpret_cast<void*>(&check)},
      {"cublasLtMatmulAlgoConfigGetAttribute", reinterpret_cast<void*>(&attribute)},
      {"cublasLtMatmul", reinterpret_cast<void*>(&matmul)}};
  const auto found = symbols.find(name);
  return available && found != symbols.end() ? found->second : nullptr;
}

}  // namespace emulator
