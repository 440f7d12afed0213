// What the CUDA plugin shows to open_backend.cc, which opens it at run time. The two share C++ classes, so they come
// from one build: the version is compared before anything else is called.
#include <new>
#include <string>

#include "backends/cuda/cuda_backend.h"
#include "backends/plugin.h"

extern "C" {

__attribute__((visibility("default"))) const char* dultra_cuda_version() { return DULTRA_VERSION; }

__attribute__((visibility("default"))) dultra::Backend* dultra_cuda_open(int index, dultra::Compute compute) {
  return new dultra::cuda::CudaBackend(index, compute);
}

__attribute__((visibility("default"))) void dultra_cuda_devices(std::vector<dultra::CudaDevice>* devices) {
  for (const auto& device : dultra::cuda::list_devices())
    devices->push_back({device.name + ", sm_" + std::to_string(device.major) + std::to_string(device.minor) + ", " +
                            std::to_string(device.memory >> 30) + " GiB",
                        device.memory});
}

}  // extern "C"
