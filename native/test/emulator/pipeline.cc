// What a lane starts and waits for later: asynchronous copies, and the products of warpgroups.
#include "emulator/faults.h"
#include "emulator/fiber.h"

namespace emulator {

static bool with_warpgroups = true;
void set_warpgroups(bool on) { with_warpgroups = on; }
bool warpgroups() { return with_warpgroups; }

void async_issue(const AsyncCopy& copy) { self().copies.open.push_back(copy); }

void async_commit() {
  // The bound of a copy is off by one.
  std::vector<AsyncCopy>& open = self().copies.open;
  if (!open.empty() && broken("copy", __builtin_return_address(0))) open.pop_back();
  self().copies.commit();
}

bool async_retire(int pending, AsyncCopy* copy) {
  Fiber& f = self();
  pending += broken("copy_wait", __builtin_return_address(0));
  const bool retired = f.copies.retire(pending, copy);
  f.unfenced |= retired;
  return retired;
}

void fence_shared() {
  if (!broken("fence", __builtin_return_address(0))) self().unfenced = false;
}

void wgmma_begin() {
  if (!broken("wgmma_begin", __builtin_return_address(0))) self().registers_ready = true;
}

bool wgmma_issue(const Wgmma& product) {
  Fiber& f = self();
  if (f.index / kWarpgroup >= block->warpgroups.size()) die("there are no four warps", "wgmma");
  if (!f.registers_ready) die("registers were not fenced", "wgmma");
  if (f.unfenced || block->unfenced) die("copies to shared memory were not fenced before the barrier", "wgmma");
  if ((product.b >> 62) != 1 || (!product.in_registers && (product.a >> 62) != 1))
    die("a swizzle that is not modelled", "wgmma");
  // Both are allowed: computing now shows what is read too early, computing late what is overwritten or used too early.
  if (schedule() == Schedule::kForward) return true;
  f.products.open.push_back(product);
  return false;
}

void wgmma_commit() {
  Fiber& f = self();
  if (f.index / kWarpgroup >= block->warpgroups.size()) die("there are no four warps", "wgmma");
  meet(block->warpgroups[f.index / kWarpgroup], "wgmma", false, [] {});
  f.products.commit();
}

bool wgmma_retire(int pending, Wgmma* product) {
  Fiber& f = self();
  if (!f.products.open.empty()) die("products were not committed", "wgmma");
  pending += broken("wgmma_wait", __builtin_return_address(0));
  if (f.products.retire(pending, product)) return true;
  f.registers_ready = false;  // the lane uses them after the wait
  return false;
}

void wgmma_gather(const uint32_t (&fragment)[4], uint16_t (&rows)[2][16]) {
  struct In {
    uint32_t word[4];
  };
  const In* in = exchange("wgmma", In{{fragment[0], fragment[1], fragment[2], fragment[3]}});
  const size_t group = self().index % kWarp / 4 * 4;
  for (size_t quad = 0; quad < 4; ++quad)
    for (size_t i = 0; i < 4; ++i)
      for (size_t k = 0; k < 2; ++k)
        rows[i & 1][2 * quad + k + 8 * (i >> 1)] = uint16_t(in[group + quad].word[i] >> 16 * k);
}

}  // namespace emulator
