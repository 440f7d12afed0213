#include "model/shards.h"

#include <set>

namespace dultra {

namespace {

// Numbers that are copied or exchanged at once: 16 MB of fp32.
constexpr int64_t kPiece = int64_t(1) << 22;

// fn(rank, range) for pieces of a parameter, by the rank that updates them. @whole: each rank's in one piece.
template <class Fn>
void for_owners(const Parameters& parameters, const Parameter& p, bool whole, Fn&& fn) {
  for (int rank = 0; rank < parameters.shard().ranks; ++rank) {
    const Range own = parameters.own_of(p, rank);
    const int64_t piece = whole ? std::max<int64_t>(1, own.size()) : kPiece;
    for (int64_t at = own.begin; at < own.end; at += piece) fn(rank, Range{at, std::min(own.end, at + piece)});
  }
}

// The model's own bf16 numbers, where they are.
void share_rows(Backend& backend, const Parameters& parameters, const Parameter& p, Communicator& ranks,
                Communicator* device) {
  std::vector<uint16_t> staged;
  for_owners(parameters, p, device != nullptr, [&](int rank, const Range& part) {
    for_rows(p, part, [&](uint16_t* data, const Range& range) {
      if (device) return device->broadcast(data, size_t(range.size()) * 2, rank);
      staged.resize(size_t(range.size()));
      if (rank == parameters.shard().rank) backend.download(staged.data(), data, staged.size() * 2);
      ranks.broadcast(staged.data(), staged.size() * 2, rank);
      if (rank != parameters.shard().rank) backend.upload(data, staged.data(), staged.size() * 2);
    });
  });
}

// All of a master, to backend memory. @narrow: rounded to bf16, as the model will hold it.
void gather_master(Backend& backend, const Parameters& parameters, const Parameter& p, bool narrow, float* to,
                   Communicator& ranks, Communicator* device) {
  std::vector<float> wide;
  std::vector<uint16_t> half;
  for_owners(parameters, p, device != nullptr, [&](int rank, const Range& range) {
    const size_t n = size_t(range.size());
    if (device) {
      const float* own = parameters.master(p) + (range.begin - p.held.begin);
      if (rank == parameters.shard().rank && own != to + range.begin) backend.copy(to + range.begin, own, range.size());
      return device->broadcast(to + range.begin, n * 4, rank);
    }
    wide.resize(n);
    if (rank == parameters.shard().rank)
      backend.download(wide.data(), parameters.master(p) + (range.begin - p.held.begin), n * 4);
    if (narrow) {
      half.resize(n);
      if (rank == parameters.shard().rank) std::transform(wide.begin(), wide.end(), half.begin(), f32_to_bf16);
      ranks.broadcast(half.data(), n * 2, rank);
      std::transform(half.begin(), half.end(), wide.begin(), bf16_to_f32);
    } else {
      ranks.broadcast(wide.data(), n * 4, rank);
    }
    backend.upload(to + range.begin, wide.data(), n * 4);
  });
}

// Whether the model holds all of a tensor in bf16.
bool is_narrow(const Weights& weights, const std::string& tensor) {
  for (const WeightLocation& location : weights.locations()) {
    if (location.tensor != tensor) continue;
    const bool narrow = location.kind == WeightLocation::Kind::kMatrix ? location.linear->matrix->holds_bf16()
                        : location.kind == WeightLocation::Kind::kTable
                            ? weights.embedding_dtype == DType::kBF16 && !weights.embedding_blocks
                            : false;
    if (!narrow) return false;
  }
  return true;
}

}  // namespace

void share_updates(Backend& backend, Weights& weights, const Parameters& parameters, Communicator& ranks,
                   Communicator* device) {
  for (const auto& p : parameters.all()) {
    if (!p->model_rows.empty())
      share_rows(backend, parameters, *p, ranks, device);
    else if (p->whole_master)
      gather_master(backend, parameters, *p, false, parameters.master(*p), ranks, device);
  }
  // Others are packed, or rounded, or stand in several places: the model takes whole tensors, and those of one matrix
  // together.
  std::set<std::string> done;
  for (const WeightLocation& first : weights.locations()) {
    std::vector<std::pair<std::string, Buffer>> staged;
    for (const WeightLocation& location : weights.locations()) {
      const bool together = location.tensor == first.tensor || (first.linear && location.linear == first.linear);
      const Parameter* p = together ? parameters.find(location.tensor) : nullptr;
      if (!p || !p->model_rows.empty() || p->whole_master || !done.insert(p->name).second) continue;
      staged.emplace_back(p->name, Buffer(backend, size_t(p->n) * 4));
      gather_master(backend, parameters, *p, is_narrow(weights, p->name), staged.back().second.as(), ranks, device);
    }
    if (staged.empty()) continue;
    weights.write([&](const std::string& tensor) -> const float* {
      for (const auto& [name, values] : staged)
        if (name == tensor) return values.as();
      return nullptr;
    });
  }
}

}  // namespace dultra
