#include "backend/ops/linear.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {

void Linear::check() const {
  constexpr std::string_view op = "linear";
  check::dense_weight(op, "weight", weight);
  check::rank(op, "x", x, 2);
  const int64_t tokens = x.shape[0];
  const int64_t width = weight->rows();
  check::rows(op, "x", x, DType::kF32, {tokens, weight->columns()});
  check::rows(op, "y", y, DType::kF32, {tokens, width});
  if (bias.present()) check::dense(op, "bias", bias, DType::kF32, {width});
  if (residual.present()) check::rows(op, "residual", residual, DType::kF32, {tokens, width});
  if (activation == Activation::kSoftCap && !(soft_cap > 0 && std::isfinite(soft_cap))) {
    check::refuse(op,
                  fmt::format("soft_cap is {}, expected it above 0 with a soft-capped activation", soft_cap));
  }
  check::compute(op, *weight, compute);
  check::workspace(op, workspace);
  check::distinct(op, "y", y, "x", x);
  check::distinct(op, "y", y, "bias", bias);
  check::same_or_distinct(op, "y", y, "residual", residual);
  check::distinct(op, "workspace", workspace, "y", y);
  check::distinct(op, "workspace", workspace, "x", x);
  check::distinct(op, "workspace", workspace, "bias", bias);
  check::distinct(op, "workspace", workspace, "residual", residual);
}

double Linear::flops() const {
  return 2.0 * static_cast<double>(x.elements()) * static_cast<double>(weight->rows());
}

double Linear::bytes() const {
  return check::weight_bytes(*weight) +
         static_cast<double>(x.bytes() + y.bytes() + bias.bytes() + residual.bytes());
}

void GroupedLinear::check() const {
  constexpr std::string_view op = "grouped_linear";
  if (weight == nullptr) check::refuse(op, "weight is absent");
  check::rank(op, "x", x, 2);
  check::rows(op, "x", x, DType::kF32, {x.shape[0], weight->columns()});
  check::dense(op, "counts", counts, DType::kI32, {weight->experts()});
  check::rows(op, "y", y, DType::kF32, {x.shape[0], weight->rows()});
  check::compute(op, *weight, compute);
  check::workspace(op, workspace);
  check::distinct(op, "y", y, "x", x);
  check::distinct(op, "y", y, "counts", counts);
  check::distinct(op, "workspace", workspace, "y", y);
  check::distinct(op, "workspace", workspace, "x", x);
  check::distinct(op, "workspace", workspace, "counts", counts);
}

double GroupedLinear::flops() const {
  return 2.0 * static_cast<double>(x.elements()) * static_cast<double>(weight->rows());
}

double GroupedLinear::bytes() const {
  return check::weight_bytes(*weight) * static_cast<double>(weight->experts()) +
         static_cast<double>(x.bytes() + y.bytes() + counts.bytes());
}

}  // namespace qiao
