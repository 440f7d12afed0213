// The inner loops of the matrix product, one table per instruction set (isa/matmul.inl). matmul.cc packs, blocks and
// threads.
//
// Packed weights: the N columns of the product are cut into panels of `nr`, the last one padded with zeros. Inside a
// panel the K steps follow each other; a step holds the weights of the panel's columns for one k (for two k in
// kBF16Pairs).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace dultra {
namespace cpu {

// How one step of a panel lies in memory; nr elements each.
enum WeightLayout {
  kLayoutF32,   // fp32, column order
  kLayoutBF16,  // bf16; in each group of 2 * lanes columns, column j beside column j + lanes, so that a shift and a
                // mask widen them
  kLayoutF16,   // fp16, column order
  kLayoutBF16Pairs,  // bf16 pairs (k, k + 1) per column, column order; for bf16 products
  kLayoutInt8,       // codes of 32 numbers of k per step, four of a column side by side, with their scales
  kLayouts,
};

// One tile of the product: `rows` x (`panels` * nr) sums over a block of k.
struct MatmulTile {
  int64_t steps;         // k of the block; pairs of k for kLayoutBF16Pairs; 32 of k for kLayoutInt8
  const void* a;         // packed activations (steps, rows): fp32, or bf16 pairs, or as pack_int8 makes them
  const void* b;         // the block's first step in the first panel
  int64_t panel_stride;  // bytes from a panel to the next
  int64_t prefetch;      // bytes from the step in use to the one to prefetch
  float* sums;           // (rows, nr) per panel: sums of the earlier blocks of k; contiguous
  int64_t sums_stride;   // floats from a panel's sums to the next panel's
  bool load_sums;        // not the first block: continue from `sums`
  bool store_sums;       // not the last block: leave the sums in `sums` and do not touch `out`
  float* out;            // (rows, columns), rows `out_stride` floats apart
  int64_t out_stride;
  int64_t columns;    // 1 .. panels * nr
  const float* bias;  // (columns) or null
  bool add;           // add to what `out` holds
  // kLayoutInt8: scales of the panel's columns, (steps, nr) or with two groups a step (2 steps, nr), and their minima
  // or null.
  const float* scales;
  const float* minima;
  bool two_groups;
};

typedef void (*MatmulTileFn)(const MatmulTile* tile);

// What a type of blocks (ops/blocks.h) is unpacked by.
struct BlockKernels {
  // The numbers of `count` blocks, and their codes with the scales and minima of their groups.
  void (*decode)(float* to, const uint8_t* from, int64_t count);
  void (*codes)(int8_t* codes, float* scale, float* minimum, const uint8_t* from, int64_t count);
  // One panel of `count` blocks of each of nr rows, none of them null: codes with scales for kLayoutInt8, numbers for
  // kLayoutF32 and for kLayoutBF16Pairs. Null where decode or codes and transpose_panel have to do.
  void (*panel_codes)(void* to, float* scales, const uint8_t* const* rows, int64_t count);
  void (*panel_f32)(float* to, const uint8_t* const* rows, int64_t count);
  void (*panel_pairs)(float* to, const uint8_t* const* rows, int64_t count);
};
constexpr int kBlockKernels = 12;  // one per BlockType

// kLayoutInt8: activations of a step of 32 numbers take this many floats' room per row: 8 of codes, a scale, and the
// codes' sums of both halves.
constexpr int kInt8Step = 32, kInt8Floats = 11;

constexpr int kMaxTileRows = 12;  // bounds of mr and nr
constexpr int kMaxPanelColumns = 32;

struct MatmulKernels {
  int lanes;                   // floats per vector
  int nr;                      // columns of a panel
  int mr;                      // rows of the largest tile
  bool bf16_products;          // the set multiplies bf16 pairs
  int wide[kMaxTileRows + 1];  // panels that the wide tile of that many rows covers
  // [layout][rows]; a null layout is not supported
  MatmulTileFn one_panel[kLayouts][kMaxTileRows + 1];
  MatmulTileFn wide_panels[kLayouts][kMaxTileRows + 1];
  // to (k, rows) = x (rows, k) transposed, x rows `stride` floats apart. Writes up to pack_slack bytes too many.
  void (*pack_f32)(void* to, const float* x, int64_t stride, int rows, int64_t k);
  // to (k, rows) = x (k, rows), x rows `stride` floats apart: activations that come transposed, as those of a weight's
  // gradient do.
  void (*pack_columns)(float* to, const float* x, int64_t stride, int rows, int64_t k);
  // One fp32 panel from weights (k, columns), rows `stride` floats apart; columns <= nr, zeros beyond.
  void (*pack_panel)(float* to, const float* w, int64_t stride, int columns, int64_t k);
  // One fp32 panel from nr rows of k numbers each; null rows give zeros.
  void (*transpose_panel)(float* to, const float* const* rows, int64_t k);
  // to ((k + 1) / 2, rows) pairs of bf16, rounded to nearest even; an odd k is padded with 0. Null without
  // bf16_products.
  void (*pack_bf16)(void* to, const float* x, int64_t stride, int rows, int64_t k);
  BlockKernels blocks[kBlockKernels];
  int int8_mr;  // rows of the largest tile of kLayoutInt8
  // to (k / 32, ...): for every 32 numbers the codes of all rows, four by four: (8, rows, 4) int8; then scales (rows)
  // and sums of the codes of the first and of the last 16: (2, rows) int32. A code is the number divided by the scale,
  // rounded to nearest even, -127 to 127.
  void (*pack_int8)(void* to, const float* x, int64_t stride, int rows, int64_t k);
  int8_t code_flip;  // what the codes of a panel are xored with
};

constexpr size_t kPackSlack = 64;  // bytes a pack function may write behind its output

}  // namespace cpu
}  // namespace dultra
