// What a mixture of experts does beside its matrix products (matmul.cu): the choice of experts, rows by their experts
// and back. Launches depend on the number of rows alone, not on what they choose.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/vectors.h"

namespace dultra {
namespace cuda {

namespace {

constexpr float kLeastSum = 1e-20f;  // added to the sum that weights are divided by, as the reference does
constexpr int kSortThreads = 256;
constexpr int kWeightWarps = 4;  // per block, a pair each

// Scores of a row in shared memory, by one warp: softmax of its logits, or their sigmoids.
__device__ __forceinline__ void score_row(float* score, const RouteArgs& a, const float* logits) {
  const int lane = lane_index();
  if (a.sigmoid) {
    for (int e = lane; e < a.experts; e += kWarp) score[e] = 1.0f / (1.0f + expf(-logits[e]));
    warp_sync();
    return;
  }
  float most = -INFINITY, sum = 0;
  for (int e = lane; e < a.experts; e += kWarp) most = logits[e] > most ? logits[e] : most;
  most = warp_max(most);
  for (int e = lane; e < a.experts; e += kWarp) sum += score[e] = expf(logits[e] - most);
  sum = warp_sum(sum);
  for (int e = lane; e < a.experts; e += kWarp) score[e] /= sum;
  warp_sync();  // all scores are there
}

// Keys order as the numbers do, the first of equal ones above the others, and what is no number below every number; 0
// is below every key.
__device__ __forceinline__ uint64_t key_of(float number, int index) {
  uint32_t bits;
  number += 0.0f;  // -0 is 0
  memcpy(&bits, &number, 4);
  bits = std::isnan(number) ? 0 : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return uint64_t(bits) << 32 | uint32_t(~index);
}
__device__ __forceinline__ int index_of(uint64_t key) { return int(~uint32_t(key)); }
// The highest of n keys in shared memory, on all lanes.
__device__ __forceinline__ uint64_t highest(const uint64_t* keys, int n) {
  uint64_t best = 0;
  for (int i = lane_index(); i < n; i += kWarp) best = keys[i] > best ? keys[i] : best;
  return warp_max(best);
}

struct RouteMemory {
  uint64_t *key, *group;  // (E), (G)
  float *score, *rank;    // (E)

  static size_t bytes(const RouteArgs& a) {
    return sizeof(uint64_t) * size_t(a.experts + a.groups) + sizeof(float) * 2 * size_t(a.experts);
  }
  __device__ __forceinline__ RouteMemory(unsigned char* shared, const RouteArgs& a)
      : key(reinterpret_cast<uint64_t*>(shared)),
        group(key + a.experts),
        score(reinterpret_cast<float*>(group + a.groups)),
        rank(score + a.experts) {}
};

// Leaves keys to the experts of the best groups alone.
__device__ __forceinline__ void keep_groups(const RouteMemory& row, const RouteArgs& a) {
  const int size = a.experts / a.groups;
  for (int g = lane_index(); g < a.groups; g += kWarp) {
    uint64_t first = 0, second = 0;
    for (int e = g * size; e < (g + 1) * size; ++e) {
      const uint64_t key = row.key[e];
      if (key > first) {
        second = first;
        first = key;
      } else if (key > second) {
        second = key;
      }
    }
    row.group[g] = key_of(row.rank[index_of(first)] + row.rank[index_of(second)], g);
  }
  warp_sync();  // the groups' keys are there
  for (int e = lane_index(); e < a.experts; e += kWarp) {
    int better = 0;
    for (int g = 0; g < a.groups; ++g) better += row.group[g] > row.group[e / size];
    if (better >= a.groups_kept) row.key[e] = 0;
  }
  warp_sync();  // closed keys are gone
}

__global__ void __launch_bounds__(kWarp) route_forward_kernel(RouteArgs a) {
  DULTRA_SHARED(shared);
  const RouteMemory row(shared, a);
  const int lane = lane_index();
  score_row(row.score, a, a.logits + int64_t(blockIdx.x) * a.experts);
  for (int e = lane; e < a.experts; e += kWarp) {
    row.rank[e] = a.bias ? row.score[e] + a.bias[e] : row.score[e];
    row.key[e] = key_of(row.rank[e], e);
  }
  warp_sync();  // all keys are there
  if (a.groups > 1) keep_groups(row, a);
  int32_t* expert = a.expert + int64_t(blockIdx.x) * a.per_row;
  float* weight = a.weight + int64_t(blockIdx.x) * a.per_row;
  float sum = 0;
  for (int j = 0; j < a.per_row; ++j) {
    const int best = index_of(highest(row.key, a.experts));
    warp_sync();  // every lane has read the keys
    if (lane == 0) {
      row.key[best] = 0;
      expert[j] = best;
      weight[j] = a.bias_in_weights ? row.rank[best] : row.score[best];
      sum += weight[j];
    }
    warp_sync();
  }
  if (lane > 0) return;
  for (int j = 0; j < a.per_row; ++j) weight[j] = (a.normalise ? weight[j] / (sum + kLeastSum) : weight[j]) * a.scale;
}

__global__ void __launch_bounds__(kWarp) route_backward_kernel(RouteGradArgs grad) {
  DULTRA_SHARED(shared);
  const RouteArgs& a = grad.forward;
  float* score = reinterpret_cast<float*>(shared);  // (E)
  float* dscore = score + a.experts;                // (E)
  float* mean = dscore + a.experts;                 // of the gradient, under the softmax
  const int lane = lane_index();
  const int32_t* expert = a.expert + int64_t(blockIdx.x) * a.per_row;
  const float* dweight = grad.dweight + int64_t(blockIdx.x) * a.per_row;
  score_row(score, a, a.logits + int64_t(blockIdx.x) * a.experts);
  for (int e = lane; e < a.experts; e += kWarp) dscore[e] = 0;
  warp_sync();  // all are cleared
  if (lane == 0) {
    float sum = kLeastSum, dot = 0;
    for (int j = 0; j < a.per_row; ++j) {
      const float value = score[expert[j]] + (a.bias && a.bias_in_weights ? a.bias[expert[j]] : 0.0f);
      sum += value;
      dot = fmaf(dweight[j], value, dot);
    }
    *mean = 0;
    for (int j = 0; j < a.per_row; ++j) {
      const float d = a.scale * (a.normalise ? (dweight[j] - dot / sum) / sum : dweight[j]);
      dscore[expert[j]] = d;
      *mean = fmaf(d, score[expert[j]], *mean);
    }
  }
  warp_sync();  // gradients of the scores are there
  float* dlogits = grad.dlogits + int64_t(blockIdx.x) * a.experts;
  for (int e = lane; e < a.experts; e += kWarp)
    dlogits[e] = a.sigmoid ? dscore[e] * score[e] * (1.0f - score[e]) : score[e] * (dscore[e] - *mean);
}

// The threads before this one of the block for which `is` holds. scratch: kSortThreads / kWarp numbers; `all`: of the
// whole block.
__device__ __forceinline__ int count_before(bool is, int* scratch, int* all) {
  int before = 0, total = is;
  for (int mask = 1; mask < kWarp; mask <<= 1) {
    const int other = shuffle_xor(total, mask);
    if (lane_index() & mask) before += other;
    total += other;
  }
  block_sync();  // the numbers of the call before were read
  if (lane_index() == 0) scratch[warp_index()] = total;
  block_sync();
  *all = 0;
  for (int w = 0; w < kSortThreads / kWarp; ++w) {
    if (w < warp_index()) before += scratch[w];
    *all += scratch[w];
  }
  return before;
}

// A block for each expert: counts the pairs of the experts before it, then places its own in their order.
__global__ void __launch_bounds__(kSortThreads) sort_by_expert_kernel(int32_t* row, int32_t* offset, int32_t* place,
                                                                      const int32_t* expert, int pairs, int per_row) {
  DULTRA_SHARED(shared);
  int* scratch = reinterpret_cast<int*>(shared);
  const int own = int(blockIdx.x), thread = int(threadIdx.x);
  int before = 0;
  for (int i = thread; i < pairs; i += kSortThreads) before += expert[i] < own;
  int next = block_sum<kSortThreads>(before, scratch);
  if (thread == 0) {
    offset[own] = next;
    if (blockIdx.x + 1 == gridDim.x) offset[own + 1] = pairs;
  }
  for (int first = 0; first < pairs; first += kSortThreads) {
    const int i = first + thread;
    const bool is_own = i < pairs && expert[i] == own;
    int found;
    const int at = next + count_before(is_own, scratch, &found);
    if (is_own) {
      place[i] = at;
      row[at] = i / per_row;
    }
    next += found;
  }
}

__global__ void __launch_bounds__(kElementThreads)
    combine_experts_kernel(float* out, ConstArray y, const int32_t* place, const float* weight, int per_row,
                           int64_t c) {
  const int64_t row = blockIdx.x, column = int64_t(blockIdx.y) * kElementThreads + threadIdx.x;
  if (column >= c) return;
  float sum = 0;
  for (int64_t j = row * per_row; j < (row + 1) * per_row; ++j)
    sum = fmaf(weight ? weight[j] : 1.0f, y[place[j] * c + column], sum);
  out[row * c + column] += sum;
}

__global__ void __launch_bounds__(kWeightWarps* kWarp)
    expert_weights_backward_kernel(float* dweight, Array d, ConstArray product, const int32_t* place,
                                   const float* weight, int64_t pairs, int64_t f) {
  const int64_t pair = int64_t(blockIdx.x) * kWeightWarps + warp_index();
  if (pair >= pairs) return;
  const ConstArray upstream = d;
  const int64_t first = place[pair] * f;
  const float factor = weight[pair];
  float sum = 0;
  for (int64_t j = first + lane_index(); j < first + f; j += kWarp) {
    const float value = upstream[j];
    sum = fmaf(value, product[j], sum);
    put(d, j, value * factor);
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) dweight[pair] = sum;
}

__global__ void __launch_bounds__(kElementThreads) clamp_forward_kernel(Array x, int64_t n, float limit) {
  const int64_t i = global_index();
  if (i >= n) return;
  const float value = ConstArray(x)[i];
  if (value > limit) put(x, i, limit);
  if (value < -limit) put(x, i, -limit);
}

}  // namespace

void CudaBackend::do_route_forward(const RouteArgs& args) {
  ArgTransfer transfer(*this);
  if (args.m > 0)
    launch("route_forward", stream_, route_forward_kernel, dim3(unsigned(args.m)), kWarp, RouteMemory::bytes(args),
           args);
  transfer.finish();
}

void CudaBackend::do_route_backward(const RouteGradArgs& args) {
  ArgTransfer transfer(*this);
  if (args.forward.m > 0)
    launch("route_backward", stream_, route_backward_kernel, dim3(unsigned(args.forward.m)), kWarp,
           sizeof(float) * size_t(2 * args.forward.experts + 1), args);
  transfer.finish();
}

void CudaBackend::do_sort_by_expert(int32_t* row, int32_t* offset, int32_t* place, const int32_t* expert, int64_t m,
                                    int per_row, int experts) {
  ArgTransfer transfer(*this);
  launch("sort_by_expert", stream_, sort_by_expert_kernel, dim3(unsigned(experts)), kSortThreads,
         sizeof(int) * kSortThreads / kWarp, row, offset, place, expert, int(m * per_row), per_row);
  transfer.finish();
}

void CudaBackend::do_combine_experts(float* out, ConstArray y, const int32_t* place, const float* weight, int64_t m,
                                     int per_row, int64_t c) {
  ArgTransfer transfer(*this);
  if (m * c > 0)
    launch("combine_experts", stream_, combine_experts_kernel, row_pieces(m, c, kElementThreads), kElementThreads, 0,
           out, y, place, weight, per_row, c);
  transfer.finish();
}

void CudaBackend::do_expert_weights_backward(float* dweight, Array d, ConstArray product, const int32_t* place,
                                             const float* weight, int64_t m, int per_row, int64_t f) {
  ArgTransfer transfer(*this);
  const int64_t pairs = m * per_row;
  if (pairs > 0)
    launch("expert_weights_backward", stream_, expert_weights_backward_kernel,
           dim3(unsigned(ceil_div(pairs, kWeightWarps))), kWeightWarps * kWarp, 0, dweight, d, product, place, weight,
           pairs, f);
  transfer.finish();
}

void CudaBackend::do_clamp_forward(Array x, int64_t n, float limit) {
  ArgTransfer transfer(*this);
  if (n > 0) launch("clamp_forward", stream_, clamp_forward_kernel, element_grid(n), kElementThreads, 0, x, n, limit);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
