// The gradients of an update: added up over its micro-batches, then over all processes.
#pragma once
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

class GradientSum {
 public:
  GradientSum(Backend& backend, const Parameters& parameters, std::shared_ptr<Communicator> communicator,
              Reduction reduction)
      : backend_(backend), parameters_(parameters), communicator_(std::move(communicator)), reduction_(reduction) {}

  // Bytes of host memory beside the arena.
  static size_t bytes(int64_t numbers, Reduction reduction) {
    return reduction == Reduction::kExact ? size_t(numbers) * sizeof(int64_t) : 0;
  }
  size_t bytes() const { return bytes(parameters_.size(), reduction_); }

  // After the backward pass of a micro-batch, which has added to the arena.
  void add();
  // The gradients of all micro-batches of this process, in the arena. Further ones may be added after `restore`.
  void collect();
  void restore();
  // The gradients of all micro-batches of all processes, in the arena: all of them, or, where the optimiser's state is
  // split, those that this process updates. NON_FINITE, on every rank, where a number of any rank cannot be added
  // exactly.
  void reduce();
  void clear();

 private:
  // fn(first, n) for pieces of the arena, or of a range of it.
  template <typename Fn>
  void for_pieces(Fn&& fn) const {
    for_pieces({0, parameters_.size()}, fn);
  }
  template <typename Fn>
  void for_pieces(const Range& range, Fn&& fn) const;
  void collect(const Range& range);
  // Adds up x over all ranks: a number on every rank, or on the one that updates it.
  template <typename T>
  void sum_ranks(T* x, const Range& range, int owner);
  // fn(range, owner) for what ranks update; without a split everything, with no owner (-1).
  template <typename Fn>
  void for_owners(Fn&& fn) const;
  void check_range();

  Backend& backend_;
  const Parameters& parameters_;
  const std::shared_ptr<Communicator> communicator_;
  const Reduction reduction_;
  std::vector<int64_t> fixed_;  // units of kUnit
  std::vector<float> staging_;  // of a piece
  double largest_ = 0;          // no number of fixed_ is of a greater magnitude
  bool finite_ = true;
};

}  // namespace dultra
