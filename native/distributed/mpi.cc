#include "distributed/mpi.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <list>
#include <mutex>
#include <thread>

#include "distributed/nccl.h"
#include "ops/check.h"
#include "platform/platform.h"

namespace dultra {

namespace {

// Numbers of one call, whose counts are ints.
constexpr int64_t kPiece = int64_t(1) << 26;
constexpr int kThreadSerialized = 2;
// The tag of messages between two ranks.
constexpr int kMessage = 1;
// The longest text that any library writes: MPI_MAX_LIBRARY_VERSION_STRING of MPICH and of the standard ABI.
constexpr size_t kText = 8192;
// Bytes that hold an MPI_Status of any library: that of Open MPI has 24, of the others 20 and 32.
constexpr size_t kStatus = 256;
// Between two looks at sums that are under way. MPI moves data while it is called, and hardly otherwise.
constexpr std::chrono::microseconds kPoll(100);

// What a rank does, for people.
std::string description(int64_t what, int64_t n) {
  switch (Shared(what)) {
    case Shared::kEnd: return "has ended";
    case Shared::kBarrier: return "waits for all";
    case Shared::kGather: return "exchanges results";
    case Shared::kConnect: return "connects its GPU";
    case Shared::kMicroBatch: return "reduces the gradients of a micro-batch of " + std::to_string(n) + " parameters";
    case Shared::kGradients: return "adds up gradients of " + std::to_string(n) + " parameters";
    case Shared::kState: return "gathers the state of " + std::to_string(n) + " parameters";
  }
  return "does something unknown";
}

// What differs between libraries: MPICH's handles are ints, all others' are pointers.
template <typename Handle>
struct Constants {
  Handle world, bytes, floats, integers, sum, errors_return;
  void* in_place;
};

using Pointer = void*;

Pointer pointer(uintptr_t value) { return reinterpret_cast<Pointer>(value); }

// Of MPI 5.0, chapter "Application Binary Interface".
Constants<Pointer> standard_constants() {
  return {pointer(0x101), pointer(0x247), pointer(0x210), pointer(0x258), pointer(0x21), pointer(0x142), pointer(1)};
}

// Of MPICH's ABI, which MVAPICH and Intel MPI have, too.
Constants<int> mpich_constants() {
  return {0x44000000, 0x4c00010d, 0x4c00040a, 0x4c00083a, 0x58000003, 0x54000001, pointer(~uintptr_t(0))};
}

// Open MPI's handles are addresses of objects in its library.
Constants<Pointer> openmpi_constants(void* library) {
  const auto at = [&](const char* name) { return platform::find_symbol(library, name); };
  return {at("ompi_mpi_comm_world"),
          at("ompi_mpi_byte"),
          at("ompi_mpi_float"),
          at("ompi_mpi_int64_t"),
          at("ompi_mpi_op_sum"),
          at("ompi_mpi_errors_return"),
          pointer(1)};
}

class World : public Communicator {
 public:
  virtual void finalize() = 0;
  virtual void abort(int exit_code) = 0;
  virtual std::shared_ptr<Communicator> split(int color) = 0;
  virtual void post(int to, std::vector<uint8_t> bytes) = 0;
  virtual Polled poll() = 0;
};

template <typename Handle>
class WorldOf final : public World {
 public:
  WorldOf(void* library, const Constants<Handle>& constants)
      : library_(library), constants_(constants), in_use_(std::make_shared<std::mutex>()), mutex_(*in_use_) {
    int initialized = 0, provided = 0;
    check(function<int(int*)>("MPI_Initialized")(&initialized), "MPI_Initialized");
    if (initialized)
      throw Error(ErrorCode::kDeviceUnavailable, "MPI has been started in this process by something else");
    check(function<int(int*, char***, int, int*)>("MPI_Init_thread")(nullptr, nullptr, kThreadSerialized, &provided),
          "MPI_Init_thread");
    // Jobs run on several threads, one at a time.
    if (provided < kThreadSerialized)
      throw Error(ErrorCode::kDeviceUnavailable,
                  "this MPI was built without threads (MPI_THREAD_SERIALIZED), which are needed");
    // Errors come back, and become messages; otherwise the library ends the process.
    check(function<int(Handle, Handle)>("MPI_Comm_set_errhandler")(constants_.world, constants_.errors_return),
          "MPI_Comm_set_errhandler");
    find_functions();
  }
  // The part of `whole` that has called it with the same color.
  WorldOf(const WorldOf& whole, int color)
      : library_(whole.library_), constants_(whole.constants_), in_use_(whole.in_use_), mutex_(*in_use_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    check(function<int(Handle, int, int, Handle*)>("MPI_Comm_split")(whole.constants_.world, color, whole.rank_,
                                                                     &constants_.world),
          "MPI_Comm_split");
    find_functions();
  }

  ~WorldOf() override { stop(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int64_t start_sum(float* x, int64_t n, int root, std::shared_ptr<void> owner) override {
    return start(x, n, root, constants_.floats, std::move(owner));
  }
  int64_t start_sum(int64_t* x, int64_t n, int root, std::shared_ptr<void> owner) override {
    return start(x, n, root, constants_.integers, std::move(owner));
  }
  void wait_sum(int64_t number) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    uint8_t status[kStatus];
    for (; done_ < number; ++done_) {
      UnderWay& first = under_way_.front();
      if (first.code == 0) first.code = wait_(&first.request, status);
      const int code = first.code;
      under_way_.pop_front();
      check(code, "MPI_Wait");
    }
  }
  void all_reduce_sum(float* x, int64_t n) override { all_reduce(x, n, constants_.floats); }
  void all_reduce_sum(int64_t* x, int64_t n) override { all_reduce(x, n, constants_.integers); }
  void reduce_sum(float* x, int64_t n, int root) override { reduce(x, n, root, constants_.floats); }
  void reduce_sum(int64_t* x, int64_t n, int root) override { reduce(x, n, root, constants_.integers); }
  void broadcast(void* x, size_t bytes, int root) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto* data = static_cast<uint8_t*>(x);
    for (size_t at = 0; at < bytes; at += size_t(kPiece))
      check(broadcast_(data + at, int(std::min(size_t(kPiece), bytes - at)), constants_.bytes, root, constants_.world),
            "MPI_Bcast");
  }
  void agree(Shared what, int64_t n) override {
    std::vector<int64_t> all(2 * size_t(size_), 0);
    all[2 * size_t(rank_)] = int64_t(what);
    all[2 * size_t(rank_) + 1] = n;
    all_reduce_sum(all.data(), int64_t(all.size()));
    const auto of = [&](int rank) { return description(all[2 * size_t(rank)], all[2 * size_t(rank) + 1]); };
    for (int rank = 1; rank < size_; ++rank)
      if (all[2 * size_t(rank)] != all[0] || all[2 * size_t(rank) + 1] != all[1])
        throw Error(ErrorCode::kDeviceUnavailable, "processes of one job must do the same: rank 0 " + of(0) +
                                                       ", rank " + std::to_string(rank) + " " + of(rank));
  }
  void finalize() override {
    agree(Shared::kEnd, 0);
    stop();
    disconnect_devices();
    const std::lock_guard<std::mutex> lock(mutex_);
    check(function<int()>("MPI_Finalize")(), "MPI_Finalize");
  }
  std::shared_ptr<Communicator> split(int color) override { return std::make_shared<WorldOf>(*this, color); }
  void post(int to, std::vector<uint8_t> bytes) override {
    check_argument(to >= 0 && to < size_ && bytes.size() <= INT_MAX, "to: expected a rank, and at most 2 GiB");
    const std::lock_guard<std::mutex> lock(messages_mutex_);
    outbox_.push_back({to, std::move(bytes)});
  }
  Polled poll() override {
    const std::lock_guard<std::mutex> lock(messages_mutex_);
    Polled polled;
    // A call that waits for other ranks may hold it for long.
    std::unique_lock<std::mutex> free(mutex_, std::try_to_lock);
    if (free.owns_lock()) {
      send_posted();
      receive(&polled);
    }
    polled.unsent = int64_t(outbox_.size() + sending_.size());
    return polled;
  }
  // Without the lock, which a call holds that waits for a rank that is gone.
  void abort(int exit_code) override { function<int(Handle, int)>("MPI_Abort")(constants_.world, exit_code); }

 private:
  using AllReduce = int(const void*, void*, int, Handle, Handle, Handle);
  using Reduce = int(const void*, void*, int, Handle, Handle, int, Handle);
  using Broadcast = int(void*, int, Handle, int, Handle);
  using StartAllReduce = int(const void*, void*, int, Handle, Handle, Handle, Handle*);
  using StartReduce = int(const void*, void*, int, Handle, Handle, int, Handle, Handle*);
  using Test = int(Handle*, int*, void*);
  using Wait = int(Handle*, void*);

  // A sum that has been begun, until somebody waits for it.
  struct UnderWay {
    Handle request;
    std::shared_ptr<void> owner;
    int code = 0;  // of a failure
    bool done = false;
  };

  // A message under way.
  struct Transfer {
    int rank;
    std::vector<uint8_t> bytes;
    Handle request{};
  };

  void find_functions() {
    check(function<int(Handle, int*)>("MPI_Comm_rank")(constants_.world, &rank_), "MPI_Comm_rank");
    check(function<int(Handle, int*)>("MPI_Comm_size")(constants_.world, &size_), "MPI_Comm_size");
    // Sums that are begun match by their own order, whatever ranks do meanwhile.
    check(function<int(Handle, Handle*)>("MPI_Comm_dup")(constants_.world, &sums_), "MPI_Comm_dup");
    start_all_reduce_ = function<StartAllReduce>("MPI_Iallreduce");
    start_reduce_ = function<StartReduce>("MPI_Ireduce");
    test_ = function<Test>("MPI_Test");
    wait_ = function<Wait>("MPI_Wait");
    all_reduce_ = function<AllReduce>("MPI_Allreduce");
    reduce_ = function<Reduce>("MPI_Reduce");
    broadcast_ = function<Broadcast>("MPI_Bcast");
  }
  bool is_done(Transfer& transfer) {
    int done = 0;
    uint8_t status[kStatus];
    check(test_(&transfer.request, &done, status), "MPI_Test");
    return done != 0;
  }
  void send_posted() {
    const auto send = function<int(const void*, int, Handle, int, int, Handle, Handle*)>("MPI_Isend");
    while (!outbox_.empty()) {
      sending_.push_back(std::move(outbox_.front()));
      outbox_.pop_front();
      Transfer& next = sending_.back();
      check(send(next.bytes.data(), int(next.bytes.size()), constants_.bytes, next.rank, kMessage, constants_.world,
                 &next.request),
            "MPI_Isend");
    }
    for (auto at = sending_.begin(); at != sending_.end();) at = is_done(*at) ? sending_.erase(at) : std::next(at);
  }
  // One message, of the next rank in turn that has sent one.
  void receive(Polled* polled) {
    const auto probe = function<int(int, int, Handle, int*, void*)>("MPI_Iprobe");
    const auto count_of = function<int(const void*, Handle, int*)>("MPI_Get_count");
    const auto begin = function<int(void*, int, Handle, int, int, Handle, Handle*)>("MPI_Irecv");
    for (int i = 0; i < size_; ++i) {
      const int from = (next_sender_ + i) % size_;
      auto found =
          std::find_if(receiving_.begin(), receiving_.end(), [&](const Transfer& t) { return t.rank == from; });
      if (found == receiving_.end()) {
        int is_there = 0, count = 0;
        alignas(16) uint8_t status[kStatus];
        check(probe(from, kMessage, constants_.world, &is_there, status), "MPI_Iprobe");
        if (!is_there) continue;
        check(count_of(status, constants_.bytes, &count), "MPI_Get_count");
        found = receiving_.insert(receiving_.end(), {from, std::vector<uint8_t>(size_t(count))});
        check(begin(found->bytes.data(), count, constants_.bytes, from, kMessage, constants_.world, &found->request),
              "MPI_Irecv");
      }
      if (!is_done(*found)) continue;
      polled->from = from;
      polled->bytes = std::move(found->bytes);
      receiving_.erase(found);
      next_sender_ = (from + 1) % size_;
      return;
    }
  }

  template <typename Signature>
  Signature* function(const char* name) const {
    void* symbol = platform::find_symbol(library_, name);
    if (!symbol) throw Error(ErrorCode::kDeviceUnavailable, std::string("this MPI lacks ") + name);
    return reinterpret_cast<Signature*>(symbol);
  }
  void check(int code, const char* call) const {
    if (code == 0) return;
    char text[kText] = "";
    int length = 0;
    if (void* symbol = platform::find_symbol(library_, "MPI_Error_string"))
      reinterpret_cast<int (*)(int, char*, int*)>(symbol)(code, text, &length);
    throw Error(ErrorCode::kDeviceUnavailable, std::string(call) + " failed: " + text);
  }
  template <typename T>
  void all_reduce(T* x, int64_t n, Handle type) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t at = 0; at < n; at += kPiece)
      check(all_reduce_(constants_.in_place, x + at, int(std::min(kPiece, n - at)), type, constants_.sum,
                        constants_.world),
            "MPI_Allreduce");
  }
  template <typename T>
  void reduce(T* x, int64_t n, int root, Handle type) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool is_root = rank_ == root;
    for (int64_t at = 0; at < n; at += kPiece)
      check(reduce_(is_root ? constants_.in_place : x + at, is_root ? x + at : nullptr, int(std::min(kPiece, n - at)),
                    type, constants_.sum, root, constants_.world),
            "MPI_Reduce");
  }

  template <typename T>
  int64_t start(T* x, int64_t n, int root, Handle type, std::shared_ptr<void> owner) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Handle request;
    if (root == kEveryRank)
      check(start_all_reduce_(constants_.in_place, x, int(n), type, constants_.sum, sums_, &request), "MPI_Iallreduce");
    else
      check(start_reduce_(rank_ == root ? constants_.in_place : x, rank_ == root ? x : nullptr, int(n), type,
                          constants_.sum, root, sums_, &request),
            "MPI_Ireduce");
    under_way_.push_back({request, std::move(owner)});
    if (!progress_.joinable()) progress_ = std::thread([this] { make_progress(); });
    has_work_.notify_one();
    return done_ + int64_t(under_way_.size());
  }
  // Looks after sums while the process does something else.
  void make_progress() {
    std::unique_lock<std::mutex> lock(mutex_);
    uint8_t status[kStatus];
    while (!stopping_) {
      const auto next =
          std::find_if(under_way_.begin(), under_way_.end(), [](const UnderWay& sum) { return !sum.done; });
      if (next == under_way_.end()) {
        has_work_.wait(lock);
        continue;
      }
      int done = 0;
      // `wait_sum` tells of a failure. A request that is done is a null one by then, for which nobody waits.
      next->code = test_(&next->request, &done, status);
      next->done = next->code != 0 || done != 0;
      if (next->done) continue;
      lock.unlock();
      std::this_thread::sleep_for(kPoll);
      lock.lock();
    }
  }
  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    has_work_.notify_one();
    if (progress_.joinable()) progress_.join();
  }

  void* const library_;
  Constants<Handle> constants_;
  // Of one call at a time, whichever part of the job it is for.
  const std::shared_ptr<std::mutex> in_use_;
  std::mutex& mutex_;
  std::mutex messages_mutex_;
  std::deque<Transfer> outbox_;
  // Their bytes and requests must stay where they are.
  std::list<Transfer> sending_, receiving_;
  int next_sender_ = 0;
  int rank_ = 0, size_ = 1;
  Handle sums_ = Handle();
  // Numbers done_ + 1 and on.
  std::deque<UnderWay> under_way_;
  int64_t done_ = 0;
  bool stopping_ = false;
  std::condition_variable has_work_;
  std::thread progress_;
  StartAllReduce* start_all_reduce_ = nullptr;
  StartReduce* start_reduce_ = nullptr;
  Test* test_ = nullptr;
  Wait* wait_ = nullptr;
  AllReduce* all_reduce_ = nullptr;
  Reduce* reduce_ = nullptr;
  Broadcast* broadcast_ = nullptr;
};

struct State {
  std::mutex mutex;
  MpiLibrary library;
  void* handle = nullptr;
  bool started = false;
  std::shared_ptr<World> world;
  // The part of it that this process works in; null: all of it.
  std::shared_ptr<Communicator> part;
};

// Never destroyed: threads may still wait in a call when the process ends.
State& state() {
  static State* const held = new State;
  return *held;
}

// All processes of the job.
std::shared_ptr<World> whole_world() {
  State& held = state();
  const std::lock_guard<std::mutex> lock(held.mutex);
  if (!held.world) throw Error(ErrorCode::kDeviceUnavailable, "MPI is not running");
  return held.world;
}

// The number behind `name` in a text, as in "Open MPI v4.1.4" and "MPICH Version:\t4.0.2"; -1: the text has no `name`.
int major_version(const std::string& text, const std::string& name) {
  const size_t found = text.find(name);
  if (found == std::string::npos) return -1;
  const size_t digit = text.find_first_of("0123456789", found + name.size());
  return digit == std::string::npos ? 0 : std::atoi(text.c_str() + digit);
}

// "Open MPI v4.1.4, package: …" and "MPICH Version:\t4.0.2\nMPICH Release date: …": what comes first, in one line.
std::string first_part(const std::string& text) {
  std::string part = text.substr(0, text.find_first_of(",\n"));
  std::replace(part.begin(), part.end(), '\t', ' ');
  return part;
}

// Which handles the library has; empty, with the reason, where it is none that can be used.
std::string abi_of(void* library, const std::string& version, std::string* reason) {
  if (platform::find_symbol(library, "MPI_Abi_get_version") && !platform::find_symbol(library, "ompi_mpi_comm_world")) {
    // MPICH has the function in the library of its own ABI, too, with an ABI of version -1.
    int major = -1, minor = -1;
    reinterpret_cast<int (*)(int*, int*)>(platform::find_symbol(library, "MPI_Abi_get_version"))(&major, &minor);
    if (major >= 1) return "standard";
  }
  if (platform::find_symbol(library, "ompi_mpi_comm_world")) {
    if (major_version(version, "Open MPI") >= 4) return "openmpi";
    *reason = "expected Open MPI 4 or newer, got " + first_part(version);
    return "";
  }
  for (const char* name : {"MPICH Version", "MVAPICH", "Intel(R) MPI"})
    if (major_version(version, name) >= 4) return "mpich";
  *reason = "expected Open MPI 4, MPICH 4 or newer, or the ABI of MPI 5, got " + first_part(version);
  return "";
}

}  // namespace

MpiLibrary open_mpi(const std::vector<std::string>& files) {
  State& held = state();
  const std::lock_guard<std::mutex> lock(held.mutex);
  if (held.handle) return held.library;
  MpiLibrary library;
  for (const std::string& file : files) {
    std::string problem;
    void* handle = platform::open_library(file, &problem);
    if (handle) {
      const auto version_of = platform::find_symbol(handle, "MPI_Get_library_version");
      char text[kText] = "";
      int length = 0;
      if (version_of) reinterpret_cast<int (*)(char*, int*)>(version_of)(text, &length);
      library.abi = version_of ? abi_of(handle, text, &problem) : "";
      if (!version_of) problem = file + " is no MPI 3 or newer";
      if (!library.abi.empty()) {
        library.file = file;
        library.version = first_part(text);
        library.reason.clear();
        held.handle = handle;
        return held.library = library;
      }
      platform::close_library(handle);
    }
    library.reason += (library.reason.empty() ? "" : "; ") + problem;
  }
  return library;
}

void start_mpi() {
  State& held = state();
  const std::lock_guard<std::mutex> lock(held.mutex);
  if (held.started) return;
  if (!held.handle) throw Error(ErrorCode::kDeviceUnavailable, "no MPI is open");
  // Once alone: MPI cannot start again.
  held.started = true;
  if (held.library.abi == "mpich")
    held.world = std::make_shared<WorldOf<int>>(held.handle, mpich_constants());
  else
    held.world = std::make_shared<WorldOf<Pointer>>(
        held.handle, held.library.abi == "openmpi" ? openmpi_constants(held.handle) : standard_constants());
}

std::shared_ptr<Communicator> world() {
  State& held = state();
  const std::lock_guard<std::mutex> lock(held.mutex);
  if (held.part) return held.part;
  if (held.world) return held.world;
  return make_single_communicator();
}

void split_world(int color) {
  State& held = state();
  const std::shared_ptr<Communicator> part = whole_world()->split(color);
  const std::lock_guard<std::mutex> lock(held.mutex);
  held.part = part;
}

void join_world() {
  State& held = state();
  const std::lock_guard<std::mutex> lock(held.mutex);
  held.part = nullptr;
}

void post_message(int to, std::vector<uint8_t> bytes) { whole_world()->post(to, std::move(bytes)); }

Polled poll_messages() { return whole_world()->poll(); }

void finalize_mpi() {
  State& held = state();
  std::shared_ptr<World> ending;
  {
    const std::lock_guard<std::mutex> lock(held.mutex);
    ending = held.world;
  }
  if (!ending) return;
  ending->finalize();
  const std::lock_guard<std::mutex> lock(held.mutex);
  held.world = nullptr;
  held.part = nullptr;
}

void abort_mpi(int exit_code) {
  State& held = state();
  std::shared_ptr<World> ending;
  {
    const std::lock_guard<std::mutex> lock(held.mutex);
    ending = held.world;
  }
  if (ending) ending->abort(exit_code);
}

}  // namespace dultra
