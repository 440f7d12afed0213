#include "model/checkpoint.h"

#include <algorithm>
#include <cstring>

#include "model/gptq.h"
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
  for (const auto& file : files) files_.push_back(std::make_shared<MappedFile>(file));
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorRef& t = tensors_[i];
    if (t.file < 0 || size_t(t.file) >= files_.size())
      throw Error(ErrorCode::kBadCheckpoint, t.name + ": file index out of range");
    const std::string& path = files_[size_t(t.file)]->path();
    if (t.heads < 0 || (t.heads > 0 && (t.shape.empty() || t.shape[0] % (2 * t.heads) != 0)))
      throw Error(ErrorCode::kBadCheckpoint, path + ": tensor " + t.name + " does not have rows of whole heads");
    uint64_t bytes = dtype_size(t.dtype);
    if (t.blocks != BlockType::kNone) {
      const BlockLayout& layout = block_layout(t.blocks);
      if (t.shape.empty() || t.shape.back() % layout.values != 0)
        throw Error(ErrorCode::kBadCheckpoint, path + ": tensor " + t.name + " does not have whole blocks");
      bytes = uint64_t(layout.bytes) - (t.scales_file >= 0 ? 2 : 0);
    }
    check_scales(t, path);
    if (t.gptq.bits != 0) {
      check_gptq(t, path);
      index_[t.name] = i;
      continue;
    }
    const uint64_t size = files_[size_t(t.file)]->size();
    for (size_t d = 0; d < t.shape.size(); ++d) {
      const bool cut = t.blocks != BlockType::kNone && d + 1 == t.shape.size();
      const int64_t n = cut ? t.shape[d] / block_layout(t.blocks).values : t.shape[d];
      if (n < 0 || (n > 0 && bytes > size / uint64_t(n)))
        throw Error(ErrorCode::kBadCheckpoint, t.name + ": larger than its file");
      bytes *= uint64_t(n);
    }
    if (t.begin > t.end || t.end > size || t.end - t.begin != bytes)
      throw Error(ErrorCode::kBadCheckpoint,
                  path + ": tensor " + t.name + " ends beyond the file or does not fill its range");
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
  Tensor tensor{&ref, file.data() + ref.begin, 1, files_[size_t(ref.file)]};
  for (int64_t n : shape) tensor.elements *= n;
  if (ref.scales_file >= 0) {
    const MappedFile& scales = *files_[size_t(ref.scales_file)];
    const int64_t count = tensor.elements / block_layout(ref.blocks).values;
    auto joined = std::make_shared<std::vector<uint8_t>>(size_t(count * block_layout(ref.blocks).bytes));
    join_blocks(joined->data(), file.data() + ref.begin, scales.data() + ref.scales_begin, ref.blocks, count);
    file.forget(ref.begin, ref.end);
    tensor.data = joined->data();
    tensor.owner = std::move(joined);
  }
  if (ref.gptq.bits != 0) {
    const TensorRef::Gptq& gptq = ref.gptq;
    const auto at = [&](const TensorRef::Gptq::Place& place) {
      return files_[size_t(place.file)]->data() + place.begin;
    };
    const GptqMatrix matrix{shape[0],       shape[1],         gptq.bits,
                            gptq.groups,    gptq.zero_offset, file.data() + ref.begin,
                            at(gptq.zeros), at(gptq.scales),  at(gptq.group)};
    auto unpacked =
        std::make_shared<std::vector<uint8_t>>(unpack_gptq(matrix, ref.blocks, file.path() + ": tensor " + name));
    file.forget(ref.begin, ref.end);
    tensor.data = unpacked->data();
    tensor.owner = std::move(unpacked);
  }
  const uint8_t* data = static_cast<const uint8_t*>(tensor.data);
  int64_t bad = -1;
  if (ref.blocks != BlockType::kNone) {
    const BlockLayout& layout = block_layout(ref.blocks);
    bad = first_bad_block(data, ref.blocks, tensor.elements / layout.values);
    if (bad >= 0) bad *= layout.values;
  } else
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

void Checkpoint::Tensor::read(float* to, int64_t first, int64_t count) const {
  const auto* bytes = static_cast<const uint8_t*>(data);
  const int64_t cols = ref->shape.empty() ? 1 : ref->shape.back(), rows = elements / std::max<int64_t>(1, cols);
  const bool in_rows = ref->blocks != BlockType::kNone || ref->heads > 0;
  // Without an order of its own a tensor is one row.
  const int64_t width = in_rows ? cols : std::max<int64_t>(1, count), from = in_rows ? first / cols : 0;
  for (int64_t done = 0; done < count; done += width, to += width) {
    const int64_t row = in_rows ? stored_row(from + done / cols, rows, ref->heads) : 0;
    if (ref->blocks != BlockType::kNone) {
      const BlockLayout& layout = block_layout(ref->blocks);
      decode_blocks(to, bytes + row * block_row_bytes(ref->blocks, cols), ref->blocks, cols / layout.values);
      continue;
    }
    const size_t size = dtype_size(ref->dtype);
    const uint8_t* at = bytes + size_t(in_rows ? row * cols : first) * size;
    if (ref->dtype == DType::kF32) {
      std::memcpy(to, at, size_t(width) * 4);
      continue;
    }
    for (int64_t i = 0; i < width; ++i) {
      uint16_t half;
      std::memcpy(&half, at + size_t(i) * size, 2);
      to[i] = ref->dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
  }
}

void Checkpoint::check_scales(const TensorRef& t, const std::string& path) const {
  if (t.scales_file < 0) return;
  uint64_t blocks = t.shape.empty() ? 0 : 1;
  for (int64_t n : t.shape) blocks *= uint64_t(n);
  blocks /= 32;
  const bool fits = size_t(t.scales_file) < files_.size() && t.scales_begin <= t.scales_end &&
                    t.scales_end <= files_[size_t(t.scales_file)]->size() &&
                    t.scales_end - t.scales_begin == 2 * blocks;
  if (!fits || !is_written(t.blocks))
    throw Error(ErrorCode::kBadCheckpoint, path + ": tensor " + t.name + " does not have a scale for every 32 numbers");
}

void Checkpoint::check_gptq(const TensorRef& t, const std::string& path) const {
  const TensorRef::Gptq& gptq = t.gptq;
  const auto fits = [&](int file, uint64_t begin, uint64_t end, uint64_t bytes) {
    return file >= 0 && size_t(file) < files_.size() && begin <= end && end <= files_[size_t(file)]->size() &&
           end - begin == bytes;
  };
  constexpr int64_t kMost = int64_t(1) << 31;  // no product of two sizes leaves 64 bits
  const bool matrix = t.shape.size() == 2 && t.shape[0] > 0 && t.shape[0] < kMost && t.shape[1] > 0 &&
                      t.shape[1] < kMost && gptq.groups > 0 && gptq.groups <= t.shape[1] &&
                      (gptq.bits == 4 || gptq.bits == 8) && t.heads == 0 &&
                      (t.blocks == BlockType::kNone ? t.dtype == DType::kF32
                       : gptq.bits == 4             ? t.blocks == BlockType::kQ4_0 || t.blocks == BlockType::kQ5_0
                                                    : t.blocks == BlockType::kQ8_0);
  const uint64_t n = matrix ? uint64_t(t.shape[0]) : 0, k = matrix ? uint64_t(t.shape[1]) : 0,
                 bits = uint64_t(gptq.bits), groups = uint64_t(gptq.groups);
  const bool good = matrix && k * bits % 32 == 0 && n * bits % 32 == 0 &&
                    fits(t.file, t.begin, t.end, n * k * bits / 8) &&
                    fits(gptq.zeros.file, gptq.zeros.begin, gptq.zeros.end, groups * n * bits / 8) &&
                    fits(gptq.scales.file, gptq.scales.begin, gptq.scales.end, groups * n * 2) &&
                    fits(gptq.group.file, gptq.group.begin, gptq.group.end, k * 4);
  if (!good) throw Error(ErrorCode::kBadCheckpoint, path + ": tensor " + t.name + " is no matrix as GPTQ packs it");
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
