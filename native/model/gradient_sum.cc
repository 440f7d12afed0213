#include "model/gradient_sum.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <type_traits>

namespace dultra {

namespace {

// Numbers that are copied or exchanged at once: 16 MB of fp32.
constexpr int64_t kPiece = int64_t(1) << 22;
// Numbers that are on their way at most: as many as the largest bucket has, up to 128 MB of fp32.
constexpr int64_t kUnderWay = int64_t(1) << 25;
// The unit of fixed point is 2^-50. Half of it is an error of 4e-16 per micro-batch, below the rounding of fp32 for all
// gradients of more than 1e-8, AdamW's eps. It is a constant because a scale that followed the gradients would have to
// be known before the first micro-batch.
constexpr double kPerUnit = double(int64_t(1) << 50);
// 2^62 units: what the sum over all ranks may reach.
constexpr double kMost = 4096;

// fn(range) for pieces of a range.
template <typename Fn>
void cut(const Range& range, Fn&& fn) {
  for (int64_t at = range.begin; at < range.end; at += kPiece) fn(Range{at, std::min(range.end, at + kPiece)});
}

int64_t ring_numbers(const std::vector<Bucket>& buckets, const Shard& shard, int ranks) {
  if (ranks == 1 && !shard.splits_gradients) return 0;
  int64_t most = 0;
  for (const Bucket& bucket : buckets) most = std::max(most, bucket.range.size());
  return std::min(most, kUnderWay);
}

size_t number_size(Reduction reduction) { return reduction == Reduction::kExact ? sizeof(int64_t) : sizeof(float); }

}  // namespace

GradientSum::Bytes GradientSum::bytes(const std::vector<Bucket>& buckets, const Shard& shard, int64_t size, int64_t own,
                                      Reduction reduction) {
  Bytes bytes;
  if (reduction == Reduction::kExact) bytes.fixed = size_t(shard.splits_gradients ? own : size) * sizeof(int64_t);
  bytes.exchange = size_t(ring_numbers(buckets, shard, shard.ranks)) * number_size(reduction);
  return bytes;
}

size_t GradientSum::bytes() const {
  Shard shard = parameters_.shard();
  shard.ranks = communicator_->size();
  const Bytes all = bytes(parameters_.buckets(), shard, parameters_.size(),
                          parameters_.range_of(parameters_.shard().rank).size(), reduction_);
  return all.fixed + all.exchange;
}

Range GradientSum::fixed_range() const {
  return splits() ? parameters_.range_of(parameters_.shard().rank) : Range{0, parameters_.size()};
}

void GradientSum::prepare() {
  staging_.resize(size_t(std::min(kPiece, parameters_.size())));
  if (reduction_ == Reduction::kExact) fixed_.resize(size_t(fixed_range().size()));
  if (ring_) return;
  ring_size_ = ring_numbers(parameters_.buckets(), parameters_.shard(), communicator_->size());
  if (ring_size_ > 0)
    ring_ = std::shared_ptr<void>(::operator new(size_t(ring_size_) * number_size(reduction_)),
                                  [](void* memory) { ::operator delete(memory); });
}

void GradientSum::begin(bool last) {
  if (parameters_.size() == 0) return;
  check_argument(!is_last_, "last: expected `step` or `zeroGrad` after the last backward pass of an update");
  if (splits()) communicator_->agree(Shared::kMicroBatch, parameters_.size());
  prepare();
  is_last_ = last;
  next_ = 0;
  most_ = 0;
}

void GradientSum::finish(int stage) {
  if (!is_last_ && !splits()) return;
  const std::vector<Bucket>& buckets = parameters_.buckets();
  for (; next_ < buckets.size() && buckets[next_].stages.last <= stage; ++next_) take(buckets[next_]);
}

void GradientSum::end() {
  if (parameters_.size() == 0) return;
  if (is_last_ || splits())
    finish(std::numeric_limits<int>::max());
  else if (reduction_ == Reduction::kExact)
    add({0, parameters_.size()});
  largest_ += most_;
}

void GradientSum::take(const Bucket& bucket) {
  if (reduction_ == Reduction::kExact && !splits()) add(bucket.range);
  start(bucket);
  if (splits()) backend_.fill_zero(parameters_.gradients(bucket), bucket.range.size());
}

void GradientSum::add(const Range& range) {
  cut(range, [&](const Range& piece) {
    backend_.download(staging_.data(), parameters_.reduced(piece.begin), size_t(piece.size()) * 4);
    add_fixed(fixed_.data() + piece.begin, staging_.data(), piece.size());
  });
  backend_.fill_zero(parameters_.reduced(range.begin), range.size());
}

void GradientSum::add_fixed(int64_t* to, const float* from, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(from[i]);
    // Not by std::max, which drops NaN.
    if (!(magnitude <= largest)) largest = magnitude;
  }
  // A rank's share of what the sum may reach.
  if (!(largest_ + double(largest) <= kMost / communicator_->size())) finite_ = false;
  // Beyond that the sum means nothing any more, and could overflow.
  if (!finite_) return;
  most_ = std::max(most_, double(largest));
  for (int64_t i = 0; i < n; ++i) to[i] += std::llrint(double(from[i]) * kPerUnit);
}

template <typename Fn>
void GradientSum::for_pieces(const Bucket& bucket, Fn&& fn) const {
  const Shard& shard = parameters_.shard();
  if (!shard.is_split) return cut(bucket.range, [&](const Range& range) { fn(range, kEveryRank); });
  for (int rank = 0; rank < shard.ranks; ++rank) {
    const Range own = parameters_.range_of(rank);
    cut({std::max(own.begin, bucket.range.begin), std::min(own.end, bucket.range.end)},
        [&](const Range& range) { fn(range, rank); });
  }
}

void GradientSum::start(const Bucket& bucket) {
  if (ring_size_ == 0) return;
  for_pieces(bucket, [&](const Range& range, int owner) {
    // A bucket that is more than the ring has room for goes in parts.
    for (int64_t at = range.begin; at < range.end; at += ring_size_) {
      const Range part{at, std::min(range.end, at + ring_size_)};
      if (reduction_ == Reduction::kExact)
        send<int64_t>(bucket, part, owner);
      else
        send<float>(bucket, part, owner);
    }
  });
}

template <typename T>
void GradientSum::send(const Bucket& bucket, const Range& range, int owner) {
  const int64_t n = range.size();
  if (ring_at_ + n > ring_size_) ring_at_ = 0;
  const auto is_taken = [&](const Piece& piece) {
    return piece.begin < ring_at_ + n && ring_at_ < piece.begin + piece.range.size();
  };
  while (std::any_of(pieces_.begin(), pieces_.end(), is_taken)) receive();
  T* to = static_cast<T*>(ring_.get()) + ring_at_;
  const float* gradients = parameters_.gradients(bucket) + (range.begin - bucket.range.begin);
  if constexpr (std::is_same_v<T, float>) {
    backend_.download(to, gradients, size_t(n) * 4);
  } else if (splits()) {
    backend_.download(staging_.data(), gradients, size_t(n) * 4);
    std::fill_n(to, n, 0);
    add_fixed(to, staging_.data(), n);
  } else {
    std::copy_n(fixed_.data() + range.begin, n, to);
  }
  pieces_.push_back({range, owner, ring_at_, communicator_->start_sum(to, n, owner, ring_)});
  ring_at_ += n;
}

void GradientSum::receive() {
  const Piece piece = pieces_.front();
  communicator_->wait_sum(piece.number);
  pieces_.pop_front();
  if (piece.owner != kEveryRank && piece.owner != communicator_->rank()) return;
  if (reduction_ == Reduction::kExact)
    receive<int64_t>(piece);
  else
    receive<float>(piece);
}

template <typename T>
void GradientSum::receive(const Piece& piece) {
  const int64_t n = piece.range.size();
  const T* from = static_cast<const T*>(ring_.get()) + piece.begin;
  if constexpr (std::is_same_v<T, int64_t>) {
    int64_t* to = fixed_.data() + (piece.range.begin - fixed_range().begin);
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] + (splits() ? to[i] : 0);
  } else {
    float* to = parameters_.reduced(piece.range.begin);
    if (!splits()) return backend_.upload(to, from, size_t(n) * 4);
    backend_.download(staging_.data(), to, size_t(n) * 4);
    for (int64_t i = 0; i < n; ++i) staging_[size_t(i)] += from[i];
    backend_.upload(to, staging_.data(), size_t(n) * 4);
  }
}

void GradientSum::receive_all() {
  while (!pieces_.empty()) receive();
}

void GradientSum::collect() { collect({0, parameters_.size()}); }

void GradientSum::collect(const Range& range) {
  if (reduction_ == Reduction::kSum || fixed_.empty()) return;
  const int64_t first = fixed_range().begin;
  cut(range, [&](const Range& piece) {
    for (int64_t i = 0; i < piece.size(); ++i)
      staging_[size_t(i)] = float(double(fixed_[size_t(piece.begin - first + i)]) / kPerUnit);
    backend_.upload(parameters_.reduced(piece.begin), staging_.data(), size_t(piece.size()) * 4);
  });
}

void GradientSum::restore() {
  if (reduction_ == Reduction::kExact && parameters_.size() > 0)
    backend_.fill_zero(parameters_.reduced(0), parameters_.size());
}

void GradientSum::check_range() {
  // Ranks agree before any of them throws.
  int64_t beyond = finite_ ? 0 : 1;
  communicator_->all_reduce_sum(&beyond, 1);
  if (beyond > 0)
    throw Error(ErrorCode::kNonFinite, "a gradient is not finite, or above what the exact reduction can add (" +
                                           std::to_string(int(kMost) / communicator_->size()) + " on each rank)");
}

void GradientSum::reduce() {
  if (parameters_.size() == 0) return;
  communicator_->agree(Shared::kGradients, parameters_.size());
  // A rank without rows has computed nothing.
  prepare();
  if (!is_last_ && !splits())
    for (const Bucket& bucket : parameters_.buckets()) start(bucket);
  is_last_ = false;
  receive_all();
  if (reduction_ == Reduction::kSum) return;
  check_range();
  collect(parameters_.range_of(parameters_.shard().rank));
  std::fill(fixed_.begin(), fixed_.end(), 0);
  largest_ = 0;
}

void GradientSum::clear() {
  // Other ranks have begun them, too, or will.
  receive_all();
  parameters_.clear_gradients();
  std::fill(fixed_.begin(), fixed_.end(), 0);
  is_last_ = false;
  largest_ = 0;
  finite_ = true;
}

}  // namespace dultra
