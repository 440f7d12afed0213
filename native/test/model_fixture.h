// Random checkpoints and requests, for the tests of whole models.
#pragma once
#include <chrono>
#include <filesystem>
#include <fstream>

#include "harness.h"
#include "model/forward.h"
#include "model/tensors.h"
#include "model/trainer.h"
#include "session.h"

namespace dultra {
namespace test {

// A file of this test, removed with its owner.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::vector<uint8_t>& content) {
    // Of this moment and address: no other file, of this process or of another that runs beside it.
    const auto now = std::chrono::high_resolution_clock::now().time_since_epoch().count();
    const std::string name =
        "dultra-model-test-" + std::to_string(now) + "-" + std::to_string(reinterpret_cast<uintptr_t>(this));
    path_ = (std::filesystem::temp_directory_path() / name).u8string();
    std::ofstream file(std::filesystem::u8path(path_), std::ios::binary);
    file.write(reinterpret_cast<const char*>(content.data()), std::streamsize(content.size()));
    if (!file.flush()) throw std::runtime_error("cannot write " + path_);
  }
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(std::filesystem::u8path(path_), ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// How a test's model is held and multiplied.
struct LoadOptions : WeightOptions {
  Compute compute = Compute::kF32;
};

// A random checkpoint: the tensors of `config` behind each other, with odd bytes between them so that most are not
// aligned.
struct RandomCheckpoint {
  ModelConfig config;
  std::vector<TensorRef> tensors;
  std::unique_ptr<TemporaryFile> file;

  RandomCheckpoint(const ModelConfig& shape, DType dtype, uint64_t seed) : config(shape) {
    Random random(seed);
    std::vector<uint8_t> content;
    const auto add = [&](const std::string& name, const std::vector<int64_t>& dims, double offset = 0) {
      content.resize(content.size() + 1 + size_t(random.below(3)), 0x7f);
      TensorRef ref;
      ref.name = name;
      ref.dtype = dtype;
      ref.shape = dims;
      ref.begin = content.size();
      int64_t n = 1;
      for (int64_t d : dims) n *= d;
      const double scale = dims.size() == 1 ? 0.1 : 1.5 / std::sqrt(double(dims.back()));
      for (int64_t i = 0; i < n; ++i) {
        const float value = float(offset + scale * random.normal());
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const size_t bytes = dtype_size(dtype);
        const uint16_t half = f32_to_bf16(value);
        const void* from = dtype == DType::kF32 ? static_cast<const void*>(&bits) : &half;
        content.insert(content.end(), static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + bytes);
      }
      ref.end = content.size();
      tensors.push_back(ref);
    };
    for (const TensorSpec& spec : tensor_table(config)) {
      const bool norm = !spec.bias && (spec.role == TensorRole::kAttnNorm || spec.role == TensorRole::kMlpNorm ||
                                       spec.role == TensorRole::kFinalNorm || spec.role == TensorRole::kPlannerNorm ||
                                       spec.role == TensorRole::kQNorm || spec.role == TensorRole::kKNorm);
      add(spec.name, spec.shape, norm ? 1 : 0);
    }
    content.push_back(0);
    file = std::make_unique<TemporaryFile>(content);
  }

  std::shared_ptr<Model> load(int threads, const LoadOptions& options = {},
                              const std::atomic<bool>* cancel = nullptr) const {
    const Checkpoint checkpoint({file->path()}, tensors);
    return std::make_shared<Model>(config, make_model_backend(threads, options.compute), checkpoint, options, cancel);
  }
};

// In fp32, and in bf16 where the backend can.
inline std::vector<LoadOptions> computes() {
  std::vector<LoadOptions> all(1);
  if (make_model_backend(1)->supports(Compute::kBF16)) {
    all.emplace_back();
    all.back().compute = Compute::kBF16;
  }
  return all;
}

inline ModelConfig small_config() {
  ModelConfig config;
  config.hidden = 24;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.layers = 2;
  config.mlp_hidden = 40;
  config.embedding_size = 50;
  config.max_sequence_length = 64;
  config.rope = {500000, config.head_dim};
  config.rms_norm_eps = 1e-5f;
  config.mask_token = 49;
  config.planner.present = true;
  config.planner.layers = 1;
  return config;
}

// Of a head dimension that has kernels of its own on a GPU.
inline ModelConfig wide_config() {
  ModelConfig config = small_config();
  config.hidden = 128;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 64;
  config.rope.dim = 64;
  config.mlp_hidden = 96;
  return config;
}

// Heads of a size of their own, normed, that turn in part and at scaled frequencies.
inline ModelConfig normed_heads_config() {
  ModelConfig config = small_config();
  config.head_dim = 12;
  config.qk_norm = true;
  config.rope = {10000, 8, RopeScaling::kLlama3, 8, 1, 4, 16};
  return config;
}

// Rows of different lengths, masked behind the first few ids.
inline void make_rows(Random& random, const ModelConfig& config, int rows, std::vector<int32_t>* ids,
                      std::vector<int32_t>* offsets) {
  *offsets = {0};
  for (int r = 0; r < rows; ++r) {
    const int length = 4 + random.below(20), given = 1 + random.below(4);
    for (int i = 0; i < length; ++i)
      ids->push_back(i < given ? random.below(int(config.mask_token)) : config.mask_token);
    offsets->push_back(int32_t(ids->size()));
  }
}

inline SessionRequest request_for(const std::vector<int32_t>& offsets, uint32_t step) {
  SessionRequest request;
  for (size_t r = 0; r + 1 < offsets.size(); ++r) {
    request.rows.push_back(int32_t(r));
    request.window_ends.push_back(offsets[r + 1] - offsets[r]);
    request.row_keys.push_back(uint32_t(r));
    request.steps.push_back(step);
  }
  request.seed = 7;
  request.temperature = 0.8f;
  request.rule = UnmaskRule::kPlannerBernoulli;
  return request;
}

// A forward pass of whole rows, or of `positions` of a cache's rows.
inline ForwardResult run_forward(const Model& model, std::vector<int32_t> ids, std::vector<int32_t> offsets,
                                 bool logits, std::shared_ptr<KvCache> cache = nullptr,
                                 std::vector<int32_t> positions = {}) {
  ForwardRequest request;
  request.ids = std::move(ids);
  request.offsets = std::move(offsets);
  request.logits = logits;
  request.cache = std::move(cache);
  request.positions = std::move(positions);
  return run_forward(model, request, nullptr);
}

// The code that `body` throws an Error with, or -1.
template <class Body>
int thrown(const Body& body, std::string* message = nullptr) {
  try {
    body();
  } catch (const Error& error) {
    if (message) *message = error.what();
    return int(error.code());
  }
  return -1;
}

// Everything scored and kept: the planner's policy over random decisions.
inline ScoreRequest random_score(Random& random, const ModelConfig& config) {
  ScoreRequest request;
  make_rows(random, config, 3, &request.ids, &request.offsets);
  request.candidate_offsets = {0};
  for (size_t b = 0; b + 1 < request.offsets.size(); ++b) {
    for (int32_t i = request.offsets[b]; i < request.offsets[b + 1]; ++i) {
      if (request.ids[size_t(i)] != config.mask_token) continue;
      request.positions.push_back(i - request.offsets[b]);
      request.tokens.push_back(random.below(int(config.mask_token)));
      request.selected.push_back(uint8_t(random.below(2)));
    }
    request.candidate_offsets.push_back(int32_t(request.positions.size()));
    request.timestep.push_back(0.5f);
    request.forced.push_back(0);
  }
  for (int32_t id : request.ids) request.mask_index.push_back(id == config.mask_token);
  request.log_probs = request.planner = request.policy = request.keep = true;
  request.excluded_token = config.mask_token;
  return request;
}

// A micro-batch of training, from random gradients of its likelihoods.
inline void train_micro_batch(Trainer& trainer, const ModelConfig& config, Random& random, bool last = false) {
  const ScoreResult scored = trainer.score(random_score(random, config), nullptr);
  BackwardRequest upstream;
  for (size_t i = 0; i < scored.log_likelihoods.size(); ++i)
    upstream.dlog_likelihoods.push_back(float(random.normal()) * 0.1f);
  upstream.last = last;
  trainer.backward(upstream, nullptr);
}

// Its update. Returns the norm.
inline double train_update(Trainer& trainer) {
  OptimizerStep update;
  update.base_lr = update.planner_lr = 1e-3;
  update.weight_decay = 0.1;
  update.max_grad_norm = 1;
  return trainer.step(update);
}

inline bool same(const std::vector<NamedTensor>& a, const std::vector<NamedTensor>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].name != b[i].name || a[i].data.size() != b[i].data.size() ||
        !same_bits(a[i].data.data(), b[i].data.data(), a[i].data.size()))
      return false;
  return true;
}

}  // namespace test
}  // namespace dultra
