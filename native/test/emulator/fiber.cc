// Blocks of fibers: their stacks, the switches between them, and the order in which they run.
#include "emulator/fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "emulator/faults.h"

// Saves the caller's registers on its stack and its stack pointer in *from; continues on the stack `to` where it was
// left.
extern "C" void dultra_emulator_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl dultra_emulator_switch
.type dultra_emulator_switch, @function
dultra_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dultra_emulator_switch, .-dultra_emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl dultra_emulator_switch
.type dultra_emulator_switch, %function
dultra_emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size dultra_emulator_switch, .-dultra_emulator_switch
)");
#else
#error "the emulator switches fibers in assembly: x86-64 and aarch64 so far"
#endif

namespace emulator {

__thread Lane* lane = nullptr;
__thread Block* block = nullptr;

namespace {

constexpr size_t kStackBytes = 64 << 10;

Schedule current_schedule = Schedule::kForward;
thread_local std::vector<std::unique_ptr<Fiber>> fiber_pool;

// The lane whose turn is next in the scheduler's round, null where the round is over.
Fiber* next_lane(Block& b) {
  const uint32_t ready = b.warps[b.warp].ready;
  while (b.turns < kWarp) {
    const unsigned turn = b.turns++;
    const unsigned i = current_schedule == Schedule::kReverse ? kWarp - 1 - turn : (turn + b.first) % kWarp;
    if (ready >> i & 1) return b.fibers[b.warp * kWarp + i];
  }
  return nullptr;
}

// Goes on with a lane, or with the scheduler (null). `fake_stack` of the stack that is left: null where nothing comes
// back to it.
void switch_to(Fiber* f, void** stack_pointer, void** fake_stack) {
  lane = f;
#if defined(DULTRA_EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(fake_stack, f ? f->stack : block->scheduler_stack,
                                 f ? kStackBytes : block->scheduler_stack_bytes);
#else
  (void)fake_stack;
#endif
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_switch_to_fiber(f ? f->identity : block->scheduler_thread, __tsan_switch_to_fiber_no_sync);
#endif
  dultra_emulator_switch(stack_pointer, f ? f->stack_pointer : block->scheduler);
}

void fiber_entry() {
#if defined(DULTRA_EMULATOR_ASAN)
  const void* left_stack = nullptr;
  size_t left_bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &left_stack, &left_bytes);
  if (!block->scheduler_stack) {  // the scheduler begins with the first lane of a launch, and that with the others
    block->scheduler_stack = left_stack;
    block->scheduler_stack_bytes = left_bytes;
  }
#endif
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_acquire(&block->begun);
#endif
  block->body(block->context);
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_release(&block->ended);
#endif
  Fiber& f = self();
  --block->left;
  block->warps[f.index / kWarp].ready &= ~(1u << f.index % kWarp);
  switch_to(next_lane(*block), &f.stack_pointer, nullptr);
  die("a finished lane went on");
}

void prepare(Fiber& f) {
  if (!f.stack) {
    f.stack = static_cast<unsigned char*>(
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (f.stack == MAP_FAILED) die("no memory for a lane's stack");
#if defined(DULTRA_EMULATOR_TSAN)
    f.identity = __tsan_create_fiber(0);
#endif
  }
  f.copies.clear();
  f.unfenced = true;  // what a lane stores itself is not seen, so it must fence once
  f.registers_ready = false;
  f.products.clear();
  // Staggered, or all lanes' frames would share a few sets of the cache.
  unsigned char* top = f.stack + kStackBytes - size_t(f.index % 61) * 192 - 64;
  top -= reinterpret_cast<uintptr_t>(top) % 16;
#if defined(__x86_64__)
  void** frame =
      reinterpret_cast<void**>(top) - 8;  // six registers, the return address, and what a call would have pushed
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(&fiber_entry);
#else
  void** frame = reinterpret_cast<void**>(top) - 20;
  for (int i = 0; i < 20; ++i) frame[i] = nullptr;
  frame[11] = reinterpret_cast<void*>(&fiber_entry);  // x30
#endif
  f.stack_pointer = frame;
}

// A float read before it is written is NaN. Not by memset, which ThreadSanitizer intercepts.
void undefine(unsigned char* memory, size_t bytes) {
  size_t i = 0;
  for (; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t))
    *reinterpret_cast<volatile uint64_t*>(memory + i) = ~uint64_t(0);
  for (; i < bytes; ++i) *const_cast<volatile unsigned char*>(memory + i) = 0xff;
}

uint64_t random_state = 88172645463325252ull;
unsigned random_below(unsigned n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return unsigned(random_state >> 33) % n;
}

void run_block(Block& b) {
  const size_t warps = b.warps.size();
  block = &b;
  b.left = b.fibers.size();
  while (b.left > 0) {
    bool progressed = false;
    const size_t rotation = current_schedule == Schedule::kShuffled ? random_below(unsigned(warps)) : 0;
    for (size_t w = 0; w < warps; ++w) {
      b.warp = current_schedule == Schedule::kReverse ? warps - 1 - w : (w + rotation) % warps;
      // A warp runs until each of its lanes is done or waits for the block. A lane that parks goes on with the next of
      // the round itself.
      for (bool again = true; again;) {
        b.first = current_schedule == Schedule::kShuffled ? random_below(kWarp) : 0;
        b.turns = 0;
        Fiber* const f = next_lane(b);
        again = f != nullptr;
        if (!f) break;
        progressed = true;
        switch_to(f, &b.scheduler, &b.scheduler_fake_stack);
#if defined(DULTRA_EMULATOR_ASAN)
        __sanitizer_finish_switch_fiber(b.scheduler_fake_stack, nullptr, nullptr);
#endif
      }
    }
    if (!progressed) {
      const char* name = b.all.arrived ? b.all.name : "a warp's collective";
      for (const Meeting& warp : b.warps)
        if (warp.arrived) name = warp.name;
      die("deadlock: some lanes never came", name);
    }
  }
  block = nullptr;
}

}  // namespace

void set_schedule(Schedule schedule) { current_schedule = schedule; }
Schedule schedule() { return current_schedule; }

void park() {
  Fiber& f = self();
  block->warps[f.index / kWarp].ready &= ~(1u << f.index % kWarp);
  switch_to(next_lane(*block), &f.stack_pointer, &f.fake_stack);
#if defined(DULTRA_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
#endif
}

void die(const char* what, const char* detail) {
  std::fprintf(stderr, "emulator: %s (%s)", what, detail);
  if (lane)
    std::fprintf(stderr, " in block (%u, %u, %u), thread %u", lane->block.x, lane->block.y, lane->block.z,
                 lane->thread.x);
  std::fprintf(stderr, "\n");
  std::fflush(stderr);
  std::abort();
}

void run(const Kernel& kernel, const Dim3& grid, const Dim3& block_size, size_t shared_bytes, void (*body)(const void*),
         const void* context) {
  const size_t threads = size_t(block_size.x) * block_size.y * block_size.z, blocks = size_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || threads % kWarp || block_size.y != 1 || block_size.z != 1)
    die("bad block size");
  if (blocks == 0 || grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u) die("bad grid size");
  if (shared_bytes > 99 * 1024) die("more shared memory than an sm_86 or sm_120 block has");
  if (lane) die("a kernel launched another");
  const LaunchFaults faults = begin_launch(kernel, grid);
  while (fiber_pool.size() < threads) fiber_pool.push_back(std::make_unique<Fiber>());
  Block b;
  b.body = body;
  b.context = context;
  b.fibers.resize(threads);
  b.warps.resize(threads / kWarp);
  b.warpgroups.resize(threads / kWarpgroup);
#if defined(DULTRA_EMULATOR_TSAN)
  b.scheduler_thread = __tsan_get_current_fiber();
  // Blocks are not ordered among each other, so each needs shared memory of its own.
  const size_t copies = blocks * (shared_bytes + 128) < (size_t(256) << 20) ? blocks : 1;
  // Meetings of their own, too: sixty-four neighbours have them.
  const size_t meetings = 1 + b.warps.size();
  std::vector<uint64_t> orders((blocks < 64 ? blocks : 64) * meetings * 2);
#else
  const size_t copies = 1;
#endif
  // Exactly of the requested size, so that AddressSanitizer sees accesses beyond it.
  std::vector<unsigned char*> shared(copies);
  for (unsigned char*& memory : shared)
    if (posix_memalign(reinterpret_cast<void**>(&memory), 1024, shared_bytes ? shared_bytes : 1) != 0) die("no memory");
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_release(&b.begun);  // everything before the launch, the memory above included
#endif
  size_t number = 0;
  for (unsigned z = 0; z < grid.z - faults.short_of.z; ++z)
    for (unsigned y = 0; y < grid.y - faults.short_of.y; ++y)
      for (unsigned x = 0; x < grid.x - faults.short_of.x; ++x, ++number) {
        const Dim3 index = faults.swapped ? Dim3(y, x, z) : Dim3(x, y, z);
        unsigned char* memory = shared[number % copies];
        undefine(memory, shared_bytes);
        b.all = Meeting{};
        b.all.warps = b.warps.size();
        for (size_t w = 0; w < b.warps.size(); ++w) {
          static_cast<Meeting&>(b.warps[w]) = Meeting{};
          b.warps[w].first_warp = w;
          b.warps[w].warps = 1;
          b.warps[w].ready = ~0u;
        }
        for (size_t g = 0; g < b.warpgroups.size(); ++g) {
          b.warpgroups[g] = Meeting{};
          b.warpgroups[g].first_warp = g * (kWarpgroup / kWarp);
          b.warpgroups[g].warps = kWarpgroup / kWarp;
        }
#if defined(DULTRA_EMULATOR_TSAN)
        b.all.order = &orders[number % 64 * meetings * 2];
        for (size_t w = 0; w < b.warps.size(); ++w) b.warps[w].order = b.all.order + 2 * (1 + w);
#endif
        b.unfenced = false;
        for (size_t i = 0; i < threads; ++i) {
          // Lanes of different blocks are different threads to ThreadSanitizer.
          Fiber& f = *fiber_pool[(i + number * 37) % threads];
          b.fibers[i] = &f;
          f.index = i;
          static_cast<Lane&>(f) = Lane{Dim3(unsigned(i), 0, 0), index, block_size, grid, memory};
          prepare(f);
        }
        run_block(b);
      }
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_acquire(&b.ended);
#endif
  for (unsigned char* memory : shared) free(memory);
}

}  // namespace emulator
