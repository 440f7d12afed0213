// The Backend: one method per operation, which checks its arguments and calls a virtual one (ops.inc lists them).
// native/model is written once against this interface; native/backends/* implement it. Sizes: M rows of a packed
// activation, K and N matrix sizes, C hidden, H query heads, Hk key/value heads, D head size, V vocabulary, B sequences
// ("rows" of a batch), T positions of one sequence.
//
// Contracts that hold for every method:
// * Activations are fp32, except where matrix products and attention read them: those may be arrays of
//   activation_dtype(), to which the operation that writes them rounds; a backend also takes them in fp32. Nothing else
//   is rounded: not the residual stream, logits, statistics, or gradients of weights. An Array or ConstArray is of
//   either type unless the comment says more. Sums and every step between reading and writing are fp32.
// * Pointers are backend memory from allocate(), which the host may not touch, but for small arrays: ids, indices,
//   positions, groups, masks' ranges, tokens, dlog_prob, planner logits, and everything but the logits of SampleArgs,
//   UnmaskArgs, LikelihoodArgs and LikelihoodGradArgs may be host memory too. Offsets always are. A pointer into an
//   Exchange's host memory means its device mirror.
// * An operation may return before it is done, except where a result goes to host memory; download waits for the
//   operations before it.
// * Sequences are packed end to end with offsets; nothing is ever padded.
// * A result never depends on thread count, on the other sequences of the batch, or on which subset of rows is
//   computed: one fixed chain of operations produces each output element.
// * Outputs never alias inputs unless the method says "in place".
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/blocks.h"
#include "ops/check.h"
#include "ops/device_queue.h"
#include "ops/exchange.h"
#include "ops/rng.h"
#include "ops/rope.h"
#include "ops/tensor.h"

namespace dultra {

// Arithmetic of matrix products. kBF16 rounds both operands to bf16 and accumulates in fp32; a product with a matrix
// that is stored in fp32 is one in fp32 all the same.
enum class Compute : uint8_t { kF32, kBF16 };

// A weight matrix (rows = outputs N, cols = inputs K) in whatever layout the backend multiplies fastest.
class Matrix {
 public:
  virtual ~Matrix() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  // Matrices of equally many rows that are stacked in this one: 1, or the experts of a mixture.
  int experts() const { return experts_; }
  int64_t expert_rows() const { return rows_ / experts_; }
  // Bytes held, packing included.
  virtual size_t bytes() const = 0;
  // Rows [first, first + count) in row-major fp32, to host memory: to (count, cols). Exact for every storage.
  virtual void unpack(float* to, int64_t first, int64_t count) const = 0;
  // The matrix itself, where it lies in backend memory as row-major bf16: what an optimiser may train in place. Null
  // where it does not.
  virtual uint16_t* bf16_rows() { return nullptr; }
  // Holds bf16 numbers, in whatever order.
  virtual bool holds_bf16() const { return false; }
  // Holds blocks of codes: nothing can be written into it.
  virtual bool quantised() const { return false; }

 protected:
  Matrix(int64_t rows, int64_t cols, int experts = 1) : rows_(rows), cols_(cols), experts_(experts) {}

 private:
  int64_t rows_, cols_;
  int experts_;
};

// One row-major piece (rows, cols) of a matrix in host memory; several pieces are stacked along the rows (q, k and v,
// say).
struct MatrixPart {
  const void* data;
  DType dtype;
  int64_t rows;
};

// Likewise, of rows in blocks, which a matrix may go on reading where they are.
struct BlockPart {
  const uint8_t* data;
  BlockType type;
  int64_t rows;
  int64_t heads;                      // as of stored_row
  std::shared_ptr<const void> owner;  // keeps `data` alive
};

// Which keys a query sees. Every mask is one interval of keys per query.
enum class MaskKind : uint8_t {
  kBidirectional,  // all keys of the sequence
  kCausal,         // keys at positions <= the query's
  kBlockCausal,    // keys at positions < the end of the query's block of `block` positions, the first of which may be
                   // shorter
};

// End of the block that holds `position`, of blocks of `length` positions behind one of `first`, 1 to `length`.
DULTRA_HD int64_t block_end(int64_t position, int64_t length, int64_t first) {
  return (position + (length - first)) / length * length + first;
}

struct AttentionArgs {
  ConstArray q;  // (Mq, H, D), consecutive queries `q_stride` numbers apart
  ConstArray k;  // (Mk, Hk, D), `kv_stride` apart; bf16 is taken by every backend that caches keys and values in it
  ConstArray v;  // (Mk, Hk, D), `kv_stride` apart; of the type of k
  Array out;     // (Mq, H, D), `out_stride` apart
  float*
      log_sum;  // (Mq, H) log of the sum of exp(scaled scores) of each query, what the backward needs; null: not wanted
  int64_t q_stride, kv_stride, out_stride;
  int heads, kv_heads, head_dim;  // query head h reads key/value head h / (heads / kv_heads)
  float scale;                    // usually 1 / sqrt(D)
  int batch;                      // B
  const int32_t* q_offsets;       // (B + 1) queries of sequence b are q_offsets[b] .. q_offsets[b + 1]
  const int32_t* k_offsets;       // (B + 1) likewise for keys
  const int32_t* q_positions;     // (Mq) position of each query inside its sequence; null: query i is position i
  MaskKind mask;
  int block;                   // for kBlockCausal
  const int32_t* first_block;  // (B) or null, for kBlockCausal: length of a sequence's first block, 1 to `block`
  const int32_t* key_begin;    // (B) or null: keys before it are hidden
  const int32_t* key_end;      // (B) or null: keys from it on are hidden
  int max_queries;  // at least the queries of any sequence, for a launch that fits other offsets too; 0: as q_offsets
                    // have it
};
// A query that sees no key gives zeros (and a log_sum of -inf).

// Gradients of attention_forward. `forward` is the call that was made: q, k, v, out and log_sum are read; the CPU takes
// keys and values in fp32 alone.
struct AttentionGradArgs {
  AttentionArgs forward;
  ConstArray dout;  // (Mq, H, D), out_stride of `forward` apart
  Array dq;         // (Mq, H, D), q_stride of `forward` apart; overwritten
  Array dk;         // (Mk, Hk, D), kv_stride of `forward` apart; overwritten
  Array dv;         // (Mk, Hk, D), likewise
};

// Which distribution the confidence, the largest probability, the margin and the entropy are of.
enum class SampleScores : uint8_t {
  kModel,     // softmax(logits)
  kTempered,  // softmax(logits / T), T = 0 counting as 1
  kFiltered,  // that, of the tokens that top_k and top_p keep
};

struct SampleArgs {
  const float* logits;  // (M, V)
  int64_t rows, vocab;
  float temperature;           // T; below 1e-4 counts as 0 (argmax, ties to the lowest id)
  int32_t excluded_token;      // its logit counts as -inf in everything below; -1: none
  const rng::Coordinates* at;  // (M) where each draw belongs; unused at T = 0
  const double* uniforms;      // (M, V) recorded uniforms in (0, 1) instead of Philox, or null (replaying fixtures)
  const int32_t* given;    // (M) tokens to score instead of drawing them, or null: `at` and `uniforms` are then unused
  bool tempered_log_prob;  // log_prob at temperature T (if T > 0) instead of at 1
  // What may be drawn, by logits / T: the top_k largest, those that equal the last of them included (0: all), and of
  // their probabilities in descending order (of equal ones the lower id first) those before which at most top_p sum up
  // (1: all). The most probable token always stays.
  int32_t top_k = 0;
  double top_p = 1;
  bool top_p_first = false;  // top_p is a share of all tokens' probabilities rather than of those that top_k keeps
  SampleScores scores = SampleScores::kModel;
  int32_t* token;     // (M) drawn token: argmax of logit + T * Gumbel noise; or the given one
  float* log_prob;    // (M) log softmax(logits)[token], whatever is filtered
  float* confidence;  // (M) probability of the drawn token in `scores`; for kModel from double arithmetic
  float* max_prob;    // (M) largest probability in `scores`; null: not wanted
  float* entropy;     // (M) entropy of `scores`, nats
  float* margin;      // (M) largest minus second largest probability in `scores`; null: not wanted
  uint8_t* finite;    // (M) 0 if a logit of the row is NaN or +inf; the row's other outputs then mean nothing

  DULTRA_HD bool filters() const { return top_k > 0 || top_p < 1; }
};

enum class UnmaskRule : uint8_t {
  kPlannerBernoulli,  // u < p
  kPlannerTopK,       // k = floor(sum p) most probable
  kPlannerRound,      // k = floor(sum p + 1/2) most probable
  kPlannerThreshold,  // p > threshold
  kThreshold,         // confidence >= threshold, at least the most confident; of at most `count` if there is one
  kFactor,            // Fast-dLLM factor rule on sorted confidences
  kEntropy,           // entropy <= threshold, at least the least
  kEntropySum,        // by ascending entropy, while the sum of entropies without the largest is <= threshold
  kFixed,             // the `count` most confident
  kDynamic,           // the `count` most confident, and every other with confidence > threshold
  kRandom,            // `count` at random
  kLeftToRight,       // the first `count`
  kCoin,              // each with probability `chance`
};

DULTRA_HD bool is_planner_rule(UnmaskRule rule) {
  return rule == UnmaskRule::kPlannerBernoulli || rule == UnmaskRule::kPlannerTopK ||
         rule == UnmaskRule::kPlannerRound || rule == UnmaskRule::kPlannerThreshold;
}
DULTRA_HD bool is_counted_rule(UnmaskRule rule) {
  return rule == UnmaskRule::kFixed || rule == UnmaskRule::kDynamic || rule == UnmaskRule::kRandom ||
         rule == UnmaskRule::kLeftToRight;
}

struct UnmaskArgs {
  UnmaskRule rule;
  int batch;                    // B
  const int32_t* offsets;       // (B + 1) candidates of row b, in ascending position
  const rng::Coordinates* at;   // (M) coordinates of each candidate
  const double* uniforms;       // (M) recorded uniforms instead of Philox, for the rules that draw, or null
  const float* planner_logit;   // (M), planner rules
  const float* confidence;      // (M), threshold, factor, fixed, dynamic
  const float* entropy;         // (M), entropy rules
  const float* token_log_prob;  // (M), planner rules: log pi(token)
  const uint8_t* forbidden;     // (M) or null: candidates that must not be selected (drawn token is the mask itself)
  float
      planner_temperature;  // p = sigmoid(logit / planner_temperature) * probability_scale; a likelihood uses min(1, p)
  float probability_scale;
  double threshold;       // threshold, entropy and entropy-sum rules, kDynamic, kPlannerThreshold
  double factor;          // factor rule: position j >= 2 (1-based) passes while c_j >= 1 - factor / (j + 1)
  bool factor_last_pair;  // reference quirk: a first failure at the very last candidate is taken too
  bool by_entropy;        // kFixed: the lowest entropies in place of the highest confidences
  bool sum_with_last;     // kEntropySum: while the whole sum is below the threshold
  // kFixed: above 0 candidates are drawn without replacement, by softmax(confidence or -entropy /
  // selection_temperature)
  float selection_temperature;
  const int32_t* count;       // (B) counted rules
  const double* chance;       // (B) kCoin
  bool may_rest;              // a row may select nothing
  bool reference_likelihood;  // forced step adds log p of the forced position, as the reference does
  uint8_t* selected;          // (M)
  uint8_t* forced;            // (B) 1 where the row selected nothing and was made to progress
  float* probability;         // (M) p, planner rules; else 0
  float* log_likelihood;      // (M) contribution of each candidate to the step's log-likelihood, planner rules; else 0
};

// The log-likelihood of decisions that were made: the same numbers as `unmask` gives for the planner rules, from the
// same code.
struct LikelihoodArgs {
  int batch;                    // B
  const int32_t* offsets;       // (B + 1) candidates of row b
  const float* planner_logit;   // (M)
  const float* token_log_prob;  // (M) read where selected
  const uint8_t* forbidden;     // (M) or null, as for unmask
  const uint8_t* selected;      // (M)
  const uint8_t* forced;        // (B)
  float planner_temperature, probability_scale;
  bool reference_likelihood;
  float* log_likelihood;  // (M)
};

// Gradients of LikelihoodArgs::log_likelihood; `dlog_likelihood` (M) is dL/d of it. A planner logit's is 0 where min(1,
// p) saturates and where the value is -inf.
struct LikelihoodGradArgs {
  LikelihoodArgs forward;  // log_likelihood unused
  const float* dlog_likelihood;
  float* dplanner_logit;   // (M) overwritten
  float* dtoken_log_prob;  // (M) overwritten
};

// One AdamW step over n numbers (decoupled weight decay, as torch.optim.AdamW): g = gradient * gradient_scale;
// p -= lr * weight_decay * p; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
// p -= lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps).
// In fp32 throughout; what is narrower (ops/adamw.h) is so in memory alone. The same bits on every backend that has
// fused multiply-add.
struct AdamWArgs {
  float* parameter;  // (n); null: split over `high` and `low`
  uint16_t* high;    // (n) as split_float gives them
  int16_t* low;      // (n)
  const float* gradient;
  void *exp_avg, *exp_avg_sq;  // (n) in `moments`
  DType moments;               // kF32; kBF16: rounded stochastically, by rng::moment_words(seed, stream, step, .)
  uint64_t seed;
  uint32_t stream;  // which parameter the numbers belong to
  int64_t first;    // place in it of the first of them
  int64_t n;
  int64_t step;  // from 1
  double lr, beta1, beta2, eps, weight_decay;
  double gradient_scale;  // from global-norm clipping
};

// Experts that a layer has at most: a device keeps the scores of a row at hand.
constexpr int kMostExperts = 1024;

// How a router's numbers choose among E experts for each of M rows. Scores are the softmax of a row's logits, or the
// sigmoid of each. The `per_row` highest of score + bias win, where there are groups among the experts of the best
// `groups_kept` groups alone: consecutive experts make a group, which is worth the sum of its two highest. Equal ones:
// the lower expert first. All in fp32.
struct RouteArgs {
  const float* logits;  // (M, E)
  int64_t m;
  int experts;           // E
  int per_row;           // k
  bool sigmoid;          // scores; else the softmax over all experts
  const float* bias;     // (E) added to scores for the choice, or null
  bool bias_in_weights;  // the bias counts in an expert's weight too, not only in the choice
  int groups;            // of equally many experts, at least two each; 1: none
  int groups_kept;       // of which experts may be chosen
  bool normalise;        // weights of a row are divided by their sum (+ 1e-20)
  float scale;           // of all weights, after that
  int32_t* expert;       // (M, k) by falling score + bias
  float* weight;         // (M, k)
};

// Gradients of RouteArgs::weight; `forward` is the call that was made, its experts are read. The choice is a constant.
struct RouteGradArgs {
  RouteArgs forward;
  const float* dweight;  // (M, k)
  float* dlogits;        // (M, E) overwritten
};

// Rows of a mixture of experts, P = M k pairs of a row and an expert, sorted by expert and then by row. Backend memory.
struct ExpertRows {
  const int32_t* row;     // (P) which row each pair is of
  const int32_t* offset;  // (E + 1) pairs of expert e are offset[e] .. offset[e + 1]
  int64_t pairs;          // P
  int experts;            // E
};

// Progress rule of all, unless `may_rest`: a row with candidates selects at least one. Planner rules fall back to
// argmax p (first candidate if all are 0); ties go to the lower position everywhere. A planner logit that is NaN counts
// as -infinity, p = 0: nothing is looked for that would have to be told to the host, so a caller that wants an error
// looks at the logits itself. NaN ranks last among confidences and entropies.

class Backend {
 public:
  virtual ~Backend() = default;
  // What the backend was opened with: the arithmetic of all its matrix products.
  Compute compute() const { return compute_; }
  virtual const char* name() const = 0;  // "cpu"
  virtual const char* isa() const = 0;   // "avx512-bf16", for `info`
  virtual bool supports(Compute compute) const = 0;
  // The type to store activations in that products and attention read: fp32, or bf16 where products round to it anyway.
  virtual DType activation_dtype() const { return DType::kF32; }

  // --- memory ------------------------------------------------------------------------------------
  // 64-byte aligned; throws OUT_OF_MEMORY. Never null.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* pointer) = 0;
  virtual void upload(void* to, const void* from_host, size_t bytes) = 0;
  virtual void download(void* to_host, const void* from, size_t bytes) = 0;
  // Whether the host may read the array at `pointer`: not where it lies in the memory of a device.
  virtual bool host_may_read(const void* /*pointer*/) const { return true; }
  // Null where operations work on the host's memory.
  virtual DeviceQueue* device_queue() { return nullptr; }
  // Lives no longer than the backend.
  virtual std::unique_ptr<Exchange> make_exchange() { return std::make_unique<Exchange>(); }

  // --- operations: ops.inc says what each does -----------------------------------------------------
#define DULTRA_OP(result, name, parameters, arguments) result name parameters;
#include "ops/ops.inc"

 protected:
  explicit Backend(Compute compute) : compute_(compute) {}

  // do_<operation>, which a backend implements: the public method has checked the arguments.
#define DULTRA_OP(result, name, parameters, arguments) virtual result do_##name parameters = 0;
#include "ops/ops.inc"

 private:
  const Compute compute_;
};

}  // namespace dultra
