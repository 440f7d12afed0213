// The emulator's fibers: one for each CUDA thread of the block that runs, and where they meet. Compiled without
// sanitizer instrumentation, as everything here: the emulator's accesses to its own data neither order the kernels'
// accesses nor race with them.
#pragma once
#include <new>
#include <vector>

#include "emulator/emulator.h"

#if defined(DULTRA_EMULATOR_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(DULTRA_EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emulator {

constexpr size_t kWarp = 32, kWarpgroup = 128;

// A point where lanes wait for each other: all of some adjacent warps.
struct Meeting {
  size_t first_warp = 0, warps = 0;
  int arrived = 0;
  uint64_t generation = 0;
  const char* name = "";
  // (2) What ThreadSanitizer synchronises on, for even generations and for odd ones: what a lane does on its way to the
  // next meeting is not ordered before what others do after this one.
  uint64_t* order = nullptr;
};

// Work of a lane in the order in which it was issued, in groups that end in that order.
template <class Work>
class Groups {
 public:
  std::vector<Work> open;  // issued, of no group yet
  void commit() {
    closed_.insert(closed_.end(), open.begin(), open.end());
    sizes_.push_back(open.size());
    open.clear();
  }
  // The next work of the oldest group while more than `pending` groups are left; false if there is none.
  bool retire(int pending, Work* work) {
    while (int(sizes_.size()) > pending) {
      if (next_ < sizes_.front()) {
        *work = closed_[next_++];
        return true;
      }
      closed_.erase(closed_.begin(), closed_.begin() + std::ptrdiff_t(next_));
      sizes_.erase(sizes_.begin());
      next_ = 0;
    }
    return false;
  }
  void clear() {
    open.clear();
    closed_.clear();
    sizes_.clear();
    next_ = 0;
  }

 private:
  std::vector<Work> closed_;
  std::vector<size_t> sizes_;  // of the groups in closed_
  size_t next_ = 0;            // of the oldest group
};

struct Fiber : Lane {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;
  size_t index = 0;  // in the block
  Groups<AsyncCopy> copies;
  bool unfenced = true;  // some landed, or none were fenced for wgmma yet
  Groups<Wgmma> products;
  bool registers_ready = false;
  void* fake_stack = nullptr;
  void* identity = nullptr;  // as a thread, for ThreadSanitizer
};

constexpr size_t kOperand = 64;  // bytes of a lane's operand in a collective, at most
struct alignas(64) Operands {
  unsigned char bytes[kWarp * kOperand];
};

struct Warp : Meeting {
  uint32_t ready = ~0u;  // a bit for each lane that is not done and does not wait
  Operands in[2], out;   // in: for even generations and for odd ones
};

struct Block {
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  std::vector<Meeting> warpgroups;
  Meeting all;
  bool unfenced = false;  // a lane passed a barrier with copies that were not fenced for wgmma
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
  // Where the scheduler is: in this warp, of which `turns` lanes had their turn in this round, the first of them
  // `first`.
  size_t warp = 0;
  unsigned turns = 0, first = 0;
  size_t left = 0;            // lanes that are not done
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
// Parks the lane until it is ready; others go on.
void park();

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
  if (++meeting.arrived == int(meeting.warps * kWarp)) {
    combine();
    meeting.arrived = 0;
    ++meeting.generation;
    for (size_t w = 0; w < meeting.warps; ++w) block->warps[meeting.first_warp + w].ready = ~0u;
  } else {
    park();
  }
#if defined(DULTRA_EMULATOR_TSAN)
  if (orders_memory) __tsan_acquire(order);
#endif
}

// Every lane of a warp gives a T and sees those of all 32, until it comes to its next meeting. The last to arrive runs
// combine(const T* in, void* out), what it leaves in `out` (the warp's) stays as long.
template <class T, class Combine>
const T* exchange(const char* name, const T& mine, const Combine& combine) {
  static_assert(sizeof(T) <= kOperand, "operand too large");
  const size_t index = self().index;
  Warp& warp = block->warps[index / kWarp];
  // Another lane may be one meeting behind, and still read what was exchanged there.
  T* const all = reinterpret_cast<T*>(warp.in[warp.generation % 2].bytes);
  new (all + index % kWarp) T(mine);
  meet(warp, name, false, [&] { combine(all, warp.out.bytes); });
  return all;
}
template <class T>
const T* exchange(const char* name, const T& mine) {
  return exchange(name, mine, [](const T*, void*) {});
}

}  // namespace emulator
