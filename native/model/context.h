// What the layers' forward and backward functions need beside their weights and tensors.
#pragma once
#include <atomic>
#include <functional>

#include "model/config.h"
#include "model/kv_cache.h"
#include "model/memory.h"

namespace dultra {

class Parameters;

// Throws ABORTED when `cancel` is set. It may be null.
void check_cancelled(const std::atomic<bool>* cancel);

// Scratch slots of forward passes. A slot is live only inside the function that asked for it, except those that name a
// result.
enum Slot : size_t {
  kNormed,
  kNormedSubset,
  kQ,
  kKv,
  kAttention,
  kGateUp,
  kMlp,
  kRouterLogits,
  kExpert,
  kExpertWeight,
  kExpertRow,
  kExpertOffset,
  kExpertPlace,
  kExpertOut,
  kResidual,
  kPlannerState,
  kPlannerOut,
  kTime,
  kTimeSum,
  kTimeHidden,
  kTimeTwice,
  kCondition,
  kMul1,
  kAdd1,
  kMul2,
  kAdd2,
  kAdapted,
  kLowRankInput
};

struct ForwardContext {
  const ModelConfig& config;
  Backend& backend;
  Workspace& workspace;
  const std::atomic<bool>* cancel = nullptr;
  // Where activations that backward reads are kept. Used by functions that are given a tape.
  TapeMemory* tape_memory = nullptr;
  // Of each block keep only its input; backward runs the block again (activation checkpointing).
  bool inputs_only = false;
  // Keys and values of positions that the pass does not compute come from this cache; null: the pass computes all.
  const KvPass* cache = nullptr;

  // An activation of `count` numbers: on the tape where `kept` says where to note it, else scratch in `slot`.
  Array activation(Slot slot, int64_t count, Array* kept) const {
    return kept ? *kept = tape_memory->activations(count) : workspace.activations(slot, count);
  }
};

// Scratch slots of backward passes.
enum GradientSlot : size_t {
  kDHidden,
  kDCandidate,
  kDLogits,
  kDOut,
  kDX,
  kDMlp,
  kDGateUp,
  kDExpertWeight,
  kDExpertX,
  kDRouterLogits,
  kDNormed,
  kDAttention,
  kDQ,
  kDQueries,
  kDKv,
  kDKvOwn,
  kDStates,
  kDScore,
  kDMul1,
  kDAdd1,
  kDMul2,
  kDAdd2,
  kDCondition,
  kDTimeTwice,
  kDTime,
  kDAdapted,
  kLowRank
};

// Told, as a backward pass goes on, that it writes no more gradients of a stage (buckets.h) or of those before it.
using StageFinished = std::function<void(int stage)>;

struct BackwardContext {
  const ForwardContext& forward;  // of the pass that the gradients are of
  Workspace& workspace;           // GradientSlot
  const Parameters& parameters;
  // Blocks that are run again take their memory from here on.
  Workspace& tape_workspace;
  size_t recompute_slot = 0;
  const StageFinished* finished = nullptr;

  const ModelConfig& config() const { return forward.config; }
  Backend& backend() const { return forward.backend; }
  void finish(int stage) const {
    if (finished) (*finished)(stage);
  }
};

}  // namespace dultra
