// What of a model trains: fp32 masters, gradients and AdamW's moments, each kind in one arena.
//
// A master is an fp32 copy of a weight. Or, where the model holds the weight as row-major bf16 (Weights::bf16_rows:
// CUDA), it is the model's own bf16 number and 16 low bits beside it, together exactly an fp32 number (ops/adamw.h):
// that takes 2 bytes less per weight, and the model needs no update from its master.
//
// Masters and moments may be split over the ranks of a job (ZeRO, Rajbhandari et al. 2020): each rank then has those of
// a range of the arena of gradients. Gradients may be, too: what a backward pass writes is then memory that its buckets
// share, and a rank has the reduced ones of its range.
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/buckets.h"
#include "model/weights.h"
#include "ops/communicator.h"

namespace dultra {

// The part of the optimiser's state that this process has.
struct Shard {
  int rank = 0, ranks = 1;
  // Whether state is split, be it over one rank: backward passes then read the model's weights, since no rank has all
  // of a master.
  bool is_split = false;
  bool splits_gradients = false;  // with is_split
};

// A checkpoint tensor that trains, or half of an adapter.
struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  int64_t n = 0;
  bool planner = false;
  uint32_t stream = 0;               // of the random numbers that round its moments
  std::vector<Bf16Rows> model_rows;  // the model's own numbers, where the master is split; else empty
  Stages stages;                     // of backward passes, that write its gradient
  int64_t offset = 0;                // in the arena of gradients
  int64_t gradient_offset = 0;       // where backward passes write it
  Range own;                         // numbers that this process updates
  Range held;                        // numbers of its master that this process has
  int64_t moment_offset = 0;         // of `own` in the arena of moments
  int64_t master_offset = 0;         // of `held` in the arena of fp32 masters, or of low halves
  bool whole_master = false;         // every rank has all of the master
};

// W = frozen + scale B A for some rows of a Linear: see lora.h. Where these are in blocks, W is nowhere: they are
// frozen, and the product with scale B A is added to theirs.
struct Adapter {
  std::string tensor;  // that W replaces
  Linear* linear = nullptr;
  int64_t row = 0;                    // of the matrix where W begins
  const Parameter* a = nullptr;       // (rank, K)
  const Parameter* b = nullptr;       // (N, rank)
  std::vector<Bf16Rows> model_rows;   // W in the model, where that is row-major bf16
  Buffer frozen;                      // (N, K) fp32; bf16 with model_rows; empty over blocks
  std::shared_ptr<LowRank> low_rank;  // over blocks: what the Linear adds
  Buffer a_scaled, b_scaled;          // (K, rank) and (N, rank) fp32: A and B times scale, as products take them

  int64_t outputs() const { return b->shape[0]; }
  int64_t inputs() const { return a->shape[1]; }
  int64_t rank() const { return a->shape[0]; }
};

// fn(bf16 numbers, range) for the pieces of the model that hold numbers `wanted` of a parameter.
template <class Fn>
void for_rows(const Parameter& p, const Range& wanted, Fn&& fn) {
  for (const Bf16Rows& piece : p.model_rows) {
    const int64_t first = piece.first * p.shape[1], end = first + piece.rows * p.shape[1];
    const Range range{std::max(wanted.begin, first), std::min(wanted.end, end)};
    if (range.size() > 0) fn(piece.data + (range.begin - first), range);
  }
}

// The rows of a Linear that come from one checkpoint tensor.
struct LinearPart {
  int64_t row = 0, rows = 0;          // of the matrix
  const Parameter* weight = nullptr;  // null: frozen
  int64_t weight_row = 0;             // row of the tensor where the part begins
  float* bias_gradient = nullptr;     // (rows), or null
  const Adapter* adapter = nullptr;
};

// Parameters begin at multiples of this many numbers of the arena, so that vector loads of any type are aligned. The
// numbers between them are 0 and stay 0.
constexpr int64_t kParameterAlign = 16;
inline int64_t aligned_numbers(int64_t n) { return (n + kParameterAlign - 1) / kParameterAlign * kParameterAlign; }

class Parameters {
 public:
  // moments: kF32 or kBF16, how AdamW's moments are stored.
  Parameters(Backend& backend, DType moments, const Shard& shard = {})
      : backend_(backend), moments_(moments), shard_(shard) {}
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  // First every parameter is added, then memory is allocated, then everything else may be called.
  const Parameter* add(std::string name, std::vector<int64_t> shape, bool planner, uint32_t stream, Stages stages,
                       std::vector<Bf16Rows> model_rows = {}, bool whole_master = false);
  void allocate();
  // Reads masters of checkpoint tensors from the model, and notes which Linears and vectors they belong to.
  void bind(const Weights& weights);
  void bind_adapter(const Adapter& adapter);

  const std::vector<std::unique_ptr<Parameter>>& all() const { return parameters_; }
  const Parameter* find(const std::string& name) const;
  DType moments() const { return moments_; }
  size_t bytes() const { return bytes_; }

  const Shard& shard() const { return shard_; }
  // The numbers of the arena of gradients that a rank updates: whole blocks of the norm.
  Range range_of(int rank) const;
  // Those of a parameter.
  Range own_of(const Parameter& p, int rank) const;
  // Numbers that the norm adds up at a time, from the arena's begin on. It follows from the arena's size alone, so that
  // the norm has the same bits on any number of ranks.
  int64_t block() const;

  // Numbers of a parameter in the arenas: all gradients, `held` of the master, `own` of the moments.
  float* gradient(const Parameter& p) const { return gradients_.as() + p.gradient_offset; }
  float* master(const Parameter& p) const { return masters_.as() + p.master_offset; }  // not with model_rows
  int16_t* low(const Parameter& p) const { return low_.as<int16_t>() + p.master_offset; }
  void* exp_avg(const Parameter& p) const { return exp_avg_.as<uint8_t>() + moment_bytes(p.moment_offset); }
  void* exp_avg_sq(const Parameter& p) const { return exp_avg_sq_.as<uint8_t>() + moment_bytes(p.moment_offset); }
  // Numbers of the arena of gradients.
  int64_t size() const { return size_; }
  // In the order in which backward passes finish them. Their gradients, as the pass of a micro-batch writes them.
  const std::vector<Bucket>& buckets() const { return buckets_; }
  float* gradients(const Bucket& bucket) const { return gradients_.as() + bucket.memory; }
  // Gradients that an update reads, from a number of the arena on: with split gradients those of this rank's range.
  float* reduced(int64_t at) const {
    return shard_.splits_gradients ? reduced_.as() + (at - range_of(shard_.rank).begin) : gradients_.as() + at;
  }
  void clear_gradients() const;

  // The gradient of what the model holds in `holder` (a Buffer, or the planner's bias); null where it is frozen.
  float* gradient_of(const void* holder) const;
  // Every row of the Linear's matrix, in order.
  const std::vector<LinearPart>& parts(const Linear& linear) const;

  // `held` numbers; write_master is given all.
  std::vector<float> read_master(const Parameter& p) const;
  void write_master(const Parameter& p, const std::vector<float>& values);
  std::vector<NamedTensor> read_gradients() const;
  // Whole masters and moments: NAME, exp_avg.NAME, exp_avg_sq.NAME. Of split ones every rank calls it, and rank 0 alone
  // gets them.
  std::vector<NamedTensor> read_state(Communicator& ranks) const;
  // Everything is checked before anything changes.
  void write_state(const std::vector<NamedTensor>& tensors);

 private:
  size_t moment_bytes(int64_t numbers) const { return size_t(numbers) * dtype_size(moments_); }
  Buffer zeroed(size_t bytes);
  std::vector<float> read_moment(const void* from, int64_t n) const;
  void write_moment(void* to, const float* values, int64_t n);

  Backend& backend_;
  const DType moments_;
  const Shard shard_;
  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::unordered_map<std::string, Parameter*> by_name_;
  std::unordered_map<const void*, std::vector<LinearPart>> parts_;  // by Linear
  std::unordered_map<const void*, float*> gradient_of_;             // by holder
  std::vector<Bucket> buckets_;
  int64_t size_ = 0, master_size_ = 0, low_size_ = 0, gradient_size_ = 0;
  Buffer masters_, low_, gradients_, reduced_, exp_avg_, exp_avg_sq_;
  size_t bytes_ = 0;
};

// The gradient of a vector or number of the model, or null where it is frozen.
template <class Holder>
float* gradient_of(const Parameters& parameters, const Holder& holder) {
  return parameters.gradient_of(&holder);
}

}  // namespace dultra
