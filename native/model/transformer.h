// The LLaDA transformer and the LLaDOU / dUltra planner head: weights and forward passes, written once against ops/backend.h.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/memory.h"
#include "ops/backend.h"

namespace dultra {

// Sequences laid end to end: sequence b is rows offsets[b] .. offsets[b + 1] of every (N, .) array.
struct Packing {
  std::vector<int32_t> offsets;    // (B + 1)
  std::vector<int32_t> positions;  // (N) index inside the sequence

  int batch() const { return int(offsets.size()) - 1; }
  int64_t tokens() const { return offsets.back(); }
  static Packing from_lengths(const std::vector<int32_t>& lengths);
};

// Some rows of a Packing, in order.
struct RowSubset {
  std::vector<int32_t> offsets;    // (B + 1) into the arrays below
  std::vector<int32_t> rows;       // (M) packed row
  std::vector<int32_t> positions;  // (M) index inside the sequence

  int64_t size() const { return int64_t(rows.size()); }
};

// How weights are held and multiplied.
struct WeightOptions {
  bool keep_storage = true;     // each tensor as its file has it
  DType storage = DType::kF32;  // used unless keep_storage
  Compute compute = Compute::kF32;
};

struct BlockWeights {
  Buffer attn_norm, ff_norm;         // (C)
  std::unique_ptr<Matrix> q;         // (H D, C)
  std::unique_ptr<Matrix> kv;        // (2 Hk D, C): keys, then values
  std::unique_ptr<Matrix> attn_out;  // (C, H D)
  std::unique_ptr<Matrix> gate_up;   // (2F, C): ff_proj, then up_proj
  std::unique_ptr<Matrix> ff_out;    // (C, F)
};

struct PlannerWeights {
  std::vector<BlockWeights> blocks;
  // AdaLN: condition = time_mlp(t) + mask_embedding[candidate]; each modulation is split into its scale and shift half, and the
  // scale's bias already holds the 1 of (1 + scale).
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

class Transformer {
 public:
  // Reads every tensor once. `cancel` (may be null) is looked at between tensors.
  Transformer(const ModelConfig& config, Backend& backend, const Checkpoint& checkpoint, const WeightOptions& options,
              const std::atomic<bool>* cancel);

  const ModelConfig& config() const { return config_; }
  Backend& backend() const { return backend_; }
  int64_t parameters() const { return parameters_; }
  int64_t planner_parameters() const { return planner_parameters_; }
  size_t weight_bytes() const { return weight_bytes_; }

  // hidden (N, C), or (M, C) if `subset` names the only rows that are needed: states after the final norm.
  void hidden_forward(float* hidden, const int32_t* ids, const Packing& packing, const RowSubset* subset, Workspace& workspace,
                      const std::atomic<bool>* cancel) const;
  // logits (M, V) of hidden rows (M, C).
  void head_forward(float* logits, const float* hidden, int64_t m) const;
  // Planner logits (M) of the subset's rows. hidden (N, C); timestep (B); candidate (N): 1 where the token is a mask inside the window.
  void planner_forward(float* logit, const float* hidden, const std::vector<float>& timestep, const uint8_t* candidate, const Packing& packing,
                       const RowSubset& subset, Workspace& workspace, const std::atomic<bool>* cancel) const;

 private:
  // x (N, C) in place; with `subset`, only its rows are brought up to date and they go to out (M, C).
  void block_forward(const BlockWeights& weights, float* x, const Packing& packing, const RowSubset* subset, float* out, Workspace& workspace) const;

  const ModelConfig config_;
  Backend& backend_;
  Buffer embedding_;  // (V, C) in embedding_dtype_
  DType embedding_dtype_ = DType::kF32;
  std::vector<BlockWeights> blocks_;
  Buffer final_norm_;             // (C)
  std::unique_ptr<Matrix> head_;  // (V, C)
  PlannerWeights planner_;
  int64_t parameters_ = 0, planner_parameters_ = 0;
  size_t weight_bytes_ = 0;
};

// Throws ABORTED when `cancel` is set.
void check_cancelled(const std::atomic<bool>* cancel);

}  // namespace dultra
