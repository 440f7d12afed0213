// What training a model takes, before anything is allocated. The sizes stand beside what allocates them: tensors in
// tensor_table, tapes in block.cc, caches in KvCache::bytes_needed.
#pragma once
#include <vector>

#include "model/tensors.h"
#include "model/trainer.h"

namespace dultra {

struct MemoryRequest {
  ModelConfig config;
  std::vector<DType> storage;       // of each tensor of tensor_table, as the model holds it
  std::vector<BlockType> blocks;    // likewise, of those in blocks; kNone, or empty: as `storage` says
  bool on_device = false;           // CUDA: matrices are row-major
  Compute compute = Compute::kF32;  // of matrix products
  TrainerOptions trainer;
  int ranks = 1;       // that train together, and share the optimiser's state with trainer.zero_stage
  int64_t tokens = 0;  // of a forward and backward pass
};

// Bytes, and numbers of parameters.
struct MemoryPlan {
  int64_t parameters = 0, active = 0, trainable = 0;  // active: that a token passes
  size_t weights = 0, masters = 0, gradients = 0, moments = 0;
  GradientSum::Bytes sums;
  size_t activations = 0;  // what backward reads
  size_t exchange = 0;     // with split state: the tensors of one matrix, whole, on their way into the model
  size_t scratch = 0;      // of one block forward and backward, and of logits
};

// Within a few percent for models of size.
MemoryPlan plan_memory(const MemoryRequest& request);

}  // namespace dultra
