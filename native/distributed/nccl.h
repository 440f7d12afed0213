// NCCL, opened at run time: sums of arrays in the memory of NVIDIA devices, without a way through the host. MPI starts
// the processes all the same, and what lies in host memory goes by it.
#pragma once
#include <memory>
#include <string>

#include "ops/backend.h"
#include "ops/communicator.h"

namespace dultra {

// A library of NCCL that can be used here.
struct NcclLibrary {
  std::string file;     // as it was opened; empty: there is none
  std::string version;  // "2.21.5"
  std::string reason;   // why there is none
};

// Opens $DULTRA_NCCL (a file; "off" for none), or libnccl.so.2 where the dynamic linker, the CUDA toolkit or a Python
// package has it: NCCL 2.10 or newer. It is kept open: later calls answer with it.
NcclLibrary open_nccl();

// Connects the devices of `ranks`, whose backends each give its own: every rank calls it. Where one cannot, none does.
// Throws DEVICE_UNAVAILABLE where all can, and it fails.
DeviceRanks connect_devices(Backend& backend, const std::shared_ptr<Communicator>& ranks);

// Ends all connections; every rank calls it, with nothing under way.
void disconnect_devices();

}  // namespace dultra
