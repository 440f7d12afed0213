// MPI, opened at run time: nothing links to it, and a process that is alone needs none.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/communicator.h"

namespace dultra {

// A library of MPI that can be used here.
struct MpiLibrary {
  std::string file;     // as it was opened; empty: there is none
  std::string version;  // as it calls itself: "Open MPI v4.1.4"
  std::string abi;      // "openmpi", "mpich" or "standard": what its handles are
  std::string reason;   // why there is none
};

// Opens the first of `files` that is Open MPI 4 or newer, MPICH 4 or newer, or has the standard ABI of MPI 5. It is
// kept open: later calls answer with it.
MpiLibrary open_mpi(const std::vector<std::string>& files);

// Starts MPI in this process, which is done once, on the library that open_mpi has found; later calls do nothing.
// Throws DEVICE_UNAVAILABLE.
void start_mpi();

// All processes of the job, or the part of them that this one is in, once MPI has started and until it is finalised;
// else this process alone.
std::shared_ptr<Communicator> world();

// Parts the processes of the job by color: from here on world() is those of this process's color, in the order of their
// ranks. Every process of the job calls it. Throws DEVICE_UNAVAILABLE.
void split_world(int color);

// world() is all processes again, for this process.
void join_world();

// What poll_messages has found.
struct Polled {
  int from = -1;  // rank among all processes of the job; -1: no message is there
  std::vector<uint8_t> bytes;
  int64_t unsent = 0;  // posted messages that are still on their way
};

// A message to one process of the job, whatever part it is in: `to` is its rank among all. Returns at once; it is
// poll_messages that sends. Messages of one process to another arrive in their order.
void post_message(int to, std::vector<uint8_t> bytes);

// Moves messages on, and returns the next that has arrived. Waits for nothing: while another thread exchanges with
// other ranks, it does nothing.
Polled poll_messages();

// Ends MPI, where it has started: waits for all ranks. Throws DEVICE_UNAVAILABLE, with MPI as it was, where others
// still do something else.
void finalize_mpi();

// Ends all processes of the job, this one included, where MPI has started and is not finalised.
void abort_mpi(int exit_code);

}  // namespace dultra
