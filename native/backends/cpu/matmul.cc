// Matrix products with packed weights: packing, blocking and threading around the tiles of isa/matmul.inl.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "backends/cpu/aligned.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "ops/check_args.h"

namespace dultra {
namespace cpu {

namespace {

// Steps of k (pairs of k for bf16 products) per block. A block of a panel and of a tile's rows should stay in the first
// two cache levels while in use; a product with a single row of tiles streams its weights, for which one long block is
// better.
constexpr int64_t kBlockSteps = 512;
constexpr int64_t kStreamSteps = 8192;
// Numbers of k of a block where weights are unpacked: a panel of them stays in the nearest cache. Whole blocks of every
// type.
constexpr int64_t kBlockNumbers = 512;
static_assert(kBlockNumbers % kMostBlockValues == 0, "");
// Rows and columns of a task. A block of activations (kTaskRows, kBlockSteps) and the sums (kTaskRows, kTaskColumns)
// share the second cache level with the panel that streams by.
constexpr int64_t kTaskRows = 192;
constexpr int64_t kTaskColumns = 512;
// Tasks per thread, enough to balance a core that other processes use; and the work below which waking a thread costs
// more than it saves.
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kSmallTask = 500000;  // multiply-adds

// Rows of an operand packed at a time where several tiles or panels share their cache lines.
constexpr int64_t kPackRows = 32;

// About the rows that a piece of a weight gradient sums, and the most numbers of all pieces together.
constexpr int64_t kPieceRows = 256;
constexpr int64_t kPieceSums = 1 << 17;

// Bytes of packed rows that a product with a transposed matrix unpacks at a time: they fit the last cache level.
constexpr int64_t kTransposedBytes = 16 << 20;

// Prefetch distance into a panel, in bytes: some kilobytes hide the memory latency, but prefetching beyond the end of a
// short panel is of little use.
constexpr int64_t kPrefetchMin = 512, kPrefetchMax = 8192, kPrefetchPart = 32;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// f16_to_f32 without branches, for the compiler to vectorize: exponent and mantissa in place, scaled by 2^112 (exact,
// subnormals included), and infinity's exponent for infinities and NaN.
inline float widen_f16(uint16_t value) {
  uint32_t bits = uint32_t(value & 0x7fffu) << 13;
  float scaled;
  std::memcpy(&scaled, &bits, 4);
  scaled *= 0x1p112f;
  std::memcpy(&bits, &scaled, 4);
  bits |= (value & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  bits |= uint32_t(value & 0x8000u) << 16;
  std::memcpy(&scaled, &bits, 4);
  return scaled;
}

class PackedMatrix final : public Matrix {
 public:
  PackedMatrix(int64_t rows, int64_t cols, WeightLayout layout, const MatmulKernels& kernels, int experts)
      : Matrix(rows, cols, experts),
        layout(layout),
        nr(kernels.nr),
        lanes(kernels.lanes),
        steps(layout == kLayoutBF16Pairs ? ceil_div(cols, 2) : cols),
        step_bytes(nr * (layout == kLayoutF32 || layout == kLayoutBF16Pairs ? 4 : 2)),
        panel_bytes(steps * step_bytes),
        expert_panels(ceil_div(expert_rows(), nr)),
        panels(experts * expert_panels),
        memory(size_t(panels) * size_t(panel_bytes)) {}
  size_t bytes() const override { return memory.bytes(); }
  bool holds_bf16() const override { return layout == kLayoutBF16 || layout == kLayoutBF16Pairs; }
  void unpack(float* to, int64_t first, int64_t count) const override;

  // Offset of column j of a panel in a step, in elements (for kLayoutBF16Pairs, of the first of its two).
  int64_t place(int64_t j) const {
    const int64_t group = 2 * lanes, in_group = j % group;
    return layout == kLayoutBF16        ? j - in_group + in_group % lanes * 2 + in_group / lanes
           : layout == kLayoutBF16Pairs ? 2 * j
                                        : j;
  }

  const WeightLayout layout;
  const int64_t nr, lanes;
  const int64_t steps, step_bytes, panel_bytes;
  const int64_t expert_panels, panels;  // of one expert, whose rows begin with a panel, and of all
  const AlignedBlock memory;

  const char* panel(int64_t index) const { return static_cast<const char*>(memory.data()) + index * panel_bytes; }
  // Where a row is, and the first row behind it that is not in its panel.
  struct Place {
    int64_t panel, column, end;
  };
  Place locate(int64_t row) const {
    const int64_t expert = row / expert_rows(), in_expert = row % expert_rows(), first = row - in_expert;
    return {expert * expert_panels + in_expert / nr, in_expert % nr,
            first + std::min(expert_rows(), (in_expert / nr + 1) * nr)};
  }
};

void PackedMatrix::unpack(float* to, int64_t first, int64_t count) const {
  check_rows(*this, first, count);
  const int64_t per_step = layout == kLayoutBF16Pairs ? 2 : 1;
  for (int64_t row = first; row < first + count; ++row, to += cols()) {
    const Place at = locate(row);
    const int64_t column = place(at.column);
    for (int64_t k = 0; k < cols(); ++k) {
      const char* step = panel(at.panel) + k / per_step * step_bytes;
      const size_t index = size_t(column + k % per_step);
      to[k] = layout == kLayoutF32   ? load_as_f32(step, DType::kF32, index)
              : layout == kLayoutF16 ? load_as_f32(step, DType::kF16, index)
                                     : load_as_f32(step, DType::kBF16, index);
    }
  }
}

// Rows in blocks, where they are: a product unpacks a block of k of a panel at a time, for all its rows of activations.
// Every part begins with a panel of its own.
class BlockMatrix final : public Matrix {
 public:
  BlockMatrix(std::vector<BlockPart> from, int64_t cols, int experts, bool int8, int64_t nr)
      : Matrix(rows_of(from), cols, experts), int8(int8), nr(nr) {
    int64_t row = 0;
    for (BlockPart& part : from) {
      const int64_t row_bytes = block_row_bytes(part.type, cols);
      bytes_ += size_t(part.rows * row_bytes);
      for (int64_t first = 0; first < part.rows; first += nr)
        panels_.push_back({int(parts.size()), first, row + first, std::min(nr, part.rows - first)});
      row += part.rows;
      parts.push_back({std::move(part), row_bytes});
    }
    expert_panels = int64_t(panels_.size()) / experts;
  }
  size_t bytes() const override { return bytes_; }
  bool quantised() const override { return true; }
  void unpack(float* to, int64_t first, int64_t count) const override {
    check_rows(*this, first, count);
    for (const Panel& panel : panels_)
      for (int64_t i = 0; i < panel.rows; ++i) {
        const int64_t row = panel.row + i;
        if (row < first || row >= first + count) continue;
        const BlockType type = parts[size_t(panel.part)].rows.type;
        decode_blocks(to + (row - first) * cols(), row_data(panel, i), type, cols() / block_layout(type).values);
      }
  }

  struct Part {
    BlockPart rows;
    int64_t row_bytes;
  };
  struct Panel {
    int part;
    int64_t in_part, row, rows;  // its first row in the part and in the matrix
  };
  const bool int8;
  const int64_t nr;
  int64_t expert_panels;
  std::vector<Part> parts;

  const Panel& panel(int64_t index) const { return panels_[size_t(index)]; }
  int64_t panels() const { return int64_t(panels_.size()); }
  const uint8_t* row_data(const Panel& panel, int64_t i) const {
    const Part& part = parts[size_t(panel.part)];
    return part.rows.data + stored_row(panel.in_part + i, part.rows.rows, part.rows.heads) * part.row_bytes;
  }
  const uint8_t* row_data(int64_t row, BlockType* type) const {
    const auto at = std::upper_bound(panels_.begin(), panels_.end(), row,
                                     [](int64_t wanted, const Panel& panel) { return wanted < panel.row; }) -
                    1;
    *type = parts[size_t(at->part)].rows.type;
    return row_data(*at, row - at->row);
  }

 private:
  static int64_t rows_of(const std::vector<BlockPart>& parts) {
    int64_t rows = 0;
    for (const BlockPart& part : parts) rows += part.rows;
    return rows;
  }

  size_t bytes_ = 0;
  std::vector<Panel> panels_;
};

// Finite numbers as bf16 in place, rounded as f32_to_bf16 does, a piece at a time so that the compiler can vectorise.
void narrow_finite(float* row, int64_t count) {
  constexpr int64_t kPiece = 32;  // every block's numbers are a multiple of it
  for (int64_t first = 0; first < count; first += kPiece) {
    uint32_t bits[kPiece];
    uint16_t half[kPiece];
    std::memcpy(bits, row + first, sizeof bits);
    for (int64_t j = 0; j < kPiece; ++j) half[j] = uint16_t((bits[j] + 0x7fffu + ((bits[j] >> 16) & 1u)) >> 16);
    std::memcpy(reinterpret_cast<char*>(row) + first * 2, half, sizeof half);
  }
}

// Rows of the stacked parts that one panel holds: element type and first element of each; null after the last row.
struct PanelRow {
  const char* data;
  DType dtype;
};

// `count` numbers from column k of a row, as T = float, or uint16_t bits of bf16 or fp16.
void load_row(float* to, const PanelRow& row, int64_t k, int64_t count, DType) {
  switch (row.dtype) {
    case DType::kF32: std::memcpy(to, row.data + k * 4, size_t(count) * 4); return;
    case DType::kBF16: {
      const uint16_t* from = reinterpret_cast<const uint16_t*>(row.data) + k;
      for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_f32(from[i]);
      return;
    }
    case DType::kF16: {
      const uint16_t* from = reinterpret_cast<const uint16_t*>(row.data) + k;
      for (int64_t i = 0; i < count; ++i) to[i] = widen_f16(from[i]);
      return;
    }
  }
}
void load_row(uint16_t* to, const PanelRow& row, int64_t k, int64_t count, DType storage) {
  if (row.dtype == storage) {
    std::memcpy(to, row.data + k * 2, size_t(count) * 2);
    return;
  }
  float wide[64];
  for (int64_t done = 0; done < count; done += 64) {
    const int64_t n = std::min<int64_t>(64, count - done);
    load_row(wide, row, k + done, n, storage);
    for (int64_t i = 0; i < n; ++i) to[done + i] = storage == DType::kBF16 ? f32_to_bf16(wide[i]) : f32_to_f16(wide[i]);
  }
}

// Fills one panel. Rows are converted a chunk of columns at a time into a small tile, which is then written out
// transposed.
template <typename T>
void pack_panel(T* to, const std::vector<PanelRow>& rows, int64_t k, const PackedMatrix& matrix, DType storage) {
  constexpr int64_t kChunk = 64;
  const int64_t nr = int64_t(rows.size());
  T tile[kMaxPanelColumns * kChunk];
  int64_t place[kMaxPanelColumns];  // of a column in a step, in elements
  for (int64_t j = 0; j < nr; ++j) place[j] = matrix.place(j);
  const bool pairs = matrix.layout == kLayoutBF16Pairs;
  const int64_t padded = pairs ? 2 * matrix.steps : matrix.steps;
  for (int64_t k0 = 0; k0 < padded; k0 += kChunk) {
    const int64_t width = std::min(kChunk, padded - k0), valid = std::min(kChunk, k - k0);
    for (int64_t j = 0; j < nr; ++j) {
      T* row = tile + j * kChunk;
      if (rows[size_t(j)].data == nullptr) {
        std::fill(row, row + width, T(0));
      } else {
        load_row(row, rows[size_t(j)], k0, valid, storage);
        std::fill(row + valid, row + width, T(0));
      }
    }
    if (pairs) {
      for (int64_t i = 0; i < width; i += 2, to += 2 * nr)
        for (int64_t j = 0; j < nr; ++j) std::memcpy(to + 2 * j, tile + j * kChunk + i, 2 * sizeof(T));
    } else {
      for (int64_t i = 0; i < width; ++i, to += nr)
        for (int64_t j = 0; j < nr; ++j) to[place[j]] = tile[j * kChunk + i];
    }
  }
}

// Scratch memory of a thread, reused across calls: packed activations, and partial sums between two blocks of k.
struct Scratch {
  AlignedBlock activations, sums;
  AlignedBlock panels;          // an operand of a backward product, packed
  AlignedBlock pieces;          // the caller's: pieces of a weight's gradient
  AlignedBlock sorted;          // the caller's: rows by their experts
  AlignedBlock shared;          // the caller's: activations of int8 products, packed for every task
  AlignedBlock wide, unpacked;  // rows of blocks, and the panel that is made of them
};
thread_local Scratch scratch;

int64_t wanted_tasks(const ThreadPool* pool) {
  return !pool || pool->threads() == 1 ? 1 : pool->threads() * kTasksPerThread;
}

// out (m, n) = activations (m, k) times packed weights, split into a grid of tasks.
struct Product {
  float* out;
  int64_t out_stride;
  const float* x;  // (m, k), or (k, m) if `transposed`; rows `x_stride` floats apart
  int64_t x_stride;
  bool transposed = false;
  int64_t m, n, k;
  WeightLayout layout;
  const char* weights;
  int64_t steps, step_bytes, panel_bytes, panels;
  const float* bias = nullptr;
  bool add;
  const MatmulKernels* kernels;
  const BlockMatrix* coded = nullptr;    // weights in blocks, instead of packed ones
  const float* packed = nullptr;         // kLayoutInt8: activations of all tiles, (steps, rows) of each
  int64_t first_panel = 0;               // of the expert
  int64_t mr = 0;                        // rows of the largest tile
  int64_t k_per_step = 1, a_floats = 1;  // of a step: numbers of k, and floats that a packed row takes
  int64_t block_steps, blocks;           // cut of k
  int64_t row_tasks, column_tasks;       // grid
  int64_t row_tiles;                     // tiles along M

  // Of the matrix of one expert.
  Product(const MatmulKernels& isa, const PackedMatrix& w, int64_t expert = 0)
      : n(w.expert_rows()),
        k(w.cols()),
        layout(w.layout),
        weights(w.panel(expert * w.expert_panels)),
        steps(w.steps),
        step_bytes(w.step_bytes),
        panel_bytes(w.panel_bytes),
        panels(w.expert_panels),
        kernels(&isa),
        mr(isa.mr),
        k_per_step(w.layout == kLayoutBF16Pairs ? 2 : 1) {}
  // Of one expert's matrix in blocks. Blocks of k are whole blocks of every type.
  Product(const MatmulKernels& isa, const BlockMatrix& w, bool bf16, int64_t expert = 0)
      : n(w.expert_rows()),
        k(w.cols()),
        layout(w.int8 ? kLayoutInt8
               : bf16 ? kLayoutBF16Pairs
                      : kLayoutF32),
        weights(nullptr),
        panels(w.expert_panels),
        kernels(&isa),
        coded(&w),
        first_panel(expert * w.expert_panels),
        mr(w.int8 ? isa.int8_mr : isa.mr),
        k_per_step(w.int8 ? kInt8Step
                   : bf16 ? 2
                          : 1),
        a_floats(w.int8 ? kInt8Floats : 1) {
    steps = k / k_per_step;
    step_bytes = isa.nr * (w.int8 ? kInt8Step : 4);
    panel_bytes = kBlockNumbers / k_per_step * step_bytes;
  }
  // Weights (k, n) fp32, packed by pack_panels.
  Product(const MatmulKernels& isa, const void* packed, int64_t k, int64_t n)
      : n(n),
        k(k),
        layout(kLayoutF32),
        weights(static_cast<const char*>(packed)),
        steps(k),
        step_bytes(isa.nr * 4),
        panel_bytes(steps * step_bytes),
        panels(ceil_div(n, isa.nr)),
        kernels(&isa),
        mr(isa.mr) {}

  // The first row of tile t: tiles differ by at most one row.
  int64_t tile_begin(int64_t t) const { return t * (m / row_tiles) + std::min(t, m % row_tiles); }

  // Consecutive tasks share weights, which are larger than the activations.
  void task(int64_t index) const {
    const int64_t i = index % row_tasks, j = index / row_tasks;
    run(row_tiles * i / row_tasks, row_tiles * (i + 1) / row_tasks, panels * j / column_tasks,
        panels * (j + 1) / column_tasks);
  }

  void run(int64_t tile_from, int64_t tile_to, int64_t panel_from, int64_t panel_to) const {
    const MatmulKernels& kernel = *kernels;
    const int64_t nr = kernel.nr, row_from = tile_begin(tile_from), rows = tile_begin(tile_to) - row_from;
    // A single fp32 row needs no packing.
    const bool pack = !packed && (rows > 1 || layout == kLayoutBF16Pairs || transposed);
    if (pack) scratch.activations.reserve(size_t(rows * block_steps * a_floats) * 4 + kPackSlack);
    if (blocks > 1) scratch.sums.reserve(size_t(rows * nr * (panel_to - panel_from)) * 4);

    // Tiles have m / row_tiles rows or one more.
    const int wide = coded                                                               ? 1
                     : kernel.wide[m / row_tiles] == kernel.wide[ceil_div(m, row_tiles)] ? kernel.wide[m / row_tiles]
                                                                                         : 1;
    MatmulTile tile;
    tile.panel_stride = panel_bytes;
    const int64_t near = std::min(kPrefetchMax, std::max(kPrefetchMin, panel_bytes / kPrefetchPart / 64 * 64));
    tile.sums_stride = rows * nr;
    tile.out_stride = out_stride;
    tile.add = add;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t step = block_begin(block);
      tile.steps = block_begin(block + 1) - step;
      tile.load_sums = block > 0;
      tile.store_sums = block + 1 < blocks;
      const float* block_x = transposed ? x + row_from + step * x_stride : x + row_from * x_stride + step * k_per_step;
      float* activations = static_cast<float*>(scratch.activations.data());
      if (pack) {
        const int64_t block_k = std::min(tile.steps * k_per_step, k - step * k_per_step);
        const auto pack_fn = layout == kLayoutBF16Pairs ? kernel.pack_bf16 : kernel.pack_f32;
        const int64_t pack_k = transposed ? kPackRows : block_k;
        for (int64_t first = 0; first < block_k; first += pack_k) {
          const int64_t count = std::min(pack_k, block_k - first);
          for (int64_t t = tile_from; t < tile_to; ++t) {
            const int64_t row = tile_begin(t) - row_from;
            const int tile_rows = int(tile_begin(t + 1) - row_from - row);
            float* to = activations + row * tile.steps * a_floats;
            if (transposed)
              kernel.pack_columns(to + first * tile_rows, block_x + first * x_stride + row, x_stride, tile_rows, count);
            else
              pack_fn(to, block_x + row * x_stride, x_stride, tile_rows, count);
          }
        }
      }
      for (int64_t panel = panel_from; panel < panel_to;) {
        const int64_t step_panels = panel_to - panel >= wide ? wide : 1;
        int64_t column = panel * nr;
        tile.columns = std::min(step_panels * nr, n - column);
        if (coded) {
          const BlockMatrix::Panel& place = coded->panel(first_panel + panel);
          column = place.row - coded->panel(first_panel).row;
          tile.columns = place.rows;
          unpack(&tile, place, step);
          if (panel + 1 < panel_to) prefetch_blocks(coded->panel(first_panel + panel + 1), step, tile.steps);
        } else {
          tile.b = weights + panel * panel_bytes + step * step_bytes;
        }
        tile.bias = bias ? bias + column : nullptr;
        for (int64_t t = tile_from; t < tile_to; ++t) {
          const int64_t row = tile_begin(t) - row_from, tile_rows = tile_begin(t + 1) - row_from - row;
          tile.a = packed ? packed + ((row_from + row) * steps + step * tile_rows) * a_floats
                   : pack ? activations + row * tile.steps * a_floats
                          : block_x;
          tile.out = out + (row_from + row) * out_stride + column;
          tile.sums = static_cast<float*>(scratch.sums.data()) + (panel - panel_from) * tile.sums_stride + row * nr;
          // The first tile prefetches its own panel from memory; later tiles, whose panel is cached, the next panel.
          tile.prefetch = t == tile_from ? near : panel_bytes * step_panels;
          (step_panels > 1 ? kernel.wide_panels : kernel.one_panel)[layout][tile_rows](&tile);
        }
        panel += step_panels;
      }
    }
  }

  // The first step of a block of k.
  int64_t block_begin(int64_t block) const {
    return coded ? std::min(steps, block * block_steps) : steps * block / blocks;
  }

  // Asks for the blocks of a panel: each of its rows lies elsewhere, and is too short for the processor to foresee.
  void prefetch_blocks(const BlockMatrix::Panel& panel, int64_t step, int64_t count) const {
    const BlockLayout& form = block_layout(coded->parts[size_t(panel.part)].rows.type);
    const int64_t from = step * k_per_step / form.values * form.bytes;
    const int64_t bytes = count * k_per_step / form.values * form.bytes;
    for (int64_t i = 0; i < panel.rows; ++i) {
      const uint8_t* row = coded->row_data(panel, i) + from;
      for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(row + line);
    }
  }

  // The numbers or codes of a panel of blocks for the steps of `tile`, in the calling thread's scratch.
  void unpack(MatmulTile* tile, const BlockMatrix::Panel& panel, int64_t step) const {
    const BlockMatrix& w = *coded;
    const BlockType type = w.parts[size_t(panel.part)].rows.type;
    const BlockLayout& form = block_layout(type);
    const BlockKernels& kernel = kernels->blocks[int(type)];
    const int64_t nr = w.nr, width = tile->steps * k_per_step, count = width / form.values;
    const int64_t offset = step * k_per_step / form.values * form.bytes;
    const int64_t groups = width / form.group;
    const float *rows[kMaxPanelColumns], *scales[kMaxPanelColumns], *minima[kMaxPanelColumns];
    const auto to = [&](int64_t floats) { return static_cast<float*>(scratch.unpacked.data()) + floats; };
    std::fill(rows, rows + nr, nullptr);
    std::fill(scales, scales + nr, nullptr);
    std::fill(minima, minima + nr, nullptr);
    const auto panel_numbers = layout == kLayoutBF16Pairs ? kernel.panel_pairs : kernel.panel_f32;
    if (layout == kLayoutInt8 ? kernel.panel_codes != nullptr : panel_numbers != nullptr) {
      // Zeros for the columns that the last panel lacks.
      static const uint8_t kZeros[kBlockNumbers / 32 * 34] = {};
      const uint8_t* blocks[kMaxPanelColumns];
      for (int64_t i = 0; i < nr; ++i) blocks[i] = i < panel.rows ? w.row_data(panel, i) + offset : kZeros;
      const int64_t words = layout == kLayoutInt8 ? width / 4 : tile->steps;
      scratch.unpacked.reserve(size_t(nr * (words + groups)) * 4);
      tile->b = to(0);
      tile->scales = to(nr * words);
      tile->minima = nullptr;
      tile->two_groups = false;
      if (layout == kLayoutInt8)
        kernel.panel_codes(to(0), to(nr * words), blocks, count);
      else
        panel_numbers(to(0), blocks, count);
      return;
    }
    if (layout != kLayoutInt8) {
      // Rows of fp32, or of pairs of bf16, which transposing treats as fp32: it computes nothing.
      scratch.wide.reserve(size_t(nr * width) * 4);
      scratch.unpacked.reserve(size_t(nr * tile->steps) * 4);
      float* row = static_cast<float*>(scratch.wide.data());
      for (int64_t i = 0; i < panel.rows; ++i, row += width) {
        kernel.decode(row, w.row_data(panel, i) + offset, count);
        rows[i] = row;
        if (layout != kLayoutBF16Pairs) continue;
        narrow_finite(row, width);
      }
      kernels->transpose_panel(to(0), rows, tile->steps);
      tile->b = to(0);
      return;
    }
    // Codes of four numbers side by side are transposed as one.
    const int64_t words = width / 4, row_floats = words + 2 * groups;
    // Not read in the loop, whose bytes might be it for all that the compiler knows.
    const int8_t flip = kernels->code_flip;
    scratch.wide.reserve(size_t(nr * row_floats) * 4);
    scratch.unpacked.reserve(size_t(nr * row_floats) * 4);
    float* row = static_cast<float*>(scratch.wide.data());
    for (int64_t i = 0; i < panel.rows; ++i, row += row_floats) {
      auto* codes = reinterpret_cast<int8_t*>(row);
      kernel.codes(codes, row + words, row + words + groups, w.row_data(panel, i) + offset, count);
      if (flip != 0)
        for (int64_t j = 0; j < width; ++j) codes[j] = int8_t(codes[j] ^ flip);
      rows[i] = row;
      scales[i] = row + words;
      minima[i] = row + words + groups;
    }
    kernels->transpose_panel(to(0), rows, words);
    kernels->transpose_panel(to(nr * words), scales, groups);
    if (form.has_minimum) kernels->transpose_panel(to(nr * (words + groups)), minima, groups);
    tile->b = to(0);
    tile->scales = to(nr * words);
    tile->minima = form.has_minimum ? to(nr * (words + groups)) : nullptr;
    tile->two_groups = form.group < kInt8Step;
  }

  // Splits the product into about `wanted` tasks, more where it is large. No split changes the order of operations of
  // an element.
  void split(int64_t wanted) {
    row_tiles = ceil_div(m, mr);
    if (coded) {
      block_steps = kBlockNumbers / k_per_step;
      blocks = ceil_div(steps, block_steps);
    } else {
      blocks = ceil_div(steps, row_tiles == 1 ? kStreamSteps : kBlockSteps);
      block_steps = ceil_div(steps, blocks);
    }
    row_tasks = ceil_div(m, kTaskRows);
    column_tasks = ceil_div(n, kTaskColumns);
    wanted = std::min(wanted, std::max<int64_t>(1, m * n * k / kSmallTask));
    while (row_tasks * column_tasks < wanted) {
      // Split rows first: then no two tasks pack the same activations. A task has at least two tiles of rows; with one,
      // reading the weights again per task would cost more.
      if (row_tiles / (row_tasks + 1) >= 2) {
        ++row_tasks;
      } else if (column_tasks < panels) {
        ++column_tasks;
      } else if (row_tasks < row_tiles) {
        ++row_tasks;
      } else {
        break;
      }
    }
    row_tasks = std::min(row_tasks, row_tiles);
    column_tasks = std::min(column_tasks, panels);
  }
  int64_t tasks() const { return row_tasks * column_tasks; }

  // Floats of the packed activations of all tiles, and those of one tile: rounding them to codes costs more than other
  // packing, so that tasks share it.
  int64_t packed_floats() const { return layout == kLayoutInt8 ? m * steps * a_floats : 0; }
  void pack_tile(float* to, int64_t t) const {
    const int64_t row = tile_begin(t);
    kernels->pack_int8(to + row * steps * a_floats, x + row * x_stride, x_stride, int(tile_begin(t + 1) - row), k);
  }

  // On the calling thread alone if `pool` is null.
  void run_on(ThreadPool* pool) {
    split(wanted_tasks(pool));
    if (const int64_t floats = packed_floats()) {
      scratch.shared.reserve(size_t(floats) * 4);
      float* to = static_cast<float*>(scratch.shared.data());
      parallel_ranges(*pool, row_tiles, mr * k, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) pack_tile(to, t);
      });
      packed = to;
    }
    if (pool) {
      pool->run(tasks(), [this](int64_t index) { task(index); });
    } else {
      for (int64_t index = 0; index < tasks(); ++index) task(index);
    }
  }
};

// With the matrix of one expert, packed or in blocks.
Product product_with(const MatmulKernels& kernels, const Matrix& w, bool bf16, int64_t expert = 0) {
  if (w.quantised()) return Product(kernels, static_cast<const BlockMatrix&>(w), bf16, expert);
  return Product(kernels, static_cast<const PackedMatrix&>(w), expert);
}

// Weights (k, n) row-major fp32 as panels, in the calling thread's scratch; packed by that thread alone if `pool` is
// null.
const void* pack_panels(ThreadPool* pool, const MatmulKernels& kernels, const float* w, int64_t k, int64_t n) {
  const int64_t nr = kernels.nr, panels = ceil_div(n, nr);
  scratch.panels.reserve(size_t(panels * k * nr) * 4);
  float* to = static_cast<float*>(scratch.panels.data());
  const auto pack = [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < k; first += kPackRows)
      for (int64_t panel = begin; panel < end; ++panel)
        kernels.pack_panel(to + (panel * k + first) * nr, w + first * n + panel * nr, n,
                           int(std::min(nr, n - panel * nr)), std::min(kPackRows, k - first));
  };
  if (pool) {
    parallel_ranges(*pool, panels, k * nr, pack);
  } else {
    pack(0, panels);
  }
  return to;
}

// to (columns, kMaxPanelColumns): columns [column, column + columns) of the rows in one panel of `w`, in fp32, a
// column's numbers of all rows side by side.
void widen_columns(float* to, const PackedMatrix& w, const char* panel, int64_t column, int64_t columns) {
  const int64_t nr = w.nr, lanes = w.lanes;
  for (int64_t j = 0; j < columns; ++j, to += kMaxPanelColumns) {
    const int64_t k = column + j;
    const auto* step =
        reinterpret_cast<const uint16_t*>(panel + (w.layout == kLayoutBF16Pairs ? k / 2 : k) * w.step_bytes);
    switch (w.layout) {
      case kLayoutBF16:
        for (int64_t group = 0; group < nr; group += 2 * lanes)
          for (int64_t l = 0; l < lanes; ++l) {
            to[group + l] = bf16_to_f32(step[group + 2 * l]);
            to[group + lanes + l] = bf16_to_f32(step[group + 2 * l + 1]);
          }
        break;
      case kLayoutBF16Pairs:
        for (int64_t i = 0; i < nr; ++i) to[i] = bf16_to_f32(step[2 * i + k % 2]);
        break;
      case kLayoutF16:
        for (int64_t i = 0; i < nr; ++i) to[i] = widen_f16(step[i]);
        break;
      default: std::memcpy(to, step, size_t(nr) * 4);
    }
  }
}

// Panels [from, until) over the columns of rows [first, first + rows) of a packed matrix: the same as pack_panels makes
// of these rows in row-major fp32, out of the matrix's own panels, square by square.
void transpose_panels(ThreadPool& pool, const MatmulKernels& kernels, float* to, const PackedMatrix& w, int64_t first,
                      int64_t rows, int64_t from, int64_t until) {
  const int64_t nr = w.nr;
  parallel_ranges(pool, until - from, rows * nr, [&](int64_t begin, int64_t end) {
    float wide[kMaxPanelColumns * kMaxPanelColumns];
    const float* lines[kMaxPanelColumns];
    for (int64_t p = begin; p < end; ++p) {
      const int64_t column = (from + p) * nr, columns = std::min(nr, w.cols() - column);
      std::fill(lines + columns, lines + nr, nullptr);
      for (int64_t row = first; row < first + rows;) {
        const PackedMatrix::Place place = w.locate(row);
        const int64_t last = std::min(first + rows, place.end);
        const char* source = w.panel(place.panel);
        const float* squares = reinterpret_cast<const float*>(source) + column * nr;
        int64_t apart = nr;
        if (w.layout != kLayoutF32) {
          widen_columns(wide, w, source, column, columns);
          squares = wide;
          apart = kMaxPanelColumns;
        }
        for (int64_t j = 0; j < columns; ++j) lines[j] = squares + j * apart + place.column;
        kernels.transpose_panel(to + (p * rows + row - first) * nr, lines, last - row);
        row = last;
      }
    }
  });
}

// As transpose_panels, out of a matrix in blocks.
void block_panels(ThreadPool& pool, const MatmulKernels& kernels, float* to, const BlockMatrix& w, int64_t first,
                  int64_t rows, int64_t from, int64_t until) {
  const int64_t nr = w.nr, begin = from * nr, end = std::min(w.cols(), until * nr);
  parallel_ranges(pool, rows, end - begin, [&](int64_t row_begin, int64_t row_end) {
    for (int64_t row = row_begin; row < row_end; ++row) {
      BlockType type;
      const uint8_t* data = w.row_data(first + row, &type);
      const BlockLayout& form = block_layout(type);
      float wide[kMostBlockValues];
      for (int64_t block = begin / form.values; block * form.values < end; ++block) {
        const int64_t at = block * form.values;
        kernels.blocks[int(type)].decode(wide, data + block * form.bytes, 1);
        for (int64_t k = std::max(begin, at); k < std::min(end, at + form.values); ++k)
          to[((k - begin) / nr * rows + row) * nr + (k - begin) % nr] = wide[k - at];
      }
    }
  });
  // Columns of the last panel that the matrix does not have.
  for (int64_t k = end - begin; k % nr != 0; ++k)
    for (int64_t row = 0; row < rows; ++row) to[(k / nr * rows + row) * nr + k % nr] = 0.0f;
}

// dw (n, k) = or += dy (m, n)^T x (m, k)
void weight_gradient(ThreadPool* pool, const MatmulKernels& kernels, float* dw, bool add, const float* dy,
                     int64_t dy_stride, const float* x, int64_t m, int64_t n, int64_t k) {
  Product product(kernels, pack_panels(pool, kernels, x, m, k), m, k);
  product.out = dw;
  product.out_stride = k;
  product.x = dy;
  product.x_stride = dy_stride;
  product.transposed = true;
  product.m = n;
  product.add = add;
  product.run_on(pool);
}

}  // namespace

bool CpuBackend::supports(Compute compute) const { return compute == Compute::kF32 || kernels_->matmul.bf16_products; }

std::unique_ptr<Matrix> CpuBackend::do_make_matrix(const std::vector<MatrixPart>& parts, int64_t cols, DType storage) {
  return do_make_expert_matrix(parts, cols, storage, 1);
}

std::unique_ptr<Matrix> CpuBackend::do_make_block_matrix(const std::vector<BlockPart>& parts, int64_t cols, int experts,
                                                         bool int8) {
  return std::make_unique<BlockMatrix>(parts, cols, experts, int8, kernels_->matmul.nr);
}

void CpuBackend::do_table_rows_forward(float* out, const Matrix& table, const int32_t* ids, int64_t m) {
  const auto& matrix = static_cast<const BlockMatrix&>(table);
  const int64_t k = matrix.cols();
  parallel_ranges(pool_, m, k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      BlockType type;
      const uint8_t* row = matrix.row_data(ids[i], &type);
      kernels_->matmul.blocks[int(type)].decode(out + i * k, row, k / block_layout(type).values);
    }
  });
}

std::unique_ptr<Matrix> CpuBackend::do_make_expert_matrix(const std::vector<MatrixPart>& parts, int64_t cols,
                                                          DType storage, int experts) {
  int64_t rows = 0;
  for (const MatrixPart& part : parts) rows += part.rows;
  const WeightLayout layout = storage == DType::kF32        ? kLayoutF32
                              : compute() == Compute::kBF16 ? kLayoutBF16Pairs
                              : storage == DType::kBF16     ? kLayoutBF16
                                                            : kLayoutF16;
  auto matrix = std::make_unique<PackedMatrix>(rows, cols, layout, kernels_->matmul, experts);
  do_update_matrix(*matrix, parts);
  return matrix;
}

void CpuBackend::do_update_matrix(Matrix& to, const std::vector<MatrixPart>& parts) {
  PackedMatrix& matrix = static_cast<PackedMatrix&>(to);
  const DType storage = matrix.layout == kLayoutF32   ? DType::kF32
                        : matrix.layout == kLayoutF16 ? DType::kF16
                                                      : DType::kBF16;
  const int64_t nr = matrix.nr, expert_rows = matrix.expert_rows(), cols = matrix.cols();
  std::vector<int64_t> first_row(1, 0);  // of each part
  for (const MatrixPart& part : parts) first_row.push_back(first_row.back() + part.rows);
  parallel_ranges(pool_, matrix.panels, cols * nr, [&](int64_t begin, int64_t end) {
    std::vector<PanelRow> panel_rows(static_cast<size_t>(nr));
    for (int64_t panel = begin; panel < end; ++panel) {
      bool all_f32 = matrix.layout == kLayoutF32;
      const int64_t first = panel % matrix.expert_panels * nr, expert = panel / matrix.expert_panels;
      for (int64_t j = 0; j < nr; ++j) {
        panel_rows[size_t(j)] = PanelRow{nullptr, storage};
        if (first + j >= expert_rows) continue;
        const int64_t row = expert * expert_rows + first + j;
        const size_t part = size_t(std::upper_bound(first_row.begin(), first_row.end(), row) - first_row.begin()) - 1;
        const size_t offset = size_t(row - first_row[part]) * size_t(cols) * dtype_size(parts[part].dtype);
        panel_rows[size_t(j)] = {static_cast<const char*>(parts[part].data) + offset, parts[part].dtype};
        all_f32 = all_f32 && parts[part].dtype == DType::kF32;
      }
      char* packed = static_cast<char*>(matrix.memory.data()) + panel * matrix.panel_bytes;
      if (all_f32) {  // training, once per optimiser step
        const float* f32_rows[kMaxPanelColumns];
        for (int64_t j = 0; j < nr; ++j) f32_rows[j] = reinterpret_cast<const float*>(panel_rows[size_t(j)].data);
        kernels_->matmul.transpose_panel(reinterpret_cast<float*>(packed), f32_rows, cols);
      } else if (matrix.layout == kLayoutF32) {
        pack_panel(reinterpret_cast<float*>(packed), panel_rows, cols, matrix, storage);
      } else {
        pack_panel(reinterpret_cast<uint16_t*>(packed), panel_rows, cols, matrix, storage);
      }
    }
  });
}

void CpuBackend::do_linear_forward(Array out, int64_t out_stride, ConstArray x, int64_t m, const Matrix& w,
                                   const float* bias, bool accumulate) {
  if (m <= 0 || w.rows() == 0) return;
  Product product = product_with(kernels_->matmul, w, compute() == Compute::kBF16);
  product.out = out.f32();
  product.out_stride = out_stride;
  product.x = x.f32();
  product.x_stride = w.cols();
  product.m = m;
  product.bias = bias;
  product.add = accumulate;
  product.run_on(&pool_);
}

void CpuBackend::do_experts_forward(Array out, ConstArray x, bool sorted, const ExpertRows& rows, const Matrix& w) {
  const int64_t k = w.cols(), n = w.expert_rows();
  if (rows.pairs <= 0 || n == 0) return;
  const float* from = sorted ? x.f32() : sort_rows(x.f32(), rows, k);
  // One grid of tasks over all products: a product of few rows alone would not keep every thread busy.
  std::vector<Product> products;
  for (int e = 0; e < rows.experts; ++e) {
    const int64_t begin = rows.offset[e], count = rows.offset[e + 1] - begin;
    if (count == 0) continue;
    products.push_back(product_with(kernels_->matmul, w, compute() == Compute::kBF16, e));
    Product& product = products.back();
    product.out = out.f32() + begin * n;
    product.out_stride = n;
    product.x = from + begin * k;
    product.x_stride = k;
    product.m = count;
    product.add = false;
  }
  const int64_t wanted = ceil_div(wanted_tasks(&pool_), int64_t(products.size()));
  std::vector<int64_t> first_task(1, 0);
  for (Product& product : products) {
    product.split(wanted);
    first_task.push_back(first_task.back() + product.tasks());
  }
  int64_t floats = 0;
  for (const Product& product : products) floats += product.packed_floats();
  if (floats > 0) {
    scratch.shared.reserve(size_t(floats) * 4);
    float* to = static_cast<float*>(scratch.shared.data());
    std::vector<float*> begins;
    for (Product& product : products) {
      begins.push_back(to);
      product.packed = to;
      to += product.packed_floats();
    }
    pool_.run(int64_t(products.size()), [&](int64_t i) {
      const Product& product = products[size_t(i)];
      for (int64_t t = 0; t < product.row_tiles; ++t) product.pack_tile(begins[size_t(i)], t);
    });
  }
  pool_.run(first_task.back(), [&](int64_t index) {
    const size_t at = size_t(std::upper_bound(first_task.begin(), first_task.end(), index) - first_task.begin()) - 1;
    products[at].task(index - first_task[at]);
  });
}

void CpuBackend::do_experts_backward_input(Array dx, ConstArray dy, bool sorted, const ExpertRows& rows,
                                           const Matrix& w) {
  const int64_t k = w.cols(), n = w.expert_rows();
  if (rows.pairs <= 0 || k == 0) return;
  const float* from = sorted ? dy.f32() : sort_rows(dy.f32(), rows, n);
  for (int e = 0; e < rows.experts; ++e) {
    const int64_t begin = rows.offset[e], count = rows.offset[e + 1] - begin;
    do_linear_backward_input(dx + begin * k, from + begin * n, n, w, e * n, n, count, false);
  }
}

// x (., width)[rows.row] in the calling thread's scratch.
const float* CpuBackend::sort_rows(const float* x, const ExpertRows& rows, int64_t width) {
  scratch.sorted.reserve(size_t(rows.pairs * width) * 4);
  float* to = static_cast<float*>(scratch.sorted.data());
  parallel_ranges(pool_, rows.pairs, width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(to + i * width, x + int64_t(rows.row[i]) * width, size_t(width) * 4);
  });
  return to;
}

void CpuBackend::do_linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, ConstArray w, int64_t m,
                                          int64_t n, int64_t k, bool accumulate) {
  if (m <= 0 || k <= 0) return;
  if (n == 0) {
    if (!accumulate) do_fill_zero(dx.f32(), m * k);
    return;
  }
  Product product(kernels_->matmul, pack_panels(&pool_, kernels_->matmul, w.f32(), n, k), n, k);
  product.out = dx.f32();
  product.out_stride = k;
  product.x = dy.f32();
  product.x_stride = dy_stride;
  product.m = m;
  product.add = accumulate;
  product.run_on(&pool_);
}

void CpuBackend::do_linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, const Matrix& w,
                                          int64_t first_row, int64_t rows, int64_t m, bool accumulate) {
  const int64_t k = w.cols(), nr = kernels_->matmul.nr, panels = ceil_div(k, nr);
  if (m <= 0) return;
  if (rows == 0) {
    if (!accumulate) do_fill_zero(dx.f32(), m * k);
    return;
  }
  // A few panels at a time bound the scratch memory; the order of operations of an element does not depend on the
  // split.
  const int64_t most = std::max<int64_t>(pool_.threads(), kTransposedBytes / (rows * nr * 4));
  scratch.panels.reserve(size_t(std::min(panels, most) * rows * nr) * 4);
  float* packed = static_cast<float*>(scratch.panels.data());
  for (int64_t from = 0; from < panels; from += most) {
    const int64_t until = std::min(panels, from + most);
    if (w.quantised())
      block_panels(pool_, kernels_->matmul, packed, static_cast<const BlockMatrix&>(w), first_row, rows, from, until);
    else
      transpose_panels(pool_, kernels_->matmul, packed, static_cast<const PackedMatrix&>(w), first_row, rows, from,
                       until);
    Product product(kernels_->matmul, packed, rows, std::min(k, until * nr) - from * nr);
    product.out = dx.f32() + from * nr;
    product.out_stride = k;
    product.x = dy.f32();
    product.x_stride = dy_stride;
    product.m = m;
    product.add = accumulate;
    product.run_on(&pool_);
  }
}

void CpuBackend::do_linear_backward_weight(float* dw, float* db, ConstArray dy_array, int64_t dy_stride,
                                           ConstArray x_array, int64_t m, int64_t n, int64_t k) {
  if (m <= 0 || n <= 0) return;
  const float *dy = dy_array.f32(), *x = x_array.f32();
  const MatmulKernels& kernels = kernels_->matmul;
  // A small dw has few tiles, and threads that split them copy the same operands. So dw is the sum of pieces, each over
  // its own rows, and a thread reads only these rows. The pieces depend on the shape alone.
  const int64_t size = n * k, pieces = std::max<int64_t>(1, std::min(ceil_div(m, kPieceRows), kPieceSums / size));
  const auto piece = [&](int64_t i, ThreadPool* pool, float* to, bool add) {
    const int64_t first = m * i / pieces, count = m * (i + 1) / pieces - first;
    weight_gradient(pool, kernels, to, add, dy + first * dy_stride, dy_stride, x + first * k, count, n, k);
  };
  if (pool_.threads() == 1 || pieces < pool_.threads() || m * size < 2 * kSmallTask) {
    for (int64_t i = 0; i < pieces; ++i) piece(i, &pool_, dw, true);
  } else {
    scratch.pieces.reserve(size_t(pieces * size) * 4);
    float* sums = static_cast<float*>(scratch.pieces.data());
    pool_.run(pieces, [&](int64_t i) { piece(i, nullptr, sums + i * size, false); });
    parallel_ranges(pool_, size, pieces, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < pieces; ++i)
        for (int64_t j = begin; j < end; ++j) dw[j] += sums[i * size + j];
    });
  }
  if (db == nullptr) return;
  parallel_ranges(pool_, ceil_div(n, kColumns), m * kColumns, [&](int64_t begin, int64_t end) {
    begin *= kColumns;
    kernels_->rows.add_column_sums(db + begin, dy + begin, dy_stride, m, std::min(n, end * kColumns) - begin);
  });
}

}  // namespace cpu
}  // namespace dultra
