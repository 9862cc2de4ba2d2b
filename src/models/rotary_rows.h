// Rows of query and key projections, whose heads rotate: Transformers pairs dimension i of a head with i + D
// / 2, llama.cpp's "llama" files have the two side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace qiao {

// Copies `rows` rows of `row_bytes` bytes, whole heads of `head_dim`, from halves to pairs or back.
void reorder_rotary_rows(const std::byte* from, int64_t row_bytes, int64_t rows, int64_t head_dim,
                         bool to_pairs, std::byte* to);

// Of a matrix of `columns` columns, whose first `rows` rows are of heads; the others stay.
std::vector<float> reordered_rotary_rows(const std::vector<float>& values, int64_t columns, int64_t rows,
                                         int64_t head_dim, bool to_pairs);

}  // namespace qiao
