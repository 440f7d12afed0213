// The table of a model's tensors: every name and shape, and what each tensor is. Reading, training, saving, planning
// memory and TypeScript (`native.tensors`) all take names and shapes from here.
#pragma once
#include <string>
#include <vector>

#include "model/config.h"

namespace dultra {

// What a tensor is. Names are those of LLaDA and LLaDOU checkpoints; other families map their names to these.
enum class TensorRole : uint8_t {
  kEmbedding,  // also the output head where weights are tied
  kFinalNorm,
  kHead,
  // of a block
  kQ,
  kK,
  kV,
  kAttnOut,
  kGate,
  kUp,
  kDown,
  kRouter,
  kRouterBias,
  kExpertGate,
  kExpertUp,
  kExpertDown,
  kAttnNorm,
  kMlpNorm,
  kQNorm,  // of every head
  kKNorm,
  // of the planner head
  kTimeIn,
  kTimeOut,
  kMaskEmbedding,
  kModulation1,
  kModulation2,
  kPlannerNorm,
  kPlannerLinear,
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  TensorRole role;
  bool bias = false;     // of the linear or norm with this role
  bool planner = false;  // belongs to the planner head
  int layer = -1;        // of a block
  int expert = -1;       // of a block with experts

  int64_t elements() const;
};

// Inputs of the planner's timestep MLP: width of its sinusoid.
constexpr int64_t kTimeFeatures = 256;

// Of all parameters, those of experts that a token does not take.
int64_t idle_parameters(const ModelConfig& config);

// Every tensor that a model of this shape has.
std::vector<TensorSpec> tensor_table(const ModelConfig& config);

}  // namespace dultra
