#include "backend/ops/norm.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {
namespace {

void as_x(std::string_view op, std::string_view name, const Tensor& tensor, const Tensor& x) {
  if (x.rank == 2) {
    check::rows(op, name, tensor, DType::kF32, {x.shape[0], x.shape[1]});
  } else {
    check::rows(op, name, tensor, DType::kF32, {x.shape[0], x.shape[1], x.shape[2]});
  }
}

void numbers(std::string_view op, float epsilon, float gamma_offset) {
  if (!(epsilon > 0) || !std::isfinite(epsilon))
    check::refuse(op, fmt::format("epsilon is {}, expected it above 0", epsilon));
  if (!std::isfinite(gamma_offset)) check::refuse(op, "gamma_offset is not finite");
}

}  // namespace

void RmsNorm::check(std::string_view op, std::string_view name, int64_t width) const {
  if (!present) return;
  if (gamma.present()) check::dense(op, name, gamma, DType::kF32, {width});
  numbers(op, epsilon, gamma_offset);
}

AddRmsNorm RmsNorm::apart(const Tensor& x, const Tensor& y) const {
  return {.x = x,
          .residual = {},
          .gamma = gamma,
          .gamma_offset = gamma_offset,
          .epsilon = epsilon,
          .y = y,
          .residual_out = {}};
}

void AddRmsNorm::check() const {
  constexpr std::string_view op = "add_rms_norm";
  if (x.rank != 3) check::rank(op, "x", x, 2);
  as_x(op, "x", x, x);
  as_x(op, "y", y, x);
  const int64_t width = x.shape[static_cast<size_t>(x.rank - 1)];
  if (width < 1)
    check::refuse(op, fmt::format("x is {}, expected rows of one element or more", to_string(x)));
  if (residual.present()) as_x(op, "residual", residual, x);
  if (residual_out.present()) as_x(op, "residual_out", residual_out, x);
  if (gamma.present()) check::dense(op, "gamma", gamma, DType::kF32, {width});
  numbers(op, epsilon, gamma_offset);
  check::same_or_distinct(op, "y", y, "x", x);
  check::distinct(op, "y", y, "residual", residual);
  check::distinct(op, "y", y, "gamma", gamma);
  check::distinct(op, "y", y, "residual_out", residual_out);
  check::same_or_distinct(op, "residual_out", residual_out, "x", x);
  check::same_or_distinct(op, "residual_out", residual_out, "residual", residual);
  check::distinct(op, "residual_out", residual_out, "gamma", gamma);
}

double AddRmsNorm::flops() const { return 4.0 * static_cast<double>(x.elements()); }

double AddRmsNorm::bytes() const {
  return static_cast<double>(x.bytes() + residual.bytes() + gamma.bytes() + y.bytes() + residual_out.bytes());
}

void AddRmsNormBackward::check() const {
  constexpr std::string_view op = "add_rms_norm_backward";
  if (dy.rank != 3) check::rank(op, "dy", dy, 2);
  as_x(op, "dy", dy, dy);
  as_x(op, "h", h, dy);
  as_x(op, "dh", dh, dy);
  if (dresidual_out.present()) as_x(op, "dresidual_out", dresidual_out, dy);
  const int64_t width = dy.shape[static_cast<size_t>(dy.rank - 1)];
  if (width < 1)
    check::refuse(op, fmt::format("dy is {}, expected rows of one element or more", to_string(dy)));
  if (gamma.present()) check::dense(op, "gamma", gamma, DType::kF32, {width});
  if (dgamma.present()) check::dense(op, "dgamma", dgamma, DType::kF32, {width});
  numbers(op, epsilon, gamma_offset);
  check::same_or_distinct(op, "dh", dh, "dy", dy);
  check::same_or_distinct(op, "dh", dh, "dresidual_out", dresidual_out);
  check::distinct(op, "dh", dh, "h", h);
  check::distinct(op, "dh", dh, "gamma", gamma);
  check::distinct(op, "dh", dh, "dgamma", dgamma);
  check::distinct(op, "dgamma", dgamma, "dy", dy);
  check::distinct(op, "dgamma", dgamma, "dresidual_out", dresidual_out);
  check::distinct(op, "dgamma", dgamma, "h", h);
  check::distinct(op, "dgamma", dgamma, "gamma", gamma);
}

double AddRmsNormBackward::flops() const {
  return (dgamma.present() ? 12.0 : 9.0) * static_cast<double>(dy.elements());
}

double AddRmsNormBackward::bytes() const {
  return static_cast<double>(dy.bytes() + dresidual_out.bytes() + h.bytes() + gamma.bytes() + dh.bytes() +
                             2 * dgamma.bytes());
}

}  // namespace qiao
