#include "model/weights.h"

#include <algorithm>

namespace dultra {

namespace {

constexpr int64_t kPiece = int64_t(1) << 22;  // numbers that are converted at a time in host memory

}  // namespace

const void* WeightLocation::holder() const {
  switch (kind) {
    case Kind::kMatrix: return linear;
    case Kind::kNumber: return number;
    default: return vector;
  }
}

std::vector<float> Weights::read_rows(const Linear& linear, int64_t first, int64_t rows) const {
  const int64_t k = linear.inputs();
  std::vector<float> out(size_t(rows * k));
  linear.matrix->unpack(out.data(), first, rows);
  for (const auto& adapter : linear.low_rank) {
    const int64_t r = adapter->rank(), begin = std::max(first, adapter->row),
                  end = std::min(first + rows, adapter->row + adapter->b->rows());
    if (begin >= end) continue;
    std::vector<float> a(size_t(r * k)), b(size_t((end - begin) * r));
    adapter->a->unpack(a.data(), 0, r);
    adapter->b->unpack(b.data(), begin - adapter->row, end - begin);
    for (int64_t i = begin; i < end; ++i) {
      float* row = &out[size_t((i - first) * k)];
      for (int64_t l = 0; l < r; ++l) {
        const float factor = b[size_t((i - begin) * r + l)];
        for (int64_t j = 0; j < k; ++j) row[j] += factor * a[size_t(l * k + j)];
      }
    }
  }
  return out;
}

std::vector<float> Weights::read(const std::string& tensor) const {
  std::vector<float> out;
  for (const WeightLocation& location : locations_) {
    if (location.tensor != tensor) continue;
    int64_t elements = 1;
    for (int64_t n : location.shape) elements *= n;
    out.resize(size_t(elements));
    float* to = out.data() + location.first * location.cols();
    switch (location.kind) {
      case WeightLocation::Kind::kMatrix: {
        if (location.linear->low_rank.empty()) {
          location.linear->matrix->unpack(to, location.at, location.rows);
          break;
        }
        const std::vector<float> rows = read_rows(*location.linear, location.at, location.rows);
        std::copy(rows.begin(), rows.end(), to);
        break;
      }
      case WeightLocation::Kind::kTable: {
        if (embedding_blocks) {
          embedding_blocks->unpack(to, 0, location.rows);
          break;
        }
        std::vector<uint8_t> stored(location.vector->bytes());
        backend_.download(stored.data(), location.vector->as<void>(), stored.size());
        for (int64_t i = 0; i < elements; ++i) to[i] = load_as_f32(stored.data(), embedding_dtype, size_t(i));
        break;
      }
      case WeightLocation::Kind::kVector:
        if (!location.exact.empty())
          std::copy(location.exact.begin(), location.exact.end(), to);
        else
          backend_.download(to, location.vector->as<float>() + location.at, size_t(location.rows) * 4);
        break;
      case WeightLocation::Kind::kNumber: *to = *location.number; break;
    }
  }
  check_argument(!out.empty(), "weights: this model has no tensor " + tensor);
  return out;
}

std::vector<NamedTensor> Weights::read_all(const std::vector<std::string>* names) const {
  std::vector<NamedTensor> out;
  const auto add = [&](const WeightLocation& location) {
    out.push_back({location.tensor, location.shape, read(location.tensor)});
  };
  if (!names) {
    for (const WeightLocation& location : locations_) {
      const auto is_same = [&](const NamedTensor& seen) { return seen.name == location.tensor; };
      if (location.first == 0 && std::none_of(out.begin(), out.end(), is_same)) add(location);
    }
    return out;
  }
  for (const std::string& name : *names) {
    const auto is_named = [&](const WeightLocation& location) { return location.tensor == name; };
    const auto found = std::find_if(locations_.begin(), locations_.end(), is_named);
    check_argument(found != locations_.end(), "weights: this model has no tensor " + name);
    add(*found);
  }
  return out;
}

std::vector<Bf16Rows> Weights::bf16_rows(const std::string& tensor) const {
  std::vector<Bf16Rows> out;
  int64_t next = 0;
  for (const WeightLocation& location : locations_) {
    if (location.tensor != tensor) continue;
    uint16_t* data = nullptr;
    if (location.kind == WeightLocation::Kind::kMatrix) {
      data = location.linear->matrix->bf16_rows();
      if (data) data += location.at * location.cols();
    } else if (location.kind == WeightLocation::Kind::kTable && embedding_dtype == DType::kBF16) {
      data = location.vector->as<uint16_t>();
    }
    if (!data || location.first != next) return {};
    out.push_back({data, location.first, location.rows});
    next += location.rows;
  }
  return out;
}

void Weights::write(const std::function<const float*(const std::string& tensor)>& values) {
  for (size_t i = 0; i < locations_.size(); ++i) {
    WeightLocation& location = locations_[i];
    if (location.kind == WeightLocation::Kind::kMatrix) {
      // The parts of a matrix stand one after the other.
      std::vector<const WeightLocation*> stacked{&location};
      for (; i + 1 < locations_.size() && locations_[i + 1].linear == location.linear; ++i)
        stacked.push_back(&locations_[i + 1]);
      write_matrix(stacked, values);
      continue;
    }
    const float* from = values(location.tensor);
    if (!from) continue;
    switch (location.kind) {
      case WeightLocation::Kind::kTable: write_table(location, from); break;
      case WeightLocation::Kind::kVector: write_vector(location, from); break;
      default: backend_.download(location.number, from, 4);
    }
  }
}

void Weights::write_matrix(const std::vector<const WeightLocation*>& stacked,
                           const std::function<const float*(const std::string& tensor)>& values) {
  std::vector<MatrixPart> parts;
  std::vector<std::vector<float>> kept;  // parts that stay as they are
  bool any = false;
  for (const WeightLocation* location : stacked) {
    const float* data = values(location->tensor);
    any = any || data;
    parts.push_back({data ? data + location->first * location->cols() : nullptr, DType::kF32, location->rows});
  }
  if (!any) return;
  std::unique_ptr<Matrix>& held = stacked[0]->linear->matrix;
  Matrix& matrix = *held;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].data) continue;
    kept.push_back(read_rows(*stacked[0]->linear, stacked[i]->at, parts[i].rows));
    parts[i].data = kept.back().data();
  }
  if (!matrix.quantised()) return backend_.update_matrix(matrix, parts);
  // Nothing is written into blocks: such a matrix becomes fp32, or what bf16 products read.
  const DType storage = backend_.compute() == Compute::kBF16 ? DType::kBF16 : DType::kF32;
  held = matrix.experts() > 1 ? backend_.make_expert_matrix(parts, matrix.cols(), storage, matrix.experts())
                              : backend_.make_matrix(parts, matrix.cols(), storage);
  stacked[0]->linear->low_rank.clear();
}

void Weights::write_table(const WeightLocation& location, const float* from) {
  const int64_t elements = location.rows * location.cols();
  // Blocks and fp16 are read, not written: such a table becomes fp32.
  if (embedding_blocks || embedding_dtype == DType::kF16) {
    embedding_blocks.reset();
    *location.vector = Buffer(backend_, size_t(elements) * 4);
    embedding_dtype = DType::kF32;
  }
  if (embedding_dtype == DType::kF32) return backend_.copy(location.vector->as(), from, elements);
  std::vector<float> wide;
  std::vector<uint16_t> narrow;
  for (int64_t first = 0; first < elements; first += kPiece) {
    wide.resize(size_t(std::min(kPiece, elements - first)));
    narrow.resize(wide.size());
    backend_.download(wide.data(), from + first, wide.size() * 4);
    std::transform(wide.begin(), wide.end(), narrow.begin(), f32_to_bf16);
    backend_.upload(location.vector->as<uint16_t>() + first, narrow.data(), narrow.size() * 2);
  }
}

void Weights::write_vector(WeightLocation& location, const float* from) {
  std::vector<float> values(static_cast<size_t>(location.rows));
  backend_.download(values.data(), from + location.first, values.size() * 4);
  if (!location.exact.empty()) location.exact = values;
  for (float& x : values) x += location.offset;
  backend_.upload(location.vector->as<float>() + location.at, values.data(), values.size() * 4);
}

}  // namespace dultra
