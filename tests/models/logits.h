// Expected logits, and how far computed ones are from them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/file.h"

namespace qiao::testing {

inline std::vector<float> read_floats(const std::filesystem::path& path) {
  const std::string bytes = read_file(path);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// Largest |difference| over largest |logit| of the worst position. Infinite where either holds a NaN.
inline double worst_position(const std::vector<float>& expected, const std::vector<float>& got,
                             size_t vocabulary) {
  double worst = 0;
  for (size_t row = 0; row < expected.size() / vocabulary; ++row) {
    double difference = 0, largest = 0;
    for (size_t i = row * vocabulary; i < (row + 1) * vocabulary; ++i) {
      const double apart = std::abs(static_cast<double>(expected[i]) - got[i]);
      if (std::isnan(apart)) return INFINITY;
      difference = std::max(difference, apart);
      largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    }
    worst = std::max(worst, difference / largest);
  }
  return worst;
}

}  // namespace qiao::testing
