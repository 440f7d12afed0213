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
  struct Algorithm {
    uint64_t data[8];
  };
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
  Status (*matmul)(void* handle, void* description, const void* alpha, const void* a, void* a_layout, const void* b,
                   void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream);
};

struct CublasLt::Plan {
  const LtApi* api;
  void *description = nullptr, *a = nullptr, *b = nullptr, *out = nullptr;
  LtApi::Algorithm algorithm{};
  size_t workspace = 0;
  bool usable = false;

  explicit Plan(const LtApi* lt) : api(lt) {}
  ~Plan() {
    if (description) api->description_destroy(description);
    for (void* layout : {a, b, out})
      if (layout) api->layout_destroy(layout);
  }
};

namespace {

constexpr size_t kWorkspaceBytes = size_t(32) << 20;  // what NVIDIA recommends for Hopper
constexpr int kProposals = 8;                         // algorithms timed per shape
constexpr int kTimedRuns = 3;
constexpr size_t kLeastVersion = 120000;
constexpr uint32_t kAlignment = 16;  // bytes, of every operand
constexpr size_t kMostPlans = 4096;

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
         find(&api->heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(&api->matmul, "cublasLtMatmul");
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
  // No split sums: how a product's k is cut does not depend on the number of rows then.
  const uint32_t no_reduction = 0, alignment = kAlignment;
  const auto prefer = [&](int attribute, const auto& value) {
    return api.preference_set(lt->preference_, attribute, &value, sizeof value) == 0;
  };
  if (api.create(&lt->handle_) != 0 || api.preference_create(&lt->preference_) != 0 ||
      !prefer(LtApi::kMaxWorkspace, kWorkspaceBytes) || !prefer(LtApi::kReductionSchemes, no_reduction) ||
      !prefer(LtApi::kAlignmentA, alignment) || !prefer(LtApi::kAlignmentB, alignment) ||
      !prefer(LtApi::kAlignmentC, alignment) || !prefer(LtApi::kAlignmentD, alignment) ||
      cudaMalloc(&lt->workspace_, kWorkspaceBytes) != cudaSuccess) {
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

bool CublasLt::multiply(Array out, int64_t out_stride, const Operand& a, const Operand& b, int64_t m, int64_t n,
                        int64_t k, const void* bias, bool accumulate) {
  // What becomes of a product follows from its shape, once its algorithm is chosen (times_cleared).
  if (LaunchKey* key = planned_key()) {
    key->add('m', out, out_stride, a, b, m, n, k, bias, accumulate);
    return true;
  }
  // The library counts in columns: our row-major out (m, n) is its (n, m), so b comes first.
  const auto alignment = [](const void* pointer, int64_t stride_bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % kAlignment == 0 && stride_bytes % kAlignment == 0;
  };
  if (!alignment(a.data, a.stride * 2) || !alignment(b.data, b.stride * 2) ||
      !alignment(out.data, out_stride * int64_t(dtype_size(out.dtype))))
    return false;
  const int flags = int(a.transposed) | int(b.transposed) << 1 | int(bias != nullptr) << 2 | int(accumulate) << 3 |
                    int(out.dtype == DType::kBF16) << 4;
  if (plans_.size() > kMostPlans && !capturing_) {
    plans_.clear();
    ++times_cleared_;
  }
  std::unique_ptr<Plan>& slot = plans_[Key{m, n, k, a.stride, b.stride, out_stride, flags}];
  const bool is_new = !slot;
  if (is_new && capturing_)
    throw Error(ErrorCode::kInternal, "a matrix product cannot be captured: its algorithm was not chosen before");
  if (is_new) slot = std::make_unique<Plan>(api_.get());
  Plan& plan = *slot;
  const float alpha = 1, beta = accumulate ? 1.0f : 0.0f;
  const auto run = [&](const LtApi::Algorithm& algorithm, size_t workspace, void* to, float keep) {
    return api_->matmul(handle_, plan.description, &alpha, b.data, plan.b, a.data, plan.a, &keep, to, plan.out, to,
                        plan.out, &algorithm, workspace_, workspace, stream_);
  };
  if (is_new) {
    const int transpose_b = b.transposed ? LtApi::kNo : LtApi::kYes,
              transpose_a = a.transposed ? LtApi::kYes : LtApi::kNo;
    const int epilogue = LtApi::kEpilogueBias,
              out_type = out.dtype == DType::kBF16 ? LtApi::kReal16BF : LtApi::kReal32F;
    bool good = api_->description_create(&plan.description, LtApi::kCompute32F, LtApi::kReal32F) == 0 &&
                api_->description_set(plan.description, LtApi::kTransposeA, &transpose_b, sizeof transpose_b) == 0 &&
                api_->description_set(plan.description, LtApi::kTransposeB, &transpose_a, sizeof transpose_a) == 0;
    if (good && bias)
      good = api_->description_set(plan.description, LtApi::kEpilogue, &epilogue, sizeof epilogue) == 0 &&
             api_->description_set(plan.description, LtApi::kBiasType, &out_type, sizeof out_type) == 0 &&
             api_->description_set(plan.description, LtApi::kBiasPointer, &bias, sizeof bias) == 0;
    // A line of memory is a column to the library.
    good = good &&
           api_->layout_create(&plan.b, LtApi::kReal16BF, uint64_t(b.transposed ? n : k),
                               uint64_t(b.transposed ? k : n), b.stride) == 0 &&
           api_->layout_create(&plan.a, LtApi::kReal16BF, uint64_t(a.transposed ? m : k),
                               uint64_t(a.transposed ? k : m), a.stride) == 0 &&
           api_->layout_create(&plan.out, out_type, uint64_t(n), uint64_t(m), out_stride) == 0;
    std::array<LtApi::Heuristic, kProposals> proposals{};
    int count = 0;
    if (good)
      good = api_->heuristic(handle_, plan.description, plan.b, plan.a, plan.out, plan.out, preference_, kProposals,
                             proposals.data(), &count) == 0;
    if (good && count > 0) {
      // Timed on memory of their own: the result would be added to more than once.
      void* to = nullptr;
      cudaEvent_t begin = nullptr, end = nullptr;
      const bool timed = count > 1 && cudaMalloc(&to, size_t(m * out_stride) * dtype_size(out.dtype)) == cudaSuccess &&
                         cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess;
      float best = 0;
      for (int i = 0; i < count; ++i) {
        const LtApi::Heuristic& proposal = proposals[size_t(i)];
        if (proposal.state != 0) continue;
        float milliseconds = 0;
        if (timed) {
          if (run(proposal.algorithm, proposal.workspace, to, 0) != 0) continue;
          cudaEventRecord(begin, stream_);
          for (int r = 0; r < kTimedRuns; ++r) run(proposal.algorithm, proposal.workspace, to, 0);
          cudaEventRecord(end, stream_);
          if (cudaEventSynchronize(end) != cudaSuccess ||
              cudaEventElapsedTime(&milliseconds, begin, end) != cudaSuccess)
            continue;
        }
        if (plan.usable && milliseconds >= best) continue;
        best = milliseconds;
        plan.algorithm = proposal.algorithm;
        plan.workspace = proposal.workspace;
        plan.usable = true;
        if (!timed) break;
      }
      if (begin) cudaEventDestroy(begin);
      if (end) cudaEventDestroy(end);
      cudaFree(to);
      cudaGetLastError();  // memory that there was not enough of to time
    }
  }
  if (!plan.usable) return false;
  if (bias && api_->description_set(plan.description, LtApi::kBiasPointer, &bias, sizeof bias) != 0) return false;
  return run(plan.algorithm, plan.workspace, out.data, beta) == 0;
}

}  // namespace cuda
}  // namespace dultra
