#include "model/gradient_sum.h"

#include <algorithm>
#include <cmath>

namespace dultra {

namespace {

// Numbers that are copied or exchanged at once: 64 MB of fp32.
constexpr int64_t kPiece = int64_t(1) << 24;
// The unit of fixed point is 2^-50. Half of it is an error of 4e-16 per micro-batch, below the rounding of fp32 for all
// gradients of more than 1e-8, AdamW's eps. It is a constant because a scale that followed the gradients would have to
// be known before the first micro-batch.
constexpr double kPerUnit = double(int64_t(1) << 50);
// 2^62 units: what the sum over all ranks may reach.
constexpr double kMost = 4096;

}  // namespace

template <typename Fn>
void GradientSum::for_pieces(const Range& range, Fn&& fn) const {
  for (int64_t first = range.begin; first < range.end; first += kPiece) fn(first, std::min(kPiece, range.end - first));
}

template <typename Fn>
void GradientSum::for_owners(Fn&& fn) const {
  const Shard& shard = parameters_.shard();
  if (!shard.is_split) return fn(Range{0, parameters_.size()}, -1);
  for (int rank = 0; rank < shard.ranks; ++rank) fn(parameters_.range_of(rank), rank);
}

template <typename T>
void GradientSum::sum_ranks(T* x, const Range& range, int owner) {
  if (owner < 0)
    communicator_->all_reduce_sum(x, range.size());
  else
    communicator_->reduce_sum(x, range.size(), owner);
}

void GradientSum::add() {
  if (reduction_ == Reduction::kSum || parameters_.size() == 0) return;
  fixed_.resize(size_t(parameters_.size()));
  staging_.resize(size_t(std::min(kPiece, parameters_.size())));
  double most = 0;
  for_pieces([&](int64_t first, int64_t n) {
    backend_.download(staging_.data(), parameters_.gradients() + first, size_t(n) * 4);
    float largest = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float magnitude = std::fabs(staging_[size_t(i)]);
      // Not by std::max, which drops NaN.
      if (!(magnitude <= largest)) largest = magnitude;
    }
    if (!(largest_ + double(largest) <= kMost)) finite_ = false;
    // Beyond that the sum means nothing any more, and could overflow.
    if (!finite_) return;
    most = std::max(most, double(largest));
    int64_t* to = fixed_.data() + first;
    for (int64_t i = 0; i < n; ++i) to[i] += std::llrint(double(staging_[size_t(i)]) * kPerUnit);
  });
  largest_ += most;
  backend_.fill_zero(parameters_.gradients(), parameters_.size());
}

void GradientSum::collect() { collect({0, parameters_.size()}); }

void GradientSum::collect(const Range& range) {
  if (reduction_ == Reduction::kSum || fixed_.empty()) return;
  for_pieces(range, [&](int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; ++i) staging_[size_t(i)] = float(double(fixed_[size_t(first + i)]) / kPerUnit);
    backend_.upload(parameters_.gradients() + first, staging_.data(), size_t(n) * 4);
  });
}

void GradientSum::restore() {
  if (reduction_ == Reduction::kExact) backend_.fill_zero(parameters_.gradients(), parameters_.size());
}

void GradientSum::check_range() {
  // Ranks agree before any of them throws.
  int64_t beyond = finite_ && largest_ * communicator_->size() <= kMost ? 0 : 1;
  communicator_->all_reduce_sum(&beyond, 1);
  if (beyond > 0)
    throw Error(ErrorCode::kNonFinite, "a gradient is not finite, or above what the exact reduction can add (" +
                                           std::to_string(int(kMost) / communicator_->size()) + " on each rank)");
}

void GradientSum::reduce() {
  if (parameters_.size() == 0) return;
  communicator_->agree(Shared::kGradients, parameters_.size());
  if (reduction_ == Reduction::kExact) {
    // A rank without rows has computed nothing.
    fixed_.resize(size_t(parameters_.size()));
    staging_.resize(size_t(std::min(kPiece, parameters_.size())));
    check_range();
    for_owners([&](const Range& range, int owner) { sum_ranks(fixed_.data() + range.begin, range, owner); });
    collect(parameters_.range_of(parameters_.shard().rank));
    std::fill(fixed_.begin(), fixed_.end(), 0);
    largest_ = 0;
    return;
  }
  if (communicator_->size() == 1) return;
  for_owners([&](const Range& whole, int owner) {
    if (backend_.host_may_read(parameters_.gradients()))
      return sum_ranks(parameters_.gradients() + whole.begin, whole, owner);
    staging_.resize(size_t(std::min(kPiece, parameters_.size())));
    for_pieces(whole, [&](int64_t first, int64_t n) {
      float* at = parameters_.gradients() + first;
      backend_.download(staging_.data(), at, size_t(n) * 4);
      sum_ranks(staging_.data(), {first, first + n}, owner);
      if (owner < 0 || owner == communicator_->rank()) backend_.upload(at, staging_.data(), size_t(n) * 4);
    });
  });
}

void GradientSum::clear() {
  if (parameters_.size() > 0) backend_.fill_zero(parameters_.gradients(), parameters_.size());
  std::fill(fixed_.begin(), fixed_.end(), 0);
  largest_ = 0;
  finite_ = true;
}

}  // namespace dultra
