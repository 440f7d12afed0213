// The LLaDA transformer and the LLaDOU / dUltra planner head: weights and forward passes, written once against
// ops/backend.h.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/memory.h"
#include "ops/backend.h"

namespace dultra {

// Sequences laid end to end: sequence b is rows offsets[b] .. offsets[b + 1] of every (N, .) array.
struct Packing {
  HostArray<int32_t> offsets;    // (B + 1)
  HostArray<int32_t> positions;  // (N) index inside the sequence
  HostArray<int32_t>
      cache_offsets;  // with a cache: KvPass::spread of the offsets, or empty where it is left to the operations

  int batch() const { return int(offsets.size()) - 1; }
  int64_t tokens() const { return offsets.back(); }
  static Packing from_lengths(const std::vector<int32_t>& lengths);
};

// Some rows of a Packing, in order.
struct RowSubset {
  HostArray<int32_t> offsets;        // (B + 1) into the arrays below
  HostArray<int32_t> rows;           // (M) packed row
  HostArray<int32_t> positions;      // (M) index inside the sequence
  HostArray<int32_t> cache_offsets;  // as in Packing
  int most = 0;                      // at least the rows of any sequence (AttentionArgs::max_queries), or 0

  int64_t size() const { return int64_t(rows.size()); }
};

// The rows of a pass as a whole, for a planner that sees all of their states (PlannerCache::kHidden).
struct WholeRows {
  Packing packing;                    // (R + 1), every position of the rows
  RowSubset subset;                   // the same candidates, among all positions
  std::vector<uint8_t> is_candidate;  // (N)
  HostArray<int32_t> slots;           // (N) their places in the cache
  std::vector<int32_t> fresh;         // (F) which of them the pass computes

  // `candidates`: of the positions that the pass computes.
  WholeRows(const KvPass& pass, const RowSubset& candidates);
  // Stores fresh states (F, C) in the cache and fills `states` (N, C) with those of all positions. Returns it.
  float* gather(Backend& backend, const float* fresh, float* states, int64_t c) const;

 private:
  const KvPass& pass_;
};

// How weights are held.
struct WeightOptions {
  bool keep_storage = true;     // each tensor as its file has it
  DType storage = DType::kF32;  // used unless keep_storage, or where the backend multiplies in bf16: then kBF16
};

// How far a model has come while it is loaded: bytes of its checkpoint's tensors. Read from any thread.
struct LoadProgress {
  std::atomic<uint64_t> loaded{0}, total{0};
};

struct BlockWeights {
  Buffer attn_norm, ff_norm;         // (C)
  std::unique_ptr<Matrix> q;         // (H D, C)
  std::unique_ptr<Matrix> kv;        // (2 Hk D, C): keys, then values
  std::unique_ptr<Matrix> attn_out;  // (C, H D)
  std::unique_ptr<Matrix> gate_up;   // (2F, C): ff_proj, then up_proj
  std::unique_ptr<Matrix> ff_out;    // (C, F)
  // Empty where the checkpoint has none.
  Buffer q_bias, kv_bias;             // (H D), (2 Hk D)
  Buffer attn_out_bias, ff_out_bias;  // (C)
  Buffer gate_up_bias;                // (2F)
};

struct PlannerWeights {
  std::vector<BlockWeights> blocks;
  // AdaLN: condition = time_mlp(t) + mask_embedding[candidate]; each modulation is split into its scale and shift half,
  // and the scale's bias already holds the 1 of (1 + scale).
  std::unique_ptr<Matrix> time_in, time_out;               // (C, 256), (C, C)
  Buffer time_in_bias, time_out_bias;                      // (C)
  Buffer mask_embedding;                                   // (2, C); zeros if the checkpoint does not use it
  std::unique_ptr<Matrix> scale1, shift1, scale2, shift2;  // (C, C)
  Buffer scale1_bias, shift1_bias, scale2_bias, shift2_bias;
  // use_adaln = false: affine LayerNorm instead.
  Buffer norm_weight, norm_bias;
  Buffer linear_weight;  // (C)
  float linear_bias = 0;
};

// Where the numbers of a checkpoint tensor live in the model: some rows of it are a part of a packed matrix, or of a
// vector.
struct WeightSite {
  std::string tensor;           // Hugging Face name
  std::vector<int64_t> shape;   // of the whole tensor
  int64_t first = 0, rows = 0;  // rows of the tensor that this site holds; a vector's elements are its rows
  bool planner = false;         // belongs to the planner head
  std::unique_ptr<Matrix>* matrix = nullptr;  // rows from `matrix_row` on; null: a vector
  int64_t matrix_row = 0;
  Buffer* vector = nullptr;  // `rows` fp32 numbers, each with `offset` added; or, with `table`, the embedding table
  int64_t vector_first = 0;  // where in the vector they begin
  float offset = 0;
  std::vector<float> exact;  // the numbers before the offset was added, where there is one
  DType* table = nullptr;    // storage of the embedding table
  float* number = nullptr;   // the planner's bias

  int64_t cols() const { return shape.size() == 2 ? shape[1] : 1; }
};

// Rows [first, first + rows) of a checkpoint matrix where the model holds them as row-major bf16, in backend memory.
struct Bf16Rows {
  uint16_t* data;
  int64_t first, rows;
};

// Activations of one block that its backward needs; all of them scratch slots of a Workspace.
struct BlockTape {
  float* x = nullptr;                      // (N, C)
  Array normed, kv;                        // (N, C), (N, 2 Hk D)
  Array normed_subset, q, attention;       // (M, C), (M, H D), (M, H D)
  float *log_sum = nullptr, *h = nullptr;  // (M, H), (M, C)
  Array normed_h, gate_up, mlp;            // (M, C), (M, 2F), (M, F)
};

// Likewise of the base model and of the planner head.
struct BaseTape {
  std::vector<BlockTape> blocks;
  float* last = nullptr;  // (M, C): what the final norm reads
};
struct PlannerTape {
  std::vector<BlockTape> blocks;
  float *features = nullptr, *time_sum = nullptr, *time_twice = nullptr,
        *condition = nullptr;  // (B, 256), (B, C) before SiLU, (2B, C) twice
  float *mul1 = nullptr, *add1 = nullptr, *mul2 = nullptr, *add2 = nullptr;  // (2B, C)
  const int32_t *time_index = nullptr, *mask_index = nullptr;                // (2B) rows of time and of mask_embedding
  const int32_t *groups = nullptr, *subset_groups = nullptr;                 // (N), (M)
  float* out = nullptr;                                                      // (M, C)
};

// What the planner's AdaLN reads beside the states; nothing without one.
struct PlannerInputs {
  HostArray<float> features;                  // (B, 256) sinusoids of the timesteps
  HostArray<int32_t> time_index, mask_index;  // (2B), as of PlannerTape
  HostArray<int32_t> groups, subset_groups;   // (N), (M)
};

// Hands out one fresh slot after the other: a tape's memory.
class TapeMemory {
 public:
  explicit TapeMemory(Workspace& workspace) : workspace_(workspace) {}
  template <typename T = float>
  T* take(int64_t count) {
    return workspace_.get<T>(next_++, count);
  }
  Array operands(int64_t count) { return workspace_.operands(next_++, count); }
  size_t next() const { return next_; }
  void rewind(size_t next) { next_ = next; }

 private:
  Workspace& workspace_;
  size_t next_ = 0;
};

constexpr int64_t kTimeFeatures = 256;  // width of the planner's timestep sinusoid
constexpr float kLayerNormEps = 1e-4f;  // of the planner's AdaLN and affine LayerNorm

class Transformer {
 public:
  // Reads every tensor once. `cancel` (may be null) is looked at, and `progress` (likewise) told, between tensors.
  Transformer(const ModelConfig& config, Backend& backend, const Checkpoint& checkpoint, const WeightOptions& options,
              const std::atomic<bool>* cancel, LoadProgress* progress = nullptr);

  const ModelConfig& config() const { return config_; }
  Backend& backend() const { return backend_; }
  int64_t parameters() const { return parameters_; }
  int64_t planner_parameters() const { return planner_parameters_; }
  size_t weight_bytes() const { return weight_bytes_; }

  // Every place that a checkpoint tensor's numbers live in, in the order in which checkpoints are read.
  const std::vector<WeightSite>& sites() const { return sites_; }
  // A checkpoint tensor as it stands, (rows, cols) row-major in host memory.
  std::vector<float> read_weight(const std::string& tensor) const;
  // The model's own numbers of a checkpoint matrix, in order of its rows; empty where not all of them are row-major
  // bf16, or where they are held twice (an embedding table that is the output head too). What writes there alone uses
  // the model.
  std::vector<Bf16Rows> bf16_rows(const std::string& tensor) const;
  // Takes new numbers for tensors (row-major fp32 in backend memory; a tensor that is null stays as it is). A matrix
  // that is stacked from several tensors needs all of them. Nothing else may use the model meanwhile.
  void write_weights(const std::function<const float*(const std::string& tensor)>& values);
  // How often weights were written: what is not in a weight's memory but passed by value may have changed.
  int64_t times_written() const { return times_written_; }

  // hidden (N, C), or (M, C) if `subset` names the only rows that are needed: states after the final norm, in fp32 or
  // as operands. With a tape (whose memory comes from `tape_memory`) activations are kept; `inputs_only` keeps the
  // inputs of blocks alone. With `pass`, the N tokens are the positions that it computes, and attention sees the whole
  // rows.
  void hidden_forward(Array hidden, const int32_t* ids, const Packing& packing, const RowSubset* subset,
                      Workspace& workspace, const std::atomic<bool>* cancel, BaseTape* tape = nullptr,
                      TapeMemory* tape_memory = nullptr, bool inputs_only = false, const KvPass* pass = nullptr) const;
  // logits (M, V) of hidden rows (M, C).
  void head_forward(float* logits, ConstArray hidden, int64_t m) const;
  // timestep (B); candidate (N): 1 where the token is a mask inside the window.
  PlannerInputs planner_inputs(const std::vector<float>& timestep, const uint8_t* candidate, const Packing& packing,
                               const RowSubset& subset) const;
  // Planner logits (M) of the subset's rows. hidden (N, C); `inputs` of the same packing and subset. With `pass` (of a
  // cache with PlannerCache::kBlocks), as for hidden_forward.
  void planner_forward(float* logit, const float* hidden, const PlannerInputs& inputs, const Packing& packing,
                       const RowSubset& subset, Workspace& workspace, const std::atomic<bool>* cancel,
                       PlannerTape* tape = nullptr, TapeMemory* tape_memory = nullptr, bool inputs_only = false,
                       const KvPass* pass = nullptr) const;

  // One block. out (N, C) may be x itself; with `subset`, only its rows are brought up to date and they go to out (M,
  // C), M rows. With a tape, `x` must be kept by the caller and out must not be x; the tape's other members are filled
  // in, with memory from `tape_memory`. With `kv`, keys and values go through its layer of the cache.
  void block_forward(const BlockWeights& weights, float* x, const Packing& packing, const RowSubset* subset, float* out,
                     Workspace& workspace, BlockTape* tape = nullptr, TapeMemory* tape_memory = nullptr,
                     const KvLayer* kv = nullptr) const;
  // Everything but q and out: attention of all rows, or of the subset's queries, to the fresh keys and values (N, 2,
  // Hk, D), or with `kv` to those of its layer. Valid as long as `offsets` is.
  AttentionArgs attention_args(const Packing& packing, const RowSubset* subset, ConstArray fresh, const KvLayer* kv,
                               std::vector<int32_t>* offsets) const;
  const BlockWeights& block(size_t i) const { return blocks_[i]; }
  size_t block_count() const { return blocks_.size(); }
  const PlannerWeights& planner() const { return planner_; }
  const Buffer& final_norm() const { return final_norm_; }
  const Matrix& head() const { return *head_; }

 private:
  const ModelConfig config_;
  Backend& backend_;
  Buffer embedding_;  // (V, C) in embedding_dtype_
  DType embedding_dtype_ = DType::kF32;
  std::vector<BlockWeights> blocks_;
  Buffer final_norm_;             // (C)
  std::unique_ptr<Matrix> head_;  // (V, C)
  Buffer head_bias_;              // (V), or empty
  PlannerWeights planner_;
  std::vector<WeightSite> sites_;
  int64_t parameters_ = 0, planner_parameters_ = 0, times_written_ = 0;
  size_t weight_bytes_ = 0;
};

// Throws ABORTED when `cancel` is set.
void check_cancelled(const std::atomic<bool>* cancel);

}  // namespace dultra
