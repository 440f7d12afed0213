#include "backends/open_backend.h"

#include <cstdlib>
#include <mutex>
#include <set>
#include <utility>

#include "backends/cpu/cpu_backend.h"
#include "backends/self_check.h"

#ifdef __linux__
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace dultra {

namespace {

struct CudaPlugin {
  PluginOpen open;
  PluginDevices devices;
};

#ifndef __linux__
const CudaPlugin* cuda_plugin(std::string* reason, bool* built) {
  *built = false;
  *reason = "this build does not contain the CUDA backend, which is for Linux";
  return nullptr;
}
#else
// $DULTRA_CUDA_PLUGIN, or libdultra_cuda.so beside what this code is part of.
std::string cuda_plugin_path() {
  if (const char* path = std::getenv("DULTRA_CUDA_PLUGIN"); path && *path) return path;
  Dl_info self{};
  std::string path =
      dladdr(reinterpret_cast<const void*>(&cuda_devices), &self) && self.dli_fname ? self.dli_fname : "";
  const size_t slash = path.rfind('/');
  return (slash == std::string::npos ? std::string("./") : path.substr(0, slash + 1)) + "libdultra_cuda.so";
}

// The plugin, opened once and then kept: backends live in its code. Null if there is none that can be opened, and why;
// `built` says whether there is one at all.
const CudaPlugin* cuda_plugin(std::string* reason, bool* built) {
  static std::mutex mutex;
  static CudaPlugin plugin{};
  static bool opened = false;
  const std::lock_guard<std::mutex> lock(mutex);
  *built = true;
  if (opened) return &plugin;
  const std::string path = cuda_plugin_path();
  if (access(path.c_str(), F_OK) != 0) {
    *built = false;
    *reason = "this build does not contain the CUDA backend (" + path +
              " is not there; \"npm run build:cuda\" in a clone makes it, "
              "\"npm explore dultra -- npm run build:cuda\" where dultra is installed)";
    return nullptr;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* error = dlerror();
    *reason = "the CUDA backend cannot be opened: " + std::string(error ? error : path);
    return nullptr;
  }
  const auto version = reinterpret_cast<PluginVersion>(dlsym(library, "dultra_cuda_version"));
  plugin.open = reinterpret_cast<PluginOpen>(dlsym(library, "dultra_cuda_open"));
  plugin.devices = reinterpret_cast<PluginDevices>(dlsym(library, "dultra_cuda_devices"));
  if (!version || !plugin.open || !plugin.devices || std::string(version()) != DULTRA_VERSION) {
    *reason = path + " belongs to " + (version ? "dultra " + std::string(version()) : "something else") +
              ", expected dultra " + DULTRA_VERSION;
    dlclose(library);
    return nullptr;
  }
  opened = true;
  return &plugin;
}
#endif

// "cuda" or "cuda:<index>"; -1 for anything else.
int cuda_index(const std::string& device) {
  if (device == "cuda") return 0;
  if (device.rfind("cuda:", 0) != 0 || device.size() < 6 || device.size() > 8) return -1;
  if (device.find_first_not_of("0123456789", 5) != std::string::npos) return -1;
  return std::stoi(device.substr(5));
}

// Checks a device when it is opened for the first time with an arithmetic.
void check_once(Backend& backend, int index) {
  static std::mutex mutex;
  static std::set<std::pair<int, Compute>> sound;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto opened = std::make_pair(index, backend.compute());
  if (sound.count(opened)) return;
  cpu::CpuBackend reference(1, "", Compute::kF32);
  check_device(backend, reference);
  sound.insert(opened);
}

}  // namespace

std::unique_ptr<Backend> open_backend(const std::string& device, int threads, const std::string& isa, Compute compute) {
  if (device == "cpu") return std::make_unique<cpu::CpuBackend>(threads, isa, compute);
  const int index = cuda_index(device);
  if (index < 0)
    throw Error(ErrorCode::kInvalidArgument,
                "device: expected \"cpu\", \"cuda\" or \"cuda:<index>\", got \"" + device + "\"");
  std::string reason;
  bool built;
  if (const CudaPlugin* plugin = cuda_plugin(&reason, &built)) {
    try {
      std::unique_ptr<Backend> backend(plugin->open(index, compute));
      check_once(*backend, index);
      return backend;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kDeviceUnavailable) throw;
      reason = error.what();
    }
  }
  throw Error(ErrorCode::kDeviceUnavailable,
              "device: \"" + device + "\" is not available: " + reason + "; use \"cpu\"");
}

std::vector<std::string> cpu_isas() { return cpu::available_isas(); }

CudaDevices cuda_devices() {
  CudaDevices found;
  const CudaPlugin* plugin = cuda_plugin(&found.reason, &found.built);
  if (!plugin) return found;
  try {
    plugin->devices(&found.devices);
  } catch (const Error& error) {
    found.reason = error.what();
  }
  return found;
}

}  // namespace dultra
