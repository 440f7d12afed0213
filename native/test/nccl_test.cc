// NCCL with one rank: on a GPU the library that is installed, on the emulator what stands in for it. Several ranks:
// test/nccl.test.ts and test/device/ranks.cjs.
#include <cstdio>
#include <cstdlib>

#include "distributed/nccl.h"
#include "harness.h"
#include "model/memory.h"

namespace dultra {
namespace test {

DULTRA_TEST(nccl_with_one_rank, small) {
#ifdef DULTRA_STAND_IN_NCCL
  setenv("DULTRA_NCCL", DULTRA_STAND_IN_NCCL, 1);
#endif
  const auto backend_owner = make_backend(1, isas().back());
  Backend& backend = *backend_owner;
  const auto alone = make_single_communicator();
  const DeviceRanks found = connect_devices(backend, alone);
  if (!backend.device_queue()) {
    CHECK(!found.ranks && found.reason.empty(), "on a CPU: ", found.reason);
    return;
  }
  if (!found.ranks) {
    // Said aloud: on a machine with a GPU this is what the test is for.
    std::printf("skipped: NCCL was not tried, %s\n", found.reason.c_str());
#ifdef DULTRA_STAND_IN_NCCL
    CHECK(false, "the stand-in: ", found.reason);
#endif
    return;
  }
  CHECK(!found.version.empty() && found.reason.empty(), found.version, " ", found.reason);
  CHECK(found.ranks->rank() == 0 && found.ranks->size() == 1, "rank");
  // The sum over one rank is what it has: of numbers that another type or length would change.
  const size_t n = (size_t(1) << 18) + 3;
  Random random(1);
  const std::vector<float> x = normals(random, n);
  std::vector<int64_t> units(n);
  for (int64_t& unit : units) unit = int64_t(random.bits()) >> 1;
  Buffer floats(backend, n * 4), integers(backend, n * 8);
  backend.upload(floats.as(), x.data(), n * 4);
  backend.upload(integers.as<void>(), units.data(), n * 8);
  found.ranks->all_reduce_sum(floats.as(), int64_t(n));
  found.ranks->all_reduce_sum(integers.as<int64_t>(), int64_t(n));
  found.ranks->reduce_sum(floats.as() + 1, int64_t(n) - 1, 0);
  found.ranks->reduce_sum(integers.as<int64_t>() + 1, int64_t(n) - 1, 0);
  found.ranks->broadcast(floats.as(), n * 4, 0);
  // Begun, and waited for later, in order; what operations write before is what is added up.
  Buffer copied(backend, n * 4);
  backend.copy(copied.as(), floats.as(), int64_t(n));
  const int64_t first = found.ranks->start_sum(copied.as(), int64_t(n), kEveryRank, nullptr),
                second = found.ranks->start_sum(integers.as<int64_t>(), int64_t(n), 0, nullptr);
  CHECK(first < second, "numbers ", first, " ", second);
  found.ranks->wait_sum(first);
  found.ranks->wait_sum(second);
  std::vector<float> copy(n);
  backend.download(copy.data(), copied.as(), n * 4);
  CHECK(same_bits(x.data(), copy.data(), n), "begun");
  found.ranks->all_reduce_sum(floats.as(), 0);
  std::vector<float> x_after(n);
  std::vector<int64_t> units_after(n);
  backend.download(x_after.data(), floats.as(), n * 4);
  backend.download(units_after.data(), integers.as<void>(), n * 8);
  CHECK(same_bits(x.data(), x_after.data(), n) && units == units_after, "NCCL ", found.version, ": other numbers");
  // A second trainer has the same connection, until all end.
  CHECK(connect_devices(backend, alone).ranks != nullptr, "again");
  disconnect_devices();
  std::string message;
  try {
    found.ranks->all_reduce_sum(floats.as(), int64_t(n));
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK(message.find("ncclAllReduce") != std::string::npos && message.find("has ended") != std::string::npos, message);
}

}  // namespace test
}  // namespace dultra
