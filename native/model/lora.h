// Low-rank adapters: W = frozen + scale B A, merged into the model's weights after every update, or over weights in
// blocks, which stay as they are, beside these.
#pragma once
#include <deque>
#include <string>
#include <vector>

#include "model/parameters.h"

namespace dultra {

struct LoraOptions {
  int rank = 0;  // 0: no adapters
  double alpha = 0;
  std::vector<std::string> targets;  // "q_proj" ... "ff_out", of every base block
};

// Whether a checkpoint tensor gets an adapter: a projection of a base block that the targets name.
bool is_adapter_target(const std::string& tensor, bool planner, const std::vector<std::string>& targets);

class Lora {
 public:
  // Adds A and B of every target to `parameters`; streams of their moments count on from `stream`, `stages`
  // are of the tensors. Throws INVALID_ARGUMENT where no tensor is a target.
  Lora(Backend& backend, Weights& weights, Parameters& parameters, const LoraOptions& options, uint32_t stream,
       const std::unordered_map<std::string, Stages>& stages);

  // As PEFT begins: A uniform within 1 / sqrt(K), B zero, so that the adapted model is the base. After
  // Parameters::bind.
  void initialise(uint64_t seed);
  // Makes W of every target what the model computes with, with the adapters or without. The caller holds the weights
  // exclusively.
  void merge(bool with_adapters);
  // Memory beside the parameters.
  size_t bytes() const;

 private:
  void scale(Adapter& adapter);
  // Over blocks: the adapter as it stands becomes part of its Linear, or leaves it.
  void put_beside(Adapter& adapter, bool with_adapters);
  // W (N, K) in fp32, in backend memory.
  float* merged(Adapter& adapter, size_t slot, bool with_adapters);
  // fp32 (rows, cols) from bf16 and back.
  void widen(float* to, const uint16_t* from, int64_t rows, int64_t cols);
  void narrow(uint16_t* to, const float* from, int64_t rows, int64_t cols);

  Backend& backend_;
  Weights& weights_;
  Parameters& parameters_;
  const LoraOptions options_;
  std::deque<Adapter> adapters_;  // their addresses are in Parameters
  Workspace workspace_;
};

}  // namespace dultra
