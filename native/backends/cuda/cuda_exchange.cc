#include "backends/cuda/cuda_exchange.h"

#include <algorithm>
#include <exception>

#include "backends/cuda/device.h"

namespace dultra {
namespace cuda {

namespace {

constexpr size_t kLeastBytes = size_t(64) << 10;
// Graphs that are kept. A graph of a large model takes some hundred kilobytes; a generation has some ten shapes.
constexpr size_t kMostGraphs = 64;

}  // namespace

CudaExchange::~CudaExchange() {
  const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
  cudaSetDevice(backend_.index_);
  forget();
  cudaStreamSynchronize(backend_.stream_);
  release_memory();
  if (received_) cudaEventDestroy(received_);
}

void CudaExchange::release_memory() {
  auto& exchanges = backend_.exchanges_;
  exchanges.erase(std::remove(exchanges.begin(), exchanges.end(), this), exchanges.end());
  cudaFreeHost(host_);
  cudaFree(device_);
  host_ = device_ = nullptr;
  bytes_ = 0;
}

// The host may write again: nothing reads what was sent.
void CudaExchange::settle() {
  if (sent_) check_cuda(cudaStreamSynchronize(backend_.stream_), "an exchange");
  sent_ = false;
}

uint8_t* CudaExchange::reserve(size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
  check_cuda(cudaSetDevice(backend_.index_), "choosing the device");
  backend_.refuse_graph("an exchange");
  settle();
  if (bytes <= bytes_) return host_;
  check_cuda(cudaStreamSynchronize(backend_.stream_), "an exchange");
  forget();
  release_memory();
  bytes = std::max(kLeastBytes, bytes + bytes / 2);
  check_cuda(cudaMallocHost(reinterpret_cast<void**>(&host_), bytes), "pinned memory of an exchange");
  const cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&device_), bytes);
  if (error != cudaSuccess) release_memory();
  check_cuda(error, "memory of an exchange");
  bytes_ = bytes;
  backend_.exchanges_.push_back(this);
  return host_;
}

void CudaExchange::send(size_t begin, size_t end) {
  const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
  check_argument(begin <= end && end <= bytes_, "exchange: expected bytes that were reserved");
  check_cuda(cudaSetDevice(backend_.index_), "choosing the device");
  if (begin == end) return;
  copy_bytes("an exchange", backend_.stream_, device_ + begin, host_ + begin, end - begin);
  sent_ = true;
}

void CudaExchange::receive(size_t begin, size_t end) {
  {
    const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
    check_argument(begin <= end && end <= bytes_, "exchange: expected bytes that were reserved");
    check_cuda(cudaSetDevice(backend_.index_), "choosing the device");
    backend_.refuse_graph("an exchange");
    if (begin != end)
      check_cuda(cudaMemcpyAsync(host_ + begin, device_ + begin, end - begin, cudaMemcpyDefault, backend_.stream_),
                 "an exchange");
    if (!received_) check_cuda(cudaEventCreateWithFlags(&received_, cudaEventDisableTiming), "an exchange");
    check_cuda(cudaEventRecord(received_, backend_.stream_), "an exchange");
  }
  // Other threads may queue work meanwhile, and capture: the stream itself must not be waited for then.
  check_cuda(cudaEventSynchronize(received_), "waiting for the device");
  sent_ = false;
}

const void* CudaExchange::mirror(const void* host) const {
  const auto* at = static_cast<const uint8_t*>(host);
  return at >= host_ && at < host_ + bytes_ ? device_ + (at - host_) : nullptr;
}

// What the operations would launch.
std::string CudaExchange::plan(const std::function<void()>& operations) const {
  LaunchKey key;
  struct Planning {
    explicit Planning(LaunchKey* to) { set_planned_key(to); }
    ~Planning() { set_planned_key(nullptr); }
  };
  std::exception_ptr error;
  {
    const Planning planning(&key);
    try {
      operations();
    } catch (...) {
      error = std::current_exception();
    }
  }
  const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
  backend_.release_deferred();
  if (error) std::rethrow_exception(error);
  return key.bytes();
}

void CudaExchange::run(const std::function<void()>& operations) {
  if (!records()) {
    ++counts_.direct;
    if (backend_.times_) backend_.times_->count_step();
    return operations();
  }
  CachedGraph& cached = graphs_[plan(operations)];
  cached.last_used = ++clock_;
  make_room();
  if (!cached.seen || cached.failed) {
    ++counts_.direct;
    operations();
    cached.seen = true;
    return;
  }
  const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
  check_cuda(cudaSetDevice(backend_.index_), "choosing the device");
  if (cached.graph && cached.scratch != backend_.scratch_moves_) drop(&cached);
  const bool is_new = !cached.graph;
  if (is_new) capture(&cached, operations);
  if (cached.graph && cudaGraphLaunch(cached.graph, backend_.stream_) != cudaSuccess)
    give_up(&cached, "launching a graph");
  ++(!cached.graph ? counts_.direct : is_new ? counts_.recorded : counts_.repeated);
  if (!cached.graph) operations();
}

// Leaves no graph where there is no memory for one, or where capturing fails: the operations themselves need none.
void CudaExchange::capture(CachedGraph* cached, const std::function<void()>& operations) {
  const cudaStream_t stream = backend_.stream_;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a graph");
  std::exception_ptr error;
  backend_.set_capturing(true);
  try {
    operations();
  } catch (...) {
    error = std::current_exception();
  }
  backend_.set_capturing(false);
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  backend_.release_deferred();
  if (ended != cudaSuccess) return give_up(cached, "capturing a graph");  // what was thrown came of it
  if (error) {
    if (graph) cudaGraphDestroy(graph);
    std::rethrow_exception(error);
  }
  const cudaError_t made = cudaGraphInstantiate(&cached->graph, graph, 0);
  cudaGraphDestroy(graph);
  if (made != cudaSuccess) cached->graph = nullptr;
  if (made == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return forget();
  }
  if (made != cudaSuccess) return give_up(cached, "capturing a graph");
  cached->scratch = backend_.scratch_moves_;
  ++counts_.held;
}

// These operations are run directly from now on. Throws where the device is lost.
void CudaExchange::give_up(CachedGraph* cached, const char* what) {
  cudaGetLastError();  // it must not be taken for that of the next launch
  throw_if_lost(what);
  drop(cached);
  cached->failed = true;
  ++failed_;
}

void CudaExchange::drop(CachedGraph* cached) {
  if (!cached->graph) return;
  cudaGraphExecDestroy(cached->graph);
  cached->graph = nullptr;
  --counts_.held;
}

void CudaExchange::forget() {
  const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
  cudaSetDevice(backend_.index_);
  for (auto& [key, cached] : graphs_) drop(&cached);
}

// The least recently used go.
void CudaExchange::make_room() {
  while (graphs_.size() > kMostGraphs) {
    const auto oldest = std::min_element(graphs_.begin(), graphs_.end(), [](const auto& a, const auto& b) {
      return a.second.last_used < b.second.last_used;
    });
    const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
    cudaSetDevice(backend_.index_);
    drop(&oldest->second);
    graphs_.erase(oldest);
  }
}

}  // namespace cuda
}  // namespace dultra
