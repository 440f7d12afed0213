// Training of one model: fp32 masters, gradients, AdamW. A master is an fp32 copy of a weight; or, where the model
// holds the weight as row-major bf16 (Transformer::bf16_rows: CUDA), the model's own bf16 number and 16 low bits beside
// it, together exactly an fp32 number (ops/adamw.h): such a model takes 2 bytes less per weight in the model and
// trainer together than two copies would, and nothing has to be brought from one to the other. Two calls serve every
// kind of training: `score` runs a packed micro-batch and returns per-position numbers, `backward` takes dL/d of those
// and adds to the gradients. What the loss is, the caller decides.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/session.h"

namespace dultra {

struct LoraOptions {
  int rank = 0;  // 0: no adapters
  double alpha = 0;
  std::vector<std::string> targets;  // "q_proj" ... "ff_out", of every base block
};

struct TrainerOptions {
  bool freeze_base = false, freeze_planner = false;
  bool checkpointing = false;   // keep the inputs of blocks alone, and run each block again in the backward pass
  LoraOptions lora;             // with adapters the base itself is frozen
  DType moments = DType::kF32;  // kF32 or kBF16, how AdamW's moments are stored
  uint64_t seed = 0;            // draws A of adapters (B is 0), and how bf16 moments are rounded
};

// See NativeScoreRequest in lib/native.
struct ScoreRequest {
  std::vector<int32_t> ids, offsets;       // (N), (B + 1)
  std::vector<float> hidden;               // (N, C) in place of the base model's, or empty
  std::vector<int32_t> candidate_offsets;  // (B + 1)
  std::vector<int32_t> positions;          // (M) in-row, ascending
  std::vector<int32_t> tokens;             // (M) or empty
  bool log_probs = false;                  // log-probabilities of `tokens`
  float temperature = 0;
  int32_t excluded_token = -1;
  bool confidences = false, logits = false;
  bool planner = false;
  std::vector<float> timestep;      // (B)
  std::vector<uint8_t> mask_index;  // (N)
  bool policy = false;
  std::vector<uint8_t> selected, forced;  // (M), (B)
  float planner_temperature = 1, probability_scale = 1;
  bool reference_likelihood = false;
  // A pass over some positions of some rows of a cache (fp32): ids, offsets and mask_index are those of the positions,
  // candidates are among them. What the cache holds counts as given, no gradient flows into it; `backward` must come
  // before the cache's next pass.
  std::shared_ptr<KvCache> cache;
  std::vector<int32_t> rows;             // (B) rows of the cache, ascending
  std::vector<int32_t> query_positions;  // (N) in-row, ascending
  bool keep = false;
};

// (M) each, (M, V) for logits; empty where not asked for. With `policy`, log_probs are those of selected candidates and
// 0 elsewhere.
struct ScoreResult {
  std::vector<float> log_probs, planner_logits, log_likelihoods, confidences, logits;
  std::vector<int32_t> argmax;
};

struct BackwardRequest {
  std::vector<float> dlog_probs, dplanner_logits, dlog_likelihoods, dlogits;  // empty: 0
};

struct OptimizerStep {
  double base_lr = 0, planner_lr = 0, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, weight_decay = 0;
  double max_grad_norm = 0;  // 0: no clipping
};

struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> data;
};

// A model's weights as they stand, each once: all, or those named.
std::vector<NamedTensor> read_weights(const Model& model, const std::vector<std::string>* names);

class Trainer {
 public:
  Trainer(std::shared_ptr<Model> model, const TrainerOptions& options);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  struct ParameterInfo {
    std::string name;
    std::vector<int64_t> shape;
    bool planner;
  };
  std::vector<ParameterInfo> parameters() const;

  ScoreResult score(ScoreRequest request, const std::atomic<bool>* cancel);
  // Returns dL/d(hidden) (N, C) where `score` was given hidden states, else nothing.
  std::vector<float> backward(const BackwardRequest& request, const std::atomic<bool>* cancel);
  void zero_grad();
  double grad_norm();
  // Returns the norm before clipping. NON_FINITE, with nothing changed, where it is NaN or infinite.
  double step(const OptimizerStep& request);
  int64_t steps() const { return steps_; }
  std::vector<NamedTensor> gradients();
  // Parameters and moments, by name.
  std::vector<NamedTensor> state();
  void load_state(int64_t steps, const std::vector<NamedTensor>& tensors);
  void set_adapters(bool on);
  size_t bytes() const { return bytes_; }

 private:
  // A checkpoint tensor, or an adapter.
  struct Parameter {
    std::string name;
    std::vector<int64_t> shape;
    int64_t n = 0;
    bool planner = false, trains = false;
    std::vector<Bf16Rows> rows;  // the model's own numbers, where the master is split
    Buffer value;                // else (n) row-major fp32
    Buffer low;                  // (n) int16, with `rows`, where it trains; what is frozen is the model's number itself
    Buffer gradient, exp_avg, exp_avg_sq;  // where it trains: fp32, and twice options_.moments
  };
  // W = frozen + scale B A. W itself is the Parameter `weight`, what backward multiplies with. `frozen` is exact in the
  // model's own storage, so with split masters it is bf16: of LLaDA-8B, adapters on q, k, v and attn_out take 4.3 GB
  // for it.
  struct Adapter {
    Parameter *weight, *a, *b;  // (N, K), (rank, K), (N, rank)
    Buffer frozen;              // (N, K) fp32; bf16 where weight->rows
    // What products take of A and B, times scale: (K, rank) and (N, rank) fp32, as of the last update.
    Buffer a_scaled, b_scaled;
  };
  // Names of a block's parameters, resolved once.
  struct BlockParameters {
    Parameter *attn_norm, *ff_norm, *q, *k, *v, *attn_out, *ff, *up, *ff_out;
  };
  struct Tape;  // what `backward` needs of the last `score`

  Parameter* find(const std::string& name);
  Parameter* add(const std::string& name, const std::vector<int64_t>& shape, bool planner, bool trains,
                 std::vector<Bf16Rows> rows = {});
  Buffer zeroed(size_t bytes);
  BlockParameters resolve(const std::string& prefix);
  float* gradient_of(Parameter* p) { return p && p->trains ? p->gradient.as() : nullptr; }
  void add_adapters(const LoraOptions& lora);
  // fp32 (n, k) from bf16 and back.
  void widen(float* to, const uint16_t* from, int64_t n, int64_t k);
  void narrow(uint16_t* to, const float* from, int64_t n, int64_t k);
  // What writes to weights of the model; nobody else may use them.
  void scale_adapter(Adapter& adapter);  // a_scaled, b_scaled
  void merge_adapters();
  // Brings masters into the model's weights; those that are split are there already.
  void write_model();

  // dx (M, K) = dy (M, N) w (or += with `accumulate`) with rows first_row .. first_row + n of w.
  void linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, const Parameter& w, int64_t m,
                             int64_t first_row, int64_t n, bool accumulate);
  // dx (M, K) = dy w (or += with `accumulate`); adds to the gradients of w, its adapter and bias. dx null: not wanted.
  void linear_backward(Array dx, ConstArray dy, int64_t dy_stride, ConstArray x, Parameter* w, int64_t m,
                       bool accumulate, int64_t first_row = 0, int64_t rows = -1, Parameter* bias = nullptr,
                       int64_t bias_first = 0);
  // dx (N, C) from dout (M, C), which is overwritten.
  void block_backward(const BlockWeights& weights, const BlockParameters& p, BlockTape tape, const Packing& packing,
                      const RowSubset* subset, float* dx, float* dout, const KvLayer* kv);
  void head_backward(const BackwardRequest& request, const std::vector<float>& dlog_prob, float* dhidden);
  // Adds to dhidden (N, C), the states that the planner read.
  void planner_backward(const std::vector<float>& dlogit, float* dhidden, const std::atomic<bool>* cancel);
  void base_backward(float* dhidden, const std::atomic<bool>* cancel);
  static LikelihoodArgs likelihood_args(const Tape& tape);  // all but the outputs
  double norm_locked();
  NamedTensor named(const std::string& name, const Parameter& p, const Buffer& buffer, DType dtype) const;
  std::vector<float> read_master(const Parameter& p) const;
  void write_master(Parameter& p, const std::vector<float>& values);

  const std::shared_ptr<Model> model_;
  const TrainerOptions options_;
  std::mutex mutex_;  // one call at a time
  Backend& backend_;
  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::unordered_map<std::string, Parameter*> by_name_;
  std::vector<Adapter> adapters_;
  std::unordered_map<Parameter*, Adapter*> adapter_of_;
  bool adapters_on_ = true;
  bool base_trains_ = false, planner_trains_ = false;
  std::vector<BlockParameters> base_blocks_, planner_blocks_;
  Workspace tape_workspace_, workspace_, gradient_workspace_;
  std::unique_ptr<Tape> tape_;
  size_t recompute_slot_ = 0;  // first free slot of tape_workspace_ behind the tape: a block that is run again
  int64_t steps_ = 0;
  size_t bytes_ = 0;
};

}  // namespace dultra
