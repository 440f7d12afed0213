// Launchers of all kernels. Every pointer is device memory; shapes as in ops/backend.h. Launchers queue work on
// `stream` and return.
#pragma once
#include "backends/cuda/device.h"
#include "ops/backend.h"

namespace dultra {
namespace cuda {

// convert.cu
void convert(void* to, DType to_type, const void* from, DType from_type, int64_t n, cudaStream_t stream);

// embedding.cu
void gather_rows(Array out, ConstArray table, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream);
void store_rows(Array to, ConstArray from, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream);
// to (m, width) = from (m, width), rows to_stride and from_stride apart
void copy_rows(Array to, int64_t to_stride, ConstArray from, int64_t from_stride, int64_t m, int64_t width,
               cudaStream_t stream);
void scatter_add_rows(float* x, const float* from, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream);

// norm.cu
void rmsnorm_forward(Array out, const float* x, const float* weight, int64_t m, int64_t c, float eps,
                     cudaStream_t stream);
void rmsnorm_copy_forward(Array out, float* copied, const float* x, const int32_t* index, const float* weight,
                          int64_t m, int64_t c, float eps, cudaStream_t stream);
void layernorm_forward(float* out, const float* x, const float* mul, const float* add, const int32_t* group, int64_t m,
                       int64_t c, float eps, cudaStream_t stream);
void planner_score_forward(float* logit, const float* x, const float* mul, const float* add, const int32_t* group,
                           const float* weight, float bias, int64_t m, int64_t c, float eps, cudaStream_t stream);

// norm_backward.cu. scratch: norm_backward_scratch(m, c) bytes.
size_t norm_backward_scratch(int64_t m, int64_t c);
void rmsnorm_backward(float* dx, float* dweight, const float* dout, const float* x, const float* weight, int64_t m,
                      int64_t c, float eps, void* scratch, cudaStream_t stream);
void layernorm_backward(float* dx, float* dmul, float* dadd, const float* dout, const float* x, const float* mul,
                        const int32_t* group, int64_t m, int64_t c, float eps, void* scratch, cudaStream_t stream);
void planner_score_backward(float* dx, float* dmul, float* dadd, float* dweight, float* dbias, const float* dlogit,
                            const float* x, const float* mul, const float* add, const int32_t* group,
                            const float* weight, int64_t m, int64_t c, float eps, void* scratch, cudaStream_t stream);
// to (c) += column sums of x (m, c), rows `stride` apart. scratch: norm_backward_scratch(m, c) bytes.
void add_column_sums(float* to, ConstArray x, int64_t stride, int64_t m, int64_t c, void* scratch, cudaStream_t stream);

// rope.cu. inverse_frequency (D/2); direction 1 forward, -1 backward
void rope(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
          const float* inverse_frequency, float direction, cudaStream_t stream);
void rope_store(Array to, const int32_t* index, ConstArray kv, const int32_t* positions, int64_t m, int kv_heads,
                int head_dim, const float* inverse_frequency, cudaStream_t stream);

// gates.cu
void swiglu_forward(Array out, ConstArray gate_up, int64_t m, int64_t f, cudaStream_t stream);
void silu_forward(float* x, int64_t n, cudaStream_t stream);
void swiglu_backward(Array dgate_up, ConstArray dout, ConstArray gate_up, int64_t m, int64_t f, cudaStream_t stream);
void silu_backward(float* dx, const float* dout, const float* x, int64_t n, cudaStream_t stream);

// matmul.cu. An operand of a product over k: element (row, k) is data[row * stride + k], or with `transposed` data[k *
// stride + row].
struct Operand {
  const void* data;
  DType dtype;
  int64_t stride;
  bool transposed;
};
// out (m, n), rows out_stride apart, = a (m, k) b (n, k)^T + bias (n, may be null), plus what out holds if
// `accumulate`. With Compute::kBF16 operands are rounded to bf16; without, a and out are fp32. An element is one chain
// over ascending k whatever m and n are. out may be bf16 unless `accumulate`.
void matmul(Array out, int64_t out_stride, const Operand& a, const Operand& b, int64_t m, int64_t n, int64_t k,
            const float* bias, bool accumulate, Compute compute, cudaStream_t stream);

// attention.cu: index arrays of `args` are device memory. scratch: attention_scratch of the same call bytes.
// Compute::kBF16 takes the tensor cores where the head dimension is 64, 96 or 128; at 64 and 128 by wgmma where the
// device has `warpgroups`.
struct AttentionSizes {
  int64_t queries, keys;      // all rows of q and of k
  int max_queries, max_keys;  // of a sequence
  int sequences;              // those that have queries
};
size_t attention_scratch(const AttentionArgs& args, const AttentionSizes& sizes, Compute compute);
void attention_forward(const AttentionArgs& args, const AttentionSizes& sizes, Compute compute, bool warpgroups,
                       void* scratch, cudaStream_t stream);
// attention_backward.cu
size_t attention_backward_scratch(const AttentionGradArgs& args, const AttentionSizes& sizes, Compute compute);
void attention_backward(const AttentionGradArgs& args, const AttentionSizes& sizes, Compute compute, bool warpgroups,
                        void* scratch, cudaStream_t stream);

// warpgroups.cu: whether products by wgmma are what they should be on the device at hand; waits for it.
bool warpgroups_work(cudaStream_t stream);

// sampling.cu: all of `args` is device memory. scratch: sampling_scratch(rows, vocab) bytes.
size_t sampling_scratch(int64_t rows, int64_t vocab);
void sample_forward(const SampleArgs& args, void* scratch, cudaStream_t stream);
void log_prob_backward(float* logits, const int32_t* tokens, const float* dlog_prob, int64_t m, int64_t vocab,
                       float temperature, int32_t excluded_token, cudaStream_t stream);

// unmask.cu: all of `args` is device memory. candidates: of all rows. scratch: unmask_scratch(candidates) bytes.
size_t unmask_scratch(int64_t candidates);
void unmask(const UnmaskArgs& args, int64_t candidates, void* scratch, cudaStream_t stream);
void likelihood_forward(const LikelihoodArgs& args, cudaStream_t stream);
void likelihood_backward(const LikelihoodGradArgs& args, cudaStream_t stream);

// optimizer.cu. sum_squares: result (1) double. scratch: sum_squares_scratch(n) bytes.
size_t sum_squares_scratch(int64_t n);
void sum_squares(double* result, const float* x, int64_t n, void* scratch, cudaStream_t stream);
void adamw_step(const AdamWArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace dultra
