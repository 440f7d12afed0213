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
  int dim, tail;  // numbers of a head that turn, and those behind them that are copied: none in place
  const float* frequencies;
  float direction;
};

// Cosines and sines of a row's angles, for all heads: fp32, as the frequencies that the host computed are.
__device__ __forceinline__ void compute_angles(float* cosines, float* sines, const RopeRows& rows) {
  const float position = float(rows.positions[blockIdx.x]);
  for (int j = int(threadIdx.x); j < rows.dim / 2; j += kTurnThreads) {
    const float angle = position * rows.frequencies[j];
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

// The pairs of vectors of kN numbers in a head: those that turn, then, of the numbers behind, halves that are copied.
template <int kN>
struct RopePairs {
  struct Place {
    unsigned head, first;  // first: of the pairs that turn
    unsigned low, apart;   // where the low vector lies in the row, and how far behind it the high one
    int64_t count;         // numbers of a vector that exist
    bool turns;
  };
  unsigned head_dim, dim, half, half_tail, turning, per_head;

  __device__ __forceinline__ explicit RopePairs(const RopeRows& rows)
      : head_dim(unsigned(rows.head_dim)),
        dim(unsigned(rows.dim)),
        half(dim / 2),
        half_tail(unsigned(rows.tail) / 2),
        turning((half + kN - 1) / kN),
        per_head(turning + (half_tail + kN - 1) / kN) {}

  __device__ __forceinline__ Place place(unsigned vector) const {
    Place place;
    place.head = vector / per_head;
    const unsigned in_head = vector - place.head * per_head;
    place.turns = in_head < turning;
    place.first = (place.turns ? in_head : in_head - turning) * kN;
    place.low = place.head * head_dim + place.first + (place.turns ? 0 : dim);
    place.apart = place.turns ? half : half_tail;
    place.count = int64_t(place.apart) - place.first;
    return place;
  }
};

// A block's part of a row. to and from may be the same: a thread reads what it overwrites.
template <bool kWhole, class To, class From>
__device__ __forceinline__ void turn_row(To* to, const From* from, const RopeRows& rows, float* cosines) {
  constexpr int kN = kVectorOf<To, From>;
  const RopePairs<kN> pairs(rows);
  float* sines = cosines + rows.dim / 2;
  Vector<From, kN> low[kTurns], high[kTurns];
  typename RopePairs<kN>::Place places[kTurns];
  DULTRA_UNROLL
  for (int t = 0; t < kTurns; ++t) {
    const typename RopePairs<kN>::Place place = places[t] =
        pairs.place((blockIdx.y * kTurns + unsigned(t)) * kTurnThreads + threadIdx.x);
    if (place.head >= unsigned(rows.heads)) continue;
    low[t] = load_vector<kN, kWhole>(from + place.low, place.count);
    high[t] = load_vector<kN, kWhole>(from + place.low + place.apart, place.count);
  }
  // While they come.
  compute_angles(cosines, sines, rows);
  block_sync();
  DULTRA_UNROLL
  for (int t = 0; t < kTurns; ++t) {
    const typename RopePairs<kN>::Place place = places[t];
    if (place.head >= unsigned(rows.heads)) continue;
    float a[kN], b[kN];
    DULTRA_UNROLL
    for (int e = 0; e < kN; ++e) a[e] = low[t][e], b[e] = high[t][e];
    if (place.head < unsigned(rows.turned) && place.turns) {
      DULTRA_UNROLL
      for (int k = 0; k < kN; k += 4) {
        const Vector<float, 4> c = load_vector<4, kWhole>(cosines + place.first + k, place.count - k),
                               s = load_vector<4, kWhole>(sines + place.first + k, place.count - k);
        DULTRA_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float low_number = a[k + e], high_number = b[k + e];
          a[k + e] = held<To, From>(fmaf(low_number, c[e], -(high_number * s[e])));
          b[k + e] = held<To, From>(fmaf(high_number, c[e], low_number * s[e]));
        }
      }
    }
    store_vector<kWhole>(to + place.low, rounded_to<To>(a), place.count);
    store_vector<kWhole>(to + place.low + place.apart, rounded_to<To>(b), place.count);
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
      const int64_t half = rows.dim / 2, half_tail = rows.tail / 2;
      const int64_t vectors = rows.heads * (ceil_div(half, kN) + ceil_div(half_tail, kN));
      if (m * vectors == 0) return;
      const bool aligned = half % kN == 0 && half_tail % kN == 0 && in_vectors<kN>(to_numbers, rows.to_stride) &&
                           in_vectors<kN>(from_numbers, rows.from_stride);
      launch(name, stream, rope_kernel<To, From>, row_pieces(m, vectors, kTurnThreads * kTurns), kTurnThreads,
             size_t(half) * 2 * sizeof(float), to_numbers, from_numbers, rows, aligned);
    });
  });
}

}  // namespace

const float* CudaBackend::frequencies(const Rope& rope) {
  for (const Frequencies& f : frequencies_)
    if (f.rope == rope) return f.values;
  refuse_capture("rope_forward");
  const std::vector<float> host = rope_frequencies(rope);
  Frequencies made{rope, nullptr};
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&made.values), host.size() * sizeof(float)), "allocating memory");
  frequencies_.push_back(made);
  check_cuda(cudaMemcpyAsync(made.values, host.data(), host.size() * sizeof(float), cudaMemcpyDefault, stream_),
             "copying to the device");
  synchronize();
  return made.values;
}

void CudaBackend::rotate(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                         const Rope& rope, float direction) {
  if (rope.dim == 0) return;
  ArgTransfer transfer(*this, {in(positions, m)}, "rope_forward");
  launch_rope("rope", x, x, m,
              {stride, stride, positions, nullptr, heads, heads, head_dim, rope.dim, 0, frequencies(rope), direction},
              stream_);
  transfer.finish();
}

void CudaBackend::do_rope_forward(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                                  const Rope& rope) {
  rotate(x, stride, positions, m, heads, head_dim, rope, 1);
}

void CudaBackend::do_rope_backward(Array dx, int64_t stride, const int32_t* positions, int64_t m, int heads,
                                   int head_dim, const Rope& rope) {
  rotate(dx, stride, positions, m, heads, head_dim, rope, -1);
}

void CudaBackend::do_rope_store_forward(Array to, const int32_t* index, Array kv, const int32_t* positions, int64_t m,
                                        int kv_heads, int head_dim, const Rope& rope) {
  ArgTransfer transfer(*this, {in(positions, m), in(index, m)});
  const int64_t width = int64_t(2) * kv_heads * head_dim;
  launch_rope("rope_store", to, kv, m,
              {width, width, positions, index, 2 * kv_heads, kv_heads, head_dim, rope.dim, head_dim - rope.dim,
               rope.dim ? frequencies(rope) : nullptr, 1},
              stream_);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
