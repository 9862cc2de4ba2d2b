// Matrices of E4M3 numbers with scales, of every kind that checkpoints have, as rows of F8_128; and floats
// quantized to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tensor/dtype.h"

namespace qiao {

// The scales of a matrix [N, K]: that of element [n, k] is values[n / block_rows * stride + k /
// block_columns]. One scale for all has blocks of N by K, one for each row blocks of 1 by K.
struct F8Scales {
  std::vector<float> values;
  int64_t block_rows = 1, block_columns = 1, stride = 1;
  float at(int64_t n, int64_t k) const {
    return values[static_cast<size_t>(n / block_rows * stride + k / block_columns)];
  }
  // Whether rows of this many columns are rows of F8_128: whole blocks, each with one scale.
  bool fit_f8_128(int64_t columns) const {
    return columns % kF8Block == 0 && (block_columns % kF8Block == 0 || block_columns >= columns);
  }
};

// Rows [first_row, first_row + rows) of `numbers` [N, columns] as F8_128, without loss: row_bytes(kF8_128,
// columns) bytes each. Required: scales.fit_f8_128(columns).
void join_f8(const std::byte* numbers, const F8Scales& scales, int64_t first_row, int64_t rows,
             int64_t columns, std::byte* to);
// The same rows as floats: number times scale, rounded to F32 as F8_128's dequantization rounds.
void dequantize_f8(const std::byte* numbers, const F8Scales& scales, int64_t first_row, int64_t rows,
                   int64_t columns, float* to);

// Floats [rows, columns] to F8_128, with one scale for each 128 rows (the last block may have fewer) by 128
// columns: max|x| / 448, and the numbers x times 448 / max|x|, to nearest even; both 0 where max|x| < 2^-100.
// A NaN stays one. Required: columns is a multiple of 128.
void quantize_f8(std::span<const float> values, int64_t rows, int64_t columns, std::byte* to);

// The same of floats rounded to BF16 first: what a file of them in BF16 is quantized to.
void quantize_f8_of_bf16(std::span<const float> values, int64_t rows, int64_t columns, std::byte* to);

// Whether scales of rows of F8_128 are the same for 128 rows, from the first on (the last block may have
// fewer), as quantize_f8 makes them.
bool has_square_scales(const std::byte* bytes, int64_t rows, int64_t columns);

}  // namespace qiao
