#include "backend/ops/gated_activation.h"

#include "backend/ops/check.h"

namespace qiao {
namespace {

void check_activation(std::string_view op, Activation activation) {
  if (activation != Activation::kSilu && activation != Activation::kGelu &&
      activation != Activation::kGeluTanh) {
    check::refuse(op, "activation is none of SiLU, GELU and tanh-GELU");
  }
}

}  // namespace

void GatedActivation::check() const {
  constexpr std::string_view op = "gated_activation";
  check::rank(op, "y", y, 2);
  check::rows(op, "y", y, DType::kF32, {y.shape[0], y.shape[1]});
  check::rows(op, "x", x, DType::kF32, {y.shape[0], 2 * y.shape[1]});
  check_activation(op, activation);
  check::distinct(op, "y", y, "x", x);
}

double GatedActivation::flops() const { return 6.0 * static_cast<double>(y.elements()); }

double GatedActivation::bytes() const { return static_cast<double>(x.bytes() + y.bytes()); }

void GatedActivationBackward::check() const {
  constexpr std::string_view op = "gated_activation_backward";
  check::rank(op, "dy", dy, 2);
  check::rows(op, "dy", dy, DType::kF32, {dy.shape[0], dy.shape[1]});
  check::rows(op, "x", x, DType::kF32, {dy.shape[0], 2 * dy.shape[1]});
  check::rows(op, "dx", dx, DType::kF32, {dy.shape[0], 2 * dy.shape[1]});
  check_activation(op, activation);
  check::same_or_distinct(op, "dx", dx, "x", x);
  check::distinct(op, "dx", dx, "dy", dy);
}

double GatedActivationBackward::flops() const { return 14.0 * static_cast<double>(dy.elements()); }

double GatedActivationBackward::bytes() const {
  return static_cast<double>(x.bytes() + dy.bytes() + dx.bytes());
}

}  // namespace qiao
