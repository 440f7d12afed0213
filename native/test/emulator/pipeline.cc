// What a lane starts and waits for later: asynchronous copies, and the products of warpgroups.
#include <utility>

#include "emulator/faults.h"
#include "emulator/fiber.h"

namespace emulator {

static bool with_warpgroups = true;
void set_warpgroups(bool on) { with_warpgroups = on; }
bool warpgroups() { return with_warpgroups; }

void async_issue(const AsyncCopy& copy) { self().open_group.push_back(copy); }

void async_commit() {
  // The bound of a copy is off by one.
  if (!self().open_group.empty() && broken("copy", __builtin_return_address(0))) self().open_group.pop_back();
  self().groups.push_back(std::move(self().open_group));
  self().open_group.clear();
}

bool async_retire(int pending, AsyncCopy* copy) {
  Fiber& f = self();
  pending += broken("copy_wait", __builtin_return_address(0));
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

void fence_shared() {
  if (!broken("fence", __builtin_return_address(0))) self().unfenced = false;
}

void wgmma_begin() {
  if (!broken("wgmma_begin", __builtin_return_address(0))) self().registers_ready = true;
}

bool wgmma_issue(const Wgmma& product) {
  Fiber& f = self();
  if (size_t(f.index) / kWarpgroup >= block->warpgroups.size()) die("there are no four warps", "wgmma");
  if (!f.registers_ready) die("registers were not fenced", "wgmma");
  if (f.unfenced || block->unfenced) die("copies to shared memory were not fenced before the barrier", "wgmma");
  if ((product.b >> 62) != 1 || (!product.in_registers && (product.a >> 62) != 1))
    die("a swizzle that is not modelled", "wgmma");
  // Both are allowed: computing now shows what is read too early, computing late what is overwritten or used too early.
  if (schedule() == Schedule::kForward) return true;
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
  pending += broken("wgmma_wait", __builtin_return_address(0));
  while (int(f.product_groups.size()) > pending) {
    if (f.computed < f.product_groups.front().size()) {
      *product = f.product_groups.front()[f.computed++];
      return true;
    }
    f.product_groups.erase(f.product_groups.begin());
    f.computed = 0;
  }
  f.registers_ready = false;  // the lane uses them after the wait
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

}  // namespace emulator
