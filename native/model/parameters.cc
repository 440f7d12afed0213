#include "model/parameters.h"

#include <algorithm>
#include <utility>

#include "ops/adamw.h"

namespace dultra {

namespace {

// Blocks of the norm that an arena has at most: so many ranks can share it evenly.
constexpr int64_t kBlocks = 1024;

}  // namespace

const Parameter* Parameters::add(std::string name, std::vector<int64_t> shape, bool planner, uint32_t stream,
                                 Stages stages, std::vector<Bf16Rows> model_rows, bool whole_master) {
  auto p = std::make_unique<Parameter>();
  p->name = std::move(name);
  p->shape = std::move(shape);
  p->n = 1;
  for (int64_t size : p->shape) p->n *= size;
  p->planner = planner;
  p->stream = stream;
  p->stages = stages;
  p->model_rows = std::move(model_rows);
  p->whole_master = whole_master;
  p->offset = size_;
  size_ += aligned_numbers(p->n);
  parameters_.push_back(std::move(p));
  return by_name_[parameters_.back()->name] = parameters_.back().get();
}

Buffer Parameters::zeroed(size_t bytes) {
  const int64_t words = int64_t(bytes + 3) / 4;
  Buffer buffer(backend_, size_t(words) * 4);
  backend_.fill_zero(buffer.as(), words);
  bytes_ += bytes;
  return buffer;
}

int64_t Parameters::block() const { return std::max<int64_t>(64, aligned_numbers((size_ + kBlocks - 1) / kBlocks)); }

Range Parameters::range_of(int rank) const {
  if (!shard_.is_split) return {0, size_};
  const int64_t blocks = (size_ + block() - 1) / block();
  const auto begin = [&](int r) { return std::min(size_, blocks * r / shard_.ranks * block()); };
  return {begin(rank), begin(rank + 1)};
}

Range Parameters::own_of(const Parameter& p, int rank) const {
  const Range range = range_of(rank);
  const auto within = [&](int64_t at) { return std::clamp<int64_t>(at - p.offset, 0, p.n); };
  return {within(range.begin), within(range.end)};
}

void Parameters::allocate() {
  const Range range = range_of(shard_.rank);
  for (const auto& p : parameters_) {
    p->own = own_of(*p, shard_.rank);
    p->held = p->whole_master ? Range{0, p->n} : p->own;
    p->moment_offset = std::clamp(p->offset, range.begin, range.end) - range.begin;
    int64_t& masters = p->model_rows.empty() ? master_size_ : low_size_;
    p->master_offset = masters;
    masters += aligned_numbers(p->held.size());
  }
  std::vector<BucketPart> parts;
  for (const auto& p : parameters_) parts.push_back({aligned_numbers(p->n), p->stages});
  buckets_ = make_buckets(parts);
  gradient_size_ = shard_.splits_gradients ? share_memory(buckets_) : size_;
  for (const auto& p : parameters_)
    for (const Bucket& bucket : buckets_)
      if (p->offset >= bucket.range.begin && p->offset < bucket.range.end)
        p->gradient_offset = bucket.memory + (p->offset - bucket.range.begin);
  masters_ = zeroed(size_t(master_size_) * 4);
  low_ = zeroed(size_t(low_size_) * sizeof(int16_t));
  gradients_ = zeroed(size_t(gradient_size_) * 4);
  if (shard_.splits_gradients) reduced_ = zeroed(size_t(range.size()) * 4);
  exp_avg_ = zeroed(moment_bytes(range.size()));
  exp_avg_sq_ = zeroed(moment_bytes(range.size()));
}

void Parameters::bind(const Weights& weights) {
  for (const auto& p : parameters_) {
    const auto is_of = [&](const WeightLocation& location) { return location.tensor == p->name; };
    if (!p->model_rows.empty() || std::none_of(weights.locations().begin(), weights.locations().end(), is_of)) continue;
    write_master(*p, weights.read(p->name));
  }
  for (const WeightLocation& location : weights.locations()) {
    const Parameter* p = find(location.tensor);
    if (location.kind == WeightLocation::Kind::kMatrix)
      parts_[location.linear].push_back({location.at, location.rows, p, location.first, nullptr, nullptr});
    else if (p && !gradient_of_.count(location.holder()))
      gradient_of_[location.holder()] = gradient(*p) + location.first;
  }
  // A bias belongs to the part of the matrix that begins at the same row.
  for (const WeightLocation& location : weights.locations()) {
    const Parameter* p = find(location.tensor);
    if (location.kind != WeightLocation::Kind::kMatrix) continue;
    for (const WeightLocation& bias : weights.locations())
      if (bias.vector == &location.linear->bias && bias.at == location.at)
        if (const Parameter* trains = find(bias.tensor))
          for (LinearPart& part : parts_[location.linear])
            if (p && part.row == location.at) part.bias_gradient = gradient(*trains) + bias.first;
  }
}

void Parameters::bind_adapter(const Adapter& adapter) {
  for (LinearPart& part : parts_.at(adapter.linear))
    if (part.row == adapter.row) part.adapter = &adapter;
}

const Parameter* Parameters::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

float* Parameters::gradient_of(const void* holder) const {
  const auto found = gradient_of_.find(holder);
  return found == gradient_of_.end() ? nullptr : found->second;
}

const std::vector<LinearPart>& Parameters::parts(const Linear& linear) const { return parts_.at(&linear); }

std::vector<float> Parameters::read_master(const Parameter& p) const {
  std::vector<float> values(static_cast<size_t>(p.held.size()));
  if (p.model_rows.empty()) {
    backend_.download(values.data(), master(p), values.size() * 4);
    return values;
  }
  std::vector<uint16_t> high(values.size());
  std::vector<int16_t> low_bits(values.size());
  for_rows(p, p.held, [&](uint16_t* data, const Range& range) {
    backend_.download(high.data() + range.begin - p.held.begin, data, size_t(range.size()) * 2);
  });
  backend_.download(low_bits.data(), low(p), low_bits.size() * 2);
  for (size_t i = 0; i < values.size(); ++i) values[i] = join_float(high[i], low_bits[i]);
  return values;
}

void Parameters::write_master(const Parameter& p, const std::vector<float>& values) {
  const float* from = values.data() + p.held.begin;
  const size_t n = size_t(p.held.size());
  if (p.model_rows.empty()) return backend_.upload(master(p), from, n * 4);
  std::vector<uint16_t> high(n);
  std::vector<int16_t> low_bits(n);
  for (size_t i = 0; i < n; ++i) {
    const SplitFloat split = split_float(from[i]);
    high[i] = split.high;
    low_bits[i] = split.low;
  }
  for_rows(p, p.held, [&](uint16_t* data, const Range& range) {
    backend_.upload(data, high.data() + range.begin - p.held.begin, size_t(range.size()) * 2);
  });
  backend_.upload(low(p), low_bits.data(), low_bits.size() * 2);
}

std::vector<float> Parameters::read_moment(const void* from, int64_t n) const {
  std::vector<float> values(static_cast<size_t>(n));
  if (moments_ == DType::kF32) {
    backend_.download(values.data(), from, values.size() * 4);
    return values;
  }
  std::vector<uint16_t> stored(values.size());
  backend_.download(stored.data(), from, stored.size() * 2);
  std::transform(stored.begin(), stored.end(), values.begin(), bf16_to_f32);
  return values;
}

void Parameters::write_moment(void* to, const float* values, int64_t n) {
  if (moments_ == DType::kF32) return backend_.upload(to, values, size_t(n) * 4);
  // Exact for what `read_moment` gave.
  std::vector<uint16_t> stored(static_cast<size_t>(n));
  std::transform(values, values + n, stored.begin(), f32_to_bf16);
  backend_.upload(to, stored.data(), stored.size() * 2);
}

void Parameters::clear_gradients() const {
  if (gradient_size_ > 0) backend_.fill_zero(gradients_.as(), gradient_size_);
  const Range own = range_of(shard_.rank);
  if (shard_.splits_gradients && own.size() > 0) backend_.fill_zero(reduced_.as(), own.size());
}

std::vector<NamedTensor> Parameters::read_gradients() const {
  std::vector<NamedTensor> out;
  for (const auto& p : parameters_) {
    out.push_back({p->name, p->shape, std::vector<float>(static_cast<size_t>(p->n))});
    backend_.download(out.back().data.data(), gradient(*p), out.back().data.size() * 4);
  }
  return out;
}

std::vector<NamedTensor> Parameters::read_state(Communicator& ranks) const {
  std::vector<NamedTensor> out;
  if (shard_.is_split) ranks.agree(Shared::kState, size_);
  // A tensor at a time: only rank 0 has room for all.
  const auto add = [&](const std::string& prefix, const Parameter& p, std::vector<float> part, const Range& held) {
    if (held.size() < p.n) part.insert(part.begin(), size_t(held.begin), 0.0f);
    part.resize(size_t(p.n));
    if (shard_.is_split)
      for (int rank = 0; rank < shard_.ranks; ++rank) {
        const Range range = own_of(p, rank);
        ranks.broadcast(part.data() + range.begin, size_t(range.size()) * 4, rank);
      }
    if (shard_.rank == 0 || !shard_.is_split) out.push_back({prefix + p.name, p.shape, std::move(part)});
  };
  for (const auto& p : parameters_) {
    add("", *p, read_master(*p), p->held);
    add("exp_avg.", *p, read_moment(exp_avg(*p), p->own.size()), p->own);
    add("exp_avg_sq.", *p, read_moment(exp_avg_sq(*p), p->own.size()), p->own);
  }
  return out;
}

void Parameters::write_state(const std::vector<NamedTensor>& tensors) {
  std::unordered_map<std::string, const NamedTensor*> given;
  for (const NamedTensor& tensor : tensors) given[tensor.name] = &tensor;
  const auto get = [&](const std::string& name, const Parameter& p) -> const std::vector<float>& {
    const auto found = given.find(name);
    check_argument(found != given.end(), "state: tensor " + name + " is missing");
    check_argument(found->second->shape == p.shape && int64_t(found->second->data.size()) == p.n,
                   "state: tensor " + name + " does not have the parameter's shape");
    return found->second->data;
  };
  for (bool write : {false, true})
    for (const auto& p : parameters_) {
      const std::vector<float>&master = get(p->name, *p), &first = get("exp_avg." + p->name, *p),
            &second = get("exp_avg_sq." + p->name, *p);
      if (!write) continue;
      write_master(*p, master);
      write_moment(exp_avg(*p), first.data() + p->own.begin, p->own.size());
      write_moment(exp_avg_sq(*p), second.data() + p->own.begin, p->own.size());
    }
}

}  // namespace dultra
