// Part of the law (reference_class.h).
#include "backend/ops/gated_activation.h"

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

std::vector<double> exact_gated_activation(const GatedActivation& op) {
  const int64_t tokens = op.y.shape[0], width = op.y.shape[1];
  std::vector<double> y(static_cast<size_t>(tokens * width));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t f = 0; f < width; ++f) {
      y[static_cast<size_t>(t * width + f)] =
          activate(op.activation, 0, at(op.x, t, f)) * static_cast<double>(at(op.x, t, width + f));
    }
  }
  return y;
}

void ReferenceBackend::do_gated_activation(const GatedActivation& op) {
  const std::vector<double> y = exact_gated_activation(op);
  for (int64_t t = 0; t < op.y.shape[0]; ++t) {
    for (int64_t f = 0; f < op.y.shape[1]; ++f) {
      at(op.y, t, f) = static_cast<float>(y[static_cast<size_t>(t * op.y.shape[1] + f)]);
    }
  }
}

std::vector<double> exact_gated_activation_backward(const GatedActivationBackward& op) {
  const int64_t tokens = op.dy.shape[0], width = op.dy.shape[1];
  std::vector<double> dx(static_cast<size_t>(2 * tokens * width));
  for (int64_t t = 0; t < tokens; ++t) {
    double* row = dx.data() + 2 * t * width;
    for (int64_t f = 0; f < width; ++f) {
      const double gate = at(op.x, t, f), up = at(op.x, t, width + f), dy = at(op.dy, t, f);
      row[f] = dy * up * activation_slope(op.activation, gate);
      row[width + f] = dy * activate(op.activation, 0, gate);
    }
  }
  return dx;
}

void ReferenceBackend::do_gated_activation_backward(const GatedActivationBackward& op) {
  const std::vector<double> dx = exact_gated_activation_backward(op);
  const int64_t width = op.dx.shape[1];
  for (int64_t i = 0; i < op.dx.elements(); ++i) {
    at(op.dx, i / width, i % width) = static_cast<float>(dx[static_cast<size_t>(i)]);
  }
}

}  // namespace qiao::reference
