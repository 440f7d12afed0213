// A model's weights: read from a checkpoint, located by tensor, read back and replaced.
#pragma once
#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/planner.h"
#include "model/tensors.h"

namespace dultra {

// How weights are stored; a backend that computes in bf16 stores matrices in bf16.
struct WeightOptions {
  bool keep_storage = true;     // each tensor as its file has it
  DType storage = DType::kF32;  // used unless keep_storage
  bool keep_blocks = true;      // quantised tensors stay so where the backend multiplies with them
  // Matrices of blocks of layers are quantised as they are read; the embedding table and the head are then kQ8_0.
  // kNone: they are not. Rows that are not whole blocks of 32 stay as they are.
  BlockType quantise = BlockType::kNone;
  bool int8 = false;  // as of make_block_matrix
};

// How much of a checkpoint has been read, in bytes of its tensors. Read from any thread.
struct LoadProgress {
  std::atomic<uint64_t> loaded{0}, total{0};
};

// Where the model holds rows of a checkpoint tensor.
struct WeightLocation {
  enum class Kind : uint8_t {
    kMatrix,  // rows of a Linear's matrix
    kVector,  // fp32 numbers of a buffer; each number of the tensor counts as a row
    kTable,   // the embedding table
    kNumber,  // the planner's bias
  };
  std::string tensor;
  std::vector<int64_t> shape;  // of the whole tensor
  bool planner = false;        // belongs to the planner head
  Kind kind = Kind::kVector;
  int64_t first = 0, rows = 0;  // rows of the tensor that are here
  Linear* linear = nullptr;     // kMatrix
  Buffer* vector = nullptr;     // kVector, kTable
  float* number = nullptr;      // kNumber
  int64_t at = 0;               // kMatrix, kVector: row where they begin
  // kVector: each number is held with this added, and `exact` are the numbers without it.
  float offset = 0;
  std::vector<float> exact;

  int64_t cols() const { return shape.size() == 2 ? shape[1] : 1; }
  // What holds them: the Linear, the Buffer or the number.
  const void* holder() const;
};

// Rows [first, first + rows) of a checkpoint matrix where the model holds them as row-major bf16, in backend memory.
struct Bf16Rows {
  uint16_t* data;
  int64_t first, rows;
};

struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> data;
};

class Weights {
 public:
  // Reads every tensor of `tensor_table` once. `cancel` (may be null) is checked, and `progress` (may be null) updated,
  // between tensors.
  Weights(const ModelConfig& config, Backend& backend, const Checkpoint& checkpoint, const WeightOptions& options,
          const std::atomic<bool>* cancel, LoadProgress* progress);
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  Buffer embedding;  // (V, C) in embedding_dtype, or empty
  DType embedding_dtype = DType::kF32;
  std::unique_ptr<Matrix> embedding_blocks;  // (V, C) where the table is quantised
  std::vector<BlockWeights> blocks;
  Buffer final_norm;  // (C)
  Linear head;        // (V, C)
  PlannerWeights planner;

  int64_t parameters() const { return parameters_; }
  int64_t planner_parameters() const { return planner_parameters_; }
  size_t bytes() const { return bytes_; }

  // Every place that numbers of a checkpoint tensor are held, in the order in which they are read. A tensor that is
  // split, or held twice (an embedding table that is the output head too), has several.
  const std::vector<WeightLocation>& locations() const { return locations_; }
  // A checkpoint tensor as it stands, row-major in host memory. INVALID_ARGUMENT for an unknown name.
  std::vector<float> read(const std::string& tensor) const;
  // Tensors as they stand, each once: those named, or all (null).
  std::vector<NamedTensor> read_all(const std::vector<std::string>* names) const;
  // The model's own numbers of a checkpoint matrix in order of its rows; empty where not all of them are row-major
  // bf16, or where they are held twice. An optimiser may train them in place.
  std::vector<Bf16Rows> bf16_rows(const std::string& tensor) const;
  // Replaces tensors: `values` returns row-major fp32 in backend memory, or null for a tensor that stays as it is.
  // Nothing else may use the model meanwhile.
  void write(const std::function<const float*(const std::string& tensor)>& values);

 private:
  // Rows of a Linear's matrix in fp32, with the adapters beside them.
  std::vector<float> read_rows(const Linear& linear, int64_t first, int64_t rows) const;
  void write_matrix(const std::vector<const WeightLocation*>& stacked,
                    const std::function<const float*(const std::string& tensor)>& values);
  void write_table(const WeightLocation& location, const float* from);
  void write_vector(WeightLocation& location, const float* from);

  Backend& backend_;
  std::vector<WeightLocation> locations_;
  int64_t parameters_ = 0, planner_parameters_ = 0;
  size_t bytes_ = 0;
};

}  // namespace dultra
