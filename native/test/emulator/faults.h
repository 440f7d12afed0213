// Faults that the emulator plants at run time, for the mutant suite (scripts/suites/mutants.cjs): a barrier that is
// dropped, a lane off by one, a grid that is a block short. One build serves all of them, and they do not depend on the
// kernels' source.
//
// A fault is "kind:place:site". The place is a kernel, "rmsnorm_forward/7" (the name of its launch, the number of its
// arguments); the site numbers the calls of that kind in the order in which a launch reaches them first. On the host
// ("memcpy:host:0") all calls of a kind are one site.
//   barrier, warp_barrier   is not waited for
//   shuffle                 takes the value of the lane four away from it
//   ldmatrix                swaps the middle matrices
//   copy                    the last cp.async of a group is missing
//   copy_wait, wgmma_wait   leaves one more group open
//   fence, wgmma_begin      is left out
//   grid_x, grid_y, grid_z  the last blocks do not run
//   grid_swap               blockIdx.x and blockIdx.y are exchanged
//   memcpy, memset          the last byte is missing
//   synchronize             does not wait for the stream
#pragma once
#include "emulator/emulator.h"

namespace emulator {

// Plants a fault; "" plants none. Throws std::invalid_argument where it is no fault.
void set_fault(const char* fault);
// Collects the faults that can be planted in what runs from now on; print_faults prints those since its last call, each
// in a line "fault <fault>".
void collect_faults();
void print_faults();

// Whether faults are planted or collected.
extern bool with_faults;
bool planted_here(const char* kind, const void* site);
// Whether the call at `site` (a return address) in the running kernel, or on the host, is the planted fault.
inline bool broken(const char* kind, const void* site = nullptr) { return with_faults && planted_here(kind, site); }
struct LaunchFaults {
  Dim3 short_of{0, 0, 0};  // blocks that do not run
  bool swapped = false;
};
LaunchFaults begin_launch(const Kernel& kernel, const Dim3& grid);

}  // namespace emulator
