#include "backend/row_squares.h"

#include <algorithm>
#include <vector>

namespace qiao {

Buffer make_row_squares(Backend& chip, const Weight& table) {
  constexpr int64_t kFloatsAtOnce = int64_t{1} << 22;
  const int64_t rows = table.rows(), columns = table.columns();
  const int64_t at_once = std::clamp<int64_t>(kFloatsAtOnce / columns, 1, rows);
  std::vector<float> squares(static_cast<size_t>(rows)), values(static_cast<size_t>(at_once * columns));
  std::vector<int32_t> ids(static_cast<size_t>(at_once));
  const Buffer of_ids = chip.allocate(ids.size() * sizeof(int32_t));
  const Buffer of_values = chip.allocate(values.size() * sizeof(float));
  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t count = std::min(at_once, rows - first);
    for (int64_t i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = static_cast<int32_t>(first + i);
    chip.upload(of_ids.data(), ids.data(), static_cast<size_t>(count) * sizeof(int32_t));
    chip.gather({&table, Tensor(of_ids.data(), DType::kI32, {count}), 1.0f,
                 Tensor(of_values.data(), DType::kF32, {count, columns})});
    chip.download(values.data(), of_values.data(), static_cast<size_t>(count * columns) * sizeof(float));
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0;
      for (int64_t c = 0; c < columns; ++c) {
        const double value = values[static_cast<size_t>(i * columns + c)];
        sum += value * value;
      }
      squares[static_cast<size_t>(first + i)] = static_cast<float>(sum);
    }
  }
  Buffer result = chip.allocate(squares.size() * sizeof(float));
  chip.upload(result.data(), squares.data(), squares.size() * sizeof(float));
  return result;
}

}  // namespace qiao
