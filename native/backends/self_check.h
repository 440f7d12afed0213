// Whether a device computes what the CPU does, before anything is trusted to it.
#pragma once
#include "ops/backend.h"

namespace dultra {

// Runs one small case of every kind of operation that decoding is made of on both backends, in fp32 and, where the
// device computes in it, in bf16. Decisions (tokens, selected positions) have to be equal, numbers to agree within what
// rounding explains. Leaves the device as it was, but for the arithmetic of its products, which the next make_matrix
// sets. Throws DEVICE_UNAVAILABLE that names the first operation which differs.
void check_device(Backend& device, Backend& reference);

}  // namespace dultra
