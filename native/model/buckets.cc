#include "model/buckets.h"

#include <algorithm>

namespace dultra {

namespace {

constexpr int64_t kShare = 16, kMost = int64_t(1) << 23;

bool meet(const Stages& a, const Stages& b) { return a.first <= b.last && b.first <= a.last; }

}  // namespace

Stages gradient_stages(const ModelConfig& config, const TensorSpec& spec) {
  if (spec.planner) return {kPlannerStage, kPlannerStage};
  const int embedding = int(config.layers) + 2;
  switch (spec.role) {
    case TensorRole::kEmbedding: return {config.weight_tying ? kHeadStage : embedding, embedding};
    case TensorRole::kHead: return {kHeadStage, kHeadStage};
    case TensorRole::kFinalNorm: return {kHeadStage + 1, kHeadStage + 1};
    default: return {block_stage(config, spec.layer), block_stage(config, spec.layer)};
  }
}

std::unordered_map<std::string, Stages> gradient_stages(const ModelConfig& config) {
  std::unordered_map<std::string, Stages> stages;
  for (const TensorSpec& spec : tensor_table(config)) stages[spec.name] = gradient_stages(config, spec);
  return stages;
}

std::vector<Bucket> make_buckets(const std::vector<BucketPart>& parts) {
  int64_t all = 0;
  for (const BucketPart& part : parts) all += part.numbers;
  const int64_t enough = std::min(kMost, all / kShare);
  std::vector<Bucket> buckets;
  int64_t at = 0;
  for (const BucketPart& part : parts) {
    const Range range{at, at + part.numbers};
    at = range.end;
    if (!buckets.empty()) {
      // Parameters stand in the order of the forward pass: the stage goes down.
      Bucket& bucket = buckets.back();
      const bool same = part.stages.first == bucket.stages.first && part.stages.last == bucket.stages.first;
      const bool next = part.stages.first == bucket.stages.first - 1 && part.stages.last == part.stages.first &&
                        bucket.range.size() < enough;
      if (same || next) {
        bucket.range.end = range.end;
        bucket.stages.first = part.stages.first;
        continue;
      }
    }
    buckets.push_back({range, part.stages, range.begin});
  }
  std::stable_sort(buckets.begin(), buckets.end(),
                   [](const Bucket& a, const Bucket& b) { return a.stages.last < b.stages.last; });
  return buckets;
}

int64_t share_memory(std::vector<Bucket>& buckets) {
  std::vector<const Bucket*> sharing;
  int64_t shared = 0;
  const auto shares = [&](const Bucket& bucket) {
    return std::none_of(sharing.begin(), sharing.end(),
                        [&](const Bucket* other) { return meet(other->stages, bucket.stages); });
  };
  std::vector<Bucket*> others;
  for (Bucket& bucket : buckets) {
    if (!shares(bucket)) {
      others.push_back(&bucket);
      continue;
    }
    sharing.push_back(&bucket);
    bucket.memory = 0;
    shared = std::max(shared, bucket.range.size());
  }
  for (Bucket* bucket : others) {
    bucket->memory = shared;
    shared += bucket->range.size();
  }
  return shared;
}

}  // namespace dultra
