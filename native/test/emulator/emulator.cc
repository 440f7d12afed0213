// The emulator's core. Built without sanitizer instrumentation: what it does to its own data orders nothing and races
// with nothing.
#include "emulator/emulator.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "cuda_runtime.h"

#if defined(DULTRA_EMULATOR_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(DULTRA_EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

// Saves the caller's registers on its stack and its stack pointer in *from, and goes on where the stack `to` was left.
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

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kWarp = 32, kWarpgroup = 128;
constexpr int kWords = 8;  // of a lane's operand in a collective

Schedule current_schedule = Schedule::kForward;
bool with_warpgroups = true;

// Where lanes wait for each other.
struct Meeting {
  int needed = 0, arrived = 0;
  uint64_t generation = 0;
  const char* name = "";
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
  size_t retired = 0;     // copies of the oldest group that have landed
  bool unfenced = false;  // some have that wgmma may not see
  std::vector<std::vector<Wgmma>> product_groups;
  std::vector<Wgmma> open_products;
  size_t computed = 0;  // products of the oldest group
  bool registers_ready = false;
  void* fake_stack = nullptr;
  void* identity = nullptr;  // the thread that ThreadSanitizer takes it for
};

struct Operand {
  uint64_t word[kWords];
};

struct Block {
  std::vector<Fiber*> fibers;
  std::vector<Meeting> warps, warpgroups;
  Meeting all;
  bool unfenced = false;         // a lane that is through a barrier had copies that wgmma may not see
  std::vector<Operand> in, out;  // by lane
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
  void* scheduler = nullptr;  // stack pointer
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* scheduler_fake_stack = nullptr;
  void* scheduler_thread = nullptr;
  char begun = 0, ended = 0;  // what ThreadSanitizer orders by
};

__thread Block* block = nullptr;
thread_local std::vector<std::unique_ptr<Fiber>> fiber_pool;

Fiber& self() { return *static_cast<Fiber*>(lane); }

void to_scheduler() {
  Fiber& f = self();
#if defined(DULTRA_EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(f.done ? nullptr : &f.fake_stack, block->scheduler_stack,
                                 block->scheduler_stack_bytes);
#endif
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_switch_to_fiber(block->scheduler_thread, __tsan_switch_to_fiber_no_sync);
#endif
  dultra_emulator_switch(&f.stack_pointer, block->scheduler);
#if defined(DULTRA_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(f.fake_stack, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
}

void fiber_entry() {
#if defined(DULTRA_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_acquire(&block->begun);
#endif
  block->body(block->context);
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_release(&block->ended);
#endif
  self().done = true;
  to_scheduler();
  die("a finished lane went on");
}

void run_lane(Fiber& f) {
  lane = &f;
#if defined(DULTRA_EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(&block->scheduler_fake_stack, f.stack, kStackBytes);
#endif
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_switch_to_fiber(f.identity, __tsan_switch_to_fiber_no_sync);
#endif
  dultra_emulator_switch(&block->scheduler, f.stack_pointer);
#if defined(DULTRA_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(block->scheduler_fake_stack, nullptr, nullptr);
#endif
  lane = nullptr;
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
  f.done = false;
  f.waits_at = nullptr;
  f.groups.clear();
  f.open_group.clear();
  f.retired = 0;
  f.unfenced = f.registers_ready = false;
  f.product_groups.clear();
  f.open_products.clear();
  f.computed = 0;
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

// Parks the lane until all lanes of `meeting` are here; the last one to come runs `combine` first.
template <class Combine>
void meet(Meeting& meeting, const char* name, bool orders_memory, const Combine& combine) {
  if (meeting.arrived && meeting.name != name) die("lanes meet in different collectives", name);
  meeting.name = name;
  (void)orders_memory;
#if defined(DULTRA_EMULATOR_TSAN)
  if (orders_memory) __tsan_release(&meeting);
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
  if (orders_memory) __tsan_acquire(&meeting);
#endif
}

// Every lane of a warp gives a T and gets a U: combine(const T (&)[32], U (&)[32]) by the last one to come.
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

float from_bf16(uint32_t bits) {
  bits <<= 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

uint64_t random_state = 88172645463325252ull;
unsigned random_below(unsigned n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return unsigned(random_state >> 33) % n;
}

void run_block(Block& b) {
  const int warps = int(b.fibers.size()) / kWarp;
  block = &b;
  size_t left = b.fibers.size();
  while (left > 0) {
    bool progressed = false;
    const int rotation = current_schedule == Schedule::kShuffled ? int(random_below(unsigned(warps))) : 0;
    for (int w = 0; w < warps; ++w) {
      const int warp = current_schedule == Schedule::kReverse ? warps - 1 - w : (w + rotation) % warps;
      // A warp runs until every lane of it is done or waits for the block.
      for (bool again = true; again;) {
        again = false;
        const int turn = current_schedule == Schedule::kShuffled ? int(random_below(kWarp)) : 0;
        for (int l = 0; l < kWarp; ++l) {
          const int i = current_schedule == Schedule::kReverse ? kWarp - 1 - l : (l + turn) % kWarp;
          Fiber& f = *b.fibers[size_t(warp * kWarp + i)];
          if (f.done || (f.waits_at && f.waits_at->generation == f.waits_for)) continue;
          run_lane(f);
          again = progressed = true;
          left -= f.done;
        }
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
void set_warpgroups(bool on) { with_warpgroups = on; }
bool warpgroups() { return with_warpgroups; }

void die(const char* what, const char* detail) {
  std::fprintf(stderr, "emulator: %s (%s)", what, detail);
  if (lane)
    std::fprintf(stderr, " in block (%u, %u, %u), thread %u", lane->block.x, lane->block.y, lane->block.z,
                 lane->thread.x);
  std::fprintf(stderr, "\n");
  std::fflush(stderr);
  std::abort();
}

void run(const Dim3& grid, const Dim3& block_size, size_t shared_bytes, void (*body)(const void*),
         const void* context) {
  const size_t threads = size_t(block_size.x) * block_size.y * block_size.z, blocks = size_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || threads % kWarp || block_size.y != 1 || block_size.z != 1)
    die("bad block size");
  if (blocks == 0 || grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u) die("bad grid size");
  if (shared_bytes > 99 * 1024) die("more shared memory than an sm_86 or sm_120 block has");
  if (lane) die("a kernel launched another");
  while (fiber_pool.size() < threads) fiber_pool.push_back(std::make_unique<Fiber>());
  Block b;
  b.body = body;
  b.context = context;
  b.fibers.resize(threads);
  b.warps.resize(threads / kWarp);
  b.warpgroups.resize(threads / kWarpgroup);
  b.in.resize(threads);
  b.out.resize(threads);
#if defined(DULTRA_EMULATOR_TSAN)
  b.scheduler_thread = __tsan_get_current_fiber();
  // Blocks are not ordered among each other, so each needs shared memory of its own.
  const size_t copies = blocks * (shared_bytes + 128) < (size_t(256) << 20) ? blocks : 1;
#else
  const size_t copies = 1;
#endif
  // Exactly as large as asked for, so that AddressSanitizer sees what is outside.
  std::vector<unsigned char*> shared(copies);
  for (unsigned char*& memory : shared)
    if (posix_memalign(reinterpret_cast<void**>(&memory), 1024, shared_bytes ? shared_bytes : 1) != 0) die("no memory");
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_release(&b.begun);  // everything before the launch, the memory above included
#endif
  size_t number = 0;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x, ++number) {
        unsigned char* memory = shared[number % copies];
        // Undefined: a float read before it is written is NaN.
        for (size_t i = 0; i < shared_bytes; ++i) const_cast<volatile unsigned char*>(memory)[i] = 0xff;
        b.all = Meeting{};
        b.all.needed = int(threads);
        for (Meeting& warp : b.warps) {
          warp = Meeting{};
          warp.needed = kWarp;
        }
        for (Meeting& group : b.warpgroups) {
          group = Meeting{};
          group.needed = kWarpgroup;
        }
        b.unfenced = false;
        for (size_t i = 0; i < threads; ++i) {
          // Lanes of different blocks are different threads to ThreadSanitizer.
          Fiber& f = *fiber_pool[(i + number * 37) % threads];
          b.fibers[i] = &f;
          f.index = int(i);
          static_cast<Lane&>(f) = Lane{Dim3(unsigned(i), 0, 0), Dim3(x, y, z), block_size, grid, memory};
          prepare(f);
        }
        run_block(b);
      }
#if defined(DULTRA_EMULATOR_TSAN)
  __tsan_acquire(&b.ended);
#endif
  for (unsigned char* memory : shared) free(memory);
}

void block_barrier() {
  block->unfenced |= self().unfenced;
  meet(block->all, "block barrier", true, [] {});
}

void warp_barrier() {
  meet(block->warps[size_t(self().index / kWarp)], "warp barrier", true, [] {});
}

uint64_t shuffle_xor(uint64_t value, int mask) {
  struct In {
    uint64_t value;
    int mask;
  };
  return collective<uint64_t>("shuffle", In{value, mask}, [](const In(&in)[kWarp], uint64_t(&out)[kWarp]) {
    for (int l = 0; l < kWarp; ++l) out[l] = in[(l ^ in[l].mask) % kWarp].value;
  });
}

void ldmatrix_x4(const Row8& row, bool transposed, uint32_t (&fragment)[4]) {
  struct Out {
    uint32_t r[4];
  };
  const auto combine = [transposed](const Row8(&in)[kWarp], Out(&out)[kWarp]) {
    for (int l = 0; l < kWarp; ++l)
      for (int m = 0; m < 4; ++m) {
        uint32_t half[2];
        for (int k = 0; k < 2; ++k)
          half[k] =
              transposed ? in[m * 8 + (l % 4) * 2 + k].element[l / 4] : in[m * 8 + l / 4].element[(l % 4) * 2 + k];
        out[l].r[m] = half[0] | half[1] << 16;
      }
  };
  const Out out = collective<Out>(transposed ? "ldmatrix.trans" : "ldmatrix", row, combine);
  for (int i = 0; i < 4; ++i) fragment[i] = out.r[i];
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct In {
    uint32_t a[4], b[2];
    float d[4];
  };
  struct Out {
    float d[4];
  };
  const In mine{{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  const Out out = collective<Out>("mma", mine, [](const In(&in)[kWarp], Out(&result)[kWarp]) {
    float rows[16][16], cols[8][16];
    for (int l = 0; l < kWarp; ++l) {
      const int group = l / 4, quad = l % 4;
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 2; ++k)
          rows[group + 8 * (i & 1)][2 * quad + k + 8 * (i >> 1)] =
              from_bf16(k ? in[l].a[i] >> 16 : in[l].a[i] & 0xffffu);
      for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 2; ++k)
          cols[group][2 * quad + k + 8 * i] = from_bf16(k ? in[l].b[i] >> 16 : in[l].b[i] & 0xffffu);
    }
    for (int l = 0; l < kWarp; ++l)
      for (int i = 0; i < 4; ++i) {
        const float* row = rows[l / 4 + 8 * (i >> 1)];
        const float* col = cols[(l % 4) * 2 + (i & 1)];
        float sum = in[l].d[i];
        for (int k = 0; k < 16; ++k) sum += row[k] * col[k];
        result[l].d[i] = sum;
      }
  });
  for (int i = 0; i < 4; ++i) d[i] = out.d[i];
}

void async_issue(const AsyncCopy& copy) { self().open_group.push_back(copy); }

void async_commit() {
  self().groups.push_back(std::move(self().open_group));
  self().open_group.clear();
}

bool async_retire(int pending, AsyncCopy* copy) {
  Fiber& f = self();
  while (int(f.groups.size()) > pending) {
    if (f.retired < f.groups.front().size()) {
      *copy = f.groups.front()[f.retired++];
      f.unfenced = true;
      return true;
    }
    f.groups.erase(f.groups.begin());
    f.retired = 0;
  }
  return false;
}

void fence_shared() { self().unfenced = false; }

void wgmma_begin() { self().registers_ready = true; }

bool wgmma_issue(const Wgmma& product) {
  Fiber& f = self();
  if (size_t(f.index) / kWarpgroup >= block->warpgroups.size()) die("there are no four warps", "wgmma");
  if (!f.registers_ready) die("registers were not fenced", "wgmma");
  if (f.unfenced || block->unfenced) die("copies to shared memory were not fenced before the barrier", "wgmma");
  if ((product.b >> 62) != 1 || (!product.in_registers && (product.a >> 62) != 1))
    die("a swizzle that is not modelled", "wgmma");
  // Both are right: the one shows what is read too early, the other what is overwritten, or used, too early.
  if (current_schedule == Schedule::kForward) return true;
  f.open_products.push_back(product);
  return false;
}

void wgmma_commit() {
  Fiber& f = self();
  if (size_t(f.index) / kWarpgroup >= block->warpgroups.size()) die("there are no four warps", "wgmma");
  meet(block->warpgroups[size_t(f.index / kWarpgroup)], "wgmma", false, [] {});
  f.product_groups.push_back(std::move(f.open_products));
  f.open_products.clear();
}

bool wgmma_retire(int pending, Wgmma* product) {
  Fiber& f = self();
  if (!f.open_products.empty()) die("products were not committed", "wgmma");
  while (int(f.product_groups.size()) > pending) {
    if (f.computed < f.product_groups.front().size()) {
      *product = f.product_groups.front()[f.computed++];
      return true;
    }
    f.product_groups.erase(f.product_groups.begin());
    f.computed = 0;
  }
  f.registers_ready = false;  // what waited goes on to use them
  return false;
}

void wgmma_gather(const uint32_t (&fragment)[4], uint16_t (&rows)[2][16]) {
  struct In {
    uint32_t word[4];
  };
  struct Out {
    uint16_t rows[2][16];
  };
  const In mine{{fragment[0], fragment[1], fragment[2], fragment[3]}};
  const Out out = collective<Out>("wgmma", mine, [](const In(&in)[kWarp], Out(&result)[kWarp]) {
    for (int l = 0; l < kWarp; ++l)
      for (int quad = 0; quad < 4; ++quad)
        for (int i = 0; i < 4; ++i)
          for (int k = 0; k < 2; ++k)
            result[l].rows[i & 1][2 * quad + k + 8 * (i >> 1)] = uint16_t(in[l / 4 * 4 + quad].word[i] >> 16 * k);
  });
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 16; ++k) rows[h][k] = out.rows[h][k];
}

// ---- streams and memory -------------------------------------------------------------------------

namespace {

std::mutex memory_mutex;
std::map<void*, size_t> allocations;
size_t in_use = 0, memory_limit = size_t(1) << 40;
std::recursive_mutex stream_mutex;  // one thread at a time queues work or does it
std::vector<Stream*> streams;
thread_local Stream* captured_here = nullptr;
size_t graphs = 0;

void run_until(Stream* stream, uint64_t number) {
  while (stream->done < number) {
    const std::function<void()> work = std::move(stream->queue.front());
    stream->queue.pop_front();
    ++stream->done;
    work();
  }
}

}  // namespace

void enqueue(Stream* stream, std::function<void()> work) {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  if (stream->capture && captured_here != stream) die("work was queued while another thread captured the stream");
  if (stream->capture) {
    stream->capture->work.push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
    ++stream->queued;
  }
}

bool prohibited() {
  if (captured_here) captured_here->invalidated = true;
  return captured_here != nullptr;
}

void synchronize(Stream* stream) {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  if (stream->capture) die("a stream was waited for while it was captured");
  run_until(stream, stream->queued);
}

void record(Event* event, Stream* stream) {
  static int now = 0;
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  *event = {stream, stream->queued, ++now};
}

void synchronize(const Event& event) {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  run_until(event.stream, event.number);
}

void synchronize_all() {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  for (Stream* stream : streams)
    if (!stream->capture) synchronize(stream);
}

void set_memory_limit(size_t limit) { memory_limit = limit; }
size_t memory_in_use() { return in_use; }
size_t graphs_in_use() {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  return graphs;
}

}  // namespace emulator

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  using namespace emulator;
  if (prohibited()) return cudaErrorStreamCaptureUnsupported;
  const std::lock_guard<std::mutex> lock(memory_mutex);
  if (in_use + bytes > memory_limit || posix_memalign(pointer, 256, bytes ? bytes : 1) != 0)
    return cudaErrorMemoryAllocation;
  std::memset(*pointer, 0xff, bytes);
  allocations[*pointer] = bytes;
  in_use += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  using namespace emulator;
  if (!pointer) return cudaSuccess;
  if (prohibited()) return cudaErrorStreamCaptureUnsupported;
  synchronize_all();  // as the device does
  const std::lock_guard<std::mutex> lock(memory_mutex);
  const auto found = allocations.find(pointer);
  if (found == allocations.end()) die("cudaFree of what cudaMalloc did not give");
  in_use -= found->second;
  allocations.erase(found);
  free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  if (emulator::prohibited()) return cudaErrorStreamCaptureUnsupported;
  return posix_memalign(pointer, 256, bytes ? bytes : 1) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* pointer) {
  if (!pointer) return cudaSuccess;
  if (emulator::prohibited()) return cudaErrorStreamCaptureUnsupported;
  emulator::synchronize_all();  // as the device does
  free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  emulator::enqueue(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  emulator::enqueue(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new emulator::Stream;
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  emulator::streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
    for (size_t i = 0; i < emulator::streams.size(); ++i)
      if (emulator::streams[i] == stream) emulator::streams.erase(emulator::streams.begin() + std::ptrdiff_t(i--));
  }
  emulator::synchronize(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  std::this_thread::yield();  // others may come first, if nothing keeps them from it
  {
    const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
    if (stream->capture) {
      stream->invalidated = true;
      return cudaErrorStreamCaptureUnsupported;
    }
  }
  emulator::synchronize(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  if (stream->capture || emulator::captured_here) return cudaErrorIllegalState;
  stream->capture = std::make_unique<emulator::Graph>();
  stream->invalidated = false;
  emulator::captured_here = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  *graph = nullptr;
  if (!stream->capture) return cudaErrorIllegalState;
  if (emulator::captured_here != stream) return cudaErrorStreamCaptureWrongThread;
  emulator::captured_here = nullptr;
  const std::unique_ptr<emulator::Graph> captured = std::move(stream->capture);
  if (stream->invalidated) return cudaErrorStreamCaptureInvalidated;
  *graph = new emulator::Graph(*captured);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  {
    // It takes device memory, though nobody is told how much.
    const std::lock_guard<std::mutex> lock(emulator::memory_mutex);
    if (emulator::in_use >= emulator::memory_limit) return cudaErrorMemoryAllocation;
  }
  *executable = new emulator::Graph(*graph);
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  ++emulator::graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : executable->work) emulator::enqueue(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  --emulator::graphs;
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
