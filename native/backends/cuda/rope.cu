// Rotary position embedding, in place or on the way into the cache.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/vectors.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kTurnThreads = 128;
constexpr int kTurns = 2;  // pairs of vectors of a thread

struct RopeRows {
  int64_t from_stride, to_stride;
  const int32_t *positions, *index;  // index: rows of `to`, null: those of `from`
  int heads, turned, head_dim;       // the first `turned` heads are turned, the others copied
  const float* inverse_frequency;
  float direction;
};

// Cosines and sines of a row's angles, for all heads: fp32, as the frequencies that the host computed are.
__device__ __forceinline__ void compute_angles(float* cosines, float* sines, const RopeRows& rows) {
  const float position = float(rows.positions[blockIdx.x]);
  for (int j = int(threadIdx.x); j < rows.head_dim / 2; j += kTurnThreads) {
    const float angle = position * rows.inverse_frequency[j];
    cosines[j] = cosf(angle);
    sines[j] = sinf(angle) * rows.direction;
  }
}

// A number as an array of From would hold it: keys that are turned in place are rounded before they go to a wider
// cache, and so are these.
template <class To, class From>
__device__ __forceinline__ float held(float value) {
  return sizeof(From) < sizeof(To) ? bf16_to_f32(uint16_t(pack_bf16(value, 0.0f))) : value;
}

// A block's part of a row. to and from may be the same: a thread reads what it overwrites.
template <bool kWhole, class To, class From>
__device__ __forceinline__ void turn_row(To* to, const From* from, const RopeRows& rows, float* cosines) {
  constexpr int kN = kVectorOf<To, From>;
  const unsigned half = unsigned(rows.head_dim) / 2, per_head = (half + kN - 1) / kN;
  float* sines = cosines + half;
  Vector<From, kN> low[kTurns], high[kTurns];
  unsigned head[kTurns], first[kTurns];  // of a vector's pairs
  DULTRA_UNROLL
  for (int t = 0; t < kTurns; ++t) {
    const unsigned vector = (blockIdx.y * kTurns + unsigned(t)) * kTurnThreads + threadIdx.x;
    head[t] = vector / per_head;
    first[t] = (vector - head[t] * per_head) * kN;
    if (head[t] >= unsigned(rows.heads)) continue;
    const From* numbers = from + (head[t] * unsigned(rows.head_dim) + first[t]);
    low[t] = load_vector<kN, kWhole>(numbers, half - first[t]);
    high[t] = load_vector<kN, kWhole>(numbers + half, half - first[t]);
  }
  // While they come.
  compute_angles(cosines, sines, rows);
  block_sync();
  DULTRA_UNROLL
  for (int t = 0; t < kTurns; ++t) {
    if (head[t] >= unsigned(rows.heads)) continue;
    const int64_t count = half - first[t];
    float a[kN], b[kN];
    DULTRA_UNROLL
    for (int e = 0; e < kN; ++e) a[e] = low[t][e], b[e] = high[t][e];
    if (head[t] < unsigned(rows.turned)) {
      DULTRA_UNROLL
      for (int k = 0; k < kN; k += 4) {
        const Vector<float, 4> c = load_vector<4, kWhole>(cosines + first[t] + k, count - k),
                               s = load_vector<4, kWhole>(sines + first[t] + k, count - k);
        DULTRA_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float low_number = a[k + e], high_number = b[k + e];
          a[k + e] = held<To, From>(fmaf(low_number, c[e], -(high_number * s[e])));
          b[k + e] = held<To, From>(fmaf(high_number, c[e], low_number * s[e]));
        }
      }
    }
    To* numbers = to + (head[t] * unsigned(rows.head_dim) + first[t]);
    store_vector<kWhole>(numbers, rounded_to<To>(a), count);
    store_vector<kWhole>(numbers + half, rounded_to<To>(b), count);
  }
}

template <class To, class From>
__global__ void __launch_bounds__(kTurnThreads) rope_kernel(To* to, const From* from, RopeRows rows, bool aligned) {
  DULTRA_SHARED(shared);
  float* cosines = reinterpret_cast<float*>(shared);
  const int64_t row = blockIdx.x;
  to += (rows.index ? rows.index[row] : row) * rows.to_stride;
  from += row * rows.from_stride;
  if (aligned)
    turn_row<true>(to, from, rows, cosines);
  else
    turn_row<false>(to, from, rows, cosines);
}

void launch_rope(const char* name, Array to, ConstArray from, int64_t m, const RopeRows& rows, cudaStream_t stream) {
  typed(to, [&](auto* to_numbers) {
    typed(from, [&](auto* from_numbers) {
      using To = number_of<decltype(to_numbers)>;
      using From = number_of<decltype(from_numbers)>;
      constexpr int kN = kVectorOf<To, From>;
      const int64_t half = rows.head_dim / 2, vectors = rows.heads * ceil_div(half, kN);
      if (m * vectors == 0) return;
      const bool aligned = half % kN == 0 && in_vectors<kN>(to_numbers, rows.to_stride) &&
                           in_vectors<kN>(from_numbers, rows.from_stride);
      launch(name, stream, rope_kernel<To, From>, row_pieces(m, vectors, kTurnThreads * kTurns), kTurnThreads,
             size_t(half) * 2 * sizeof(float), to_numbers, from_numbers, rows, aligned);
    });
  });
}

}  // namespace

const float* CudaBackend::inverse_frequencies(int head_dim, float theta) {
  for (const Frequencies& f : frequencies_)
    if (f.head_dim == head_dim && f.theta == theta) return f.values;
  refuse_capture("rope_forward");
  // As the CPU backend computes them: rounded to fp32 at every operation.
  std::vector<float> host(size_t(head_dim / 2));
  for (size_t j = 0; j < host.size(); ++j) host[j] = 1.0f / std::pow(theta, float(2 * j) / float(head_dim));
  Frequencies made{head_dim, theta, nullptr};
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&made.values), host.size() * sizeof(float)), "allocating memory");
  frequencies_.push_back(made);
  check_cuda(cudaMemcpyAsync(made.values, host.data(), host.size() * sizeof(float), cudaMemcpyDefault, stream_),
             "copying to the device");
  synchronize();
  return made.values;
}

void CudaBackend::rotate(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                         float theta, float direction) {
  ArgTransfer transfer(*this, {in(positions, m)}, "rope_forward");
  const float* frequencies = inverse_frequencies(head_dim, theta);
  launch_rope("rope", x, x, m, {stride, stride, positions, nullptr, heads, heads, head_dim, frequencies, direction},
              stream_);
  transfer.finish();
}

void CudaBackend::do_rope_forward(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                                  float theta) {
  rotate(x, stride, positions, m, heads, head_dim, theta, 1);
}

void CudaBackend::do_rope_backward(Array dx, int64_t stride, const int32_t* positions, int64_t m, int heads,
                                   int head_dim, float theta) {
  rotate(dx, stride, positions, m, heads, head_dim, theta, -1);
}

void CudaBackend::do_rope_store_forward(Array to, const int32_t* index, Array kv, const int32_t* positions, int64_t m,
                                        int kv_heads, int head_dim, float theta) {
  ArgTransfer transfer(*this, {in(positions, m), in(index, m)});
  const float* frequencies = inverse_frequencies(head_dim, theta);
  const int64_t width = int64_t(2) * kv_heads * head_dim;
  launch_rope("rope_store", to, kv, m,
              {width, width, positions, index, 2 * kv_heads, kv_heads, head_dim, frequencies, 1}, stream_);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
