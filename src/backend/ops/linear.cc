#include "backend/ops/linear.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {
namespace {

// The columns of y, of a product with so many.
int64_t gated_width(std::string_view op, int64_t width, bool gated, Activation activation) {
  if (!gated) return width;
  if (width % 2 != 0)
    check::refuse(op, fmt::format("gated, weight has {} rows, expected an even number", width));
  if (activation != Activation::kSilu && activation != Activation::kGelu &&
      activation != Activation::kGeluTanh)
    check::refuse(op, "gated, expected an activation of gated_activation's");
  return width / 2;
}

}  // namespace

void Linear::check() const {
  constexpr std::string_view op = "linear";
  check::dense_weight(op, "weight", weight);
  check::rank(op, "x", x, 2);
  const int64_t tokens = x.shape[0];
  const int64_t width = gated_width(op, weight->rows(), gated, activation);
  check::rows(op, "x", x, DType::kF32, {tokens, weight->columns()});
  norm.check(op, "norm.gamma", weight->columns());
  check::rows(op, "y", y, DType::kF32, {tokens, width});
  if (bias.present()) check::dense(op, "bias", bias, DType::kF32, {weight->rows()});
  if (residual.present() && gated) check::refuse(op, "gated, expected no residual");
  if (residual.present()) check::rows(op, "residual", residual, DType::kF32, {tokens, width});
  if (activation == Activation::kSoftCap && !(soft_cap > 0 && std::isfinite(soft_cap))) {
    check::refuse(op,
                  fmt::format("soft_cap is {}, expected it above 0 with a soft-capped activation", soft_cap));
  }
  check::compute(op, *weight, compute);
  check::workspace(op, workspace);
  check::distinct(op, "y", y, "x", x);
  check::distinct(op, "y", y, "bias", bias);
  check::distinct(op, "y", y, "norm.gamma", norm.gamma);
  check::same_or_distinct(op, "y", y, "residual", residual);
  check::distinct(op, "workspace", workspace, "y", y);
  check::distinct(op, "workspace", workspace, "x", x);
  check::distinct(op, "workspace", workspace, "bias", bias);
  check::distinct(op, "workspace", workspace, "norm.gamma", norm.gamma);
  check::distinct(op, "workspace", workspace, "residual", residual);
}

double Linear::flops() const {
  return 2.0 * static_cast<double>(x.elements()) * static_cast<double>(weight->rows());
}

double Linear::bytes() const {
  return check::weight_bytes(*weight) +
         static_cast<double>(x.bytes() + norm.gamma.bytes() + y.bytes() + bias.bytes() + residual.bytes());
}

void GroupedLinear::check() const {
  constexpr std::string_view op = "grouped_linear";
  if (weight == nullptr) check::refuse(op, "weight is absent");
  check::rank(op, "x", x, 2);
  check::rows(op, "x", x, DType::kF32, {x.shape[0], weight->columns()});
  check::dense(op, "counts", counts, DType::kI32, {weight->experts()});
  if (!gated && activation != Activation::kNone) check::refuse(op, "an activation is for what is gated");
  const int64_t width = gated_width(op, weight->rows(), gated, activation);
  check::rows(op, "y", y, DType::kF32, {x.shape[0], width});
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

void LinearBackward::check() const {
  constexpr std::string_view op = "linear_backward";
  check::dense_weight(op, "weight", weight);
  check::rank(op, "dy", dy, 2);
  const int64_t tokens = dy.shape[0], width = weight->rows(), columns = weight->columns();
  check::rows(op, "dy", dy, DType::kF32, {tokens, width});
  if (x.present() || dw.present()) check::rows(op, "x", x, DType::kF32, {tokens, columns});
  if (dx.present()) check::rows(op, "dx", dx, DType::kF32, {tokens, columns});
  if (add_dx && !dx.present()) check::refuse(op, "add_dx is set, but dx is absent");
  if (dw.present()) check::dense(op, "dw", dw, DType::kF32, {width, columns});
  if (dbias.present()) check::dense(op, "dbias", dbias, DType::kF32, {width});
  check::gradient_compute(op, *weight, compute);
  check::workspace(op, workspace);
  check::distinct(op, "dx", dx, "dy", dy);
  check::distinct(op, "dx", dx, "x", x);
  check::distinct(op, "dx", dx, "dw", dw);
  check::distinct(op, "dx", dx, "dbias", dbias);
  check::distinct(op, "dw", dw, "dy", dy);
  check::distinct(op, "dw", dw, "x", x);
  check::distinct(op, "dw", dw, "dbias", dbias);
  check::distinct(op, "dbias", dbias, "dy", dy);
  check::distinct(op, "dbias", dbias, "x", x);
  check::distinct(op, "workspace", workspace, "dy", dy);
  check::distinct(op, "workspace", workspace, "x", x);
  check::distinct(op, "workspace", workspace, "dx", dx);
  check::distinct(op, "workspace", workspace, "dw", dw);
  check::distinct(op, "workspace", workspace, "dbias", dbias);
}

double LinearBackward::flops() const {
  const double product = 2.0 * static_cast<double>(dy.elements()) * static_cast<double>(weight->columns());
  return (dx.present() ? product : 0) + (dw.present() ? product : 0) +
         (dbias.present() ? static_cast<double>(dy.elements()) : 0);
}

double LinearBackward::bytes() const {
  double bytes = static_cast<double>(dy.bytes() + 2 * dw.bytes() + 2 * dbias.bytes());
  if (dw.present()) bytes += static_cast<double>(x.bytes());
  if (dx.present())
    bytes += check::weight_bytes(*weight) + static_cast<double>(dx.bytes() * (add_dx ? 2 : 1));
  return bytes;
}

void GroupedLinearBackward::check() const {
  constexpr std::string_view op = "grouped_linear_backward";
  if (weight == nullptr) check::refuse(op, "weight is absent");
  check::rank(op, "dy", dy, 2);
  const int64_t tokens = dy.shape[0], width = weight->rows(), columns = weight->columns();
  check::rows(op, "dy", dy, DType::kF32, {tokens, width});
  check::dense(op, "counts", counts, DType::kI32, {weight->experts()});
  if (x.present() || dw.present()) check::rows(op, "x", x, DType::kF32, {tokens, columns});
  if (dx.present()) check::rows(op, "dx", dx, DType::kF32, {tokens, columns});
  if (add_dx && !dx.present()) check::refuse(op, "add_dx is set, but dx is absent");
  if (dw.present()) check::dense(op, "dw", dw, DType::kF32, {weight->experts(), width, columns});
  check::gradient_compute(op, *weight, compute);
  check::workspace(op, workspace);
  check::distinct(op, "dx", dx, "dy", dy);
  check::distinct(op, "dx", dx, "x", x);
  check::distinct(op, "dx", dx, "counts", counts);
  check::distinct(op, "dx", dx, "dw", dw);
  check::distinct(op, "dw", dw, "dy", dy);
  check::distinct(op, "dw", dw, "x", x);
  check::distinct(op, "dw", dw, "counts", counts);
  check::distinct(op, "workspace", workspace, "dy", dy);
  check::distinct(op, "workspace", workspace, "x", x);
  check::distinct(op, "workspace", workspace, "counts", counts);
  check::distinct(op, "workspace", workspace, "dx", dx);
  check::distinct(op, "workspace", workspace, "dw", dw);
}

double GroupedLinearBackward::flops() const {
  const double product = 2.0 * static_cast<double>(dy.elements()) * static_cast<double>(weight->columns());
  return (dx.present() ? product : 0) + (dw.present() ? product : 0);
}

double GroupedLinearBackward::bytes() const {
  double bytes = static_cast<double>(dy.bytes() + counts.bytes() + 2 * dw.bytes());
  if (dw.present()) bytes += static_cast<double>(x.bytes());
  if (dx.present()) {
    bytes += check::weight_bytes(*weight) * static_cast<double>(weight->experts()) +
             static_cast<double>(dx.bytes() * (add_dx ? 2 : 1));
  }
  return bytes;
}

}  // namespace qiao
