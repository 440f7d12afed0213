#include "model/checkpoint.h"

#include <cerrno>
#include <cstring>

#include "ops/check.h"

#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace dultra {

#ifdef _WIN32
MappedFile::MappedFile(const std::string& path) : path_(path) {
  std::wstring wide(size_t(MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, nullptr, 0)), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, wide.data(), int(wide.size()));
  HANDLE file = CreateFileW(wide.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE)
    throw Error(ErrorCode::kBadCheckpoint, path + ": cannot be opened (Windows error " + std::to_string(GetLastError()) + ")");
  LARGE_INTEGER size;
  const bool sized = GetFileSizeEx(file, &size) && size.QuadPart > 0;
  HANDLE mapping = sized ? CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr) : nullptr;
  void* view = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0) : nullptr;
  if (mapping) CloseHandle(mapping);
  CloseHandle(file);
  if (!view) throw Error(ErrorCode::kBadCheckpoint, path + ": cannot be mapped");
  data_ = static_cast<const uint8_t*>(view);
  size_ = uint64_t(size.QuadPart);
}
MappedFile::~MappedFile() { UnmapViewOfFile(data_); }
void MappedFile::forget(uint64_t, uint64_t) const {}
#else
MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw Error(ErrorCode::kBadCheckpoint, path + ": " + std::strerror(errno));
  struct stat info;
  void* view = MAP_FAILED;
  if (fstat(fd, &info) == 0 && info.st_size > 0) view = mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (view == MAP_FAILED) throw Error(ErrorCode::kBadCheckpoint, path + ": cannot be mapped (empty, or not a regular file)");
  data_ = static_cast<const uint8_t*>(view);
  size_ = uint64_t(info.st_size);
}
MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(data_), size_t(size_)); }
void MappedFile::forget(uint64_t begin, uint64_t end) const {
  // Whole pages inside the range only: a neighbour's bytes on the edge pages stay.
  const uint64_t page = uint64_t(sysconf(_SC_PAGESIZE));
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  if (begin < end) madvise(const_cast<uint8_t*>(data_) + begin, size_t(end - begin), MADV_DONTNEED);
}
#endif

Checkpoint::Checkpoint(const std::vector<std::string>& files, std::vector<TensorRef> tensors) : tensors_(std::move(tensors)) {
  for (const auto& file : files) files_.push_back(std::make_unique<MappedFile>(file));
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorRef& t = tensors_[i];
    if (t.file < 0 || size_t(t.file) >= files_.size()) throw Error(ErrorCode::kBadCheckpoint, t.name + ": file index out of range");
    uint64_t bytes = dtype_size(t.dtype);
    const uint64_t size = files_[size_t(t.file)]->size();
    for (int64_t n : t.shape) {
      if (n < 0 || (n > 0 && bytes > size / uint64_t(n))) throw Error(ErrorCode::kBadCheckpoint, t.name + ": larger than its file");
      bytes *= uint64_t(n);
    }
    if (t.begin > t.end || t.end > size || t.end - t.begin != bytes)
      throw Error(ErrorCode::kBadCheckpoint,
                  files_[size_t(t.file)]->path() + ": tensor " + t.name + " ends beyond the file or does not fill its range");
    index_[t.name] = i;
  }
}

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Index of the first NaN or infinity, or -1. Unaligned data is allowed (safetensors promises no alignment). An all-ones exponent is
// the only non-finite pattern in all three formats.
template <typename Bits>
int64_t first_non_finite(const uint8_t* data, int64_t n, Bits exponent_mask) {
  constexpr int64_t kChunk = 4096;
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t stop = start + kChunk < n ? start + kChunk : n;
    int found = 0;
    for (int64_t i = start; i < stop; ++i) {
      Bits bits;
      std::memcpy(&bits, data + size_t(i) * sizeof(Bits), sizeof(Bits));
      found |= (bits & exponent_mask) == exponent_mask;
    }
    if (!found) continue;
    for (int64_t i = start; i < stop; ++i) {
      Bits bits;
      std::memcpy(&bits, data + size_t(i) * sizeof(Bits), sizeof(Bits));
      if ((bits & exponent_mask) == exponent_mask) return i;
    }
  }
  return -1;
}

}  // namespace

Checkpoint::Tensor Checkpoint::get(const std::string& name, const std::vector<int64_t>& shape) const {
  const auto found = index_.find(name);
  if (found == index_.end()) throw Error(ErrorCode::kBadCheckpoint, "tensor " + name + " is missing");
  const TensorRef& ref = tensors_[found->second];
  const MappedFile& file = *files_[size_t(ref.file)];
  if (ref.shape != shape)
    throw Error(ErrorCode::kBadCheckpoint,
                file.path() + ": tensor " + name + ": expected shape " + shape_text(shape) + ", got " + shape_text(ref.shape));
  Tensor tensor{&ref, file.data() + ref.begin, 1};
  for (int64_t n : shape) tensor.elements *= n;
  const uint8_t* data = file.data() + ref.begin;
  int64_t bad = -1;
  switch (ref.dtype) {
    case DType::kF32: bad = first_non_finite<uint32_t>(data, tensor.elements, 0x7f800000u); break;
    case DType::kBF16: bad = first_non_finite<uint16_t>(data, tensor.elements, uint16_t(0x7f80u)); break;
    case DType::kF16: bad = first_non_finite<uint16_t>(data, tensor.elements, uint16_t(0x7c00u)); break;
  }
  if (bad >= 0)
    throw Error(ErrorCode::kNonFinite, file.path() + ": tensor " + name + " holds NaN or infinity (first at element " + std::to_string(bad) + ")");
  return tensor;
}

uint64_t Checkpoint::bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, i] : index_) sum += tensors_[i].end - tensors_[i].begin;
  return sum;
}

void Checkpoint::forget(const Tensor& tensor) const { files_[size_t(tensor.ref->file)]->forget(tensor.ref->begin, tensor.ref->end); }

}  // namespace dultra
