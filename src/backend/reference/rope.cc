// Part of the law (reference_class.h).
#include "backend/ops/rope.h"

#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

std::vector<double> exact_rope(const Rope& op, const Tensor& heads) {
  const int64_t count = heads.shape[1], width = heads.shape[2];
  const int64_t pairs = op.inverse_frequencies.shape[0];
  std::vector<double> out(static_cast<size_t>(heads.elements()));
  for (int64_t t = 0; t < heads.shape[0]; ++t) {
    for (int64_t h = 0; h < count; ++h) {
      double* row = out.data() + (t * count + h) * width;
      for (int64_t d = 0; d < width; ++d) row[d] = at(heads, t, h, d);
      for (int64_t i = 0; i < pairs; ++i) {
        const float angle =
            static_cast<float>(op.positions.as<int32_t>()[t]) * op.inverse_frequencies.as<float>()[i];
        const double cosine = std::cos(static_cast<double>(angle)) * static_cast<double>(op.scale);
        const double turn = op.inverse ? -static_cast<double>(op.scale) : static_cast<double>(op.scale);
        const double sine = std::sin(static_cast<double>(angle)) * turn;
        double& first = row[op.layout == Rope::Layout::kHalf ? i : 2 * i];
        double& second = row[op.layout == Rope::Layout::kHalf ? i + pairs : 2 * i + 1];
        const double a = first, b = second;
        first = a * cosine - b * sine;
        second = b * cosine + a * sine;
      }
    }
  }
  return out;
}

void ReferenceBackend::do_rope(const Rope& op) {
  for (const Tensor& heads : {op.q, op.k}) {
    if (!heads.present()) continue;
    const std::vector<double> rotated = exact_rope(op, heads);
    for (int64_t i = 0; i < heads.elements(); ++i) {
      const int64_t row = i / heads.shape[2];
      at(heads, row / heads.shape[1], row % heads.shape[1], i % heads.shape[2]) =
          static_cast<float>(rotated[static_cast<size_t>(i)]);
    }
  }
}

}  // namespace qiao::reference
