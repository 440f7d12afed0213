#include "model/parameters.h"

#include <algorithm>
#include <utility>

#include "ops/adamw.h"

namespace dultra {

namespace {

// Parameters begin at multiples of this many numbers, so that vector loads of any type are aligned. The numbers between
// them are 0 and stay 0.
constexpr int64_t kAlign = 16;

int64_t aligned(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

const Parameter* Parameters::add(std::string name, std::vector<int64_t> shape, bool planner, uint32_t stream,
                                 std::vector<Bf16Rows> model_rows) {
  auto p = std::make_unique<Parameter>();
  p->name = std::move(name);
  p->shape = std::move(shape);
  p->n = 1;
  for (int64_t size : p->shape) p->n *= size;
  p->planner = planner;
  p->stream = stream;
  p->model_rows = std::move(model_rows);
  p->offset = size_;
  size_ += aligned(p->n);
  int64_t& masters = p->model_rows.empty() ? master_size_ : low_size_;
  p->master_offset = masters;
  masters += aligned(p->n);
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

void Parameters::allocate() {
  masters_ = zeroed(size_t(master_size_) * 4);
  low_ = zeroed(size_t(low_size_) * sizeof(int16_t));
  gradients_ = zeroed(size_t(size_) * 4);
  exp_avg_ = zeroed(moment_bytes(size_));
  exp_avg_sq_ = zeroed(moment_bytes(size_));
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
  std::vector<float> values(static_cast<size_t>(p.n));
  if (p.model_rows.empty()) {
    backend_.download(values.data(), master(p), values.size() * 4);
    return values;
  }
  std::vector<uint16_t> high(values.size());
  std::vector<int16_t> low_bits(values.size());
  for (const Bf16Rows& piece : p.model_rows)
    backend_.download(high.data() + piece.first * p.shape[1], piece.data, size_t(piece.rows * p.shape[1]) * 2);
  backend_.download(low_bits.data(), low(p), low_bits.size() * 2);
  for (size_t i = 0; i < values.size(); ++i) values[i] = join_float(high[i], low_bits[i]);
  return values;
}

void Parameters::write_master(const Parameter& p, const std::vector<float>& values) {
  if (p.model_rows.empty()) return backend_.upload(master(p), values.data(), values.size() * 4);
  std::vector<uint16_t> high(values.size());
  std::vector<int16_t> low_bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const SplitFloat split = split_float(values[i]);
    high[i] = split.high;
    low_bits[i] = split.low;
  }
  for (const Bf16Rows& piece : p.model_rows)
    backend_.upload(piece.data, high.data() + piece.first * p.shape[1], size_t(piece.rows * p.shape[1]) * 2);
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

void Parameters::write_moment(void* to, const std::vector<float>& values) {
  if (moments_ == DType::kF32) return backend_.upload(to, values.data(), values.size() * 4);
  // Exact for what `read_moment` gave.
  std::vector<uint16_t> stored(values.size());
  std::transform(values.begin(), values.end(), stored.begin(), f32_to_bf16);
  backend_.upload(to, stored.data(), stored.size() * 2);
}

std::vector<NamedTensor> Parameters::read_gradients() const {
  std::vector<NamedTensor> out;
  for (const auto& p : parameters_) {
    out.push_back({p->name, p->shape, std::vector<float>(static_cast<size_t>(p->n))});
    backend_.download(out.back().data.data(), gradient(*p), out.back().data.size() * 4);
  }
  return out;
}

std::vector<NamedTensor> Parameters::read_state() const {
  std::vector<NamedTensor> out;
  for (const auto& p : parameters_) {
    out.push_back({p->name, p->shape, read_master(*p)});
    out.push_back({"exp_avg." + p->name, p->shape, read_moment(exp_avg(*p), p->n)});
    out.push_back({"exp_avg_sq." + p->name, p->shape, read_moment(exp_avg_sq(*p), p->n)});
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
      write_moment(exp_avg(*p), first);
      write_moment(exp_avg_sq(*p), second);
    }
}

}  // namespace dultra
