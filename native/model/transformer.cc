#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

namespace dultra {

namespace {

constexpr int64_t kMlpRows = 1024;  // rows of the MLP computed at a time, to bound its (rows, 2F) scratch

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
  kTimeSum,
  kTimeHidden,
  kTimeTwice,
  kCondition,
  kMul1,
  kAdd1,
  kMul2,
  kAdd2
};

// Reads tensors, counts them, builds what the backend wants, and lists where everything went.
class WeightReader {
 public:
  WeightReader(Backend& backend, const Checkpoint& checkpoint, const WeightOptions& options,
               const std::atomic<bool>* cancel, LoadProgress* progress)
      : backend_(backend), checkpoint_(checkpoint), options_(options), cancel_(cancel), progress_(progress) {
    if (progress_) progress_->total = checkpoint.bytes();
  }

  int64_t parameters = 0;
  size_t bytes = 0;
  bool planner = false;  // what follows belongs to the planner head
  std::vector<WeightSite> sites;

  struct Rows {
    std::string name;
    int64_t rows;
    int64_t skip = 0, all = 0;  // take `rows` rows after `skip` of a tensor of `all` rows (0: all of it)
  };

  void matrix(std::unique_ptr<Matrix>& into, const std::vector<Rows>& pieces, int64_t cols, bool count = true) {
    check_cancelled(cancel_);
    std::vector<MatrixPart> parts;
    std::vector<Checkpoint::Tensor> tensors;
    std::vector<std::vector<float>>
        aligned;  // copies of data that its file does not align (safetensors promises nothing)
    DType storage = options_.storage;
    int64_t matrix_row = 0;
    for (const Rows& piece : pieces) {
      const int64_t all = piece.all ? piece.all : piece.rows;
      const auto tensor = checkpoint_.get(piece.name, {all, cols});
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
      WeightSite& site = add_site(piece.name, {all, cols}, piece.skip, piece.rows);
      site.matrix = &into;
      site.matrix_row = matrix_row;
      matrix_row += piece.rows;
    }
    if (backend_.compute() == Compute::kBF16) storage = DType::kBF16;
    into = backend_.make_matrix(parts, cols, storage);
    bytes += into->bytes();
    for (const MatrixPart& part : parts)
      if (count) advance(part.rows * cols, part.dtype);
    for (size_t i = 0; i < pieces.size(); ++i)
      if (!pieces[i].all) checkpoint_.forget(tensors[i]);
  }

  // A vector in fp32, each element plus `offset`.
  void vector(Buffer& into, const std::string& name, const std::vector<int64_t>& shape, float offset = 0,
              int64_t skip = 0, int64_t count = -1) {
    const auto tensor = checkpoint_.get(name, shape);
    if (count < 0) count = tensor.elements;
    std::vector<float> values = read(tensor, skip, count);
    WeightSite& site = add_site(name, shape, skip, count);
    site.vector = &into;
    site.offset = offset;
    if (offset != 0) site.exact = values;
    for (float& x : values) x += offset;
    into = upload(values);
    parameters += count;
    bytes += size_t(count) * 4;
    advance(count, tensor.ref->dtype);
  }

  // Vectors laid end to end, as the rows of their matrices are.
  void stacked(Buffer& into, const std::vector<Rows>& pieces) {
    std::vector<float> all;
    for (const Rows& piece : pieces) {
      const auto tensor = checkpoint_.get(piece.name, {piece.rows});
      const std::vector<float> values = read(tensor, 0, piece.rows);
      advance(piece.rows, tensor.ref->dtype);
      WeightSite& site = add_site(piece.name, {piece.rows}, 0, piece.rows);
      site.vector = &into;
      site.vector_first = int64_t(all.size());
      all.insert(all.end(), values.begin(), values.end());
    }
    into = upload(all);
    parameters += int64_t(all.size());
    bytes += all.size() * 4;
  }

  void number(float& into, const std::string& name) {
    const auto tensor = checkpoint_.get(name, {1});
    into = read(tensor, 0, 1)[0];
    parameters += 1;
    advance(1, tensor.ref->dtype);
    add_site(name, {1}, 0, 1).number = &into;
  }

  // The embedding table: only ever gathered from, so its storage type costs memory alone; with a narrower `storage` it
  // is narrowed too.
  void table(Buffer& into, DType& dtype, const std::string& name, int64_t v, int64_t c) {
    const auto tensor = checkpoint_.get(name, {v, c});
    dtype = tensor.ref->dtype;
    if (!options_.keep_storage && options_.storage == DType::kBF16 && dtype == DType::kF32) {
      dtype = DType::kBF16;
      into = Buffer(backend_, size_t(v * c) * 2);
      // In pieces: the numbers go through host memory.
      std::vector<uint16_t> piece;
      const int64_t all = v * c;
      for (int64_t first = 0; first < all; first += kPiece) {
        check_cancelled(cancel_);
        piece.resize(size_t(std::min(kPiece, all - first)));
        for (size_t i = 0; i < piece.size(); ++i) {
          float value;
          std::memcpy(&value, static_cast<const uint8_t*>(tensor.data) + (size_t(first) + i) * 4, 4);
          piece[i] = f32_to_bf16(value);
        }
        backend_.upload(into.as<uint16_t>() + first, piece.data(), piece.size() * 2);
      }
    } else {
      into = Buffer(backend_, size_t(tensor.ref->end - tensor.ref->begin));
      backend_.upload(into.as<void>(), tensor.data, into.bytes());
    }
    parameters += v * c;
    bytes += into.bytes();
    advance(v * c, tensor.ref->dtype);
    WeightSite& site = add_site(name, {v, c}, 0, v);
    site.vector = &into;
    site.table = &dtype;
    checkpoint_.forget(tensor);
  }

  Buffer upload(const std::vector<float>& values) {
    Buffer buffer(backend_, values.size() * 4);
    backend_.upload(buffer.as<void>(), values.data(), values.size() * 4);
    return buffer;
  }

  void block(BlockWeights& w, const std::string& prefix, const ModelConfig& config) {
    const int64_t c = config.hidden, q = int64_t(config.heads) * config.head_dim(),
                  kv = int64_t(config.kv_heads) * config.head_dim();
    vector(w.attn_norm, prefix + "attn_norm.weight", {c});
    vector(w.ff_norm, prefix + "ff_norm.weight", {c});
    matrix(w.q, {{prefix + "q_proj.weight", q}}, c);
    matrix(w.kv, {{prefix + "k_proj.weight", kv}, {prefix + "v_proj.weight", kv}}, c);
    matrix(w.attn_out, {{prefix + "attn_out.weight", c}}, q);
    matrix(w.gate_up, {{prefix + "ff_proj.weight", config.mlp_hidden}, {prefix + "up_proj.weight", config.mlp_hidden}},
           c);
    matrix(w.ff_out, {{prefix + "ff_out.weight", c}}, config.mlp_hidden);
    if (config.qkv_bias) {
      stacked(w.q_bias, {{prefix + "q_proj.bias", q}});
      stacked(w.kv_bias, {{prefix + "k_proj.bias", kv}, {prefix + "v_proj.bias", kv}});
    }
    if (config.linear_bias) {
      stacked(w.attn_out_bias, {{prefix + "attn_out.bias", c}});
      stacked(w.gate_up_bias,
              {{prefix + "ff_proj.bias", config.mlp_hidden}, {prefix + "up_proj.bias", config.mlp_hidden}});
      stacked(w.ff_out_bias, {{prefix + "ff_out.bias", c}});
    }
  }

 private:
  WeightSite& add_site(const std::string& tensor, const std::vector<int64_t>& shape, int64_t first, int64_t rows) {
    WeightSite site;
    site.tensor = tensor;
    site.shape = shape;
    site.first = first;
    site.rows = rows;
    site.planner = planner;
    sites.push_back(std::move(site));
    return sites.back();
  }
  static std::vector<float> read(const Checkpoint::Tensor& tensor, int64_t skip, int64_t count) {
    const std::vector<uint8_t> aligned(
        static_cast<const uint8_t*>(tensor.data),
        static_cast<const uint8_t*>(tensor.data) + (tensor.ref->end - tensor.ref->begin));
    std::vector<float> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      values[size_t(i)] = load_as_f32(aligned.data(), tensor.ref->dtype, size_t(skip + i));
    return values;
  }

  void advance(int64_t elements, DType dtype) {
    if (progress_) progress_->loaded += uint64_t(elements) * dtype_size(dtype);
  }

  static constexpr int64_t kPiece = int64_t(1) << 22;
  Backend& backend_;
  const Checkpoint& checkpoint_;
  const WeightOptions& options_;
  const std::atomic<bool>* cancel_;
  LoadProgress* const progress_;
};

}  // namespace

void check_cancelled(const std::atomic<bool>* cancel) {
  if (cancel && cancel->load(std::memory_order_relaxed)) throw Error(ErrorCode::kAborted, "the work was cancelled");
}

Packing Packing::from_lengths(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> offsets{0}, positions;
  for (int32_t length : lengths) {
    for (int32_t i = 0; i < length; ++i) positions.push_back(i);
    offsets.push_back(offsets.back() + length);
  }
  return {std::move(offsets), std::move(positions), {}};
}

WholeRows::WholeRows(const KvPass& pass, const RowSubset& candidates) : pass_(pass) {
  const KvCache& cache = pass.cache();
  std::vector<int32_t> lengths;
  auto next = pass.slots().begin();
  for (int32_t row : pass.rows()) {
    lengths.push_back(cache.length(row));
    for (int32_t i = 0; i < cache.length(row); ++i) {
      slots.push_back(cache.offsets()[size_t(row)] + i);
      if (next == pass.slots().end() || *next != slots.back()) continue;
      fresh.push_back(int32_t(slots.size()) - 1);
      ++next;
    }
  }
  packing = Packing::from_lengths(lengths);
  is_candidate.resize(slots.size());
  subset.offsets = candidates.offsets.values();
  subset.positions = candidates.positions.values();
  subset.most = candidates.most;
  for (size_t r = 0; r < lengths.size(); ++r)
    for (int32_t i = candidates.offsets[r]; i < candidates.offsets[r + 1]; ++i) {
      // By its place in the pass: true of candidates that only fill up, too.
      const int32_t at = fresh[size_t(candidates.rows[size_t(i)])];
      subset.rows.push_back(at);
      is_candidate[size_t(at)] = 1;
    }
}

float* WholeRows::gather(Backend& backend, const float* fresh, float* states, int64_t c) const {
  float* held = pass_.cache().hidden();
  backend.store_rows(held, DType::kF32, fresh, pass_.slots().data(), int64_t(pass_.slots().size()), c);
  backend.gather_rows(states, held, slots.data(), packing.tokens(), c);
  return states;
}

Transformer::Transformer(const ModelConfig& config, Backend& backend, const Checkpoint& checkpoint,
                         const WeightOptions& options, const std::atomic<bool>* cancel, LoadProgress* progress)
    : config_(config), backend_(backend) {
  WeightReader reader(backend, checkpoint, options, cancel, progress);
  const int64_t c = config.hidden, v = config.embedding_size;
  const std::string base = "model.transformer.";
  reader.table(embedding_, embedding_dtype_, base + "wte.weight", v, c);
  const std::string head = config.weight_tying ? base + "wte.weight" : base + "ff_out.weight";
  reader.matrix(head_, {{head, v}}, c, !config.weight_tying);
  if (config.linear_bias && !config.weight_tying) reader.stacked(head_bias_, {{base + "ff_out.bias", v}});
  blocks_.resize(size_t(config.layers));  // before the first site points into it
  for (size_t i = 0; i < blocks_.size(); ++i)
    reader.block(blocks_[i], base + "blocks." + std::to_string(i) + ".", config);
  reader.vector(final_norm_, base + "ln_f.weight", {c});
  parameters_ = reader.parameters;
  if (config.planner.present) {
    PlannerWeights& p = planner_;
    reader.planner = true;
    p.blocks.resize(size_t(config.planner.layers));
    for (size_t i = 0; i < p.blocks.size(); ++i)
      reader.block(p.blocks[i], "mask_head." + std::to_string(i) + ".", config);
    if (config.planner.use_adaln) {
      reader.matrix(p.time_in, {{"time_embedding.mlp.0.weight", c}}, kTimeFeatures);
      reader.vector(p.time_in_bias, "time_embedding.mlp.0.bias", {c});
      reader.matrix(p.time_out, {{"time_embedding.mlp.2.weight", c}}, c);
      reader.vector(p.time_out_bias, "time_embedding.mlp.2.bias", {c});
      if (config.planner.use_mask_embeddings) {
        reader.vector(p.mask_embedding, "mask_embedding.weight", {2, c});
      } else {
        p.mask_embedding = reader.upload(std::vector<float>(size_t(2 * c), 0.0f));
      }
      const auto modulation = [&](const std::string& name, std::unique_ptr<Matrix>& scale, Buffer& scale_bias,
                                  std::unique_ptr<Matrix>& shift, Buffer& shift_bias) {
        reader.matrix(scale, {{name + ".weight", c, 0, 2 * c}}, c);
        reader.matrix(shift, {{name + ".weight", c, c, 2 * c}}, c);
        reader.vector(scale_bias, name + ".bias", {2 * c}, 1.0f, 0, c);
        reader.vector(shift_bias, name + ".bias", {2 * c}, 0.0f, c, c);
      };
      modulation("norm_out_1.modulation", p.scale1, p.scale1_bias, p.shift1, p.shift1_bias);
      modulation("norm_out_2.modulation", p.scale2, p.scale2_bias, p.shift2, p.shift2_bias);
    } else {
      reader.vector(p.norm_weight, "norm_out_2.weight", {c});
      reader.vector(p.norm_bias, "norm_out_2.bias", {c});
    }
    reader.vector(p.linear_weight, "mask_linear.weight", {1, c});
    reader.number(p.linear_bias, "mask_linear.bias");
    planner_parameters_ = reader.parameters - parameters_;
    parameters_ = reader.parameters;
  }
  weight_bytes_ = reader.bytes;
  sites_ = std::move(reader.sites);
}

std::vector<float> Transformer::read_weight(const std::string& tensor) const {
  std::vector<float> out;
  for (const WeightSite& site : sites_) {
    if (site.tensor != tensor) continue;
    int64_t elements = 1;
    for (int64_t n : site.shape) elements *= n;
    out.resize(size_t(elements));
    float* to = out.data();
    if (site.matrix) {
      (*site.matrix)->unpack(to + site.first * site.cols(), site.matrix_row, site.rows);
    } else if (site.table) {
      std::vector<uint8_t> stored(site.vector->bytes());
      backend_.download(stored.data(), site.vector->as<void>(), stored.size());
      for (int64_t i = 0; i < elements; ++i) to[i] = load_as_f32(stored.data(), *site.table, size_t(i));
    } else if (!site.exact.empty()) {
      std::copy(site.exact.begin(), site.exact.end(), to + site.first);
    } else if (site.vector) {
      backend_.download(to + site.first, site.vector->as<float>() + site.vector_first, size_t(site.rows) * 4);
    } else {
      to[0] = *site.number;
    }
  }
  check_argument(!out.empty(), "weights: this model has no tensor " + tensor);
  return out;
}

std::vector<Bf16Rows> Transformer::bf16_rows(const std::string& tensor) const {
  std::vector<Bf16Rows> out;
  int64_t next = 0;
  for (const WeightSite& site : sites_) {
    if (site.tensor != tensor) continue;
    uint16_t* data = nullptr;
    if (site.matrix) {
      data = (*site.matrix)->bf16_rows();
      if (data) data += site.matrix_row * site.cols();
    } else if (site.table && *site.table == DType::kBF16) {
      data = site.vector->as<uint16_t>();
    }
    if (!data || site.first != next) return {};
    out.push_back({data, site.first, site.rows});
    next += site.rows;
  }
  return out;
}

void Transformer::write_weights(const std::function<const float*(const std::string& tensor)>& values) {
  ++times_written_;
  std::vector<float> host;
  for (size_t i = 0; i < sites_.size(); ++i) {
    WeightSite& site = sites_[i];
    const float* from = values(site.tensor);
    if (site.matrix) {
      // A stacked matrix has its sites one after the other.
      std::vector<MatrixPart> parts;
      bool complete = true;
      size_t next = i;
      for (; next < sites_.size() && sites_[next].matrix == site.matrix; ++next) {
        const float* data = values(sites_[next].tensor);
        complete = complete && data;
        if (data) parts.push_back({data + sites_[next].first * site.cols(), DType::kF32, sites_[next].rows});
      }
      i = next - 1;
      if (parts.empty()) continue;
      check_argument(complete, "weights: " + site.tensor + " is stacked with others, which have to be given too");
      backend_.update_matrix(**site.matrix, parts);
      continue;
    }
    if (!from) continue;
    if (site.table) {
      const size_t elements = size_t(site.rows * site.cols());
      // Halves are read, not written: such a table becomes fp32.
      if (*site.table == DType::kF16) {
        *site.vector = Buffer(backend_, elements * 4);
        *site.table = DType::kF32;
      }
      if (*site.table == DType::kF32) {
        backend_.copy(site.vector->as(), from, int64_t(elements));
      } else {
        constexpr size_t kPiece = size_t(1) << 24;  // of the numbers that go through host memory
        std::vector<uint16_t> narrow;
        for (size_t first = 0; first < elements; first += kPiece) {
          host.resize(std::min(kPiece, elements - first));
          narrow.resize(host.size());
          backend_.download(host.data(), from + first, host.size() * 4);
          for (size_t e = 0; e < host.size(); ++e) narrow[e] = f32_to_bf16(host[e]);
          backend_.upload(site.vector->as<uint16_t>() + first, narrow.data(), narrow.size() * 2);
        }
      }
    } else if (site.vector) {
      host.resize(size_t(site.rows));
      backend_.download(host.data(), from + site.first, host.size() * 4);
      if (!site.exact.empty()) site.exact = host;
      for (float& x : host) x += site.offset;
      backend_.upload(site.vector->as<float>() + site.vector_first, host.data(), host.size() * 4);
    } else {
      backend_.download(site.number, from, 4);
    }
  }
}

void Transformer::block_forward(const BlockWeights& w, float* x, const Packing& packing, const RowSubset* subset,
                                float* out, Workspace& ws, BlockTape* tape, TapeMemory* memory,
                                const KvLayer* layer) const {
  const int64_t n = packing.tokens(), m = subset ? subset->size() : n, c = config_.hidden, f = config_.mlp_hidden;
  const int d = config_.head_dim();
  const int64_t q_width = int64_t(config_.heads) * d, kv_width = int64_t(config_.kv_heads) * d;
  const int32_t* q_positions = subset ? subset->positions.data() : packing.positions.data();
  const auto buffer = [&](Slot slot, int64_t count, Array BlockTape::*kept) {
    if (!tape) return ws.operands(slot, count);
    return tape->*kept = memory->operands(count);
  };

  float* h = tape ? (tape->h = memory->take(m * c)) : out;  // (M, C)
  Array normed = buffer(kNormed, n * c, &BlockTape::normed);
  if (subset || h == x)
    backend_.rmsnorm_forward(normed, x, w.attn_norm.as(), n, c, config_.rms_norm_eps);
  else
    backend_.rmsnorm_copy_forward(normed, h, x, nullptr, w.attn_norm.as(), n, c, config_.rms_norm_eps);
  Array kv = buffer(kKv, n * 2 * kv_width, &BlockTape::kv);  // (N, 2, Hk, D)
  backend_.linear_forward(kv, 2 * kv_width, normed, n, *w.kv, w.kv_bias.as(), false);
  if (layer) {
    const KvCache& cache = layer->pass.cache();
    backend_.rope_store_forward(cache.layer(layer->index), layer->pass.slots().data(), kv, packing.positions.data(), n,
                                config_.kv_heads, d, config_.rope_theta);
  } else {
    backend_.rope_forward(kv, 2 * kv_width, packing.positions.data(), n, config_.kv_heads, d, config_.rope_theta);
  }

  if (subset) {
    // Normed again rather than gathered: the rows are read once for both.
    normed = buffer(kNormedSubset, m * c, &BlockTape::normed_subset);
    backend_.rmsnorm_copy_forward(normed, h, x, subset->rows.data(), w.attn_norm.as(), m, c, config_.rms_norm_eps);
  }
  Array q = buffer(kQ, m * q_width, &BlockTape::q);  // (M, H, D)
  backend_.linear_forward(q, q_width, normed, m, *w.q, w.q_bias.as(), false);
  backend_.rope_forward(q, q_width, q_positions, m, config_.heads, d, config_.rope_theta);

  Array attention = buffer(kAttention, m * q_width, &BlockTape::attention);
  std::vector<int32_t> offsets;
  AttentionArgs args = attention_args(packing, subset, kv, layer, &offsets);
  args.q = q;
  args.out = attention;
  if (tape) args.log_sum = tape->log_sum = memory->take(m * config_.heads);
  backend_.attention_forward(args);
  backend_.linear_forward(h, c, attention, m, *w.attn_out, w.attn_out_bias.as(), true);

  Array normed_h = buffer(kNormed, m * c, &BlockTape::normed_h);
  if (out == h)
    backend_.rmsnorm_forward(normed_h, h, w.ff_norm.as(), m, c, config_.rms_norm_eps);
  else
    backend_.rmsnorm_copy_forward(normed_h, out, h, nullptr, w.ff_norm.as(), m, c, config_.rms_norm_eps);
  const int64_t rows = std::min(m, kMlpRows), kept_rows = tape ? m : rows;
  Array gate_up = buffer(kGateUp, kept_rows * 2 * f, &BlockTape::gate_up);
  Array mlp = buffer(kMlp, kept_rows * f, &BlockTape::mlp);
  for (int64_t i = 0; i < m; i += rows) {
    const int64_t count = std::min(rows, m - i);
    backend_.linear_forward(gate_up, 2 * f, normed_h + i * c, count, *w.gate_up, w.gate_up_bias.as(), false);
    backend_.swiglu_forward(mlp, gate_up, count, f);
    backend_.linear_forward(out + i * c, c, mlp, count, *w.ff_out, w.ff_out_bias.as(), true);
    if (tape) {
      gate_up += count * 2 * f;
      mlp += count * f;
    }
  }
}

AttentionArgs Transformer::attention_args(const Packing& packing, const RowSubset* subset, ConstArray fresh,
                                          const KvLayer* layer, std::vector<int32_t>* offsets) const {
  const int d = config_.head_dim();
  const int64_t kv_width = int64_t(config_.kv_heads) * d;
  AttentionArgs args{};
  args.q_stride = args.out_stride = int64_t(config_.heads) * d;
  args.kv_stride = 2 * kv_width;
  args.heads = config_.heads;
  args.kv_heads = config_.kv_heads;
  args.head_dim = d;
  args.scale = 1.0f / std::sqrt(float(d));
  args.batch = packing.batch();
  args.q_offsets = subset ? subset->offsets.data() : packing.offsets.data();
  args.k_offsets = packing.offsets.data();
  args.q_positions = subset ? subset->positions.data() : packing.positions.data();
  args.mask = config_.causal ? MaskKind::kCausal : MaskKind::kBidirectional;
  args.max_queries = subset ? subset->most : 0;
  args.k = fresh;
  args.v = fresh + kv_width;
  if (layer) {
    const KvCache& cache = layer->pass.cache();
    args.batch = cache.rows();
    args.q_offsets = subset ? subset->cache_offsets.data() : packing.cache_offsets.data();
    if (!args.q_offsets) {
      *offsets = layer->pass.spread(subset ? subset->offsets.values() : packing.offsets.values());
      args.q_offsets = offsets->data();
    }
    args.k_offsets = layer->pass.key_offsets().data();
    args.k = cache.layer(layer->index);
    args.v = args.k + kv_width;
  }
  return args;
}

void Transformer::hidden_forward(Array hidden, const int32_t* ids, const Packing& packing, const RowSubset* subset,
                                 Workspace& ws, const std::atomic<bool>* cancel, BaseTape* tape, TapeMemory* memory,
                                 bool inputs_only, const KvPass* pass) const {
  const int64_t n = packing.tokens(), c = config_.hidden;
  const int64_t m = subset ? subset->size() : n;
  // A pass without candidates still renews keys and values.
  if (m == 0 && (!pass || n == 0)) return;
  float* x = tape ? memory->take(n * c) : ws.get(kResidual, (n + (subset ? m : 0)) * c);
  backend_.embedding_forward(x, embedding_.as<void>(), embedding_dtype_, ids, n, c);
  if (tape) tape->blocks.assign(blocks_.size(), BlockTape{});
  for (size_t i = 0; i < blocks_.size(); ++i) {
    check_cancelled(cancel);
    const RowSubset* narrowed = i + 1 == blocks_.size() ? subset : nullptr;
    std::optional<KvLayer> kv;
    if (pass) kv.emplace(KvLayer{*pass, i});
    float* out = tape ? memory->take((narrowed ? m : n) * c) : narrowed ? x + n * c : x;
    if (tape) tape->blocks[i].x = x;
    block_forward(blocks_[i], x, packing, narrowed, out, ws, tape && !inputs_only ? &tape->blocks[i] : nullptr, memory,
                  kv ? &*kv : nullptr);
    x = out;
  }
  if (subset && blocks_.empty()) {
    float* out = tape ? memory->take(m * c) : x + n * c;
    backend_.gather_rows(out, x, subset->rows.data(), m, c);
    x = out;
  }
  if (tape) tape->last = x;
  backend_.rmsnorm_forward(hidden, x, final_norm_.as(), m, c, config_.rms_norm_eps);
}

void Transformer::head_forward(float* logits, ConstArray hidden, int64_t m) const {
  backend_.linear_forward(logits, config_.embedding_size, hidden, m, *head_, head_bias_.as(), false);
}

PlannerInputs Transformer::planner_inputs(const std::vector<float>& timestep, const uint8_t* candidate,
                                          const Packing& packing, const RowSubset& subset) const {
  if (!config_.planner.use_adaln) return {};
  const int64_t b = packing.batch();
  std::vector<float> features(size_t(b * kTimeFeatures));
  for (int64_t i = 0; i < b; ++i)
    for (int64_t k = 0; k < kTimeFeatures / 2; ++k) {
      const float frequency = std::exp(-std::log(10000.0f) * float(k) / float(kTimeFeatures / 2));
      const float angle = timestep[size_t(i)] * frequency;
      features[size_t(i * kTimeFeatures + k)] = std::cos(angle);
      features[size_t(i * kTimeFeatures + kTimeFeatures / 2 + k)] = std::sin(angle);
    }
  std::vector<int32_t> time(size_t(2 * b)), mask(size_t(2 * b)), groups(size_t(packing.tokens())), subset_groups;
  for (int64_t i = 0; i < 2 * b; ++i) {
    time[size_t(i)] = int32_t(i / 2);
    mask[size_t(i)] = int32_t(i % 2);
  }
  for (int64_t i = 0; i < b; ++i)
    for (int32_t r = packing.offsets[size_t(i)]; r < packing.offsets[size_t(i) + 1]; ++r)
      groups[size_t(r)] = int32_t(2 * i) + (candidate[r] ? 1 : 0);
  subset_groups.reserve(subset.rows.size());
  for (int32_t r : subset.rows) subset_groups.push_back(groups[size_t(r)]);
  return {std::move(features), std::move(time), std::move(mask), std::move(groups), std::move(subset_groups)};
}

void Transformer::planner_forward(float* logit, const float* hidden, const PlannerInputs& inputs,
                                  const Packing& packing, const RowSubset& subset, Workspace& ws,
                                  const std::atomic<bool>* cancel, PlannerTape* tape, TapeMemory* memory,
                                  bool inputs_only, const KvPass* pass) const {
  if (!config_.planner.present) throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
  const PlannerWeights& p = planner_;
  const int64_t n = packing.tokens(), m = subset.size(), c = config_.hidden;
  const int64_t b = packing.batch();
  if (m == 0 && (!pass || n == 0)) return;
  PlannerTape scratch;
  PlannerTape& t = tape ? *tape : scratch;
  const auto floats = [&](Slot slot, int64_t count) { return tape ? memory->take(count) : ws.get(slot, count); };
  // A tape outlives the inputs.
  const auto indices = [&](const HostArray<int32_t>& values) -> const int32_t* {
    if (!tape) return values.data();
    int32_t* to = memory->take<int32_t>(int64_t(values.size()));
    backend_.upload(to, values.data(), values.size() * 4);
    return to;
  };
  float* y = floats(kPlannerState, n * c);
  const float *mul2 = p.norm_weight.as(), *add2 = p.norm_bias.as();
  if (config_.planner.use_adaln) {
    // Only two conditions occur per sequence (candidate or not), so the modulations are 2B rows, not N.
    t.features = floats(kTime, b * kTimeFeatures);
    t.time_sum = floats(kTimeSum, b * c);
    float* time_hidden = floats(kTimeHidden, b * c);
    t.time_twice = floats(kTimeTwice, 2 * b * c);
    backend_.upload(t.features, inputs.features.data(), inputs.features.size() * 4);
    backend_.linear_forward(t.time_sum, c, t.features, b, *p.time_in, p.time_in_bias.as(), false);
    backend_.copy(time_hidden, t.time_sum, b * c);
    backend_.silu_forward(time_hidden, b * c);
    t.time_index = indices(inputs.time_index);
    t.mask_index = indices(inputs.mask_index);
    backend_.gather_rows(t.time_twice, time_hidden, t.time_index, 2 * b, c);
    t.condition = floats(kCondition, 2 * b * c);
    backend_.gather_rows(t.condition, p.mask_embedding.as(), t.mask_index, 2 * b, c);
    backend_.linear_forward(t.condition, c, t.time_twice, 2 * b, *p.time_out, p.time_out_bias.as(), true);
    t.mul1 = floats(kMul1, 2 * b * c);
    t.add1 = floats(kAdd1, 2 * b * c);
    t.mul2 = floats(kMul2, 2 * b * c);
    t.add2 = floats(kAdd2, 2 * b * c);
    backend_.linear_forward(t.mul1, c, t.condition, 2 * b, *p.scale1, p.scale1_bias.as(), false);
    backend_.linear_forward(t.add1, c, t.condition, 2 * b, *p.shift1, p.shift1_bias.as(), false);
    backend_.linear_forward(t.mul2, c, t.condition, 2 * b, *p.scale2, p.scale2_bias.as(), false);
    backend_.linear_forward(t.add2, c, t.condition, 2 * b, *p.shift2, p.shift2_bias.as(), false);
    t.groups = indices(inputs.groups);
    t.subset_groups = indices(inputs.subset_groups);
    backend_.layernorm_forward(y, hidden, t.mul1, t.add1, t.groups, n, c, kLayerNormEps);
    mul2 = t.mul2;
    add2 = t.add2;
  } else {
    backend_.copy(y, hidden, n * c);
  }
  t.blocks.assign(p.blocks.size(), BlockTape{});
  for (size_t i = 0; i < p.blocks.size(); ++i) {
    check_cancelled(cancel);
    const bool last = i + 1 == p.blocks.size();
    float* out = last ? floats(kPlannerOut, m * c) : tape ? memory->take(n * c) : y;
    t.blocks[i].x = y;
    std::optional<KvLayer> kv;
    if (pass) kv.emplace(KvLayer{*pass, blocks_.size() + i});
    block_forward(p.blocks[i], y, packing, last ? &subset : nullptr, out, ws,
                  tape && !inputs_only ? &t.blocks[i] : nullptr, memory, kv ? &*kv : nullptr);
    y = out;
  }
  if (p.blocks.empty()) {
    float* out = floats(kPlannerOut, m * c);
    backend_.gather_rows(out, y, subset.rows.data(), m, c);
    y = out;
  }
  t.out = y;
  backend_.planner_score_forward(logit, y, mul2, add2, t.subset_groups, p.linear_weight.as(), p.linear_bias, m, c,
                                 kLayerNormEps);
}

}  // namespace dultra
