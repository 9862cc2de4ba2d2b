#include "backend/ops/muon.h"

#include <algorithm>
#include <cmath>

#include "backend/ops/check.h"

namespace qiao {

double Muon::step_size() const {
  const auto rows = static_cast<double>(parameters.shape[0]);
  const auto columns = static_cast<double>(parameters.shape[1]);
  return learning_rate * (adjustment == Adjustment::kOriginal ? std::sqrt(std::max(1.0, rows / columns))
                                                              : 0.2 * std::sqrt(std::max(rows, columns)));
}

void Muon::check() const {
  constexpr std::string_view op = "muon";
  check::rank(op, "parameters", parameters, 2);
  const int64_t rows = parameters.shape[0], columns = parameters.shape[1];
  if (rows < 1 || columns < 1)
    check::refuse(op, fmt::format("parameters is {}, expected elements", to_string(parameters)));
  check::dense(op, "parameters", parameters, DType::kF32, {rows, columns});
  check::dense(op, "gradients", gradients, DType::kF32, {rows, columns});
  check::dense(op, "momentum", momentum, DType::kF32, {rows, columns});
  const auto within = [&](std::string_view name, double value, bool good, std::string_view expected) {
    if (!good) check::refuse(op, fmt::format("{} is {}, expected {}", name, value, expected));
  };
  const auto positive = [](double value) { return value >= 0 && std::isfinite(value); };
  within("learning_rate", learning_rate, positive(learning_rate), "0 or more");
  within("beta", beta, beta >= 0 && beta < 1, "it from 0 to below 1");
  within("weight_decay", weight_decay, positive(weight_decay), "0 or more");
  within("gradient_scale", gradient_scale, std::isfinite(gradient_scale), "a finite number");
  check::workspace(op, workspace);
  check::distinct(op, "parameters", parameters, "gradients", gradients);
  check::distinct(op, "parameters", parameters, "momentum", momentum);
  check::distinct(op, "momentum", momentum, "gradients", gradients);
  check::distinct(op, "workspace", workspace, "parameters", parameters);
  check::distinct(op, "workspace", workspace, "gradients", gradients);
  check::distinct(op, "workspace", workspace, "momentum", momentum);
}

double Muon::flops() const {
  const auto [least, most] = std::minmax(parameters.shape[0], parameters.shape[1]);
  const auto r = static_cast<double>(least), k = static_cast<double>(most);
  return kSteps * 2.0 * (2.0 * r * r * k + r * r * r) + 12.0 * r * k;
}

// Read and written: all but the gradients, which are read.
double Muon::bytes() const { return 5.0 * static_cast<double>(parameters.bytes()); }

}  // namespace qiao
