#include "model/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "ops/adamw.h"

namespace dultra {

namespace {

enum GradientSlot : size_t {
  kDHidden,
  kDCandidate,
  kDLogits,
  kDOut,
  kDX,
  kDH,
  kDMlp,
  kDGateUp,
  kDNormed,
  kDAttention,
  kDQ,
  kDKv,
  kDKvOwn,
  kDStates,
  kDScore,
  kDMul1,
  kDAdd1,
  kDMul2,
  kDAdd2,
  kDCondition,
  kDTimeTwice,
  kDTime,
  kLora,
  kMerged,
  kCandidateHidden,
  kHidden
};

constexpr const char* kBase = "model.transformer.";

int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::vector<NamedTensor> read_weights(const Model& model, const std::vector<std::string>* names) {
  const std::shared_lock<WeightsMutex> weights(model.weights_mutex());
  const Transformer& transformer = model.transformer();
  std::vector<NamedTensor> out;
  const auto add = [&](const WeightSite& site) {
    out.push_back({site.tensor, site.shape, transformer.read_weight(site.tensor)});
  };
  if (!names) {
    for (const WeightSite& site : transformer.sites())
      if (site.first == 0 &&
          std::none_of(out.begin(), out.end(), [&](const NamedTensor& seen) { return seen.name == site.tensor; }))
        add(site);
    return out;
  }
  for (const std::string& name : *names) {
    const auto& sites = transformer.sites();
    const auto found =
        std::find_if(sites.begin(), sites.end(), [&](const WeightSite& site) { return site.tensor == name; });
    check_argument(found != sites.end(), "weights: this model has no tensor " + name);
    add(*found);
  }
  return out;
}

struct Trainer::Tape {
  ScoreRequest request;
  Packing packing;
  RowSubset candidates;               // all M
  RowSubset scored;                   // those that the output head ran on
  std::optional<KvPass> pass;         // over the request's cache, if there is one
  std::optional<WholeRows> whole;     // what the planner sees instead of `packing`
  std::vector<int32_t> all_rows;      // 0, 1, ...: of what the planner sees, for one without AdaLN
  std::vector<int32_t> scored_index;  // of each of those, its place among the M
  bool narrowed = false;              // the base's last block ran on `scored` alone
  BaseTape base;
  PlannerTape planner;
  float* hidden = nullptr;                       // (N, C), unless narrowed
  float* planner_hidden = nullptr;               // what the planner reads: `hidden`, or the states of whole rows
  Array scored_hidden;                           // (scored, C)
  float* logits = nullptr;                       // (scored, V) where they fit, else null
  std::vector<float> planner_logits, log_probs;  // (M)

  const Packing& planner_packing() const { return whole ? whole->packing : packing; }
  const RowSubset& planner_candidates() const { return whole ? whole->subset : candidates; }
  // Planner blocks go through the cache.
  const KvPass* planner_pass() const { return pass && !whole ? &*pass : nullptr; }
};

namespace {

std::optional<KvLayer> layer_of(const KvPass* pass, size_t index) {
  if (!pass) return std::nullopt;
  return KvLayer{*pass, index};
}

}  // namespace

Trainer::Trainer(std::shared_ptr<Model> model, const TrainerOptions& options)
    : model_(std::move(model)),
      options_(options),
      backend_(model_->backend()),
      tape_workspace_(backend_),
      workspace_(backend_),
      gradient_workspace_(backend_) {
  Transformer& transformer = model_->transformer();
  const ModelConfig& config = transformer.config();
  const bool lora = options.lora.rank > 0;
  base_trains_ = !options.freeze_base || lora;
  planner_trains_ = config.planner.present && !options.freeze_planner;
  // Nothing trains: it only scores, holds nothing of its own, and does not stand in the way of another trainer.
  if (!base_trains_ && !planner_trains_) return;
  check_argument(!config.qkv_bias && !config.linear_bias && !config.causal,
                 "trainer: models with biases or causal attention score, but do not train");
  if (!model_->claim_trainer())
    throw Error(ErrorCode::kInvalidArgument, "trainer: this model already has one; dispose it first");
  try {
    for (const WeightSite& site : transformer.sites()) {
      if (by_name_.count(site.tensor)) continue;
      // Nothing flows back into a frozen base.
      if (!site.planner && !base_trains_) continue;
      std::vector<Bf16Rows> rows = transformer.bf16_rows(site.tensor);
      Parameter* p = add(site.tensor, site.shape, site.planner,
                         site.planner ? planner_trains_ : !options.freeze_base && !lora, std::move(rows));
      if (!p->rows.empty()) continue;
      const std::vector<float> values = transformer.read_weight(site.tensor);
      backend_.upload(p->value.as<void>(), values.data(), values.size() * 4);
    }
    if (base_trains_)
      for (int i = 0; i < config.layers; ++i)
        base_blocks_.push_back(resolve(kBase + ("blocks." + std::to_string(i) + ".")));
    for (int i = 0; i < config.planner.layers && config.planner.present; ++i)
      planner_blocks_.push_back(resolve("mask_head." + std::to_string(i) + "."));
    if (lora) add_adapters(options.lora);
  } catch (...) {
    model_->release_trainer();
    throw;
  }
}

Trainer::~Trainer() {
  if (base_trains_ || planner_trains_) model_->release_trainer();
}

Trainer::Parameter* Trainer::find(const std::string& name) {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

Buffer Trainer::zeroed(size_t bytes) {
  const int64_t words = int64_t(bytes + 3) / 4;
  Buffer buffer(backend_, size_t(words) * 4);
  backend_.fill_zero(buffer.as(), words);
  bytes_ += buffer.bytes();
  return buffer;
}

Trainer::Parameter* Trainer::add(const std::string& name, const std::vector<int64_t>& shape, bool planner, bool trains,
                                 std::vector<Bf16Rows> rows) {
  auto p = std::make_unique<Parameter>();
  p->name = name;
  p->shape = shape;
  p->n = count_of(shape);
  p->planner = planner;
  p->trains = trains;
  p->rows = std::move(rows);
  const size_t n = size_t(p->n);
  if (p->rows.empty()) {
    p->value = Buffer(backend_, n * 4);
    bytes_ += n * 4;
  } else if (trains) {
    p->low = zeroed(n * sizeof(int16_t));
  }
  if (trains) {
    p->gradient = zeroed(n * 4);
    p->exp_avg = zeroed(n * dtype_size(options_.moments));
    p->exp_avg_sq = zeroed(n * dtype_size(options_.moments));
  }
  parameters_.push_back(std::move(p));
  return by_name_[name] = parameters_.back().get();
}

Trainer::BlockParameters Trainer::resolve(const std::string& prefix) {
  const auto get = [&](const char* name) { return find(prefix + name + ".weight"); };
  return {get("attn_norm"), get("ff_norm"), get("q_proj"),  get("k_proj"), get("v_proj"),
          get("attn_out"),  get("ff_proj"), get("up_proj"), get("ff_out")};
}

void Trainer::add_adapters(const LoraOptions& lora) {
  check_argument(!lora.targets.empty(), "lora.targets: expected at least one projection");
  uint32_t index = 0;
  std::vector<std::pair<Parameter*, std::pair<Parameter*, Parameter*>>> made;
  const size_t checkpoint_tensors = parameters_.size();
  for (size_t i = 0; i < checkpoint_tensors; ++i) {
    Parameter* weight = parameters_[i].get();
    if (weight->planner || weight->name.find(".blocks.") == std::string::npos || weight->shape.size() != 2) continue;
    const bool wanted = std::any_of(lora.targets.begin(), lora.targets.end(), [&](const std::string& target) {
      return ends_with(weight->name, "." + target + ".weight");
    });
    if (!wanted) continue;
    const std::string module = weight->name.substr(0, weight->name.size() - std::strlen(".weight"));
    const int64_t n = weight->shape[0], k = weight->shape[1], r = lora.rank;
    Parameter* a = add(module + ".lora_A.weight", {r, k}, false, true);
    Parameter* b = add(module + ".lora_B.weight", {n, r}, false, true);
    // As PEFT begins: A uniform within 1 / sqrt(K), B zero, so that the adapted model is the base.
    std::vector<float> values(static_cast<size_t>(a->n));
    for (size_t e = 0; e < values.size(); ++e) {
      const rng::Coordinates at{options_.seed, index, 0, uint32_t(e)};
      values[e] = float((2 * rng::position_uniform(at, 2) - 1) / std::sqrt(double(k)));
    }
    backend_.upload(a->value.as<void>(), values.data(), values.size() * 4);
    backend_.fill_zero(b->value.as(), b->n);
    Adapter adapter{weight,
                    a,
                    b,
                    Buffer(backend_, size_t(weight->n) * (weight->rows.empty() ? 4 : 2)),
                    Buffer(backend_, size_t(a->n) * 4),
                    Buffer(backend_, size_t(b->n) * 4)};
    if (weight->rows.empty()) backend_.copy(adapter.frozen.as(), weight->value.as(), weight->n);
    for (const Bf16Rows& piece : weight->rows) {
      float* wide = gradient_workspace_.get(kMerged, piece.rows * k);
      widen(wide, piece.data, piece.rows, k);
      narrow(adapter.frozen.as<uint16_t>() + piece.first * k, wide, piece.rows, k);
    }
    bytes_ += adapter.frozen.bytes() + adapter.a_scaled.bytes() + adapter.b_scaled.bytes();
    scale_adapter(adapter);
    adapters_.push_back(std::move(adapter));
    ++index;
  }
  check_argument(!adapters_.empty(),
                 "lora.targets: expected some of q_proj, k_proj, v_proj, attn_out, ff_proj, up_proj, ff_out");
  for (Adapter& adapter : adapters_) adapter_of_[adapter.weight] = &adapter;
}

namespace {

std::vector<int32_t> ascending(int64_t n) {
  std::vector<int32_t> rows(static_cast<size_t>(n));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

}  // namespace

void Trainer::widen(float* to, const uint16_t* from, int64_t n, int64_t k) {
  backend_.embedding_forward(to, from, DType::kBF16, ascending(n).data(), n, k);
}

void Trainer::narrow(uint16_t* to, const float* from, int64_t n, int64_t k) {
  backend_.store_rows(to, DType::kBF16, from, ascending(n).data(), n, k);
}

// On the host, once an update: backward takes them for every micro-batch.
void Trainer::scale_adapter(Adapter& adapter) {
  const float scale = float(options_.lora.alpha / options_.lora.rank);
  const int64_t r = options_.lora.rank, k = adapter.weight->shape[1];
  std::vector<float> a(static_cast<size_t>(adapter.a->n)), transposed(a.size()), b(static_cast<size_t>(adapter.b->n));
  backend_.download(a.data(), adapter.a->value.as<void>(), a.size() * 4);
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < k; ++j) transposed[size_t(j * r + i)] = a[size_t(i * k + j)] * scale;
  backend_.upload(adapter.a_scaled.as<void>(), transposed.data(), transposed.size() * 4);
  backend_.download(b.data(), adapter.b->value.as<void>(), b.size() * 4);
  for (float& x : b) x *= scale;
  backend_.upload(adapter.b_scaled.as<void>(), b.data(), b.size() * 4);
}

void Trainer::merge_adapters() {
  for (Adapter& adapter : adapters_) {
    const int64_t n = adapter.weight->shape[0], k = adapter.weight->shape[1], r = options_.lora.rank;
    const std::vector<Bf16Rows>& rows = adapter.weight->rows;
    float* w = rows.empty() ? adapter.weight->value.as() : gradient_workspace_.get(kMerged, n * k);
    if (rows.empty())
      backend_.copy(w, adapter.frozen.as(), n * k);
    else
      widen(w, adapter.frozen.as<uint16_t>(), n, k);
    if (adapters_on_) {
      // W += (scale B) A: one product of (N, r) and the row-major (r, K).
      scale_adapter(adapter);
      backend_.linear_backward_input(w, adapter.b_scaled.as(), r, adapter.a->value.as(), n, r, k, true);
    }
    for (const Bf16Rows& piece : rows) narrow(piece.data, w + piece.first * k, piece.rows, k);
  }
}

void Trainer::write_model() {
  model_->transformer().write_weights([&](const std::string& name) -> const float* {
    Parameter* p = find(name);
    if (!p || !p->rows.empty()) return nullptr;
    if (p->trains || adapter_of_.count(p)) return p->value.as();
    // A frozen tensor is written only where it is stacked with one that is not.
    for (const char* stacked : {".k_proj.weight", ".v_proj.weight", ".ff_proj.weight", ".up_proj.weight"}) {
      if (!ends_with(name, stacked)) continue;
      const std::string prefix = name.substr(0, name.size() - std::strlen(stacked));
      const bool keys = stacked[1] == 'k' || stacked[1] == 'v';
      for (const char* partner :
           {keys ? ".k_proj.weight" : ".ff_proj.weight", keys ? ".v_proj.weight" : ".up_proj.weight"}) {
        Parameter* other = find(prefix + partner);
        if (other && (other->trains || adapter_of_.count(other))) return p->value.as();
      }
    }
    return nullptr;
  });
}

std::vector<Trainer::ParameterInfo> Trainer::parameters() const {
  std::vector<ParameterInfo> out;
  for (const auto& p : parameters_)
    if (p->trains) out.push_back({p->name, p->shape, p->planner});
  return out;
}

// ---- score --------------------------------------------------------------------------------------

ScoreResult Trainer::score(ScoreRequest request, const std::atomic<bool>* cancel) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_lock<WeightsMutex> weights(model_->weights_mutex());
  const Transformer& transformer = model_->transformer();
  const ModelConfig& config = transformer.config();
  const int64_t c = config.hidden, v = config.embedding_size;
  tape_.reset();
  auto tape = std::make_unique<Tape>();
  check_ids(request.ids, v);
  check_offsets(request.offsets, request.ids.size(), config.max_sequence_length);
  const size_t batch = request.offsets.size() - 1, m = request.positions.size();
  const int64_t n = int64_t(request.ids.size());
  check_argument(request.candidate_offsets.size() == batch + 1 && request.candidate_offsets.front() == 0 &&
                     size_t(request.candidate_offsets.back()) == m,
                 "candidateOffsets: expected one entry per row and one more, from 0 to the number of positions");
  check_argument(request.hidden.empty() || request.hidden.size() == size_t(n * c),
                 "hidden: expected (ids, dModel) numbers");
  if (request.log_probs || request.policy) {
    check_argument(request.tokens.size() == m, "tokens: expected one per candidate");
    check_ids(request.tokens, v);
  }
  check_argument(!request.policy || request.planner, "policy: needs planner");
  if (request.planner) {
    if (!config.planner.present) throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
    check_argument(request.timestep.size() == batch, "planner.timestep: expected one number per row");
    check_argument(request.mask_index.size() == request.ids.size(), "planner.maskIndex: expected one entry per id");
  }
  if (request.policy)
    check_argument(request.selected.size() == m && request.forced.size() == batch,
                   "policy: expected selected for each candidate and forced for each row");

  std::unique_lock<std::mutex> in_use;
  if (request.cache) {
    KvCache& cache = *request.cache;
    check_cache(cache, *model_);
    check_argument(cache.options().dtype == DType::kF32, "cache: expected one of fp32, which gradients need");
    check_argument(!request.planner || cache.options().planner != PlannerCache::kNone,
                   "cache: expected one that was made for the planner");
    check_argument(request.hidden.empty(), "hidden: expected none with a cache");
    check_argument(request.rows.size() == batch, "rows: expected one row of the cache per row");
    in_use = std::unique_lock<std::mutex>(cache.mutex());
    tape->pass.emplace(cache, request.rows, request.offsets, request.query_positions, request.planner);
    tape->packing.offsets = request.offsets;
    tape->packing.positions = request.query_positions;
  } else {
    tape->packing = Packing::from_lengths(lengths_of(request.offsets));
  }
  const std::vector<int32_t>& fresh = tape->packing.positions.values();
  RowSubset& candidates = tape->candidates;
  RowSubset& scored = tape->scored;
  const bool all_scored = request.confidences || request.logits || (request.log_probs && !request.policy);
  scored.offsets.push_back(0);
  for (size_t b = 0; b < batch; ++b) {
    const int32_t begin = request.candidate_offsets[b], end = request.candidate_offsets[b + 1];
    check_argument(begin <= end && size_t(end) <= m, "candidateOffsets: expected ascending offsets");
    for (int32_t i = begin; i < end; ++i) {
      const int32_t position = request.positions[size_t(i)];
      const auto own = fresh.begin() + request.offsets[b], own_end = fresh.begin() + request.offsets[b + 1];
      const auto found = std::lower_bound(own, own_end, position);
      check_argument(
          found != own_end && *found == position && (i == begin || position > request.positions[size_t(i) - 1]),
          "positions: expected ascending positions that row " + std::to_string(b) + " computes, got " +
              std::to_string(position));
      const int32_t packed = int32_t(found - fresh.begin());
      candidates.rows.push_back(packed);
      candidates.positions.push_back(position);
      if (all_scored || (request.policy && request.selected[size_t(i)])) {
        scored.rows.push_back(packed);
        scored.positions.push_back(position);
        tape->scored_index.push_back(i);
      }
    }
    scored.offsets.push_back(int32_t(scored.rows.size()));
  }
  candidates.offsets = request.candidate_offsets;
  if (request.planner && request.cache && request.cache->options().planner == PlannerCache::kHidden)
    tape->whole.emplace(*tape->pass, candidates);
  if (request.planner && !config.planner.use_adaln) {
    tape->all_rows.resize(size_t(tape->planner_packing().tokens()));
    std::iota(tape->all_rows.begin(), tape->all_rows.end(), 0);
  }

  ScoreResult result;
  if (request.log_probs || request.policy) result.log_probs.assign(m, 0.0f);
  if (request.planner) result.planner_logits.assign(m, 0.0f);
  if (request.policy) result.log_likelihoods.assign(m, 0.0f);
  if (request.confidences) {
    result.argmax.assign(m, 0);
    result.confidences.assign(m, 0.0f);
  }
  if (request.logits) result.logits.assign(m * size_t(v), 0.0f);
  if (m == 0 && !request.cache) {
    tape->request = std::move(request);
    if (tape->request.keep) tape_ = std::move(tape);
    return result;
  }

  // What is kept must survive until `backward`; the rest is scratch.
  TapeMemory memory(tape_workspace_);
  const bool keep = request.keep, keep_base = keep && base_trains_ && request.hidden.empty();
  tape->narrowed = !request.planner && request.hidden.empty();
  const int64_t s = scored.size();
  CacheGuard guard(request.cache.get());
  tape->scored_hidden = memory.operands(s * c);
  if (!tape->narrowed) tape->hidden = memory.take(n * c);
  if (!request.hidden.empty()) {
    backend_.upload(tape->hidden, request.hidden.data(), request.hidden.size() * 4);
  } else {
    transformer.hidden_forward(tape->narrowed ? tape->scored_hidden : Array(tape->hidden), request.ids.data(),
                               tape->packing, tape->narrowed ? &scored : nullptr, workspace_, cancel,
                               keep_base ? &tape->base : nullptr, &memory, options_.checkpointing,
                               tape->pass ? &*tape->pass : nullptr);
  }
  if (!tape->narrowed) backend_.gather_rows(tape->scored_hidden, tape->hidden, scored.rows.data(), s, c);

  const int64_t rows = std::min(s, head_rows(v));
  float* logits = memory.take(rows * v);
  if (rows == s) tape->logits = logits;
  const size_t scored_count = size_t(s);
  std::vector<int32_t> token(scored_count), given(scored_count);
  std::vector<float> log_prob(scored_count), confidence(scored_count), max_prob(scored_count), entropy(scored_count);
  std::vector<uint8_t> finite(scored_count, 1);
  for (int64_t i = 0; i < s; i += rows) {
    check_cancelled(cancel);
    const int64_t part = std::min(rows, s - i);
    transformer.head_forward(logits, tape->scored_hidden + i * c, part);
    if (request.logits)
      for (int64_t r = 0; r < part; ++r)
        backend_.download(&result.logits[size_t(tape->scored_index[size_t(i + r)]) * size_t(v)], logits + r * v,
                          size_t(v) * 4);
    SampleArgs sample{};
    sample.logits = logits;
    sample.rows = part;
    sample.vocab = v;
    sample.excluded_token = request.excluded_token;
    sample.token = token.data() + i;
    sample.log_prob = log_prob.data() + i;
    sample.confidence = confidence.data() + i;
    sample.max_prob = max_prob.data() + i;
    sample.entropy = entropy.data() + i;
    sample.finite = finite.data() + i;
    if (request.confidences) {
      backend_.sample_forward(sample);
      for (int64_t r = i; r < i + part; ++r) {
        result.argmax[size_t(tape->scored_index[size_t(r)])] = token[size_t(r)];
        result.confidences[size_t(tape->scored_index[size_t(r)])] = confidence[size_t(r)];
      }
    }
    if (request.log_probs || request.policy) {
      for (int64_t r = i; r < i + part; ++r) given[size_t(r)] = request.tokens[size_t(tape->scored_index[size_t(r)])];
      sample.given = given.data() + i;
      sample.temperature = request.temperature;
      sample.tempered_log_prob = request.temperature > 0;
      backend_.sample_forward(sample);
      for (int64_t r = i; r < i + part; ++r)
        result.log_probs[size_t(tape->scored_index[size_t(r)])] = log_prob[size_t(r)];
    }
  }
  if (std::find(finite.begin(), finite.end(), uint8_t(0)) != finite.end())
    throw Error(ErrorCode::kNonFinite, "the model produced a NaN or infinite logit");

  if (request.planner) {
    float* scores = memory.take(int64_t(m));
    tape->planner_hidden = tape->hidden;
    if (tape->whole)
      tape->planner_hidden =
          tape->whole->gather(backend_, tape->hidden, memory.take(tape->planner_packing().tokens() * c), c);
    const PlannerInputs inputs = transformer.planner_inputs(
        request.timestep, tape->whole ? tape->whole->is_candidate.data() : request.mask_index.data(),
        tape->planner_packing(), tape->planner_candidates());
    transformer.planner_forward(scores, tape->planner_hidden, inputs, tape->planner_packing(),
                                tape->planner_candidates(), workspace_, cancel, keep ? &tape->planner : nullptr,
                                &memory, options_.checkpointing, tape->planner_pass());
    backend_.download(result.planner_logits.data(), scores, m * 4);
    for (float z : result.planner_logits)
      if (!std::isfinite(z)) throw Error(ErrorCode::kNonFinite, "the planner produced a NaN or infinite logit");
  }
  tape->planner_logits = result.planner_logits;
  tape->log_probs = result.log_probs;
  tape->request = std::move(request);
  if (tape->request.policy) {
    LikelihoodArgs likelihood = likelihood_args(*tape);
    likelihood.log_likelihood = result.log_likelihoods.data();
    backend_.likelihood_forward(likelihood);
  }
  recompute_slot_ = memory.next();
  if (tape->pass) tape->pass->done();
  guard.keep();
  if (keep) tape_ = std::move(tape);
  return result;
}

// ---- backward -----------------------------------------------------------------------------------

void Trainer::linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, const Parameter& w, int64_t m,
                                    int64_t first_row, int64_t n, bool accumulate) {
  const int64_t k = w.shape[1];
  if (w.rows.empty())
    return backend_.linear_backward_input(dx, dy, dy_stride, w.value.as() + first_row * k, m, n, k, accumulate);
  for (const Bf16Rows& piece : w.rows) {
    const int64_t begin = std::max(first_row, piece.first), end = std::min(first_row + n, piece.first + piece.rows);
    if (begin >= end) continue;
    backend_.linear_backward_input(dx, dy + (begin - first_row), dy_stride, piece.data + (begin - piece.first) * k, m,
                                   end - begin, k, accumulate);
    accumulate = true;
  }
}

void Trainer::linear_backward(Array dx, ConstArray dy, int64_t dy_stride, ConstArray x, Parameter* w, int64_t m,
                              bool accumulate, int64_t first_row, int64_t rows, Parameter* bias, int64_t bias_first) {
  const int64_t k = w->shape[1], n = rows < 0 ? w->shape[0] : rows;
  if (dx) linear_backward_input(dx, dy, dy_stride, *w, m, first_row, n, accumulate);
  if (w->trains) {
    float* db = gradient_of(bias);
    backend_.linear_backward_weight(w->gradient.as() + first_row * k, db ? db + bias_first : nullptr, dy, dy_stride, x,
                                    m, n, k);
  }
  const auto adapter = adapter_of_.find(w);
  if (adapter == adapter_of_.end()) return;
  // y += scale (x A^T) B^T: dB += scale dy^T (x A^T), dA += (scale dy B)^T x.
  const Adapter& a = *adapter->second;
  const int64_t r = options_.lora.rank;
  float* low = gradient_workspace_.get(kLora, m * r);
  backend_.linear_backward_input(low, x, k, a.a_scaled.as(), m, k, r, false);
  backend_.linear_backward_weight(a.b->gradient.as(), nullptr, dy, dy_stride, low, m, n, r);
  backend_.linear_backward_input(low, dy, dy_stride, a.b_scaled.as(), m, n, r, false);
  backend_.linear_backward_weight(a.a->gradient.as(), nullptr, low, r, x, m, r, k);
}

void Trainer::block_backward(const BlockWeights& weights, const BlockParameters& p, BlockTape tape,
                             const Packing& packing, const RowSubset* subset, float* dx, float* dout,
                             const KvLayer* kv) {
  const Transformer& transformer = model_->transformer();
  const ModelConfig& config = transformer.config();
  const int64_t n = packing.tokens(), m = subset ? subset->size() : n, c = config.hidden, f = config.mlp_hidden;
  const int d = config.head_dim();
  const int64_t q_width = int64_t(config.heads) * d, kv_width = int64_t(config.kv_heads) * d;
  Workspace& ws = gradient_workspace_;

  if (!tape.normed) {
    // Checkpointed: run the block again, keeping what its backward needs.
    TapeMemory memory(tape_workspace_);
    memory.rewind(recompute_slot_);
    float* out = memory.take(m * c);
    transformer.block_forward(weights, tape.x, packing, subset, out, workspace_, &tape, &memory, kv);
  }

  // out = h + ff_out(silu(gate) up)
  float* dmlp = ws.get(kDMlp, m * f);
  linear_backward(dmlp, dout, c, tape.mlp, p.ff_out, m, false);
  const Array dgate_up = ws.operands(kDGateUp, m * 2 * f);
  backend_.swiglu_backward(dgate_up, dmlp, tape.gate_up, m, f);
  float* dnormed = ws.get(kDNormed, std::max(n, m) * c);
  linear_backward(dnormed, dgate_up, 2 * f, tape.normed_h, p.ff, m, false);
  linear_backward(dnormed, dgate_up + f, 2 * f, tape.normed_h, p.up, m, true);
  float* dh = dout;  // h reaches out directly too
  backend_.rmsnorm_backward(dh, gradient_of(p.ff_norm), dnormed, tape.h, p.ff_norm->value.as(), m, c,
                            config.rms_norm_eps);

  // h = x + attn_out(attention(q, k, v))
  const Array dattention = ws.operands(kDAttention, m * q_width);
  linear_backward(dattention, dh, c, tape.attention, p.attn_out, m, false);
  const Array dq = ws.operands(kDQ, m * q_width);
  Array dkv = ws.operands(kDKv, (kv ? kv->pass.cache().offsets().back() : n) * 2 * kv_width);
  std::vector<int32_t> offsets;
  AttentionGradArgs args{};
  args.forward = transformer.attention_args(packing, subset, tape.kv, kv, &offsets);
  args.forward.q = tape.q;
  args.forward.out = tape.attention;
  args.forward.log_sum = tape.log_sum;
  args.dout = dattention;
  args.dq = dq;
  args.dk = dkv;
  args.dv = dkv + kv_width;
  backend_.attention_backward(args);
  if (kv) {
    // Of all keys and values that were read, those computed in this pass; the others are constants.
    const Array own = ws.operands(kDKvOwn, n * 2 * kv_width);
    backend_.gather_rows(own, dkv, kv->pass.slots().data(), n, 2 * kv_width);
    dkv = own;
  }
  const int32_t* q_positions = subset ? subset->positions.data() : packing.positions.data();
  backend_.rope_backward(dq, q_width, q_positions, m, config.heads, d, config.rope_theta);
  backend_.rope_backward(dkv, 2 * kv_width, packing.positions.data(), n, config.kv_heads, d, config.rope_theta);
  linear_backward(dnormed, dkv, 2 * kv_width, tape.normed, p.k, n, false);
  linear_backward(dnormed, dkv + kv_width, 2 * kv_width, tape.normed, p.v, n, true);
  if (subset) {
    float* dsubset = ws.get(kDAttention, m * c);
    linear_backward(dsubset, dq, q_width, tape.normed_subset, p.q, m, false);
    backend_.scatter_add_rows(dnormed, dsubset, subset->rows.data(), m, c);
    backend_.fill_zero(dx, n * c);
    backend_.scatter_add_rows(dx, dh, subset->rows.data(), m, c);
  } else {
    linear_backward(dnormed, dq, q_width, tape.normed, p.q, n, true);
    if (dx != dh) backend_.copy(dx, dh, n * c);
  }
  backend_.rmsnorm_backward(dx, gradient_of(p.attn_norm), dnormed, tape.x, p.attn_norm->value.as(), n, c,
                            config.rms_norm_eps);
}

void Trainer::planner_backward(const std::vector<float>& dlogit, float* dhidden, const std::atomic<bool>* cancel) {
  const Transformer& transformer = model_->transformer();
  const ModelConfig& config = transformer.config();
  const PlannerWeights& weights = transformer.planner();
  const PlannerTape& t = tape_->planner;
  const Packing& packing = tape_->planner_packing();
  const RowSubset& subset = tape_->planner_candidates();
  const int64_t n = packing.tokens(), m = subset.size(), c = config.hidden, b = packing.batch();
  const bool adaln = config.planner.use_adaln;
  Workspace& ws = gradient_workspace_;
  float* dscore = ws.get(kDScore, m);
  backend_.upload(dscore, dlogit.data(), dlogit.size() * 4);

  // Modulations: mul and add of group 2b and 2b + 1, or the affine norm's weight and bias.
  float *dmul1 = nullptr, *dadd1 = nullptr, *dmul2, *dadd2;
  Parameter *norm_weight = find("norm_out_2.weight"), *norm_bias = find("norm_out_2.bias");
  if (adaln) {
    for (auto [slot, to] :
         {std::pair<GradientSlot, float**>{kDMul1, &dmul1}, {kDAdd1, &dadd1}, {kDMul2, &dmul2}, {kDAdd2, &dadd2}}) {
      *to = ws.get(slot, 2 * b * c);
      backend_.fill_zero(*to, 2 * b * c);
    }
  } else {
    dmul2 = gradient_of(norm_weight);
    dadd2 = gradient_of(norm_bias);
  }
  Parameter *linear_weight = find("mask_linear.weight"), *linear_bias = find("mask_linear.bias");
  const float *mul2 = adaln ? t.mul2 : norm_weight->value.as(), *add2 = adaln ? t.add2 : norm_bias->value.as();
  float* dout = ws.get(kDOut, std::max(n, m) * c);
  backend_.fill_zero(dout, m * c);
  backend_.planner_score_backward(dout, dmul2, dadd2, gradient_of(linear_weight), gradient_of(linear_bias), dscore,
                                  t.out, mul2, add2, adaln ? t.subset_groups : nullptr, linear_weight->value.as(), m, c,
                                  kLayerNormEps);
  float* dy = dout;
  if (weights.blocks.empty()) {
    dy = ws.get(kDX, n * c);
    backend_.fill_zero(dy, n * c);
    backend_.scatter_add_rows(dy, dout, subset.rows.data(), m, c);
  }
  for (size_t i = weights.blocks.size(); i-- > 0;) {
    check_cancelled(cancel);
    const bool last = i + 1 == weights.blocks.size();
    float* dx = last ? ws.get(kDX, n * c) : dy;
    const std::optional<KvLayer> kv = layer_of(tape_->planner_pass(), transformer.block_count() + i);
    block_backward(weights.blocks[i], planner_blocks_[i], t.blocks[i], packing, last ? &subset : nullptr, dx, dy,
                   kv ? &*kv : nullptr);
    dy = dx;
  }
  if (!adaln) {
    // hidden is the blocks' input itself.
    if (dhidden) backend_.scatter_add_rows(dhidden, dy, tape_->all_rows.data(), n, c);
    return;
  }
  float* dhidden_or_scratch = dhidden;
  if (!dhidden) {
    dhidden_or_scratch = ws.get(kDNormed, n * c);
    backend_.fill_zero(dhidden_or_scratch, n * c);
  }
  backend_.layernorm_backward(dhidden_or_scratch, dmul1, dadd1, dy, tape_->planner_hidden, t.mul1, t.groups, n, c,
                              kLayerNormEps);
  if (!planner_trains_) return;
  float* dcondition = ws.get(kDCondition, 2 * b * c);
  Parameter *modulation1 = find("norm_out_1.modulation.weight"), *modulation2 = find("norm_out_2.modulation.weight");
  Parameter *bias1 = find("norm_out_1.modulation.bias"), *bias2 = find("norm_out_2.modulation.bias");
  linear_backward(dcondition, dmul1, c, t.condition, modulation1, 2 * b, false, 0, c, bias1, 0);
  linear_backward(dcondition, dadd1, c, t.condition, modulation1, 2 * b, true, c, c, bias1, c);
  linear_backward(dcondition, dmul2, c, t.condition, modulation2, 2 * b, true, 0, c, bias2, 0);
  linear_backward(dcondition, dadd2, c, t.condition, modulation2, 2 * b, true, c, c, bias2, c);
  if (Parameter* mask_embedding = find("mask_embedding.weight"))
    backend_.scatter_add_rows(mask_embedding->gradient.as(), dcondition, t.mask_index, 2 * b, c);
  float* dtime_twice = ws.get(kDTimeTwice, 2 * b * c);
  linear_backward(dtime_twice, dcondition, c, t.time_twice, find("time_embedding.mlp.2.weight"), 2 * b, false, 0, -1,
                  find("time_embedding.mlp.2.bias"));
  float* dtime = ws.get(kDTime, b * c);
  backend_.fill_zero(dtime, b * c);
  backend_.scatter_add_rows(dtime, dtime_twice, t.time_index, 2 * b, c);
  backend_.silu_backward(dtime, dtime, t.time_sum, b * c);
  linear_backward(nullptr, dtime, c, t.features, find("time_embedding.mlp.0.weight"), b, false, 0, -1,
                  find("time_embedding.mlp.0.bias"));
}

void Trainer::head_backward(const BackwardRequest& request, const std::vector<float>& dlog_prob, float* dhidden) {
  Tape& tape = *tape_;
  const Transformer& transformer = model_->transformer();
  const ModelConfig& config = transformer.config();
  const int64_t c = config.hidden, v = config.embedding_size, s = tape.scored.size();
  Parameter* head = find(std::string(kBase) + (config.weight_tying ? "wte.weight" : "ff_out.weight"));
  std::vector<int32_t> tokens(static_cast<size_t>(s));
  std::vector<float> upstream(static_cast<size_t>(s));
  for (size_t i = 0; i < size_t(s); ++i) {
    const size_t candidate = size_t(tape.scored_index[i]);
    if (!tape.request.tokens.empty()) tokens[i] = tape.request.tokens[candidate];
    if (!dlog_prob.empty()) upstream[i] = dlog_prob[candidate];
  }
  const int64_t rows = std::min(s, head_rows(v));
  for (int64_t i = 0; i < s; i += rows) {
    const int64_t part = std::min(rows, s - i);
    bool accumulate = false;
    if (!dlog_prob.empty()) {
      float* logits = tape.logits;
      if (!logits) {
        logits = gradient_workspace_.get(kDLogits, rows * v);
        transformer.head_forward(logits, tape.scored_hidden + i * c, part);
      }
      backend_.log_prob_backward(logits, tokens.data() + i, upstream.data() + i, part, v, tape.request.temperature,
                                 tape.request.excluded_token);
      linear_backward(dhidden + i * c, logits, v, tape.scored_hidden + i * c, head, part, false);
      accumulate = true;
    }
    if (!request.dlogits.empty()) {
      float* dlogits = gradient_workspace_.get(kDLogits, rows * v);
      for (int64_t r = 0; r < part; ++r)
        backend_.upload(dlogits + r * v, &request.dlogits[size_t(tape.scored_index[size_t(i + r)]) * size_t(v)],
                        size_t(v) * 4);
      linear_backward(dhidden + i * c, dlogits, v, tape.scored_hidden + i * c, head, part, accumulate);
    }
  }
}

void Trainer::base_backward(float* dhidden, const std::atomic<bool>* cancel) {
  Tape& tape = *tape_;
  const Transformer& transformer = model_->transformer();
  const ModelConfig& config = transformer.config();
  const int64_t n = tape.packing.tokens(), c = config.hidden;
  const RowSubset* narrowed = tape.narrowed ? &tape.scored : nullptr;
  const int64_t m = narrowed ? narrowed->size() : n;
  Parameter* final_norm = find(std::string(kBase) + "ln_f.weight");
  float* dout = gradient_workspace_.get(kDOut, std::max(n, m) * c);
  backend_.fill_zero(dout, m * c);
  backend_.rmsnorm_backward(dout, gradient_of(final_norm), dhidden, tape.base.last, final_norm->value.as(), m, c,
                            config.rms_norm_eps);
  for (size_t i = transformer.block_count(); i-- > 0;) {
    check_cancelled(cancel);
    const RowSubset* subset = i + 1 == transformer.block_count() ? narrowed : nullptr;
    float* dx = subset ? gradient_workspace_.get(kDX, n * c) : dout;
    const std::optional<KvLayer> kv = layer_of(tape.pass ? &*tape.pass : nullptr, i);
    block_backward(transformer.block(i), base_blocks_[i], tape.base.blocks[i], tape.packing, subset, dx, dout,
                   kv ? &*kv : nullptr);
    dout = dx;
  }
  Parameter* table = find(std::string(kBase) + "wte.weight");
  if (table->trains) {
    if (transformer.block_count() == 0 && narrowed) {
      std::vector<int32_t> ids;
      for (int32_t row : narrowed->rows) ids.push_back(tape.request.ids[size_t(row)]);
      backend_.embedding_backward(table->gradient.as(), ids.data(), dout, m, c);
    } else {
      backend_.embedding_backward(table->gradient.as(), tape.request.ids.data(), dout, n, c);
    }
  }
}

std::vector<float> Trainer::backward(const BackwardRequest& request, const std::atomic<bool>* cancel) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_lock<WeightsMutex> weights(model_->weights_mutex());
  check_argument(tape_ != nullptr, "backward: expected a score with keep before it");
  Tape& tape = *tape_;
  const ModelConfig& config = model_->transformer().config();
  const size_t m = size_t(tape.candidates.size());
  const int64_t c = config.hidden, n = tape.packing.tokens(), s = tape.scored.size();
  check_argument(
      request.dlog_probs.empty() || (request.dlog_probs.size() == m && (tape.request.log_probs || tape.request.policy)),
      "dLogProbs: expected one number per candidate of a score with tokens");
  check_argument(request.dplanner_logits.empty() || (request.dplanner_logits.size() == m && tape.request.planner),
                 "dPlannerLogits: expected one number per candidate of a score with planner");
  check_argument(request.dlog_likelihoods.empty() || (request.dlog_likelihoods.size() == m && tape.request.policy),
                 "dLogLikelihoods: expected one number per candidate of a score with policy");
  check_argument(
      request.dlogits.empty() || (tape.request.logits && request.dlogits.size() == m * size_t(config.embedding_size)),
      "dLogits: expected (candidates, embeddingSize) numbers of a score with logits");

  std::vector<float> dlog_prob = request.dlog_probs, dplanner = request.dplanner_logits;
  if (!request.dlog_likelihoods.empty()) {
    std::vector<float> dz(m), dtoken(m);
    LikelihoodGradArgs args{};
    args.forward = likelihood_args(tape);
    args.dlog_likelihood = request.dlog_likelihoods.data();
    args.dplanner_logit = dz.data();
    args.dtoken_log_prob = dtoken.data();
    backend_.likelihood_backward(args);
    dlog_prob.resize(m);
    dplanner.resize(m);
    for (size_t i = 0; i < m; ++i) {
      dlog_prob[i] += dtoken[i];
      dplanner[i] += dz[i];
    }
  }
  for (const std::vector<float>* values :
       std::initializer_list<const std::vector<float>*>{&dlog_prob, &dplanner, &request.dlogits})
    for (float x : *values)
      if (!std::isfinite(x)) throw Error(ErrorCode::kNonFinite, "backward: dL/d of an output is NaN or infinite");

  const bool given_hidden = !tape.request.hidden.empty();
  const bool to_hidden = given_hidden || base_trains_;
  const bool head_needed = s > 0 && (!dlog_prob.empty() || !request.dlogits.empty());
  const bool planner_needed = m > 0 && !dplanner.empty() && (planner_trains_ || to_hidden);
  std::vector<float> dhidden_out(given_hidden ? size_t(n * c) : 0, 0.0f);
  if (m == 0 || (!planner_needed && !(head_needed && base_trains_))) {
    tape_.reset();
    return dhidden_out;
  }

  float* dhidden = nullptr;
  if (tape.narrowed) {
    dhidden = gradient_workspace_.get(kDHidden, s * c);
    head_backward(request, dlog_prob, dhidden);
  } else {
    if (to_hidden) {
      dhidden = gradient_workspace_.get(kDHidden, n * c);
      backend_.fill_zero(dhidden, n * c);
    }
    if (planner_needed && tape.whole) {
      const int64_t all = tape.planner_packing().tokens();
      float* dstates = to_hidden ? gradient_workspace_.get(kDStates, all * c) : nullptr;
      if (dstates) backend_.fill_zero(dstates, all * c);
      planner_backward(dplanner, dstates, cancel);
      // Held states are constants, as held keys and values are.
      if (dstates) backend_.gather_rows(dhidden, dstates, tape.whole->fresh.data(), n, c);
    } else if (planner_needed) {
      planner_backward(dplanner, dhidden, cancel);
    }
    if (head_needed && base_trains_) {
      float* dscored = gradient_workspace_.get(kDCandidate, s * c);
      head_backward(request, dlog_prob, dscored);
      backend_.scatter_add_rows(dhidden, dscored, tape.scored.rows.data(), s, c);
    }
  }
  if (given_hidden) {
    backend_.download(dhidden_out.data(), dhidden, dhidden_out.size() * 4);
  } else if (base_trains_) {
    base_backward(dhidden, cancel);
  }
  tape_.reset();
  return dhidden_out;
}

LikelihoodArgs Trainer::likelihood_args(const Tape& tape) {
  LikelihoodArgs args{};
  args.batch = tape.packing.batch();
  args.offsets = tape.candidates.offsets.data();
  args.planner_logit = tape.planner_logits.data();
  args.token_log_prob = tape.log_probs.data();
  args.selected = tape.request.selected.data();
  args.forced = tape.request.forced.data();
  args.planner_temperature = tape.request.planner_temperature;
  args.probability_scale = tape.request.probability_scale;
  args.reference_likelihood = tape.request.reference_likelihood;
  return args;
}

// ---- optimiser ----------------------------------------------------------------------------------

void Trainer::zero_grad() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& p : parameters_)
    if (p->trains) backend_.fill_zero(p->gradient.as(), p->n);
}

double Trainer::norm_locked() {
  double sum = 0;
  for (const auto& p : parameters_)
    if (p->trains) sum += backend_.sum_squares(p->gradient.as(), p->n);
  return std::sqrt(sum);
}

double Trainer::grad_norm() {
  std::lock_guard<std::mutex> lock(mutex_);
  return norm_locked();
}

double Trainer::step(const OptimizerStep& request) {
  std::lock_guard<std::mutex> lock(mutex_);
  const double norm = norm_locked();
  if (!std::isfinite(norm)) throw Error(ErrorCode::kNonFinite, "the gradient's norm is not finite");
  ++steps_;
  AdamWArgs args{};
  args.step = steps_;
  args.beta1 = request.beta1;
  args.beta2 = request.beta2;
  args.eps = request.eps;
  args.weight_decay = request.weight_decay;
  // As torch.nn.utils.clip_grad_norm_.
  args.gradient_scale = request.max_grad_norm > 0 ? std::min(1.0, request.max_grad_norm / (norm + 1e-6)) : 1.0;
  args.moments = options_.moments;
  args.seed = options_.seed;
  // From here on weights of the model change.
  const std::unique_lock<WeightsMutex> weights(model_->weights_mutex());
  for (const auto& p : parameters_) {
    ++args.stream;
    if (!p->trains) continue;
    args.lr = p->planner ? request.planner_lr : request.base_lr;
    const auto update = [&](int64_t first, int64_t n) {
      const size_t moment = size_t(first) * dtype_size(options_.moments);
      args.gradient = p->gradient.as() + first;
      args.exp_avg = p->exp_avg.as<uint8_t>() + moment;
      args.exp_avg_sq = p->exp_avg_sq.as<uint8_t>() + moment;
      args.first = first;
      args.n = n;
      backend_.adamw_step(args);
    };
    args.parameter = p->value.as();
    if (p->rows.empty()) update(0, p->n);
    for (const Bf16Rows& piece : p->rows) {
      const int64_t first = piece.first * p->shape[1];
      args.high = piece.data;
      args.low = p->low.as<int16_t>() + first;
      update(first, piece.rows * p->shape[1]);
    }
    backend_.fill_zero(p->gradient.as(), p->n);
  }
  merge_adapters();
  write_model();
  return norm;
}

NamedTensor Trainer::named(const std::string& name, const Parameter& p, const Buffer& buffer, DType dtype) const {
  NamedTensor tensor{name, p.shape, std::vector<float>(static_cast<size_t>(p.n))};
  if (dtype == DType::kF32) {
    backend_.download(tensor.data.data(), buffer.as<void>(), tensor.data.size() * 4);
    return tensor;
  }
  std::vector<uint16_t> stored(tensor.data.size());
  backend_.download(stored.data(), buffer.as<void>(), stored.size() * 2);
  std::transform(stored.begin(), stored.end(), tensor.data.begin(), bf16_to_f32);
  return tensor;
}

std::vector<float> Trainer::read_master(const Parameter& p) const {
  std::vector<float> values(static_cast<size_t>(p.n));
  if (p.rows.empty()) {
    backend_.download(values.data(), p.value.as<void>(), values.size() * 4);
    return values;
  }
  std::vector<uint16_t> high(values.size());
  std::vector<int16_t> low(values.size());
  for (const Bf16Rows& piece : p.rows)
    backend_.download(high.data() + piece.first * p.shape[1], piece.data, size_t(piece.rows * p.shape[1]) * 2);
  backend_.download(low.data(), p.low.as<void>(), low.size() * 2);
  for (size_t i = 0; i < values.size(); ++i) values[i] = join_float(high[i], low[i]);
  return values;
}

void Trainer::write_master(Parameter& p, const std::vector<float>& values) {
  if (p.rows.empty()) return backend_.upload(p.value.as<void>(), values.data(), values.size() * 4);
  std::vector<uint16_t> high(values.size());
  std::vector<int16_t> low(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const SplitFloat split = split_float(values[i]);
    high[i] = split.high;
    low[i] = split.low;
  }
  for (const Bf16Rows& piece : p.rows)
    backend_.upload(piece.data, high.data() + piece.first * p.shape[1], size_t(piece.rows * p.shape[1]) * 2);
  backend_.upload(p.low.as<void>(), low.data(), low.size() * 2);
}

std::vector<NamedTensor> Trainer::gradients() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<NamedTensor> out;
  for (const auto& p : parameters_)
    if (p->trains) out.push_back(named(p->name, *p, p->gradient, DType::kF32));
  return out;
}

std::vector<NamedTensor> Trainer::state() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<NamedTensor> out;
  for (const auto& p : parameters_) {
    if (!p->trains) continue;
    out.push_back({p->name, p->shape, read_master(*p)});
    out.push_back(named("exp_avg." + p->name, *p, p->exp_avg, options_.moments));
    out.push_back(named("exp_avg_sq." + p->name, *p, p->exp_avg_sq, options_.moments));
  }
  return out;
}

void Trainer::load_state(int64_t steps, const std::vector<NamedTensor>& tensors) {
  std::lock_guard<std::mutex> lock(mutex_);
  check_argument(steps >= 0, "state: expected a number of steps from 0");
  std::unordered_map<std::string, const NamedTensor*> given;
  for (const NamedTensor& tensor : tensors) given[tensor.name] = &tensor;
  // Everything is looked at before anything is changed.
  struct Write {
    Parameter* parameter;
    const Buffer* moment;  // null: the master
    const NamedTensor* tensor;
  };
  std::vector<Write> writes;
  for (const auto& p : parameters_) {
    if (!p->trains) continue;
    for (const auto& [name, buffer] : {std::pair<std::string, const Buffer*>{p->name, nullptr},
                                       {"exp_avg." + p->name, &p->exp_avg},
                                       {"exp_avg_sq." + p->name, &p->exp_avg_sq}}) {
      const auto found = given.find(name);
      check_argument(found != given.end(), "state: tensor " + name + " is missing");
      check_argument(found->second->shape == p->shape && int64_t(found->second->data.size()) == p->n,
                     "state: tensor " + name + " does not have the parameter's shape");
      writes.push_back({p.get(), buffer, found->second});
    }
  }
  const std::unique_lock<WeightsMutex> weights(model_->weights_mutex());
  for (const Write& write : writes) {
    const std::vector<float>& values = write.tensor->data;
    if (!write.moment) {
      write_master(*write.parameter, values);
    } else if (options_.moments == DType::kF32) {
      backend_.upload(write.moment->as<void>(), values.data(), values.size() * 4);
    } else {
      // Exact for what a trainer with bf16 moments gave.
      std::vector<uint16_t> stored(values.size());
      std::transform(values.begin(), values.end(), stored.begin(), f32_to_bf16);
      backend_.upload(write.moment->as<void>(), stored.data(), stored.size() * 2);
    }
  }
  steps_ = steps;
  merge_adapters();
  write_model();
}

void Trainer::set_adapters(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  check_argument(!adapters_.empty(), "setAdapters: this trainer has no adapters");
  if (on == adapters_on_) return;
  adapters_on_ = on;
  const std::unique_lock<WeightsMutex> weights(model_->weights_mutex());
  merge_adapters();
  write_model();
}

}  // namespace dultra
