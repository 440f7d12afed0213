#include "emulator/faults.h"

#include <cstdio>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

namespace emulator {

namespace {

bool collecting = false;
struct Fault {
  std::string kind, place;
  int number = -1;
} planted;
std::set<std::string> passed;  // since the last print_faults
std::mutex passed_mutex;       // calls on the host come from several threads

// The sites of the launch that runs (there is one at a time), numbered by kind in the order of their first call. Lanes
// come here without a lock, and without a call that ThreadSanitizer intercepts: it would take that for an order of the
// lanes, or for a race of theirs.
struct Site {
  const char* kind;
  const void* address;
  bool is_planted;
};
Site sites[256];
size_t site_count = 0;
std::string kernel;
bool in_kernel = false;  // the planted fault is one of this kernel

bool same(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

void collect(const char* kind, const std::string& place, int number) {
  const std::lock_guard<std::mutex> lock(passed_mutex);
  passed.insert(std::string(kind) + ':' + place + ':' + std::to_string(number));
}

}  // namespace

bool with_faults = false;

void set_fault(const char* fault) {
  const std::string text = fault;
  with_faults = !text.empty();
  if (!with_faults) return;
  const size_t first = text.find(':'), last = text.rfind(':');
  if (first == last) throw std::invalid_argument("a fault is kind:place:site, got " + text);
  planted = {text.substr(0, first), text.substr(first + 1, last - first - 1), std::stoi(text.substr(last + 1))};
}

void collect_faults() { with_faults = collecting = true; }

void print_faults() {
  const std::lock_guard<std::mutex> lock(passed_mutex);
  for (const std::string& fault : passed) std::printf("fault %s\n", fault.c_str());
  passed.clear();
}

bool planted_here(const char* kind, const void* site) {
  if (!lane) {
    if (collecting) collect(kind, "host", 0);
    return planted.place == "host" && planted.kind == kind;
  }
  int number = 0;
  for (size_t i = 0; i < site_count; ++i) {
    if (sites[i].kind != kind) continue;
    if (sites[i].address == site) return sites[i].is_planted;
    ++number;
  }
  if (site_count == sizeof sites / sizeof *sites) die("more sites of faults than a launch may have", kind);
  const bool is_planted = in_kernel && number == planted.number && same(kind, planted.kind.c_str());
  sites[site_count++] = {kind, site, is_planted};
  if (collecting) collect(kind, kernel, number);
  return is_planted;
}

LaunchFaults begin_launch(const Kernel& launched, const Dim3& grid) {
  LaunchFaults faults;
  if (!with_faults) return faults;
  site_count = 0;
  kernel = std::string(launched.name) + '/' + std::to_string(launched.arguments);
  in_kernel = kernel == planted.place;
  const auto broken_grid = [](const char* kind) {
    if (collecting) collect(kind, kernel, 0);
    return in_kernel && planted.kind == kind;
  };
  if (grid.x > 1) faults.short_of.x = broken_grid("grid_x");
  if (grid.y > 1) faults.short_of.y = broken_grid("grid_y");
  if (grid.z > 1) faults.short_of.z = broken_grid("grid_z");
  if (grid.x > 1 && grid.y > 1) faults.swapped = broken_grid("grid_swap");
  return faults;
}

}  // namespace emulator
