// The CUDA runtime: device memory, streams, events, graph capture.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "cuda_runtime.h"
#include "emulator/faults.h"

namespace emulator {

namespace {

std::mutex memory_mutex;
std::map<void*, size_t> allocations;
size_t in_use = 0, memory_limit = size_t(1) << 40;
std::recursive_mutex stream_mutex;  // one thread at a time queues work or does it
std::vector<Stream*> streams;
thread_local Stream* captured_here = nullptr;
size_t graphs = 0;
std::atomic<int> lost{0};  // the error that every call has, since the device broke down
thread_local cudaError_t last_error = cudaSuccess;
CaptureFailure capture_failure = CaptureFailure::kNone;

void run_until(Stream* stream, uint64_t number) {
  while (stream->done < number) {
    const std::function<void()> work = std::move(stream->queue.front());
    stream->queue.pop_front();
    ++stream->done;
    work();
  }
}

}  // namespace

void enqueue(Stream* stream, std::function<void()> work) {
  if (lost != 0) return;
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  if (stream->capture && captured_here != stream) die("work was queued while another thread captured the stream");
  if (stream->capture) {
    stream->capture->work.push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
    ++stream->queued;
  }
}

bool prohibited() {
  if (captured_here) captured_here->invalidated = true;
  return captured_here != nullptr;
}

void synchronize(Stream* stream) {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  if (stream->capture) die("a stream was waited for while it was captured");
  run_until(stream, stream->queued);
}

void record(Event* event, Stream* stream) {
  static int now = 0;
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  *event = {stream, stream->queued, ++now};
}

void synchronize(const Event& event) {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  run_until(event.stream, event.number);
}

void wait(Stream* stream, const Event& event) {
  enqueue(stream, [event] { synchronize(event); });
}

void synchronize_all() {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  for (Stream* stream : streams)
    if (!stream->capture) synchronize(stream);
}

namespace {

std::mutex range_mutex;
std::map<std::string, int64_t> ranges;
thread_local int range_depth = 0;

}  // namespace

void range_push(const char* name) {
  ++range_depth;
  const std::lock_guard<std::mutex> lock(range_mutex);
  ++ranges[name];
}
void range_pop() { --range_depth; }
int64_t ranges_begun(const char* part) {
  const std::lock_guard<std::mutex> lock(range_mutex);
  int64_t count = 0;
  for (const auto& [name, begun] : ranges) count += name.find(part) == std::string::npos ? 0 : begun;
  return count;
}
int open_ranges() { return range_depth; }

void break_device(int error) {
  lost = error;
  last_error = cudaSuccess;
}
void fail_next_capture(CaptureFailure failure) { capture_failure = failure; }

namespace {

// What a call returns, which is the thread's last error then.
cudaError_t result(cudaError_t error) {
  if (lost != 0) error = cudaError_t(lost.load());
  if (error != cudaSuccess) last_error = error;
  return error;
}
// Whether the next capture is to fail like this; once.
bool fails(CaptureFailure failure) {
  if (capture_failure != failure) return false;
  capture_failure = CaptureFailure::kNone;
  return true;
}

}  // namespace

void set_memory_limit(size_t limit) { memory_limit = limit; }
size_t memory_in_use() { return in_use; }
size_t graphs_in_use() {
  const std::lock_guard<std::recursive_mutex> lock(stream_mutex);
  return graphs;
}

}  // namespace emulator

using emulator::result;

cudaError_t cudaGetLastError() {
  const cudaError_t error = result(cudaSuccess) != cudaSuccess ? result(cudaSuccess) : emulator::last_error;
  emulator::last_error = cudaSuccess;
  return error;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return result(cudaSuccess); }

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  using namespace emulator;
  if (prohibited()) return result(cudaErrorStreamCaptureUnsupported);
  if (lost != 0) return result(cudaSuccess);
  const std::lock_guard<std::mutex> lock(memory_mutex);
  if (in_use + bytes > memory_limit || posix_memalign(pointer, 256, bytes ? bytes : 1) != 0)
    return result(cudaErrorMemoryAllocation);
  std::memset(*pointer, 0xff, bytes);
  allocations[*pointer] = bytes;
  in_use += bytes;
  return result(cudaSuccess);
}

cudaError_t cudaFree(void* pointer) {
  using namespace emulator;
  if (!pointer) return result(cudaSuccess);
  if (prohibited()) return result(cudaErrorStreamCaptureUnsupported);
  synchronize_all();  // as the device does
  const std::lock_guard<std::mutex> lock(memory_mutex);
  const auto found = allocations.find(pointer);
  if (found == allocations.end()) die("cudaFree of what cudaMalloc did not give");
  in_use -= found->second;
  allocations.erase(found);
  free(pointer);
  return result(cudaSuccess);
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  if (emulator::lost != 0) return result(cudaSuccess);
  if (emulator::prohibited()) return result(cudaErrorStreamCaptureUnsupported);
  return result(posix_memalign(pointer, 256, bytes ? bytes : 1) == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* pointer) {
  if (!pointer) return result(cudaSuccess);
  if (emulator::prohibited()) return result(cudaErrorStreamCaptureUnsupported);
  emulator::synchronize_all();  // as the device does
  free(pointer);
  return result(cudaSuccess);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const bool cut = bytes > 0 && emulator::broken("memcpy");
  emulator::enqueue(stream, [=] { std::memmove(to, from, bytes - cut); });
  return result(cudaSuccess);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const bool cut = bytes > 0 && emulator::broken("memset");
  emulator::enqueue(stream, [=] { std::memset(to, value, bytes - cut); });
  return result(cudaSuccess);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (emulator::lost != 0) return result(cudaSuccess);
  *stream = new emulator::Stream;
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  emulator::streams.push_back(*stream);
  return result(cudaSuccess);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
    for (size_t i = 0; i < emulator::streams.size(); ++i)
      if (emulator::streams[i] == stream) emulator::streams.erase(emulator::streams.begin() + std::ptrdiff_t(i--));
  }
  emulator::synchronize(stream);
  delete stream;
  return result(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (emulator::broken("synchronize")) return result(cudaSuccess);
  std::this_thread::yield();  // lets other threads go first where no lock forbids it
  {
    const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
    if (stream->capture) {
      stream->invalidated = true;
      return result(cudaErrorStreamCaptureUnsupported);
    }
  }
  emulator::synchronize(stream);
  return result(cudaSuccess);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  if (stream->capture || emulator::captured_here) return result(cudaErrorIllegalState);
  stream->capture = std::make_unique<emulator::Graph>();
  stream->invalidated = false;
  emulator::captured_here = stream;
  return result(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  *graph = nullptr;
  if (!stream->capture) return result(cudaErrorIllegalState);
  if (emulator::captured_here != stream) return result(cudaErrorStreamCaptureWrongThread);
  emulator::captured_here = nullptr;
  const std::unique_ptr<emulator::Graph> captured = std::move(stream->capture);
  if (stream->invalidated || emulator::fails(emulator::CaptureFailure::kInvalidated))
    return result(cudaErrorStreamCaptureInvalidated);
  *graph = new emulator::Graph(*captured);
  return result(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  {
    // It takes device memory, of a size that the runtime does not report.
    const std::lock_guard<std::mutex> lock(emulator::memory_mutex);
    if (emulator::in_use >= emulator::memory_limit) return result(cudaErrorMemoryAllocation);
  }
  if (emulator::fails(emulator::CaptureFailure::kInstantiate)) return result(cudaErrorInvalidValue);
  *executable = new emulator::Graph(*graph);
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  ++emulator::graphs;
  return result(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (emulator::fails(emulator::CaptureFailure::kLaunch)) return result(cudaErrorInvalidValue);
  for (const auto& work : executable->work) emulator::enqueue(stream, work);
  return result(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const std::lock_guard<std::recursive_mutex> lock(emulator::stream_mutex);
  --emulator::graphs;
  delete executable;
  return result(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return result(cudaSuccess);
}
