// Rows of a packing: those before candidates, of models whose head is a position ahead, and lengths of first blocks.
#include "model/packing.h"

#include "harness.h"

namespace dultra {
namespace test {
namespace {

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() == ErrorCode::kInvalidArgument ? error.what() : "another error";
  }
  return "";
}

bool names(const std::string& message, const std::string& part) { return message.find(part) != std::string::npos; }

// Two sequences, of which positions 0, 1, 2, 5, 6 and 3, 4, 5 are computed.
Packing some_positions() {
  Packing packing;
  packing.offsets = std::vector<int32_t>{0, 5, 8};
  packing.positions = std::vector<int32_t>{0, 1, 2, 5, 6, 3, 4, 5};
  return packing;
}

DULTRA_TEST(packing_shifted_left, small) {
  const Packing packing = some_positions();
  // Candidates: positions 0, 1, 6 of the first sequence, 4 and 5 of the second, and 7 and 6 behind their last ones.
  RowSubset subset;
  subset.offsets = std::vector<int32_t>{0, 4, 7};
  subset.rows = std::vector<int32_t>{0, 1, 4, 5, 6, 7, 8};
  subset.positions = std::vector<int32_t>{0, 1, 6, 7, 4, 5, 6};
  subset.max_queries = 9;
  const RowSubset shifted = subset.shifted_left(packing);
  // A sequence's first position has none before it; all others are read one row to the left.
  CHECK((shifted.rows.values() == std::vector<int32_t>{0, 0, 3, 4, 5, 6, 7}), "rows");
  CHECK((shifted.positions.values() == std::vector<int32_t>{0, 0, 5, 6, 3, 4, 5}), "positions");
  CHECK(shifted.offsets.values() == subset.offsets.values() && shifted.max_queries == 9, "what stays");
  CHECK((subset.rows.values() == std::vector<int32_t>{0, 1, 4, 5, 6, 7, 8}), "the subset itself");
  CHECK(subset.shifted_left(packing, true).rows.values() == shifted.rows.values(), "inside, where all is computed");
}

DULTRA_TEST(packing_shifted_left_lacks_a_position, small) {
  const Packing packing = some_positions();
  const auto shift = [&](int32_t row, int32_t position, bool second, bool inside) {
    RowSubset subset;
    subset.offsets = second ? std::vector<int32_t>{0, 0, 1} : std::vector<int32_t>{0, 1, 1};
    subset.rows = std::vector<int32_t>{row};
    subset.positions = std::vector<int32_t>{position};
    return subset.shifted_left(packing, inside);
  };
  // Position 4 of the first sequence is not computed, and neither is 2 of the second, whose row to the left is another
  // sequence's.
  CHECK(names(error_of([&] { shift(3, 5, false, false); }), "position 5 is scored from 4, which the pass must compute"),
        "a gap");
  CHECK(names(error_of([&] { shift(5, 3, true, false); }), "position 3 is scored from 2"), "a sequence's first row");
  CHECK(shift(3, 5, false, true).rows[0] == 3 && shift(3, 5, false, true).positions[0] == 5, "inside: a gap");
  CHECK(shift(5, 3, true, true).rows[0] == 5 && shift(5, 3, true, true).positions[0] == 3, "inside: the first row");
}

DULTRA_TEST(packing_first_blocks, small) {
  const auto error = [](std::vector<int32_t> first, size_t rows, int length) {
    return error_of([&] { check_first_blocks(first, rows, length); });
  };
  CHECK(error({}, 2, 0).empty() && error({1, 4}, 2, 4).empty(), "those that fit");
  CHECK(names(error({1}, 1, 0), "expected none for a model that does not attend by blocks"), "no blocks");
  CHECK(names(error({1}, 2, 4), "expected one per row (2), got 1"), "rows");
  CHECK(names(error({4, 0}, 2, 4), "firstBlocks[1]: expected 1 to the model's block length (4), got 0"), "0");
  CHECK(names(error({5}, 1, 4), "firstBlocks[0]: expected 1 to"), "longer than a block");
  // Blocks of 4 behind one of 3, and behind a whole one.
  for (int position = 0; position < 12; ++position) {
    CHECK(block_end(position, 4, 3) == (position < 3 ? 3 : position < 7 ? 7 : position < 11 ? 11 : 15), position);
    CHECK(block_end(position, 4, 4) == position / 4 * 4 + 4, position);
  }
}

}  // namespace
}  // namespace test
}  // namespace dultra
