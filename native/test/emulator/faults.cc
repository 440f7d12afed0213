#include "emulator/faults.h"

#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

namespace emulator {

namespace {

bool active = false, collecting = false;
std::string planted;
std::set<std::string> passed;  // since the last print_faults
std::mutex mutex;              // calls on the host come from several threads

// Numbers the sites of each kind in the order of their first call.
struct Sites {
  struct Site {
    const char* kind;
    const void* address;
    int number;
    bool is_planted;
  };
  std::vector<Site> all;
  std::string place;

  bool broken(const char* kind, const void* address) {
    int number = 0;
    for (const Site& site : all) {
      if (std::strcmp(site.kind, kind) != 0) continue;
      if (site.address == address) return site.is_planted;
      ++number;
    }
    const std::string fault = std::string(kind) + ':' + place + ':' + std::to_string(number);
    if (collecting) passed.insert(fault);
    all.push_back({kind, address, number, fault == planted});
    return fault == planted;
  }
};
Sites host{{}, "host"}, kernel_sites;

}  // namespace

void set_fault(const char* fault) {
  planted = fault;
  active = !planted.empty();
  if (active && planted.find(':') == planted.rfind(':'))
    throw std::invalid_argument("a fault is kind:place:site, got " + planted);
}

void collect_faults() { active = collecting = true; }

void print_faults() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const std::string& fault : passed) std::printf("fault %s\n", fault.c_str());
  passed.clear();
  host.all.clear();
}

bool broken(const char* kind, const void* site) {
  if (!active) return false;
  const std::lock_guard<std::mutex> lock(mutex);
  return (lane ? kernel_sites : host).broken(kind, site);
}

LaunchFaults begin_launch(const Kernel& kernel, const Dim3& grid) {
  LaunchFaults faults;
  if (!active) return faults;
  const std::lock_guard<std::mutex> lock(mutex);
  kernel_sites.all.clear();
  kernel_sites.place = std::string(kernel.name) + '/' + std::to_string(kernel.arguments);
  if (grid.x > 1) faults.short_of.x = kernel_sites.broken("grid_x", nullptr);
  if (grid.y > 1) faults.short_of.y = kernel_sites.broken("grid_y", nullptr);
  if (grid.z > 1) faults.short_of.z = kernel_sites.broken("grid_z", nullptr);
  if (grid.x > 1 && grid.y > 1) faults.swapped = kernel_sites.broken("grid_swap", nullptr);
  return faults;
}

}  // namespace emulator
