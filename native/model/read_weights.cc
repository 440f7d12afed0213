// Weights out of a checkpoint: which tensors of the table make each matrix and vector of the model.
#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>

#include "model/weights.h"

namespace dultra {

namespace {

constexpr int64_t kPiece = int64_t(1) << 22;  // numbers that are converted at a time in host memory

// Reads tensors of the table, counts them, builds what the backend multiplies with, and notes where everything is.
class Reader {
 public:
  Reader(const ModelConfig& config, Backend& backend, const Checkpoint& checkpoint, const WeightOptions& options,
         const std::atomic<bool>* cancel, LoadProgress* progress, Weights* weights)
      : weights_(weights),
        backend_(backend),
        checkpoint_(checkpoint),
        options_(options),
        cancel_(cancel),
        progress_(progress),
        table_(tensor_table(config)) {
    if (progress_) progress_->total = checkpoint.bytes();
    for (const TensorSpec& spec : table_)
      by_role_[{spec.role, spec.bias, spec.planner, spec.layer, spec.expert}] = &spec;
  }

  int64_t parameters = 0;
  size_t bytes = 0;
  std::vector<WeightLocation> locations;
  // Which of the table's tensors the roles stand for.
  bool planner = false;
  int layer = -1;
  int expert = -1;

  // A matrix stacked from the tensors of `roles`, and its bias where the table has one. `count`: false where the
  // tensor was counted already.
  void linear(Linear& into, const std::vector<TensorRole>& roles, bool count = true) {
    std::vector<Part> weights, biases;
    for (TensorRole role : roles) {
      const TensorSpec& spec = get(role);
      weights.push_back({&spec, 0, spec.shape[0]});
      if (const TensorSpec* bias = find(role, true)) biases.push_back({bias, 0, bias->shape[0]});
    }
    matrix(into, weights, count);
    if (!biases.empty()) vector(into.bias, biases);
  }
  // In fp32, whatever the products of others are computed in.
  void wide_linear(Linear& into, TensorRole role) {
    const TensorSpec& spec = get(role);
    matrix(into, {{&spec, 0, spec.shape[0]}}, true, 1, true);
  }
  // The matrices of all experts, each stacked from the tensors of `roles`.
  void expert_linear(Linear& into, const std::vector<TensorRole>& roles, int experts) {
    std::vector<Part> parts;
    for (expert = 0; expert < experts; ++expert)
      for (TensorRole role : roles) {
        const TensorSpec& spec = get(role);
        parts.push_back({&spec, 0, spec.shape[0]});
      }
    expert = -1;
    matrix(into, parts, true, experts);
  }
  // Rows [first, first + rows) of a role's matrix and bias, with `offset` added to the bias.
  void linear_rows(Linear& into, TensorRole role, int64_t first, int64_t rows, float offset) {
    matrix(into, {{&get(role), first, rows}}, true);
    vector(into.bias, {{&get(role, true), first, rows}}, offset);
  }
  void vector(Buffer& into, TensorRole role, bool bias = false) {
    const TensorSpec& spec = get(role, bias);
    vector(into, {{&spec, 0, spec.elements()}});
  }

  void number(float& into, TensorRole role, bool bias) {
    const TensorSpec& spec = get(role, bias);
    const auto tensor = checkpoint_.get(spec.name, spec.shape);
    into = read(tensor, 0, 1)[0];
    parameters += 1;
    advance(tensor, 1);
    WeightLocation& location = add(spec, WeightLocation::Kind::kNumber, 0, 1);
    location.number = &into;
  }

  // The embedding table: only ever gathered from, so its storage type costs memory alone; with a narrower `storage` it
  // is narrowed too.
  void table(Buffer& into, DType& dtype, TensorRole role) {
    const TensorSpec& spec = get(role);
    const auto tensor = checkpoint_.get(spec.name, spec.shape);
    dtype = tensor.ref->dtype;
    if (const BlockType type = type_of(tensor, role); type != BlockType::kNone) {
      Weights& weights = *weights_;
      weights.embedding_blocks =
          backend_.make_block_matrix({block_part(tensor, type, 0, spec.shape[0])}, spec.shape[1], 1, options_.int8);
      if (weights.embedding_blocks) {
        parameters += spec.elements();
        bytes += weights.embedding_blocks->bytes();
        advance(tensor, spec.elements());
        add(spec, WeightLocation::Kind::kTable, 0, spec.shape[0]).vector = &into;
        return;
      }
    }
    if (tensor.ref->blocks != BlockType::kNone) {
      dtype = backend_.compute() == Compute::kBF16 || (!options_.keep_storage && options_.storage == DType::kBF16)
                  ? DType::kBF16
                  : DType::kF32;
      decode_table(into, tensor, dtype);
    } else if (!options_.keep_storage && options_.storage == DType::kBF16 && dtype == DType::kF32) {
      dtype = DType::kBF16;
      narrow(into, tensor);
    } else {
      into = Buffer(backend_, size_t(tensor.ref->end - tensor.ref->begin));
      backend_.upload(into.as<void>(), tensor.data, into.bytes());
    }
    parameters += spec.elements();
    bytes += into.bytes();
    advance(tensor, spec.elements());
    WeightLocation& location = add(spec, WeightLocation::Kind::kTable, 0, spec.shape[0]);
    location.vector = &into;
    checkpoint_.forget(tensor);
  }

  Buffer upload(const std::vector<float>& values) {
    Buffer buffer(backend_, values.size() * 4);
    backend_.upload(buffer.as<void>(), values.data(), values.size() * 4);
    return buffer;
  }

 private:
  struct Part {
    const TensorSpec* spec;
    int64_t first, rows;
    bool whole() const { return rows == spec->shape[0]; }
  };

  const TensorSpec* find(TensorRole role, bool bias) const {
    const auto found = by_role_.find({role, bias, planner, layer, expert});
    return found == by_role_.end() ? nullptr : found->second;
  }
  const TensorSpec& get(TensorRole role, bool bias = false) const {
    const TensorSpec* spec = find(role, bias);
    if (!spec) throw Error(ErrorCode::kInternal, "weights: the tensor table lacks a role");
    return *spec;
  }

  void matrix(Linear& into, const std::vector<Part>& stacked, bool count, int experts = 1, bool wide = false) {
    check_cancelled(cancel_);
    if (block_matrix(into, stacked, count, experts, wide)) return;
    std::vector<MatrixPart> parts;
    std::vector<Checkpoint::Tensor> tensors;
    std::vector<std::vector<float>> copies;  // of data that its file does not align (safetensors promises nothing)
    DType storage = options_.storage;
    int64_t row = 0;
    const int64_t cols = stacked[0].spec->shape[1];
    for (const Part& part : stacked) {
      const auto tensor = checkpoint_.get(part.spec->name, part.spec->shape);
      // Blocks become fp32 on their way.
      const DType dtype = tensor.ref->blocks == BlockType::kNone ? tensor.ref->dtype : DType::kF32;
      parts.push_back({aligned(tensor, part.first * cols, part.rows * cols, &copies), dtype, part.rows});
      tensors.push_back(tensor);
      if (options_.keep_storage) storage = parts.size() == 1 || storage == dtype ? dtype : DType::kF32;
      if (count) parameters += part.rows * cols;
      WeightLocation& location = add(*part.spec, WeightLocation::Kind::kMatrix, part.first, part.rows);
      location.linear = &into;
      location.at = row;
      row += part.rows;
    }
    if (wide)
      storage = DType::kF32;
    else if (backend_.compute() == Compute::kBF16)
      storage = DType::kBF16;
    into.matrix = experts > 1 ? backend_.make_expert_matrix(parts, cols, storage, experts)
                              : backend_.make_matrix(parts, cols, storage);
    bytes += into.matrix->bytes();
    for (size_t i = 0; i < stacked.size(); ++i) {
      if (count) advance(tensors[i], stacked[i].rows * cols);
      if (stacked[i].whole()) checkpoint_.forget(tensors[i]);
    }
  }

  // What a tensor is held as in blocks: as its file has it, or quantised now; kNone: as plain numbers.
  BlockType type_of(const Checkpoint::Tensor& tensor, TensorRole role) const {
    if (tensor.ref->blocks != BlockType::kNone) return options_.keep_blocks ? tensor.ref->blocks : BlockType::kNone;
    if (options_.quantise == BlockType::kNone || planner || tensor.ref->shape.size() != 2) return BlockType::kNone;
    if (tensor.ref->shape[1] % block_layout(options_.quantise).values != 0) return BlockType::kNone;
    return role == TensorRole::kEmbedding || role == TensorRole::kHead ? BlockType::kQ8_0 : options_.quantise;
  }

  // Rows of a tensor in blocks: where they are in its file, or as they are quantised here.
  BlockPart block_part(const Checkpoint::Tensor& tensor, BlockType type, int64_t first, int64_t rows) {
    const int64_t cols = tensor.ref->shape[1], row_bytes = block_row_bytes(type, cols);
    if (tensor.ref->blocks == type) {
      // Rows in an order of their own are those of a whole tensor.
      const int64_t from = tensor.ref->heads > 0 ? 0 : first;
      return {static_cast<const uint8_t*>(tensor.data) + from * row_bytes, type, rows, tensor.ref->heads, tensor.owner};
    }
    auto blocks = std::make_shared<std::vector<uint8_t>>(size_t(rows * row_bytes));
    constexpr int64_t kRows = 64;
    std::vector<float> wide(size_t(std::min(kRows, rows) * cols));
    for (int64_t row = 0; row < rows; row += kRows) {
      check_cancelled(cancel_);
      const int64_t n = std::min(kRows, rows - row);
      tensor.read(wide.data(), (first + row) * cols, n * cols);
      encode_blocks(blocks->data() + row * row_bytes, wide.data(), type, n * cols);
    }
    const uint8_t* data = blocks->data();
    return {data, type, rows, 0, std::move(blocks)};
  }

  // A matrix that stays in blocks. False where a part of it is none, or the backend has no products with them.
  bool block_matrix(Linear& into, const std::vector<Part>& stacked, bool count, int experts, bool wide) {
    if (wide) return false;
    std::vector<Checkpoint::Tensor> tensors;
    for (const Part& part : stacked) {
      tensors.push_back(checkpoint_.get(part.spec->name, part.spec->shape));
      if (type_of(tensors.back(), part.spec->role) == BlockType::kNone) return false;
    }
    std::vector<BlockPart> parts;
    for (size_t i = 0; i < stacked.size(); ++i)
      parts.push_back(
          block_part(tensors[i], type_of(tensors[i], stacked[i].spec->role), stacked[i].first, stacked[i].rows));
    auto matrix = backend_.make_block_matrix(parts, stacked[0].spec->shape[1], experts, options_.int8);
    if (!matrix) return false;
    into.matrix = std::move(matrix);
    bytes += into.matrix->bytes();
    int64_t row = 0;
    for (size_t i = 0; i < stacked.size(); ++i) {
      const Part& part = stacked[i];
      if (count) {
        parameters += part.rows * into.inputs();
        advance(tensors[i], part.rows * into.inputs());
      }
      WeightLocation& location = add(*part.spec, WeightLocation::Kind::kMatrix, part.first, part.rows);
      location.linear = &into;
      location.at = row;
      row += part.rows;
      if (tensors[i].ref->blocks == BlockType::kNone && part.whole()) checkpoint_.forget(tensors[i]);
    }
    return true;
  }

  // A table of blocks as plain numbers.
  void decode_table(Buffer& into, const Checkpoint::Tensor& tensor, DType dtype) {
    const int64_t cols = tensor.ref->shape[1], most = std::max<int64_t>(1, kPiece / cols);
    into = Buffer(backend_, size_t(tensor.elements) * dtype_size(dtype));
    std::vector<float> wide;
    std::vector<uint16_t> narrowed;
    for (int64_t row = 0; row < tensor.ref->shape[0]; row += most) {
      check_cancelled(cancel_);
      const int64_t first = row * cols, n = std::min(most, tensor.ref->shape[0] - row) * cols;
      wide.resize(size_t(n));
      tensor.read(wide.data(), first, n);
      if (dtype == DType::kF32) {
        backend_.upload(into.as() + first, wide.data(), wide.size() * 4);
        continue;
      }
      narrowed.resize(wide.size());
      std::transform(wide.begin(), wide.end(), narrowed.begin(), f32_to_bf16);
      backend_.upload(into.as<uint16_t>() + first, narrowed.data(), narrowed.size() * 2);
    }
  }

  // Vectors laid end to end in fp32, each number plus `offset`.
  void vector(Buffer& into, const std::vector<Part>& stacked, float offset = 0) {
    std::vector<float> all;
    for (const Part& part : stacked) {
      const auto tensor = checkpoint_.get(part.spec->name, part.spec->shape);
      const std::vector<float> values = read(tensor, part.first, part.rows);
      advance(tensor, part.rows);
      WeightLocation& location = add(*part.spec, WeightLocation::Kind::kVector, part.first, part.rows);
      location.vector = &into;
      location.at = int64_t(all.size());
      location.offset = offset;
      if (offset != 0) location.exact = values;
      for (float x : values) all.push_back(x + offset);
    }
    into = upload(all);
    parameters += int64_t(all.size());
    bytes += all.size() * 4;
  }

  // fp32 numbers as bf16.
  void narrow(Buffer& into, const Checkpoint::Tensor& tensor) {
    into = Buffer(backend_, size_t(tensor.elements) * 2);
    std::vector<uint16_t> piece;
    for (int64_t first = 0; first < tensor.elements; first += kPiece) {
      check_cancelled(cancel_);
      piece.resize(size_t(std::min(kPiece, tensor.elements - first)));
      for (size_t i = 0; i < piece.size(); ++i) {
        float value;
        std::memcpy(&value, static_cast<const uint8_t*>(tensor.data) + (size_t(first) + i) * 4, 4);
        piece[i] = f32_to_bf16(value);
      }
      backend_.upload(into.as<uint16_t>() + first, piece.data(), piece.size() * 2);
    }
  }

  WeightLocation& add(const TensorSpec& spec, WeightLocation::Kind kind, int64_t first, int64_t rows) {
    WeightLocation location;
    location.tensor = spec.name;
    location.shape = spec.shape;
    location.planner = spec.planner;
    location.kind = kind;
    location.first = first;
    location.rows = rows;
    locations.push_back(std::move(location));
    return locations.back();
  }

  static const void* aligned(const Checkpoint::Tensor& tensor, int64_t first, int64_t count,
                             std::vector<std::vector<float>>* copies) {
    const size_t size = dtype_size(tensor.ref->dtype);
    if (tensor.ref->blocks != BlockType::kNone || tensor.ref->heads > 0) {
      copies->emplace_back(size_t(count));
      tensor.read(copies->back().data(), first, count);
      if (tensor.ref->blocks != BlockType::kNone || tensor.ref->dtype == DType::kF32) return copies->back().data();
      // Back to the type of the file, which is exact.
      std::vector<float>& wide = copies->back();
      auto* narrowed = reinterpret_cast<uint16_t*>(wide.data());
      for (size_t i = 0; i < wide.size(); ++i) {
        const uint16_t half = tensor.ref->dtype == DType::kBF16 ? f32_to_bf16(wide[i]) : f32_to_f16(wide[i]);
        std::memcpy(narrowed + i, &half, 2);
      }
      return narrowed;
    }
    const auto* data = static_cast<const uint8_t*>(tensor.data) + size_t(first) * size;
    if (reinterpret_cast<uintptr_t>(data) % size == 0) return data;
    copies->emplace_back(size_t(count) * size / 4 + 1);
    std::memcpy(copies->back().data(), data, size_t(count) * size);
    return copies->back().data();
  }

  static std::vector<float> read(const Checkpoint::Tensor& tensor, int64_t first, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    tensor.read(values.data(), first, count);
    return values;
  }

  // Bytes of the file, as they are counted in all.
  void advance(const Checkpoint::Tensor& tensor, int64_t elements) {
    if (progress_)
      progress_->loaded +=
          uint64_t(double(tensor.ref->end - tensor.ref->begin) / double(tensor.elements) * double(elements) + 0.5);
  }

  Weights* const weights_;
  Backend& backend_;
  const Checkpoint& checkpoint_;
  const WeightOptions& options_;
  const std::atomic<bool>* cancel_;
  LoadProgress* const progress_;
  const std::vector<TensorSpec> table_;
  std::map<std::tuple<TensorRole, bool, bool, int, int>, const TensorSpec*> by_role_;
};

void read_mlp(Reader& reader, MlpWeights& mlp) {
  reader.linear(mlp.gate_up, {TensorRole::kGate, TensorRole::kUp});
  reader.linear(mlp.down, {TensorRole::kDown});
}

void read_block(Reader& reader, const ModelConfig& config, BlockWeights& block) {
  reader.vector(block.attn_norm, TensorRole::kAttnNorm);
  reader.vector(block.mlp_norm, TensorRole::kMlpNorm);
  if (config.qk_norm) {
    reader.vector(block.attention.q_norm, TensorRole::kQNorm);
    reader.vector(block.attention.k_norm, TensorRole::kKNorm);
  }
  reader.linear(block.attention.q, {TensorRole::kQ});
  reader.linear(block.attention.kv, {TensorRole::kK, TensorRole::kV});
  reader.linear(block.attention.out, {TensorRole::kAttnOut});
  if (reader.planner || !config.has_experts(reader.layer)) return read_mlp(reader, block.mlp);
  ExpertsWeights& experts = block.experts;
  reader.wide_linear(experts.router, TensorRole::kRouter);
  if (config.experts.bias != ExpertBias::kNone) reader.vector(experts.bias, TensorRole::kRouterBias, true);
  reader.expert_linear(experts.gate_up, {TensorRole::kExpertGate, TensorRole::kExpertUp}, config.experts.count);
  reader.expert_linear(experts.down, {TensorRole::kExpertDown}, config.experts.count);
  if (config.experts.shared_hidden > 0) read_mlp(reader, experts.shared);
}

void read_blocks(Reader& reader, const ModelConfig& config, std::vector<BlockWeights>& blocks, int layers) {
  blocks.resize(size_t(layers));  // before a location points into it
  for (reader.layer = 0; reader.layer < layers; ++reader.layer)
    read_block(reader, config, blocks[size_t(reader.layer)]);
  reader.layer = -1;
}

void read_planner(Reader& reader, PlannerWeights& planner, const ModelConfig& config) {
  const int64_t c = config.hidden;
  reader.planner = true;
  read_blocks(reader, config, planner.blocks, config.planner.layers);
  if (config.planner.use_adaln) {
    reader.linear(planner.time_in, {TensorRole::kTimeIn});
    reader.linear(planner.time_out, {TensorRole::kTimeOut});
    if (config.planner.use_mask_embeddings)
      reader.vector(planner.mask_embedding, TensorRole::kMaskEmbedding);
    else
      planner.mask_embedding = reader.upload(std::vector<float>(size_t(2 * c), 0.0f));
    reader.linear_rows(planner.scale1, TensorRole::kModulation1, 0, c, 1.0f);
    reader.linear_rows(planner.shift1, TensorRole::kModulation1, c, c, 0.0f);
    reader.linear_rows(planner.scale2, TensorRole::kModulation2, 0, c, 1.0f);
    reader.linear_rows(planner.shift2, TensorRole::kModulation2, c, c, 0.0f);
  } else {
    reader.vector(planner.norm_weight, TensorRole::kPlannerNorm);
    reader.vector(planner.norm_bias, TensorRole::kPlannerNorm, true);
  }
  reader.vector(planner.linear_weight, TensorRole::kPlannerLinear);
  reader.number(planner.linear_bias, TensorRole::kPlannerLinear, true);
}

}  // namespace

Weights::Weights(const ModelConfig& config, Backend& backend, const Checkpoint& checkpoint,
                 const WeightOptions& options, const std::atomic<bool>* cancel, LoadProgress* progress)
    : backend_(backend) {
  Reader reader(config, backend, checkpoint, options, cancel, progress, this);
  reader.table(embedding, embedding_dtype, TensorRole::kEmbedding);
  reader.linear(head, {config.weight_tying ? TensorRole::kEmbedding : TensorRole::kHead}, !config.weight_tying);
  read_blocks(reader, config, blocks, config.layers);
  reader.vector(final_norm, TensorRole::kFinalNorm);
  parameters_ = reader.parameters;
  if (config.planner.present) read_planner(reader, planner, config);
  planner_parameters_ = reader.parameters - parameters_;
  parameters_ = reader.parameters;
  bytes_ = reader.bytes;
  locations_ = std::move(reader.locations);
}

}  // namespace dultra
