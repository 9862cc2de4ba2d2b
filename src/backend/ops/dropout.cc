#include "backend/ops/dropout.h"

#include <algorithm>
#include <cmath>

#include "backend/ops/check.h"

namespace qiao {

void Dropout::check() const {
  constexpr std::string_view op = "dropout";
  check::rank(op, "y", y, 2);
  check::rows(op, "y", y, DType::kF32, {y.shape[0], y.shape[1]});
  check::rows(op, "x", x, DType::kF32, {y.shape[0], y.shape[1]});
  check::same_or_distinct(op, "y", y, "x", x);
  if (!(probability >= 0 && probability < 1))
    check::refuse(op, fmt::format("probability is {}, expected 0 to below 1", probability));
  if (y.shape[0] > int64_t{UINT32_MAX} - first_row)
    check::refuse(op, fmt::format("rows {} to {} of a mask, expected rows below 2^32", first_row,
                                  first_row + y.shape[0]));
  if (y.shape[1] > int64_t{UINT32_MAX} - first_column)
    check::refuse(op, fmt::format("columns {} to {} of a mask, expected columns below 2^32", first_column,
                                  first_column + y.shape[1]));
}

// A block of Philox is some 60 operations and serves four elements.
double Dropout::flops() const { return 16.0 * static_cast<double>(y.elements()); }
double Dropout::bytes() const { return static_cast<double>(x.bytes() + (add ? 2 : 1) * y.bytes()); }

uint32_t Dropout::threshold() const {
  return static_cast<uint32_t>(std::min(std::round(static_cast<double>(probability) * 0x1p32), 0x1p32 - 1));
}
float Dropout::scale() const { return static_cast<float>(1 / (1 - static_cast<double>(probability))); }

}  // namespace qiao
