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

// What of `ranges` is not in `taken`.
std::vector<Range> without(const std::vector<Range>& ranges, const Range& taken) {
  std::vector<Range> left;
  for (const Range& range : ranges) {
    const int64_t end = range.first + range.count;
    const int64_t before = std::clamp(taken.first, range.first, end);
    const int64_t behind = std::clamp(taken.first + taken.count, before, end);
    if (before > range.first) left.push_back({range.first, before - range.first});
    if (end > behind) left.push_back({behind, end - behind});
  }
  return left;
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
  std::vector<Range> left;  // rows
  for (const Range& rows : own.rows) {
    std::vector<Range> mine = {rows};
    for (const TensorPart* other : parts.first(parts.size() - 1)) {
      if (!meet(own.columns, other->columns)) continue;
      for (const Range& theirs : other->rows) mine = without(mine, theirs);
    }
    left.insert(left.end(), mine.begin(), mine.end());
  }
  std::vector<Range> counted;
  for (const Range& rows : left) {
    int64_t before = 0;  // rows of the part
    for (const Range& range : own.rows)
      before += std::clamp<int64_t>(rows.first - range.first, 0, range.count);
    counted.push_back({before * own.columns.count, rows.count * own.columns.count});
  }
  return counted;
}

}  // namespace qiao::train
