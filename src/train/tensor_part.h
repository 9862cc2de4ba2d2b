// Which part of a tensor of the file one of several ranks trains.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "models/shards.h"

namespace qiao::train {

// Of a matrix of whole_rows x whole_columns (a norm or a bias: one column), or of as many such as there are
// experts in the tensor, these rows and columns of each, one behind the other. No rows: nothing.
struct TensorPart {
  std::vector<Range> rows;  // ascending
  Range columns;
  int64_t whole_rows = 0, whole_columns = 0;

  int64_t count() const;  // of numbers, of one matrix
  int64_t whole_count() const { return whole_rows * whole_columns; }
  bool is_whole() const { return count() == whole_count(); }
};

// Between a tensor's numbers, of `unit` bytes, of `runs` matrices, and a part of them.
void take_part(const TensorPart& part, int64_t runs, size_t unit, std::span<const std::byte> whole,
               std::span<std::byte> own);
void put_part(const TensorPart& part, int64_t runs, size_t unit, std::span<const std::byte> own,
              std::span<std::byte> whole);

// Which numbers of a matrix of the last of these parts are in none of those before it: ranges of its own. (Of
// two parts whose columns meet both have the same columns.)
std::vector<Range> counted_numbers(std::span<const TensorPart* const> parts);

}  // namespace qiao::train
