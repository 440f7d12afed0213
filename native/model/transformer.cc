#include "model/transformer.h"

#include <algorithm>
#include <cmath>

namespace dultra {

namespace {

constexpr int64_t kTimeFeatures = 256;  // width of the planner's timestep sinusoid
constexpr float kLayerNormEps = 1e-4f;  // of the planner's AdaLN and affine LayerNorm
constexpr int64_t kMlpRows = 1024;      // rows of the MLP computed at a time, to bound its (rows, 2F) scratch

// Workspace slots. A slot is live only inside the function that asked for it, but for those that name a result.
enum Slot : size_t {
  kNormed,
  kNormedSubset,
  kQ,
  kKv,
  kAttention,
  kGateUp,
  kMlp,
  kResidual,
  kPlannerState,
  kPlannerOut,
  kTime,
  kCondition,
  kMul1,
  kAdd1,
  kMul2,
  kAdd2,
  kConditionIds,
  kGroups
};

// Reads tensors, counts them, and builds what the backend wants.
class WeightReader {
 public:
  WeightReader(Backend& backend, const Checkpoint& checkpoint, const WeightOptions& options, const std::atomic<bool>* cancel)
      : backend_(backend), checkpoint_(checkpoint), options_(options), cancel_(cancel) {}

  int64_t parameters = 0;
  size_t bytes = 0;

  struct Rows {
    std::string name;
    int64_t rows;
    int64_t skip = 0, all = 0;  // take `rows` rows after `skip` of a tensor of `all` rows (0: all of it)
  };

  std::unique_ptr<Matrix> matrix(const std::vector<Rows>& pieces, int64_t cols, bool count = true) {
    check_cancelled(cancel_);
    std::vector<MatrixPart> parts;
    std::vector<Checkpoint::Tensor> tensors;
    std::vector<std::vector<float>> aligned;  // copies of data that its file does not align (safetensors promises nothing)
    DType storage = options_.storage;
    for (const Rows& piece : pieces) {
      const auto tensor = checkpoint_.get(piece.name, {piece.all ? piece.all : piece.rows, cols});
      const DType dtype = tensor.ref->dtype;
      const auto* data = static_cast<const uint8_t*>(tensor.data) + size_t(piece.skip * cols) * dtype_size(dtype);
      if (reinterpret_cast<uintptr_t>(data) % dtype_size(dtype) != 0) {
        const size_t size = size_t(piece.rows * cols) * dtype_size(dtype);
        aligned.emplace_back(size / 4 + 1);
        std::memcpy(aligned.back().data(), data, size);
        data = reinterpret_cast<const uint8_t*>(aligned.back().data());
      }
      parts.push_back({data, dtype, piece.rows});
      tensors.push_back(tensor);
      if (options_.keep_storage) storage = parts.size() == 1 || storage == dtype ? dtype : DType::kF32;
      if (count) parameters += piece.rows * cols;
    }
    if (options_.compute == Compute::kBF16) storage = DType::kBF16;
    auto made = backend_.make_matrix(parts, cols, storage, options_.compute);
    bytes += made->bytes();
    for (size_t i = 0; i < pieces.size(); ++i)
      if (!pieces[i].all) checkpoint_.forget(tensors[i]);
    return made;
  }

  // A vector in fp32, each element plus `offset`.
  Buffer vector(const std::string& name, const std::vector<int64_t>& shape, float offset = 0, int64_t skip = 0, int64_t count = -1) {
    const auto tensor = checkpoint_.get(name, shape);
    if (count < 0) count = tensor.elements;
    std::vector<float> values(static_cast<size_t>(count));
    std::vector<uint8_t> aligned(static_cast<const uint8_t*>(tensor.data),
                                 static_cast<const uint8_t*>(tensor.data) + (tensor.ref->end - tensor.ref->begin));
    for (int64_t i = 0; i < count; ++i) values[size_t(i)] = load_as_f32(aligned.data(), tensor.ref->dtype, size_t(skip + i)) + offset;
    parameters += count;
    bytes += size_t(count) * 4;
    return upload(values);
  }

  Buffer upload(const std::vector<float>& values) {
    Buffer buffer(backend_, values.size() * 4);
    backend_.upload(buffer.as<void>(), values.data(), values.size() * 4);
    return buffer;
  }

  BlockWeights block(const std::string& prefix, const ModelConfig& config) {
    const int64_t c = config.hidden, q = int64_t(config.heads) * config.head_dim(), kv = int64_t(config.kv_heads) * config.head_dim();
    BlockWeights w;
    w.attn_norm = vector(prefix + "attn_norm.weight", {c});
    w.ff_norm = vector(prefix + "ff_norm.weight", {c});
    w.q = matrix({{prefix + "q_proj.weight", q}}, c);
    w.kv = matrix({{prefix + "k_proj.weight", kv}, {prefix + "v_proj.weight", kv}}, c);
    w.attn_out = matrix({{prefix + "attn_out.weight", c}}, q);
    w.gate_up = matrix({{prefix + "ff_proj.weight", config.mlp_hidden}, {prefix + "up_proj.weight", config.mlp_hidden}}, c);
    w.ff_out = matrix({{prefix + "ff_out.weight", c}}, config.mlp_hidden);
    return w;
  }

 private:
  Backend& backend_;
  const Checkpoint& checkpoint_;
  const WeightOptions& options_;
  const std::atomic<bool>* cancel_;
};

}  // namespace

void check_cancelled(const std::atomic<bool>* cancel) {
  if (cancel && cancel->load(std::memory_order_relaxed)) throw Error(ErrorCode::kAborted, "the work was cancelled");
}

Packing Packing::from_lengths(const std::vector<int32_t>& lengths) {
  Packing packing;
  packing.offsets.push_back(0);
  for (int32_t length : lengths) {
    for (int32_t i = 0; i < length; ++i) packing.positions.push_back(i);
    packing.offsets.push_back(packing.offsets.back() + length);
  }
  return packing;
}

Transformer::Transformer(const ModelConfig& config, Backend& backend, const Checkpoint& checkpoint, const WeightOptions& options,
                         const std::atomic<bool>* cancel)
    : config_(config), backend_(backend) {
  WeightReader reader(backend, checkpoint, options, cancel);
  const int64_t c = config.hidden, v = config.embedding_size;
  const std::string base = "model.transformer.";
  const auto table = checkpoint.get(base + "wte.weight", {v, c});
  // The table is only ever gathered from, so its storage type costs memory alone; with a narrower `storage` it is narrowed too.
  embedding_dtype_ = table.ref->dtype;
  if (!options.keep_storage && options.storage == DType::kBF16 && embedding_dtype_ == DType::kF32) {
    embedding_dtype_ = DType::kBF16;
    embedding_ = Buffer(backend, size_t(v * c) * 2);
    std::vector<uint16_t> row(static_cast<size_t>(c));
    for (int64_t r = 0; r < v; ++r) {
      for (int64_t i = 0; i < c; ++i) {
        float value;
        std::memcpy(&value, static_cast<const uint8_t*>(table.data) + size_t(r * c + i) * 4, 4);
        row[size_t(i)] = f32_to_bf16(value);
      }
      backend.upload(embedding_.as<uint16_t>() + r * c, row.data(), row.size() * 2);
    }
  } else {
    embedding_ = Buffer(backend, size_t(table.ref->end - table.ref->begin));
    backend.upload(embedding_.as<void>(), table.data, embedding_.bytes());
  }
  reader.parameters += v * c;
  reader.bytes += embedding_.bytes();
  const std::string head = config.weight_tying ? base + "wte.weight" : base + "ff_out.weight";
  head_ = reader.matrix({{head, v}}, c, !config.weight_tying);
  checkpoint.forget(table);
  for (int i = 0; i < config.layers; ++i) blocks_.push_back(reader.block(base + "blocks." + std::to_string(i) + ".", config));
  final_norm_ = reader.vector(base + "ln_f.weight", {c});
  parameters_ = reader.parameters;
  if (config.planner.present) {
    PlannerWeights& p = planner_;
    for (int i = 0; i < config.planner.layers; ++i) p.blocks.push_back(reader.block("mask_head." + std::to_string(i) + ".", config));
    if (config.planner.use_adaln) {
      p.time_in = reader.matrix({{"time_embedding.mlp.0.weight", c}}, kTimeFeatures);
      p.time_in_bias = reader.vector("time_embedding.mlp.0.bias", {c});
      p.time_out = reader.matrix({{"time_embedding.mlp.2.weight", c}}, c);
      p.time_out_bias = reader.vector("time_embedding.mlp.2.bias", {c});
      p.mask_embedding = config.planner.use_mask_embeddings ? reader.vector("mask_embedding.weight", {2, c})
                                                            : reader.upload(std::vector<float>(size_t(2 * c), 0.0f));
      const auto modulation = [&](const std::string& name, std::unique_ptr<Matrix>& scale, Buffer& scale_bias, std::unique_ptr<Matrix>& shift,
                                  Buffer& shift_bias) {
        scale = reader.matrix({{name + ".weight", c, 0, 2 * c}}, c);
        shift = reader.matrix({{name + ".weight", c, c, 2 * c}}, c);
        scale_bias = reader.vector(name + ".bias", {2 * c}, 1.0f, 0, c);
        shift_bias = reader.vector(name + ".bias", {2 * c}, 0.0f, c, c);
      };
      modulation("norm_out_1.modulation", p.scale1, p.scale1_bias, p.shift1, p.shift1_bias);
      modulation("norm_out_2.modulation", p.scale2, p.scale2_bias, p.shift2, p.shift2_bias);
    } else {
      p.norm_weight = reader.vector("norm_out_2.weight", {c});
      p.norm_bias = reader.vector("norm_out_2.bias", {c});
    }
    p.linear_weight = reader.vector("mask_linear.weight", {1, c});
    const auto bias = checkpoint.get("mask_linear.bias", {1});
    alignas(4) uint8_t aligned[4] = {0, 0, 0, 0};
    std::memcpy(aligned, bias.data, dtype_size(bias.ref->dtype));
    p.linear_bias = load_as_f32(aligned, bias.ref->dtype, 0);
    reader.parameters += 1;
    planner_parameters_ = reader.parameters - parameters_;
    parameters_ = reader.parameters;
  }
  weight_bytes_ = reader.bytes;
}

void Transformer::block_forward(const BlockWeights& w, float* x, const Packing& packing, const RowSubset* subset, float* out, Workspace& ws) const {
  const int64_t n = packing.tokens(), m = subset ? subset->size() : n, c = config_.hidden, f = config_.mlp_hidden;
  const int d = config_.head_dim();
  const int64_t q_width = int64_t(config_.heads) * d, kv_width = int64_t(config_.kv_heads) * d;
  const int32_t* q_positions = subset ? subset->positions.data() : packing.positions.data();

  float* normed = ws.get(kNormed, n * c);
  backend_.rmsnorm_forward(normed, x, w.attn_norm.as(), n, c, config_.rms_norm_eps);
  float* kv = ws.get(kKv, n * 2 * kv_width);  // (N, 2, Hk, D)
  backend_.linear_forward(kv, 2 * kv_width, normed, n, *w.kv, nullptr, false);
  backend_.rope_forward(kv, 2 * kv_width, packing.positions.data(), n, config_.kv_heads, d, config_.rope_theta);

  float* residual = x;  // (M, C)
  if (subset) {
    float* gathered = ws.get(kNormedSubset, m * c);
    backend_.gather_rows(gathered, normed, subset->rows.data(), m, c);
    normed = gathered;
    backend_.gather_rows(out, x, subset->rows.data(), m, c);
    residual = out;
  }
  float* q = ws.get(kQ, m * q_width);  // (M, H, D)
  backend_.linear_forward(q, q_width, normed, m, *w.q, nullptr, false);
  backend_.rope_forward(q, q_width, q_positions, m, config_.heads, d, config_.rope_theta);

  float* attention = ws.get(kAttention, m * q_width);
  AttentionArgs args{};
  args.q = q;
  args.k = kv;
  args.v = kv + kv_width;
  args.out = attention;
  args.q_stride = q_width;
  args.kv_stride = 2 * kv_width;
  args.out_stride = q_width;
  args.heads = config_.heads;
  args.kv_heads = config_.kv_heads;
  args.head_dim = d;
  args.scale = 1.0f / std::sqrt(float(d));
  args.batch = packing.batch();
  args.q_offsets = subset ? subset->offsets.data() : packing.offsets.data();
  args.k_offsets = packing.offsets.data();
  args.q_positions = q_positions;
  args.mask = MaskKind::kBidirectional;
  backend_.attention_forward(args);
  backend_.linear_forward(residual, c, attention, m, *w.attn_out, nullptr, true);

  normed = ws.get(kNormed, m * c);
  backend_.rmsnorm_forward(normed, residual, w.ff_norm.as(), m, c, config_.rms_norm_eps);
  const int64_t rows = std::min(m, kMlpRows);
  float* gate_up = ws.get(kGateUp, rows * 2 * f);
  float* mlp = ws.get(kMlp, rows * f);
  for (int64_t i = 0; i < m; i += rows) {
    const int64_t count = std::min(rows, m - i);
    backend_.linear_forward(gate_up, 2 * f, normed + i * c, count, *w.gate_up, nullptr, false);
    backend_.swiglu_forward(mlp, gate_up, count, f);
    backend_.linear_forward(residual + i * c, c, mlp, count, *w.ff_out, nullptr, true);
  }
}

void Transformer::hidden_forward(float* hidden, const int32_t* ids, const Packing& packing, const RowSubset* subset, Workspace& ws,
                                 const std::atomic<bool>* cancel) const {
  const int64_t n = packing.tokens(), c = config_.hidden;
  const int64_t m = subset ? subset->size() : n;
  if (m == 0) return;
  float* x = ws.get(kResidual, (n + (subset ? m : 0)) * c);
  backend_.embedding_forward(x, embedding_.as<void>(), embedding_dtype_, ids, n, c);
  float* last = x;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    check_cancelled(cancel);
    const bool narrowed = subset && i + 1 == blocks_.size();
    if (narrowed) last = x + n * c;
    block_forward(blocks_[i], x, packing, narrowed ? subset : nullptr, last, ws);
  }
  if (subset && blocks_.empty()) {
    last = x + n * c;
    backend_.gather_rows(last, x, subset->rows.data(), m, c);
  }
  backend_.rmsnorm_forward(hidden, last, final_norm_.as(), m, c, config_.rms_norm_eps);
}

void Transformer::head_forward(float* logits, const float* hidden, int64_t m) const {
  backend_.linear_forward(logits, config_.embedding_size, hidden, m, *head_, nullptr, false);
}

void Transformer::planner_forward(float* logit, const float* hidden, const std::vector<float>& timestep, const uint8_t* candidate,
                                  const Packing& packing, const RowSubset& subset, Workspace& ws, const std::atomic<bool>* cancel) const {
  if (!config_.planner.present) throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
  const PlannerWeights& p = planner_;
  const int64_t n = packing.tokens(), m = subset.size(), c = config_.hidden;
  const int64_t b = packing.batch();
  if (m == 0) return;
  float* y = ws.get(kPlannerState, n * c);
  const float *mul2 = p.norm_weight.as(), *add2 = p.norm_bias.as();
  const int32_t* subset_groups = nullptr;
  if (config_.planner.use_adaln) {
    // Only two conditions occur per sequence (candidate or not), so the modulations are 2B rows, not N.
    std::vector<float> features(size_t(b * kTimeFeatures));
    for (int64_t i = 0; i < b; ++i)
      for (int64_t k = 0; k < kTimeFeatures / 2; ++k) {
        const float frequency = std::exp(-std::log(10000.0f) * float(k) / float(kTimeFeatures / 2));
        const float angle = timestep[size_t(i)] * frequency;
        features[size_t(i * kTimeFeatures + k)] = std::cos(angle);
        features[size_t(i * kTimeFeatures + kTimeFeatures / 2 + k)] = std::sin(angle);
      }
    float* time = ws.get(kTime, b * (kTimeFeatures + c) + 2 * b * c);
    float* time_hidden = time + b * kTimeFeatures;  // (B, C)
    float* time_twice = time_hidden + b * c;        // (2B, C)
    backend_.upload(time, features.data(), features.size() * 4);
    backend_.linear_forward(time_hidden, c, time, b, *p.time_in, p.time_in_bias.as(), false);
    backend_.silu_forward(time_hidden, b * c);
    std::vector<int32_t> index(size_t(4 * b));  // row of time_hidden, then row of mask_embedding
    for (int64_t i = 0; i < 2 * b; ++i) {
      index[size_t(i)] = int32_t(i / 2);
      index[size_t(2 * b + i)] = int32_t(i % 2);
    }
    int32_t* index_memory = ws.get<int32_t>(kConditionIds, 4 * b);
    backend_.upload(index_memory, index.data(), index.size() * 4);
    backend_.gather_rows(time_twice, time_hidden, index_memory, 2 * b, c);
    float* condition = ws.get(kCondition, 2 * b * c);
    backend_.gather_rows(condition, p.mask_embedding.as(), index_memory + 2 * b, 2 * b, c);
    backend_.linear_forward(condition, c, time_twice, 2 * b, *p.time_out, p.time_out_bias.as(), true);
    float *mul1 = ws.get(kMul1, 2 * b * c), *add1 = ws.get(kAdd1, 2 * b * c);
    float *mul2_memory = ws.get(kMul2, 2 * b * c), *add2_memory = ws.get(kAdd2, 2 * b * c);
    backend_.linear_forward(mul1, c, condition, 2 * b, *p.scale1, p.scale1_bias.as(), false);
    backend_.linear_forward(add1, c, condition, 2 * b, *p.shift1, p.shift1_bias.as(), false);
    backend_.linear_forward(mul2_memory, c, condition, 2 * b, *p.scale2, p.scale2_bias.as(), false);
    backend_.linear_forward(add2_memory, c, condition, 2 * b, *p.shift2, p.shift2_bias.as(), false);
    std::vector<int32_t> groups(size_t(n + m));
    for (int64_t i = 0; i < b; ++i)
      for (int32_t r = packing.offsets[size_t(i)]; r < packing.offsets[size_t(i) + 1]; ++r)
        groups[size_t(r)] = int32_t(2 * i) + (candidate[r] ? 1 : 0);
    for (int64_t i = 0; i < m; ++i) groups[size_t(n + i)] = groups[size_t(subset.rows[size_t(i)])];
    int32_t* group_memory = ws.get<int32_t>(kGroups, n + m);
    backend_.upload(group_memory, groups.data(), groups.size() * 4);
    backend_.layernorm_forward(y, hidden, mul1, add1, group_memory, n, c, kLayerNormEps);
    mul2 = mul2_memory;
    add2 = add2_memory;
    subset_groups = group_memory + n;
  } else {
    std::vector<int32_t> all(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) all[size_t(i)] = int32_t(i);
    int32_t* all_memory = ws.get<int32_t>(kGroups, n);
    backend_.upload(all_memory, all.data(), all.size() * 4);
    backend_.gather_rows(y, hidden, all_memory, n, c);
  }
  float* out = ws.get(kPlannerOut, m * c);
  for (size_t i = 0; i < p.blocks.size(); ++i) {
    check_cancelled(cancel);
    const bool last = i + 1 == p.blocks.size();
    block_forward(p.blocks[i], y, packing, last ? &subset : nullptr, last ? out : y, ws);
  }
  if (p.blocks.empty()) backend_.gather_rows(out, y, subset.rows.data(), m, c);
  backend_.planner_score_forward(logit, out, mul2, add2, subset_groups, p.linear_weight.as(), p.linear_bias, m, c, kLayerNormEps);
}

}  // namespace dultra
