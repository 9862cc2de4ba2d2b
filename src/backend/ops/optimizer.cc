#include "backend/ops/optimizer.h"

#include <cmath>
#include <limits>

#include "backend/ops/check.h"

namespace qiao {

void SumOfSquares::check() const {
  constexpr std::string_view op = "sum_of_squares";
  check::rank(op, "x", x, 1);
  check::dense(op, "x", x, DType::kF32, {x.shape[0]});
  check::dense(op, "sum", sum, DType::kF64, {1});
  check::distinct(op, "sum", sum, "x", x);
}

double SumOfSquares::flops() const { return 2.0 * static_cast<double>(x.elements()); }

double SumOfSquares::bytes() const { return static_cast<double>(x.bytes()); }

void AdamW::check() const {
  constexpr std::string_view op = "adamw";
  check::rank(op, "parameters", parameters, 1);
  const int64_t count = parameters.shape[0];
  check::dense(op, "parameters", parameters, DType::kF32, {count});
  check::dense(op, "gradients", gradients, DType::kF32, {count});
  check::dense(op, "first_moment", first_moment, DType::kF32, {count});
  check::dense(op, "second_moment", second_moment, DType::kF32, {count});
  const auto within = [&](std::string_view name, double value, bool good, std::string_view expected) {
    if (!good) check::refuse(op, fmt::format("{} is {}, expected {}", name, value, expected));
  };
  const auto positive = [](double value) { return value >= 0 && std::isfinite(value); };
  const auto beta = [](double value) { return value >= 0 && value < 1; };
  within("learning_rate", learning_rate, positive(learning_rate), "0 or more");
  within("beta1", beta1, beta(beta1), "it from 0 to below 1");
  within("beta2", beta2, beta(beta2), "it from 0 to below 1");
  // The least that F32 keeps as a normal number: a divisor of 0 would be the end of a parameter.
  const double least = std::numeric_limits<float>::min();
  within("epsilon", epsilon, epsilon >= least && std::isfinite(epsilon), "2^-126 or more");
  within("weight_decay", weight_decay, positive(weight_decay), "0 or more");
  within("gradient_scale", gradient_scale, std::isfinite(gradient_scale), "a finite number");
  if (step < 1) check::refuse(op, fmt::format("step is {}, expected 1 or more", step));
  check::distinct(op, "parameters", parameters, "gradients", gradients);
  check::distinct(op, "parameters", parameters, "first_moment", first_moment);
  check::distinct(op, "parameters", parameters, "second_moment", second_moment);
  check::distinct(op, "first_moment", first_moment, "gradients", gradients);
  check::distinct(op, "first_moment", first_moment, "second_moment", second_moment);
  check::distinct(op, "second_moment", second_moment, "gradients", gradients);
}

double AdamW::flops() const { return 15.0 * static_cast<double>(parameters.elements()); }

// Read and written: all but the gradients, which are read.
double AdamW::bytes() const { return 7.0 * static_cast<double>(parameters.bytes()); }

}  // namespace qiao
