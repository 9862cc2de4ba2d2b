#include "backend/ops/gated_activation.h"

#include "backend/ops/check.h"

namespace qiao {

void GatedActivation::check() const {
  constexpr std::string_view op = "gated_activation";
  check::rank(op, "y", y, 2);
  check::rows(op, "y", y, DType::kF32, {y.shape[0], y.shape[1]});
  check::rows(op, "x", x, DType::kF32, {y.shape[0], 2 * y.shape[1]});
  if (activation != Activation::kSilu && activation != Activation::kGelu &&
      activation != Activation::kGeluTanh) {
    check::refuse(op, "activation is none of SiLU, GELU and tanh-GELU");
  }
  check::distinct(op, "y", y, "x", x);
}

double GatedActivation::flops() const { return 6.0 * static_cast<double>(y.elements()); }

double GatedActivation::bytes() const { return static_cast<double>(x.bytes() + y.bytes()); }

}  // namespace qiao
