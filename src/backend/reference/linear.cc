// Part of the law (reference_class.h): products of activations and weights.
#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/memory.h"
#include "backend/reference/reference_class.h"
#include "tensor/half.h"

namespace qiao::reference {

void round_activations(Compute compute, const float* x, int64_t count, double* out) {
  if (compute == Compute::kF32) {
    for (int64_t i = 0; i < count; ++i) out[i] = x[i];
  } else if (compute == Compute::kBF16) {
    for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(float_to_bf16(x[i]));
  } else if (compute == Compute::kF8) {
    for (int64_t block = 0; block < count; block += kF8Block) {
      float largest = 0;
      for (int64_t i = block; i < block + kF8Block; ++i) largest = std::max(largest, std::abs(x[i]));
      const bool zero = largest < kQ8Smallest;
      const float scale = zero ? 0.0f : largest / kMostE4M3;
      const float inverse = zero ? 0.0f : kMostE4M3 / largest;
      for (int64_t i = block; i < block + kF8Block; ++i)
        out[i] =
            static_cast<double>(scale) * static_cast<double>(e4m3_to_float(float_to_e4m3(x[i] * inverse)));
    }
  } else {
    for (int64_t block = 0; block < count; block += kQ8Block) {
      float largest = 0;
      for (int64_t i = block; i < block + kQ8Block; ++i) largest = std::max(largest, std::abs(x[i]));
      const bool zero = largest < kQ8Smallest;
      const float scale = zero ? 0.0f : largest / 127.0f;
      const float inverse = zero ? 0.0f : 127.0f / largest;
      for (int64_t i = block; i < block + kQ8Block; ++i) {
        const float quant = std::nearbyint(x[i] * inverse);  // the default rounding: half to even
        out[i] = static_cast<double>(scale) * static_cast<double>(quant);
      }
    }
  }
}

double activate(Activation activation, double soft_cap, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh: {
      const double inner = std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
      return 0.5 * x * (1.0 + std::tanh(inner));
    }
    case Activation::kSoftCap:
      return soft_cap * std::tanh(x / soft_cap);
  }
  return x;
}

double activation_slope(Activation activation, double x) {
  if (activation == Activation::kSilu) {
    const double s = 1.0 / (1.0 + std::exp(-x));
    return s + x * s * (1.0 - s);
  }
  if (activation == Activation::kGelu) {
    return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI);
  }
  const double root = std::sqrt(2.0 / M_PI), inner = root * (x + 0.044715 * x * x * x);
  const double sech = 1.0 / std::cosh(inner);  // 1 - tanh^2 is its square; beyond cosh's range 0
  return 0.5 * (1.0 + std::tanh(inner)) + 0.5 * x * sech * sech * root * (1.0 + 3 * 0.044715 * x * x);
}

Products exact_products(const Tensor& x, const Weight& weight, const Compute compute,
                        const std::vector<int64_t>& expert_of_row) {
  const auto& w = static_cast<const ReferenceWeight&>(weight);
  const int64_t tokens = x.shape[0], width = weight.columns(), rows = weight.rows();
  std::vector<double> rounded(static_cast<size_t>(tokens * width));
  Products result;
  result.x_sum.resize(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    double* row = rounded.data() + t * width;
    round_activations(compute, x.as<float>() + t * x.stride[0], width, row);
    for (int64_t k = 0; k < width; ++k) result.x_sum[static_cast<size_t>(t)] += std::abs(row[k]);
  }
  result.sum.resize(static_cast<size_t>(tokens * rows));
  result.magnitude.resize(result.sum.size());
  result.w_sum.resize(static_cast<size_t>(weight.experts() * rows));
  std::vector<Term> terms(static_cast<size_t>(width));
  for (int64_t expert = 0; expert < weight.experts(); ++expert) {
    for (int64_t n = 0; n < rows; ++n) {
      bool unpacked = false;
      for (int64_t t = 0; t < tokens; ++t) {
        if (expert_of_row[static_cast<size_t>(t)] != expert) continue;
        if (!unpacked) {
          w.row_terms(expert, n, terms.data());
          double& w_sum = result.w_sum[static_cast<size_t>(expert * rows + n)];
          for (const Term& term : terms) w_sum += std::abs(term.value());
          unpacked = true;
        }
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < width; ++k) {
          const double a = rounded[static_cast<size_t>(t * width + k)];
          const Term& term = terms[static_cast<size_t>(k)];
          if (compute == Compute::kQ8) {  // scale and minimum are multiplied apart, so w' is not rounded
            sum += a * (static_cast<double>(term.product) + static_cast<double>(term.minimum));
            magnitude += std::abs(a) * (std::abs(term.product) + std::abs(term.minimum));
          } else {
            sum += a * static_cast<double>(term.value());
            magnitude += std::abs(a * static_cast<double>(term.value()));
          }
        }
        result.sum[static_cast<size_t>(t * rows + n)] = sum;
        result.magnitude[static_cast<size_t>(t * rows + n)] = magnitude;
      }
    }
  }
  return result;
}

std::vector<double> exact_linear(const Linear& op, const Products& products) {
  const int64_t rows = op.weight->rows();
  std::vector<double> y(products.sum.size());
  for (int64_t t = 0; t < op.x.shape[0]; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      const auto i = static_cast<size_t>(t * rows + n);
      const double sum = products.sum[i] + (op.bias.present() ? op.bias.as<float>()[n] : 0.0f);
      y[i] = activate(op.activation, op.soft_cap, sum);
      if (op.residual.present()) y[i] += at(op.residual, t, n);
    }
  }
  return y;
}

std::vector<int64_t> experts_of_rows(const Tensor& counts) {
  std::vector<int64_t> experts;
  for (int64_t e = 0; e < counts.elements(); ++e) {
    experts.insert(experts.end(), static_cast<size_t>(int_at(counts, e)), e);
  }
  return experts;
}

namespace {

// An operand of a way back.
double operand(Compute compute, float value) {
  double rounded = 0;
  round_activations(compute, &value, 1, &rounded);
  return rounded;
}

}  // namespace

LinearGradients exact_linear_backward(const LinearBackward& op) {
  const auto& weight = static_cast<const ReferenceWeight&>(*op.weight);
  const int64_t tokens = op.dy.shape[0], rows = weight.rows(), columns = weight.columns();
  LinearGradients g{GradientSums(op.dx.elements()), GradientSums(op.dw.elements()),
                    GradientSums(op.dbias.elements())};
  for (int64_t i = 0; op.add_dx && i < op.dx.elements(); ++i)
    g.dx.begin(i, at(op.dx, i / columns, i % columns));
  for (int64_t i = 0; i < op.dw.elements(); ++i) g.dw.begin(i, op.dw.as<float>()[i]);
  for (int64_t i = 0; i < op.dbias.elements(); ++i) g.dbias.begin(i, op.dbias.as<float>()[i]);
  std::vector<Term> row(static_cast<size_t>(columns));
  for (int64_t n = 0; n < rows; ++n) {
    weight.row_terms(0, n, row.data());
    for (int64_t t = 0; t < tokens; ++t) {
      const double dy = operand(op.compute, at(op.dy, t, n));
      for (int64_t k = 0; k < columns; ++k) {
        if (op.dx.present()) g.dx.add(t * columns + k, dy, row[static_cast<size_t>(k)].value());
        if (op.dw.present()) g.dw.add(n * columns + k, dy, operand(op.compute, at(op.x, t, k)));
      }
      if (op.dbias.present()) g.dbias.add(n, at(op.dy, t, n), 1);
    }
  }
  return g;
}

LinearGradients exact_grouped_linear_backward(const GroupedLinearBackward& op) {
  const auto& weight = static_cast<const ReferenceWeight&>(*op.weight);
  const int64_t rows = weight.rows(), columns = weight.columns();
  LinearGradients g{GradientSums(op.dx.elements()), GradientSums(op.dw.elements()), GradientSums()};
  for (int64_t i = 0; op.add_dx && i < op.dx.elements(); ++i)
    g.dx.begin(i, at(op.dx, i / columns, i % columns));
  for (int64_t i = 0; i < op.dw.elements(); ++i) g.dw.begin(i, op.dw.as<float>()[i]);
  const std::vector<int64_t> experts = experts_of_rows(op.counts);
  std::vector<Term> row(static_cast<size_t>(columns));
  for (int64_t t = 0; t < op.dy.shape[0]; ++t) {
    const int64_t expert = experts[static_cast<size_t>(t)];
    for (int64_t n = 0; n < rows; ++n) {
      weight.row_terms(expert, n, row.data());
      const double dy = operand(op.compute, at(op.dy, t, n));
      for (int64_t k = 0; k < columns; ++k) {
        if (op.dx.present()) g.dx.add(t * columns + k, dy, row[static_cast<size_t>(k)].value());
        if (op.dw.present())
          g.dw.add((expert * rows + n) * columns + k, dy, operand(op.compute, at(op.x, t, k)));
      }
    }
  }
  return g;
}

void ReferenceBackend::do_grouped_linear_backward(const GroupedLinearBackward& op) {
  const LinearGradients g = exact_grouped_linear_backward(op);
  const int64_t columns = op.weight->columns();
  for (int64_t i = 0; i < op.dx.elements(); ++i) {
    at(op.dx, i / columns, i % columns) = static_cast<float>(g.dx.sum[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < op.dw.elements(); ++i) {
    op.dw.as<float>()[i] = static_cast<float>(g.dw.sum[static_cast<size_t>(i)]);
  }
}

void ReferenceBackend::do_linear_backward(const LinearBackward& op) {
  const LinearGradients g = exact_linear_backward(op);
  const int64_t columns = op.weight->columns();
  for (int64_t i = 0; i < op.dx.elements(); ++i) {
    at(op.dx, i / columns, i % columns) = static_cast<float>(g.dx.sum[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < op.dw.elements(); ++i) {
    op.dw.as<float>()[i] = static_cast<float>(g.dw.sum[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < op.dbias.elements(); ++i) {
    op.dbias.as<float>()[i] = static_cast<float>(g.dbias.sum[static_cast<size_t>(i)]);
  }
}

void ReferenceBackend::do_linear(const Linear& op) {
  const std::vector<int64_t> experts(static_cast<size_t>(op.x.shape[0]), 0);
  const std::vector<double> y = exact_linear(op, exact_products(op.x, *op.weight, op.compute, experts));
  for (int64_t t = 0; t < op.y.shape[0]; ++t) {
    for (int64_t n = 0; n < op.y.shape[1]; ++n) {
      at(op.y, t, n) = static_cast<float>(y[static_cast<size_t>(t * op.y.shape[1] + n)]);
    }
  }
}

void ReferenceBackend::do_grouped_linear(const GroupedLinear& op) {
  const Products products = exact_products(op.x, *op.weight, op.compute, experts_of_rows(op.counts));
  for (int64_t t = 0; t < op.y.shape[0]; ++t) {
    for (int64_t n = 0; n < op.y.shape[1]; ++n) {
      at(op.y, t, n) = static_cast<float>(products.sum[static_cast<size_t>(t * op.y.shape[1] + n)]);
    }
  }
}

}  // namespace qiao::reference
