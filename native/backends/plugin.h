// The functions of a backend library that is opened at run time. They throw Error as everything does.
#pragma once
#include <string>
#include <vector>

#include "ops/backend.h"

namespace dultra {

struct CudaDevice {
  std::string name;  // a line: name, architecture, memory
  size_t memory;     // bytes in all
};

extern "C" {
// Of the package that the library was built from.
typedef const char* (*PluginVersion)();
// The caller owns the backend, and destroys it while the library is open.
typedef Backend* (*PluginOpen)(int index, Compute compute);
// Appends every device.
typedef void (*PluginDevices)(std::vector<CudaDevice>* devices);
}

}  // namespace dultra
