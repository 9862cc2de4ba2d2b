// Part of the law (reference_class.h): dropout.
#include "backend/ops/dropout.h"

#include "backend/philox.h"
#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

void ReferenceBackend::do_dropout(const Dropout& op) {
  for (int64_t t = 0; t < op.y.shape[0]; ++t) {
    for (int64_t k = 0; k < op.y.shape[1]; ++k) {
      const uint32_t column = op.first_column + static_cast<uint32_t>(k);
      const auto words =
          philox4x32({column / 4, op.first_row + static_cast<uint32_t>(t), op.stream, 0}, op.seed);
      const bool dropped = words[column % 4] < op.threshold();
      const float kept = dropped ? 0.0f : at(op.x, t, k) * op.scale();
      float& y = at(op.y, t, k);
      y = op.add ? y + kept : kept;
    }
  }
}

}  // namespace qiao::reference
