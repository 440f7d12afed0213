#include "model/lora.h"

#include <algorithm>
#include <cmath>

#include "ops/rng.h"

namespace dultra {

namespace {

constexpr size_t kParts = 2;  // tensors that a stacked matrix has at most: slots of merged weights

std::string without_suffix(const std::string& name) {
  return name.substr(0, name.size() - std::string(".weight").size());
}

}  // namespace

bool is_adapter_target(const std::string& tensor, bool planner, const std::vector<std::string>& targets) {
  if (planner || tensor.find(".blocks.") == std::string::npos) return false;
  return std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
    const std::string end = "." + target + ".weight";
    return tensor.size() > end.size() && tensor.compare(tensor.size() - end.size(), end.size(), end) == 0;
  });
}

Lora::Lora(Backend& backend, Weights& weights, Parameters& parameters, const LoraOptions& options, uint32_t stream,
           const std::unordered_map<std::string, Stages>& stages)
    : backend_(backend), weights_(weights), parameters_(parameters), options_(options), workspace_(backend) {
  check_argument(!options.targets.empty(), "lora.targets: expected at least one projection");
  for (const WeightLocation& location : weights.locations()) {
    if (!is_adapter_target(location.tensor, location.planner, options.targets)) continue;
    const std::string module = without_suffix(location.tensor);
    const int64_t n = location.shape[0], k = location.shape[1], r = options.rank;
    Adapter adapter;
    adapter.tensor = location.tensor;
    adapter.linear = location.linear;
    adapter.row = location.at;
    adapter.a =
        parameters.add(module + ".lora_A.weight", {r, k}, false, ++stream, stages.at(location.tensor), {}, true);
    adapter.b =
        parameters.add(module + ".lora_B.weight", {n, r}, false, ++stream, stages.at(location.tensor), {}, true);
    adapter.model_rows = weights.bf16_rows(location.tensor);
    adapters_.push_back(std::move(adapter));
  }
  check_argument(!adapters_.empty(),
                 "lora.targets: expected some of q_proj, k_proj, v_proj, attn_out, ff_proj, up_proj, ff_out");
}

void Lora::initialise(uint64_t seed) {
  uint32_t index = 0;
  for (Adapter& adapter : adapters_) {
    const int64_t n = adapter.outputs(), k = adapter.inputs();
    std::vector<float> a(static_cast<size_t>(adapter.a->n));
    for (size_t e = 0; e < a.size(); ++e) {
      const rng::Coordinates at{seed, index, 0, uint32_t(e)};
      a[e] = float((2 * rng::position_uniform(at, 2) - 1) / std::sqrt(double(k)));
    }
    parameters_.write_master(*adapter.a, a);
    adapter.a_scaled = Buffer(backend_, a.size() * 4);
    adapter.b_scaled = Buffer(backend_, size_t(adapter.b->n) * 4);
    const bool in_blocks = adapter.linear->matrix->quantised();
    if (!in_blocks) adapter.frozen = Buffer(backend_, size_t(n * k) * (adapter.model_rows.empty() ? 4 : 2));
    if (!in_blocks && adapter.model_rows.empty()) {
      const std::vector<float> values = weights_.read(adapter.tensor);
      backend_.upload(adapter.frozen.as<void>(), values.data(), values.size() * 4);
    }
    for (const Bf16Rows& piece : adapter.model_rows) {
      float* wide = workspace_.get(0, piece.rows * k);
      widen(wide, piece.data, piece.rows, k);
      narrow(adapter.frozen.as<uint16_t>() + piece.first * k, wide, piece.rows, k);
    }
    scale(adapter);
    if (in_blocks) {
      adapter.low_rank = std::make_shared<LowRank>();
      adapter.low_rank->row = adapter.row;
      adapter.low_rank->a =
          backend_.make_matrix({{parameters_.master(*adapter.a), DType::kF32, adapter.rank()}}, k, DType::kF32);
      adapter.low_rank->b =
          backend_.make_matrix({{adapter.b_scaled.as(), DType::kF32, n}}, adapter.rank(), DType::kF32);
      put_beside(adapter, true);
    }
    parameters_.bind_adapter(adapter);
    ++index;
  }
}

size_t Lora::bytes() const {
  size_t bytes = 0;
  for (const Adapter& adapter : adapters_) {
    bytes += adapter.frozen.bytes() + adapter.a_scaled.bytes() + adapter.b_scaled.bytes();
    if (adapter.low_rank) bytes += adapter.low_rank->a->bytes() + adapter.low_rank->b->bytes();
  }
  return bytes;
}

// On the host, once an update: backward reads them in every micro-batch.
void Lora::scale(Adapter& adapter) {
  const float factor = float(options_.alpha / options_.rank);
  const int64_t r = adapter.rank(), k = adapter.inputs();
  const std::vector<float> a = parameters_.read_master(*adapter.a);
  std::vector<float> transposed(a.size()), b = parameters_.read_master(*adapter.b);
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < k; ++j) transposed[size_t(j * r + i)] = a[size_t(i * k + j)] * factor;
  for (float& x : b) x *= factor;
  backend_.upload(adapter.a_scaled.as<void>(), transposed.data(), transposed.size() * 4);
  backend_.upload(adapter.b_scaled.as<void>(), b.data(), b.size() * 4);
}

void Lora::put_beside(Adapter& adapter, bool with_adapters) {
  auto& all = adapter.linear->low_rank;
  all.erase(std::remove(all.begin(), all.end(), adapter.low_rank), all.end());
  if (!with_adapters) return;
  scale(adapter);
  backend_.update_matrix(*adapter.low_rank->a, {{parameters_.master(*adapter.a), DType::kF32, adapter.rank()}});
  backend_.update_matrix(*adapter.low_rank->b, {{adapter.b_scaled.as(), DType::kF32, adapter.outputs()}});
  all.push_back(adapter.low_rank);
}

float* Lora::merged(Adapter& adapter, size_t slot, bool with_adapters) {
  const int64_t n = adapter.outputs(), k = adapter.inputs(), r = adapter.rank();
  float* w = workspace_.get(slot, n * k);
  if (adapter.model_rows.empty())
    backend_.copy(w, adapter.frozen.as(), n * k);
  else
    widen(w, adapter.frozen.as<uint16_t>(), n, k);
  if (with_adapters) {
    // W += (scale B) A: one product of (N, r) and the row-major (r, K).
    scale(adapter);
    backend_.linear_backward_input(w, adapter.b_scaled.as(), r, parameters_.master(*adapter.a), n, r, k, true);
  }
  return w;
}

void Lora::merge(bool with_adapters) {
  for (size_t i = 0; i < adapters_.size();) {
    if (adapters_[i].low_rank) {
      put_beside(adapters_[i++], with_adapters);
      continue;
    }
    if (!adapters_[i].model_rows.empty()) {
      Adapter& adapter = adapters_[i++];
      const float* w = merged(adapter, 0, with_adapters);
      for (const Bf16Rows& piece : adapter.model_rows)
        narrow(piece.data, w + piece.first * adapter.inputs(), piece.rows, adapter.inputs());
      continue;
    }
    // Tensors of one matrix stand one after the other, and are written together.
    std::vector<std::pair<const std::string*, const float*>> written;
    const Linear* linear = adapters_[i].linear;
    for (; i < adapters_.size() && adapters_[i].linear == linear && written.size() < kParts; ++i)
      written.emplace_back(&adapters_[i].tensor, merged(adapters_[i], written.size(), with_adapters));
    weights_.write([&](const std::string& tensor) -> const float* {
      for (const auto& [name, values] : written)
        if (*name == tensor) return values;
      return nullptr;
    });
  }
}

void Lora::widen(float* to, const uint16_t* from, int64_t rows, int64_t cols) {
  backend_.embedding_forward(to, from, DType::kBF16, ascending(rows).data(), rows, cols);
}

void Lora::narrow(uint16_t* to, const float* from, int64_t rows, int64_t cols) {
  backend_.store_rows(to, DType::kBF16, from, ascending(rows).data(), rows, cols);
}

}  // namespace dultra
