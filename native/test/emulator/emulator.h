// Runs CUDA kernels on the CPU, so that their logic is tested without a GPU. Every CUDA thread ("lane") of a block is a
// fiber (fiber.h); warp.cc has what lanes do together, pipeline.cc asynchronous copies and wgmma, runtime.cc the CUDA
// runtime, cublaslt.cc its library, faults.h what the mutant suite breaks.
//
// Modelled: grids and blocks, block and warp barriers, shuffles, ldmatrix, mma.sync, cp.async groups (a copy lands when
// wait_group retires it; until then its destination is undefined), wgmma (products of four warps on tiles with the
// swizzle of 128 bytes, done when they are issued or when they are waited for; registers and copies that are not fenced
// before), shared memory that begins undefined, streams that do nothing until they are waited for, graph capture and
// what it forbids, captures that fail, device memory that runs out, the last error of a thread and those that stay.
// Stricter than a GPU: all 32 lanes have to meet in a warp's
// collective, and a block that leaves lanes behind at a barrier is reported. Not modelled: memory order inside a warp,
// timing, occupancy, bank conflicts.
//
// Under ThreadSanitizer every lane is a thread of its own that only barriers order, and blocks are not ordered at all:
// it then reports the races of the kernels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace emulator {

struct Dim3 {
  unsigned x, y, z;
  Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Built-in variables of a kernel.
struct Lane {
  Dim3 thread, block, block_size, grid_size;
  unsigned char* shared;  // dynamic shared memory of the block
};
extern __thread Lane* lane;  // null outside of kernels

// The order in which warps and lanes run between barriers. No result may depend on it.
enum class Schedule { kForward, kReverse, kShuffled };
void set_schedule(Schedule schedule);

// Kernels. A kernel is named by its launch; kernels of one name differ in the number of their arguments.
struct Kernel {
  const char* name;
  int arguments;
};
void run(const Kernel& kernel, const Dim3& grid, const Dim3& block, size_t shared_bytes, void (*body)(const void*),
         const void* context);
void block_barrier();
void warp_barrier();
uint64_t shuffle_xor(uint64_t value, int mask);

// Eight rows of eight 16-bit numbers for each of four matrices: lane l gives row l % 8 of matrix l / 8 and gets its
// part of all four.
struct Row8 {
  uint16_t element[8];
};
void ldmatrix_x4(const Row8& row, bool transposed, uint32_t (&fragment)[4]);
// d (16, 8) += a (16, 16) b (16, 8), bf16 and fp32.
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// cp.async: 16 bytes each, or zeros.
struct AsyncCopy {
  void* to;
  const void* from;
  bool valid;
};
void async_issue(const AsyncCopy& copy);
void async_commit();
// The next copy that waiting until at most `pending` groups are open retires; false if there is none.
bool async_retire(int pending, AsyncCopy* copy);

// wgmma: a product of which a lane computes its part, when wgmma_retire gives it back, or at once where wgmma_issue
// says so: what it reads and writes is not defined in between. a, b: descriptors; or with `in_registers` the lane's two
// rows of a.
struct Wgmma {
  float* d;  // (n / 8, 4)
  int n;
  bool accumulate, in_registers;
  uint64_t a, b;
  uint16_t rows[2][16];
};
void wgmma_begin();
bool wgmma_issue(const Wgmma& product);
void wgmma_commit();
bool wgmma_retire(int pending, Wgmma* product);
// The lane's two rows out of the four registers that each lane of a warp has of 16 x 16 numbers.
void wgmma_gather(const uint32_t (&fragment)[4], uint16_t (&rows)[2][16]);
// Copies that have landed are visible to wgmma.
void fence_shared();

// Whether the device reports compute capability 9.0, which has wgmma, or 8.0. Open devices keep what they read.
void set_warpgroups(bool on);
bool warpgroups();

[[noreturn]] void die(const char* what, const char* detail = "");

// Streams: queued work runs when it is waited for, as late as a GPU may run it.
struct Graph {
  std::vector<std::function<void()>> work;
};
struct Stream {
  std::deque<std::function<void()>> queue;
  uint64_t queued = 0, done = 0;  // ever
  std::unique_ptr<Graph> capture;
  bool invalidated = false;  // the capture, by a call that it forbids
};
// Whether this thread captures a stream, which forbids the caller: the capture is then invalid.
bool prohibited();
void enqueue(Stream* stream, std::function<void()> work);
void synchronize(Stream* stream);
// Waiting for an event runs what was queued before it was recorded, even while the stream is captured.
struct Event {
  Stream* stream = nullptr;
  uint64_t number = 0;  // of the stream's work so far
  int time = 0;         // that every call advances: events order nothing that is not ordered anyway
};
void record(Event* event, Stream* stream);
void synchronize(const Event& event);
// What the stream is given from here on begins after the event, as it is now.
void wait(Stream* stream, const Event& event);
void synchronize_all();

// A cuBLASLt that computes as its documentation says, one product after the other; off until switched on. "" asks
// whether it is.
void set_cublaslt(bool on);
void* cublaslt_symbol(const char* name);

// Ranges of the thread, as profilers see them: how many were ever begun under names with `part` in them, and how many
// are open.
void range_push(const char* name);
void range_pop();
int64_t ranges_begun(const char* part);
int open_ranges();

// Device memory. `limit` bytes may be held at a time; for tests of what happens when it runs out.
void set_memory_limit(size_t limit);
size_t memory_in_use();
// The device breaks down: every call returns this error from now on, as after an error of a kernel; 0 repairs it.
void break_device(int error);
// How the next capture goes wrong; once.
enum class CaptureFailure { kNone, kInvalidated, kInstantiate, kLaunch };
void fail_next_capture(CaptureFailure failure);
// Executable graphs that exist.
size_t graphs_in_use();

}  // namespace emulator
