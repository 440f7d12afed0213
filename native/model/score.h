// Forward and backward passes of training. `score` runs a packed micro-batch and returns numbers per candidate,
// `backward` takes dL/d of those and adds to the gradients. What the loss is, the caller decides.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "model/parameters.h"
#include "model/pass.h"

namespace dultra {

// NativeScoreRequest in lib/native/types.ts.
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
  float entropy_temperature = 0;  // entropies of softmax(logits / it); 0: none
  bool planner = false;
  std::vector<float> timestep;      // (B)
  std::vector<uint8_t> mask_index;  // (N)
  bool policy = false;
  std::vector<uint8_t> selected, forced;  // (M), (B)
  float planner_temperature = 1, probability_scale = 1;
  bool reference_likelihood = false;
  // A pass over some positions of some rows of a cache (fp32): ids, offsets and mask_index are those of the positions,
  // candidates are among them. What the cache holds is constant, no gradient flows into it; `backward` must come before
  // the cache's next pass.
  std::shared_ptr<KvCache> cache;
  std::vector<int32_t> rows;             // (B) rows of the cache, ascending
  std::vector<int32_t> query_positions;  // (N) in-row, ascending
  std::vector<int32_t> first_blocks;     // (B) as in Packing, or empty; none with a cache, which has its own
  bool keep = false;                     // `backward` will follow

  // Whether token scores are wanted of every candidate, not of selected ones alone.
  bool scores_all() const { return confidences || logits || entropies() || (log_probs && !policy); }
  bool entropies() const { return entropy_temperature > 0; }
};

// (M) each, (M, V) for logits; empty where not asked for. With `policy`, log_probs are those of selected candidates and
// 0 elsewhere.
struct ScoreResult {
  std::vector<float> log_probs, planner_logits, log_likelihoods, confidences, entropies, logits;
  std::vector<int32_t> argmax;
};

struct BackwardRequest {
  std::vector<float> dlog_probs, dplanner_logits, dlog_likelihoods, dentropies, dlogits;  // empty: 0
  bool last = false;  // of the update: ranks begin to exchange gradients while the pass goes on
};

struct ScoreOptions {
  bool base_trains = false, planner_trains = false;
  bool checkpointing = false;  // keep the inputs of blocks alone, and run each block again in the backward pass
};

// One at a time of a model's passes for training. The caller holds the weights shared.
class Scorer {
 public:
  Scorer(const Model& model, const Parameters& parameters, const ScoreOptions& options);
  ~Scorer();

  ScoreResult score(ScoreRequest request, const std::atomic<bool>* cancel);
  // Returns dL/d(hidden) (N, C) where `score` was given hidden states, else nothing.
  std::vector<float> backward(const BackwardRequest& request, const std::atomic<bool>* cancel,
                              const StageFinished& finished);

 private:
  struct Tape;  // what `backward` needs of the last `score`

  void score_tokens(Tape& tape, const ForwardContext& context, TapeMemory& memory, ScoreResult& result);
  void score_planner(Tape& tape, const ForwardContext& context, TapeMemory& memory, ScoreResult& result);
  // dhidden (scored, C), overwritten, from dL/d of token scores.
  void tokens_backward(const BackwardContext& context, const BackwardRequest& request,
                       const std::vector<float>& dlog_prob, float* dhidden);
  // Gradients of likelihoods as gradients of log-probabilities and planner logits, added to those.
  void likelihood_backward(const BackwardRequest& request, std::vector<float>* dlog_prob, std::vector<float>* dplanner);

  const Model& model_;
  Backend& backend_;
  const Parameters& parameters_;
  const ScoreOptions options_;
  Workspace tape_workspace_, workspace_, gradient_workspace_;
  std::unique_ptr<Tape> tape_;
};

}  // namespace dultra
