// The functions of a backend library that is opened at run time. They throw Error as everything does.
#pragma once
#include <string>
#include <vector>

#include "ops/backend.h"

namespace dultra {

using DeviceNames = std::vector<std::string>;

extern "C" {
// Of the package that the library was built from.
typedef const char* (*PluginVersion)();
// The caller owns the backend, and destroys it while the library is open.
typedef Backend* (*PluginOpen)(int index);
// Appends a line for each device.
typedef void (*PluginDevices)(DeviceNames* names);
}

}  // namespace dultra
