#include "models/rotary_rows.h"

#include <cstring>

namespace qiao {

void reorder_rotary_rows(const std::byte* from, int64_t row_bytes, int64_t rows, int64_t head_dim,
                         bool to_pairs, std::byte* to) {
  const int64_t half = head_dim / 2;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / head_dim * head_dim, i = row % head_dim;
    const int64_t paired = head + i % half * 2 + i / half;
    const int64_t source = to_pairs ? row : paired, target = to_pairs ? paired : row;
    std::memcpy(to + target * row_bytes, from + source * row_bytes, static_cast<size_t>(row_bytes));
  }
}

std::vector<float> reordered_rotary_rows(const std::vector<float>& values, int64_t columns, int64_t rows,
                                         int64_t head_dim, bool to_pairs) {
  std::vector<float> made = values;
  reorder_rotary_rows(reinterpret_cast<const std::byte*>(values.data()),
                      columns * static_cast<int64_t>(sizeof(float)), rows, head_dim, to_pairs,
                      reinterpret_cast<std::byte*>(made.data()));
  return made;
}

}  // namespace qiao
