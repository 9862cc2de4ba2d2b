#include "backend/ops/layer_norm.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {

void LayerNorm::check() const {
  constexpr std::string_view op = "layer_norm";
  check::rank(op, "x", x, 2);
  const int64_t rows = x.shape[0], width = x.shape[1];
  check::rows(op, "x", x, DType::kF32, {rows, width});
  if (width < 1)
    check::refuse(op, fmt::format("x is {}, expected rows of one element or more", to_string(x)));
  check::rows(op, "y", y, DType::kF32, {rows, width});
  if (residual.present()) check::rows(op, "residual", residual, DType::kF32, {rows, width});
  check::dense(op, "gamma", gamma, DType::kF32, {width});
  if (beta.present()) check::dense(op, "beta", beta, DType::kF32, {width});
  if (!(epsilon > 0) || !std::isfinite(epsilon)) {
    check::refuse(op, fmt::format("epsilon is {}, expected it above 0", epsilon));
  }
  check::same_or_distinct(op, "y", y, "x", x);
  check::same_or_distinct(op, "y", y, "residual", residual);
  check::distinct(op, "y", y, "gamma", gamma);
  check::distinct(op, "y", y, "beta", beta);
}

double LayerNorm::flops() const { return 7.0 * static_cast<double>(x.elements()); }

double LayerNorm::bytes() const {
  return static_cast<double>(x.bytes() + residual.bytes() + gamma.bytes() + beta.bytes() + y.bytes());
}

}  // namespace qiao
