// Part of the law (reference_class.h): what the optimizer does with gradients.
#include "backend/ops/optimizer.h"

#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

double exact_sum_of_squares(const SumOfSquares& op) {
  double sum = 0;
  for (int64_t i = 0; i < op.x.shape[0]; ++i) {
    const double x = op.x.as<float>()[i];
    sum += x * x;
  }
  return op.sum.as<double>()[0] + sum;
}

void ReferenceBackend::do_sum_of_squares(const SumOfSquares& op) {
  op.sum.as<double>()[0] = exact_sum_of_squares(op);
}

AdamWTerms exact_adamw(const AdamW& op) {
  AdamWTerms terms;
  const auto step = static_cast<double>(op.step);
  const double first_correction = 1 - std::pow(op.beta1, step);
  const double second_correction = 1 - std::pow(op.beta2, step);
  for (int64_t i = 0; i < op.parameters.shape[0]; ++i) {
    const double p = op.parameters.as<float>()[i];
    const double g = op.gradient_scale * static_cast<double>(op.gradients.as<float>()[i]);
    const double m = op.first_moment.as<float>()[i], v = op.second_moment.as<float>()[i];
    const double new_m = op.beta1 * m + (1 - op.beta1) * g;
    const double new_v = op.beta2 * v + (1 - op.beta2) * g * g;
    const double decayed = p - op.learning_rate * op.weight_decay * p;
    const double divisor = std::sqrt(new_v / second_correction) + op.epsilon;
    terms.first_moment.push_back(new_m);
    terms.second_moment.push_back(new_v);
    terms.decayed.push_back(decayed);
    terms.moment_size.push_back(std::abs(op.beta1 * m) + std::abs((1 - op.beta1) * g));
    terms.divisor.push_back(divisor);
    terms.parameters.push_back(decayed - op.learning_rate * (new_m / first_correction) / divisor);
  }
  return terms;
}

void ReferenceBackend::do_adamw(const AdamW& op) {
  const AdamWTerms terms = exact_adamw(op);
  for (size_t i = 0; i < terms.parameters.size(); ++i) {
    op.parameters.as<float>()[i] = static_cast<float>(terms.parameters[i]);
    op.first_moment.as<float>()[i] = static_cast<float>(terms.first_moment[i]);
    op.second_moment.as<float>()[i] = static_cast<float>(terms.second_moment[i]);
  }
}

}  // namespace qiao::reference
