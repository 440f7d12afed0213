// The gradients of an update: added up over its micro-batches, then over all processes. What ranks exchange goes on
// beside the backward pass: a bucket's sum begins when the pass has finished the bucket. Ranks of a device add up whole
// gradients where they are; all else is copied to a ring of memory first, which with ranks of a device is theirs, too.
#pragma once
#include <deque>
#include <memory>
#include <vector>

#include "model/parameters.h"
#include "ops/communicator.h"

namespace dultra {

// How gradients are added.
enum class Reduction {
  kSum,    // in fp32: backward passes add to the arena, which is then summed over ranks
  kExact,  // in fixed point: the sum does not depend on the order of micro-batches, nor on which rank computed them
};

// Gradients that are whole on every rank are exchanged once an update, after the `last` backward pass has finished each
// bucket. Split gradients are exchanged in every backward pass, after which this rank has the sums of its range alone.
class GradientSum {
 public:
  GradientSum(Backend& backend, const Parameters& parameters, std::shared_ptr<Communicator> communicator,
              Reduction reduction)
      : backend_(backend), parameters_(parameters), communicator_(std::move(communicator)), reduction_(reduction) {}
  ~GradientSum();

  // Bytes beside the arena: sums in fixed point, in the backend's memory, and what is on its way between ranks, which
  // lies in the host's unless ranks of a device exchange it.
  struct Bytes {
    size_t fixed = 0, exchange = 0;
  };
  // @own: numbers of the arena that the rank updates.
  static Bytes bytes(const std::vector<Bucket>& buckets, const Shard& shard, int64_t size, int64_t own,
                     Reduction reduction);
  size_t bytes() const;
  // Ranks that add up arrays where they are, in the memory of a device. Before anything is exchanged.
  void use_device(std::shared_ptr<Communicator> ranks);

  // Of a micro-batch: before its backward pass, as the pass goes on, and after it, when it has finished all stages.
  // After an exception `interrupt` is called in place of `end`. A rank without a micro-batch calls `begin` and `end`.
  void begin(bool last);
  void finish(int stage);
  void end();
  void interrupt() { is_last_ = false; }
  // Whether gradients of this process alone are no longer there.
  bool is_exchanging() const { return is_last_ && communicator_->size() > 1; }
  // The gradients of all micro-batches of this process, in the arena. Further ones may be added after `restore`. Not of
  // split gradients.
  void collect();
  void restore();
  // The gradients of all micro-batches of all processes, where the update reads them: all of them, or, where the
  // optimiser's state is split, those that this process updates. NON_FINITE, on every rank, where a number of any rank
  // cannot be added exactly.
  void reduce();
  void clear();

 private:
  // Numbers of the arena on their way, in the ring.
  struct Piece {
    Range range;
    int owner;       // the rank that gets the sum, or kEveryRank
    int64_t begin;   // in the ring, if there
    int64_t number;  // of the communicator's sum
  };

  bool splits() const { return parameters_.shard().splits_gradients; }
  bool is_exact() const { return reduction_ == Reduction::kExact; }
  bool exchanges() const { return communicator_->size() > 1 || splits(); }
  bool is_in_place() const { return device_ && !splits(); }
  // Whether the ring lies in the host's memory and gradients do not.
  bool is_staged() const { return !device_ && backend_.device_queue() != nullptr; }
  Communicator& ranks() const { return device_ ? *device_ : *communicator_; }
  // Numbers of the arena that this rank has in fixed point.
  Range fixed_range() const;
  void prepare();
  // A micro-batch's bucket, which is whole.
  void take(const Bucket& bucket);
  // Adds the arena's gradients to those in fixed point, and clears them.
  void add(const Range& range);
  // Notes the largest number of the micro-batch.
  void end_exact();
  void clear_fixed();
  // Begins the exchange of a bucket.
  void start(const Bucket& bucket);
  // fn(range, owner) for pieces of a bucket, by the rank that updates them.
  template <typename Fn>
  void for_pieces(const Bucket& bucket, Fn&& fn) const;
  template <typename T>
  void send(const Bucket& bucket, const Range& range, int owner);
  // A bucket's numbers, as ranks add them up.
  void put(float* to, const Bucket& bucket, const Range& range);
  void put(int64_t* to, const Bucket& bucket, const Range& range);
  // Waits for the first piece, and puts its sum where it belongs.
  void receive();
  template <typename T>
  void receive(const Piece& piece);
  void take(const float* from, const Range& range);
  void take(const int64_t* from, const Range& range);
  void receive_all();
  void collect(const Range& range);
  void check_range();

  Backend& backend_;
  const Parameters& parameters_;
  const std::shared_ptr<Communicator> communicator_;
  const Reduction reduction_;
  bool is_last_ = false;
  size_t next_ = 0;  // of the buckets: the first that the pass has not finished
  std::shared_ptr<Communicator> device_;
  Buffer fixed_;    // of fixed_range
  Buffer largest_;  // float, of the micro-batch: no number that was added to fixed_ is of a greater magnitude
  // The host's is kept by the communicator, too, as long as a sum is under way.
  std::shared_ptr<void> host_ring_;
  Buffer device_ring_, staging_;  // of a piece
  int64_t ring_size_ = 0, ring_at_ = 0;
  std::deque<Piece> pieces_;
  double magnitude_ = 0;  // no number of this rank's sums is of a greater one
  bool finite_ = true;
};

}  // namespace dultra
