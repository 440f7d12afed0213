#include "model/packing.h"

#include <numeric>
#include <string>

#include "ops/check.h"

namespace dultra {

Packing Packing::from_lengths(const std::vector<int32_t>& lengths, std::vector<int32_t> first_blocks) {
  std::vector<int32_t> offsets{0}, positions;
  for (int32_t length : lengths) {
    for (int32_t i = 0; i < length; ++i) positions.push_back(i);
    offsets.push_back(offsets.back() + length);
  }
  return {std::move(offsets), std::move(positions), {}, std::move(first_blocks)};
}

RowSubset RowSubset::all(const Packing& packing) {
  return {packing.offsets.values(), ascending(packing.tokens()), packing.positions.values(), {}, 0};
}

RowSubset RowSubset::shifted_left(const Packing& packing, bool inside) const {
  RowSubset out = *this;
  std::vector<int32_t>&to_rows = out.rows.change(), &to_positions = out.positions.change();
  for (size_t r = 0; r + 1 < offsets.size(); ++r)
    for (size_t i = size_t(offsets[r]); i < size_t(offsets[r + 1]); ++i) {
      const int32_t position = positions[i], row = rows[i];
      if (position == 0) continue;
      const bool computed = row > packing.offsets[r] && packing.positions[size_t(row) - 1] == position - 1;
      if (!computed && inside) continue;
      check_argument(computed, "positions: position " + std::to_string(position) + " is scored from " +
                                   std::to_string(position - 1) + ", which the pass must compute");
      to_rows[i] = row - 1;
      to_positions[i] = position - 1;
    }
  return out;
}

void check_ids(const std::vector<int32_t>& ids, int64_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= vocab)
      throw Error(ErrorCode::kInvalidArgument, "ids[" + std::to_string(i) + "]: expected 0 to " +
                                                   std::to_string(vocab - 1) + ", got " + std::to_string(ids[i]));
}

void check_offsets(const std::vector<int32_t>& offsets, size_t total, int64_t max_length) {
  check_argument(offsets.size() >= 2 && offsets.front() == 0 && size_t(offsets.back()) == total,
                 "offsets: expected 0 first and the number of ids last");
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t length = int64_t(offsets[i + 1]) - offsets[i];
    check_argument(length > 0 && length <= max_length, "row " + std::to_string(i) + ": expected 1 to " +
                                                           std::to_string(max_length) + " tokens, got " +
                                                           std::to_string(length));
  }
}

void check_first_blocks(const std::vector<int32_t>& first_blocks, size_t rows, int block_length) {
  if (first_blocks.empty()) return;
  check_argument(block_length > 0, "firstBlocks: expected none for a model that does not attend by blocks");
  check_argument(first_blocks.size() == rows, "firstBlocks: expected one per row (" + std::to_string(rows) + "), got " +
                                                  std::to_string(first_blocks.size()));
  for (size_t i = 0; i < rows; ++i)
    check_argument(first_blocks[i] >= 1 && first_blocks[i] <= block_length,
                   "firstBlocks[" + std::to_string(i) + "]: expected 1 to the model's block length (" +
                       std::to_string(block_length) + "), got " + std::to_string(first_blocks[i]));
}

std::vector<int32_t> lengths_of(const std::vector<int32_t>& offsets) {
  std::vector<int32_t> lengths;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) lengths.push_back(offsets[i + 1] - offsets[i]);
  return lengths;
}

std::vector<int32_t> ascending(int64_t n) {
  std::vector<int32_t> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

}  // namespace dultra
