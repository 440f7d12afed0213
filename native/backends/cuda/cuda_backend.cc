#include "backends/cuda/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cuda/cuda_exchange.h"
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

void throw_cuda_error(cudaError_t error, const char* what) {
  const std::string message = std::string("CUDA, ") + what + ": " + cudaGetErrorString(error);
  cudaGetLastError();  // an error that is not sticky ends here
  switch (error) {
    case cudaErrorMemoryAllocation: throw Error(ErrorCode::kOutOfMemory, message);
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorLaunchFailure: throw Error(ErrorCode::kDeviceUnavailable, message);
    default: throw Error(ErrorCode::kInternal, message);
  }
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
    devices.push_back({properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  return devices;
}

// A weight matrix (rows, cols), row-major.
class CudaMatrix final : public Matrix {
 public:
  CudaMatrix(CudaBackend& backend, int64_t rows, int64_t cols, DType type)
      : Matrix(rows, cols), storage(type), backend_(backend), data_(backend.allocate(bytes())) {}
  ~CudaMatrix() override { backend_.release(data_); }
  size_t bytes() const override { return size_t(rows() * cols()) * dtype_size(storage); }
  void unpack(float* to, int64_t first, int64_t count) const override {
    check_argument(first >= 0 && count >= 0 && first + count <= rows(), "unpack: expected rows of the matrix");
    const size_t n = size_t(count * cols()), size = dtype_size(storage);
    std::vector<uint8_t> stored(n * size);
    backend_.download(stored.data(), row(first), stored.size());
    for (size_t i = 0; i < n; ++i) to[i] = load_as_f32(stored.data(), storage, i);
  }
  uint16_t* bf16_rows() override { return storage == DType::kBF16 ? static_cast<uint16_t*>(data_) : nullptr; }
  void* row(int64_t first) const { return static_cast<uint8_t*>(data_) + size_t(first * cols()) * dtype_size(storage); }

  const DType storage;

 private:
  CudaBackend& backend_;
  void* data_;
};

// One operation: holds the lock, brings host arrays to the device and results back. Arrays are announced, and only then
// taken, because the ring must not turn round within an operation. What lies in an exchange is replaced by its twin,
// and takes no way.
class CudaBackend::Call {
 public:
  explicit Call(CudaBackend& backend, const char* operation = __builtin_FUNCTION())
      : backend_(backend), operation_(operation), lock_(backend.mutex_) {
    check_cuda(cudaSetDevice(backend.index_), "choosing the device");
  }

  // Adds to what the operation will stage; an array in device memory or in an exchange takes nothing.
  template <class T>
  Call& need(const T* array, int64_t n) {
    if (n > 0 && !on_device(array)) bytes_ += Staging::rounded(size_t(n) * sizeof(T));
    return *this;
  }
  void begin() {
    if (bytes_ > 0) backend_.refuse_recording(operation_);
    backend_.staging_->begin(bytes_);
  }
  template <class T>
  const T* in(const T* array, int64_t n) {
    if (n == 0 || on_device(array)) return at(array);
    return static_cast<const T*>(backend_.staging_->input(array, size_t(n) * sizeof(T)));
  }
  template <class T>
  T* out(T* array, int64_t n) {
    if (n == 0 || on_device(array)) return at(array);
    return static_cast<T*>(backend_.staging_->output(array, size_t(n) * sizeof(T)));
  }
  // The twin of an address in an exchange; any other stays as it is.
  template <class T>
  T* at(T* pointer) const {
    for (const CudaExchange* exchange : backend_.exchanges_)
      if (const void* twin = exchange->twin(pointer)) return static_cast<T*>(const_cast<void*>(twin));
    return pointer;
  }
  // One array alone.
  template <class T>
  const T* only(const T* array, int64_t n) {
    need(array, n).begin();
    return in(array, n);
  }
  void finish() {
    backend_.staging_->finish();
    if (backend_.blocking_) backend_.synchronize();
  }

  // Null and what has a twin count as device memory: nothing is to be brought there.
  bool on_device(const void* pointer) const {
    auto after = backend_.allocations_.upper_bound(pointer);
    if (!pointer || at(pointer) != pointer) return true;
    if (after == backend_.allocations_.begin()) return false;
    --after;
    return static_cast<const uint8_t*>(pointer) < static_cast<const uint8_t*>(after->first) + after->second;
  }

 private:
  CudaBackend& backend_;
  const char* operation_;
  const std::lock_guard<std::recursive_mutex> lock_;
  size_t bytes_ = 0;
};

CudaBackend::CudaBackend(int index, Compute compute, bool blocking)
    : Backend(compute), index_(index), blocking_(blocking), name_("cuda:" + std::to_string(index)) {
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
  isa_ = device.name + ", sm_" + std::to_string(device.major) + std::to_string(device.minor);
  check_cuda(cudaSetDevice(index), "choosing the device");
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  staging_ = std::make_unique<Staging>(stream_);
  if (device.major == 9) {
    // wgmma is of this capability alone. A build without sm_90a has none of it.
    warpgroups_ = warpgroups_work(stream_);
    isa_ += warpgroups_ ? ", wgmma" : ", no wgmma";
  }
  std::string reason;
  lt_ = CublasLt::open(stream_, &reason);
  isa_ += lt_ ? ", cuBLASLt " + std::to_string(lt_->version()) : ", built-in matrix products: " + reason;
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(index_);
  cudaStreamSynchronize(stream_);
  for (const Frequencies& f : frequencies_) cudaFree(f.values);
  cudaFree(scratch_);
  staging_.reset();
  lt_.reset();
  cudaStreamDestroy(stream_);
}

bool CudaBackend::host_may_read(const void* pointer) const {
  return !Call(const_cast<CudaBackend&>(*this)).on_device(pointer);
}

std::unique_ptr<Exchange> CudaBackend::make_exchange() { return std::make_unique<CudaExchange>(*this); }

void CudaBackend::set_recording(bool on) {
  recording_ = on;
  if (lt_) lt_->set_recording(on);
}

void CudaBackend::refuse_recording(const char* operation) const {
  if (recording_)
    throw Error(
        ErrorCode::kInternal,
        std::string(operation) + ": cannot be recorded: it would allocate, wait, or read memory that is no exchange's");
}

void CudaBackend::release_held() {
  for (void* pointer : held_) cudaFree(pointer);
  held_.clear();
}

uint64_t CudaBackend::plans() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return lt_ ? lt_->times_cleared() : 0;
}

void CudaBackend::synchronize() { check_cuda(cudaStreamSynchronize(stream_), "waiting for the device"); }

void* CudaBackend::allocate(size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  check_cuda(cudaSetDevice(index_), "choosing the device");
  refuse_recording("allocate");
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
  if (recording_)
    held_.push_back(pointer);
  else
    cudaFree(pointer);
}

// Memory of the kernels of one operation: operations follow each other on the stream, so they share it.
void* CudaBackend::scratch(size_t bytes) {
  if (bytes > scratch_bytes_) {
    refuse_recording("an operation that needs more scratch memory");
    ++scratch_moves_;  // recordings work on the old one
    synchronize();
    cudaFree(scratch_);
    scratch_ = nullptr;
    scratch_bytes_ = 0;
    check_cuda(cudaMalloc(&scratch_, bytes), "allocating scratch memory");
    scratch_bytes_ = bytes;
  }
  return scratch_;
}

void CudaBackend::upload(void* to, const void* from_host, size_t bytes) {
  if (bytes == 0) return;
  Call call(*this);
  const void* from = call.at(from_host);
  const bool small = bytes <= kSmallUpload || from != from_host;
  if (small)
    from = call.only(static_cast<const uint8_t*>(from_host), int64_t(bytes));
  else
    refuse_recording("upload");
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copying to the device");
  if (!small) synchronize();
  call.finish();
}

void CudaBackend::download(void* to_host, const void* from, size_t bytes) {
  if (bytes == 0) return;
  Call call(*this);
  refuse_recording("download");
  check_cuda(cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDefault, stream_), "copying from the device");
  synchronize();
}

// ---- matrix products ----------------------------------------------------------------------------

void CudaBackend::store_part(void* to, DType storage, const MatrixPart& part, int64_t cols) {
  Call call(*this);
  refuse_recording("make_matrix");
  const int64_t n = part.rows * cols;
  if (part.dtype == storage) {
    check_cuda(cudaMemcpyAsync(to, part.data, size_t(n) * dtype_size(storage), cudaMemcpyDefault, stream_),
               "copying a weight");
  } else if (call.on_device(part.data)) {
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
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  int64_t rows = 0;
  for (const MatrixPart& part : parts) rows += part.rows;
  auto matrix = std::make_unique<CudaMatrix>(*this, rows, cols, storage);
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

void CudaBackend::multiply(Array out, int64_t out_stride, const Operand& a, const Operand& b, int64_t m, int64_t n,
                           int64_t k, const float* bias, bool accumulate, Compute compute) {
  if (m == 0 || n == 0) return;
  if (compute == Compute::kBF16 && lt_ && k > 0) {
    // Operands in bf16; what is not is packed, lines without gaps. A bias is of the result's type.
    const auto lines = [](const Operand& x, int64_t rows, int64_t depth) { return x.transposed ? depth : rows; };
    const auto width = [](const Operand& x, int64_t rows, int64_t depth) { return x.transposed ? rows : depth; };
    const auto bytes = [](const Operand& x, int64_t rows, int64_t depth) {
      return x.dtype == DType::kBF16 ? size_t(0) : Staging::rounded(size_t(rows * depth) * sizeof(uint16_t));
    };
    const size_t a_bytes = bytes(a, m, k);
    const size_t b_bytes = bytes(b, n, k);
    const bool narrow_bias = bias && out.dtype == DType::kBF16;
    auto* packed = static_cast<uint8_t*>(scratch(a_bytes + b_bytes + (narrow_bias ? size_t(n) * sizeof(uint16_t) : 0)));
    const auto pack = [&](const Operand& x, int64_t rows, void* to) -> CublasLt::Operand {
      if (x.dtype == DType::kBF16) return {x.data, x.stride, x.transposed};
      copy_rows(static_cast<uint16_t*>(to), width(x, rows, k), {x.data, x.dtype}, x.stride, lines(x, rows, k),
                width(x, rows, k), stream_);
      return {to, width(x, rows, k), x.transposed};
    };
    const void* lt_bias = bias;
    if (narrow_bias) {
      uint16_t* rounded = reinterpret_cast<uint16_t*>(packed + a_bytes + b_bytes);
      copy_rows(rounded, n, bias, n, 1, n, stream_);
      lt_bias = rounded;
    }
    if (lt_->multiply(out, out_stride, pack(a, m, packed), pack(b, n, packed + a_bytes), m, n, k, lt_bias, accumulate))
      return;
  }
  matmul(out, out_stride, a, b, m, n, k, bias, accumulate, compute, stream_);
}

void CudaBackend::do_linear_forward(Array out, int64_t out_stride, ConstArray x, int64_t m, const Matrix& w,
                                    const float* bias, bool accumulate) {
  Call call(*this);
  const auto& matrix = static_cast<const CudaMatrix&>(w);
  const int64_t k = w.cols();
  multiply(out, out_stride, {x.data, x.dtype, k, false}, {matrix.row(0), matrix.storage, k, false}, m, w.rows(), k,
           bias, accumulate, compute());
  call.finish();
}

void CudaBackend::do_linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, ConstArray w, int64_t m,
                                           int64_t n, int64_t k, bool accumulate) {
  Call call(*this);
  multiply(dx, k, {dy.data, dy.dtype, dy_stride, false}, {w.data, w.dtype, k, true}, m, k, n, nullptr, accumulate,
           compute());
  call.finish();
}

void CudaBackend::do_linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, const Matrix& w,
                                           int64_t first_row, int64_t rows, int64_t m, bool accumulate) {
  const auto& matrix = static_cast<const CudaMatrix&>(w);
  do_linear_backward_input(dx, dy, dy_stride, ConstArray(matrix.row(first_row), matrix.storage), m, rows, w.cols(),
                           accumulate);
}

void CudaBackend::do_linear_backward_weight(float* dw, float* db, ConstArray dy, int64_t dy_stride, ConstArray x,
                                            int64_t m, int64_t n, int64_t k) {
  Call call(*this);
  if (m == 0) return;
  multiply(dw, k, {dy.data, dy.dtype, dy_stride, true}, {x.data, x.dtype, k, true}, n, k, m, nullptr, true, compute());
  if (db) add_column_sums(db, dy, dy_stride, m, n, scratch(norm_backward_scratch(m, n)), stream_);
  call.finish();
}

// ---- rows ---------------------------------------------------------------------------------------

void CudaBackend::do_embedding_forward(float* out, const void* table, DType dtype, const int32_t* ids, int64_t m,
                                       int64_t c) {
  Call call(*this);
  cuda::gather_rows(out, {table, dtype}, call.only(ids, m), m, c, stream_);
  call.finish();
}

void CudaBackend::do_gather_rows(Array out, ConstArray x, const int32_t* index, int64_t m, int64_t c) {
  Call call(*this);
  cuda::gather_rows(out, x, call.only(index, m), m, c, stream_);
  call.finish();
}

void CudaBackend::do_store_rows(void* to, DType dtype, ConstArray from, const int32_t* index, int64_t m, int64_t c) {
  Call call(*this);
  cuda::store_rows({to, dtype}, from, call.only(index, m), m, c, stream_);
  call.finish();
}

void CudaBackend::do_rmsnorm_forward(Array out, const float* x, const float* weight, int64_t m, int64_t c, float eps) {
  Call call(*this);
  cuda::rmsnorm_forward(out, x, weight, m, c, eps, stream_);
  call.finish();
}

void CudaBackend::do_rmsnorm_copy_forward(Array out, float* copied, const float* x, const int32_t* index,
                                          const float* weight, int64_t m, int64_t c, float eps) {
  Call call(*this);
  cuda::rmsnorm_copy_forward(out, copied, x, call.only(index, m), weight, m, c, eps, stream_);
  call.finish();
}

void CudaBackend::do_layernorm_forward(float* out, const float* x, const float* mul, const float* add,
                                       const int32_t* group, int64_t m, int64_t c, float eps) {
  Call call(*this);
  cuda::layernorm_forward(out, x, mul, add, call.only(group, m), m, c, eps, stream_);
  call.finish();
}

void CudaBackend::do_planner_score_forward(float* logit, const float* x, const float* mul, const float* add,
                                           const int32_t* group, const float* weight, float bias, int64_t m, int64_t c,
                                           float eps) {
  Call call(*this);
  call.need(logit, m).need(group, m).begin();
  group = call.in(group, m);
  cuda::planner_score_forward(call.out(logit, m), x, mul, add, group, weight, bias, m, c, eps, stream_);
  call.finish();
}

const float* CudaBackend::inverse_frequencies(int head_dim, float theta) {
  for (const Frequencies& f : frequencies_)
    if (f.head_dim == head_dim && f.theta == theta) return f.values;
  refuse_recording("rope_forward");
  // As the CPU backend computes them: rounded to fp32 at every operation.
  std::vector<float> host(size_t(head_dim / 2));
  for (size_t j = 0; j < host.size(); ++j) host[j] = 1.0f / std::pow(theta, float(2 * j) / float(head_dim));
  Frequencies made{head_dim, theta, nullptr};
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&made.values), host.size() * sizeof(float)), "allocating memory");
  frequencies_.push_back(made);
  check_cuda(cudaMemcpyAsync(made.values, host.data(), host.size() * sizeof(float), cudaMemcpyDefault, stream_),
             "copying to the device");
  synchronize();
  return made.values;
}

void CudaBackend::rotate(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                         float theta, float direction) {
  Call call(*this);
  const float* frequencies = inverse_frequencies(head_dim, theta);
  rope(x, stride, call.only(positions, m), m, heads, head_dim, frequencies, direction, stream_);
  call.finish();
}

void CudaBackend::do_rope_store_forward(Array to, const int32_t* index, Array kv, const int32_t* positions, int64_t m,
                                        int kv_heads, int head_dim, float theta) {
  Call call(*this);
  const float* frequencies = inverse_frequencies(head_dim, theta);
  call.need(positions, m).need(index, m).begin();
  positions = call.in(positions, m);
  rope_store(to, call.in(index, m), kv, positions, m, kv_heads, head_dim, frequencies, stream_);
  call.finish();
}

void CudaBackend::do_rope_forward(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                                  float theta) {
  rotate(x, stride, positions, m, heads, head_dim, theta, 1);
}

void CudaBackend::do_rope_backward(Array dx, int64_t stride, const int32_t* positions, int64_t m, int heads,
                                   int head_dim, float theta) {
  rotate(dx, stride, positions, m, heads, head_dim, theta, -1);
}

void CudaBackend::do_swiglu_forward(Array out, ConstArray gate_up, int64_t m, int64_t f) {
  Call call(*this);
  cuda::swiglu_forward(out, gate_up, m, f, stream_);
  call.finish();
}

void CudaBackend::do_silu_forward(float* x, int64_t n) {
  Call call(*this);
  cuda::silu_forward(x, n, stream_);
  call.finish();
}

void CudaBackend::do_embedding_backward(float* dtable, const int32_t* ids, const float* dout, int64_t m, int64_t c) {
  do_scatter_add_rows(dtable, dout, ids, m, c);
}

void CudaBackend::do_scatter_add_rows(float* x, const float* from, const int32_t* index, int64_t m, int64_t c) {
  Call call(*this);
  cuda::scatter_add_rows(x, from, call.only(index, m), m, c, stream_);
  call.finish();
}

void CudaBackend::do_rmsnorm_backward(float* dx, float* dweight, const float* dout, const float* x, const float* weight,
                                      int64_t m, int64_t c, float eps) {
  Call call(*this);
  cuda::rmsnorm_backward(dx, dweight, dout, x, weight, m, c, eps, scratch(norm_backward_scratch(m, c)), stream_);
  call.finish();
}

void CudaBackend::do_layernorm_backward(float* dx, float* dmul, float* dadd, const float* dout, const float* x,
                                        const float* mul, const int32_t* group, int64_t m, int64_t c, float eps) {
  Call call(*this);
  cuda::layernorm_backward(dx, dmul, dadd, dout, x, mul, call.only(group, m), m, c, eps,
                           scratch(norm_backward_scratch(m, c)), stream_);
  call.finish();
}

void CudaBackend::do_swiglu_backward(Array dgate_up, ConstArray dout, ConstArray gate_up, int64_t m, int64_t f) {
  Call call(*this);
  cuda::swiglu_backward(dgate_up, dout, gate_up, m, f, stream_);
  call.finish();
}

void CudaBackend::do_silu_backward(float* dx, const float* dout, const float* x, int64_t n) {
  Call call(*this);
  cuda::silu_backward(dx, dout, x, n, stream_);
  call.finish();
}

void CudaBackend::do_planner_score_backward(float* dx, float* dmul, float* dadd, float* dweight, float* dbias,
                                            const float* dlogit, const float* x, const float* mul, const float* add,
                                            const int32_t* group, const float* weight, int64_t m, int64_t c,
                                            float eps) {
  Call call(*this);
  cuda::planner_score_backward(dx, dmul, dadd, dweight, dbias, dlogit, x, mul, add, call.only(group, m), weight, m, c,
                               eps, scratch(norm_backward_scratch(m, c)), stream_);
  call.finish();
}

void CudaBackend::do_log_prob_backward(float* logits, const int32_t* tokens, const float* dlog_prob, int64_t m,
                                       int64_t vocab, float temperature, int32_t excluded_token) {
  Call call(*this);
  call.need(tokens, m).need(dlog_prob, m).begin();
  tokens = call.in(tokens, m);
  dlog_prob = call.in(dlog_prob, m);
  cuda::log_prob_backward(logits, tokens, dlog_prob, m, vocab, temperature, excluded_token, stream_);
  call.finish();
}

// ---- attention, sampling, unmasking -------------------------------------------------------------

namespace {

AttentionSizes sizes_of(const AttentionArgs& a) {
  AttentionSizes sizes{a.batch ? a.q_offsets[a.batch] : 0, a.batch ? a.k_offsets[a.batch] : 0, 0, 0, 0};
  for (int b = 0; b < a.batch; ++b) {
    sizes.max_queries = std::max(sizes.max_queries, a.q_offsets[b + 1] - a.q_offsets[b]);
    sizes.max_keys = std::max(sizes.max_keys, a.k_offsets[b + 1] - a.k_offsets[b]);
    sizes.sequences += a.q_offsets[b + 1] > a.q_offsets[b];
  }
  sizes.max_queries = std::max(sizes.max_queries, a.max_queries);
  return sizes;
}

}  // namespace

void CudaBackend::do_attention_forward(const AttentionArgs& args) {
  const AttentionSizes sizes = sizes_of(args);
  Call call(*this);
  AttentionArgs a = args;
  const int64_t b = a.batch;
  call.need(a.q_offsets, b + 1)
      .need(a.k_offsets, b + 1)
      .need(a.q_positions, sizes.queries)
      .need(a.key_begin, b)
      .need(a.key_end, b)
      .begin();
  a.q_offsets = call.in(a.q_offsets, b + 1);
  a.k_offsets = call.in(a.k_offsets, b + 1);
  a.q_positions = call.in(a.q_positions, sizes.queries);
  a.key_begin = call.in(a.key_begin, b);
  a.key_end = call.in(a.key_end, b);
  cuda::attention_forward(a, sizes, compute(), warpgroups_, scratch(attention_scratch(a, sizes, compute())), stream_);
  call.finish();
}

void CudaBackend::do_attention_backward(const AttentionGradArgs& args) {
  const AttentionSizes sizes = sizes_of(args.forward);
  Call call(*this);
  AttentionGradArgs grad = args;
  AttentionArgs& a = grad.forward;
  const int64_t b = a.batch;
  call.need(a.q_offsets, b + 1)
      .need(a.k_offsets, b + 1)
      .need(a.q_positions, sizes.queries)
      .need(a.key_begin, b)
      .need(a.key_end, b)
      .begin();
  a.q_offsets = call.in(a.q_offsets, b + 1);
  a.k_offsets = call.in(a.k_offsets, b + 1);
  a.q_positions = call.in(a.q_positions, sizes.queries);
  a.key_begin = call.in(a.key_begin, b);
  a.key_end = call.in(a.key_end, b);
  cuda::attention_backward(grad, sizes, compute(), warpgroups_,
                           scratch(attention_backward_scratch(grad, sizes, compute())), stream_);
  call.finish();
}

void CudaBackend::do_sample_forward(const SampleArgs& args) {
  Call call(*this);
  SampleArgs a = args;
  const int64_t m = a.rows;
  call.need(a.at, m).need(a.uniforms, m * a.vocab).need(a.given, m);
  call.need(a.token, m)
      .need(a.log_prob, m)
      .need(a.confidence, m)
      .need(a.max_prob, m)
      .need(a.entropy, m)
      .need(a.finite, m)
      .begin();
  a.at = call.in(a.at, m);
  a.uniforms = call.in(a.uniforms, m * a.vocab);
  a.given = call.in(a.given, m);
  a.token = call.out(a.token, m);
  a.log_prob = call.out(a.log_prob, m);
  a.confidence = call.out(a.confidence, m);
  a.max_prob = call.out(a.max_prob, m);
  a.entropy = call.out(a.entropy, m);
  a.finite = call.out(a.finite, m);
  cuda::sample_forward(a, scratch(sampling_scratch(m, a.vocab)), stream_);
  call.finish();
}

void CudaBackend::do_unmask(const UnmaskArgs& args) {
  if (args.batch == 0) return;
  Call call(*this);
  UnmaskArgs a = args;
  const int64_t b = a.batch, m = a.offsets[b];
  call.need(a.offsets, b + 1)
      .need(a.at, m)
      .need(a.uniforms, m)
      .need(a.planner_logit, m)
      .need(a.confidence, m)
      .need(a.entropy, m);
  call.need(a.token_log_prob, m).need(a.forbidden, m).need(a.count, b);
  call.need(a.selected, m).need(a.forced, b).need(a.probability, m).need(a.log_likelihood, m).begin();
  a.token = call.at(a.token);
  a.place = call.at(a.place);
  a.ids = call.at(a.ids);
  a.remaining = call.at(a.remaining);
  a.offsets = call.in(a.offsets, b + 1);
  a.at = call.in(a.at, m);
  a.uniforms = call.in(a.uniforms, m);
  a.planner_logit = call.in(a.planner_logit, m);
  a.confidence = call.in(a.confidence, m);
  a.entropy = call.in(a.entropy, m);
  a.token_log_prob = call.in(a.token_log_prob, m);
  a.forbidden = call.in(a.forbidden, m);
  a.count = call.in(a.count, b);
  a.selected = call.out(a.selected, m);
  a.forced = call.out(a.forced, b);
  a.probability = call.out(a.probability, m);
  a.log_likelihood = call.out(a.log_likelihood, m);
  cuda::unmask(a, m, scratch(unmask_scratch(m)), stream_);
  call.finish();
}

void CudaBackend::do_likelihood_forward(const LikelihoodArgs& args) {
  if (args.batch == 0) return;
  Call call(*this);
  LikelihoodArgs a = args;
  const int64_t b = a.batch, m = a.offsets[b];
  call.need(a.offsets, b + 1)
      .need(a.planner_logit, m)
      .need(a.token_log_prob, m)
      .need(a.forbidden, m)
      .need(a.selected, m)
      .need(a.forced, b);
  call.need(a.log_likelihood, m).begin();
  a.offsets = call.in(a.offsets, b + 1);
  a.planner_logit = call.in(a.planner_logit, m);
  a.token_log_prob = call.in(a.token_log_prob, m);
  a.forbidden = call.in(a.forbidden, m);
  a.selected = call.in(a.selected, m);
  a.forced = call.in(a.forced, b);
  a.log_likelihood = call.out(a.log_likelihood, m);
  cuda::likelihood_forward(a, stream_);
  call.finish();
}

void CudaBackend::do_likelihood_backward(const LikelihoodGradArgs& args) {
  if (args.forward.batch == 0) return;
  Call call(*this);
  LikelihoodGradArgs grad = args;
  LikelihoodArgs& a = grad.forward;
  const int64_t b = a.batch, m = a.offsets[b];
  call.need(a.offsets, b + 1)
      .need(a.planner_logit, m)
      .need(a.token_log_prob, m)
      .need(a.forbidden, m)
      .need(a.selected, m)
      .need(a.forced, b);
  call.need(grad.dlog_likelihood, m).need(grad.dplanner_logit, m).need(grad.dtoken_log_prob, m).begin();
  a.offsets = call.in(a.offsets, b + 1);
  a.planner_logit = call.in(a.planner_logit, m);
  a.token_log_prob = call.in(a.token_log_prob, m);
  a.forbidden = call.in(a.forbidden, m);
  a.selected = call.in(a.selected, m);
  a.forced = call.in(a.forced, b);
  grad.dlog_likelihood = call.in(grad.dlog_likelihood, m);
  grad.dplanner_logit = call.out(grad.dplanner_logit, m);
  grad.dtoken_log_prob = call.out(grad.dtoken_log_prob, m);
  cuda::likelihood_backward(grad, stream_);
  call.finish();
}

// ---- optimiser ----------------------------------------------------------------------------------

double CudaBackend::do_sum_squares(const float* x, int64_t n) {
  Call call(*this);
  double result = 0;
  call.need(&result, 1).begin();
  cuda::sum_squares(call.out(&result, 1), x, n, scratch(sum_squares_scratch(n)), stream_);
  call.finish();
  return result;
}

void CudaBackend::do_adamw_step(const AdamWArgs& args) {
  Call call(*this);
  cuda::adamw_step(args, stream_);
  call.finish();
}

void CudaBackend::do_fill_zero(float* x, int64_t n) {
  if (n <= 0) return;
  Call call(*this);
  check_cuda(cudaMemsetAsync(x, 0, size_t(n) * sizeof(float), stream_), "clearing memory");
  call.finish();
}

void CudaBackend::do_copy(float* to, const float* from, int64_t n) {
  if (n <= 0) return;
  Call call(*this);
  check_cuda(cudaMemcpyAsync(to, from, size_t(n) * sizeof(float), cudaMemcpyDefault, stream_), "copying memory");
  call.finish();
}

}  // namespace cuda
}  // namespace dultra
