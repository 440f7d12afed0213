#include "backends/cuda/cublaslt.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <vector>

#include "backends/cuda/device.h"

#include <dirent.h>
#include <dlfcn.h>
#include <sys/stat.h>

namespace dultra {
namespace cuda {

// The part of cuBLASLt's interface (cublasLt.h, stable since CUDA 11) that is called here.
struct LtApi {
  using Status = int;  // 0: success
  using Algorithm = LtAlgorithm;
  struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
  };
  static_assert(sizeof(Algorithm) == 64 && sizeof(Heuristic) == 96, "cuBLASLt's structures");
  static constexpr int kCompute32F = 68, kReal32F = 0, kReal16BF = 14, kNo = 0, kYes = 1;
  static constexpr int kTransposeA = 3, kTransposeB = 4, kEpilogue = 7, kBiasPointer = 8, kEpilogueBias = 4,
                       kBiasType = 26;
  // Of an algorithm.
  static constexpr int kId = 0, kTile = 1, kSplitK = 2, kReduction = 3, kSwizzle = 4, kCustom = 5, kStages = 6,
                       kInner = 7, kCluster = 8;
  static constexpr int kMaxWorkspace = 1, kReductionSchemes = 3, kAlignmentA = 5, kAlignmentB = 6, kAlignmentC = 7,
                       kAlignmentD = 8;

  Status (*create)(void** handle);
  Status (*destroy)(void* handle);
  size_t (*version)();
  Status (*description_create)(void** description, int compute, int scale_type);
  Status (*description_destroy)(void* description);
  Status (*description_set)(void* description, int attribute, const void* value, size_t bytes);
  Status (*layout_create)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t leading);
  Status (*layout_destroy)(void* layout);
  Status (*preference_create)(void** preference);
  Status (*preference_destroy)(void* preference);
  Status (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
  Status (*heuristic)(void* handle, void* description, void* a, void* b, void* c, void* d, void* preference,
                      int requested, Heuristic* results, int* count);
  Status (*check)(void* handle, void* description, void* a, void* b, void* c, void* d, const Algorithm* algorithm,
                  Heuristic* result);
  Status (*attribute)(const Algorithm* algorithm, int attribute, void* value, size_t bytes, size_t* written);
  Status (*matmul)(void* handle, void* description, const void* alpha, const void* a, void* a_layout, const void* b,
                   void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream);
};

// What a product's algorithms are chosen for, and how its operands lie.
struct CublasLt::Shape {
  int64_t n, k, a_stride, b_stride, out_stride;
  bool a_transposed, b_transposed, bias, accumulate, narrow;  // narrow: out is bf16

  int kind() const {
    return int(a_transposed) | int(b_transposed) << 1 | int(bias) << 2 | int(accumulate) << 3 | int(narrow) << 4;
  }
  DType out_type() const { return narrow ? DType::kBF16 : DType::kF32; }
  // The same without gaps between lines but for alignment.
  Shape packed(int64_t m, int64_t columns) const {
    const auto line = [](int64_t width) { return ceil_div(width, 8) * 8; };
    Shape shape = *this;
    shape.a_stride = line(a_transposed ? m : k);
    shape.b_stride = line(b_transposed ? columns : k);
    shape.out_stride = line(columns);
    return shape;
  }
};

// A product of one m and n, described to the library.
struct CublasLt::Plan {
  const LtApi* api;
  void *description = nullptr, *a = nullptr, *b = nullptr, *out = nullptr;
  LtApi::Algorithm algorithm{};
  size_t workspace = 0;

  explicit Plan(const LtApi* lt) : api(lt) {}
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (description) api->description_destroy(description);
    for (void* layout : {a, b, out})
      if (layout) api->layout_destroy(layout);
  }
  // Whether an algorithm computes it; workspace becomes what it needs.
  bool takes(void* handle, const LtApi::Algorithm& chosen, size_t most_workspace) {
    LtApi::Heuristic result{};
    if (api->check(handle, description, b, a, out, out, &chosen, &result) != 0 || result.state != 0 ||
        result.workspace > most_workspace)
      return false;
    algorithm = chosen;
    workspace = result.workspace;
    return true;
  }
};

// The algorithms of one n, k and kind: that of many rows, and that of few. Both give the same bits.
struct CublasLt::Choice {
  bool usable = false;
  LtApi::Algorithm many{}, few{};
};

namespace {

constexpr size_t kWorkspaceBytes = size_t(32) << 20;  // what NVIDIA recommends for Hopper
constexpr int kProposals = 16;                        // algorithms asked for
constexpr size_t kLeastVersion = 120000;
constexpr uint32_t kAlignment = 16;  // bytes, of every operand
constexpr size_t kMostPlans = 4096;
// Products of at most so many rows have an algorithm of their own: they are bound by reading b.
constexpr int64_t kFewRows = 64;
// The numbers of rows that algorithms are asked for.
constexpr int64_t kUsualFew = 32, kUsualMany = 1024;
// Rows and columns of the products by which algorithms are compared.
constexpr int64_t kComparedRows = 512, kComparedColumns = 1024;
// Numbers of rows that an algorithm has to take, and to give the same bits for (up to kComparedRows).
constexpr int64_t kTriedRows[] = {1,    2,    7,     8, 16, 33, kFewRows, kFewRows + 1, 129, 300, kComparedRows,
                                  1536, 6144, 100000};

#ifdef DULTRA_EMULATED
void* library_symbol(void*, const char* name) { return emulator::cublaslt_symbol(name); }
void* open_library(std::string* tried) {
  *tried = "the emulator's is switched off";
  return emulator::cublaslt_symbol("") ? tried : nullptr;
}
#else
bool is_folder(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// Folders lib/python3.*/site-packages/nvidia/... below `prefix` where Python's packages put the library.
void add_python_folders(const std::string& prefix, std::vector<std::string>* folders) {
  DIR* directory = opendir((prefix + "/lib").c_str());
  if (!directory) return;
  while (const dirent* entry = readdir(directory)) {
    const std::string name = entry->d_name;
    if (name.rfind("python3", 0) != 0) continue;
    for (const char* packages : {"/site-packages", "/dist-packages"})
      for (const char* inside : {"/nvidia/cublas/lib", "/nvidia/cu13/lib"})
        folders->push_back(prefix + "/lib/" + name + packages + inside);
  }
  closedir(directory);
}

void* library_symbol(void* library, const char* name) { return dlsym(library, name); }
void* open_library(std::string* tried) {
  std::vector<std::string> names;
  const auto add_folder = [&](const std::string& folder) {
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"})
      names.push_back(folder.empty() ? name : folder + "/" + name);
  };
  if (const char* path = std::getenv("DULTRA_CUBLAS_PATH"); path && *path) {
    // Asked for by name: nothing else will do.
    is_folder(path) ? add_folder(path) : names.push_back(path);
  } else {
    add_folder("");
    std::vector<std::string> folders{"/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib",
                                     "/usr/local/cuda/targets/sbsa-linux/lib"};
    for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
      if (const char* prefix = std::getenv(variable); prefix && *prefix) add_python_folders(prefix, &folders);
    for (const char* prefix : {"/usr/local", "/usr", "/opt/conda"}) add_python_folders(prefix, &folders);
    for (const std::string& folder : folders) add_folder(folder);
  }
  for (const std::string& name : names)
    if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  *tried = names.size() == 1 ? names[0] + " cannot be opened"
                             : "libcublasLt.so.13 and .12 were not found (set DULTRA_CUBLAS_PATH to their folder)";
  return nullptr;
}
#endif

bool resolve(void* library, LtApi* api, std::string* missing) {
  const auto find = [&](auto* function, const char* name) {
    void* symbol = library_symbol(library, name);
    *reinterpret_cast<void**>(function) = symbol;
    if (!symbol) *missing = name;
    return symbol != nullptr;
  };
  return find(&api->create, "cublasLtCreate") && find(&api->destroy, "cublasLtDestroy") &&
         find(&api->version, "cublasLtGetVersion") && find(&api->description_create, "cublasLtMatmulDescCreate") &&
         find(&api->description_destroy, "cublasLtMatmulDescDestroy") &&
         find(&api->description_set, "cublasLtMatmulDescSetAttribute") &&
         find(&api->layout_create, "cublasLtMatrixLayoutCreate") &&
         find(&api->layout_destroy, "cublasLtMatrixLayoutDestroy") &&
         find(&api->preference_create, "cublasLtMatmulPreferenceCreate") &&
         find(&api->preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
         find(&api->preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
         find(&api->heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(&api->check, "cublasLtMatmulAlgoCheck") &&
         find(&api->attribute, "cublasLtMatmulAlgoConfigGetAttribute") && find(&api->matmul, "cublasLtMatmul");
}

}  // namespace

std::unique_ptr<CublasLt> CublasLt::open(cudaStream_t stream, std::string* reason) {
  // The library is never closed: others may have opened it too.
  void* library = open_library(reason);
  if (!library) return nullptr;
  std::unique_ptr<CublasLt> lt(new CublasLt);
  lt->api_ = std::make_unique<LtApi>();
  const LtApi& api = *lt->api_;
  std::string missing;
  if (!resolve(library, lt->api_.get(), &missing)) {
    *reason = "the cuBLASLt that was found has no " + missing;
    return nullptr;
  }
  lt->version_ = api.version();
  if (lt->version_ < kLeastVersion) {
    *reason =
        "cuBLASLt " + std::to_string(lt->version_) + " is too old, expected at least " + std::to_string(kLeastVersion);
    return nullptr;
  }
  lt->stream_ = stream;
  // No split sums: how a product's k is cut depends on the number of rows then.
  const uint32_t no_reduction = 0, alignment = kAlignment;
  const auto prefer = [&](int attribute, const auto& value) {
    return api.preference_set(lt->preference_, attribute, &value, sizeof value) == 0;
  };
  if (api.create(&lt->handle_) != 0 || api.preference_create(&lt->preference_) != 0 ||
      !prefer(LtApi::kMaxWorkspace, kWorkspaceBytes) || !prefer(LtApi::kReductionSchemes, no_reduction) ||
      !prefer(LtApi::kAlignmentA, alignment) || !prefer(LtApi::kAlignmentB, alignment) ||
      !prefer(LtApi::kAlignmentC, alignment) || !prefer(LtApi::kAlignmentD, alignment) ||
      cudaMalloc(&lt->workspace_, kWorkspaceBytes) != cudaSuccess) {
    cudaGetLastError();  // it must not be taken for that of the next launch
    *reason = "cuBLASLt could not be initialised";
    return nullptr;
  }
  return lt;
}

CublasLt::CublasLt() = default;

CublasLt::~CublasLt() {
  plans_.clear();
  if (preference_) api_->preference_destroy(preference_);
  if (handle_) api_->destroy(handle_);
  cudaFree(workspace_);
}

// Describes a product of m rows and n columns; false where the library cannot express it.
bool CublasLt::make_plan(Plan* plan, const Shape& shape, int64_t m, int64_t n) const {
  const LtApi& api = *api_;
  // The library counts in columns: our row-major out (m, n) is its (n, m), so b comes first, and a line of memory is a
  // column.
  const int transpose_b = shape.b_transposed ? LtApi::kNo : LtApi::kYes,
            transpose_a = shape.a_transposed ? LtApi::kYes : LtApi::kNo, epilogue = LtApi::kEpilogueBias,
            out_type = shape.narrow ? LtApi::kReal16BF : LtApi::kReal32F;
  const auto set = [&](int attribute, const auto& value) {
    return api.description_set(plan->description, attribute, &value, sizeof value) == 0;
  };
  const void* no_bias = workspace_;  // an address, which a product replaces
  return api.description_create(&plan->description, LtApi::kCompute32F, LtApi::kReal32F) == 0 &&
         set(LtApi::kTransposeA, transpose_b) && set(LtApi::kTransposeB, transpose_a) &&
         (!shape.bias ||
          (set(LtApi::kEpilogue, epilogue) && set(LtApi::kBiasType, out_type) && set(LtApi::kBiasPointer, no_bias))) &&
         api.layout_create(&plan->b, LtApi::kReal16BF, uint64_t(shape.b_transposed ? n : shape.k),
                           uint64_t(shape.b_transposed ? shape.k : n), shape.b_stride) == 0 &&
         api.layout_create(&plan->a, LtApi::kReal16BF, uint64_t(shape.a_transposed ? m : shape.k),
                           uint64_t(shape.a_transposed ? shape.k : m), shape.a_stride) == 0 &&
         api.layout_create(&plan->out, out_type, uint64_t(n), uint64_t(m), shape.out_stride) == 0;
}

// The library's proposals for a product of m rows, in its order.
std::vector<LtAlgorithm> CublasLt::proposals(const Shape& shape, int64_t m) const {
  std::array<LtApi::Heuristic, kProposals> found{};
  int count = 0;
  Plan plan(api_.get());
  if (!make_plan(&plan, shape.packed(m, shape.n), m, shape.n) ||
      api_->heuristic(handle_, plan.description, plan.b, plan.a, plan.out, plan.out, preference_, kProposals,
                      found.data(), &count) != 0)
    count = 0;
  std::vector<LtApi::Algorithm> algorithms;
  for (int i = 0; i < count; ++i)
    if (found[size_t(i)].state == 0) algorithms.push_back(found[size_t(i)].algorithm);
  return algorithms;
}

// Compares algorithms by the bits that they give the first rows of one product, whatever the number of rows is. What an
// algorithm does with k (the instruction, "stream-K") no attribute tells, so it is computed.
// Of a result in bf16, which rounds most differences away, a model's widths give half a million numbers to compare.
class CublasLt::Comparison {
 public:
  Comparison(const CublasLt& lt, const Shape& shape)
      : lt_(lt),
        shape_(shape),
        columns_(std::min(shape.n, kComparedColumns)),
        packed_(shape.packed(kComparedRows, columns_)),
        row_bytes_(size_t(packed_.out_stride) * dtype_size(shape.out_type())),
        a_(lt.stream_, kComparedRows * packed_.a_stride, 1),
        b_(lt.stream_, (shape.b_transposed ? shape.k : columns_) * packed_.b_stride, 2),
        bias_(lt.stream_, 2 * columns_, 3),
        out_(kComparedRows * row_bytes_) {}

  // Whether the library takes an algorithm for all numbers of rows up to `most` that are tried.
  bool takes(const LtApi::Algorithm& algorithm, int64_t most) const {
    for (int64_t m : kTriedRows) {
      if (m > most) break;
      Plan plan(lt_.api_.get());
      if (!lt_.make_plan(&plan, shape_.packed(m, shape_.n), m, shape_.n) ||
          !plan.takes(lt_.handle_, algorithm, kWorkspaceBytes))
        return false;
    }
    return true;
  }
  // The first m rows; empty if the algorithm does not take so many.
  std::vector<uint8_t> rows(const LtApi::Algorithm& algorithm, int64_t m) const {
    const LtApi& api = *lt_.api_;
    Plan plan(&api);
    const void* bias = bias_.data;
    if (!lt_.make_plan(&plan, packed_, m, columns_) || !plan.takes(lt_.handle_, algorithm, kWorkspaceBytes) ||
        (shape_.bias && api.description_set(plan.description, LtApi::kBiasPointer, &bias, sizeof bias) != 0))
      return {};
    const float alpha = 1, beta = shape_.accumulate ? 1.0f : 0.0f;
    std::vector<uint8_t> rows(size_t(m) * row_bytes_);
    check_cuda(cudaMemsetAsync(out_.data, 0, rows.size(), lt_.stream_), kWhat);
    if (api.matmul(lt_.handle_, plan.description, &alpha, b_.data, plan.b, a_.data, plan.a, &beta, out_.data, plan.out,
                   out_.data, plan.out, &plan.algorithm, lt_.workspace_, plan.workspace, lt_.stream_) != 0)
      return {};
    check_cuda(cudaMemcpyAsync(rows.data(), out_.data, rows.size(), cudaMemcpyDefault, lt_.stream_), kWhat);
    check_cuda(cudaStreamSynchronize(lt_.stream_), kWhat);
    return rows;
  }
  // Whether the rows of all products of up to `most` rows that are tried have these bits.
  bool agrees(const LtApi::Algorithm& algorithm, const std::vector<uint8_t>& expected, int64_t most) const {
    for (int64_t m : kTriedRows) {
      if (m > most) break;
      const std::vector<uint8_t> got = rows(algorithm, m);
      if (got.empty() || !std::equal(got.begin(), got.end(), expected.begin())) return false;
    }
    return true;
  }

 private:
  static constexpr const char* kWhat = "choosing the algorithm of a matrix product";
  // Device memory; with a seed, bf16 numbers in (-1, 1), whose sums are rounded. (As fp32, a bias of two of them each.)
  struct Memory {
    void* data = nullptr;
    explicit Memory(size_t bytes) { check_cuda(cudaMalloc(&data, bytes), kWhat); }
    Memory(cudaStream_t stream, int64_t n, uint64_t state) : Memory(size_t(n) * sizeof(uint16_t)) {
      std::vector<uint16_t> numbers(static_cast<size_t>(n));
      for (uint16_t& x : numbers) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        x = f32_to_bf16(float(int64_t(state >> 40) - (int64_t(1) << 23)) / float(1 << 23));
      }
      check_cuda(cudaMemcpyAsync(data, numbers.data(), numbers.size() * sizeof(uint16_t), cudaMemcpyDefault, stream),
                 kWhat);
      check_cuda(cudaStreamSynchronize(stream), kWhat);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { cudaFree(data); }
  };

  const CublasLt& lt_;
  const Shape shape_;
  const int64_t columns_;
  const Shape packed_;
  const size_t row_bytes_;
  const Memory a_, b_, bias_, out_;
};

// Chooses without a clock: of the proposals for a usual number of many rows the first whose rows have the same bits
// whatever the number of rows is; of those for few rows the first that gives these bits, too.
CublasLt::Choice CublasLt::choose(const Shape& shape, int64_t m) {
  Choice choice;
  // A weight's gradient, which has as many rows as the weight: nothing to agree with.
  if (shape.a_transposed) {
    const std::vector<LtApi::Algorithm> found = proposals(shape, m);
    choice.usable = !found.empty();
    if (choice.usable) choice.many = choice.few = found.front();
    return choice;
  }
  const std::vector<LtApi::Algorithm> for_many = proposals(shape, kUsualMany);
  if (for_many.empty()) {
    throw_if_lost("choosing the algorithm of a matrix product");
    return choice;
  }
  const Comparison comparison(*this, shape);
  for (const LtApi::Algorithm& algorithm : for_many) {
    if (!comparison.takes(algorithm, INT64_MAX)) continue;
    const std::vector<uint8_t> expected = comparison.rows(algorithm, kComparedRows);
    if (expected.empty() || !comparison.agrees(algorithm, expected, kComparedRows)) continue;
    choice.usable = true;
    choice.many = choice.few = algorithm;
    for (const LtApi::Algorithm& other : proposals(shape, kUsualFew))
      if (comparison.takes(other, kFewRows) && comparison.agrees(other, expected, kFewRows)) {
        choice.few = other;
        break;
      }
    break;
  }
  return choice;
}

std::vector<std::string> CublasLt::choices() const {
  const auto text = [&](const LtApi::Algorithm& algorithm) {
    std::string line;
    for (const auto& [name, which] : {std::pair<const char*, int>{"id", LtApi::kId},
                                      {"tile", LtApi::kTile},
                                      {"stages", LtApi::kStages},
                                      {"split-k", LtApi::kSplitK},
                                      {"swizzle", LtApi::kSwizzle},
                                      {"custom", LtApi::kCustom},
                                      {"inner", LtApi::kInner},
                                      {"cluster", LtApi::kCluster}}) {
      // Inner and cluster shapes are of 16 bits.
      uint32_t value = 0;
      size_t written = 0;
      const size_t bytes = which >= LtApi::kInner ? 2 : 4;
      line += std::string(line.empty() ? "" : " ") + name + " ";
      line += api_->attribute(&algorithm, which, &value, bytes, &written) == 0 ? std::to_string(value) : "-";
    }
    return line;
  };
  std::vector<std::string> out;
  for (const auto& [key, choice] : choices_) {
    const auto& [m, n, k, kind] = key;
    std::string line = (m ? "m " + std::to_string(m) + " " : "") + "n " + std::to_string(n) + " k " + std::to_string(k);
    const char* const words[] = {"a transposed", "b transposed", "bias", "added", "bf16"};
    for (int bit = 0; bit < 5; ++bit)
      if (kind >> bit & 1) line += std::string(", ") + words[bit];
    out.push_back(line + ": " +
                  (choice.usable
                       ? text(choice.many) + "; up to " + std::to_string(kFewRows) + " rows " + text(choice.few)
                       : "none"));
  }
  return out;
}

bool CublasLt::multiply(Array out, int64_t out_stride, const Operand& a, const Operand& b, int64_t m, int64_t n,
                        int64_t k, const void* bias, bool accumulate) {
  // What becomes of a product follows from its shape, once its algorithms are chosen.
  if (LaunchKey* key = planned_key()) {
    key->add('m', out, out_stride, a, b, m, n, k, bias, accumulate);
    return true;
  }
  const auto alignment = [](const void* pointer, int64_t stride_bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % kAlignment == 0 && stride_bytes % kAlignment == 0;
  };
  if (!alignment(a.data, a.stride * 2) || !alignment(b.data, b.stride * 2) ||
      !alignment(out.data, out_stride * int64_t(dtype_size(out.dtype))))
    return false;
  const Shape shape{n,
                    k,
                    a.stride,
                    b.stride,
                    out_stride,
                    a.transposed,
                    b.transposed,
                    bias != nullptr,
                    accumulate,
                    out.dtype == DType::kBF16};
  const int kind = shape.kind();
  const std::tuple key(a.transposed ? m : 0, n, k, kind);
  auto chosen = choices_.find(key);
  if (chosen == choices_.end()) {
    if (capturing_)
      throw Error(ErrorCode::kInternal, "a matrix product cannot be captured: its algorithm was not chosen before");
    chosen = choices_.emplace(key, choose(shape, m)).first;
  }
  const Choice& choice = chosen->second;
  if (!choice.usable) return false;
  if (plans_.size() > kMostPlans) plans_.clear();
  std::unique_ptr<Plan>& plan = plans_[{m, n, k, a.stride, b.stride, out_stride, kind}];
  if (!plan) {
    auto made = std::make_unique<Plan>(api_.get());
    // Another algorithm would give other bits.
    if (!make_plan(made.get(), shape, m, n) ||
        !(made->takes(handle_, m <= kFewRows ? choice.few : choice.many, kWorkspaceBytes) ||
          made->takes(handle_, choice.many, kWorkspaceBytes)))
      throw Error(ErrorCode::kInternal, "cuBLASLt does not take the algorithm of its products of " + std::to_string(n) +
                                            " columns over " + std::to_string(k) + " for " + std::to_string(m) +
                                            " rows; please report this");
    plan = std::move(made);
  }
  if (bias && api_->description_set(plan->description, LtApi::kBiasPointer, &bias, sizeof bias) != 0) return false;
  const float alpha = 1, beta = accumulate ? 1.0f : 0.0f;
  const LtApi::Status status =
      api_->matmul(handle_, plan->description, &alpha, b.data, plan->b, a.data, plan->a, &beta, out.data, plan->out,
                   out.data, plan->out, &plan->algorithm, workspace_, plan->workspace, stream_);
  if (status != 0) {
    throw_if_lost("a matrix product");
    throw Error(ErrorCode::kInternal, "cuBLASLt: a matrix product failed with status " + std::to_string(status));
  }
  return true;
}

}  // namespace cuda
}  // namespace dultra
