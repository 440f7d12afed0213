// What stands in for NCCL in test/nccl.test.ts: the functions that native/distributed/nccl.cc calls, for processes of
// one machine on the emulator, whose device memory is the host's. Sums go through POSIX shared memory, rank by rank, on
// a thread of their own, one after the other, as on a stream: a call returns at once, and ncclCommGetAsyncError says
// when all are done, as that of a communicator that does not block. Environment variables:
//   DULTRA_STAND_IN_VERSION   what ncclGetVersion says; default 21805
//   DULTRA_STAND_IN_LOG       a file that every call is added to, as "RANK NAME NUMBERS TYPE"
//   DULTRA_STAND_IN_FAIL      "RANK CALL now" or "RANK CALL later": that rank's call of this number (from 1) fails, at
//                             once or while it is under way
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <new>
#include <string>
#include <thread>

namespace {

enum Result { kSuccess = 0, kInternalError = 3, kInvalidArgument = 4, kRemoteError = 6, kInProgress = 7 };
enum Type { kInt8 = 0, kInt64 = 4, kFloat32 = 7 };

constexpr int kMostRanks = 8;
constexpr size_t kSlot = size_t(1) << 20;  // bytes of a rank that are exchanged at a time

struct UniqueId {
  char name[128];
};

// The beginning of the shared memory; a slot for each rank follows.
struct Shared {
  std::atomic<int> joined{0}, arrived{0}, round{0}, ended{0};
  std::atomic<int> process[kMostRanks] = {};
};

struct Comm {
  Shared* shared = nullptr;
  size_t bytes = 0;
  int rank = 0, ranks = 0, calls = 0;
  std::atomic<int> failure{kSuccess}, under_way{0};
  std::atomic<bool> aborted{false};
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> queue;
  bool ended = false;
  std::thread worker;

  char* slot(int of) const { return reinterpret_cast<char*>(shared + 1) + size_t(of) * kSlot; }
};

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

void note(const Comm& comm, const char* name, size_t n, int type) {
  const std::string file = variable("DULTRA_STAND_IN_LOG");
  if (file.empty()) return;
  const int log = open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (log < 0) return;
  const std::string line = std::to_string(comm.rank) + " " + name + " " + std::to_string(n) + " " +
                           (type == kInt64     ? "int64"
                            : type == kFloat32 ? "float"
                                               : "bytes") +
                           "\n";
  if (write(log, line.data(), line.size()) < 0) perror("log of the stand-in");
  close(log);
}

// Whether this call is the one that has to fail so.
bool fails(const Comm& comm, const char* how) {
  int rank = -1, call = -1;
  char when[16] = "";
  return std::sscanf(variable("DULTRA_STAND_IN_FAIL"), "%d %d %15s", &rank, &call, when) == 3 && rank == comm.rank &&
         call == comm.calls && std::strcmp(when, how) == 0;
}

// Waits for all ranks; false where one is no more.
bool meet(Comm& comm) {
  Shared& shared = *comm.shared;
  const int round = shared.round;
  if (++shared.arrived == comm.ranks) {
    shared.arrived = 0;
    ++shared.round;
    return true;
  }
  for (int64_t looks = 0; shared.round == round; ++looks) {
    if (looks < 1000) {
      sched_yield();
      continue;
    }
    usleep(100);
    if (comm.aborted) return false;
    for (int rank = 0; rank < comm.ranks; ++rank)
      if (shared.process[rank] == 0 || (kill(shared.process[rank], 0) != 0 && errno == ESRCH)) return false;
  }
  return true;
}

template <typename T>
void add(const Comm& comm, T* to, size_t n) {
  for (size_t i = 0; i < n; ++i) to[i] = T(0);
  for (int rank = 0; rank < comm.ranks; ++rank) {
    const T* from = reinterpret_cast<const T*>(comm.slot(rank));
    for (size_t i = 0; i < n; ++i) to[i] += from[i];
  }
}

// root: the only one that gets the sum, -1: all do. is_sum: else all get what root has.
void exchange(Comm& comm, const char* from, char* to, size_t bytes, int type, int root, bool is_sum) {
  for (size_t at = 0; at < bytes; at += kSlot) {
    const size_t piece = bytes - at < kSlot ? bytes - at : kSlot;
    if (is_sum || comm.rank == root) std::memcpy(comm.slot(comm.rank), from + at, piece);
    bool is_whole = meet(comm);
    if (is_whole && !is_sum) {
      std::memcpy(to + at, comm.slot(root), piece);
    } else if (is_whole && (root < 0 || comm.rank == root)) {
      if (type == kInt64)
        add(comm, reinterpret_cast<int64_t*>(to + at), piece / 8);
      else
        add(comm, reinterpret_cast<float*>(to + at), piece / 4);
    }
    is_whole = is_whole && meet(comm);
    if (!is_whole) {
      comm.failure = kRemoteError;
      return;
    }
  }
}

void work(Comm* comm) {
  std::unique_lock<std::mutex> lock(comm->mutex);
  while (true) {
    comm->changed.wait(lock, [&] { return comm->ended || !comm->queue.empty(); });
    if (comm->queue.empty()) return;
    const std::function<void()> next = std::move(comm->queue.front());
    comm->queue.pop_front();
    lock.unlock();
    if (comm->failure == kSuccess && !comm->aborted) next();
    --comm->under_way;
    lock.lock();
  }
}

int start(Comm* comm, const char* name, const void* from, void* to, size_t n, int type, int root, bool is_sum) {
  ++comm->calls;
  note(*comm, name, n, type);
  const bool is_known = is_sum ? type == kInt64 || type == kFloat32 : type == kInt8;
  if (!is_known || root >= comm->ranks) return kInvalidArgument;
  if (fails(*comm, "now")) return kInternalError;
  const bool later = fails(*comm, "later");
  ++comm->under_way;
  const std::lock_guard<std::mutex> lock(comm->mutex);
  comm->queue.push_back([=] {
    if (later) {
      usleep(50000);
      comm->failure = kRemoteError;
      return;
    }
    const size_t size = type == kInt64 ? 8 : type == kFloat32 ? 4 : 1;
    exchange(*comm, static_cast<const char*>(from), static_cast<char*>(to), n * size, type, root, is_sum);
  });
  comm->changed.notify_one();
  return kSuccess;
}

void release(Comm* comm) {
  {
    const std::lock_guard<std::mutex> lock(comm->mutex);
    comm->ended = true;
    comm->changed.notify_one();
  }
  comm->worker.join();
  munmap(comm->shared, comm->bytes);
  delete comm;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int ncclGetVersion(int* version) {
  const char* given = variable("DULTRA_STAND_IN_VERSION");
  *version = *given ? std::atoi(given) : 21805;
  return kSuccess;
}

EXPORTED int ncclGetUniqueId(UniqueId* id) {
  static std::atomic<int> count{0};
  std::snprintf(id->name, sizeof id->name, "/dultra-nccl-%d-%d", int(getpid()), ++count);
  const int file = shm_open(id->name, O_RDWR | O_CREAT | O_EXCL, 0600);
  if (file < 0 || ftruncate(file, off_t(sizeof(Shared) + kMostRanks * kSlot)) != 0) return kInternalError;
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return kInternalError;
  new (memory) Shared;
  munmap(memory, sizeof(Shared));
  return kSuccess;
}

EXPORTED int ncclCommInitRank(Comm** out, int ranks, UniqueId id, int rank) {
  *out = nullptr;
  if (ranks > kMostRanks || rank < 0 || rank >= ranks) return kInvalidArgument;
  const int file = shm_open(id.name, O_RDWR, 0600);
  if (file < 0) return kInternalError;
  const size_t bytes = sizeof(Shared) + size_t(ranks) * kSlot;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return kInternalError;
  Comm* comm = new Comm;
  comm->shared = static_cast<Shared*>(memory);
  comm->bytes = bytes;
  comm->rank = rank;
  comm->ranks = ranks;
  comm->shared->process[rank] = int(getpid());
  ++comm->shared->joined;
  while (comm->shared->joined < ranks) usleep(100);
  // All have it open.
  if (rank == 0) shm_unlink(id.name);
  comm->worker = std::thread(work, comm);
  note(*comm, "ncclCommInitRank", size_t(ranks), kInt8);
  *out = comm;
  return kSuccess;
}

EXPORTED int ncclCommDestroy(Comm* comm) {
  note(*comm, "ncclCommDestroy", 0, kInt8);
  // With all others, as NCCL may.
  ++comm->shared->ended;
  while (comm->shared->ended < comm->ranks) usleep(100);
  release(comm);
  return kSuccess;
}

EXPORTED int ncclCommAbort(Comm* comm) {
  note(*comm, "ncclCommAbort", 0, kInt8);
  comm->aborted = true;
  release(comm);
  return kSuccess;
}

EXPORTED int ncclCommGetAsyncError(Comm* comm, int* state) {
  const bool is_done = comm->under_way == 0;
  *state = comm->failure != kSuccess ? int(comm->failure) : is_done ? kSuccess : kInProgress;
  return kSuccess;
}

EXPORTED const char* ncclGetErrorString(int code) {
  return code == kRemoteError ? "remote process exited or there was a network error" : "internal error";
}

EXPORTED const char* ncclGetLastError(Comm*) { return "what the stand-in says"; }

EXPORTED int ncclAllReduce(const void* from, void* to, size_t n, int type, int, Comm* comm, void*) {
  return start(comm, "ncclAllReduce", from, to, n, type, -1, true);
}

EXPORTED int ncclReduce(const void* from, void* to, size_t n, int type, int, int root, Comm* comm, void*) {
  return start(comm, "ncclReduce", from, to, n, type, root, true);
}

EXPORTED int ncclBroadcast(const void* from, void* to, size_t n, int type, int root, Comm* comm, void*) {
  return start(comm, "ncclBroadcast", from, to, n, type, root, false);
}
