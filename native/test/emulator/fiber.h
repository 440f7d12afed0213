// The emulator's fibers: one for each CUDA thread of the block that runs, and where they meet. Compiled without
// sanitizer instrumentation, as everything here: the emulator's accesses to its own data neither order the kernels'
// accesses nor race with them.
#pragma once
#include <vector>

#include "emulator/emulator.h"

#if defined(DULTRA_EMULATOR_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(DULTRA_EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emulator {

constexpr int kWarp = 32, kWarpgroup = 128;

// A point where lanes wait for each other.
struct Meeting {
  int needed = 0, arrived = 0;
  uint64_t generation = 0;
  const char* name = "";
  // (2) What ThreadSanitizer synchronises on, for even generations and for odd ones: what a lane does on its way to the
  // next meeting is not ordered before what others do after this one.
  uint64_t* order = nullptr;
};

struct Fiber : Lane {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;
  bool done = false;
  int index = 0;  // in the block
  const Meeting* waits_at = nullptr;
  uint64_t waits_for = 0;  // the generation of it that ends
  std::vector<std::vector<AsyncCopy>> groups;
  std::vector<AsyncCopy> open_group;
  size_t retired = 0;    // copies of the oldest group that have landed
  bool unfenced = true;  // some landed, or none were fenced for wgmma yet
  std::vector<std::vector<Wgmma>> product_groups;
  std::vector<Wgmma> open_products;
  size_t computed = 0;  // products of the oldest group
  bool registers_ready = false;
  void* fake_stack = nullptr;
  void* identity = nullptr;  // as a thread, for ThreadSanitizer
};

constexpr int kWords = 8;  // of a lane's operand in a collective
struct Operand {
  uint64_t word[kWords];
};

struct Block {
  std::vector<Fiber*> fibers;
  std::vector<Meeting> warps, warpgroups;
  Meeting all;
  bool unfenced = false;         // a lane passed a barrier with copies that were not fenced for wgmma
  std::vector<Operand> in, out;  // by lane
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
  void* scheduler = nullptr;  // stack pointer
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* scheduler_fake_stack = nullptr;
  void* scheduler_thread = nullptr;
  char begun = 0, ended = 0;  // what ThreadSanitizer synchronises on
};

extern __thread Block* block;  // the one that runs
inline Fiber& self() { return *static_cast<Fiber*>(lane); }
Schedule schedule();
// Parks the lane; the scheduler goes on with another.
void to_scheduler();

// Parks the lane until all lanes of `meeting` have arrived; the last of them runs `combine` first.
template <class Combine>
void meet(Meeting& meeting, const char* name, bool orders_memory, const Combine& combine) {
  if (meeting.arrived && meeting.name != name) die("lanes meet in different collectives", name);
  meeting.name = name;
  (void)orders_memory;
#if defined(DULTRA_EMULATOR_TSAN)
  uint64_t* const order = meeting.order + meeting.generation % 2;
  if (orders_memory) __tsan_release(order);
#endif
  if (++meeting.arrived == meeting.needed) {
    combine();
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    Fiber& f = self();
    f.waits_at = &meeting;
    f.waits_for = meeting.generation;
    to_scheduler();
    f.waits_at = nullptr;
  }
#if defined(DULTRA_EMULATOR_TSAN)
  if (orders_memory) __tsan_acquire(order);
#endif
}

// Every lane of a warp gives a T and gets a U: combine(const T (&)[32], U (&)[32]), run by the last to arrive.
template <class U, class T, class Combine>
U collective(const char* name, const T& in, const Combine& combine) {
  static_assert(sizeof(T) <= sizeof(Operand) && sizeof(U) <= sizeof(Operand), "operand too large");
  const int index = self().index, first = index / kWarp * kWarp;
  *reinterpret_cast<T*>(&block->in[size_t(index)]) = in;
  meet(block->warps[size_t(index / kWarp)], name, false, [&] {
    T all[kWarp];
    U results[kWarp];
    for (int l = 0; l < kWarp; ++l) all[l] = *reinterpret_cast<T*>(&block->in[size_t(first + l)]);
    combine(all, results);
    for (int l = 0; l < kWarp; ++l) *reinterpret_cast<U*>(&block->out[size_t(first + l)]) = results[l];
  });
  return *reinterpret_cast<U*>(&block->out[size_t(index)]);
}

}  // namespace emulator
