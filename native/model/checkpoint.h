// Tensors of a checkpoint: safetensors or GGUF files mapped read-only. Headers are parsed and checked by the caller
// (TypeScript); what arrives here is names, shapes and byte ranges, which are checked once more against the files.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "ops/blocks.h"
#include "ops/tensor.h"
#include "platform/platform.h"

namespace dultra {

struct TensorRef {
  std::string name;
  int file = 0;
  DType dtype = DType::kF32;
  BlockType blocks = BlockType::kNone;  // else `dtype` says nothing
  int64_t heads = 0;                    // as of stored_row
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes of the file
  // Blocks whose scales stand elsewhere (split_blocks): the codes are at `begin`, the scales here.
  int scales_file = -1;
  uint64_t scales_begin = 0, scales_end = 0;
  // As GPTQ files have them (gptq.h): packed codes at `begin`, which become what `blocks` or `dtype` (kF32) says.
  struct Gptq {
    struct Place {
      int file = 0;
      uint64_t begin = 0, end = 0;
    };
    int bits = 0;  // 0: it is not
    int64_t groups = 0;
    int zero_offset = 0;
    Place zeros, scales, group;
  } gptq;
};

// A read-only mapping of a whole file.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return mapping_.data; }
  uint64_t size() const { return mapping_.size; }
  // The bytes will not be read again: gives their pages back, so that loading does not hold the file and its copy.
  void forget(uint64_t begin, uint64_t end) const;

 private:
  std::string path_;
  platform::Mapping mapping_;
};

class Checkpoint {
 public:
  struct Tensor {
    const TensorRef* ref;
    const void* data;
    int64_t elements;
    std::shared_ptr<const void> owner;  // keeps `data` alive

    // Numbers [first, first + count), in fp32; whole rows of a matrix.
    void read(float* to, int64_t first, int64_t count) const;
  };

  Checkpoint(const std::vector<std::string>& files, std::vector<TensorRef> tensors);

  // The tensor `name`, which must have `shape` and finite values; BAD_CHECKPOINT or NON_FINITE otherwise.
  Tensor get(const std::string& name, const std::vector<int64_t>& shape) const;
  bool has(const std::string& name) const { return index_.count(name) != 0; }
  // Of all tensors.
  uint64_t bytes() const;
  void forget(const Tensor& tensor) const;

 private:
  void check_scales(const TensorRef& ref, const std::string& path) const;
  void check_gptq(const TensorRef& ref, const std::string& path) const;

  std::vector<std::shared_ptr<MappedFile>> files_;
  std::vector<TensorRef> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace dultra
