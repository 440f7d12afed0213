// A whole forward pass with everything that it can return, for inspection and research.
#pragma once
#include "model/pass.h"

namespace dultra {

struct ForwardRequest {
  std::vector<int32_t> ids, offsets;  // (N), (B + 1)
  bool logits = false;
  bool planner = false;
  std::vector<float> timestep;      // (B), of the planner
  std::vector<uint8_t> mask_index;  // (N), of the planner: 1 where the token is a candidate
  // Row b of the ids is row b of the cache, and ids are those of `positions` (N, in-row, ascending) alone; so are the
  // results. The planner needs a cache with PlannerCache::kBlocks. Null: ids are whole rows.
  std::shared_ptr<KvCache> cache;
  std::vector<int32_t> positions;
  std::vector<int32_t> first_blocks;  // (B) as in Packing, or empty; none with a cache, which has its own
};

struct ForwardResult {
  HostFloats hidden;          // (N, C) after the final norm
  HostFloats logits;          // (N, V) or empty
  HostFloats planner_logits;  // (N) or empty
};

ForwardResult run_forward(const Model& model, const ForwardRequest& request, const std::atomic<bool>* cancel);

}  // namespace dultra
