#include "backend/ops/optimizer.h"

#include <array>
#include <cmath>
#include <limits>
#include <utility>

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

void Accumulate::check() const {
  constexpr std::string_view op = "accumulate";
  check::rank(op, "x", x, 1);
  check::dense(op, "x", x, DType::kF32, {x.shape[0]});
  check::dense(op, "sum", sum, DType::kF32, {x.shape[0]});
  check::distinct(op, "sum", sum, "x", x);
}

double Accumulate::flops() const { return static_cast<double>(x.elements()); }

double Accumulate::bytes() const { return 3.0 * static_cast<double>(x.bytes()); }

void AdamW::check() const {
  constexpr std::string_view op = "adamw";
  check::rank(op, "parameters", parameters, 1);
  const int64_t count = parameters.shape[0];
  check::dense(op, "parameters", parameters, DType::kF32, {count});
  check::dense(op, "gradients", gradients, DType::kF32, {count});
  const DType kept = first_moment.dtype;
  const bool has_codes = first_moment.present() && kept == DType::kU8;
  if (first_moment.present() && kept != DType::kF32 && kept != DType::kBF16 && kept != DType::kU8) {
    check::refuse(op, fmt::format("first_moment is {}, expected F32, BF16 or U8", to_string(first_moment)));
  }
  check::dense(op, "first_moment", first_moment, kept, {count});
  check::dense(op, "second_moment", second_moment, kept, {count});
  const std::array<std::pair<std::string_view, const Tensor*>, 6> all = {{{"parameters", &parameters},
                                                                          {"gradients", &gradients},
                                                                          {"first_moment", &first_moment},
                                                                          {"second_moment", &second_moment},
                                                                          {"first_scales", &first_scales},
                                                                          {"second_scales", &second_scales}}};
  for (size_t i = 4; i < all.size(); ++i) {
    const auto& [name, scales] = all[i];
    if (has_codes) {
      check::dense(op, name, *scales, DType::kF32, {(count + kCodeBlock - 1) / kCodeBlock});
    } else if (scales->present()) {
      check::refuse(op, fmt::format("{} is {}, expected none beside moments of {}", name, to_string(*scales),
                                    traits(kept).name));
    }
  }
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
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = i + 1; j < all.size(); ++j)
      check::distinct(op, all[i].first, *all[i].second, all[j].first, *all[j].second);
  }
}

double AdamW::flops() const { return 15.0 * static_cast<double>(parameters.elements()); }

// Read and written: all but the gradients, which are read.
double AdamW::bytes() const {
  double moments = 0;
  for (const Tensor* tensor : {&first_moment, &second_moment, &first_scales, &second_scales})
    moments += tensor->present() ? static_cast<double>(tensor->bytes()) : 0.0;
  return 3.0 * static_cast<double>(parameters.bytes()) + 2.0 * moments;
}

}  // namespace qiao
