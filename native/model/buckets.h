// Buckets: ranges of the arena of gradients, in the order in which a backward pass finishes them. What ranks exchange
// of one goes on while the pass computes the next.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "model/tensors.h"

namespace dultra {

// Numbers of an arena or of a parameter.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

// A backward pass goes through stages: the planner, the output head, blocks from the last to the first (the final norm
// with the last), the embedding table.
constexpr int kPlannerStage = 0, kHeadStage = 1;
inline int block_stage(const ModelConfig& config, int64_t layer) { return int(config.layers + 1 - layer); }

// Between which stages the pass writes a gradient: a table that is the output head, too, has a part of both.
struct Stages {
  int first = 0, last = 0;
};
Stages gradient_stages(const ModelConfig& config, const TensorSpec& spec);
// Of every tensor of a model, by name.
std::unordered_map<std::string, Stages> gradient_stages(const ModelConfig& config);

struct Bucket {
  Range range;  // of the arena: whole parameters
  Stages stages;
  int64_t memory = 0;  // where it lies while it is computed, if not in an arena
};

// Numbers and stages of the arena's parameters, in their order.
struct BucketPart {
  int64_t numbers;
  Stages stages;
};

// Whole stages, of which as many are one bucket as make a sixteenth of all numbers or 32 MB.
std::vector<Bucket> make_buckets(const std::vector<BucketPart>& parts);

// Sets `memory` for buckets that are gone when the next one is computed: those that are never there together share it.
// Returns the numbers that it has.
int64_t share_memory(std::vector<Bucket>& buckets);

}  // namespace dultra
