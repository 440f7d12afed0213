// Functions that are the same code on every backend: marked for the device where a CUDA compiler reads them.
#pragma once

#ifdef __CUDACC__
#define DULTRA_HD __host__ __device__ __forceinline__
#else
#define DULTRA_HD inline
#endif
