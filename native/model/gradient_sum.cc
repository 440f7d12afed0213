#include "model/gradient_sum.h"

#include <algorithm>
#include <limits>
#include <new>
#include <type_traits>

#include "ops/fixed_point.h"

namespace dultra {

namespace {

// Numbers that are copied or exchanged at once: 16 MB of fp32.
constexpr int64_t kPiece = int64_t(1) << 22;
// Numbers that are on their way at most: as many as the largest bucket has, up to 128 MB of fp32.
constexpr int64_t kUnderWay = int64_t(1) << 25;

// fn(range) for pieces of a range.
template <typename Fn>
void cut(const Range& range, int64_t piece, Fn&& fn) {
  for (int64_t at = range.begin; at < range.end; at += piece) fn(Range{at, std::min(range.end, at + piece)});
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
  return all.fixed + (is_in_place() ? 0 : all.exchange);
}

void GradientSum::use_device(std::shared_ptr<Communicator> ranks) {
  check_argument(pieces_.empty() && !is_last_, "connect: expected before gradients are exchanged");
  device_ = std::move(ranks);
  host_ring_ = nullptr;
  ring_size_ = ring_at_ = 0;
}

GradientSum::~GradientSum() {
  // The memory that they add up is about to go.
  if (device_ && !pieces_.empty()) device_->abandon_sums();
}

Range GradientSum::fixed_range() const {
  return splits() ? parameters_.range_of(parameters_.shard().rank) : Range{0, parameters_.size()};
}

void GradientSum::prepare() {
  if (is_exact() && largest_.bytes() == 0) {
    fixed_ = Buffer(backend_, size_t(fixed_range().size()) * sizeof(int64_t));
    largest_ = Buffer(backend_, sizeof(float));
    clear_fixed();
  }
  if (ring_size_ > 0 || !exchanges() || is_in_place()) return;
  ring_size_ = ring_numbers(parameters_.buckets(), parameters_.shard(), communicator_->size());
  const size_t number = number_size(reduction_), bytes = size_t(ring_size_) * number;
  if (device_)
    device_ring_ = Buffer(backend_, bytes);
  else
    host_ring_ = std::shared_ptr<void>(::operator new(bytes), [](void* memory) { ::operator delete(memory); });
  if (is_staged()) staging_ = Buffer(backend_, size_t(std::min(kPiece, ring_size_)) * number);
}

void GradientSum::clear_fixed() {
  if (largest_.bytes() == 0) return;
  backend_.fill_zero(fixed_.as(), fixed_range().size() * 2);
  backend_.fill_zero(largest_.as(), 1);
}

void GradientSum::begin(bool last) {
  if (parameters_.size() == 0) return;
  check_argument(!is_last_, "last: expected `step` or `zeroGrad` after the last backward pass of an update");
  if (splits()) communicator_->agree(Shared::kMicroBatch, parameters_.size());
  prepare();
  is_last_ = last;
  next_ = 0;
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
  else if (is_exact())
    add({0, parameters_.size()});
  if (is_exact()) end_exact();
}

void GradientSum::take(const Bucket& bucket) {
  if (is_exact() && !splits()) add(bucket.range);
  start(bucket);
  if (splits()) backend_.fill_zero(parameters_.gradients(bucket), bucket.range.size());
}

void GradientSum::add(const Range& range) {
  float* gradients = parameters_.reduced(range.begin);
  backend_.add_fixed(fixed_.as<int64_t>() + range.begin, largest_.as(), gradients, range.size());
  backend_.fill_zero(gradients, range.size());
}

void GradientSum::end_exact() {
  float largest = 0;
  backend_.download(&largest, largest_.as(), sizeof largest);
  backend_.fill_zero(largest_.as(), 1);
  magnitude_ += double(largest);
  // A rank's share of what the sum may reach. Beyond that, and with NaN, the sum means nothing any more.
  if (!(magnitude_ <= double(kMostFixed) / communicator_->size())) finite_ = false;
}

template <typename Fn>
void GradientSum::for_pieces(const Bucket& bucket, Fn&& fn) const {
  const Shard& shard = parameters_.shard();
  // Of a device, each is a call: as few as there may be.
  const int64_t piece = is_in_place() ? std::numeric_limits<int64_t>::max() / 2 : std::min(kPiece, ring_size_);
  if (!shard.is_split) return cut(bucket.range, piece, [&](const Range& range) { fn(range, kEveryRank); });
  for (int rank = 0; rank < shard.ranks; ++rank) {
    const Range own = parameters_.range_of(rank);
    cut({std::max(own.begin, bucket.range.begin), std::min(own.end, bucket.range.end)}, piece,
        [&](const Range& range) { fn(range, rank); });
  }
}

void GradientSum::start(const Bucket& bucket) {
  if (!exchanges()) return;
  for_pieces(bucket, [&](const Range& range, int owner) {
    if (is_exact())
      send<int64_t>(bucket, range, owner);
    else
      send<float>(bucket, range, owner);
  });
}

template <typename T>
void GradientSum::send(const Bucket& bucket, const Range& range, int owner) {
  const int64_t n = range.size();
  if (is_in_place()) {
    T* sums;
    if constexpr (std::is_same_v<T, float>)
      sums = parameters_.reduced(range.begin);
    else
      sums = fixed_.as<int64_t>() + range.begin;
    pieces_.push_back({range, owner, 0, ranks().start_sum(sums, n, owner, nullptr)});
    return;
  }
  if (ring_at_ + n > ring_size_) ring_at_ = 0;
  const auto is_taken = [&](const Piece& piece) {
    return piece.begin < ring_at_ + n && ring_at_ < piece.begin + piece.range.size();
  };
  while (std::any_of(pieces_.begin(), pieces_.end(), is_taken)) receive();
  T* to = (device_ ? device_ring_.as<T>() : static_cast<T*>(host_ring_.get())) + ring_at_;
  put(is_staged() ? staging_.as<T>() : to, bucket, range);
  if (is_staged()) backend_.download(to, staging_.as<T>(), size_t(n) * sizeof(T));
  pieces_.push_back({range, owner, ring_at_, ranks().start_sum(to, n, owner, host_ring_)});
  ring_at_ += n;
}

void GradientSum::put(float* to, const Bucket& bucket, const Range& range) {
  backend_.copy(to, parameters_.gradients(bucket) + (range.begin - bucket.range.begin), range.size());
}

void GradientSum::put(int64_t* to, const Bucket& bucket, const Range& range) {
  auto* const words = reinterpret_cast<float*>(to);
  const int64_t n = range.size();
  if (!splits()) return backend_.copy(words, fixed_.as() + range.begin * 2, n * 2);
  backend_.fill_zero(words, n * 2);
  backend_.add_fixed(to, largest_.as(), parameters_.gradients(bucket) + (range.begin - bucket.range.begin), n);
}

void GradientSum::receive() {
  const Piece piece = pieces_.front();
  ranks().wait_sum(piece.number);
  pieces_.pop_front();
  if (is_in_place() || (piece.owner != kEveryRank && piece.owner != communicator_->rank())) return;
  if (is_exact())
    receive<int64_t>(piece);
  else
    receive<float>(piece);
}

template <typename T>
void GradientSum::receive(const Piece& piece) {
  const T* from = (device_ ? device_ring_.as<T>() : static_cast<const T*>(host_ring_.get())) + piece.begin;
  if (is_staged()) {
    backend_.upload(staging_.as<T>(), from, size_t(piece.range.size()) * sizeof(T));
    from = staging_.as<T>();
  }
  take(from, piece.range);
}

void GradientSum::take(const float* from, const Range& range) {
  float* to = parameters_.reduced(range.begin);
  if (splits())
    backend_.add_numbers(to, from, range.size());
  else
    backend_.copy(to, from, range.size());
}

void GradientSum::take(const int64_t* from, const Range& range) {
  int64_t* to = fixed_.as<int64_t>() + (range.begin - fixed_range().begin);
  if (splits())
    backend_.add_fixed_sums(to, from, range.size());
  else
    backend_.copy(reinterpret_cast<float*>(to), reinterpret_cast<const float*>(from), range.size() * 2);
}

void GradientSum::receive_all() {
  while (!pieces_.empty()) receive();
}

void GradientSum::collect() { collect({0, parameters_.size()}); }

void GradientSum::collect(const Range& range) {
  if (!is_exact() || largest_.bytes() == 0) return;
  backend_.read_fixed(parameters_.reduced(range.begin), fixed_.as<int64_t>() + (range.begin - fixed_range().begin),
                      range.size());
}

void GradientSum::restore() {
  if (is_exact() && parameters_.size() > 0) backend_.fill_zero(parameters_.reduced(0), parameters_.size());
}

void GradientSum::check_range() {
  // Ranks agree before any of them throws.
  int64_t beyond = finite_ ? 0 : 1;
  communicator_->all_reduce_sum(&beyond, 1);
  if (beyond > 0)
    throw Error(ErrorCode::kNonFinite, "a gradient is not finite, or above what the exact reduction can add (" +
                                           std::to_string(int(kMostFixed) / communicator_->size()) + " on each rank)");
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
  if (!is_exact()) return;
  check_range();
  collect(parameters_.range_of(parameters_.shard().rank));
  clear_fixed();
  magnitude_ = 0;
}

void GradientSum::clear() {
  // Other ranks have begun them, too, or will.
  receive_all();
  parameters_.clear_gradients();
  clear_fixed();
  is_last_ = false;
  magnitude_ = 0;
  finite_ = true;
}

}  // namespace dultra
