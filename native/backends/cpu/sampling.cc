// Token sampling: one read of the logits gives the drawn token (argmax of logit + T * Gumbel noise, exactly the one
// that a scan in double over all tokens finds), its log-probability and confidence, the largest probability and the
// entropy.
//
// Noise for every token would cost far more than reading the logits, so filters skip tokens that cannot win: no
// noise exceeds kMaxGumbel, and with `best` the best noisy logit so far a token wins only if its uniform u exceeds
// exp(-w), w = exp((x - best) / T), which implies 1 - u < w: a test in fp32 on the high word of the uniform. A few tens
// of tokens of a row pass and get the double logarithms. Margins cover every rounding, so the filters never drop a
// winner.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "ops/token_filter.h"

namespace dultra {
namespace cpu {

namespace {

constexpr int64_t kPiece = 4096;  // logits whose sums are taken relative to their own maximum; stays in the L1 cache
constexpr int64_t kFilter = 256;  // logits per update of the filters' bar
constexpr float kLeastTemperature = 1e-4f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Piece {
  LogitSums sums;
  double tempered;  // sum of e^((x - max) / T)
};

struct Best {
  double score = -std::numeric_limits<double>::infinity();  // logit + T * noise
  int32_t token = -1;
  float logit = -kInfinity;

  void offer(double other, int32_t id, float x) {
    if (other > score || (other == score && id < token)) *this = Best{other, id, x};
  }
};

float float_at_most(double value) {
  const float rounded = float(value);
  return double(rounded) > value ? std::nextafter(rounded, -kInfinity) : rounded;
}

// Draws from one row, piece by piece.
class Draw {
 public:
  Draw(const RowKernels& kernels, const SampleArgs& args, int64_t row)
      : kernels_(kernels), args_(args), row_(row), temperature_(args.temperature) {
    if (args.given || args.uniforms || !(args.temperature >= kLeastTemperature)) return;  // `at` may be null
    const rng::Coordinates& at = args.at[row];
    filter_.inverse_temperature = float(1.0 / temperature_);
    filter_.position = at.position;
    filter_.row = at.row;
    filter_.step = at.step;
    filter_.key[0] = uint32_t(at.seed);
    filter_.key[1] = uint32_t(at.seed >> 32);
  }

  // x: logits of tokens first .. first + n, `max` the largest.
  void piece(const float* x, int64_t first, int64_t n, float max) {
    if (!(max > -kInfinity)) return;
    if (args_.uniforms) {
      for (int64_t i = 0; i < n; ++i)
        if (x[i] > -kInfinity)
          best_.offer(noisy(x[i], rng::gumbel(args_.uniforms[row_ * args_.vocab + first + i])), int32_t(first + i),
                      x[i]);
      return;
    }
    // No token of this piece can win: the usual case after the first few pieces at small T.
    if (best_.token >= 0 && double(max) + temperature_ * rng::kMaxGumbel < lowest_winner()) return;
    if (best_.token < 0) {  // the largest logit is a good first bar
      const int64_t i = kernels_.find_first(x, n, max);
      if (i == n) return;  // NaN among the logits: the row is reported as not finite
      offer(x[i], first + i);
    }
    int32_t passed[kFilter];
    for (int64_t i = 0; i < n; i += kFilter) {
      const double bar = lowest_winner();
      filter_.bar = float_at_most(bar);
      filter_.floor = float_at_most(bar - temperature_ * rng::kMaxGumbel);
      if (filter_.floor > -kInfinity) filter_.floor = std::nextafter(filter_.floor, -kInfinity);
      const int count =
          kernels_.gumbel_filter(&filter_, x + i, uint32_t(first + i), int(std::min(kFilter, n - i)), passed);
      for (int p = 0; p < count; ++p) offer(x[i + passed[p]], first + i + passed[p]);
    }
  }

  const Best& best() const { return best_; }

 private:
  double noisy(float x, double noise) const { return rng::add_rn(x, rng::mul_rn(temperature_, noise)); }
  void offer(float x, int64_t token) {
    best_.offer(noisy(x, rng::token_gumbel(args_.at[row_], uint32_t(token))), int32_t(token), x);
  }
  // Below every score that could tie with the best, whatever the rounding of scores.
  double lowest_winner() const { return best_.score - 0x1p-50 * (std::fabs(best_.score) + 80 * temperature_); }

  const RowKernels& kernels_;
  const SampleArgs& args_;
  const int64_t row_;
  const double temperature_;
  GumbelFilter filter_;
  Best best_;
};

// A token that may be drawn, most probable first.
struct Item {
  uint64_t weight;
  uint32_t key;
  int32_t token;
  bool operator<(const Item& other) const { return key != other.key ? key > other.key : token < other.token; }
};

// Filters and scores one row.
class FilteredRow {
 public:
  FilteredRow(const SampleArgs& args, int64_t row, double temperature)
      : a_(args), row_(row), x_(args.logits + row * args.vocab), weights_(largest(), temperature, args.vocab) {}

  token_filter::Cut cut() const {
    token_filter::Cut cut = token_filter::keep_all();
    std::vector<Item> items;
    uint64_t total = 0;
    each([&](int32_t token) {
      items.push_back({0, token_filter::key_of(x_[token]), token});
      if (a_.top_p_first && a_.top_p < 1) total += weights_.weight(x_[token]);
    });
    if (a_.top_k > 0 && items.size() > size_t(a_.top_k)) {
      const auto kth = items.begin() + a_.top_k - 1;
      std::nth_element(items.begin(), kth, items.end());
      cut.key = kth->key;
      items.erase(std::remove_if(items.begin(), items.end(), [&](const Item& item) { return item.key < cut.key; }),
                  items.end());
    }
    if (!(a_.top_p < 1) || items.empty()) return cut;
    for (Item& item : items) {
      item.weight = weights_.weight(x_[item.token]);
      if (!a_.top_p_first) total += item.weight;
    }
    // The last that stays is between begin and end; what is before begin is more probable, and stays.
    const uint64_t allowed = token_filter::allowance(a_.top_p, total);
    auto begin = items.begin(), end = items.end();
    uint64_t before = 0;
    while (end - begin > 1) {
      const auto middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end);
      uint64_t sum = before;
      for (auto item = begin; item != middle; ++item) sum += item->weight;
      if (sum <= allowed) {
        before = sum;
        begin = middle;
      } else {
        end = middle;
      }
    }
    return {begin->key, begin->token};
  }

  int32_t draw(const token_filter::Cut& cut) const {
    Best best;
    each([&](int32_t token) {
      if (!cut.keeps(x_[token], token)) return;
      const double noise = a_.uniforms ? rng::gumbel(a_.uniforms[row_ * a_.vocab + token])
                                       : rng::token_gumbel(a_.at[row_], uint32_t(token));
      best.offer(rng::add_rn(x_[token], rng::mul_rn(a_.temperature, noise)), token, x_[token]);
    });
    return std::max(best.token, 0);
  }

  void score(const token_filter::Cut& cut) const {
    token_filter::Sums sums{0, 0, 0};
    int32_t first = -1, second = -1;
    each([&](int32_t token) {
      if (!cut.keeps(x_[token], token)) return;
      sums.total += weights_.weight(x_[token]);
      sums.surprise += weights_.surprise(x_[token]);
      if (first < 0 || x_[token] > x_[first]) {
        second = first;
        first = token;
      } else if (second < 0 || x_[token] > x_[second]) {
        second = token;
      }
    });
    if (second >= 0) sums.second = weights_.weight(x_[second]);
    const int32_t token = a_.token[row_];
    const bool kept = token != a_.excluded_token && cut.keeps(x_[token], token);
    const token_filter::Scores scores = token_filter::scores_of(weights_, sums, kept ? x_[token] : -kInfinity);
    if (a_.margin) a_.margin[row_] = scores.margin;
    if (a_.scores == SampleScores::kModel) return;
    a_.confidence[row_] = scores.confidence;
    a_.entropy[row_] = scores.entropy;
    if (a_.max_prob) a_.max_prob[row_] = scores.max_prob;
  }

 private:
  // Calls body(token) for every token that is not excluded and has a probability.
  template <class Body>
  void each(const Body& body) const {
    for (int32_t token = 0; token < int32_t(a_.vocab); ++token)
      if (token != a_.excluded_token && x_[token] > -kInfinity) body(token);
  }
  float largest() const {
    float max = -kInfinity;
    each([&](int32_t token) { max = std::max(max, x_[token]); });
    return max;
  }

  const SampleArgs& a_;
  const int64_t row_;
  const float* const x_;
  const token_filter::Weights weights_;
};

}  // namespace

// Draws from the filtered tokens, lets the whole row score what was drawn, and replaces scores where they are of
// another distribution.
void CpuBackend::sample_filtered(const SampleArgs& a) {
  const bool noisy = a.temperature >= kLeastTemperature, draws = noisy && !a.given && a.filters(),
             filters_scores = a.filters() && a.scores == SampleScores::kFiltered;
  const double temperature = noisy ? double(a.temperature) : 1.0;
  std::vector<token_filter::Cut> cuts(size_t(a.rows), token_filter::keep_all());
  std::vector<int32_t> drawn(draws ? size_t(a.rows) : 0);
  if (draws || filters_scores)
    parallel_ranges(pool_, a.rows, 16 * a.vocab, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const FilteredRow filtered(a, row, temperature);
        cuts[size_t(row)] = filtered.cut();
        if (draws) drawn[size_t(row)] = filtered.draw(cuts[size_t(row)]);
      }
    });
  SampleArgs whole = a;
  if (draws) whole.given = drawn.data();
  whole.top_k = 0;
  whole.top_p = 1;
  whole.scores = SampleScores::kModel;
  whole.margin = nullptr;
  do_sample_forward(whole);
  if (a.scores == SampleScores::kModel && !a.margin) return;
  parallel_ranges(pool_, a.rows, 8 * a.vocab, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (a.finite[row])
        FilteredRow(a, row, a.scores == SampleScores::kModel ? 1.0 : temperature)
            .score(filters_scores ? cuts[size_t(row)] : token_filter::keep_all());
      else if (a.margin)
        a.margin[row] = std::numeric_limits<float>::quiet_NaN();
    }
  });
}

void CpuBackend::do_allow_tokens(float* logits, const uint32_t* sets, int64_t /*count*/, const int32_t* index,
                                 int64_t m, int64_t vocab) {
  const int64_t words = (vocab + 31) / 32;
  parallel_ranges(pool_, m, vocab, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (index[row] < 0) continue;
      const uint32_t* set = sets + index[row] * words;
      float* x = logits + row * vocab;
      for (int64_t v = 0; v < vocab; ++v)
        if (!(set[v / 32] >> (v % 32) & 1) && x[v] < kInfinity) x[v] = -kInfinity;
    }
  });
}

void CpuBackend::do_sample_forward(const SampleArgs& a) {
  if (a.filters() || a.scores != SampleScores::kModel || a.margin) return sample_filtered(a);
  const RowKernels& kernels = kernels_->rows;
  const bool noisy = a.temperature >= kLeastTemperature, draws = noisy && !a.given,
             tempered = noisy && a.tempered_log_prob;
  const float inverse_temperature = noisy ? 1.0f / a.temperature : 1.0f;
  const int64_t pieces = (a.vocab + kPiece - 1) / kPiece;
  // Few rows: several tasks share one. A group of pieces has only the best of its own pieces as its bar, which costs a
  // few more exact evaluations and changes no result.
  int64_t groups = 1;
  if (pool_.threads() > 1 && a.rows < 4 * pool_.threads())
    groups = std::max<int64_t>(1, std::min(pieces, 4 * pool_.threads() / std::max<int64_t>(1, a.rows)));
  std::vector<Piece> all(static_cast<size_t>(a.rows * pieces));
  std::vector<Best> bests(static_cast<size_t>(a.rows * groups));

  parallel_ranges(pool_, a.rows * groups, 4 * a.vocab / groups, [&](int64_t begin, int64_t end) {
    std::vector<float> without_excluded;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / groups, group = task % groups;
      const float* logits = a.logits + row * a.vocab;
      Draw draw(kernels, a, row);
      for (int64_t p = pieces * group / groups; p < pieces * (group + 1) / groups; ++p) {
        const int64_t first = p * kPiece, n = std::min(kPiece, a.vocab - first);
        const float* x = logits + first;
        if (a.excluded_token >= first && a.excluded_token < first + n) {
          without_excluded.assign(x, x + n);
          without_excluded[size_t(a.excluded_token - first)] = -kInfinity;
          x = without_excluded.data();
        }
        Piece& piece = all[size_t(row * pieces + p)];
        kernels.logit_sums(&piece.sums, x, n);
        const float max = piece.sums.max;
        piece.tempered = tempered && max > -kInfinity ? kernels.tempered_sum(x, n, max, inverse_temperature) : 0;
        if (draws) draw.piece(x, first, n, max);
      }
      bests[size_t(task)] = draw.best();
    }
  });

  for (int64_t row = 0; row < a.rows; ++row) {
    const Piece* piece = &all[size_t(row * pieces)];
    float max = -kInfinity;
    bool finite = true;
    for (int64_t p = 0; p < pieces; ++p) {
      max = std::max(max, piece[p].sums.max);
      finite = finite && std::isfinite(piece[p].sums.sum);
    }
    // A row of -inf only has no distribution either.
    finite = finite && std::isfinite(max);
    a.finite[row] = finite;
    if (!finite) {
      a.token[row] = 0;
      a.log_prob[row] = a.confidence[row] = a.entropy[row] = std::numeric_limits<float>::quiet_NaN();
      if (a.max_prob) a.max_prob[row] = a.entropy[row];
      continue;
    }
    double sum = 0, weighted = 0, tempered_sum = 0;
    for (int64_t p = 0; p < pieces; ++p) {
      if (piece[p].sums.max == -kInfinity) continue;
      const double below = double(piece[p].sums.max) - max, scale = std::exp(below);
      sum += piece[p].sums.sum * scale;
      weighted += (piece[p].sums.weighted + piece[p].sums.sum * below) * scale;
      if (tempered) tempered_sum += piece[p].tempered * std::exp(below / a.temperature);
    }
    Best best;
    if (a.given) {
      const int32_t token = a.given[row];
      best = Best{0, token, token == a.excluded_token ? -kInfinity : a.logits[row * a.vocab + token]};
    } else if (noisy) {
      for (int64_t g = 0; g < groups; ++g)
        if (bests[size_t(row * groups + g)].token >= 0) {
          const Best& other = bests[size_t(row * groups + g)];
          best.offer(other.score, other.token, other.logit);
        }
    } else {
      int64_t p = 0;
      while (piece[p].sums.max != max) ++p;
      const float* x = a.logits + row * a.vocab;
      int64_t first = p * kPiece;
      const int64_t end = std::min(first + kPiece, a.vocab);
      first += kernels.find_first(x + first, end - first, max);
      if (first == a.excluded_token) {  // an excluded token tied with the maximum
        ++first;
        first += kernels.find_first(x + first, end - first, max);
      }
      best = Best{double(max), int32_t(first), max};
    }
    const double below = double(best.logit) - max;
    a.token[row] = best.token;
    a.log_prob[row] = float(tempered ? below / a.temperature - std::log(tempered_sum) : below - std::log(sum));
    a.confidence[row] = float(std::exp(below) / sum);
    if (a.max_prob) a.max_prob[row] = float(1.0 / sum);
    a.entropy[row] = float(std::log(sum) - weighted / sum);
  }
}

void CpuBackend::do_log_prob_backward(float* logits, const int32_t* tokens, const float* dlog_prob, int64_t m,
                                      int64_t vocab, float temperature, int32_t excluded_token) {
  const float inverse_temperature = temperature >= kLeastTemperature ? 1.0f / temperature : 1.0f;
  parallel_ranges(pool_, m, 4 * vocab, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* x = logits + row * vocab;
      const float d = dlog_prob[row] * inverse_temperature;
      if (d == 0 || tokens[row] == excluded_token) {  // whatever the logits are; a log-prob of -inf has no slope
        std::fill_n(x, vocab, 0.0f);
        continue;
      }
      if (excluded_token >= 0) x[excluded_token] = -kInfinity;
      kernels_->rows.softmax_backward(x, vocab, inverse_temperature, d);
      x[tokens[row]] += d;
    }
  });
}

void CpuBackend::do_scores_backward(float* logits, const int32_t* tokens, const float* dlog_prob, const float* dentropy,
                                    int64_t m, int64_t vocab, float temperature, float entropy_temperature,
                                    int32_t excluded_token) {
  std::vector<float> before(logits, logits + m * vocab);
  do_log_prob_backward(logits, tokens, dlog_prob, m, vocab, temperature, excluded_token);
  const float inverse = entropy_temperature >= kLeastTemperature ? 1.0f / entropy_temperature : 1.0f;
  parallel_ranges(pool_, m, 8 * vocab, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (dentropy[row] == 0) continue;
      float* x = before.data() + row * vocab;
      if (excluded_token >= 0) x[excluded_token] = -kInfinity;
      kernels_->rows.entropy_backward(logits + row * vocab, x, vocab, inverse, dentropy[row]);
    }
  });
}

}  // namespace cpu
}  // namespace dultra
