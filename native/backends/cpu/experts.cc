// What a mixture of experts does beside its matrix products (matmul.cc): the choice of experts, rows by their experts
// and back.
#include <algorithm>
#include <cmath>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

namespace {

constexpr float kLeastSum = 1e-20f;  // added to the sum that weights are divided by, as the reference does
constexpr int64_t kChunk = 256;      // columns summed at a time
constexpr int kLanes = 8;            // partial sums of a dot product

// Scores of a row: softmax of its logits, or their sigmoids.
void score_row(float* score, const RouteArgs& a, const float* logits) {
  if (a.sigmoid) {
    for (int e = 0; e < a.experts; ++e) score[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float most = *std::max_element(logits, logits + a.experts);
  float sum = 0;
  for (int e = 0; e < a.experts; ++e) sum += score[e] = std::exp(logits[e] - most);
  for (int e = 0; e < a.experts; ++e) score[e] /= sum;
}

// The highest number that is `open`, the first of equal ones; what is no number comes last. -1: none is open.
int best_of(const float* numbers, const uint8_t* open, int n) {
  int best = -1;
  for (int i = 0; i < n; ++i)
    if (open[i] &&
        (best < 0 || numbers[i] > numbers[best] || (numbers[best] != numbers[best] && numbers[i] == numbers[i])))
      best = i;
  return best;
}

// Scratch of one thread.
struct Choice {
  std::vector<float> score, rank, group;
  std::vector<uint8_t> open, open_groups;

  explicit Choice(const RouteArgs& a)
      : score(size_t(a.experts)),
        rank(score.size()),
        group(size_t(a.groups)),
        open(score.size()),
        open_groups(group.size()) {}

  // Leaves only the experts of the best groups open.
  void keep_groups(const RouteArgs& a) {
    const int size = a.experts / a.groups;
    std::fill(open.begin(), open.end(), uint8_t(0));
    for (int g = 0; g < a.groups; ++g) {
      std::fill_n(open.begin() + g * size, size, uint8_t(1));
      float sum = 0;
      for (int i = 0; i < 2; ++i) {
        const int best = best_of(rank.data() + g * size, open.data() + g * size, size);
        sum += rank[size_t(g * size + best)];
        open[size_t(g * size + best)] = 0;
      }
      group[size_t(g)] = sum;
    }
    std::fill(open.begin(), open.end(), uint8_t(0));
    std::fill(open_groups.begin(), open_groups.end(), uint8_t(1));
    for (int i = 0; i < a.groups_kept; ++i) {
      const int best = best_of(group.data(), open_groups.data(), a.groups);
      open_groups[size_t(best)] = 0;
      std::fill_n(open.begin() + best * size, size, uint8_t(1));
    }
  }
  void choose(const RouteArgs& a, int64_t row) {
    score_row(score.data(), a, a.logits + row * a.experts);
    for (int e = 0; e < a.experts; ++e) rank[size_t(e)] = a.bias ? score[size_t(e)] + a.bias[e] : score[size_t(e)];
    if (a.groups > 1)
      keep_groups(a);
    else
      std::fill(open.begin(), open.end(), uint8_t(1));
    int32_t* expert = a.expert + row * a.per_row;
    float* weight = a.weight + row * a.per_row;
    float sum = 0;
    for (int j = 0; j < a.per_row; ++j) {
      expert[j] = best_of(rank.data(), open.data(), a.experts);
      open[size_t(expert[j])] = 0;
      weight[j] = (a.bias_in_weights ? rank : score)[size_t(expert[j])];
      sum += weight[j];
    }
    for (int j = 0; j < a.per_row; ++j) weight[j] = (a.normalise ? weight[j] / (sum + kLeastSum) : weight[j]) * a.scale;
  }
};

}  // namespace

void CpuBackend::do_route_forward(const RouteArgs& a) {
  parallel_ranges(pool_, a.m, int64_t(a.experts) * (a.per_row + 16), [&](int64_t begin, int64_t end) {
    Choice choice(a);
    for (int64_t i = begin; i < end; ++i) choice.choose(a, i);
  });
}

void CpuBackend::do_route_backward(const RouteGradArgs& args) {
  const RouteArgs& a = args.forward;
  parallel_ranges(pool_, a.m, int64_t(a.experts) * 16, [&](int64_t begin, int64_t end) {
    std::vector<float> score(size_t(a.experts)), dscore(score.size()), value(size_t(a.per_row));
    for (int64_t i = begin; i < end; ++i) {
      const int32_t* expert = a.expert + i * a.per_row;
      const float* dweight = args.dweight + i * a.per_row;
      score_row(score.data(), a, a.logits + i * a.experts);
      float sum = kLeastSum, dot = 0;
      for (int j = 0; j < a.per_row; ++j) {
        const int e = expert[j];
        value[size_t(j)] = score[size_t(e)] + (a.bias && a.bias_in_weights ? a.bias[e] : 0.0f);
        sum += value[size_t(j)];
        dot += dweight[j] * value[size_t(j)];
      }
      std::fill(dscore.begin(), dscore.end(), 0.0f);
      float mean = 0;  // of the gradient, under the softmax
      for (int j = 0; j < a.per_row; ++j) {
        const float d = a.scale * (a.normalise ? (dweight[j] - dot / sum) / sum : dweight[j]);
        dscore[size_t(expert[j])] = d;
        mean += d * score[size_t(expert[j])];
      }
      float* dlogits = args.dlogits + i * a.experts;
      for (int e = 0; e < a.experts; ++e) {
        const float s = score[size_t(e)], d = dscore[size_t(e)];
        dlogits[e] = a.sigmoid ? d * s * (1.0f - s) : s * (d - mean);
      }
    }
  });
}

void CpuBackend::do_sort_by_expert(int32_t* row, int32_t* offset, int32_t* place, const int32_t* expert, int64_t m,
                                   int per_row, int experts) {
  const int64_t pairs = m * per_row;
  std::fill_n(offset, experts + 1, 0);
  for (int64_t i = 0; i < pairs; ++i) ++offset[expert[i] + 1];
  for (int e = 0; e < experts; ++e) offset[e + 1] += offset[e];
  std::vector<int32_t> next(offset, offset + experts);
  for (int64_t i = 0; i < pairs; ++i) {
    place[i] = next[size_t(expert[i])]++;
    row[place[i]] = int32_t(i / per_row);
  }
}

void CpuBackend::do_combine_experts(float* out, ConstArray y_array, const int32_t* place, const float* weight,
                                    int64_t m, int per_row, int64_t c) {
  const float* y = y_array.f32();
  parallel_ranges(pool_, m, c * per_row, [&](int64_t begin, int64_t end) {
    float sum[kChunk];
    for (int64_t i = begin; i < end; ++i)
      for (int64_t first = 0; first < c; first += kChunk) {
        const int64_t count = std::min(kChunk, c - first);
        std::fill(sum, sum + count, 0.0f);
        for (int64_t j = i * per_row; j < (i + 1) * per_row; ++j) {
          const float* from = y + place[j] * c + first;
          const float factor = weight ? weight[j] : 1.0f;
          for (int64_t l = 0; l < count; ++l) sum[l] += factor * from[l];
        }
        float* to = out + i * c + first;
        for (int64_t l = 0; l < count; ++l) to[l] += sum[l];
      }
  });
}

void CpuBackend::do_expert_weights_backward(float* dweight, Array d_array, ConstArray product_array,
                                            const int32_t* place, const float* weight, int64_t m, int per_row,
                                            int64_t f) {
  float* d = d_array.f32();
  const float* product = product_array.f32();
  parallel_ranges(pool_, m * per_row, f, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      float* row = d + place[pair] * f;
      const float* of = product + place[pair] * f;
      float sums[kLanes] = {};
      for (int64_t j = 0; j < f; ++j) sums[j % kLanes] += row[j] * of[j];
      float sum = 0;
      for (float lane : sums) sum += lane;
      dweight[pair] = sum;
      for (int64_t j = 0; j < f; ++j) row[j] *= weight[pair];
    }
  });
}

void CpuBackend::do_clamp_forward(Array x, int64_t n, float limit) {
  float* numbers = x.f32();
  parallel_ranges(pool_, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      numbers[i] = numbers[i] > limit ? limit : numbers[i] < -limit ? -limit : numbers[i];
  });
}

}  // namespace cpu
}  // namespace dultra
