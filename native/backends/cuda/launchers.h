// Launchers that other files call than the one with their kernel. Pointers are device memory; they queue work on
// `stream` and return.
#pragma once
#include "backends/cuda/device.h"
#include "ops/tensor.h"

namespace dultra {
namespace cuda {

// matmul.cu. to (n) = from (n), each of its own storage type.
void convert(void* to, DType to_type, const void* from, DType from_type, int64_t n, cudaStream_t stream);

// embedding.cu. to (m, width) = from (m, width), rows to_stride and from_stride apart.
void copy_rows(Array to, int64_t to_stride, ConstArray from, int64_t from_stride, int64_t m, int64_t width,
               cudaStream_t stream);

// norm.cu. to (c) += column sums of x (m, c), rows `stride` apart. scratch: norm_scratch(m, c) bytes.
size_t norm_scratch(int64_t m, int64_t c);
void add_column_sums(float* to, ConstArray x, int64_t stride, int64_t m, int64_t c, void* scratch, cudaStream_t stream);

// norm.cu. to (c) += sum of partial (pieces, c), in their order. `name` names the launch.
void add_pieces(const char* name, float* to, const float* partial, int64_t pieces, int64_t c, cudaStream_t stream);

// warpgroups.cu. Whether products by wgmma are what they should be on the device at hand; waits for the device.
bool warpgroups_work(cudaStream_t stream);

}  // namespace cuda
}  // namespace dultra
