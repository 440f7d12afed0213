#include "distributed/nccl.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <filesystem>
#endif

#include "ops/check.h"
#include "platform/platform.h"

namespace dultra {

namespace {

// The part of NCCL's interface (nccl.h, stable since 2.4) that is called here.
struct Api {
  using Comm = void*;
  struct UniqueId {
    char bytes[128];
  };
  enum Result { kSuccess = 0, kInProgress = 7 };
  enum Type { kInt8 = 0, kInt64 = 4, kFloat32 = 7 };
  enum Operation { kSum = 0 };

  int (*get_version)(int* version);
  int (*get_unique_id)(UniqueId* id);
  int (*comm_init_rank)(Comm* comm, int ranks, UniqueId id, int rank);
  int (*comm_destroy)(Comm comm);
  int (*comm_abort)(Comm comm);
  int (*comm_get_async_error)(Comm comm, int* error);
  const char* (*get_error_string)(int error);
  const char* (*get_last_error)(Comm comm);  // since 2.13, else null
  int (*all_reduce)(const void* from, void* to, size_t n, int type, int operation, Comm comm, void* stream);
  int (*reduce)(const void* from, void* to, size_t n, int type, int operation, int root, Comm comm, void* stream);
  int (*broadcast)(const void* from, void* to, size_t n, int type, int root, Comm comm, void* stream);
};

constexpr int kLeastVersion = 21000;  // 2.10.0
constexpr int kNextMajor = 30000;

// Since 2.9 a version is 10000 major + 100 minor + patch; before, 1000 major + 100 minor + patch.
std::string version_text(int version) {
  const int major = version < 10000 ? 1000 : 10000;
  return std::to_string(version / major) + "." + std::to_string(version % major / 100) + "." +
         std::to_string(version % 100);
}

class Connection;

struct State {
  std::mutex mutex;
  NcclLibrary library;
  Api api{};
  int version = 0;  // 0: not open
  std::map<std::pair<const Communicator*, std::string>, std::shared_ptr<Connection>> connections;
};

// Never destroyed: threads may still wait in a call when the process ends.
State& state() {
  static State* const held = new State;
  return *held;
}

#ifdef __linux__
std::vector<std::string> files(const std::string& chosen) {
  if (!chosen.empty()) return {chosen};
  const std::string name = "libnccl.so.2";
  std::vector<std::string> all{name, "/usr/local/cuda/lib64/" + name};
  std::vector<std::string> prefixes;
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* prefix = std::getenv(variable); prefix && *prefix) {
      prefixes.push_back(prefix);
      all.push_back(std::string(prefix) + "/lib/" + name);
    }
  for (const char* prefix : {"/usr/local", "/usr", "/opt/conda"}) prefixes.push_back(prefix);
  for (const std::string& prefix : prefixes) {
    std::error_code error;
    for (const auto& folder : std::filesystem::directory_iterator(prefix + "/lib", error))
      if (folder.path().filename().string().rfind("python3", 0) == 0)
        for (const char* packages : {"/site-packages", "/dist-packages"})
          all.push_back(folder.path().string() + packages + "/nvidia/nccl/lib/" + name);
  }
  return all;
}
#else
std::vector<std::string> files(const std::string& chosen) {
  return chosen.empty() ? std::vector<std::string>() : std::vector<std::string>{chosen};
}
#endif

// The functions of an open library; false, and what is wrong with it.
bool resolve(void* library, const std::string& file, Api* api, int* version, std::string* problem) {
  std::string missing;
  const auto find = [&](auto* function, const char* name) {
    void* symbol = platform::find_symbol(library, name);
    std::memcpy(function, &symbol, sizeof symbol);
    if (!symbol && missing.empty()) missing = name;
  };
  find(&api->get_last_error, "ncclGetLastError");
  missing.clear();
  find(&api->get_version, "ncclGetVersion");
  find(&api->get_unique_id, "ncclGetUniqueId");
  find(&api->comm_init_rank, "ncclCommInitRank");
  find(&api->comm_destroy, "ncclCommDestroy");
  find(&api->comm_abort, "ncclCommAbort");
  find(&api->comm_get_async_error, "ncclCommGetAsyncError");
  find(&api->get_error_string, "ncclGetErrorString");
  find(&api->all_reduce, "ncclAllReduce");
  find(&api->reduce, "ncclReduce");
  find(&api->broadcast, "ncclBroadcast");
  if (api->get_version && (api->get_version(version) != Api::kSuccess || *version <= 0))
    *problem = file + " does not tell its version";
  else if (api->get_version && (*version < kLeastVersion || *version >= kNextMajor))
    *problem = file + ": expected NCCL " + version_text(kLeastVersion) + " or a newer one of version 2, got " +
               version_text(*version);
  else if (!missing.empty())
    *problem = file + " has no " + missing;
  else
    return true;
  return false;
}

// One communicator of NCCL, shared by all trainers on a device.
class Connection {
 public:
  // Keeps `ranks`, by whose address it is found.
  Connection(const Api& api, std::shared_ptr<Communicator> ranks)
      : api_(api), host_(std::move(ranks)), rank_(host_->rank()), ranks_(host_->size()) {}

  int rank() const { return rank_; }
  int size() const { return ranks_; }
  bool is_open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return comm_ != nullptr;
  }

  // "": it has joined; else what has failed.
  std::string join(DeviceQueue& queue, const Api::UniqueId& id) {
    int code = 0;
    queue.add([&](void*) { code = api_.comm_init_rank(&comm_, ranks_, id, rank_); });
    return code == Api::kSuccess || code == Api::kInProgress ? "" : failure("ncclCommInitRank", code);
  }
  // Queues call(api, comm, stream); returns its number in the queue.
  template <typename Call>
  int64_t start(DeviceQueue& queue, const char* name, Call&& call) {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_open(name);
    int code = 0;
    const int64_t number = queue.add([&](void* stream) { code = call(api_, comm_, stream); });
    if (code != Api::kSuccess && code != Api::kInProgress) give_up(name, code);
    return number;
  }
  // Waits for what has this number, and looks for failures meanwhile: the device itself waits for ranks that may be
  // gone. `name`: of the call that is waited for.
  void wait(DeviceQueue& queue, const char* name, int64_t number) {
    for (int64_t looks = 0; !is_done(queue, name, number); ++looks)
      if (looks < kQuickLooks)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  // Ends the connection if calls up to this number are still under way, so that the memory they work on may go.
  void abandon(DeviceQueue& queue, int64_t number) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!comm_) return;
    try {
      int state = Api::kSuccess;
      if (api_.comm_get_async_error(comm_, &state) == Api::kSuccess && queue.is_done(number) && state == Api::kSuccess)
        return;
    } catch (const Error&) {
      // The device has failed: nothing works on it any more.
    }
    api_.comm_abort(comm_);
    comm_ = nullptr;
  }
  void end() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (comm_) api_.comm_destroy(comm_);
    comm_ = nullptr;
  }

 private:
  static constexpr int64_t kQuickLooks = 1000;

  void check_open(const char* name) const {
    if (!comm_) throw Error(ErrorCode::kDeviceUnavailable, std::string(name) + ": NCCL's connection has ended");
  }
  bool is_done(DeviceQueue& queue, const char* name, int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_open(name);
    int state = Api::kSuccess;
    const int answer = api_.comm_get_async_error(comm_, &state);
    if (answer != Api::kSuccess) give_up("ncclCommGetAsyncError", answer);
    if (state != Api::kSuccess && state != Api::kInProgress) give_up(name, state);
    return queue.is_done(number) && state == Api::kSuccess;
  }
  std::string failure(const char* call, int code) const {
    std::string text = "NCCL, " + std::string(call) + " on rank " + std::to_string(rank_) + ": " +
                       (api_.get_error_string(code) ? api_.get_error_string(code) : "error " + std::to_string(code));
    const char* more = api_.get_last_error ? api_.get_last_error(comm_) : nullptr;
    if (more && *more) text += std::string(": ") + more;
    while (text.back() == '\n') text.pop_back();
    return text;
  }
  [[noreturn]] void give_up(const char* call, int code) {
    const std::string text = failure(call, code);
    api_.comm_abort(comm_);
    comm_ = nullptr;
    throw Error(ErrorCode::kDeviceUnavailable, text);
  }

  const Api& api_;
  const std::shared_ptr<Communicator> host_;
  const int rank_, ranks_;
  std::mutex mutex_;
  Api::Comm comm_ = nullptr;
};

// A connection, with the backend whose memory its arrays lie in.
class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(DeviceQueue& queue, std::shared_ptr<Connection> connection, std::shared_ptr<Communicator> host)
      : queue_(queue), connection_(std::move(connection)), host_(std::move(host)) {}

  int rank() const override { return connection_->rank(); }
  int size() const override { return connection_->size(); }
  void all_reduce_sum(float* x, int64_t n) override { wait_sum(sum(x, n, Api::kFloat32, kEveryRank)); }
  void all_reduce_sum(int64_t* x, int64_t n) override { wait_sum(sum(x, n, Api::kInt64, kEveryRank)); }
  void reduce_sum(float* x, int64_t n, int root) override { wait_sum(sum(x, n, Api::kFloat32, root)); }
  void reduce_sum(int64_t* x, int64_t n, int root) override { wait_sum(sum(x, n, Api::kInt64, root)); }
  int64_t start_sum(float* x, int64_t n, int root, std::shared_ptr<void>) override {
    return sum(x, n, Api::kFloat32, root);
  }
  int64_t start_sum(int64_t* x, int64_t n, int root, std::shared_ptr<void>) override {
    return sum(x, n, Api::kInt64, root);
  }
  void wait_sum(int64_t number) override { connection_->wait(queue_, last_sum_, number); }
  void abandon_sums() override { connection_->abandon(queue_, last_); }
  void broadcast(void* x, size_t bytes, int root) override {
    if (bytes == 0) return;
    const char* const name = "ncclBroadcast";
    last_ = connection_->start(queue_, name, [&](const Api& api, Api::Comm comm, void* stream) {
      return api.broadcast(x, x, bytes, Api::kInt8, root, comm, stream);
    });
    connection_->wait(queue_, name, last_);
  }
  void agree(Shared what, int64_t n) override { host_->agree(what, n); }

 private:
  int64_t sum(void* x, int64_t n, Api::Type type, int root) {
    if (n == 0) return last_;
    last_sum_ = root == kEveryRank ? "ncclAllReduce" : "ncclReduce";
    return last_ = connection_->start(queue_, last_sum_, [&](const Api& api, Api::Comm comm, void* stream) {
      return root == kEveryRank ? api.all_reduce(x, x, size_t(n), type, Api::kSum, comm, stream)
                                : api.reduce(x, x, size_t(n), type, Api::kSum, root, comm, stream);
    });
  }

  DeviceQueue& queue_;
  const std::shared_ptr<Connection> connection_;
  const std::shared_ptr<Communicator> host_;
  const char* last_sum_ = "ncclAllReduce";  // the call
  int64_t last_ = 0;                        // number of the last call
};

// The text of rank `from`, on all ranks.
std::string text_of(Communicator& ranks, int from, std::string own) {
  int64_t length = ranks.rank() == from ? int64_t(own.size()) : 0;
  ranks.all_reduce_sum(&length, 1);
  own.resize(size_t(length));
  ranks.broadcast(own.data(), own.size(), from);
  return own;
}

// The first rank that has something to say, and what; -1: none.
int first_of(Communicator& ranks, const std::string& own, std::string* text) {
  std::vector<int64_t> speaks(size_t(ranks.size()), 0);
  speaks[size_t(ranks.rank())] = own.empty() ? 0 : 1;
  ranks.all_reduce_sum(speaks.data(), int64_t(speaks.size()));
  for (int rank = 0; rank < ranks.size(); ++rank)
    if (speaks[size_t(rank)]) {
      *text = text_of(ranks, rank, own);
      return rank;
    }
  return -1;
}

uint64_t hash_of(const std::string& text) {
  uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (char c : text) hash = (hash ^ uint8_t(c)) * 1099511628211ull;
  return hash;
}

// What ranks compare before they connect.
struct Facts {
  int64_t version = 0;  // of NCCL; 0: none
  int64_t device = 0;   // 0: arrays lie in the host's memory
  int64_t held = 0;     // whether this rank has the connection
};
constexpr size_t kFacts = sizeof(Facts) / sizeof(int64_t);

// Why not all ranks can connect, or "".
std::string obstacle(const std::vector<Facts>& all) {
  for (size_t a = 0; a < all.size(); ++a) {
    const std::string ranks = "rank 0 and rank " + std::to_string(a);
    if (all[a].version != all[0].version)
      return ranks + " have different versions of NCCL, " + version_text(int(all[0].version)) + " and " +
             version_text(int(all[a].version));
    for (size_t b = 0; b < a; ++b)
      if (all[a].device == all[b].device)
        return "rank " + std::to_string(b) + " and rank " + std::to_string(a) +
               " work on one GPU, which NCCL does not allow";
  }
  return "";
}

}  // namespace

NcclLibrary open_nccl() {
  State& held = state();
  const std::lock_guard<std::mutex> lock(held.mutex);
  if (held.version) return held.library;
  const char* variable = std::getenv("DULTRA_NCCL");
  const std::string chosen = variable ? variable : "";
  NcclLibrary library;
  if (chosen == "off") {
    library.reason = "switched off by DULTRA_NCCL";
    return library;
  }
  for (const std::string& file : files(chosen)) {
    std::string problem;
    void* handle = platform::open_library(file, &problem);
    if (handle && resolve(handle, file, &held.api, &held.version, &problem)) {
      library.file = file;
      library.version = version_text(held.version);
      library.reason.clear();
      return held.library = library;
    }
    held.version = 0;
    if (handle) platform::close_library(handle);
    // What is there and does not fit says more than what is not there.
    if (handle || library.reason.empty()) library.reason = problem;
  }
  if (library.reason.empty()) library.reason = "dultra knows the NCCL of Linux alone";
  return library;
}

DeviceRanks connect_devices(Backend& backend, const std::shared_ptr<Communicator>& ranks) {
  DeviceRanks out;
  State& held = state();
  DeviceQueue* const queue = backend.device_queue();
  const NcclLibrary library = queue ? open_nccl() : NcclLibrary();
  // Connections are kept, since only all ranks together could end one.
  std::shared_ptr<Connection>* slot = nullptr;
  Facts own;
  if (queue) {
    // As NCCL tells hosts apart.
    const char* host = std::getenv("NCCL_HOSTID");
    own.device = int64_t(hash_of(queue->device_id() + (host ? host : "")) | 1);
    const std::lock_guard<std::mutex> lock(held.mutex);
    own.version = held.version;
    slot = &held.connections[{ranks.get(), queue->device_id()}];
    own.held = *slot && (*slot)->is_open() ? 1 : 0;
  }
  std::vector<Facts> all(size_t(ranks->size()));
  all[size_t(ranks->rank())] = own;
  ranks->all_reduce_sum(reinterpret_cast<int64_t*>(all.data()), int64_t(all.size() * kFacts));
  size_t on_host = 0, connected = 0;
  for (const Facts& one : all) on_host += one.device == 0, connected += one.held != 0;
  if (on_host == all.size()) return out;
  const std::string problem = !queue ? "its model is not on a GPU" : library.file.empty() ? library.reason : "";
  std::string text;
  const int without = first_of(*ranks, problem, &text);
  out.reason = without >= 0 ? "rank " + std::to_string(without) + ": " + text : obstacle(all);
  if (!out.reason.empty()) return out;
  out.version = library.version;
  if (connected < all.size()) {
    const auto made = std::make_shared<Connection>(held.api, ranks);
    Api::UniqueId id{};
    std::string failure;
    if (ranks->rank() == 0)
      if (const int code = held.api.get_unique_id(&id); code != Api::kSuccess)
        failure = "NCCL, ncclGetUniqueId: " + std::string(held.api.get_error_string(code));
    failure = text_of(*ranks, 0, failure);
    ranks->broadcast(id.bytes, sizeof id.bytes, 0);
    if (failure.empty()) failure = made->join(*queue, id);
    // At once: others may wait for this rank within NCCL.
    if (!failure.empty())
      throw Error(ErrorCode::kDeviceUnavailable, failure + "; DULTRA_NCCL=off exchanges through the host");
    *slot = made;
  }
  out.ranks = std::make_shared<NcclCommunicator>(*queue, *slot, ranks);
  return out;
}

void disconnect_devices() {
  State& held = state();
  const std::lock_guard<std::mutex> lock(held.mutex);
  for (auto& [key, connection] : held.connections)
    if (connection) connection->end();
  held.connections.clear();
}

}  // namespace dultra
