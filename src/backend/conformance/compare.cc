#include "backend/conformance/compare.h"

#include <fmt/format.h>

#include <algorithm>

namespace qiao::conformance {

bool compare(double actual, double expected, double bound, int64_t row, int64_t column, Errors* errors) {
  const double error = actual == expected ? 0 : std::abs(actual - expected);  // infinities may be equal
  ++errors->elements;
  if (!(error <= bound) || std::isinf(error)) {
    if (errors->failures++ == 0) {
      errors->first_failure =
          fmt::format("[{}, {}]: {:.9g}, expected {:.9g} ± {:.3g}", row, column, actual, expected, bound);
    }
    return false;
  }
  const double share = bound > 0 && !std::isinf(bound) ? error / bound : 0;
  errors->max_share = std::max(errors->max_share, share);
  errors->sum_share += share;
  errors->max_error = std::max(errors->max_error, error);
  return true;
}

}  // namespace qiao::conformance
