// What the way back of linear needs of an instruction set: a tile of a product that walks its sum in order.
#pragma once

#include <cstdint>

#include "backend/cpu/isa.h"

namespace qiao::cpu {

// c[i, j] = (add ? c[i, j] : 0) + sum over s of a[i * a_row + s * a_step] * b[s * panel + j], s ascending,
// each fused where the instructions are.
struct TileProduct {
  const float* a;
  int64_t a_row, a_step;
  const float* b;
  int64_t steps;
  int64_t rows, columns;  // from 1 to tile_rows and to panel; b may hold anything beyond `columns`
  float* c;
  int64_t c_stride;
  bool add;
};

struct LinearBackwardKernels {
  int64_t tile_rows;
  int64_t panel;  // columns of a tile, a multiple of 16
  void (*multiply)(const TileProduct& product);
  // `elements` columns from `column` (a multiple of 16) on of `rows` rows, as weights lie, [elements][16]
  // rows, to panels: packed[column / panel][depth][panel], from its row 0 on.
  void (*pack_group)(const float* from, int64_t elements, int64_t column, int64_t rows, int64_t depth,
                     float* packed);
  // A row of `columns` numbers to panels: packed[column / panel][depth][panel], which begins at its row.
  void (*pack_row)(const float* from, int64_t columns, int64_t depth, float* packed);
  // `rows` columns of `depth` rows to tiles: tiles[column / tile_rows][depth][tile_rows].
  void (*pack_tiles)(const float* from, int64_t stride, int64_t depth, int64_t rows, float* tiles);

  // What follows is of Compute::kBF16. A step of the product is bf16_steps numbers of the sum: 1, a number
  // rounded to BF16 and kept as F32; or 2, a pair of them in a float's place, the first in the low half, an
  // odd last one with a zero.
  int64_t bf16_steps;
  // Steps along a row: `count` numbers. To `from` itself, or to nothing that overlaps it.
  void (*round_row)(const float* from, int64_t count, float* to);
  // Steps from row to row: `depth` rows of `width`, `stride` apart, to rows of steps without gaps. To `from`
  // itself (then stride is width), or to nothing that overlaps it.
  void (*round_rows)(const float* from, int64_t stride, int64_t depth, int64_t width, float* to);
  void (*multiply_bf16)(const TileProduct& product);  // of such steps; a and b are not read as floats

  // What follows is of Compute::kF8: floats rounded to E4M3 in blocks of kF8Block, and dequantized again. In
  // place or to nothing that overlaps. A run of `count` in blocks along it:
  void (*round_row_f8)(const float* from, int64_t count, float* to);
  // `depth` rows of `width`, `stride` apart, each column in blocks, to rows without gaps (stride is width
  // where `to` is `from`):
  void (*round_rows_f8)(const float* from, int64_t stride, int64_t depth, int64_t width, float* to);
};
extern const LinearBackwardKernels kLinearBackwardGeneric, kLinearBackwardAvx2, kLinearBackwardAvx512,
    kLinearBackwardAvx512Bf16;

// The table of a set this machine has (Isa up to widest_isa()).
const LinearBackwardKernels& gradient_kernels(Isa isa);

}  // namespace qiao::cpu
