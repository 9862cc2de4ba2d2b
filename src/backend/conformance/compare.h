// The comparator of conformance: errors against bounds, element by element. Written so that NaN fails, with
// tests of its own.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

namespace qiao::conformance {

// Unit roundoff of F32, and gamma_m = m u / (1 - m u): the relative error of m roundings in a row.
inline constexpr double kUnit = 0x1p-24;
inline double gamma(double m) { return m * kUnit / (1 - m * kUnit); }

struct Errors {
  int64_t elements = 0;
  int64_t failures = 0;
  double max_share = 0;  // of the bound
  double sum_share = 0;
  double max_error = 0;
  std::string first_failure;  // "[3, 17]: 1.5, expected 1.25 ± 1e-07"

  double mean_share() const { return elements == 0 ? 0 : sum_share / static_cast<double>(elements); }
};

// Adds one element at (row, column) to errors; returns whether it passes: |actual - expected| <= bound, which
// no NaN on either side satisfies. An infinity passes for itself alone, whatever the bound.
bool compare(double actual, double expected, double bound, int64_t row, int64_t column, Errors* errors);

}  // namespace qiao::conformance
