#include "train/tensor_part.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace qiao::train {
namespace {

// body(first in the whole, first in the part, count) for all numbers that lie together in both.
template <class Body>
void each_run(const TensorPart& part, int64_t runs, Body body) {
  int64_t own = 0;
  for (int64_t run = 0; run < runs; ++run) {
    for (const Range& rows : part.rows) {
      const bool together = part.columns.count == part.whole_columns;
      const int64_t count = part.columns.count * (together ? rows.count : 1);
      for (int64_t row = rows.first; row < rows.first + rows.count; row += together ? rows.count : 1) {
        body((run * part.whole_rows + row) * part.whole_columns + part.columns.first, own, count);
        own += count;
      }
    }
  }
}

bool meet(const Range& a, const Range& b) {
  return a.first < b.first + b.count && b.first < a.first + a.count;
}

}  // namespace

int64_t TensorPart::count() const {
  int64_t all = 0;
  for (const Range& range : rows) all += range.count;
  return all * columns.count;
}

void take_part(const TensorPart& part, int64_t runs, size_t unit, std::span<const std::byte> whole,
               std::span<std::byte> own) {
  QIAO_ASSERT(whole.size() == static_cast<size_t>(runs * part.whole_count()) * unit);
  QIAO_ASSERT(own.size() == static_cast<size_t>(runs * part.count()) * unit);
  each_run(part, runs, [&](int64_t from, int64_t to, int64_t count) {
    std::memcpy(own.data() + static_cast<size_t>(to) * unit, whole.data() + static_cast<size_t>(from) * unit,
                static_cast<size_t>(count) * unit);
  });
}

void put_part(const TensorPart& part, int64_t runs, size_t unit, std::span<const std::byte> own,
              std::span<std::byte> whole) {
  QIAO_ASSERT(whole.size() == static_cast<size_t>(runs * part.whole_count()) * unit);
  QIAO_ASSERT(own.size() == static_cast<size_t>(runs * part.count()) * unit);
  each_run(part, runs, [&](int64_t to, int64_t from, int64_t count) {
    std::memcpy(whole.data() + static_cast<size_t>(to) * unit, own.data() + static_cast<size_t>(from) * unit,
                static_cast<size_t>(count) * unit);
  });
}

std::vector<Range> counted_numbers(std::span<const TensorPart* const> parts) {
  const TensorPart& own = *parts.back();
  std::vector<Range> counted;
  int64_t place = 0;
  for (const Range& rows : own.rows) {
    for (int64_t row = rows.first; row < rows.first + rows.count; ++row, place += own.columns.count) {
      const bool is_before = std::ranges::any_of(parts.first(parts.size() - 1), [&](const TensorPart* other) {
        return meet(own.columns, other->columns) &&
               std::ranges::any_of(other->rows, [&](const Range& theirs) {
                 return meet({row, 1}, theirs);
               });
      });
      if (is_before) continue;
      if (!counted.empty() && counted.back().first + counted.back().count == place) {
        counted.back().count += own.columns.count;
      } else {
        counted.push_back({place, own.columns.count});
      }
    }
  }
  return counted;
}

}  // namespace qiao::train
