#include "model/checkpoint.h"

#include <cstring>

#include "ops/check.h"
#include "platform/platform.h"

namespace dultra {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  std::string problem;
  if (!platform::map_file(path, &mapping_, &problem)) throw Error(ErrorCode::kBadCheckpoint, path + ": " + problem);
}
MappedFile::~MappedFile() { platform::unmap_file(mapping_); }
void MappedFile::forget(uint64_t begin, uint64_t end) const { platform::forget_pages(mapping_, begin, end); }

Checkpoint::Checkpoint(const std::vector<std::string>& files, std::vector<TensorRef> tensors)
    : tensors_(std::move(tensors)) {
  for (const auto& file : files) files_.push_back(std::make_unique<MappedFile>(file));
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorRef& t = tensors_[i];
    if (t.file < 0 || size_t(t.file) >= files_.size())
      throw Error(ErrorCode::kBadCheckpoint, t.name + ": file index out of range");
    uint64_t bytes = dtype_size(t.dtype);
    const uint64_t size = files_[size_t(t.file)]->size();
    for (int64_t n : t.shape) {
      if (n < 0 || (n > 0 && bytes > size / uint64_t(n)))
        throw Error(ErrorCode::kBadCheckpoint, t.name + ": larger than its file");
      bytes *= uint64_t(n);
    }
    if (t.begin > t.end || t.end > size || t.end - t.begin != bytes)
      throw Error(ErrorCode::kBadCheckpoint, files_[size_t(t.file)]->path() + ": tensor " + t.name +
                                                 " ends beyond the file or does not fill its range");
    index_[t.name] = i;
  }
}

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Index of the first NaN or infinity, or -1. Unaligned data is allowed (safetensors promises no alignment). An all-ones
// exponent is the only non-finite pattern in all three formats.
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
    throw Error(ErrorCode::kBadCheckpoint, file.path() + ": tensor " + name + ": expected shape " + shape_text(shape) +
                                               ", got " + shape_text(ref.shape));
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
    throw Error(ErrorCode::kNonFinite, file.path() + ": tensor " + name + " holds NaN or infinity (first at element " +
                                           std::to_string(bad) + ")");
  return tensor;
}

uint64_t Checkpoint::bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, i] : index_) sum += tensors_[i].end - tensors_[i].begin;
  return sum;
}

void Checkpoint::forget(const Tensor& tensor) const {
  files_[size_t(tensor.ref->file)]->forget(tensor.ref->begin, tensor.ref->end);
}

}  // namespace dultra
