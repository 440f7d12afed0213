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
    return operations();
  }
  CachedGraph& cached = graphs_[plan(operations)];
  cached.last_used = ++clock_;
  make_room();
  const uint64_t plans = backend_.plans();
  if (!cached.graph && (!cached.seen || cached.plans != plans)) {
    ++counts_.direct;
    operations();
    cached.seen = true;
    cached.plans = plans;
    return;
  }
  const std::lock_guard<std::recursive_mutex> lock(backend_.mutex_);
  check_cuda(cudaSetDevice(backend_.index_), "choosing the device");
  if (cached.graph && cached.scratch != backend_.scratch_moves_) drop(&cached);
  if (cached.graph) {
    ++counts_.repeated;
  } else {
    capture(&cached, operations);
    if (!cached.graph) {
      ++counts_.direct;
      return operations();
    }
    ++counts_.recorded;
  }
  check_cuda(cudaGraphLaunch(cached.graph, backend_.stream_), "launching a graph");
}

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
  if (error) {
    cudaGetLastError();
    if (graph) cudaGraphDestroy(graph);
    std::rethrow_exception(error);
  }
  check_cuda(ended, "capturing a graph");
  const cudaError_t made = cudaGraphInstantiate(&cached->graph, graph, 0);
  cudaGraphDestroy(graph);
  if (made == cudaErrorMemoryAllocation) {
    // No memory for another graph: the operations themselves need none.
    cudaGetLastError();
    cached->graph = nullptr;
    forget();
    return;
  }
  check_cuda(made, "capturing a graph");
  cached->scratch = backend_.scratch_moves_;
  ++counts_.held;
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
