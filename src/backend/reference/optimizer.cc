// Part of the law (reference_class.h): what the optimizer does with gradients.
#include "backend/ops/optimizer.h"

#include <algorithm>
#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"
#include "tensor/half.h"

namespace qiao::reference {

// In more than float64, which is what a chip has.
double exact_sum_of_squares(const SumOfSquares& op) {
  long double sum = 0;
  for (int64_t i = 0; i < op.x.shape[0]; ++i) {
    const long double x = op.x.as<float>()[i];
    sum += x * x;
  }
  return static_cast<double>(op.sum.as<double>()[0] + sum);
}

void ReferenceBackend::do_sum_of_squares(const SumOfSquares& op) {
  op.sum.as<double>()[0] = exact_sum_of_squares(op);
}

void ReferenceBackend::do_accumulate(const Accumulate& op) {
  for (int64_t i = 0; i < op.x.shape[0]; ++i) {
    float& sum = op.sum.as<float>()[i];
    sum = static_cast<float>(static_cast<double>(sum) + static_cast<double>(op.x.as<float>()[i]));
  }
}

namespace {

double moment_at(const Tensor& moment, const Tensor& scales, const DynamicCodes& codes, int64_t i) {
  if (moment.dtype == DType::kF32) return moment.as<float>()[i];
  if (moment.dtype == DType::kBF16) return bf16_to_float(moment.as<uint16_t>()[i]);
  return codes.value[moment.as<uint8_t>()[i]] * scales.as<float>()[i / kCodeBlock];
}

void keep_moments(const std::vector<double>& values, const Tensor& moment, const Tensor& scales,
                  const DynamicCodes& codes) {
  const auto count = std::ssize(values);
  const auto value = [&](int64_t i) { return static_cast<float>(values[static_cast<size_t>(i)]); };
  if (moment.dtype == DType::kF32) {
    for (int64_t i = 0; i < count; ++i) moment.as<float>()[i] = value(i);
  } else if (moment.dtype == DType::kBF16) {
    for (int64_t i = 0; i < count; ++i) moment.as<uint16_t>()[i] = float_to_bf16(value(i));
  } else {
    for (int64_t first = 0; first < count; first += kCodeBlock) {
      const int64_t end = std::min(first + kCodeBlock, count);
      float scale = 0;
      for (int64_t i = first; i < end; ++i) scale = std::max(scale, std::abs(value(i)));
      scales.as<float>()[first / kCodeBlock] = scale;
      for (int64_t i = first; i < end; ++i) {
        uint8_t code = codes.code_of(scale > 0 ? value(i) / scale : 0.0f);
        if (codes.value[0] == 0 && code == 0 && value(i) > 0) code = 1;
        moment.as<uint8_t>()[i] = code;
      }
    }
  }
}

}  // namespace

AdamWTerms exact_adamw(const AdamW& op) {
  AdamWTerms terms;
  const auto step = static_cast<double>(op.step);
  const double first_correction = 1 - std::pow(op.beta1, step);
  const double second_correction = 1 - std::pow(op.beta2, step);
  for (int64_t i = 0; i < op.parameters.shape[0]; ++i) {
    const double p = op.parameters.as<float>()[i];
    const double g = op.gradient_scale * static_cast<double>(op.gradients.as<float>()[i]);
    const double m = moment_at(op.first_moment, op.first_scales, signed_codes(), i);
    const double v = moment_at(op.second_moment, op.second_scales, unsigned_codes(), i);
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
  for (size_t i = 0; i < terms.parameters.size(); ++i)
    op.parameters.as<float>()[i] = static_cast<float>(terms.parameters[i]);
  keep_moments(terms.first_moment, op.first_moment, op.first_scales, signed_codes());
  keep_moments(terms.second_moment, op.second_moment, op.second_scales, unsigned_codes());
}

}  // namespace qiao::reference
