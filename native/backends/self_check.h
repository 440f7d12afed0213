// Compares a device with the CPU backend before the device is used.
#pragma once
#include "ops/backend.h"

namespace dultra {

// Runs small cases of every kind of operation that decoding and training are made of on the device, in its arithmetic,
// and on `reference`, which computes in fp32. Decisions (tokens, selected positions) have to be equal, numbers to agree
// within what rounding explains. Throws DEVICE_UNAVAILABLE that names the first operation which differs.
void check_device(Backend& device, Backend& reference);

}  // namespace dultra
