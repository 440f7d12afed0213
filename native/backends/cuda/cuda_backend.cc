#include "backends/cuda/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/cuda_exchange.h"
#include "backends/cuda/cuda_matrix.h"
#include "backends/cuda/launchers.h"

namespace dultra {
namespace cuda {

namespace {

// Whether the process's context on the device has ended, as it does with any error of a kernel: it answers nothing but
// that error from then on.
cudaError_t error_that_stays() {
  const cudaError_t error = cudaStreamQuery(nullptr);
  cudaGetLastError();  // work that goes on ("not ready") would be that of the next launch
  return error == cudaErrorNotReady ? cudaSuccess : error;
}

}  // namespace

void throw_cuda_error(cudaError_t error, const char* what) {
  const std::string message = std::string("CUDA, ") + what + ": " + cudaGetErrorString(error);
  cudaGetLastError();  // an error that does not stay ends here
  switch (error) {
    case cudaErrorMemoryAllocation: throw Error(ErrorCode::kOutOfMemory, message);
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorECCUncorrectable: throw Error(ErrorCode::kDeviceUnavailable, message);
    default:
      if (error_that_stays() != cudaSuccess)
        throw Error(ErrorCode::kDeviceUnavailable, message + "; this process can use the device no more");
      throw Error(ErrorCode::kInternal, message);
  }
}

void throw_if_lost(const char* what) {
  if (const cudaError_t error = error_that_stays(); error != cudaSuccess) throw_cuda_error(error, what);
}

namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Pieces in which a weight goes to the device: what is converted there needs this much scratch memory and no more.
constexpr size_t kUploadBytes = size_t(64) << 20;
// Uploads up to this size go through pinned memory and are not waited for.
constexpr size_t kSmallUpload = size_t(256) << 10;

}  // namespace

std::vector<DeviceInfo> list_devices() {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0)
    throw Error(ErrorCode::kDeviceUnavailable, "no NVIDIA driver is installed (libcuda.so.1 was not found)");
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver)
    throw Error(ErrorCode::kDeviceUnavailable, "the NVIDIA driver is too old: it supports CUDA " +
                                                   version_text(driver) + ", expected at least CUDA " +
                                                   std::to_string(runtime / 1000) + ".0");
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    throw Error(ErrorCode::kDeviceUnavailable, "there is no CUDA device");
  check_cuda(error, "listing devices");
  std::vector<DeviceInfo> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, i), "listing devices");
    devices.push_back({properties.name, properties.major, properties.minor, properties.multiProcessorCount,
                       properties.totalGlobalMem, std::string(properties.uuid.bytes, sizeof properties.uuid.bytes)});
  }
  return devices;
}

static const char* name_of(const char* function) {
  return std::strncmp(function, "do_", 3) == 0 ? function + 3 : function;
}

ArgTransfer::ArgTransfer(CudaBackend& backend, const Argument* arguments, size_t count, const char* operation)
    : backend_(backend), lock_(backend.mutex_), range_(name_of(operation)) {
  if (!planned_key()) check_cuda(cudaSetDevice(backend.index_), "choosing the device");
  const auto pointer_of = [](const Argument& argument) {
    void* pointer;
    std::memcpy(&pointer, argument.pointer, sizeof pointer);
    return pointer;
  };
  const auto is_staged = [&](const Argument& argument) {
    return argument.bytes > 0 && !backend.on_device(pointer_of(argument));
  };
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i)
    if (is_staged(arguments[i])) bytes += Staging::rounded(arguments[i].bytes);
  if (bytes > 0) backend.refuse_graph(name_of(operation));
  backend.staging_->begin(bytes);
  for (size_t i = 0; i < count; ++i) {
    const Argument& argument = arguments[i];
    void* const pointer = pointer_of(argument);
    const void* device = !is_staged(argument) ? backend.mirror(pointer)
                         : argument.written   ? backend.staging_->output(pointer, argument.bytes)
                                              : backend.staging_->input(pointer, argument.bytes);
    std::memcpy(argument.pointer, &device, sizeof device);
  }
  if (backend.times_) backend.times_->begin(name_of(operation));
}

ArgTransfer::~ArgTransfer() {
  if (backend_.times_) backend_.times_->end();
}

void ArgTransfer::finish() {
  backend_.staging_->finish();
  if (backend_.blocking_) backend_.synchronize();
}

const void* CudaBackend::mirror(const void* pointer) const {
  for (const CudaExchange* exchange : exchanges_)
    if (const void* device = exchange->mirror(pointer)) return device;
  return pointer;
}

bool CudaBackend::on_device(const void* pointer) const {
  if (!pointer || mirror(pointer) != pointer) return true;
  auto after = allocations_.upper_bound(pointer);
  if (after == allocations_.begin()) return false;
  --after;
  return static_cast<const uint8_t*>(pointer) < static_cast<const uint8_t*>(after->first) + after->second;
}

CudaBackend::CudaBackend(int index, Compute compute, bool blocking, int64_t expanded)
    : Backend(compute),
      index_(index),
      blocking_(blocking),
      expanded_numbers_(expanded),
      name_("cuda:" + std::to_string(index)) {
  const std::vector<DeviceInfo> devices = list_devices();
  if (index < 0 || size_t(index) >= devices.size())
    throw Error(
        ErrorCode::kDeviceUnavailable,
        name_ + " does not exist, there " +
            (devices.size() == 1 ? "is 1 CUDA device" : "are " + std::to_string(devices.size()) + " CUDA devices"));
  const DeviceInfo& device = devices[size_t(index)];
  if (device.major < 8)
    throw Error(ErrorCode::kDeviceUnavailable, device.name + " has compute capability " + std::to_string(device.major) +
                                                   "." + std::to_string(device.minor) +
                                                   ", expected at least 8.0 (bf16 tensor cores)");
  id_ = device.id;
  isa_ = device.name + ", sm_" + std::to_string(device.major) + std::to_string(device.minor);
  multiprocessors_ = device.multiprocessors;
  check_cuda(cudaSetDevice(index), "choosing the device");
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  staging_ = std::make_unique<Staging>(stream_);
  if (device.major == 9) {
    // wgmma is of this capability alone. A build without sm_90a has none of it.
    warpgroups_ = warpgroups_work(stream_);
    isa_ += warpgroups_ ? ", wgmma" : ", no wgmma";
  }
  times_ = OperationTimes::open(stream_);
  std::string reason;
  lt_ = CublasLt::open(stream_, &reason);
  isa_ += lt_ ? ", cuBLASLt " + std::to_string(lt_->version()) : ", built-in matrix products: " + reason;
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(index_);
  cudaStreamSynchronize(stream_);
  times_.reset();
  for (const Frequencies& f : frequencies_) cudaFree(f.values);
  cudaFree(scratch_.data);
  cudaFree(expanded_.data);
  staging_.reset();
  lt_.reset();
  for (cudaEvent_t end : ends_) cudaEventDestroy(end);
  if (beside_) {
    cudaEventDestroy(ready_);
    cudaStreamDestroy(beside_);
  }
  cudaStreamDestroy(stream_);
}

bool CudaBackend::host_may_read(const void* pointer) const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return !on_device(pointer);
}

std::unique_ptr<Exchange> CudaBackend::make_exchange() { return std::make_unique<CudaExchange>(*this); }

int64_t CudaBackend::add(const std::function<void(void* queue)>& add) {
  ArgTransfer transfer(*this);
  refuse_graph("work of another library");
  if (!beside_) {
    check_cuda(cudaStreamCreateWithFlags(&beside_, cudaStreamNonBlocking), "creating a stream");
    check_cuda(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming), "creating an event");
  }
  check_cuda(cudaEventRecord(ready_, stream_), "recording an event");
  check_cuda(cudaStreamWaitEvent(beside_, ready_, 0), "ordering two streams");
#ifdef DULTRA_EMULATED
  // What stands in for a library there does not know the emulator's streams, and works at once.
  check_cuda(cudaStreamSynchronize(beside_), "waiting for the device");
#endif
  add(beside_);
  cudaEvent_t end = nullptr;
  check_cuda(cudaEventCreateWithFlags(&end, cudaEventDisableTiming), "creating an event");
  ends_.push_back(end);
  check_cuda(cudaEventRecord(end, beside_), "recording an event");
  return ended_ + int64_t(ends_.size());
}

bool CudaBackend::is_done(int64_t number) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  check_cuda(cudaSetDevice(index_), "choosing the device");
  for (; ended_ < number; ++ended_, ends_.pop_front()) {
    const cudaError_t state = cudaEventQuery(ends_.front());
    if (state == cudaErrorNotReady) return false;
    check_cuda(state, "waiting for the device");
    cudaEventDestroy(ends_.front());
  }
  return true;
}

LaunchKey*& key_of_thread() {
  static thread_local LaunchKey* key = nullptr;
  return key;
}
LaunchKey* planned_key() { return key_of_thread(); }
void set_planned_key(LaunchKey* key) { key_of_thread() = key; }

void CudaBackend::set_capturing(bool on) {
  capturing_ = on;
  if (lt_) lt_->set_capturing(on);
}

void CudaBackend::refuse_graph(const char* operation) const {
  if (capturing_ || planned_key())
    throw Error(ErrorCode::kInternal,
                std::string(operation) +
                    ": cannot be captured: it would allocate, wait, or read memory that is not an exchange's");
}

void CudaBackend::refuse_capture(const char* operation) const {
  if (capturing_) refuse_graph(operation);
}

void CudaBackend::release_deferred() {
  for (void* pointer : deferred_) cudaFree(pointer);
  deferred_.clear();
}

std::vector<std::string> CudaBackend::times() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return times_ ? times_->lines() : std::vector<std::string>();
}

std::vector<std::string> CudaBackend::products() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return lt_ ? lt_->choices() : std::vector<std::string>();
}

void CudaBackend::synchronize() { check_cuda(cudaStreamSynchronize(stream_), "waiting for the device"); }

void* CudaBackend::allocate(size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  check_cuda(cudaSetDevice(index_), "choosing the device");
  refuse_capture("allocate");
  void* pointer = nullptr;
  const cudaError_t error = cudaMalloc(&pointer, std::max<size_t>(1, bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t available = 0, total = 0;
    cudaMemGetInfo(&available, &total);
    throw Error(ErrorCode::kOutOfMemory, name_ + ": " + std::to_string(bytes >> 20) + " MiB could not be allocated (" +
                                             std::to_string(available >> 20) + " of " + std::to_string(total >> 20) +
                                             " MiB are free)");
  }
  check_cuda(error, "allocating memory");
  allocations_[pointer] = std::max<size_t>(1, bytes);
  return pointer;
}

void CudaBackend::release(void* pointer) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  cudaSetDevice(index_);
  allocations_.erase(pointer);
  if (capturing_ || planned_key())
    deferred_.push_back(pointer);
  else
    cudaFree(pointer);
}

void* CudaBackend::scratch(ScratchMemory& memory, size_t bytes) {
  if (LaunchKey* key = planned_key()) {
    // The same address for every plan, aligned as any memory is and never read: graphs end when the memory moves.
    key->add('s', bytes);
    return reinterpret_cast<void*>(uintptr_t(&memory == &scratch_ ? 1 : 2) << 20);
  }
  if (bytes > memory.bytes) {
    refuse_capture("an operation that needs more scratch memory");
    ++scratch_moves_;  // graphs work on the old one
    synchronize();
    cudaFree(memory.data);
    memory = {};
    check_cuda(cudaMalloc(&memory.data, bytes), "allocating scratch memory");
    memory.bytes = bytes;
  }
  return memory.data;
}

void CudaBackend::upload(void* to, const void* from_host, size_t bytes) {
  if (bytes == 0) return;
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const bool staged = bytes <= kSmallUpload || on_device(from_host);
  if (!staged) refuse_graph("upload");
  const auto* from = static_cast<const uint8_t*>(from_host);
  ArgTransfer transfer(*this, {in(from, staged ? int64_t(bytes) : 0)});
  copy_bytes("copying to the device", stream_, to, from, bytes);
  if (!staged) synchronize();
  transfer.finish();
}

void CudaBackend::download(void* to_host, const void* from, size_t bytes) {
  if (bytes == 0) return;
  ArgTransfer transfer(*this);
  refuse_graph("download");
  check_cuda(cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDefault, stream_), "copying from the device");
  synchronize();
}

// ---- matrix products ----------------------------------------------------------------------------

void CudaBackend::store_part(void* to, DType storage, const MatrixPart& part, int64_t cols) {
  ArgTransfer transfer(*this);
  refuse_graph("make_matrix");
  const int64_t n = part.rows * cols;
  if (part.dtype == storage) {
    check_cuda(cudaMemcpyAsync(to, part.data, size_t(n) * dtype_size(storage), cudaMemcpyDefault, stream_),
               "copying a weight");
  } else if (on_device(part.data)) {
    convert(to, storage, part.data, part.dtype, n, stream_);
  } else {
    const size_t from_size = dtype_size(part.dtype), to_size = dtype_size(storage);
    const int64_t piece = int64_t(kUploadBytes / from_size);
    for (int64_t i = 0; i < n; i += piece) {
      const int64_t count = std::min(piece, n - i);
      void* raw = scratch(size_t(count) * from_size);
      check_cuda(cudaMemcpyAsync(raw, static_cast<const uint8_t*>(part.data) + size_t(i) * from_size,
                                 size_t(count) * from_size, cudaMemcpyDefault, stream_),
                 "copying a weight");
      convert(static_cast<uint8_t*>(to) + size_t(i) * to_size, storage, raw, part.dtype, count, stream_);
    }
  }
  synchronize();  // the host's memory may go
}

std::unique_ptr<Matrix> CudaBackend::do_make_matrix(const std::vector<MatrixPart>& parts, int64_t cols, DType storage) {
  return do_make_expert_matrix(parts, cols, storage, 1);
}

std::unique_ptr<Matrix> CudaBackend::do_make_expert_matrix(const std::vector<MatrixPart>& parts, int64_t cols,
                                                           DType storage, int experts) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  int64_t rows = 0;
  for (const MatrixPart& part : parts) rows += part.rows;
  auto matrix = std::make_unique<CudaMatrix>(*this, rows, cols, storage, experts);
  do_update_matrix(*matrix, parts);
  return matrix;
}

void CudaBackend::do_update_matrix(Matrix& matrix, const std::vector<MatrixPart>& parts) {
  auto& to = static_cast<CudaMatrix&>(matrix);
  int64_t row = 0;
  for (const MatrixPart& part : parts) {
    store_part(to.row(row), to.storage, part, to.cols());
    row += part.rows;
  }
}

void CudaBackend::do_fill_zero(float* x, int64_t n) {
  if (n <= 0) return;
  ArgTransfer transfer(*this);
  zero_bytes("clearing memory", stream_, x, size_t(n) * sizeof(float));
  transfer.finish();
}

void CudaBackend::do_copy(float* to, const float* from, int64_t n) {
  if (n <= 0) return;
  ArgTransfer transfer(*this);
  copy_bytes("copying memory", stream_, to, from, size_t(n) * sizeof(float));
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
